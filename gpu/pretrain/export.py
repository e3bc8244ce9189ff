"""From a trained pipeline to the folder that is handed out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AudioLDM2Pipeline

STUDIO_FILE = "studio.json"


def export(pipeline: AudioLDM2Pipeline, folder: Path, *, studio: dict[str, Any]) -> Path:
    """Write the pipeline at half precision, whole or not at all, and beside it the facts that a studio asks for.

    Read it with `AudioLDM2Pipeline.from_pretrained(folder, dtype=torch.float32)`: without the dtype, half of the parts would
    be loaded as they were written and half not.
    """
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(temporary, safe_serialization=True)
    (temporary / STUDIO_FILE).write_text(json.dumps(studio, indent=2) + "\n", encoding="utf-8")
    # Of an attempt that was killed before it could tell: the same model.
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    return folder
