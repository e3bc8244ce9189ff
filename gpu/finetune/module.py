"""One training step: noise in, the model's guess out, the error back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from diffusers import AudioLDM2UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpu.config import FinetuneConfig
from gpu.diffusion import answered_channels, denoising_loss, keep_blind, snr, training_target
from gpu.errors import Fault
from gpu.finetune.data import Batch
from gpu.finetune.schedule import Plateau, learning_rate
from gpu.lora import merged_lora
from gpu.pipelines import Embeds, unet_inputs

DIVERGED_AFTER = 3
# Arguments with which AudioLDM 2's blocks call a checkpointed transformer; were there one more, they would be in order.
MISPLACED = 7
SMOOTHING = 0.98


class Denoiser(pl.LightningModule):
    """The UNet while it is trained.

    Attributes:
        step: global steps (updates of the weights) so far, earlier attempts and the run that this one continues included.
        ema: moving average of the trained weights by name, or None.
        loss_smooth, grad_norm, learning_rate: of the last step, for whoever reports them.
    """

    def __init__(self, unet: nn.Module, scheduler: Any, config: FinetuneConfig) -> None:
        super().__init__()
        self.unet = unet
        self.scheduler = scheduler
        self.config = config
        self.channels = answered_channels(unet)
        keep_blind(unet)
        self.step = 0
        self.plateau = Plateau(patience=config.plateau_patience, factor=config.plateau_factor)
        self.ema = {name: weight.detach().clone() for name, weight in self.trained().items()} if config.use_ema else None
        self.loss = self.loss_smooth = self.grad_norm = math.nan
        self.learning_rate = 0.0
        self._losses: list[Tensor] = []
        self._bad_steps = 0
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(unet)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by the UNet's names."""
        return {name: weight for name, weight in self.unet.named_parameters() if weight.requires_grad}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        noisy = self.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)  # [B, C, T/4, M/4]
        pred = self.predict(noisy, batch.timesteps, batch.embeds)
        target = training_target(self.scheduler, batch.latents, batch.noise, batch.timesteps)
        gamma = self.config.snr_gamma or None
        loss = denoising_loss(
            pred,
            target,
            channels=self.channels,
            snr=snr(self.scheduler, batch.timesteps) if gamma else None,
            snr_gamma=gamma,
            prediction_type=self.scheduler.config.prediction_type,
        )
        self._losses.append(loss.detach())
        return loss

    def predict(self, noisy: Tensor, timesteps: Tensor, embeds: Embeds) -> Tensor:
        return self.unet(noisy, timesteps, **unet_inputs(embeds, self.unet), return_dict=False)[0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # The fused kernel hides the loss scaling of fp16 from gradient clipping, so it is for the other precisions.
        fused = self.device.type == "cuda" and self.config.mixed_precision != "fp16"
        return torch.optim.AdamW(self.trained().values(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay, fused=fused)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any]) -> None:
        self.learning_rate = learning_rate(self.step + 1, self.config, plateau_scale=self.plateau.scale)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.step += 1
        self._after_update()

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        """Clip, or drop gradients that are not numbers: without a gradient AdamW leaves weights and moments alone."""
        weights = list(self.trained().values())
        norm = nn.utils.clip_grad_norm_(weights, self.config.max_grad_norm or math.inf)
        # One wait for the GPU a step: it has to be known before the update whether there is to be one.
        self.loss, self.grad_norm = torch.stack([torch.stack(self._losses).mean().float(), norm.float()]).tolist()
        self._losses.clear()
        if not math.isfinite(self.grad_norm):
            optimizer.zero_grad(set_to_none=True)

    def _after_update(self) -> None:
        # fp16 finds its loss scale by overflowing: there only the loss itself is a bad sign.
        overflow = self.config.mixed_precision == "fp16" and math.isfinite(self.loss)
        applied = math.isfinite(self.loss) and math.isfinite(self.grad_norm)
        self._bad_steps = 0 if applied or overflow else self._bad_steps + 1
        if self._bad_steps >= DIVERGED_AFTER:
            raise Fault(
                "training.diverged",
                f"the loss was not a number at step {self.step} and the {DIVERGED_AFTER - 1} before, with a learning rate of "
                f"{self.learning_rate:g}; none of these updates was applied",
            )
        if not applied:
            return
        smooth = self.loss_smooth if math.isfinite(self.loss_smooth) else self.loss
        self.loss_smooth = SMOOTHING * smooth + (1 - SMOOTHING) * self.loss
        if self.ema is not None:
            update_ema(self.ema, self.trained(), decay=self.config.ema_decay, step=self.step)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def result(self) -> dict[str, Tensor]:
        """The weights to keep and to listen to: the moving average where there is one."""
        return self.ema if self.ema is not None else {name: weight.detach() for name, weight in self.trained().items()}

    @contextmanager
    def using_ema(self) -> Iterator[None]:
        """Within it the UNet holds the moving average (where there is one); afterwards every weight has its bits back."""
        if self.ema is None:
            yield
            return
        trained = self.trained()
        kept = {name: weight.detach().clone() for name, weight in trained.items()}
        self._put(self.ema)
        try:
            yield
        finally:
            self._put(kept)

    @contextmanager
    def as_result(self) -> Iterator[None]:
        """Within it the UNet computes, bit for bit, what a generation with this step's checkpoint computes."""
        training = self.unet.training
        self.unet.eval()
        try:
            with self.using_ema(), merged_lora(self.unet) if self.config.method == "lora" else nullcontext():
                yield
        finally:
            self.unet.train(training)

    def _put(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.trained().items():
                weight.copy_(weights[name])


def update_ema(ema: dict[str, Tensor], weights: dict[str, nn.Parameter], *, decay: float, step: int) -> None:
    """ema = d ema + (1 - d) weight, with d growing to `decay` as the steps become many: min(decay, (1 + n) / (10 + n))."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(ema.values()), [weights[name] for name in ema], 1 - decay)


def enable_gradient_checkpointing(unet: nn.Module) -> None:
    """Compute resnets and transformers again in the backward pass instead of keeping what they computed.

    The blocks of AudioLDM2UNet2DConditionModel (diffusers 0.42) hand a checkpointed transformer its arguments by place and leave
    out `added_cond_kwargs`: the mask of the text would arrive one place too early, as that of the self-attention. So their call
    is put in order here; everything else is diffusers' own.
    """
    # Those blocks recompute a transformer as a whole; those of UNet2DConditionModel leave that to the transformer.
    by_blocks = isinstance(unet, AudioLDM2UNet2DConditionModel)
    for module in unet.modules():
        if not hasattr(module, "gradient_checkpointing") or (by_blocks and isinstance(module, Transformer2DModel)):
            continue
        module.gradient_checkpointing = True
        module._gradient_checkpointing_func = _checkpointed


def _checkpointed(module: Any, *args: Any) -> Any:
    if isinstance(module, Transformer2DModel) and len(args) == MISPLACED:
        hidden_states, encoder_hidden_states, timestep, class_labels, cross_attention_kwargs, attention_mask, encoder_mask = args
        module = partial(
            module,
            encoder_hidden_states=encoder_hidden_states,
            timestep=timestep,
            class_labels=class_labels,
            cross_attention_kwargs=cross_attention_kwargs,
            attention_mask=attention_mask,
            encoder_attention_mask=encoder_mask,
            return_dict=False,
        )
        args = (hidden_states,)
    return checkpoint(module, *args, use_reentrant=False)
