"""Trains a small AudioLDM 2 from nothing: `python -m gpu pretrain RECIPE RUN_DIR --data CORPUS_ZIP`."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    # Imported here so that the packages' light parts do not load torch.
    from gpu.pretrain.command import run

    return run(argv)
