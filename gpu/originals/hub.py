"""Downloads from the Hugging Face hub, or a mirror of it (HF_ENDPOINT): safetensors and small files only, resumed, verified, kept."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from gpu.errors import Fault
from gpu.originals.contents import kept_names

PREFIX = "hub:"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "spiece.model")
ORIGINAL_FILES = ("*.ckpt", "*.pth")
_NAME = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
Report = Callable[[str, int, int], None]


def parse(source: str) -> tuple[str, str | None]:
    """`hub:OWNER/NAME[@REVISION]` as (repository, revision).

    Raises:
        Fault: `hub.unknown`, it is not written like that.
    """
    match = _NAME.fullmatch(source)
    if not match:
        raise Fault("hub.unknown", f"{source!r} names no model of the hub; expected hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    return match["repo"], match["revision"]


def fetch(source: str, *, report: Report) -> tuple[Path, str]:
    """Download a model and return where it lies, and the commit.

    A repository in diffusers' layout comes as a folder of the files that belong to a model. One that
    holds a single checkpoint in an original layout comes as that file.

    Raises:
        Fault: `hub.unknown`, `hub.unreachable`, or `checkpoint.pickled` when its weights are pickles alone.
    """
    repo, revision = parse(source)
    sizes, commit = _files(repo, revision)
    if "model_index.json" in sizes:
        wanted = kept_names(sizes)
        if not any(name.endswith(".safetensors") for name in wanted):
            raise Fault("checkpoint.pickled", f"{repo} holds its weights as pickles alone; ask its owner for safetensors")
        return download(repo, revision=commit, allow_patterns=wanted, report=report, total=sum(sizes[name] for name in wanted)), commit
    whole = [name for name in sizes if "/" not in name and name.endswith(".safetensors")]
    originals = whole or [name for name in sizes if fnmatch.fnmatch(name, ORIGINAL_FILES[0]) or fnmatch.fnmatch(name, ORIGINAL_FILES[1])]
    if len(originals) != 1:
        found = ", ".join(sorted(originals or sizes)[:8]) or "nothing"
        raise Fault("checkpoint.unrecognised", f"{repo} holds {found}; expected model_index.json or one checkpoint. Download the one you mean and import the file")
    return download(repo, revision=commit, allow_patterns=originals, report=report, total=sizes[originals[0]]) / originals[0], commit


def download(
    repo: str, *, revision: str | None = None, allow_patterns: list[str] | tuple[str, ...], report: Report | None = None, total: int = 0
) -> Path:
    """A repository's files in the hub's cache. What is there already is not fetched again; what was broken off goes on.

    Raises:
        Fault: `hub.unknown`, `hub.unreachable`.
    """
    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=list(allow_patterns), tqdm_class=_bar(report, total), max_workers=2)
        )
    except Exception as error:
        raise _fault(error, repo, revision) from error


def _files(repo: str, revision: str | None) -> tuple[dict[str, int], str]:
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=30)
    except Exception as error:
        raise _fault(error, repo, revision) from error
    return {item.rfilename: item.size or 0 for item in info.siblings or []}, info.sha or revision or "main"


def _bar(report: Report | None, total: int) -> type[tqdm]:
    """huggingface_hub's progress as our reports, counted in bytes over all files. Raising in a report ends the download."""
    done = {"bytes": 0}

    class Bar(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            kwargs.pop("name", None)
            self._counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if report and self._counts_bytes:
                done["bytes"] += int(n or 0)
                report("downloading", min(done["bytes"], total or done["bytes"]), total)
            return None

    return Bar


def _fault(error: Exception, repo: str, revision: str | None) -> Exception:
    where = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if isinstance(error, Fault) or not (isinstance(error, OSError | ValueError | HfHubHTTPError) or "httpx" in type(error).__module__):
        return error
    if isinstance(error, GatedRepoError):
        return Fault("hub.unknown", f"{repo} wants its licence accepted on {where} first, and HF_TOKEN set to a token of that account")
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return Fault("hub.unknown", f"{where} has no model {repo}, or keeps it private")
    if isinstance(error, RevisionNotFoundError):
        return Fault("hub.unknown", f"{repo} has no revision {revision}")
    if isinstance(error, OfflineModeIsEnabled):
        return Fault("hub.unreachable", f"{repo} is not in this machine's cache, and HF_HUB_OFFLINE forbids to fetch it", operator=True)
    if isinstance(error, LocalEntryNotFoundError):
        return Fault("hub.unreachable", f"{where} does not answer, and {repo} is not in this machine's cache", operator=True)
    if isinstance(error, OSError) and error.errno == 28:
        return Fault("disk.full", f"the disk filled up while {repo} was downloaded", operator=True)
    return Fault("hub.unreachable", f"{repo} could not be fetched from {where}: {type(error).__name__}", operator=True)
