"""The step before the first: it proves that one fits, says what it took, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpu.announcer import Announcer
from gpu.config import FinetuneConfig, FinetuneJob
from gpu.errors import Fault
from gpu.events import EventWriter
from gpu.finetune import main as finetune
from gpu.finetune.checkpoints import read_resume_state
from gpu.finetune.data import TrainingBatches, cache_clips, read_clips
from gpu.finetune.dry_run import DryRun, dry_step, largest_batch, offering_less
from gpu.finetune.module import Denoiser
from gpu.finetune.run import load_trainable
from gpu.preflight import gib
from tests.gpu.conftest import events_of


@pytest.mark.parametrize("values", [{"method": "lora"}, {"method": "full", "use_ema": True, "gradient_checkpointing": True}])
def test_a_run_ends_bit_equal_with_and_without_the_dry_step(make_run, values):
    with_one, without = make_run("with", **values), make_run("without", **values)

    assert finetune([str(with_one)]) == 0
    assert finetune([str(without), "--without-preflight"]) == 0

    names = {"lora": "lora.safetensors", "full": "unet.safetensors"}
    one, other = (load_file(run / "checkpoints/global_step=000004" / names[values["method"]]) for run in (with_one, without))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    states = [read_resume_state(run / "checkpoints/global_step=000004", method=values["method"]) for run in (with_one, without)]
    moments = [state["optimizer"]["state"] for state in states]
    assert all(torch.equal(moments[0][index]["exp_avg_sq"], moments[1][index]["exp_avg_sq"]) for index in moments[0])
    losses = [[event.data["loss_smooth"] for event in events_of(run, "progress")][-1] for run in (with_one, without)]
    assert losses[0] == losses[1]


def test_the_dry_step_says_what_it_took(make_run):
    run = make_run()
    assert finetune([str(run)]) == 0
    said = [event.data for event in events_of(run, "waiting") if "memory_bytes" in event.data]
    assert len(said) == 1
    assert said[0]["stage"] == "preflight"
    # Python and torch alone take more than a hundred megabytes; a tiny model no gigabytes.
    assert 100e6 < said[0]["memory_bytes"] < 4e9
    assert said[0]["step_s"] > 0
    assert gib(said[0]["memory_bytes"]) in said[0]["message"]


def test_a_run_that_goes_on_makes_no_dry_step(make_run):
    run = make_run(max_train_steps=2)
    assert finetune([str(run)]) == 0
    before = len([event for event in events_of(run, "waiting") if event.data["stage"] == "preflight"])
    _lengthen(run, max_train_steps=3)
    assert finetune([str(run)]) == 0
    after = len([event for event in events_of(run, "waiting") if event.data["stage"] == "preflight"])
    assert after == before


def test_the_dry_step_restores_every_bit_even_a_negative_zero(make_run):
    module, batches = _module_of(make_run(method="full"))
    weight = next(iter(module.trained().values()))
    with torch.no_grad():
        weight.flatten()[0] = -0.0
    before = {name: value.detach().clone().view(torch.int32) for name, value in module.trained().items()}
    drawn = torch.random.get_rng_state()

    moments = dry_step(module, largest_batch(batches), precision="32-true")

    assert all(torch.equal(value.detach().view(torch.int32), before[name]) for name, value in module.trained().items())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(value.grad is None for value in module.trained().values())
    assert module._losses == []
    # Two moments for each weight, as the optimizer will have.
    assert sum(tensor.numel() for tensor in moments if tensor.dim()) >= 2 * sum(value.numel() for value in module.trained().values())


def test_the_largest_batch_has_the_longest_text(make_run):
    _, batches = _module_of(make_run(train_batch_size=2))
    lengths = {batches.clips.embeds(clip.caption).attention_mask.shape[1] for clip in batches.clips.train}
    assert largest_batch(batches).embeds.attention_mask.shape == (2, max(lengths))


def test_what_ran_out_of_memory_is_told_what_needs_less():
    config = FinetuneConfig(train_batch_size=4)
    with pytest.raises(Fault, match="train_batch_size 1, gradient_accumulation_steps 4, gradient_checkpointing on") as caught, offering_less(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert caught.value.code == "memory.exhausted"


def test_another_error_is_left_alone():
    with pytest.raises(RuntimeError, match="sizes do not match"), offering_less(FinetuneConfig()):
        raise RuntimeError("sizes do not match")


def test_the_moments_stay_until_the_sounds_of_step_0_are_made(make_run, tmp_path):
    module, batches = _module_of(make_run(method="full"))
    dry_run = DryRun()
    with EventWriter(tmp_path) as events:
        dry_run.rehearse(module, batches, Announcer(events), precision="32-true")
    assert dry_run.moments
    dry_run.on_train_batch_start(None, module, None, 0)
    assert dry_run.moments == []


def _module_of(run: Path) -> tuple[Denoiser, TrainingBatches]:
    job = FinetuneJob.read(run)
    loaded, _ = load_trainable(job, run, device=torch.device("cpu"), memo=Path(str(job.cache_dir)))
    read = read_clips(run, expected_digest="", report=lambda *_: None)
    clips = cache_clips(read, loaded, Path(str(job.cache_dir)), duration_s=job.config.audio_length_in_s, report=lambda *_: None)
    batches = TrainingBatches(clips, job.config, scaling_factor=0.9, num_train_timesteps=1000, stop=4)
    return Denoiser(loaded.unet, loaded.pipeline.scheduler, job.config), batches


def _lengthen(run: Path, **values: object) -> None:
    raw = json.loads((run / "config.json").read_text())
    raw["config"] |= values
    (run / "config.json").write_text(json.dumps(raw))
