"""Every published family, built by the original code itself: small (true structure, narrow) or full size. Only for `writer.py`'s process."""

from __future__ import annotations

import importlib
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

LOSS_CONVOLUTIONS = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}  # VGG16's, by LPIPS's slices
LEAVE = ("spectrogram_extractor", "logmel_extractor", "mel_transform", "relative_position_index", "attn_mask", "num_batches_tracked",
         "position_ids", "logit_scale", "logvar", "betas", "alphas_cumprod", "posterior_", "model_ema.decay")  # fmt: skip
SCALE_FACTOR, NUM_UPDATES = 0.4321, 350_000


class Width(int):
    """A level's multiplier that makes its width, whatever `model_channels` says: `l`'s 256 without its 739 million weights."""

    def __mul__(self, _other: int) -> int:  # type: ignore[override]
        return int(self)

    __rmul__ = __mul__


@dataclass(frozen=True, kw_only=True)
class Family:
    """One published architecture.

    Attributes:
        published: the name by which the packages' own configuration functions know it.
        generation: 1 for the package audioldm, 2 for audioldm2.
        unet: what the small one changes in the UNet.
        fine_tuned: written by the training repository from a model of generation 1: film, a CLAP of its own, the VAE's loss.
    """

    published: str
    generation: int
    unet: Mapping[str, Any] = field(default_factory=dict)
    fine_tuned: bool = False
    clap: str = "HTSAT-base"


NARROW = {"model_channels": 32, "channel_mult": [1, 2, 3, 5]}
FLAT = {"model_channels": 32, "channel_mult": [1, 2, 2, 3]}
FAMILIES = {
    "audioldm-s": Family(published="audioldm-s-full", generation=1, unet=NARROW),
    "audioldm-m": Family(published="audioldm-m-full", generation=1, unet={"model_channels": 64, "channel_mult": [1, 1, 2, 3]}),
    "audioldm-l": Family(
        published="audioldm-l-full", generation=1, unet={"model_channels": 256, "channel_mult": [Width(256), Width(64), Width(64), Width(128)]}
    ),
    "audioldm-ft": Family(published="audioldm2-full", generation=2, unet=NARROW, fine_tuned=True, clap="HTSAT-tiny"),
    "audioldm-48k": Family(published="audioldm_48k", generation=2, unet=FLAT),
    "audioldm-t5": Family(published="audioldm_16k_crossattn_t5", generation=2, unet=NARROW),
    "audioldm2": Family(published="audioldm2-full", generation=2, unet=FLAT),
    "audioldm2-large": Family(published="audioldm2-full-large-1150k", generation=2, unet={"model_channels": 32, "channel_mult": [1, 1, 2, 2]}),
    "audioldm2-speech": Family(published="audioldm2-speech-gigaspeech", generation=2, unet=FLAT),
}
FULL_UNET = {"audioldm-ft": {"model_channels": 192}}  # full size: the fork's fine-tune of m, with m's CLAP
FULL_CLAP = {"audioldm-ft": "HTSAT-base"}


def build(name: str, *, full_size: bool = False) -> nn.Module:
    """The original `LatentDiffusion` in eval mode, its CLAP never dropping a prompt."""
    family = FAMILIES[name]
    package = "audioldm" if family.generation == 1 else "audioldm2"
    params = _original_params(family, package)
    if full_size:
        params["unet_config"]["params"].update(FULL_UNET.get(name, {}))
        if name in FULL_CLAP:
            params["cond_stage_config"]["film_clap_cond1"]["params"]["amodel"] = FULL_CLAP[name]
    else:
        params["unet_config"]["params"].update(deepcopy(dict(family.unet)))
        params["first_stage_config"]["params"]["ddconfig"]["ch"] = 32
    ldm_module = importlib.import_module("audioldm.ldm" if family.generation == 1 else "audioldm2.latent_diffusion.models.ddpm")
    with _small_parts(package, shrink=not full_size):
        model: nn.Module = ldm_module.LatentDiffusion(**params)
    if family.fine_tuned:
        model.first_stage_model.loss = _loss()
    for module in model.modules():
        if isinstance(module, RobertaEmbeddings):
            # transformers up to 4.30 wrote this buffer, and published files have it.
            module._non_persistent_buffers_set.discard("position_ids")
        if isinstance(module, T5EncoderModel):
            module.encoder.embed_tokens.weight = module.shared.weight
        if hasattr(module, "unconditional_prob"):
            module.unconditional_prob = 0.0
    return model.eval()


def randomise(model: nn.Module, *, seed: int = 0) -> None:
    """Give every tensor a value that depends on the seed and its name alone; the EMA gets weights of its own."""
    tensors = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not any(word in name for word in LEAVE) and not name.startswith("model_ema."):
                tensor.copy_(_value(name, tensor, seed))
        for name, flat in model.model_ema.m_name2s_name.items():
            raw = tensors[f"model.{name}"]  # the average lies near the weights, and not at them
            tensors[f"model_ema.{flat}"].copy_(raw + 0.3 * _noise(f"ema {name}", raw, seed))
        tensors["model_ema.num_updates"].fill_(NUM_UPDATES)
        tensors["scale_factor"].fill_(SCALE_FACTOR)
        for name, tensor in tensors.items():
            inner = "cond_stage_models.0.cond_stage_models.1.model."
            if name.startswith(inner) and name.replace(inner, "cond_stage_models.1.model.") in tensors:
                tensor.copy_(tensors[name.replace(inner, "cond_stage_models.1.model.")])


def lightning_extras(model: nn.Module) -> dict[str, Any]:
    """What pytorch-lightning writes beside the state dict, with the state of one real AdamW step."""
    weights = list(model.model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    sum((weight**2).sum() for weight in weights).backward()
    optimizer.step()
    progress = {"total": {"ready": 5000, "completed": 5000}, "current": {"ready": 0, "completed": 0}}
    callback = "ModelCheckpoint{'monitor': 'global_step', 'mode': 'max', 'every_n_train_steps': 5000}"
    return {
        "epoch": 12, "global_step": 5000, "pytorch-lightning_version": "2.1.1", "loops": {"fit_loop": {"epoch_progress": progress}},
        "callbacks": {callback: {"monitor": "global_step", "best_model_score": torch.tensor(4999.0), "best_k_models": {}}},
        "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [],
    }  # fmt: skip


def _original_params(family: Family, package: str) -> dict[str, Any]:
    config = importlib.import_module(f"{package}.utils").default_audioldm_config(family.published)
    params = deepcopy(config["model"]["params"])
    params["device"] = torch.device("cpu")
    _blank_private_paths(params)
    if family.generation == 1:
        params["cond_stage_key"] = "text"
    if family.fine_tuned:
        params["unet_config"]["params"].pop("context_dim")
        params["unet_config"]["params"].update(extra_sa_layer=False, extra_film_condition_dim=512)
        clap = "audioldm2.latent_diffusion.modules.encoders.modules.CLAPAudioEmbeddingClassifierFreev2"
        params["cond_stage_config"] = {
            "film_clap_cond1": {
                "cond_stage_key": "text", "conditioning_key": "film", "target": clap,
                "params": {"pretrained_path": "", "sampling_rate": 16000, "embed_mode": "text", "amodel": family.clap},
            }
        }  # fmt: skip
    return params


def _blank_private_paths(config: dict[str, Any]) -> None:
    for key, value in config.items():
        if isinstance(value, dict):
            _blank_private_paths(value)
        elif key in ("pretrained_path", "reload_from_ckpt"):
            config[key] = "" if key == "pretrained_path" else None


@contextmanager
def _small_parts(package: str, *, shrink: bool) -> Iterator[None]:
    """Narrow what the packages hard-code: HTSAT, HiFi-GAN, AudioMAE."""
    if not shrink:
        yield
        return
    open_clip = importlib.import_module(f"{package}.clap.open_clip.model")
    configs = importlib.import_module(f"{package}.clap.open_clip.factory")._MODEL_CONFIGS
    htsat = importlib.import_module(f"{package}.clap.open_clip.htsat").HTSAT_Swin_Transformer
    widths = {"tiny": (16, [1, 1, 1, 1], [1, 2, 4, 8]), "base": (32, [1, 1, 2, 1], [2, 4, 8, 16])}

    def small_htsat(audio_cfg: Any, enable_fusion: bool, fusion_type: str) -> nn.Module:
        embed_dim, depths, heads = widths[audio_cfg.model_name]
        return htsat(num_classes=audio_cfg.class_num, embed_dim=embed_dim, depths=depths, num_heads=heads, config=audio_cfg)

    open_clip.create_htsat_model = small_htsat
    for size, (embed_dim, _, _) in widths.items():
        configs[f"HTSAT-{size}"]["embed_dim"] = 8 * embed_dim
        configs[f"HTSAT-{size}"]["audio_cfg"]["class_num"] = 11
    if package == "audioldm":
        importlib.import_module("audioldm.hifigan.utilities").HIFIGAN_16K_64["upsample_initial_channel"] = 64
        yield
        return
    vocoders = importlib.import_module("audioldm2.utilities.model")
    for function in ("get_vocoder_config", "get_vocoder_config_48k"):
        narrow = {**getattr(vocoders, function)(), "upsample_initial_channel": 64}
        setattr(vocoders, function, narrow.copy)
    audio_mae = importlib.import_module("audioldm2.latent_diffusion.modules.audiomae.models_mae")
    audio_mae.mae_vit_base_patch16 = lambda **kwargs: audio_mae.MaskedAutoencoderViT(
        **kwargs, embed_dim=768, depth=1, num_heads=12, decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=2, mlp_ratio=1
    )
    yield


class _Loss(nn.Module):
    """The names and shapes of LPIPS-VGG16 and PatchGAN, 56 tensors; never run."""


def _loss() -> nn.Module:
    loss = _Loss()
    loss.logvar = nn.Parameter(torch.zeros(()))
    loss.perceptual_loss, loss.discriminator = nn.Module(), nn.Module()
    net = loss.perceptual_loss
    net.scaling_layer = nn.Module()
    for name in ("shift", "scale"):
        net.scaling_layer.register_buffer(name, torch.zeros(1, 3, 1, 1))
    net.net = nn.Module()
    channels = 3
    for slice_number, indices in LOSS_CONVOLUTIONS.items():
        layers = nn.Module()
        for index in indices:
            width = 4 * 2 ** min(slice_number - 1, 3)  # VGG16's is 16 times this
            layers.add_module(str(index), nn.Conv2d(channels, width, 3))
            channels = width
        net.net.add_module(f"slice{slice_number}", layers)
        head = nn.Module()
        head.model = nn.Module()
        head.model.add_module("1", nn.Conv2d(channels, 1, 1, bias=False))
        net.add_module(f"lin{slice_number - 1}", head)
    main = nn.Module()
    main.add_module("0", nn.Conv2d(1, 4, 4))
    for index, (before, after) in {2: (4, 8), 5: (8, 16), 8: (16, 32)}.items():
        main.add_module(str(index), nn.Conv2d(before, after, 4, bias=False))
        main.add_module(str(index + 1), nn.BatchNorm2d(after))
    main.add_module("11", nn.Conv2d(32, 1, 4))
    loss.discriminator.main = main
    return loss


def _value(name: str, tensor: Tensor, seed: int) -> Tensor:
    noise = _noise(name, tensor, seed)
    if name.endswith("running_var"):
        return 0.5 + noise.abs()
    is_norm = tensor.ndim == 1 and name.endswith((".weight", ".gamma"))
    return noise + 1.0 if is_norm else noise


def _noise(name: str, tensor: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    noise = torch.randn(tensor.shape, generator=generator)
    return noise / math.sqrt(tensor[0].numel()) if tensor.ndim > 1 else 0.1 * noise
