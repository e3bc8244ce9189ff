"""The benchmarks that judge sounds: what they ask for, and how they count. The judge itself is downloaded and not tested here."""

import numpy as np
import pytest

from benchmarks.learning import Figures, change
from benchmarks.recognition import Heard, Prompt, figures, read_prompts
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
