"""Logs beside the progress bars of a command."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from audioldm_site import logs

log = logging.getLogger("audioldm_site.tests")


@contextmanager
def terminal(*, level: int = logging.INFO) -> Iterator[io.StringIO]:
    """What a person sees: the console handler and a bar write to the same stream. (pytest changes sys.stderr between fixture and test.)"""
    root = logging.getLogger()
    before = (sys.stderr, root.handlers, root.level)
    sys.stderr = io.StringIO()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logs.Plain())
    root.handlers, root.level = [handler], level
    root.manager._clear_cache()
    try:
        yield sys.stderr
    finally:
        sys.stderr, root.handlers, root.level = before
        root.manager._clear_cache()


def test_what_goes_well_is_not_logged_into_a_bar():
    with terminal() as shown:
        with logs.beside_bars(), tqdm(total=2, desc="step", mininterval=0) as bar:
            bar.update()
            log.info("attempt 1 on here")
            bar.update()
        assert "attempt 1" not in shown.getvalue()
        log.info("attempt 2 on here")
    assert "attempt 2" in shown.getvalue()


def test_a_warning_stands_on_a_line_of_its_own_above_the_bar():
    with terminal() as shown, logs.beside_bars(), tqdm(total=2, desc="step", mininterval=0) as bar:
        bar.update()
        log.warning("the disk is nearly full")
    # The bar is wiped, the line is written whole, and the bar is drawn again.
    line = next(line for line in shown.getvalue().split("\n") if "nearly full" in line).split("\r")[-1]
    assert line.endswith("WARNING audioldm_site.tests: the disk is nearly full")
    assert "step" not in line


def test_everything_is_shown_to_who_asks_for_it():
    with terminal(level=logging.DEBUG) as shown, logs.beside_bars():
        log.debug("a detail")
    assert "a detail" in shown.getvalue()


def test_a_file_goes_on_getting_every_line(tmp_path):
    with terminal():
        logging.getLogger().addHandler(logs.SharedFile(tmp_path / "serve.log"))
        with logs.beside_bars():
            log.info("attempt 1 on here")
    assert "attempt 1 on here" in (tmp_path / "serve.log").read_text()
