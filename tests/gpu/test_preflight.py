"""What a run is told to need, against what runs needed, and against sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpu import preflight
from gpu.config import PRESETS, FinetuneConfig, ModelRef
from gpu.errors import Fault
from gpu.lora import inject_lora
from gpu.models import describe
from gpu.pipelines import load_pipeline
from gpu.preflight import FITS, TIGHT, TOO_LARGE, Earlier, Machine, ModelSize, estimate
from gpu.unet_cost import unet_cost

GB = 10**9
BIG = Machine(device="cpu", name="a processor", memory_bytes=64 * GB, free_bytes=60 * GB, disk_free_bytes=1000 * GB, cores=2)
FULL = FinetuneConfig(method="full", train_batch_size=1)


@pytest.fixture(scope="module")
def audioldm2():
    return preflight.published()["audioldm2"]


def needs(model, config, machine=BIG, **about):
    return estimate(*model, config, machine, **{"clip_seconds": [10.24], **about})


@pytest.mark.parametrize("row", preflight.measurements(), ids=lambda row: f"{row.model}-{row.config.method}-b{row.config.train_batch_size}-{row.config.audio_length_in_s}")
def test_the_memory_of_measured_runs_is_told_within_15_percent(row):
    told = needs((row.facts, row.size), row.config).memory_bytes
    assert told == pytest.approx(row.resident_bytes, rel=0.15)


@pytest.mark.parametrize("row", preflight.measurements(), ids=lambda row: f"{row.model}-{row.config.method}-b{row.config.train_batch_size}-{row.config.audio_length_in_s}")
def test_the_cpu_seconds_of_measured_steps_are_told_within_25_percent(row):
    one_core = replace(BIG, cores=1)
    assert preflight.seconds_per_step(row.facts, row.size, row.config, one_core) == pytest.approx(row.cpu_s, rel=0.25)


@pytest.mark.parametrize("row", preflight.small_measurements(), ids=lambda row: f"{row.model}-{row.config.method}-b{row.config.train_batch_size}-{row.config.audio_length_in_s}")
def test_the_cpu_seconds_of_small_models_are_told_within_30_percent(row):
    assert preflight.step_cpu_s(row.facts, row.size, row.config) == pytest.approx(row.cpu_s, rel=0.30)


def test_more_cores_do_not_call_kernels_faster(tiny):
    model = describe(tiny), ModelSize.read(tiny)
    config = replace(FULL, audio_length_in_s=1.0)
    one, many = (preflight.seconds_per_step(*model, config, replace(BIG, cores=cores)) for cores in (1, 1000))
    cost = unet_cost(model[1].unet, height=preflight.latent_size(*model, 1.0)[0], width=preflight.latent_size(*model, 1.0)[1])
    assert many > 0.9 * 3 * preflight.OPERATION_S * cost.operations
    assert one > many


def test_the_operations_and_scores_of_a_unet_are_counted_by_hand():
    """Two levels of one block: convolution, resnet, convolution down; resnet, transformer; middle; two blocks a level up."""
    config = {
        "block_out_channels": [8, 16], "layers_per_block": 1, "cross_attention_dim": 4, "attention_head_dim": 2, "in_channels": 4, "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    cost = unet_cost(config, height=8, width=4)
    # Convolutions: in, down, up, out. Resnets: 2 down, 2 in the middle, 4 up. Transformers: 1 down, 1 in the middle, 2 up. The end: 2.
    assert cost.operations == 4 * 1 + 8 * 10 + 4 * (6 + 20) + 2
    # On the lower level 4 x 2 places look at each other twice, in two heads.
    assert cost.scores == 4 * 2 * 8 * (8 + 8)


@pytest.mark.parametrize(("name", "saved_mib"), [("audioldm2", 904), ("audioldm-m", 627), ("audioldm-48k", 676)])
def test_what_backward_keeps_is_what_autograd_saves(name, saved_mib):
    """The figures are those of `saved_tensors_hooks` on the full-size UNets, 10.24 s, all weights trained, parameters left out."""
    facts, size = preflight.published()[name]
    height, width = preflight.latent_size(facts, size, 10.24)
    assert unet_cost(size.unet, height=height, width=width).saved_full / 2**20 == pytest.approx(saved_mib, rel=0.01)


def test_the_count_of_a_lora_is_exact(tiny):
    unet = load_pipeline(ModelRef(base=str(tiny)), device="cpu").unet.requires_grad_(False)
    inject_lora(unet, rank=3)
    trained = sum(weight.numel() for weight in unet.parameters() if weight.requires_grad)
    cost = unet_cost(ModelSize.read(tiny).unet, height=8, width=8)
    assert 3 * cost.lora_parameters == trained


def test_what_backward_keeps_of_the_tiny_model_is_near_what_autograd_saves(tiny):
    unet = load_pipeline(ModelRef(base=str(tiny)), device="cpu").unet.requires_grad_(True)
    parameters = {weight.untyped_storage().data_ptr() for weight in unet.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = unet(
            torch.randn(1, 4, 64, 16), 1, encoder_hidden_states=torch.randn(1, 8, 16), encoder_hidden_states_1=torch.randn(1, 6, 16),
            encoder_attention_mask_1=torch.ones(1, 6), return_dict=False,
        )[0]  # fmt: skip
    counted = unet_cost(ModelSize.read(tiny).unet, height=64, width=16).saved_full
    assert output.requires_grad
    assert counted == pytest.approx(sum(storage.nbytes() for storage in saved.values()), rel=0.1)


def test_the_known_parts_of_a_full_run_are_four_bytes_a_weight(audioldm2):
    weights = 346_943_496
    parts = needs(audioldm2, replace(FULL, use_ema=True, train_batch_size=8)).memory
    assert (parts["weights"], parts["gradients"], parts["optimizer"], parts["moving average"]) == (4 * weights, 4 * weights, 8 * weights, 4 * weights)


def test_a_batch_twice_as_large_keeps_twice_as_much(audioldm2):
    one, two = (needs(audioldm2, replace(FULL, train_batch_size=size)).memory["activations"] for size in (16, 32))
    assert two == pytest.approx(2 * one)


def test_gradient_checkpointing_and_lora_need_less(audioldm2):
    config = replace(FULL, train_batch_size=16)
    whole = needs(audioldm2, config).memory_bytes
    assert needs(audioldm2, replace(config, gradient_checkpointing=True)).memory_bytes < whole
    assert needs(audioldm2, replace(config, method="lora")).memory_bytes < whole


@pytest.mark.parametrize(
    ("memory_gb", "free_gb", "verdict"), [(64, 60, FITS), (64, 8, TIGHT), (4, 3, TOO_LARGE)]
)
def test_the_verdict_follows_the_memory(audioldm2, memory_gb, free_gb, verdict):
    machine = replace(BIG, memory_bytes=memory_gb * GB, free_bytes=free_gb * GB)
    found = needs(audioldm2, FULL, machine)
    assert found.verdict == verdict
    assert bool(found.stops) == (verdict == TOO_LARGE)
    if verdict == TOO_LARGE:
        assert "a processor has 4.0 GB" in found.stops[0].message


def test_what_does_not_fit_is_offered_something_that_does(audioldm2):
    machine = replace(BIG, memory_bytes=10 * GB, free_bytes=9.5 * GB)
    config = replace(FULL, train_batch_size=16)
    found = needs(audioldm2, config, machine)
    assert found.verdict == TOO_LARGE
    assert found.suggestion["train_batch_size"] == 1
    assert found.suggestion["gradient_accumulation_steps"] == 16
    assert needs(audioldm2, replace(config, **found.suggestion), machine).verdict == FITS


def test_a_disk_that_is_too_small_is_offered_fewer_checkpoints_or_smaller_ones(audioldm2):
    config = replace(FULL, checkpoints_total_limit=5)
    one = needs(audioldm2, replace(config, checkpoints_total_limit=1)).disk_bytes
    found = needs(audioldm2, config, replace(BIG, disk_free_bytes=one + preflight.DISK_MARGIN_BYTES))
    assert found.suggestion == {"checkpoints_total_limit": 1}
    often = replace(config, max_train_steps=1_000_000, checkpointing_steps=1, checkpoints_total_limit=1, audio_length_in_s=2.56)
    assert needs(audioldm2, often, replace(BIG, disk_free_bytes=100 * GB)).suggestion == {"checkpointing_steps": 100_000}
    tiny_disk = replace(BIG, disk_free_bytes=2 * GB)
    found = needs(audioldm2, config, tiny_disk)
    assert found.suggestion["method"] == "lora"
    assert not needs(audioldm2, replace(config, **found.suggestion), tiny_disk).stops


def test_half_precision_on_a_processor_is_offered_what_works(audioldm2):
    found = needs(audioldm2, replace(FULL, mixed_precision="fp16"))
    assert found.suggestion == {"mixed_precision": "auto"}
    assert not needs(audioldm2, replace(FULL, **found.suggestion)).stops


def test_nothing_is_offered_where_nothing_fits(audioldm2):
    assert needs(audioldm2, FULL, replace(BIG, memory_bytes=GB, free_bytes=GB)).suggestion == {}


def test_an_earlier_run_is_better_than_a_count(audioldm2):
    found = needs(audioldm2, FULL, earlier=Earlier(memory_bytes=7 * GB, step_s=2.0))
    assert (found.memory_bytes, found.memory_basis) == (7 * GB, preflight.MEASURED)
    assert (found.step_s, found.total_s, found.time_basis) == (2.0, 40_000.0, preflight.MEASURED)


def test_an_earlier_run_of_another_batch_is_scaled_and_its_memory_is_not_believed(audioldm2):
    other = replace(FULL, train_batch_size=4)
    found = needs(audioldm2, FULL, earlier=Earlier(memory_bytes=7 * GB, step_s=8.0, config=other))
    ratio = preflight.step_cpu_s(*audioldm2, FULL) / preflight.step_cpu_s(*audioldm2, other)
    assert (found.step_s, found.time_basis) == (pytest.approx(8.0 * ratio), preflight.NEAR)
    assert 0.2 < ratio < 0.35
    assert found.memory_basis == preflight.COUNTED


def test_twice_the_cores_take_about_half_the_time_of_a_large_model(audioldm2):
    two, four = (needs(audioldm2, FULL, replace(BIG, cores=cores)).step_s for cores in (2, 4))
    assert two == pytest.approx(2 * four, rel=0.1)


def test_the_time_on_a_gpu_is_not_made_up(audioldm2):
    found = needs(audioldm2, FULL, replace(BIG, device="cuda"))
    assert (found.step_s, found.total_s, found.time_basis) == (None, None, preflight.UNKNOWN)


def test_the_disk_of_a_full_run_is_counted_by_hand(audioldm2):
    config = replace(FULL, max_train_steps=300, checkpointing_steps=100, checkpoints_total_limit=1)
    parts = needs(audioldm2, config, clip_seconds=[10.24, 20.48]).disk
    # Three saves, of which the newest, the best and the one being written are there at once: weights, and three times as much to go on.
    assert parts["checkpoints"] == 3 * 4 * 4 * 346_943_496
    # One window of the first clip, three half-overlapping ones of the second: mean and deviation, [8, 256, 16] in fp32.
    assert parts["cache"] == 4 * (2 * 4 * 8 * 256 * 16 + 65_536)


def test_a_disk_that_is_too_small_stops_the_run(audioldm2):
    found = needs(audioldm2, FULL, replace(BIG, disk_free_bytes=10 * GB))
    assert [(finding.about, finding.can_force) for finding in found.stops] == [("disk", True)]


def test_half_precision_on_a_processor_is_refused_for_good(audioldm2):
    found = needs(audioldm2, replace(FULL, mixed_precision="bf16"))
    assert [(finding.about, finding.can_force) for finding in found.stops] == [("precision", False)]


def test_a_model_that_cannot_be_trained_says_why(audioldm2):
    facts, size = audioldm2
    found = needs((replace(facts, can_finetune=False, why_not="it speaks phonemes"), size), FULL)
    assert [finding.message for finding in found.stops] == ["it speaks phonemes"]


@pytest.mark.parametrize(("licence", "noted"), [("cc-by-nc-sa-4.0", True), ("CC BY-NC 4.0", True), ("mit", False), ("", False), ("non-commercial", True)])
def test_a_licence_without_commerce_is_noted(audioldm2, licence, noted):
    facts, size = audioldm2
    found = needs((replace(facts, licence=licence), size), FULL)
    assert any(finding.about == "licence" for finding in found.findings) == noted


def test_clips_of_another_rate_are_noted(audioldm2):
    found = needs(audioldm2, FULL, clip_rates_hz=[8_000, 16_000, 44_100])
    words = [finding.message for finding in found.findings if finding.about == "rate"]
    assert "1 of 3 clips" in words[0] and "4000 Hz" in words[0]
    assert "8000 Hz is lost" in words[1]


def test_a_folder_whose_sizes_are_not_told_is_a_fault(tmp_path):
    for part in ("unet", "vae", "vocoder"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text('{"upsample_rates": [2], "latent_channels": 8, "block_out_channels": "wide"}')
    with pytest.raises(Fault) as caught:
        ModelSize.read(tmp_path)
    assert caught.value.code == "checkpoint.incomplete"


def test_the_tiny_model_fits_everywhere(tiny: Path):
    found = estimate(describe(tiny), ModelSize.read(tiny), FinetuneConfig.parse(PRESETS["quick"]), BIG, clip_seconds=[1.0] * 10)
    assert found.verdict == FITS
    assert found.memory_bytes < GB
