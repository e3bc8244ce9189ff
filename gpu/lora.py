"""Low-rank additions to the attention of a UNet (Hu et al. 2021, arXiv:2106.09685), by peft.

The addition to a weight is B A * (alpha / rank), with alpha = rank: what is trained is what is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

TARGET_MODULES = ["to_q", "to_k", "to_v", "to_out.0"]


def inject_lora(unet: nn.Module, *, rank: int, seed: int = 0) -> None:
    """Add an untrained LoRA, which changes nothing yet, and freeze the rest. The same seed gives the same start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGET_MODULES), unet)


def lora_state(unet: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The LoRA under the names of its file.

    Args:
        weights: values to take instead of the UNet's, by the names of `unet.named_parameters()`.
    """
    return get_peft_model_state_dict(unet, state_dict=dict(weights) if weights is not None else None)


def load_lora(unet: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put trained values into an injected LoRA.

    Raises:
        ValueError: the names are not those of this UNet's LoRA.
        RuntimeError: a shape differs, as with another rank.
    """
    expected = lora_state(unet).keys()
    if state.keys() != expected:
        raise ValueError(f"{len(state.keys() ^ expected)} LoRA names differ, for example {sorted(state.keys() ^ expected)[0]}")
    set_peft_model_state_dict(unet, dict(state))


def lora_rank(state: Mapping[str, Tensor]) -> int:
    return next(len(tensor) for name, tensor in state.items() if "lora_A" in name)


def merge_lora(unet: nn.Module) -> None:
    """Add the LoRA to the weights for good and remove it: the UNet has its own layers again."""
    for name, layer in _lora_layers(unet):
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(unet.get_submodule(parent), attribute, layer.get_base_layer())
    if hasattr(unet, "peft_config"):
        del unet.peft_config


@contextmanager
def merged_lora(unet: nn.Module) -> Iterator[None]:
    """Within it the UNet computes exactly as after `merge_lora`; afterwards every weight has its bits back."""
    # Subtracting the addition again would leave rounding errors: the weights are put aside.
    kept = [(layer, layer.get_base_layer().weight.detach().clone()) for _, layer in _lora_layers(unet)]
    for layer, _ in kept:
        layer.merge()
    try:
        yield
    finally:
        for layer, weight in kept:
            layer.unmerge()
            layer.get_base_layer().weight.data.copy_(weight)


def _lora_layers(unet: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(name, module) for name, module in unet.named_modules() if isinstance(module, LoraLayer)]
