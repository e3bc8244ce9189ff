"""Distances between sets of sounds, and between sounds and words, in the space of an embedding. numpy alone, float64 throughout.

A set is an array [N, D], one embedding a row. Every interval is a 95 % bootstrap that draws whole `groups` (sounds of one caption stand or
fall together) and is a function of its seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 1_000
KAD_SCALE = 100.0
"""Kernel audio distances are shown times this, as the authors' own toolkit does."""
KAD_MIN_SOUNDS = 8
"""Unbiased from two sounds on, but with fewer than this the interval is wider than any difference."""
FRECHET_FLAG_RATIO = 5
"""Below so many sounds per dimension a Fréchet distance is mostly its own bias, and flagged."""
DUPLICATE_FLOOR = 0.95
ALARM_SHARE = 0.05
"""The share of innocent sounds that a threshold may call copies, where there are enough real ones to know it."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and between what it lies with 95 % confidence; `low` and `high` are None where nothing can be said."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def clear_of_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def normalised(embeddings: NDArray) -> Array:
    """Rows of length 1, in float64. Raises ValueError for a row that is zero or not finite."""
    rows = np.asarray(embeddings, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise ValueError("an embedding is zero or not finite")
    return rows / lengths


def paired_cosines(text: NDArray, audio: NDArray) -> Array:
    """Cosine between each prompt and its own sound: [N, D], [N, D] -> [N]."""
    if np.shape(text) != np.shape(audio):
        raise ValueError(f"text {np.shape(text)} and audio {np.shape(audio)} must be pairs")
    return (normalised(text) * normalised(audio)).sum(axis=1)


def chance_cosines(text: NDArray, audio: NDArray, groups: Sequence[str]) -> Array:
    """What a model scores that ignores its prompt: for each sound the mean cosine with all prompts of other groups; empty with one group."""
    cosines = normalised(audio) @ normalised(text).T  # [N, N]
    other = np.array([[mine != theirs for theirs in groups] for mine in groups])
    return (cosines * other).sum(axis=1)[other.any(axis=1)] / other.sum(axis=1)[other.any(axis=1)]


def mean_interval(values: Sequence[float] | Array, *, groups: Sequence[str], seed: int, draws: int = DRAWS) -> Interval:
    """The mean, with a percentile interval over draws of whole groups; no interval with fewer than two groups."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("no values")
    if len(set(groups)) < 2:
        return Interval(value=float(values.mean()))
    counts = group_counts(groups, draws=draws, seed=seed)  # [B, N]
    means = (counts @ values) / counts.sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(value=float(values.mean()), low=float(low), high=float(high))


def median_distance(reference: NDArray) -> float:
    """Median Euclidean distance between two different rows: the bandwidth of Chung et al. 2025 (arXiv:2502.15602, section 3)."""
    squared = _squared_distances(np.asarray(reference, dtype=np.float64), np.asarray(reference, dtype=np.float64))
    return float(np.sqrt(np.median(squared[np.triu_indices(len(squared), k=1)])))


def gaussian_kernel(bandwidth: float) -> Callable[[Array, Array], Array]:
    """k(x, y) = exp(-|x - y|² / 2σ²). A bandwidth of zero (all reference sounds alike) counts equal rows as 1, others as 0."""

    def kernel(x: Array, y: Array) -> Array:
        squared = _squared_distances(x, y)
        return np.exp(-squared / (2 * bandwidth**2)) if bandwidth > 0 else (squared == 0).astype(np.float64)

    return kernel


def polynomial_kernel(x: Array, y: Array) -> Array:
    """k(x, y) = (x·y / D + 1)³, that of the kernel inception distance (Bińkowski et al. 2018, arXiv:1801.01401, section 4)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def make_kernel(name: str, reference: NDArray) -> Callable[[Array, Array], Array]:
    """`gaussian`, its bandwidth the median distance of the reference set, or `polynomial`."""
    if name == "gaussian":
        return gaussian_kernel(median_distance(reference))
    if name == "polynomial":
        return polynomial_kernel
    raise ValueError(f"unknown kernel {name!r}")


@dataclass(frozen=True, kw_only=True)
class KernelSums:
    """Kernel values within and between two sets, from which the distance of any resampling follows without computing them again."""

    within: Array  # [N, N]
    reference: Array  # [M, M]
    between: Array  # [N, M]

    @classmethod
    def of(cls, sounds: NDArray, reference: NDArray, *, kernel: str) -> KernelSums:
        x, y = np.asarray(sounds, dtype=np.float64), np.asarray(reference, dtype=np.float64)
        if len(x) < 2 or len(y) < 2:
            raise ValueError(f"{len(x)} sounds and {len(y)} reference sounds: both sets need two")
        function = make_kernel(kernel, y)
        return cls(within=function(x, x), reference=function(y, y), between=function(x, y))

    def distance(self, x_counts: Array | None = None, y_counts: Array | None = None) -> Array:
        """Unbiased MMD² (Gretton et al. 2012, JMLR 13, lemma 6), for each row of counts: [B]. Unweighted without counts: [1].

        A sound is never compared with itself, also not with its second copy in a resampling: that would add k(x, x) = 1 and push
        every resampled distance up.
        """
        x = np.ones((1, len(self.within))) if x_counts is None else x_counts
        y = np.ones((1, len(self.reference))) if y_counts is None else y_counts
        between = np.einsum("bn,nm,bm->b", x, self.between, y, optimize=True) / (x.sum(axis=1) * y.sum(axis=1))
        return _mean_of_pairs(self.within, x) + _mean_of_pairs(self.reference, y) - 2 * between


def kernel_distance(
    sounds: NDArray,
    reference: NDArray,
    *,
    kernel: str = "gaussian",
    groups: Sequence[str] | None = None,
    reference_groups: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """Kernel audio distance (Chung et al. 2025, arXiv:2502.15602): 100 · unbiased MMD² between two sets.

    Its expectation is 0 for two sets from one source at every N, so half of such values are negative.
    """
    sums = KernelSums.of(sounds, reference, kernel=kernel)
    value = KAD_SCALE * float(sums.distance()[0])
    x, y = _both_counts(len(sounds), len(reference), groups, reference_groups, draws=draws, seed=seed)
    return _around(value, KAD_SCALE * sums.distance(x, y))


def kernel_distance_difference(
    sounds: NDArray,
    others: NDArray,
    reference: NDArray,
    *,
    kernel: str = "gaussian",
    groups: Sequence[str],
    reference_groups: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """Distance of `sounds` minus that of `others` to the same reference, both made for the same prompts in the same order."""
    first = KernelSums.of(sounds, reference, kernel=kernel)
    second = KernelSums.of(others, reference, kernel=kernel)
    value = KAD_SCALE * float(first.distance()[0] - second.distance()[0])
    x, y = _both_counts(len(sounds), len(reference), groups, reference_groups, draws=draws, seed=seed)
    return _around(value, KAD_SCALE * (first.distance(x, y) - second.distance(x, y)))


def frechet_refusal(count: int, reference_count: int, dimensions: int) -> str:
    """Why a Fréchet distance would mean nothing; "" when it may be computed."""
    fewest = min(count, reference_count)
    if fewest > dimensions:
        return ""
    return f"{fewest} sounds in an embedding of {dimensions} dimensions: a covariance needs at least {dimensions + 1} in both sets"


def frechet_warning(count: int, reference_count: int, dimensions: int) -> str:
    """What to keep in mind about one that was computed; "" from `FRECHET_FLAG_RATIO` sounds a dimension on."""
    fewest, wanted = min(count, reference_count), FRECHET_FLAG_RATIO * dimensions
    if fewest >= wanted:
        return ""
    return f"{fewest} sounds in {dimensions} dimensions (fewer than {wanted}): biased upwards, compare only with figures at the same N"


def frechet_distance(sounds: NDArray, reference: NDArray) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½) between two Gaussians (Dowson and Landau 1982; as Kilgour et al. 2019, arXiv:1812.08466).

    Raises:
        ValueError: fewer sounds than dimensions allow.
    """
    x, y = np.asarray(sounds, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if refusal := frechet_refusal(len(x), len(y), x.shape[1]):
        raise ValueError(refusal)
    return gaussian_frechet(x.mean(axis=0), np.cov(x, rowvar=False), y.mean(axis=0), np.cov(y, rowvar=False))


def gaussian_frechet(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """The closed form. tr((Σ₁Σ₂)^½) is the sum of the square roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric."""
    root = _symmetric_root(np.atleast_2d(covariance))
    product = root @ np.atleast_2d(other_covariance) @ root
    trace = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0, None)).sum()
    apart = np.atleast_1d(mean) - np.atleast_1d(other_mean)
    return float(apart @ apart + np.trace(np.atleast_2d(covariance)) + np.trace(np.atleast_2d(other_covariance)) - 2 * trace)


def frechet_interval(
    sounds: NDArray,
    reference: NDArray,
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = 50,
) -> Interval:
    """The distance, ± 1.96 standard deviations of resampled ones.

    Not their percentiles: a resampling holds fewer different sounds, so all resampled distances lie above the value itself.
    """
    x, y = np.asarray(sounds, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    value = frechet_distance(x, y)
    x_counts, y_counts = _both_counts(len(x), len(y), groups, None, draws=draws, seed=seed)
    drawn = [
        gaussian_frechet(*_weighted_moments(x, x_count), *_weighted_moments(y, y_count))
        for x_count, y_count in zip(x_counts, y_counts, strict=True)
    ]
    return _around(value, np.array(drawn))


def nearest(sounds: NDArray, others: NDArray) -> tuple[NDArray[np.int64], Array]:
    """For each sound the index of the most similar other one, and their cosine: [N], [N]."""
    cosines = normalised(sounds) @ normalised(others).T
    best = cosines.argmax(axis=1)
    return best, cosines[np.arange(len(best)), best]


def copy_threshold(innocent: Sequence[float] | Array, *, alarm_share: float = ALARM_SHARE) -> tuple[float, float]:
    """The similarity above which a sound is suspiciously near, learnt from sounds that cannot be copies.

    Args:
        innocent: how near each held-out real sound lies to its nearest training sound.
    Returns:
        The threshold, and the share of innocent sounds that may exceed it. With n of them no share below 1 / (n + 1) can be promised: then
        it is their maximum (the conformal quantile; Vovk et al. 2005, section 2.2).
    """
    values = np.sort(np.asarray(innocent, dtype=np.float64))
    if not len(values):
        raise ValueError("no innocent sounds")
    place = math.ceil((len(values) + 1) * (1 - alarm_share))
    return float(values[min(place, len(values)) - 1]), max(alarm_share, 1 / (len(values) + 1))


def duplicate_threshold(real: NDArray) -> float:
    """The similarity that two different real sounds hardly ever reach: the 99th of their percentiles, but at least `DUPLICATE_FLOOR`."""
    if len(real) < 2:
        return DUPLICATE_FLOOR
    cosines = normalised(real) @ normalised(real).T
    return max(DUPLICATE_FLOOR, float(np.percentile(cosines[np.triu_indices(len(cosines), k=1)], 99)))


def near_duplicates(sounds: NDArray, *, threshold: float) -> list[int | None]:
    """For each sound the index of the most similar other one that is nearer than `threshold`, or None."""
    if len(sounds) < 2:
        return [None] * len(sounds)
    cosines = normalised(sounds) @ normalised(sounds).T
    np.fill_diagonal(cosines, -1)
    best = cosines.argmax(axis=1)
    return [int(index) if cosines[row, index] > threshold else None for row, index in enumerate(best)]


def group_counts(groups: Sequence[str], *, draws: int, seed: int) -> Array:
    """How often each row is drawn when as many groups as there are, are drawn with replacement: [draws, N]."""
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    member = np.array([names[name] for name in groups])
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return drawn[:, member].astype(np.float64)


def _both_counts(
    count: int, reference_count: int, groups: Sequence[str] | None, reference_groups: Sequence[str] | None, *, draws: int, seed: int
) -> tuple[Array, Array]:
    x = group_counts(groups or [str(row) for row in range(count)], draws=draws, seed=seed)
    y = group_counts(reference_groups or [str(row) for row in range(reference_count)], draws=draws, seed=seed + 1)
    # Of a single sound, drawn again and again, there are no pairs.
    usable = ((x > 0).sum(axis=1) > 1) & ((y > 0).sum(axis=1) > 1)
    return x[usable], y[usable]


def _around(value: float, drawn: Array) -> Interval:
    if len(drawn) < 20:
        return Interval(value=value)
    spread = 1.959963984540054 * float(drawn.std(ddof=1))
    return Interval(value=value, low=value - spread, high=value + spread)


def _mean_of_pairs(kernel: Array, counts: Array) -> Array:
    """Mean kernel value over pairs of different rows, weighted by how often both were drawn: [N, N], [B, N] -> [B]."""
    everything = np.einsum("bn,nm,bm->b", counts, kernel, counts, optimize=True)
    squares = counts**2
    return (everything - squares @ np.diag(kernel)) / (counts.sum(axis=1) ** 2 - squares.sum(axis=1))


def _weighted_moments(rows: Array, counts: Array) -> tuple[Array, Array]:
    mean = counts @ rows / counts.sum()
    centred = rows - mean
    return mean, (centred * counts[:, None]).T @ centred / (counts.sum() - 1)


def _symmetric_root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def _squared_distances(x: Array, y: Array) -> Array:
    squared = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)[None] - 2 * x @ y.T
    return np.maximum(squared, 0)
