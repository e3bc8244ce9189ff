"""Encoded prompts equal the pipeline's own."""

import pytest
import torch
from transformers import ClapTextConfig, ClapTextModelWithProjection

from gpu.architectures import build_audioldm2
from gpu.conditioning import PromptEmbeds, clap_text_embeds, encode_prompts
from gpu.tiny import CAPTIONS, tiny_architecture

PROMPTS = ["A dog barking", "Rain", "A very long prompt about glass breaking, an engine starting and the wind howling"]


@pytest.fixture(scope="module")
def pipeline():
    return build_audioldm2(tiny_architecture(), captions=CAPTIONS)


def pipeline_embeds(pipeline, prompts: list[str]) -> PromptEmbeds:
    with torch.no_grad():
        prompt_embeds, mask, generated = pipeline.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)
    return PromptEmbeds(prompt_embeds, mask, generated)


def assert_close(ours: PromptEmbeds, theirs: PromptEmbeds) -> None:
    torch.testing.assert_close(ours.prompt_embeds, theirs.prompt_embeds, atol=2e-6, rtol=0)
    torch.testing.assert_close(ours.attention_mask, theirs.attention_mask)
    torch.testing.assert_close(ours.generated_prompt_embeds, theirs.generated_prompt_embeds, atol=2e-6, rtol=0)


def test_a_batch_equals_the_pipelines(pipeline):
    assert_close(encode_prompts(pipeline, PROMPTS), pipeline_embeds(pipeline, PROMPTS))


def test_components_do_as_well_as_a_pipeline(pipeline):
    assert_close(encode_prompts(pipeline.components, PROMPTS), encode_prompts(pipeline, PROMPTS))


def test_the_empty_prompt_equals_the_pipelines(pipeline):
    assert_close(encode_prompts(pipeline, [""]), pipeline_embeds(pipeline, [""]))


def test_prompts_encoded_alone_and_collated_give_the_unet_what_they_give_alone(pipeline):
    alone = [encode_prompts(pipeline, [prompt]) for prompt in PROMPTS]

    batch = PromptEmbeds.collate(alone)

    assert [item.prompt_embeds.shape for item in batch.unpadded()] == [item.prompt_embeds.shape for item in alone]
    latents, step = torch.randn(1, 4, 8, 16), torch.tensor(10)
    for i, item in enumerate(alone):
        row = PromptEmbeds(batch.prompt_embeds[i : i + 1], batch.attention_mask[i : i + 1], batch.generated_prompt_embeds[i : i + 1])
        with torch.no_grad():
            answers = [
                pipeline.unet(
                    latents, step, encoder_hidden_states=e.generated_prompt_embeds,
                    encoder_hidden_states_1=e.prompt_embeds, encoder_attention_mask_1=e.attention_mask,
                ).sample
                for e in (item, row)
            ]  # fmt: skip
        torch.testing.assert_close(answers[0], answers[1], atol=1e-5, rtol=0)


def test_unpadded_undoes_the_padding_of_a_batch(pipeline):
    batch = encode_prompts(pipeline, PROMPTS)

    items = batch.unpadded()

    lengths = batch.attention_mask.sum(1).tolist()
    assert [item.prompt_embeds.shape[1] for item in items] == lengths
    assert len(set(lengths)) > 1
    assert all(item.attention_mask.all() for item in items)


def test_the_unet_hears_both_roads_of_a_prompt(pipeline):
    dog, rain = encode_prompts(pipeline, ["A dog barking"]), encode_prompts(pipeline, ["Wind howling 77"])
    latents, step = torch.randn(1, 4, 8, 16), torch.tensor(10)

    def answer(generated: PromptEmbeds, t5: PromptEmbeds) -> torch.Tensor:
        with torch.no_grad():
            return pipeline.unet(
                latents, step, encoder_hidden_states=generated.generated_prompt_embeds,
                encoder_hidden_states_1=t5.prompt_embeds, encoder_attention_mask_1=t5.attention_mask,
            ).sample  # fmt: skip

    assert not torch.allclose(answer(dog, dog), answer(rain, dog), atol=1e-7)
    assert not torch.allclose(answer(dog, dog), answer(dog, rain), atol=1e-7)


def test_gradients_reach_the_text_side_only_when_asked(pipeline):
    assert not encode_prompts(pipeline, PROMPTS).generated_prompt_embeds.requires_grad

    encode_prompts(pipeline, PROMPTS, requires_grad=True).generated_prompt_embeds.square().sum().backward()

    for part in (pipeline.text_encoder_2, pipeline.projection_model, pipeline.language_model):
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in part.parameters())
        part.zero_grad()


def test_both_kinds_of_clap_give_vectors_of_length_one(pipeline):
    config = pipeline.text_encoder.config.text_config.to_dict()
    audioldm1 = ClapTextModelWithProjection(ClapTextConfig(**config)).eval()

    for text_encoder in (pipeline.text_encoder, audioldm1):
        with torch.no_grad():
            embeds = clap_text_embeds(pipeline.tokenizer, text_encoder, PROMPTS)
        assert embeds.shape == (3, 16)
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(3))
