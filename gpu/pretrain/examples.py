"""The corpus as pictures on disk: made once, then read by every stage without decoding a sound again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpu.mel import log_mel
from gpu.pretrain.corpus import Corpus
from gpu.pretrain.training import Announce

HELD_OUT = 48


class Examples:
    """Mel pictures [N, T, M] at half precision, and their captions; the held-out recordings likewise."""

    def __init__(self, folder: Path) -> None:
        self.mels = np.load(folder / "mels.npy", mmap_mode="r")
        self.captions: list[str] = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
        self.held_out = torch.from_numpy(np.load(folder / "held_out.npy").astype(np.float32))[:, None]  # [H, 1, T, M]

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, indices: np.ndarray) -> Tensor:
        """[B, 1, T, M]"""
        return torch.from_numpy(self.mels[indices].astype(np.float32))[:, None]

    def crops(self, rng: np.random.Generator, batch_size: int, num_frames: int) -> Tensor:
        """Cuts of random examples, half of them from the first second, where most of the sound is: [B, 1, num_frames, M]."""
        last = self.mels.shape[1] - num_frames
        indices = rng.integers(len(self), size=batch_size)
        starts = np.where(
            rng.random(batch_size) < 0.5, rng.integers(last // 2 + 1, size=batch_size), rng.integers(last + 1, size=batch_size)
        )
        cuts = [self.mels[i, s : s + num_frames] for i, s in zip(indices, starts, strict=True)]
        return torch.from_numpy(np.stack(cuts).astype(np.float32))[:, None]


def prepare_examples(folder: Path, corpus: Corpus, *, num_examples: int, announce: Announce) -> Examples:
    """Draw the examples and keep their pictures in `folder`, unless they are there."""
    if not (folder / "captions.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        held_out = [log_mel(torch.from_numpy(corpus.held_out_example(i).waveform)[None], corpus.mel)[0, 0] for i in range(HELD_OUT)]
        np.save(folder / "held_out.npy", torch.stack(held_out).half().numpy())
        captions: list[str] = []
        num_frames = corpus.num_samples // corpus.mel.hop_length
        mels = np.lib.format.open_memmap(
            folder / "mels.npy", mode="w+", dtype=np.float16, shape=(num_examples, num_frames, corpus.mel.n_mels)
        )
        for index in range(num_examples):
            example = corpus.example(index)
            mels[index] = log_mel(torch.from_numpy(example.waveform)[None], corpus.mel)[0, 0].numpy()
            captions.append(example.caption)
            if (index + 1) % 10 == 0:
                announce(stage="examples", step=index + 1, max_steps=num_examples)
        mels.flush()
        # The captions come last: where they are, everything is.
        (folder / "captions.tmp").write_text(json.dumps(captions), encoding="utf-8")
        (folder / "captions.tmp").replace(folder / "captions.json")
    return Examples(folder)
