"""AudioLDM 1 goes the same ways: loaded, sampled as diffusers samples it, fine-tuned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AudioLDMPipeline, UNet2DConditionModel
from transformers import ClapTextConfig, ClapTextModelWithProjection

from gpu.architectures import build_scheduler, build_vae, build_vocoder, roberta_tokenizer
from gpu.config import GenerateConfig, ModelRef
from gpu.finetune import main
from gpu.models import describe
from gpu.pipelines import load_pipeline
from gpu.sampling import sample_sounds
from gpu.tiny import CAPTIONS, tiny_architecture
from tests.gpu.conftest import events_of


@pytest.fixture(scope="module")
def tiny_1(tmp_path_factory) -> Path:
    architecture = tiny_architecture()
    tokenizer = roberta_tokenizer(list(CAPTIONS), vocabulary_size=300)
    torch.manual_seed(0)
    text = ClapTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=514, pad_token_id=1, projection_dim=16,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), cross_attention_dim=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, norm_num_groups=4, class_embed_type="simple_projection", projection_class_embeddings_input_dim=16,
        class_embeddings_concat=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny_1"
    AudioLDMPipeline(
        vae=build_vae(architecture), text_encoder=ClapTextModelWithProjection(text), tokenizer=tokenizer, unet=unet,
        scheduler=build_scheduler(architecture), vocoder=build_vocoder(architecture),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_it_is_known_by_its_index_and_cannot_rank(tiny_1):
    facts = describe(tiny_1)
    assert (facts.family, facts.ranks_by_clap) == ("audioldm", False)


def test_ddim_equals_the_pipeline_of_diffusers(tiny_1):
    values = {"num_inference_steps": 3, "audio_length_in_s": 0.64, "guidance_scale": 2.5}
    config = GenerateConfig.parse({"prompt": "A dog barking", "seed": 7, "num_waveforms_per_prompt": 2, **values})
    ours = sample_sounds(load_pipeline(ModelRef(base=str(tiny_1)), device="cpu"), config)
    assert [candidate.clap_score for candidate in ours] == [None, None]

    theirs = AudioLDMPipeline.from_pretrained(tiny_1, dtype=torch.float32)
    for part in (theirs.unet, theirs.vae, theirs.text_encoder, theirs.vocoder):
        part.eval()
    theirs.set_progress_bar_config(disable=True)
    expected = theirs("A dog barking", generator=torch.Generator().manual_seed(7), **values).audios[0]
    np.testing.assert_allclose(ours[0].samples, expected, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_is_fine_tuned_like_its_successor(make_run, tiny_1, method):
    run = make_run(model=tiny_1, method=method)
    assert main([str(run)]) == 0
    assert events_of(run, "sample")[-1].data["clap_score"] is None
    assert "clap_score" not in events_of(run, "checkpoint")[-1].data["metrics"]
