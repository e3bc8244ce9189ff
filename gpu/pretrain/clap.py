"""Stage three: CLAP learns which caption belongs to which sound, and is frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ClapFeatureExtractor, ClapModel, RobertaTokenizer

from gpu.architectures import CLAP_FEATURES, Architecture, build_clap
from gpu.pretrain.corpus import Corpus
from gpu.pretrain.recipe import ClapRecipe
from gpu.pretrain.training import CPU, Announce, Obey, Training, cosine, set_learning_rate
from gpu.pretrain.wording import ARTICLES


def train_clap(
    recipe: ClapRecipe, architecture: Architecture, tokenizer: RobertaTokenizer, corpus: Corpus, captions: list[str], folder: Path,
    *, seed: int, announce: Announce, obey: Obey | None = None, device: torch.device = CPU,
) -> ClapModel:  # fmt: skip
    """Symmetric contrastive loss (Elizalde et al. 2022, arXiv:2206.04769, eq. 3) over each batch.

    Sounds with one caption are all right answers for it: many of our captions are shared.

    Args:
        captions: of the corpus' examples, in order.
    Returns:
        CLAP in eval mode, on the processor.
    """
    torch.manual_seed(seed)
    clap = build_clap(architecture, tokenizer).to(device)
    optimizer = torch.optim.AdamW(clap.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    training = Training(
        folder / "clap.pt", parts={"clap": clap, "optimizer": optimizer},
        max_steps=recipe.max_train_steps, batch_size=recipe.train_batch_size, seed=seed, announce=announce, obey=obey,
    )  # fmt: skip
    features = _prepare_features(folder / "clap_features.npy", corpus, num_examples=recipe.num_examples, announce=announce)

    clap.train()
    for step in training.steps():
        share = cosine(step, warmup_steps=recipe.lr_warmup_steps, max_steps=recipe.max_train_steps)
        set_learning_rate(optimizer, recipe.learning_rate * share)

        indices = np.random.default_rng([seed, step]).choice(len(features), recipe.train_batch_size, replace=False)
        batch_captions = [captions[i] for i in indices]
        sounds = torch.from_numpy(features[indices].astype(np.float32)).to(device)  # [B, 1, 1001, 64]
        text = tokenizer(batch_captions, padding=True, truncation=True, return_tensors="pt").to(device)
        output = clap(input_features=sounds, **text)
        loss = contrastive_loss(output.logits_per_text, batch_captions)

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clap.parameters(), 1.0)
        optimizer.step()
        right = output.logits_per_text.argmax(1).cpu() == torch.arange(len(indices))
        training.report(loss, top1=round(float(right.float().mean()), 2))
    return clap.to("cpu").eval()


def contrastive_loss(logits_per_text: Tensor, captions: list[str]) -> Tensor:
    """Cross entropy both ways; the target of a caption is spread evenly over the sounds that bear it. [B, B] -> []"""
    plain = [_plain(caption) for caption in captions]
    same = torch.tensor([[a == b for b in plain] for a in plain]).to(logits_per_text)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits_per_text, target) + F.cross_entropy(logits_per_text.T, target)) / 2


def clap_features(waveforms: Tensor) -> Tensor:
    """What `ClapFeatureExtractor` makes of these sounds, thirty at a time instead of one: [B, S] at 48 kHz -> [B, 1, 1001, 64]"""
    extractor = ClapFeatureExtractor(**CLAP_FEATURES)
    room = extractor.nb_max_samples
    repeated = waveforms.repeat(1, max(room // waveforms.shape[1], 1))[:, :room]
    padded = F.pad(repeated, (0, room - repeated.shape[1]))
    spectrum = torch.stft(
        padded, extractor.fft_window_size, extractor.hop_length, window=torch.hann_window(extractor.fft_window_size), return_complex=True
    ).abs().square()  # [B, 513, 1001]  # fmt: skip
    mel = torch.from_numpy(extractor.mel_filters_slaney.T).float() @ spectrum  # [B, 64, 1001]
    return 10 * torch.log10(mel.clamp(min=1e-10)).transpose(1, 2)[:, None]


def _prepare_features(path: Path, corpus: Corpus, *, num_examples: int, announce: Announce, batch_size: int = 20) -> np.ndarray:
    """The CLAP pictures of the first examples, kept on disk: [N, 1, 1001, 64]"""
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        features = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=(num_examples, 1, 1001, 64))
        for start in range(0, num_examples, batch_size):
            indices = range(start, min(start + batch_size, num_examples))
            waveforms = [corpus.example(i).waveform for i in indices]
            at_48k = [soxr.resample(w, corpus.mel.sample_rate_hz, CLAP_FEATURES["sampling_rate"]) for w in waveforms]
            features[indices.start : indices.stop] = clap_features(torch.from_numpy(np.stack(at_48k))).numpy()
            announce(stage="clap features", step=start, max_steps=num_examples)
        features.flush()
        temporary.replace(path)
    return np.load(path, mmap_mode="r")


def _plain(caption: str) -> str:
    lower = caption.lower().rstrip(".")
    return next((lower[len(a) :] for a in ARTICLES if lower.startswith(a)), lower)
