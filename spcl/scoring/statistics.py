"""How sure a mean over seeds and images is, and a difference between two of them.

Three sources of doubt are told apart.  Over seeds: the t interval, for exactly these images.  Over
images: a bootstrap of the stored per-image matrices, for exactly these networks.  Both together:
variance components.  With Y_s the score of seed s and R_s its replicates over resampled images,

    Var(mean of Y) = var(Y_s) / S  +  mean over s != t of cov(R_s, R_t)

The first term holds what seeds and what the interaction of seeds and images contribute, the second
what all seeds share because they are scored on the same images.  Its degrees of freedom are
Satterthwaite's.  Where few seeds happen to agree, the second term lends the first its many degrees
of freedom, and a sum of two doubts would look smaller than one of them; so doubt over seeds alone
is the least there is.  Without that bound 15 comparisons of equal rows of 3 seeds call one of them
different in 15 % of cases instead of 5.  A percentile bootstrap over seeds would be far too narrow
at 3 to 10 of them.

Seeds alone say nothing where they are two, which any coincidence makes look certain, or where all
have the same score to rounding: then there is neither an interval nor a test, unless matrices of
images give a doubt of their own (`why_seeds_are_silent`).

Letters: N images, K classes, B resamples, S seeds.  No torch; scipy only where a quantile is asked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from spcl.scoring.protocols import PROTOCOLS, headline

CONFIDENCE = 0.95
POWER = 0.8  # with which the smallest detectable difference would be found
RESAMPLES = 1000
RESAMPLING_SEED = 0  # the same draws for every run: resampling is paired
FEWEST_SEEDS = 3  # ours: that say by themselves how far seeds differ
ROUNDING = 1e-12  # ours: scores, or percent of them, that differ by less are equal


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference with its standard error; df None: nothing can be said of it.

    over_seeds  estimate over seeds only, if it differs; the interval is never narrower than its own
    """

    value: float
    error: float | None = None
    df: float | None = None
    over_seeds: "Estimate | None" = None

    @property
    def interval(self) -> tuple[float, float] | tuple[None, None]:
        if not self.error or self.df is None:
            return None, None
        half = self.margin((1 + CONFIDENCE) / 2)
        return self.value - half, self.value + half

    def margin(self, *probabilities: float) -> float:
        """Sum of the t quantiles of these probabilities, times the standard error."""
        assert self.error is not None and self.df is not None, "only what has an error has a margin"
        own = self.error * sum(t_quantile(p, self.df) for p in probabilities)
        return own if self.over_seeds is None else max(own, self.over_seeds.margin(*probabilities))

    @property
    def variance(self) -> tuple[float, float] | None:
        """Squared standard error and its degrees of freedom, as `satterthwaite` adds them."""
        return None if self.error is None or self.df is None else (self.error**2, self.df)

    @property
    def p_value(self) -> float | None:
        """Two-sided, of the hypothesis that the value is 0."""
        if not self.error or self.df is None:
            return None
        from scipy.special import stdtr

        own = float(2 * stdtr(self.df, -abs(self.value) / self.error))
        return own if self.over_seeds is None else max(own, self.over_seeds.p_value or 0.0)


def t_quantile(probability: float, df: float) -> float:
    from scipy.special import stdtrit  # most of a second, for commands that need no interval

    return float(stdtrit(df, probability))


# Over images.


@lru_cache(maxsize=4)
def resampling_weights(images: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(B, N): how often each image is drawn in each resample."""
    rng = np.random.default_rng(RESAMPLING_SEED)
    share = np.full(images, 1 / images)
    return rng.multinomial(images, share, size=resamples).astype(np.float64)


def headline_replicates(
    matrices: np.ndarray, protocol: str, resamples: int = RESAMPLES
) -> np.ndarray:
    """(B,) the protocol's headline mean over resampled images.

    matrices  (N, K, K) per image, rows truth, in an order that all compared runs share
    """
    rules = PROTOCOLS[protocol]
    hits = np.einsum("nkk->nk", matrices).astype(np.float64)
    truth, predicted = matrices.sum(2), matrices.sum(1)
    if rules.masked:
        masked = list(rules.masked)
        predicted = predicted - matrices[:, masked].sum(1)
        hits[:, masked] = truth[:, masked] = 0
    weights = resampling_weights(len(matrices), resamples)
    # Sums over each resample's images are one product: (B, N) @ (N, K).
    intersection = weights @ hits
    union = weights @ (truth + predicted).astype(np.float64) - intersection
    classes = headline(rules.means)
    if classes is not None:
        intersection, union = intersection[:, list(classes)], union[:, list(classes)]
    found = union > 0
    values = np.divide(intersection, union, out=np.zeros_like(union), where=found)
    return values.sum(1) / np.maximum(found.sum(1), 1)


def image_interval(replicates: np.ndarray) -> tuple[float, float]:
    """Percentile interval over images of one run or of the mean of several, seeds fixed."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, (tail, 1 - tail))
    return float(low), float(high)


# Over seeds, and both together.


def why_seeds_are_silent(values: Sequence[float]) -> str | None:
    """Why seeds alone give no interval and no test, as "one seed"; None where they do."""
    if len(values) < FEWEST_SEEDS:
        return "two seeds" if len(values) == 2 else "one seed"
    return "equal seeds" if max(values) - min(values) <= ROUNDING else None


def seed_estimate(values: Sequence[float]) -> Estimate:
    """Mean over seeds, for these images; without error where seeds alone say nothing."""
    found = _over_seeds(values)
    return Estimate(found.value) if why_seeds_are_silent(values) else found


def _over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds with its error, however little that says; one seed has none."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Estimate(mean)
    variance = math.fsum((v - mean) ** 2 for v in values) / (count - 1)
    return Estimate(mean, math.sqrt(variance / count), count - 1)


def image_covariance(replicates: np.ndarray, images: int) -> np.ndarray:
    """(S, S) covariance over images of the runs' scores.  replicates (S, B)."""
    centred = replicates - replicates.mean(1, keepdims=True)
    # A bootstrap of N images underestimates a variance by (N - 1) / N.
    return centred @ centred.T / (replicates.shape[1] - 1) * (images / max(images - 1, 1))


def shared_part(covariance: np.ndarray) -> float:
    """Mean covariance of two different seeds: what more seeds would not average away."""
    count = len(covariance)
    if count < 2:
        return 0.0
    return max(0.0, float((covariance.sum() - np.trace(covariance)) / (count * (count - 1))))


def combined_estimate(values: Sequence[float], covariance: np.ndarray, images: int) -> Estimate:
    """Mean over seeds, for other seeds and other images; without error where nothing tells it.

    covariance  (S, S) of `image_covariance`, zeros where no matrices are stored
    """
    silent = why_seeds_are_silent(values) is not None
    return _for_other_images(_over_seeds(values), shared_part(covariance), images, silent)


def _for_other_images(over_seeds: Estimate, shared: float, images: int, silent: bool) -> Estimate:
    """shared: variance over images that more seeds would not average away.

    silent  seeds alone say nothing
    """
    own = over_seeds.variance
    if own is None or shared <= ROUNDING**2 or images < 2:
        return Estimate(over_seeds.value) if silent else over_seeds
    floor = over_seeds if own[0] > 0 else None
    return Estimate(over_seeds.value, *satterthwaite([own, (shared, images - 1)]), floor)


def satterthwaite(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error and degrees of freedom of a sum of (variance, degrees of freedom)."""
    total = math.fsum(variance for variance, _ in parts)
    if total == 0:
        return 0.0, parts[0][1]
    spread = math.fsum(variance**2 / df for variance, df in parts if variance > 0)
    return math.sqrt(total), total**2 / spread


def difference(
    one: dict[int, float], other: dict[int, float], covariance: np.ndarray, images: int
) -> Estimate:
    """Mean of one row minus mean of another: paired over common seeds where there are two.

    one, other  seed -> score
    covariance  over images, of the runs of `one` in order and then those of `other`
    """
    common = [seed for seed in one if seed in other]
    if len(common) >= 2:
        of_one, of_other = list(one), list(other)
        order = [of_one.index(seed) for seed in common]
        order += [len(of_one) + of_other.index(seed) for seed in common]
        block, count = covariance[np.ix_(order, order)], len(common)
        ours, crossed = block[:count], block[count:]
        paired = ours[:, :count] + crossed[:, count:] - ours[:, count:] - crossed[:, :count]
        return combined_estimate([one[s] - other[s] for s in common], paired, images)
    sides = list(one.values()), list(other.values())
    mine, theirs = map(_over_seeds, sides)
    value = mine.value - theirs.value
    if mine.variance is None or theirs.variance is None:
        return Estimate(value)  # how seeds differ is unknown
    count = len(one)
    shared = (
        shared_part(covariance[:count, :count])
        + shared_part(covariance[count:, count:])
        - 2 * float(covariance[:count, count:].mean())
    )
    silent = any(map(why_seeds_are_silent, sides))
    return _for_other_images(
        Estimate(value, *satterthwaite([mine.variance, theirs.variance])), shared, images, silent
    )


# Many comparisons.


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjusted p values, step down."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return adjusted


def detectable_difference(differences: Sequence[Estimate]) -> float | None:
    """The difference that a comparison of median error finds with POWER, as Holm's first step."""
    tested = sorted((e for e in differences if e.error is not None), key=lambda e: e.error or 0.0)
    if not tested:
        return None
    typical = tested[len(tested) // 2]
    alpha = (1 - CONFIDENCE) / len(tested)
    return typical.margin(1 - alpha / 2, POWER)
