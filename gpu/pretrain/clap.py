"""Stage three: CLAP learns which caption belongs to which sound, and is frozen.

What CLAP ranks later is not recordings but what VAE and vocoder make, and that sounds different. So its audio tower goes on alone for a while
and hears such sounds too. The text tower is done before, because the UNet learns from its vector.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from diffusers import AudioLDM2Pipeline
from torch import Tensor, nn
from transformers import ClapFeatureExtractor, ClapModel, RobertaTokenizer

from gpu.architectures import CLAP_FEATURES, Architecture, build_clap
from gpu.mel import MelConfig
from gpu.pretrain.corpus import Corpus
from gpu.pretrain.examples import Examples
from gpu.pretrain.recipe import ClapRecipe
from gpu.pretrain.training import CPU, Announce, Obey, Training, cosine, set_learning_rate
from gpu.pretrain.wording import ARTICLES

FEATURES = "clap_features.npy"
LISTENING_RATE = 0.6
"""Of the learning rate with which both towers began."""
MOST_NOISE = 0.35
"""On latents of about unit spread, as a standard deviation."""


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
    features = _prepare_features(folder / FEATURES, corpus, num_examples=recipe.num_examples, announce=announce)

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


def train_listening(
    recipe: ClapRecipe, pipeline: AudioLDM2Pipeline, mel: MelConfig, examples: Examples, folder: Path,
    *, seed: int, announce: Announce, obey: Obey | None = None, device: torch.device = CPU,
) -> None:  # fmt: skip
    """The audio tower of the pipeline's CLAP, on the sounds that `train_clap` prepared and on remade ones, one in four, louder or softer, with gaps.

    Args:
        pipeline: with the finished VAE, vocoder and CLAP, on the processor, as they are afterwards.
        mel: the front end that the vocoder inverts.
    """
    clap, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    plain = np.load(folder / FEATURES, mmap_mode="r")
    remade = _prepare_remade(folder / "listening_features.npy", pipeline, mel, examples, num_examples=recipe.listening_examples, announce=announce)
    text = _text_embeds(clap, tokenizer, examples.captions[: max(len(plain), len(remade))]).to(device)  # [N, D]

    tower = nn.ModuleDict({"model": clap.audio_model, "projection": clap.audio_projection}).to(device)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    training = Training(
        folder / "listening.pt", parts={"tower": tower, "optimizer": optimizer},
        max_steps=recipe.listening_steps, batch_size=recipe.train_batch_size, seed=seed, announce=announce, obey=obey,
    )  # fmt: skip
    scale = clap.logit_scale_t.detach().exp().to(device)

    tower.train()
    for step in training.steps():
        share = cosine(step, warmup_steps=recipe.lr_warmup_steps, max_steps=recipe.listening_steps)
        set_learning_rate(optimizer, LISTENING_RATE * recipe.learning_rate * share)

        rng = np.random.default_rng([seed, step])
        count = max(recipe.train_batch_size // 4, 1)
        of_plain = rng.choice(len(plain), min(recipe.train_batch_size - count, len(plain)), replace=False)
        of_remade = rng.choice(len(remade), min(count, len(remade)), replace=False)
        sounds = np.concatenate([plain[np.sort(of_plain)], remade[np.sort(of_remade)]]).astype(np.float32)
        indices = np.concatenate([np.sort(of_plain), np.sort(of_remade)])
        heard = tower["projection"](tower["model"](input_features=torch.from_numpy(_disturbed(sounds, rng)).to(device)).pooler_output)
        loss = contrastive_loss(text[indices] @ F.normalize(heard, dim=-1).T * scale, [examples.captions[i] for i in indices])

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        training.report(loss)
    tower.to("cpu").eval()


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


@torch.no_grad()
def _prepare_remade(
    path: Path, pipeline: AudioLDM2Pipeline, mel: MelConfig, examples: Examples, *, num_examples: int, announce: Announce, batch_size: int = 4
) -> np.ndarray:
    """The CLAP pictures of what VAE and vocoder make of the first examples, kept on disk: [N, 1, 1001, 64]

    The latents get some noise, each example another amount, because a UNet's are never exact.
    """
    vae, num_examples = pipeline.vae, min(num_examples, len(examples))
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        features = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=(num_examples, 1, 1001, 64))
        for start in range(0, num_examples, batch_size):
            chance = torch.Generator().manual_seed(start)
            indices = np.arange(start, min(start + batch_size, num_examples))
            latents = vae.encode(examples.batch(indices)).latent_dist.sample(chance)
            amounts = MOST_NOISE / vae.config.scaling_factor * torch.rand(len(latents), 1, 1, 1, generator=chance)
            latents += amounts * torch.randn(latents.shape, generator=chance)
            waveforms = pipeline.vocoder(vae.decode(latents).sample[:, 0])
            at_48k = [soxr.resample(w, mel.sample_rate_hz, CLAP_FEATURES["sampling_rate"]) for w in waveforms.numpy()]
            features[indices] = clap_features(torch.from_numpy(np.stack(at_48k))).numpy()
            announce(stage="remade sounds", step=start, max_steps=num_examples)
        features.flush()
        temporary.replace(path)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def _text_embeds(clap: ClapModel, tokenizer: RobertaTokenizer, captions: list[str], batch_size: int = 200) -> Tensor:
    """[N, D], each of length 1"""
    batches = [captions[start : start + batch_size] for start in range(0, len(captions), batch_size)]
    tokens = [tokenizer(batch, padding=True, truncation=True, return_tensors="pt") for batch in batches]
    return F.normalize(torch.cat([clap.get_text_features(**each).pooler_output for each in tokens]), dim=-1)


def _disturbed(sounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each louder or softer by up to 6 dB, begun elsewhere, two bands and two moments silent: dB pictures [B, 1, T, M]"""
    sounds = sounds + rng.uniform(-6, 6, (len(sounds), 1, 1, 1)).astype(np.float32)
    for [picture] in sounds:
        frames, bins = picture.shape
        picture[:] = np.roll(picture, int(rng.integers(frames)) if rng.random() < 0.3 else int(rng.integers(-20, 21)), axis=0)
        silence = picture.min()
        for _ in range(2):
            width, length = int(rng.integers(bins // 8 + 1)), int(rng.integers(frames // 16))
            at, since = int(rng.integers(bins - width + 1)), int(rng.integers(frames - length + 1))
            picture[:, at : at + width] = silence
            picture[since : since + length] = silence
    return sounds


def _plain(caption: str) -> str:
    lower = caption.lower().rstrip(".")
    return next((lower[len(a) :] for a in ARTICLES if lower.startswith(a)), lower)
