"""Pretraining in miniature: every stage for a few steps, on sounds made in code."""

import csv
import json
import multiprocessing
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from diffusers import AudioLDM2Pipeline, DPMSolverMultistepScheduler
from transformers import ClapFeatureExtractor

import gpu.pretrain
from gpu.architectures import CLAP_FEATURES, build_audioldm2, build_vae, build_vocoder
from gpu.pretrain.clap import clap_features, contrastive_loss, train_clap
from gpu.pretrain.corpus import Corpus, read_registry
from gpu.pretrain.diffusion import train_diffusion
from gpu.pretrain.examples import Examples
from gpu.pretrain.grain import learn_spread
from gpu.pretrain.linear import start_encoder, start_linear
from gpu.pretrain.recipe import Recipe
from gpu.pretrain.soundfont import _midi, repeated
from gpu.pretrain.synthesis import KINDS, SAMPLE_RATE_HZ, synthesise
from gpu.pretrain.training import Ema, Training, cosine, trapezoid
from gpu.pretrain.vae import train_vae
from gpu.pretrain.vocoder import renamed
from gpu.pretrain.wording import OTHER_WORDS, reworded, said_anew
from gpu.tiny import tiny_architecture

TINY = tiny_architecture(sample_rate_hz=22_050, n_mels=80, hop_length=256, vae_levels=3, prediction_type="v_prediction")
ARCHITECTURE = replace(TINY, vae={**TINY.vae, "block_out_channels": (16, 24, 32)})
GRAIN = 4
GRAINY = replace(ARCHITECTURE, vae={**ARCHITECTURE.vae, "latent_channels": ARCHITECTURE.vae["latent_channels"] + GRAIN})
CLIP_FRAMES = 48
SEED_THAT_REWORDS_NOTHING = 14


@pytest.fixture(scope="module")
def corpus_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Eight recordings and their registry: number 0 is a demo clip, number 1 was cut from the same recording."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "sounds_ogg.zip", "w") as archive, open(folder / "sounds.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["audio", "caption", "category", "url", "in_demo"])
        writer.writeheader()
        for i in range(8):
            samples, caption, _ = synthesise(rng, 0.7)
            content = BytesIO()
            sf.write(content, samples / np.abs(samples).max() * 0.9, 16_000, format="OGG", subtype="VORBIS")
            archive.writestr(f"{i}.ogg", content.getvalue())
            url = "https://example.org/0" if i < 2 else ""
            writer.writerow({"audio": f"{i}.ogg", "caption": caption, "category": "foley", "url": url, "in_demo": int(i == 0)})
    return folder / "sounds_ogg.zip", folder / "sounds.csv"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    recipe = {
        "seed": 3,
        "architecture": asdict(GRAINY),
        "corpus": {"num_examples": 12, "clip_frames": CLIP_FRAMES, "shares": {"other": 1, "synthetic": 1}, "mixture_share": 0.2, "held_out_every": 3},
        "vae": {"train_batch_size": 2, "crop_frames": 16, "learning_rate": 1e-3, "lr_warmup_steps": 1, "max_train_steps": 4, "noise": 0.05,
                "grain_channels": GRAIN, "grain_steps": 60},
        "vocoder": {"package": "toy_hifigan", "weights": "generator.pt"},
        "clap": {"num_examples": 6, "train_batch_size": 3, "learning_rate": 1e-3, "lr_warmup_steps": 1, "max_train_steps": 3},
        "diffusion": {"train_batch_size": 3, "learning_rate": 1e-3, "lr_warmup_steps": 1, "lr_decay_steps": 2, "max_train_steps": 4,
                      "max_grad_norm": 1.0, "snr_gamma": None, "unconditional_share": 0.3, "ema_decay": 0.9},
        "studio": {"name": "miniature"},
    }  # fmt: skip
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture
def toy_hifigan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A package that holds a HiFi-GAN generator as its authors publish it, with weight norm; the weights it stands for."""
    torch.manual_seed(0)
    plain = build_vocoder(ARCHITECTURE).state_dict()
    generator = {}
    for name, value in plain.items():
        original = name.replace("upsampler.", "ups.")
        if name.endswith("weight"):
            generator[f"{original}_v"] = 3 * value
            generator[f"{original}_g"] = value.norm(dim=(1, 2), keepdim=True)
        elif name not in ("mean", "scale"):
            generator[original] = value
    package = tmp_path / "toy_hifigan"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('found, never imported')")
    torch.save({"generator": generator}, package / "generator.pt")
    monkeypatch.syspath_prepend(tmp_path)
    return plain


@pytest.fixture
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu.pretrain.training.SAVE_EVERY_S", -1)
    monkeypatch.setattr("gpu.pretrain.training.REPORT_EVERY_S", -1)


def pretrain(recipe: Path, run_dir: Path, corpus_files: tuple[Path, Path], *more: str) -> int:
    return gpu.pretrain.main([str(recipe), str(run_dir), "--data", str(corpus_files[0]), "--threads", "1", *more])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    pipeline = AudioLDM2Pipeline.from_pretrained(folder, dtype=torch.float32)
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value for name, part in modules.items() for key, value in part.state_dict().items()}


def test_all_stages_lead_to_a_pipeline_that_makes_sound(recipe_file, tmp_path, corpus_files, toy_hifigan):
    code = pretrain(recipe_file, tmp_path / "run", corpus_files)

    assert code == 0
    pipeline = AudioLDM2Pipeline.from_pretrained(tmp_path / "run/model", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    sound = pipeline("a siren", audio_length_in_s=0.5, num_inference_steps=3).audios[0]
    assert sound.shape == (11_025,) and np.isfinite(sound).all() and np.abs(sound).max() > 1e-4
    assert json.loads((tmp_path / "run/model/studio.json").read_text()) == {"name": "miniature"}
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert events[0]["type"] == "started" and events[-1]["type"] == "finished"
    assert {"vae", "clap", "diffusion"} <= {event["data"].get("stage") for event in events}


def test_a_run_stopped_in_each_stage_and_continued_equals_one_that_was_not(
    recipe_file, tmp_path, corpus_files, toy_hifigan, at_every_step, monkeypatch
):
    pretrain(recipe_file, tmp_path / "whole", corpus_files)
    report = Training.report
    stopped_in: set[str] = set()

    def stop_at_third_step(self, loss, **more):
        if self.step == 2 and self.path.stem not in stopped_in:
            stopped_in.add(self.path.stem)
            raise KeyboardInterrupt
        report(self, loss, **more)

    monkeypatch.setattr(Training, "report", stop_at_third_step)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe_file, tmp_path / "parts", corpus_files)
    pretrain(recipe_file, tmp_path / "parts", corpus_files)

    assert stopped_in == {"vae", "clap", "diffusion"}
    whole, parts = weights_of(tmp_path / "whole/model"), weights_of(tmp_path / "parts/model")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_two_processes_make_the_steps_of_one(recipe_file, tmp_path, corpus_files, toy_hifigan, at_every_step, monkeypatch):
    recipe = json.loads(recipe_file.read_text())
    # Clipping acts on the team's gradient, not on a member's. How far a caption is padded depends on the others of its share: with this seed
    # all are said alike.
    recipe["seed"] = SEED_THAT_REWORDS_NOTHING
    recipe["diffusion"].update(train_batch_size=2, max_grad_norm=0.05, unconditional_share=0.0)
    recipe["architecture"]["t5"]["dropout_rate"] = 0.0  # what is dropped would differ
    recipe["architecture"]["gpt2"].update(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    recipe_file.write_text(json.dumps(recipe))
    pretrain(recipe_file, tmp_path / "one", corpus_files, "--until", "vae")
    captions = tmp_path / "one/examples/captions.json"
    captions.write_text(json.dumps(["long sirens"] * len(json.loads(captions.read_text()))))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    pretrain(recipe_file, tmp_path / "one", corpus_files)
    report = Training.report

    def stop_at_third_step(self, loss, **more):
        if self.step == 2:
            raise KeyboardInterrupt
        report(self, loss, **more)

    with monkeypatch.context() as once:
        once.setattr(Training, "report", stop_at_third_step)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe_file, tmp_path / "two", corpus_files, "--processes", "2")
    assert not multiprocessing.active_children()
    assert pretrain(recipe_file, tmp_path / "two", corpus_files, "--processes", "2") == 0

    one, two = (torch.load(tmp_path / name / "diffusion.pt", weights_only=True) for name in ("one", "two"))
    assert one["step"] == two["step"] == 4
    beginning = build_audioldm2(GRAINY, captions=json.loads(captions.read_text()), seed=SEED_THAT_REWORDS_NOTHING)
    moved = 0.0
    for name, value in one["parts"]["trained"].items():
        part, _, key = name.partition(".")
        torch.testing.assert_close(two["parts"]["trained"][name], value, rtol=0, atol=2e-5)
        moved = max(moved, float((value - getattr(beginning, part).state_dict()[key]).abs().max()))
    assert moved > 1e-3
    assert not (tmp_path / "two/beginning").exists()


def test_a_batch_that_the_processes_cannot_share_is_refused_at_once(recipe_file, tmp_path, corpus_files, toy_hifigan, capsys):
    with pytest.raises(SystemExit) as caught:
        pretrain(recipe_file, tmp_path / "run", corpus_files, "--processes", "2")
    assert caught.value.code == 2
    assert "train_batch_size (3)" in capsys.readouterr().err


def test_a_missing_vocoder_package_is_named(recipe_file, tmp_path, corpus_files, capsys):
    code = pretrain(recipe_file, tmp_path / "run", corpus_files)

    assert code == 1
    assert "toy_hifigan" in capsys.readouterr().err
    last = json.loads((tmp_path / "run/events.jsonl").read_text().splitlines()[-1])
    assert last["type"] == "failed" and last["data"]["code"] == "pretrain.vocoder_missing"


def test_a_recipe_with_an_unknown_name_is_refused(recipe_file, tmp_path, corpus_files, capsys):
    recipe = json.loads(recipe_file.read_text())
    recipe["vae"]["learnign_rate"] = recipe["vae"].pop("learning_rate")
    recipe_file.write_text(json.dumps(recipe))

    with pytest.raises(SystemExit) as exit_:
        pretrain(recipe_file, tmp_path / "run", corpus_files)

    assert exit_.value.code == 2
    assert "learnign_rate" in capsys.readouterr().err


def test_a_converted_vocoder_has_the_weights_that_weight_norm_stood_for(toy_hifigan, tmp_path):
    generator = torch.load(tmp_path / "toy_hifigan/generator.pt")["generator"]

    converted = renamed(generator, n_mels=80)

    assert converted.keys() == toy_hifigan.keys()
    for name, value in toy_hifigan.items():
        torch.testing.assert_close(converted[name], value)


def test_neither_demo_clips_nor_cuts_from_their_recordings_are_trained_on(corpus_files):
    clips = read_registry(corpus_files[1])

    assert [clip.path for clip in clips] == [f"{i}.ogg" for i in range(2, 8)]


def test_an_example_is_the_same_whenever_it_is_asked_for(corpus_files):
    def corpus() -> Corpus:
        return Corpus(
            [corpus_files], mel=ARCHITECTURE.mel, duration_s=0.5, seed=1, shares={"other": 1.0, "synthetic": 1.0},
            mixture_share=0.5, held_out_every=3,
        )  # fmt: skip

    first, again = corpus(), corpus()
    again.example(0)

    for index in (5, 3):
        assert np.array_equal(first.example(index).waveform, again.example(index).waveform)
        assert first.example(index).caption == again.example(index).caption
    assert len({first.example(i).waveform.tobytes() for i in range(10)}) == 10


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_sound_is_audible_and_fits(kind):
    samples, caption = KINDS[kind](np.random.default_rng(0), 1.5)

    assert np.isfinite(samples).all() and np.abs(samples).max() > 0.05
    assert len(samples) <= 1.5 * SAMPLE_RATE_HZ
    assert caption and caption == caption.strip()


def test_clap_pictures_equal_the_feature_extractors():
    sound = 0.1 * torch.randn(2, 60_000, generator=torch.Generator().manual_seed(0))

    ours = clap_features(sound)

    theirs = ClapFeatureExtractor(**CLAP_FEATURES)([s.numpy() for s in sound], sampling_rate=48_000, return_tensors="pt").input_features
    torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=0)


def test_two_sounds_with_one_caption_are_both_right_for_it():
    sure = 30.0
    logits = torch.tensor([[sure, sure, 0.0], [sure, sure, 0.0], [0.0, 0.0, sure]])

    loss = contrastive_loss(logits, ["A dog.", "a dog", "rain"])

    assert loss == pytest.approx(2 / 3 * np.log(2), abs=1e-4)  # two captions share their certainty between two sounds


def test_a_vae_starts_as_the_best_linear_code_of_squares():
    rng = np.random.default_rng(0)
    pictures = torch.from_numpy(rng.standard_normal((6, 1, 16, 80)).cumsum(2).cumsum(3) / 8 - 6).float()
    torch.manual_seed(0)
    vae = build_vae(ARCHITECTURE).eval()
    start_linear(vae, pictures)

    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode()

    # By hand: the four first principal components of all 4 x 4 squares explain as much as the latents do.
    squares = pictures.reshape(6, 4, 4, 20, 4).permute(0, 1, 3, 2, 4).reshape(-1, 16)
    centred = (squares - squares.mean(0)).double()
    explained = torch.linalg.svd(centred, full_matrices=False)[1].square()
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 4).double()
    answer = torch.linalg.lstsq(flat, centred).solution
    left = (centred - flat @ answer).square().sum()
    assert float(left) == pytest.approx(float(explained[4:].sum()), rel=0.02)
    assert float(latents.square().mean()) == pytest.approx(1, rel=0.05)


def test_a_linear_start_draws_pictures_that_it_never_saw():
    rng = np.random.default_rng(1)
    pictures = torch.from_numpy(rng.standard_normal((8, 1, 32, 80)).cumsum(2).cumsum(3) / 16 - 6).float()
    torch.manual_seed(0)
    vae = build_vae(ARCHITECTURE).eval()
    start_linear(vae, pictures[:6])

    with torch.no_grad():
        drawn = vae.decode(vae.encode(pictures[6:]).latent_dist.mode()).sample

    assert float((drawn - pictures[6:]).square().mean()) < 0.1 * float(pictures[6:].var())


def test_grain_channels_hold_unit_noise_and_nothing_of_the_picture(recipe_file, tmp_path, corpus_files, toy_hifigan):
    pretrain(recipe_file, tmp_path / "run", corpus_files)

    pipeline = AudioLDM2Pipeline.from_pretrained(tmp_path / "run/model", dtype=torch.float32)
    vae = pipeline.vae
    pictures = Examples(tmp_path / "run/examples").held_out
    with torch.no_grad():
        posterior = vae.encode(pictures).latent_dist
        outline = posterior.mode()
        grainy = outline.clone()
        grainy[:, -GRAIN:] = torch.randn(grainy[:, -GRAIN:].shape, generator=torch.Generator().manual_seed(0)) / vae.config.scaling_factor
        drawn, drawn_otherwise = vae.decode(outline).sample, vae.decode(grainy).sample
    assert not outline[:, -GRAIN:].any() and outline[:, :-GRAIN].abs().mean() > 0.1
    assert float(outline[:, :-GRAIN].std() * vae.config.scaling_factor) == pytest.approx(1, rel=0.02)
    torch.testing.assert_close(posterior.std[:, -GRAIN:] * vae.config.scaling_factor, torch.ones_like(outline[:, -GRAIN:]), rtol=2e-3, atol=0)
    assert (drawn - drawn_otherwise).abs().mean() > 0.01  # in half precision, too


def test_a_sampler_hands_the_grain_on_from_its_first_noise(recipe_file, tmp_path, corpus_files, toy_hifigan):
    pretrain(recipe_file, tmp_path / "run", corpus_files)
    pipeline = AudioLDM2Pipeline.from_pretrained(tmp_path / "run/model", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    first = torch.randn(1, pipeline.unet.config.in_channels, 12, 20, generator=torch.Generator().manual_seed(1))

    last = pipeline("a siren", audio_length_in_s=0.5, num_inference_steps=20, latents=first.clone(), output_type="latent").audios

    unet = pipeline.unet
    assert not unet.conv_in.weight[:, -GRAIN:].any() and not unet.conv_out.weight[-GRAIN:].any() and not unet.conv_out.bias[-GRAIN:].any()
    share = last[:, -GRAIN:] / first[:, -GRAIN:]
    assert float(share.std()) < 1e-3 and 0.9 < float(share.mean()) <= 1
    assert torch.corrcoef(torch.stack([last[:, :-GRAIN].flatten(), first[:, :-GRAIN].flatten()]))[0, 1] < 0.999


def test_the_grain_is_as_strong_as_its_surroundings_say(tmp_path):
    rng = np.random.default_rng(2)
    pictures = rng.standard_normal((60, 32, 80)) * 0.02
    pictures[:, :, 40:] += 3 + rng.standard_normal((60, 32, 40))  # its upper half is loud and rough
    (tmp_path / "examples").mkdir()
    np.save(tmp_path / "examples/mels.npy", (pictures - 6).astype(np.float16))
    np.save(tmp_path / "examples/held_out.npy", (pictures[:8] - 6).astype(np.float16))
    (tmp_path / "examples/captions.json").write_text(json.dumps([""] * 60))
    examples = Examples(tmp_path / "examples")
    vae = build_vae(GRAINY)
    code = start_encoder(vae, examples.batch(np.arange(60)), grain_channels=GRAIN)

    spread = learn_spread(code, examples, tmp_path / "grain.pt", steps=200, seed=0, announce=lambda **_: None)

    outline, grain = code.outline(examples.held_out), code.grain(examples.held_out)
    white = spread.whitened(outline, grain)
    assert grain[..., 11:].std() > 20 * grain[..., :9].std()
    assert 0.8 < float(white[..., 11:].std()) < 1.25 and 0.6 < float(white[..., :9].std()) < 1.6
    right, faint = spread.mismatch(outline, grain), spread.mismatch(outline, grain * 0.5)
    assert right < 0.6 and 0.5 * right + 0.8 < faint  # a half is log(4) less
    again = learn_spread(code, examples, tmp_path / "grain.pt", steps=200, seed=1, announce=lambda **_: pytest.fail("learnt twice"))
    torch.testing.assert_close(again(outline), spread(outline))


def test_the_notes_of_a_soundfont_are_written_as_a_midi_file():
    file = _midi([(1, 122, 60)], velocity=110)

    assert file[:14] == b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x01\xe0"  # one track, 480 ticks a quarter: 960 a second at 120 bpm
    assert file[22:] == bytes.fromhex("00b00001 00c07a 00903c6e 9e00803c00 9e00ff2f00")  # 4 s are 3840 ticks: 9e 00


def test_a_short_sound_is_repeated_with_pauses():
    note = np.zeros(22_050, dtype=np.float32)
    note[1000:1100] = 1

    samples = repeated(note, (0.5, 0.5), np.random.default_rng(0))

    starts = np.flatnonzero(np.diff(samples > 0.1, prepend=False) & (samples > 0.1))
    assert len(samples) == 4 * 22_050 and set(np.diff(starts)) == {100 + 11_025}


def test_other_words_change_what_is_named_and_leave_the_rest():
    said = {reworded("a dog barking and heavy rain", np.random.default_rng(seed)).lower().rstrip(".") for seed in range(60)}

    assert "a dog barking and heavy rain" in said
    assert any("hound" in caption for caption in said) and any("downpour" in caption for caption in said)


def test_what_is_said_anew_keeps_its_notes_and_finds_other_words_behind_capital_and_full_stop():
    said = {said_anew("A dog barking.", np.random.default_rng(seed)) for seed in range(60)}
    chords = {said_anew("C major on an organ", np.random.default_rng(seed)) for seed in range(20)}

    assert "a dog barking" in said and any("hound" in caption for caption in said)
    assert all(caption.startswith("C major") for caption in chords)


def test_no_prompt_of_the_recognition_benchmark_in_other_words_is_trained_on():
    prompts = json.loads((Path(__file__).parents[2] / "benchmarks/prompts.json").read_text())
    held_out = {text for kind in prompts.values() for text in kind["other_words"]}

    assert not held_out & {words for choices in OTHER_WORDS.values() for words in choices}


def test_the_running_mean_of_weights_is_hand_computed():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 1.0)
    ema = Ema(module, decay=0.5)
    torch.nn.init.constant_(module.weight, 3.0)

    ema.update(module, step=0)  # decay min(0.5, 1/10)
    assert ema.weights["weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 3)
    ema.update(module, step=100)
    assert ema.weights["weight"].item() == pytest.approx(0.5 * 2.8 + 0.5 * 3)


def test_learning_rate_shares_are_hand_computed():
    assert [cosine(s, warmup_steps=2, max_steps=6) for s in (0, 1, 2, 4)] == pytest.approx([0.5, 1, 1, 0.5])
    assert [trapezoid(s, warmup_steps=2, decay_steps=4, max_steps=10) for s in (0, 1, 5, 6, 8, 9)] == pytest.approx(
        [0.5, 1, 1, 1, 0.5, 0.25]
    )


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that computes shapes and refuses to meet the processor, as a GPU does: what asks it for a number gets one made up."""
    there = torch.device("meta")

    def instead(owner: type, name: str, made_up: Callable[[torch.Tensor], object]) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self, *a, **k: made_up(self) if self.device == there else real(self, *a, **k))

    instead(torch.Tensor, "cpu", lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
    instead(torch.Tensor, "__float__", lambda _: 0.5)
    instead(torch.Tensor, "__bool__", lambda _: False)
    move, adamw = torch.nn.Module.to, torch.optim.AdamW
    back = lambda self: self.to_empty(device="cpu")  # noqa: E731
    is_there = lambda self: any(weight.device == there for weight in self.parameters())  # noqa: E731
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *a, **k: back(self) if str(*a[:1]) == "cpu" and is_there(self) else move(self, *a, **k))
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, **k: adamw(*a, **{**k, "fused": False}))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    monkeypatch.setattr(Training, "save", lambda _: None)
    return there


def test_every_stage_computes_on_the_device_that_it_is_given(recipe_file, tmp_path, corpus_files, toy_hifigan, elsewhere, monkeypatch):
    pretrain(recipe_file, tmp_path, corpus_files, "--until", "vae")
    recipe, examples = Recipe.read(recipe_file), Examples(tmp_path / "examples")
    (tmp_path / "vae.pt").unlink(missing_ok=True)
    pipeline = build_audioldm2(recipe.architecture, captions=examples.captions, seed=3)
    computed_on: list[torch.device] = []
    monkeypatch.setattr(Training, "report", lambda _, loss, **more: computed_on.append(loss.device))
    monkeypatch.setattr("gpu.pretrain.clap._prepare_features", lambda *_, **__: np.zeros((6, 1, 1001, 64), np.float16))
    answered = lambda unet: torch.arange(unet.config.out_channels - GRAIN, device=elsewhere)  # noqa: E731
    monkeypatch.setattr("gpu.pretrain.diffusion.answered_channels", answered)
    monkeypatch.setattr("gpu.diffusion.answered_channels", answered)
    common = {"seed": 3, "announce": lambda **_: None, "device": elsewhere}

    vae = train_vae(recipe.vae, recipe.architecture, examples, tmp_path, **common)
    clap = train_clap(recipe.clap, recipe.architecture, pipeline.tokenizer, None, examples.captions, tmp_path, **common)
    train_diffusion(recipe.diffusion, pipeline, examples, tmp_path, grain_channels=GRAIN, **common)

    assert computed_on == [elsewhere] * (4 + 3 + 4)
    assert all(weight.device.type == "cpu" for part in (vae, clap, pipeline.unet) for weight in part.parameters())


def test_the_diffusion_stage_keeps_single_precision_weights_when_it_computes_in_bf16(recipe_file, tmp_path, corpus_files, toy_hifigan, at_every_step):
    pretrain(recipe_file, tmp_path, corpus_files, "--until", "vae")
    recipe, examples = Recipe.read(recipe_file), Examples(tmp_path / "examples")
    pipeline = build_audioldm2(recipe.architecture, captions=examples.captions, seed=3)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    losses: list[float] = []

    train_diffusion(
        recipe.diffusion, pipeline, examples, tmp_path, seed=3, announce=lambda **said: losses.append(said.get("loss")), precision="bf16-mixed"
    )

    after = pipeline.unet.state_dict()
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert any(not torch.equal(before[name], after[name]) for name in after)
    assert np.isfinite([loss for loss in losses if loss is not None]).all()


def test_a_gpu_that_is_not_there_and_processes_on_one_are_refused(recipe_file, tmp_path, corpus_files, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        pretrain(recipe_file, tmp_path / "run", corpus_files, "--device", "cuda")
    assert "no GPU" in capsys.readouterr().err

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(SystemExit):
        pretrain(recipe_file, tmp_path / "run", corpus_files, "--device", "cuda", "--processes", "2")
    assert "must be 1 on a GPU" in capsys.readouterr().err
