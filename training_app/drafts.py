"""Uploaded files whose owner has not said yet how they shall come in."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

from django.conf import settings
from django.core.exceptions import ValidationError
from django.http import Http404
from django.utils.text import get_valid_filename

from audioldm_site.names import id_or_none
from gpu.errors import Fault
from training_app import sources
from training_app.sources import Found

DRAFT_FILE = "draft.json"
FOLDERS = ("uploads", "parts")
"""Below DATA_DIR: of forms, and of what came piece by piece."""


def keep_draft(folder: Path, file: Path, *, name: str, owner) -> Found:
    """Keep a file under a plain name until its owner has seen what it is. Done again for the same folder it changes nothing.

    Args:
        folder: `DATA_DIR/uploads/<draft>` or `DATA_DIR/parts/<draft>`, whose name is the draft's id; removed when the file is no model.
        name: as its owner calls it.
    Raises:
        Fault: what the file is not.
    """
    target = folder / _file_name(name)
    if file.exists():
        file.rename(target)
    (folder / DRAFT_FILE).write_text(json.dumps({"owner": owner.pk, "name": target.name, "label": name[:200]}))
    try:
        return sources.look_at(target, label=target.name)
    except Fault:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def open_draft(user, text: str | None) -> Found:
    """What `?upload=` names.

    Raises:
        Http404: there is no such upload, or it is somebody else's.
    """
    folder = draft_folder(text)
    try:
        draft = json.loads((folder / DRAFT_FILE).read_text())
    except (OSError, ValueError):
        raise Http404("there is no such upload") from None
    if draft["owner"] != user.pk:
        raise Http404("there is no such upload")
    return replace(sources.look_at(folder / draft["name"], label=draft["name"]), label=draft["name"])


def draft_folder(text: str | None) -> Path:
    draft: uuid.UUID | None = id_or_none(text)
    if draft is None:
        raise Http404("no upload is named")
    folders = [settings.DATA_DIR / top / str(draft) for top in FOLDERS]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _file_name(sent: str) -> str:
    """A plain name: the converter writes it into the model's papers."""
    try:
        name = get_valid_filename(re.split(r"[/\\]", sent)[-1])[-120:].lstrip(".-") or "model"
    except ValidationError:
        return "model"
    return name if name not in (DRAFT_FILE, "lock", "part") else f"model-{name}"
