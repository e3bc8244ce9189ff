"""Makes the original packages importable offline, under the library versions of this project. Only for the child process of `writer.py`.

Nothing in the packages is changed. What they import and the parity tests never run is an empty module; what they do run (mel banks,
one spectrogram module, one transformer block) stands here, short. Models that would be downloaded are built from literal configurations.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import transformers  # before the stand-ins: it looks for torchvision while it is imported
from scipy.signal import get_window
from torch import nn

from gpu.architectures import roberta_tokenizer, t5_tokenizer
from gpu.tiny import CAPTIONS

EMPTY = (
    "torchvision", "timm", "pandas", "sklearn", "progressbar", "ftfy", "unidecode", "phonemizer", "matplotlib", "ipdb", "wandb",
    "deepdiff", "horovod", "braceexpand", "webdataset", "omegaconf", "torchaudio", "librosa",
)  # fmt: skip
ROBERTA_VOCABULARY, T5_VOCABULARY = 300, 160
FULL_ROBERTA = {"vocab_size": 50265, "num_hidden_layers": 12, "intermediate_size": 3072}
SMALL_ROBERTA = {"vocab_size": ROBERTA_VOCABULARY, "num_hidden_layers": 1, "intermediate_size": 64}
FULL_T5 = {"vocab_size": 32128, "d_ff": 2816, "num_layers": 24, "num_heads": 16}
SMALL_T5 = {"vocab_size": T5_VOCABULARY, "d_ff": 64, "num_layers": 2, "num_heads": 2}
FULL_GPT2 = {"vocab_size": 50257, "n_layer": 12}
SMALL_GPT2 = {"vocab_size": 50, "n_layer": 1}


class _Anything(type):
    """A class of which every attribute is another such class."""

    def __getattr__(cls, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _EmptyModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in EMPTY else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: _anything(name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def _anything(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (nn.Module,), {"__init__": lambda self, *args, **kwargs: nn.Module.__init__(self)})


def mel_bank(*, sr: float, n_fft: int, n_mels: int = 128, fmin: float = 0.0, fmax: float | None = None, **_: object) -> np.ndarray:
    """`librosa.filters.mel`: Slaney's mel scale and area normalisation.  [n_mels, n_fft/2+1]

    The scale is linear below 1000 Hz (200/3 Hz a mel) and logarithmic above (27 mels for a factor of 6.4).
    """

    def to_mel(hz: np.ndarray) -> np.ndarray:
        return np.where(hz < 1000, hz / (200 / 3), 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000) / np.log(6.4))

    def to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * (200 / 3), 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    top = sr / 2 if fmax is None else fmax
    edges = to_hz(np.linspace(to_mel(np.array(fmin)), to_mel(np.array(top)), n_mels + 2))  # [n_mels + 2], Hz
    bins = np.fft.rfftfreq(n_fft, 1 / sr)
    slopes = edges[:, None] - bins[None]
    widths = np.diff(edges)[:, None]
    bank = np.maximum(0, np.minimum(-slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]))
    return (bank * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


class _Spectrogram(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(size))


class _MelScale(nn.Module):
    def __init__(self, bins: int, n_mels: int) -> None:
        super().__init__()
        self.register_buffer("fb", torch.zeros(bins, n_mels))


class MelSpectrogram(nn.Module):
    """torchaudio's, as far as a state dict shows it: the re-ranker's mel is computed and never used."""

    def __init__(self, *, n_fft: int, n_mels: int, **_: object) -> None:
        super().__init__()
        self.spectrogram = _Spectrogram(n_fft)
        self.mel_scale = _MelScale(n_fft // 2 + 1, n_mels)


class Block(nn.Module):
    """timm's transformer block, as far as a state dict shows it: AudioMAE only teaches, it is never run here."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, norm_layer: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_layer(dim), norm_layer(dim)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, int(dim * mlp_ratio)), nn.Linear(int(dim * mlp_ratio), dim)


def install(packages: Path, *, full_size: bool = False) -> None:
    """Put the packages on this process's path and fill in what they lack."""
    sys.path.append(str(packages))
    sys.meta_path.append(_EmptyModules())
    _fill("librosa.filters", mel=mel_bank, get_window=lambda name, size, fftbins: get_window(name, size, fftbins=fftbins))
    _fill("librosa.util", pad_center=_pad_center, tiny=lambda x: np.finfo(np.float32).tiny)
    _fill("torchaudio", transforms=types.SimpleNamespace(MelSpectrogram=MelSpectrogram))
    _fill("timm.models.layers", to_2tuple=lambda x: x if isinstance(x, tuple) else (x, x))
    _fill("timm.models.vision_transformer", Block=Block)

    roberta = transformers.RobertaConfig(
        **(FULL_ROBERTA if full_size else SMALL_ROBERTA), hidden_size=768, num_attention_heads=12,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
    )  # fmt: skip
    transformers.RobertaConfig.from_pretrained = classmethod(lambda cls, *a, **k: roberta)
    transformers.RobertaModel.from_pretrained = classmethod(lambda cls, *a, **k: cls(roberta))
    t5 = transformers.T5Config(
        **(FULL_T5 if full_size else SMALL_T5), d_model=1024, d_kv=64, feed_forward_proj="gated-gelu", is_encoder_decoder=False,
        use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.T5Config.from_pretrained = classmethod(lambda cls, *a, **k: t5)
    gpt2 = transformers.GPT2Config(**(FULL_GPT2 if full_size else SMALL_GPT2), n_embd=768, n_head=12, n_positions=1024)
    transformers.GPT2Config.from_pretrained = classmethod(lambda cls, *a, **k: gpt2)
    clap_words, t5_words = tokenizers()
    transformers.RobertaTokenizer.from_pretrained = classmethod(lambda cls, *a, **k: clap_words)
    transformers.AutoTokenizer.from_pretrained = classmethod(lambda cls, *a, **k: t5_words)


def tokenizers() -> tuple[transformers.RobertaTokenizer, transformers.T5Tokenizer]:
    """The small vocabularies that stand for roberta-base's and flan-t5-large's."""
    captions = list(CAPTIONS)
    return roberta_tokenizer(captions, vocabulary_size=ROBERTA_VOCABULARY), t5_tokenizer(captions, vocabulary_size=T5_VOCABULARY)


def _fill(name: str, **content: object) -> None:
    module = importlib.import_module(name)
    for key, value in content.items():
        setattr(module, key, value)


def _pad_center(data: np.ndarray, *, size: int) -> np.ndarray:
    left = (size - len(data)) // 2
    return np.pad(data, (left, size - len(data) - left))
