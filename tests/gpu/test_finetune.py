"""A fine-tune from outside: what it writes, what it obeys, and that an interruption leaves no trace in the result."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from gpu.config import FinetuneJob, GenerateConfig, GenerateJob, ModelRef
from gpu.events import EventWriter, read_events
from gpu.finetune import main
from gpu.generate import Generator
from gpu.manifest import folder_digest
from gpu.models import read_checkpoint, verify_checkpoint
from tests.gpu.conftest import events_of, start, tone

RESUMABLE = {
    "lora with EMA and accumulation": {
        "method": "lora", "use_ema": True, "gradient_accumulation_steps": 2, "lr_scheduler": "plateau", "plateau_patience": 0, "validation_epochs": 2,
    },
    "full": {"method": "full", "lr_scheduler": "cosine", "snr_gamma": 5.0, "lr_warmup_steps": 3, "gradient_checkpointing": True},
}  # fmt: skip


def checkpoint(run: Path, step: int) -> Path:
    return run / f"checkpoints/global_step={step:06d}"


def last(run: Path):
    return list(read_events(run))[-1]


def weights(run: Path, step: int) -> bytes:
    return (checkpoint(run, step) / read_checkpoint(checkpoint(run, step)).weights_file).read_bytes()


def wait_for(condition, *, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def when(condition, act) -> threading.Thread:
    """Do `act` beside the test as soon as `condition` holds."""

    def run() -> None:
        wait_for(condition)
        act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def ask(run: Path, request: str, text: str = "") -> None:
    (run / "control").mkdir(exist_ok=True)
    (run / "control" / request).write_text(text)


@pytest.mark.parametrize("values", RESUMABLE.values(), ids=RESUMABLE.keys())
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bits(make_run, values):
    # 5 clips in batches of 2: the checkpoint at step 3 lies in the middle of an epoch.
    values = {**values, "max_train_steps": 9, "checkpointing_steps": 3}
    whole, killed = make_run("whole", **values), make_run("killed", **values)
    assert main([str(whole)]) == 0

    child = start("finetune", killed)
    wait_for(lambda: checkpoint(killed, 3).exists())
    child.kill()
    child.wait()
    assert last(killed).type != "finished"
    assert main([str(killed)]) == 0

    assert events_of(killed, "started")[-1].data["step"] >= 3
    assert weights(killed, 9) == weights(whole, 9)
    states = [torch.load(checkpoint(run, 9) / "resume.pt", weights_only=True) for run in (whole, killed)]
    assert_equal(*states)
    assert [event.data["loss"] for event in events_of(whole, "validated")][-1] == events_of(killed, "validated")[-1].data["loss"]


def assert_equal(one, other) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_a_run_says_what_the_contract_promises(make_run):
    run = make_run(checkpointing_steps=2, validation_epochs=1)
    assert main([str(run)]) == 0
    events = list(read_events(run))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    started = events_of(run, "started")[0].data
    assert (started["step"], started["max_steps"], started["steps_per_epoch"], started["clips"], started["validation_clips"]) == (
        0,
        4,
        3,
        5,
        2,
    )
    assert started["precision"] == "fp32"
    assert 0 < started["trainable_parameters"] < started["total_parameters"]
    progress = events_of(run, "progress")[-1].data
    assert {
        "step",
        "max_steps",
        "epoch",
        "loss",
        "loss_smooth",
        "learning_rate",
        "grad_norm",
        "clips_per_second",
        "seconds_left",
        "memory_bytes",
    } <= progress.keys()
    assert progress["step"] == 4
    # 5 clips in steps of 2: epochs are behind after steps 3 and (at the end) 4.
    # Every epoch, and once more for each checkpoint that is saved on schedule.
    assert [event.data["step"] for event in events_of(run, "validated")] == [0, 2, 3, 4]
    assert [event.data["clap_score"] is None for event in events_of(run, "validated")] == [False, True, False, False]
    assert [event.data["step"] for event in events_of(run, "sample")] == [0, 3, 4]
    assert [(event.data["step"], event.data["reason"]) for event in events_of(run, "checkpoint")] == [(2, "interval"), (4, "final")]
    assert (events[-1].type, events[-1].data["step"]) == ("finished", 4)
    for event in events_of(run, "sample"):
        sound = soundfile.info(run / event.data["audio"])
        assert (sound.samplerate, sound.frames) == (16_000, 8_000)
    for event in events_of(run, "checkpoint"):
        assert event.data["has_resume_state"]
        assert verify_checkpoint(run / event.data["path"]).files["lora.safetensors"] == event.data["sha256"]


def test_nothing_is_written_beside_the_run_and_the_base_model_stays_as_it_was(make_run, tiny, tmp_path, monkeypatch):
    run = make_run()
    before = folder_digest(tiny)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main([str(run)]) == 0
    assert not list((tmp_path / "elsewhere").iterdir())
    assert folder_digest(tiny) == before
    assert {path.name for path in run.iterdir() if path.suffix != ".wav"} == {
        "config.json",
        "manifest.jsonl",
        "events.jsonl",
        "checkpoints",
        "samples",
    }


def test_another_rate_and_prediction_type_change_nothing_in_the_course(make_run, tiny_v):
    run = make_run(model=tiny_v, method="full", max_train_steps=2)
    assert main([str(run)]) == 0
    assert events_of(run, "sample")[-1].data["sample_rate_hz"] == 22_050
    assert load_file(checkpoint(run, 2) / "unet.safetensors").keys() == load_file(next((tiny_v / "unet").glob("*.safetensors"))).keys()


@pytest.mark.parametrize("values", [{"use_ema": True, "ema_decay": 0.5}, {"method": "full"}], ids=["lora with EMA", "full"])
def test_a_sound_of_the_run_is_the_sound_that_its_checkpoint_generates(make_run, tmp_path, tiny, values):
    run = make_run(
        num_waveforms_per_prompt=2, guidance_scale=2.0, sampler="dpmsolver++", num_inference_steps=3, learning_rate=1e-2, **values
    )
    assert main([str(run)]) == 0
    said = events_of(run, "sample")[-1].data
    config = FinetuneJob.read(run).config
    names = ("guidance_scale", "sampler", "num_inference_steps", "audio_length_in_s", "num_waveforms_per_prompt")
    job = GenerateJob(
        config=GenerateConfig.parse({"prompt": said["prompt"], "seed": config.seed, **{name: getattr(config, name) for name in names}}),
        model=ModelRef(base=str(tiny), weights=str(checkpoint(run, 4))),
    )
    (tmp_path / "generation").mkdir()
    with EventWriter(tmp_path / "generation") as events:
        Generator().generate(job, tmp_path / "generation", events, lambda: False)
    assert (soundfile.read(run / said["audio"])[0] == soundfile.read(tmp_path / "generation/0.wav")[0]).all()
    assert events_of(tmp_path / "generation", "waveform")[0].data["clap_score"] == said["clap_score"]
    before = events_of(run, "sample")[0].data
    assert (soundfile.read(run / before["audio"])[0] != soundfile.read(run / said["audio"])[0]).any()


def test_a_run_that_goes_on_from_another_equals_one_that_was_longer(make_run):
    short = make_run("short", max_train_steps=3)
    main([str(short)])
    longer = make_run("longer", max_train_steps=6)
    main([str(longer)])
    child = make_run("child", max_train_steps=6, resume_from=checkpoint(short, 3))
    assert main([str(child)]) == 0
    assert events_of(child, "started")[0].data["step"] == 3
    assert weights(child, 6) == weights(longer, 6)


def test_going_on_without_a_step_to_do_is_refused(make_run):
    first = make_run("first")
    main([str(first)])
    child = make_run("child", max_train_steps=4, resume_from=checkpoint(first, 4))
    assert main([str(child)]) == 1
    assert last(child).data["code"] == "config.invalid"


def test_another_rank_cannot_go_on(make_run):
    first = make_run("first")
    main([str(first)])
    child = make_run("child", max_train_steps=6, lora_rank=3, resume_from=checkpoint(first, 4))
    assert main([str(child)]) == 1
    assert last(child).data["code"] == "checkpoint.mismatch"


@pytest.mark.parametrize("first, second, files", [
    ({"method": "lora"}, {"method": "lora"}, {"lora.safetensors"}),
    ({"method": "lora"}, {"method": "lora", "lora_rank": 3}, {"lora.safetensors", "unet.safetensors"}),
    ({"method": "full"}, {"method": "lora"}, {"lora.safetensors", "unet.safetensors"}),
    ({"method": "lora"}, {"method": "full"}, {"unet.safetensors"}),
], ids=["lora on lora", "lora on another rank", "lora on full", "full on lora"])  # fmt: skip
def test_a_fine_tune_of_a_fine_tune_is_complete_with_the_base_model_alone(make_run, tmp_path, tiny, first, second, files):
    parent = make_run("parent", learning_rate=1e-2, **first)
    main([str(parent)])
    child = make_run("child", weights=checkpoint(parent, 4), learning_rate=1e-2, **second)
    assert main([str(child)]) == 0
    heard = [soundfile.read(run / f"samples/global_step={step:06d}/prompt=0.wav")[0] for run, step in ((parent, 4), (child, 0), (child, 4))]
    assert heard[0] == pytest.approx(heard[1], abs=1e-3)

    assert {path.name for path in checkpoint(child, 4).glob("*.safetensors")} == files
    shutil.rmtree(parent)
    job = GenerateJob(
        config=GenerateConfig.parse(
            {"prompt": "A high beep", "sampler": "ddim", "num_inference_steps": 1, "num_waveforms_per_prompt": 1, "audio_length_in_s": 0.5}
        ),
        model=ModelRef(base=str(tiny), weights=str(checkpoint(child, 4))),
    )
    with EventWriter(tmp_path) as events:
        Generator().generate(job, tmp_path, events, lambda: False)
    assert (soundfile.read(tmp_path / "0.wav")[0] == heard[2]).all()


def test_a_damaged_checkpoint_is_left_out_and_the_run_goes_on_from_the_one_before(make_run):
    run = make_run(checkpointing_steps=1)
    main([str(run)])
    resume = checkpoint(run, 4) / "resume.pt"
    resume.write_bytes(resume.read_bytes()[:-50])
    expected = weights(run, 4)
    assert main([str(run)]) == 0
    assert events_of(run, "started")[-1].data["step"] == 3
    assert any("global_step=000004 is damaged" in event.data.get("message", "") for event in events_of(run, "waiting"))
    assert weights(run, 4) == expected
    verify_checkpoint(checkpoint(run, 4))


def test_a_run_killed_between_its_last_checkpoint_and_its_last_word_only_says_it(make_run):
    run = make_run()
    main([str(run)])
    saved = checkpoint(run, 4).stat().st_mtime_ns
    assert main([str(run)]) == 0
    assert last(run).type == "finished"
    assert last(run).attempt == 2
    assert checkpoint(run, 4).stat().st_mtime_ns == saved


def test_the_newest_the_best_and_the_pinned_checkpoints_stay(make_run):
    run = make_run(checkpointing_steps=1, checkpoints_total_limit=2, max_train_steps=8, learning_rate=1e-2)
    (run / "pinned").write_text("2\n")
    main([str(run)])
    losses = {event.data["step"]: event.data["metrics"]["loss"] for event in events_of(run, "checkpoint")}
    best = min(losses, key=lambda step: losses[step])
    assert {int(path.name.removeprefix("global_step=")) for path in (run / "checkpoints").iterdir()} == {2, 7, 8, best}
    removed = [path for event in events_of(run, "checkpoint") for path in event.data["removed"]]
    assert set(removed) == {f"checkpoints/global_step={step:06d}" for step in {1, 3, 4, 5, 6} - {best}}
    assert [event.data["step"] for event in events_of(run, "checkpoint") if event.data["best"]][-1] == best


def test_a_full_disk_is_found_before_anything_is_written(make_run, monkeypatch):
    run = make_run(checkpointing_steps=2)
    usage = namedtuple("usage", "total used free")
    free = iter([10**12, 10**12, 1000])  # at the start, at step 2, at step 4
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, next(free)))
    assert main([str(run)]) == 1
    assert last(run).data["code"] == "disk.full"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["global_step=000002"]
    verify_checkpoint(checkpoint(run, 2))


def test_a_run_that_could_not_save_says_so_before_it_trains(make_run, monkeypatch):
    run = make_run()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 1000))
    assert main([str(run)]) == 1
    assert last(run).data["code"] == "disk.full"
    assert not events_of(run, "started") and not events_of(run, "progress")


def test_a_model_whose_loss_is_no_number_ends_the_run_and_is_not_saved(make_run, tiny, tmp_path):
    broken = Path(shutil.copytree(tiny, tmp_path / "broken"))
    path = next((broken / "unet").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["conv_out.bias"][:] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})
    run = make_run(model=broken, max_train_steps=10)
    assert main([str(run)]) == 1
    assert last(run).data["code"] == "training.diverged"
    assert "at step 3" in last(run).data["detail"]
    assert "0.001" in last(run).data["detail"]
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize("how", ["file", "SIGTERM"])
def test_a_stop_saves_and_the_run_can_go_on(make_run, how):
    run = make_run(max_train_steps=10_000)
    act = (lambda: ask(run, "stop", "save")) if how == "file" else (lambda: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    helper = when(lambda: events_of(run, "progress"), act)
    assert main([str(run)]) == 3
    helper.join()
    assert signal.getsignal(signal.SIGTERM) == before
    ending = last(run)
    assert (ending.type, ending.data["saved"]) == ("stopped", True)
    step = ending.data["step"]
    assert 0 < step < 10_000
    assert events_of(run, "checkpoint")[-1].data["reason"] == "stopped"
    verify_checkpoint(checkpoint(run, step))


def test_a_stop_without_saving_leaves_no_checkpoint(make_run):
    run = make_run(max_train_steps=10_000, gradient_accumulation_steps=3)
    helper = when(lambda: events_of(run, "progress"), lambda: ask(run, "stop", "now"))
    assert main([str(run)]) == 3
    helper.join()
    assert last(run).data["saved"] is False
    assert not (run / "checkpoints").exists()


def test_a_stop_while_sounds_are_made_does_not_wait_for_them(make_run):
    run = make_run(num_inference_steps=1000, num_waveforms_per_prompt=10)
    helper = when(
        lambda: any(event.data.get("stage") == "sampling" for event in events_of(run, "waiting")), lambda: ask(run, "stop", "save")
    )
    assert main([str(run)]) == 3
    helper.join()
    assert last(run).type == "stopped"
    assert not events_of(run, "sample")


def test_a_checkpoint_and_sounds_on_request_do_not_end_the_run(make_run):
    run = make_run(max_train_steps=10_000)

    def request() -> None:
        ask(run, "save")
        ask(run, "sample")
        wait_for(lambda: not list((run / "control").iterdir()))
        ask(run, "stop", "now")

    helper = when(lambda: events_of(run, "progress"), request)
    assert main([str(run)]) == 3
    helper.join()
    assert [event.data["reason"] for event in events_of(run, "checkpoint")] == ["requested"]
    assert events_of(run, "sample")[-1].data["step"] > 0


def test_a_supervised_run_whose_parent_died_saves_and_leaves_without_an_ending(make_run, tmp_path):
    run = make_run(max_train_steps=10_000)
    script = f"import sys; sys.path.insert(0, '.'); from tests.gpu.conftest import start; from pathlib import Path; start('finetune', Path({str(run)!r}), JOB_ID='x', JOB_ATTEMPT='5'); sys.stdin.read()"
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2], stdin=subprocess.PIPE)
    wait_for(lambda: events_of(run, "progress"))
    parent.kill()
    parent.wait()
    wait_for(lambda: events_of(run, "checkpoint"))
    pid = events_of(run, "started")[0].data["pid"]
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z")
    assert {event.type for event in read_events(run)} & {"finished", "stopped", "failed"} == set()
    assert last(run).attempt == 5


def test_a_clip_that_changed_since_the_run_was_made_is_named(make_run):
    run = make_run()
    tone(run / "2.wav", hertz=999)
    assert main([str(run)]) == 1
    assert last(run).data["code"] == "clip.changed"
    assert "2.wav" in last(run).data["detail"]


def test_a_manifest_that_changed_since_the_run_was_made_is_refused(make_run):
    run = make_run()
    lines = (run / "manifest.jsonl").read_text().splitlines()
    (run / "manifest.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert main([str(run)]) == 1
    assert last(run).data["code"] == "manifest.changed"


def test_half_precision_is_refused_where_there_is_no_gpu(make_run):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = make_run(mixed_precision="bf16")
    assert main([str(run)]) == 1
    assert last(run).data["code"] == "config.precision_needs_gpu"


def test_without_held_out_clips_there_are_sounds_and_no_loss(make_run, tmp_path):
    (tmp_path / "clips").mkdir()
    clips = [tone(tmp_path / "clips/a.wav"), tone(tmp_path / "clips/b.wav", hertz=880)]
    run = make_run(clips=clips, validation_prompts=[], lr_scheduler="plateau")
    assert main([str(run)]) == 0
    validated = events_of(run, "validated")[-1].data
    assert validated["loss"] is None
    assert "no clip is held out" in validated["message"]
    assert [event.data["prompt"] for event in events_of(run, "sample")][-2:] == ["A tone of 440 hertz", "A tone of 880 hertz"]


def test_memory_that_runs_out_has_a_name(make_run, monkeypatch):
    run = make_run()
    monkeypatch.setattr(
        "torch.optim.AdamW.step",
        lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    )
    assert main([str(run)]) == 1
    assert last(run).data["code"] == "memory.exhausted"


def test_a_checkpoint_tells_how_it_was_made(make_run, tiny):
    run = make_run(use_ema=True)
    main([str(run)])
    facts = json.loads((checkpoint(run, 4) / "checkpoint.json").read_text())
    assert (facts["step"], facts["method"], facts["weights"]) == (4, "lora", "ema")
    assert (run / facts["base"]).resolve() == tiny.resolve()
    assert facts["base_sha256"] == folder_digest(tiny)
    assert facts["config"]["lora_rank"] == 2
    assert facts["metrics"].keys() == {"loss", "loss_ema", "clap_score"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_fills_up_while_a_checkpoint_is_written_leaves_the_earlier_ones_whole(make_run, tmp_path, monkeypatch):
    run = make_run(checkpointing_steps=1, max_train_steps=50, checkpoints_total_limit=1000)
    (run / "checkpoints").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(run / "checkpoints")], capture_output=True).returncode:
        pytest.skip("this machine does not allow mounts")
    try:
        monkeypatch.setattr("gpu.finetune.checkpoints.FREE_SPACE_MARGIN_BYTES", -(10**9))  # as if the space went while it wrote
        assert main([str(run)]) == 1
        assert last(run).data["code"] == "disk.full"
        steps = sorted((run / "checkpoints").iterdir())
        assert steps
        for path in steps:
            verify_checkpoint(path)
    finally:
        subprocess.run(["umount", str(run / "checkpoints")], check=True)
