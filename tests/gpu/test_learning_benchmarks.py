"""The benchmarks that judge sounds: what they ask for, and how they count. The judge itself is downloaded and not tested here."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.learning import Figures, change
from benchmarks.recognition import Heard, Prompt, RoundTrip, distances, figures, read_prompts
from gpu.pretrain.synthesis import KINDS


def test_a_hundred_prompts_of_many_kinds_are_asked_a_third_of_them_in_other_words():
    prompts = read_prompts()

    assert len(prompts) == len({prompt.text for prompt in prompts}) == 100
    assert len({prompt.kind for prompt in prompts}) >= 12
    assert 30 <= sum(prompt.in_other_words for prompt in prompts) <= 40
    assert all(prompt.classes and not prompt.classes & {"Music", "Musical instrument", "Animal"} for prompt in prompts)


@pytest.mark.parametrize("kind", KINDS)
def test_no_sound_made_in_code_is_captioned_in_the_other_words(kind):
    other = {prompt.text for prompt in read_prompts() if prompt.in_other_words}

    captions = {KINDS[kind](np.random.default_rng(seed), 0.7)[1] for seed in range(12)}

    assert not captions & other


def heard(text: str, best: list[list[str]], *, certainties: tuple[float, ...] = (0.5, 0.5), other: bool = False) -> Heard:
    prompt = Prompt(number=0, text=text, kind="dog", classes=frozenset({"Dog"}), also=frozenset({"Animal"}), in_other_words=other)
    return Heard(prompt=prompt, certainties=list(certainties), best=best, embeddings=np.zeros((len(best), 4)))


def test_ranking_is_compared_with_a_random_candidate():
    result = figures([heard("a", [["Dog"], ["Cat"]]), heard("b", [["Animal"], ["Cat"]]), heard("c", [["Cat"], ["Dog"]], other=True)])

    assert result["recognised, ranked first"]["value"] == pytest.approx(1 / 3)
    assert result["recognised, any candidate"] == {"value": pytest.approx(2 / 6), "n": 6}
    assert result["ranking's gain"]["value"] == pytest.approx(0.0)  # half a sound better for a, half a sound worse for c
    assert result["recognised or vaguely right, ranked first"]["value"] == pytest.approx(2 / 3)
    assert result["recognised, other wording"]["value"] == 0
    assert result["by kind"] == {"dog": "1 of 3"}


def test_ranking_is_also_compared_by_how_sure_the_judge_is():
    result = figures([heard("a", [["Dog"], ["Dog"]], certainties=(0.9, 0.1)), heard("b", [["Dog"], ["Dog"]], certainties=(0.2, 0.2))])

    assert result["ranking's gain"]["value"] == 0
    assert result["ranking's gain, log of the judge's certainty"]["value"] == pytest.approx(np.log(9) / 2 / 2)


class FarOff:
    """A judge to whom each sound is as many windows as it has samples, all of the sound's own level."""

    def hear(self, samples, rate_hz):
        rng = np.random.default_rng(len(samples))
        return ["Dog"], samples[:, None] + rng.normal(size=(len(samples), 4))


def test_distances_are_measured_to_one_half_of_the_recordings_and_vague_ones_are_not_counted():
    recordings = [(np.zeros(300), 16_000)], [(np.zeros(400), 16_000)]
    rng = np.random.default_rng(0)
    trips = [RoundTrip(recognised=value, embeddings=rng.normal(size=(200, 4))) for value in (True, False, None)]
    made = [replace(heard("a", [["Dog"]]), embeddings=rng.normal(size=(300, 4)) + 2)]

    result = distances(made, FarOff(), recordings, trips)

    assert result["recognised after VAE and vocoder, of recordings"]["n"] == 2
    assert result["recognised after VAE and vocoder, of recordings"]["value"] == 0.5
    assert result["Fréchet distance, made to real"]["value"] == pytest.approx(4 * 2**2, rel=0.1)
    assert result["Fréchet distance, real to real"] == {"value": pytest.approx(0, abs=0.2), "n": [300, 400]}
    assert result["Fréchet distance, VAE and vocoder to real"]["n"] == [600, 400]


def test_a_change_is_the_mean_over_pairs_of_all_seeds():
    before = Figures(losses=[1.0, 2.0], clap_scores=[0.0, 0.0], recognised=[0.0, None])
    after = [
        Figures(losses=[0.5, 1.0], clap_scores=[0.2, 0.4], recognised=[1.0, None]),
        Figures(losses=[0.5, 2.0], clap_scores=[0.2, 0.4], recognised=[0.0, None]),
    ]

    rows = change(before, after, clips=["x", "y"], captions=["p", "q"])

    assert (rows["losses"]["before"], rows["losses"]["after"], rows["losses"]["change"]["value"]) == (1.5, 1.0, -0.5)
    assert rows["losses"]["n"] == 2 and rows["losses"]["pairs"] == 4
    assert rows["clap_scores"]["change"]["value"] == pytest.approx(0.3)
    assert rows["recognised"]["change"] == {"value": 0.5, "low": None, "high": None}  # one caption is judged: no interval
