"""Every family that text alone can drive is opened, fine-tuned, resumed and heard alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AudioLDMPipeline

from gpu.config import FinetuneConfig, GenerateConfig, ModelRef
from gpu.errors import Fault
from gpu.events import ENDINGS, read_events
from gpu.finetune import main
from gpu.finetune.data import TrainingBatches, cache_clips
from gpu.models import context_slots, describe, read_checkpoint, require_trainable, verify_checkpoint
from gpu.pipelines import collate, encode, encode_guided, encode_unconditional, load_pipeline, unet_inputs
from gpu.sampling import sample_sounds
from tests.gpu.conftest import QUICK, events_of, tones

TRAINABLE = ("audioldm", "audioldm_48k", "audioldm_t5", "audioldm2_large")
SOUND = {"prompt": "A dog barking", "num_inference_steps": 2, "audio_length_in_s": 0.5, "num_waveforms_per_prompt": 2, "seed": 7}


def opened(folder: Path, weights: Path | None = None):
    return load_pipeline(ModelRef(base=str(folder), weights=str(weights) if weights else None), device="cpu")


def sounds(folder: Path, weights: Path | None = None) -> list:
    return sample_sounds(opened(folder, weights), GenerateConfig.parse(SOUND))


@pytest.mark.parametrize("variant, family, name, rate, bins, scale, guidance", [
    ("audioldm", "audioldm", "AudioLDM", 16_000, 64, 4, 2.5),
    ("audioldm_48k", "audioldm", "AudioLDM 48 kHz", 48_000, 256, 8, 3.5),
    ("audioldm_t5", "audioldm_t5", "AudioLDM Flan-T5", 16_000, 64, 4, 3.5),
    ("audioldm2", "audioldm2", "AudioLDM 2", 16_000, 64, 4, 3.5),
    ("audioldm2_large", "audioldm2", "AudioLDM 2 large", 16_000, 64, 4, 3.5),
])  # fmt: skip
def test_a_folder_is_known_by_what_it_holds(tiny_of, variant, family, name, rate, bins, scale, guidance):
    facts = describe(tiny_of(variant))
    assert (facts.family, facts.variant, facts.sample_rate_hz, facts.n_mels, facts.latent_scale) == (family, name, rate, bins, scale)
    assert facts.defaults == {"guidance_scale": guidance}
    assert facts.can_generate and facts.can_finetune and not facts.why_not


@pytest.mark.parametrize("variant, ranks, hears", [
    ("audioldm", True, True), ("audioldm_ranker", True, True), ("audioldm_deaf", False, False), ("audioldm_48k", True, True),
    ("audioldm_t5", True, False), ("audioldm2", True, False),
])  # fmt: skip
def test_a_model_ranks_where_it_has_ears_and_hears_where_a_sound_can_be_its_condition(tiny_of, variant, ranks, hears):
    facts = describe(tiny_of(variant))
    assert (facts.ranks_by_clap, facts.conditions_on_audio) == (ranks, hears)
    scores = [candidate.clap_score for candidate in sounds(tiny_of(variant))]
    assert all((score is not None) == ranks for score in scores)
    assert not ranks or scores == sorted(scores, reverse=True)


def test_the_name_and_notes_of_a_conversion_are_passed_on(tiny_of, tmp_path):
    folder = Path(shutil.copytree(tiny_of("audioldm"), tmp_path / "m"))
    original = {"layout": "B", "variant": "AudioLDM-M", "weights": "ema"}
    (folder / "studio.json").write_text(json.dumps({"name": "mine", "original": original}))
    facts = describe(folder)
    assert (facts.name, facts.variant, facts.original) == ("mine", "AudioLDM-M", original)
    assert facts.defaults == {"guidance_scale": 3.5}  # what the training repository samples its fine-tunes with


def test_a_model_for_speech_is_described_and_refused_with_the_reason(tiny_of, make_run):
    facts = describe(tiny_of("audioldm2_speech"))
    assert (facts.variant, facts.can_generate, facts.can_finetune) == ("AudioLDM 2 speech", False, False)
    with pytest.raises(Fault, match="phonemes") as caught:
        opened(tiny_of("audioldm2_speech"))
    assert caught.value.code == "checkpoint.unsupported"
    run = make_run(model=tiny_of("audioldm2_speech"))
    assert main([str(run)]) == 1
    assert list(read_events(run))[-1].data["code"] == "checkpoint.unsupported"


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("variant", TRAINABLE)
def test_it_is_trained_resumed_to_the_bit_and_heard(make_run, tiny_of, variant, method):
    run = make_run(model=tiny_of(variant), method=method, checkpointing_steps=2, gradient_checkpointing=method == "full")
    assert main([str(run)]) == 0
    assert all(np.isfinite(event.data["loss"]) for event in events_of(run, "progress") + events_of(run, "validated"))
    end = run / "checkpoints/global_step=000004"
    facts = verify_checkpoint(end)
    once = (end / facts.weights_file).read_bytes()

    # As if it had been killed between the second step and the end.
    shutil.rmtree(end)
    said = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(line for line in said if json.loads(line)["type"] not in ENDINGS))
    assert main([str(run)]) == 0
    assert (end / read_checkpoint(end).weights_file).read_bytes() == once

    first, second, base = sounds(tiny_of(variant), end), sounds(tiny_of(variant), end), sounds(tiny_of(variant))
    assert [candidate.samples.tobytes() for candidate in first] == [candidate.samples.tobytes() for candidate in second]
    assert all(np.isfinite(candidate.samples).all() for candidate in first)
    assert not np.array_equal(first[0].samples, base[0].samples)


@pytest.mark.parametrize("variant", ["audioldm_deaf", "audioldm"])
def test_ddim_equals_the_pipeline_of_diffusers(tiny_of, variant):
    values = {"num_inference_steps": 3, "audio_length_in_s": 0.64, "guidance_scale": 2.5}
    config = GenerateConfig.parse({"prompt": "A dog barking", "seed": 7, "num_waveforms_per_prompt": 1, "sampler": "ddim", **values})
    ours = sample_sounds(opened(tiny_of(variant)), config)[0].samples

    theirs = AudioLDMPipeline.from_pretrained(tiny_of(variant), dtype=torch.float32)
    for part in (theirs.unet, theirs.vae, theirs.text_encoder, theirs.vocoder):
        part.eval()
    theirs.set_progress_bar_config(disable=True)
    expected = theirs("A dog barking", generator=torch.Generator().manual_seed(7), **values).audios[0]
    np.testing.assert_allclose(ours, expected[: len(ours)], atol=1e-4)


def test_a_ranker_of_its_own_ranks_and_not_the_conditioning_clap(tiny_of):
    alone, beside = opened(tiny_of("audioldm")), opened(tiny_of("audioldm_ranker"))
    assert beside.ranker.text is beside.pipeline.ranker
    assert beside.listener.text is beside.pipeline.text_encoder
    assert alone.ranker == alone.listener


def test_the_t5_model_ranks_with_the_tokenizer_of_its_ranker(tiny_of):
    loaded = opened(tiny_of("audioldm_t5"))
    assert loaded.ranker.tokenizer is loaded.pipeline.ranker_tokenizer
    assert type(loaded.pipeline.tokenizer).__name__ == "T5Tokenizer"


# What reaches the UNet


@pytest.mark.parametrize("dims, widths, slots", [
    ([[None, 768, 1024]] * 4, (768, 1024), (0, 1)),
    ([[None, 768, 1024, None]] * 4, (768, 1024), (0, 1)),
    ([[None, 1024]] * 4, (1024,), (0,)),
    ([[None, None, 1024]] * 4, (1024,), (1,)),
    ([[None, 768]] * 4, (768, 1024), (0, None)),
    ([[None, 1024]] * 4, (768, 1024), (None, 0)),
    ([[None, None]] * 4, (), ()),
    ([768, 768], (768,), (0,)),
    (768, (768,), (0,)),
])  # fmt: skip
def test_each_stream_finds_its_argument_by_the_place_and_width_in_the_list(dims, widths, slots):
    assert context_slots(dims, widths) == slots


@pytest.mark.parametrize("dims, widths", [
    ([[768, 1024]] * 4, (768, 1024)),  # both would be read from the first argument
    ([[16, 16]] * 2, (16, 16)),
    ([[None, 512]] * 4, (768, 1024)),
    ([[None, 1024, 768]] * 4, (768, 1024)),
    ([[None, 768]] * 4, ()),
])  # fmt: skip
def test_a_list_that_would_leave_a_prompt_unheard_is_refused(dims, widths):
    with pytest.raises(ValueError, match="cross_attention_dim"):
        context_slots(dims, widths)


def test_a_folder_whose_unet_would_ignore_the_text_is_refused(tiny_of, tmp_path):
    folder = Path(shutil.copytree(tiny_of("audioldm2_large"), tmp_path / "m"))
    config = json.loads((folder / "unet/config.json").read_text())
    config["cross_attention_dim"] = [[16, 24]] * 2
    (folder / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(Fault, match="does not fit its text encoders") as caught:
        describe(folder)
    assert caught.value.code == "checkpoint.unrecognised"


@pytest.mark.parametrize("variant", [*TRAINABLE, "audioldm2"])
def test_the_unet_hears_every_stream_and_nothing_that_the_mask_hides(tiny_of, variant):
    loaded = opened(tiny_of(variant))
    short, long = encode(loaded, ["Rain"]), encode(loaded, ["A piano playing a single low note"])
    shape = loaded.latent_shape(0.5)
    noisy, timestep = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500])

    def answer(embeds) -> torch.Tensor:
        with torch.no_grad():
            return loaded.unet(noisy[: len(embeds)], timestep, **unet_inputs(embeds, loaded.unet)).sample

    assert not torch.allclose(answer(short), answer(long), atol=1e-6)
    torch.testing.assert_close(answer(collate([short, long]))[:1], answer(short), atol=1e-5, rtol=0)


def test_the_t5_states_reach_the_t5_model_through_the_first_argument_with_their_mask(tiny_of):
    loaded = opened(tiny_of("audioldm_t5"))
    embeds = encode(loaded, ["Rain", "A piano playing a single low note"])
    inputs = unet_inputs(embeds, loaded.unet)
    assert inputs.keys() == {"encoder_hidden_states", "encoder_attention_mask"}
    assert inputs["encoder_hidden_states"] is embeds.prompt_embeds
    assert inputs["encoder_attention_mask"] is embeds.attention_mask


# What stands for no prompt


@pytest.mark.parametrize("variant", [*TRAINABLE, "audioldm2"])
def test_a_dropped_caption_is_what_guidance_leads_away_from(make_run, tiny_of, variant, tmp_path):
    loaded = opened(tiny_of(variant))
    clips = cache_clips(tones(tmp_path), loaded, tmp_path / "cache", duration_s=0.5, report=lambda *_: None)
    config = FinetuneConfig.parse({**QUICK, "caption_dropout": 1.0, "train_batch_size": 1})
    batch = TrainingBatches(clips, config, scaling_factor=1.0, num_train_timesteps=1000, stop=1).batch(0)
    for prompt in ("Rain", "A piano playing a single low note and wind howling"):
        nothing = encode_guided(loaded, prompt, "")[1]
        assert all(torch.equal(a, b) for a, b in zip(vars(batch.embeds).values(), vars(nothing).values(), strict=True))


def test_for_the_class_label_families_nothing_is_claps_own_empty_text(tiny_of):
    loaded = opened(tiny_of("audioldm"))
    tokens = loaded.pipeline.tokenizer([""], padding="max_length", max_length=512, return_tensors="pt")
    with torch.no_grad():
        expected = loaded.pipeline.text_encoder(**tokens).text_embeds[0]
    torch.testing.assert_close(encode_unconditional(loaded).class_labels[0], expected / expected.norm(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", ["audioldm_t5", "audioldm2_large"])
def test_for_t5_nothing_is_one_token(tiny_of, variant):
    nothing = encode_unconditional(opened(tiny_of(variant)))
    assert nothing.attention_mask.tolist() == [[1]]


def test_a_model_from_an_original_file_has_zeros_where_gpt2_would_write_for_nothing(tiny_of, tmp_path):
    folder = Path(shutil.copytree(tiny_of("audioldm2_large"), tmp_path / "m"))
    (folder / "studio.json").write_text(json.dumps({"original": {"layout": "D"}}))
    loaded = opened(folder)
    assert not encode_unconditional(loaded).generated_prompt_embeds.any()
    assert encode_guided(loaded, "Rain", "")[0].generated_prompt_embeds.any()
    assert encode_guided(loaded, "Rain", "wind")[1].generated_prompt_embeds.any()
    assert encode_unconditional(opened(tiny_of("audioldm2_large"))).generated_prompt_embeds.any()


def test_only_a_model_that_hears_can_be_asked_to(tiny_of):
    require_trainable(describe(tiny_of("audioldm")), audio_conditioning=0.3)
    require_trainable(describe(tiny_of("audioldm2")))
    for variant in ("audioldm_deaf", "audioldm_t5", "audioldm2"):
        with pytest.raises(Fault, match="set it to 0") as caught:
            require_trainable(describe(tiny_of(variant)), audio_conditioning=0.3)
        assert caught.value.code == "config.audio_conditioning"
