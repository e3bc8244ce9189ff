"""A whole AudioLDM 2 with random weights, small enough for every test: `python -m gpu.tiny FOLDER`.

It has every part of the published models and their proportions, a thousandth of their size. It makes noise, at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gpu.architectures import Architecture, build_audioldm2
from gpu.mel import PUBLISHED, MelConfig

CAPTIONS = (
    "A dog barking", "Rain falling on a tin roof", "A piano playing a single low note", "Glass breaking",
    "An engine starting and idling", "Footsteps on gravel", "A high beep and a low hum", "Wind howling",
)  # fmt: skip
VOCABULARY_SIZE = 300
# Transposed convolutions give exactly `rate` samples for each one only where kernel and rate are both even or both odd.
UPSAMPLING = {160: ([5, 4, 2, 2, 2], [15, 8, 4, 4, 4]), 256: ([8, 8, 2, 2], [16, 16, 4, 4]), 480: ([6, 5, 4, 2, 2], [12, 15, 8, 4, 4])}


def tiny_architecture(
    *,
    sample_rate_hz: int = 16_000,
    n_mels: int = 64,
    hop_length: int = 160,
    vae_levels: int = 3,
    prediction_type: str = "epsilon",
    sample_length_s: float = 10.24,
) -> Architecture:
    """The description of the tiny model; each argument is something that no code may take for granted.

    Args:
        vae_levels: latents are 2 ** (vae_levels - 1) times smaller than the mel picture.
        sample_length_s: how long a sound the model makes when it is not told.
    """
    n_fft, f_min_hz, f_max_hz = PUBLISHED.get((sample_rate_hz, n_mels), (1024, 0.0, min(8000.0, sample_rate_hz / 2)))
    upsample_rates, upsample_kernel_sizes = UPSAMPLING[hop_length]
    mel = MelConfig(
        sample_rate_hz=sample_rate_hz,
        n_fft=n_fft,
        win_length=n_fft,
        hop_length=hop_length,
        n_mels=n_mels,
        f_min_hz=f_min_hz,
        f_max_hz=f_max_hz,
    )
    factor = 2 ** (vae_levels - 1)
    return Architecture(
        mel=mel,
        vae={"block_out_channels": (8,) * vae_levels, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
             "sample_size": 64, "scaling_factor": 0.9},
        unet={"block_out_channels": (8, 16), "layers_per_block": 1, "attention_head_dim": 2, "norm_num_groups": 4,
              "sample_size": mel.num_frames(sample_length_s) // factor},
        clap_text={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        clap_audio={"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1, 1, 1, 1],
                    "num_attention_heads": [1, 1, 2, 2], "num_hidden_layers": 4, "mlp_ratio": 1.0},
        t5={"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
        gpt2={"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 160},
        vocoder={"upsample_initial_channel": 32, "upsample_rates": upsample_rates,
                 "upsample_kernel_sizes": upsample_kernel_sizes, "resblock_kernel_sizes": [3],
                 "resblock_dilation_sizes": [[1, 3]]},
        clap_dim=16,
        vocabulary_size=VOCABULARY_SIZE,
        scheduler={"prediction_type": prediction_type},
    )  # fmt: skip


def write_tiny_audioldm2(
    folder: Path,
    *,
    seed: int = 0,
    sample_rate_hz: int = 16_000,
    n_mels: int = 64,
    hop_length: int = 160,
    vae_levels: int = 3,
    prediction_type: str = "epsilon",
    sample_length_s: float = 10.24,
) -> Path:
    """Write the tiny model in diffusers' folder layout, as `AudioLDM2Pipeline.from_pretrained` opens it."""
    architecture = tiny_architecture(
        sample_rate_hz=sample_rate_hz,
        n_mels=n_mels,
        hop_length=hop_length,
        vae_levels=vae_levels,
        prediction_type=prediction_type,
        sample_length_s=sample_length_s,
    )
    build_audioldm2(architecture, captions=CAPTIONS, seed=seed).save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    print(write_tiny_audioldm2(Path(sys.argv[1])))
