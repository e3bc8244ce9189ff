"""The figures of an evaluation, held against numbers worked out by hand, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu.evaluation import metrics
from gpu.evaluation.loudness import TARGET_DB, level_db, matched
from gpu.evaluation.statistics import binomial_p, wilson_interval

RANDOM = np.random.default_rng(7)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# Kernel audio distance


def test_kernel_distance_of_four_points_worked_out_by_hand():
    # σ is the distance of the two reference points, 1. Within x: exp(-4/2), within y: exp(-1/2).
    # Between: |0-0|, |0-1|, |2-0|, |2-1| squared are 0 1 4 1.
    expected = math.exp(-2) + math.exp(-0.5) - 2 * (1 + 2 * math.exp(-0.5) + math.exp(-2)) / 4
    found = metrics.kernel_distance([[0.0], [2.0]], [[0.0], [1.0]])
    assert found.value == pytest.approx(100 * expected, abs=1e-12)


def test_polynomial_kernel_of_four_points_worked_out_by_hand():
    # k(x, y) = (x·y + 1)³ in one dimension: within x 1, within y 1; between 1, 1, 1, 3³.
    found = metrics.kernel_distance([[0.0], [2.0]], [[0.0], [1.0]], kernel="polynomial")
    assert found.value == pytest.approx(100 * (1 + 1 - 2 * 30 / 4))


def test_bandwidth_is_the_median_distance_of_the_reference():
    assert metrics.median_distance([[0.0], [1.0], [4.0]]) == 3.0  # distances 1, 3, 4


def test_kernel_distance_is_unbiased_at_few_sounds():
    # Two sets of one source: the mean over many trials is 0, and about half of the values are negative.
    values = [metrics.kernel_distance(noise(2 * trial, 6, 4), noise(2 * trial + 1, 6, 4), draws=20).value for trial in range(1500)]
    standard_error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * standard_error
    assert 0.4 < np.mean(np.array(values) < 0) < 0.7


def test_kernel_distance_has_one_expectation_at_every_size():
    def mean(count: int) -> float:
        kernel = metrics.gaussian_kernel(2.0)
        total = 0.0
        for trial in range(800):
            x, y = noise(trial, count, 2), noise(10_000 + trial, count, 2) + 1.0
            total += float(metrics.KernelSums(within=kernel(x, x), reference=kernel(y, y), between=kernel(x, y)).distance()[0])
        return total / 800

    # E k(x, x') = (σ²/(σ²+2))^(d/2); between sets times exp(-|δ|² / 2(σ²+2)): d = 2, σ² = 4, |δ|² = 2.
    exact = 2 * (4 / 6) * (1 - math.exp(-2 / 12))
    assert mean(4) == pytest.approx(exact, abs=0.02)
    assert mean(30) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("kernel", ["gaussian", "polynomial"])
def test_kernel_distance_does_not_depend_on_the_order(kernel):
    x, y = noise(1, 12, 5), noise(2, 9, 5)
    shuffled = metrics.kernel_distance(x[::-1], y[RANDOM.permutation(9)], kernel=kernel)
    assert shuffled.value == pytest.approx(metrics.kernel_distance(x, y, kernel=kernel).value, abs=1e-10)


def test_kernel_distance_sees_a_shift_and_its_interval_holds_it():
    found = metrics.kernel_distance(noise(1, 60, 8) + 1, noise(2, 60, 8))
    assert found.low > 0
    assert found.low < found.value < found.high


def test_interval_of_kernel_distance_covers_the_truth_about_as_often_as_it_says():
    exact, kernel = 2 * (4 / 6) * (1 - math.exp(-2 / 12)), metrics.gaussian_kernel(2.0)
    covered = 0
    for trial in range(200):
        x, y = noise(trial, 30, 2), noise(10_000 + trial, 30, 2) + 1.0
        sums = metrics.KernelSums(within=kernel(x, x), reference=kernel(y, y), between=kernel(x, y))
        counts = [metrics.group_counts([str(row) for row in range(30)], draws=200, seed=seed) for seed in (trial, trial + 1)]
        half = 1.96 * sums.distance(*counts).std(ddof=1)
        covered += abs(float(sums.distance()[0]) - exact) <= half
    assert 0.88 <= covered / 200 <= 0.99


def test_a_sound_drawn_twice_is_not_compared_with_itself():
    kernel = np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.6], [0.4, 0.6, 1.0]])
    # Row 0 twice, row 1 once: only the pair (0, 1) is one of different sounds.
    assert metrics._mean_of_pairs(kernel, np.array([[2.0, 1.0, 0.0]])) == pytest.approx([0.2])


def test_one_sound_has_no_distance():
    with pytest.raises(ValueError, match="both sets need two"):
        metrics.kernel_distance([[0.0, 1.0]], noise(0, 5, 2))


def test_difference_of_a_set_to_itself_is_nothing():
    x = noise(3, 20, 4)
    found = metrics.kernel_distance_difference(x, x, noise(4, 20, 4), groups=[str(i) for i in range(20)])
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_equal_reference_sounds_give_a_number():
    assert math.isfinite(metrics.kernel_distance(noise(1, 5, 3), np.ones((5, 3))).value)


# Fréchet distance


def test_frechet_distance_between_gaussians_is_the_closed_form():
    # Commuting covariances: |μ|² + Σ (√a - √b)². Here 3² + (2-1)² + (3-5)².
    found = metrics.gaussian_frechet(np.zeros(2), np.diag([4.0, 9.0]), np.array([0.0, 3.0]), np.diag([1.0, 25.0]))
    assert found == pytest.approx(14.0)


def test_frechet_distance_does_not_change_when_both_sets_are_turned():
    x, y = noise(1, 40, 3) * [1, 2, 3], noise(2, 50, 3) + 1
    turn, _ = np.linalg.qr(noise(3, 3, 3))
    assert metrics.frechet_distance(x @ turn, y @ turn) == pytest.approx(metrics.frechet_distance(x, y))


def test_frechet_distance_of_many_sounds_comes_near_the_truth():
    x, y = noise(1, 20_000, 2), noise(2, 20_000, 2) * 2 + [1, 0]
    assert metrics.frechet_distance(x, y) == pytest.approx(1 + 2, rel=0.05)  # |μ|² + 2 (2-1)²


def test_frechet_distance_is_refused_below_one_sound_more_than_dimensions():
    with pytest.raises(ValueError, match="128 sounds in an embedding of 128 dimensions"):
        metrics.frechet_distance(noise(1, 128, 128), noise(2, 400, 128))
    assert metrics.frechet_refusal(129, 400, 128) == ""


def test_frechet_distance_is_flagged_below_five_sounds_a_dimension():
    assert "fewer than 640" in metrics.frechet_warning(639, 2000, 128)
    assert metrics.frechet_warning(640, 2000, 128) == ""


def test_frechet_interval_lies_around_the_value():
    found = metrics.frechet_interval(noise(1, 40, 4), noise(2, 40, 4) + 2)
    assert found.low < found.value < found.high


# CLAP score


def test_paired_cosines_are_those_of_each_pair():
    found = metrics.paired_cosines([[1, 0], [1, 1]], [[2, 0], [-1, -1]])
    assert found == pytest.approx([1, -1])


def test_unpaired_texts_are_refused():
    with pytest.raises(ValueError, match="pairs"):
        metrics.paired_cosines(noise(1, 2, 3), noise(2, 3, 3))


def test_chance_compares_with_other_prompts_only():
    text, audio = [[1, 0], [1, 0], [0, 1]], [[1, 0], [0, 1], [1, 0]]
    # The first two have one prompt, so both are compared with the third alone; the third with the first two.
    assert metrics.chance_cosines(text, audio, ["a", "a", "b"]) == pytest.approx([0, 1, 1])


def test_mean_interval_is_that_of_the_normal_for_many_values():
    values = noise(5, 400)
    found = metrics.mean_interval(values, groups=[str(i) for i in range(400)], seed=0, draws=4000)
    half = 1.96 * values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_sounds_of_one_caption_stand_and_fall_together():
    values = np.repeat(noise(6, 10), 20)
    groups = [str(i // 20) for i in range(200)]
    together = metrics.mean_interval(values, groups=groups, seed=0)
    alone = metrics.mean_interval(values, groups=[str(i) for i in range(200)], seed=0)
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_one_group_has_no_interval():
    assert metrics.mean_interval([0.1, 0.3], groups=["a", "a"], seed=0) == metrics.Interval(value=0.2)


def test_the_same_seed_gives_the_same_interval():
    values, groups = noise(8, 30), [str(i) for i in range(30)]
    assert metrics.mean_interval(values, groups=groups, seed=3) == metrics.mean_interval(values, groups=groups, seed=3)
    assert metrics.mean_interval(values, groups=groups, seed=3) != metrics.mean_interval(values, groups=groups, seed=4)


# Copies


def test_nearest_finds_the_copy():
    others = noise(1, 10, 6)
    index, similarity = metrics.nearest(others[[4]] * 3, others)
    assert (index[0], similarity[0]) == (4, pytest.approx(1))


def test_threshold_of_few_real_sounds_is_their_nearest_and_says_how_often_it_errs():
    assert metrics.copy_threshold([0.2, 0.9, 0.5]) == (0.9, 0.25)


def test_threshold_of_many_real_sounds_is_exceeded_by_one_in_twenty():
    threshold, share = metrics.copy_threshold(np.arange(1, 100) / 100)
    assert (threshold, share) == (0.95, 0.05)  # the 95th of 99: ceil(100 * 0.95)


def test_threshold_keeps_its_promise_for_sounds_like_the_real_ones():
    alarms = [noise(trial, 1)[0] > metrics.copy_threshold(noise(50_000 + trial, 39))[0] for trial in range(4000)]
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.012)


def test_near_duplicates_name_each_other():
    sounds = np.array([[1, 0], [0, 1], [1, 0.01]])
    assert metrics.near_duplicates(sounds, threshold=0.99) == [2, None, 0]
    assert metrics.near_duplicates(sounds[:1], threshold=0.99) == [None]


def test_silence_of_the_embedding_is_refused():
    with pytest.raises(ValueError, match="zero or not finite"):
        metrics.normalised([[0.0, 0.0]])


# Counts


def test_wilson_interval_of_eight_wins_in_ten():
    # Wilson 1927 with z = 1.96: (0.8 + 0.19207 ± 1.96·√(0.016 + 0.0096036)) / 1.38415
    assert wilson_interval(8, 10) == pytest.approx((0.49016, 0.94331), abs=1e-4)


def test_wilson_interval_of_no_win_does_not_promise_never():
    low, high = wilson_interval(0, 5)
    assert low == 0
    assert high == pytest.approx(3.8415 / (5 + 3.8415), abs=1e-4)


@pytest.mark.parametrize(("wins", "trials", "p"), [(8, 10, 112 / 1024), (5, 10, 1.0), (0, 5, 2 / 32), (5, 5, 2 / 32), (0, 0, 1.0)])
def test_binomial_p_is_exact(wins, trials, p):
    assert binomial_p(wins, trials) == pytest.approx(p)


@given(st.integers(1, 60).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_interval_holds_the_share_and_is_symmetric(case):
    wins, trials = case
    low, high = wilson_interval(wins, trials)
    assert 0 <= low <= wins / trials + 1e-12
    assert wins / trials - 1e-12 <= high <= 1
    assert wilson_interval(trials - wins, trials) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("wins", "trials"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_refused(wins, trials):
    with pytest.raises(ValueError, match="wins of"):
        wilson_interval(wins, trials)


# Loudness


def test_a_loud_and_a_quiet_sound_come_to_one_loudness():
    wave = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    first, second = matched(0.9 * wave, 0.02 * wave, rate_hz=16_000)
    assert level_db(first, 16_000) == pytest.approx(TARGET_DB, abs=0.1)
    assert level_db(second, 16_000) == pytest.approx(TARGET_DB, abs=0.1)


def test_neither_sound_of_a_pair_clips():
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    click = np.zeros(16_000)
    click[::4000] = 1.0  # almost no energy: brought to the target it would have to exceed full scale
    first, second = matched(wave, click, rate_hz=16_000)
    assert max(np.abs(first).max(), np.abs(second).max()) <= 1 + 1e-6
    assert level_db(first, 16_000) == pytest.approx(level_db(second, 16_000), abs=0.1)


def test_sounds_too_short_for_loudness_are_matched_by_their_power():
    wave = np.sin(2 * np.pi * 440 * np.arange(1600) / 16_000)
    first, second = matched(0.5 * wave, 0.05 * wave, rate_hz=16_000)
    assert np.abs(first).max() == pytest.approx(np.abs(second).max(), rel=1e-3)


def test_silence_stays_silent():
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    _, silence = matched(wave, np.zeros(16_000), rate_hz=16_000)
    assert not silence.any()
