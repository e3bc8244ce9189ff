"""How many cases a test tries, how long one may take, and how much memory all of them.

    HYPOTHESIS_PROFILE=long pytest tests/fuzz        more than 10,000 cases, drawn anew each time
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator

import psutil
from hypothesis import HealthCheck, Phase, settings

IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
CASE_S = 20
"""Of the processor: a busy machine makes nothing hang. A case that waits for ever meets pytest's own limit."""
GROWTH_BYTES = 150 * 2**20
tried: Counter[str] = Counter()


def cases(short: int, long: int) -> settings:
    """The same cases each time in the short form, so that a change elsewhere does not turn a build red by chance."""
    return settings(
        max_examples=long if IS_LONG else short,
        derandomize=not IS_LONG,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def bounded(test: Callable) -> Callable:
    """Each case ends in `CASE_S`, and after the first tenth all of them together keep less than `GROWTH_BYTES`."""
    sizes: list[int] = []

    @functools.wraps(test)
    def one(*args, **kwargs):
        tried[test.__name__] += 1
        with _alarm(test.__name__):
            result = test(*args, **kwargs)
        if tried[test.__name__] % 50 == 0:
            sizes.append(psutil.Process().memory_info().rss)
            assert sizes[-1] - sizes[0] < GROWTH_BYTES, f"the memory grew by {sizes[-1] - sizes[0]} bytes in {tried[test.__name__]} cases"
        return result

    return one


@contextlib.contextmanager
def _alarm(name: str) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"{name}: a case took more than {CASE_S} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, CASE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
