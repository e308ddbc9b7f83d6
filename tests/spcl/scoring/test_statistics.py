import itertools

import numpy as np
import pytest
from scipy import stats

from spcl.scoring import statistics
from spcl.scoring.protocols import PROTOCOLS, score
from spcl.scoring.statistics import (
    Estimate,
    combined_estimate,
    detectable_difference,
    difference,
    headline_replicates,
    holm,
    image_covariance,
    resampling_weights,
    satterthwaite,
    seed_estimate,
    shared_part,
)

PIXELS = 1000  # per simulated image


def matrices(rng, images=12, classes=19):
    return rng.integers(0, 50, (images, classes, classes))


# Over seeds.


def test_the_seed_interval_is_scipys_t_interval():
    values = [0.3, 0.4, 0.8, 0.25]
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert seed_estimate(values).interval == pytest.approx(expected)


def test_one_seed_has_no_interval_and_no_test():
    one = seed_estimate([0.3])
    assert one.value == 0.3 and one.interval == (None, None) and one.p_value is None
    assert combined_estimate([0.3], np.ones((1, 1)), 50).interval == (None, None)


def test_without_image_variance_the_paired_difference_is_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 5))
    found = difference(dict(enumerate(one)), dict(enumerate(other)), np.zeros((10, 10)), 50)
    assert found.p_value == pytest.approx(stats.ttest_rel(one, other).pvalue)


def test_without_common_seeds_the_difference_is_scipys_welch_test():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=4), 3 * rng.normal(size=6)
    found = difference(dict(enumerate(one)), dict(enumerate(other, 10)), np.zeros((10, 10)), 50)
    assert found.p_value == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue)


def test_seeds_are_paired_by_number_and_not_by_position():
    one = {0: 0.1, 1: 0.5, 2: 0.9}
    other = {2: 0.8, 1: 0.41, 0: 0.0, 7: 0.3}
    found = difference(one, other, np.zeros((7, 7)), 50)
    expected = stats.ttest_rel([0.1, 0.5, 0.9], [0.0, 0.41, 0.8])
    assert found.p_value == pytest.approx(expected.pvalue)


def test_rows_that_do_not_differ_anywhere_are_not_tested():
    same = {0: 0.5, 1: 0.6, 2: 0.4}
    assert difference(same, same, np.zeros((6, 6)), 50).p_value is None


def test_a_row_of_one_seed_cannot_be_tested():
    assert difference({0: 0.1}, {0: 0.9, 1: 0.8}, np.zeros((3, 3)), 50).p_value is None


@pytest.mark.parametrize("gap", [0.1, 0.1 + 1e-17, 1e-9])
def test_equal_differences_of_two_seeds_without_matrices_are_no_proof(gap):
    """They gave p = 1.8e-15."""
    one, other = {0: 0.7, 1: 0.3}, {0: 0.7 - gap, 1: 0.3 - gap}
    found = difference(one, other, np.zeros((4, 4)), 0)
    assert (found.p_value, found.interval) == (None, (None, None))
    assert found.value == pytest.approx(gap)
    apart = difference(one, {8: 0.1, 9: 0.1}, np.zeros((4, 4)), 0)
    assert (apart.p_value, apart.interval) == (None, (None, None))
    many = dict(enumerate([0.6, 0.7, 0.8, 0.9], 20))  # the two equal ones would lend it freedom
    assert difference(many, {8: 0.1, 9: 0.1}, np.zeros((6, 6)), 0).p_value is None


@pytest.mark.parametrize("seeds", [2, 3, 10])
@pytest.mark.parametrize("rounding", [0.0, 1e-16])
def test_seeds_that_agree_to_rounding_say_nothing_of_others(seeds, rounding):
    values = [0.5 + rounding * (seed % 2) for seed in range(seeds)]
    zeros = np.zeros((2 * seeds, 2 * seeds))
    for covariance in (zeros, np.full_like(zeros, 1e-34)):
        one, other = dict(enumerate(values)), dict.fromkeys(range(seeds), 0.1)
        for found in (
            seed_estimate(values),
            combined_estimate(values, covariance[:seeds, :seeds], 50),
            difference(one, other, covariance, 50),
            difference(one, dict.fromkeys(range(50, 50 + seeds), 0.1), covariance, 50),
        ):
            assert (found.p_value, found.interval) == (None, (None, None))
            assert detectable_difference([found]) is None


def test_doubt_over_images_is_told_where_two_or_equal_seeds_alone_say_nothing():
    for values in ([0.5, 0.5], [0.5, 0.52], [0.5] * 4):
        shared = np.full((len(values), len(values)), 1e-4)
        low, high = combined_estimate(values, shared, 60).interval
        assert low < np.mean(values) - 0.015 and high > np.mean(values) + 0.015


# Over images.


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_replicates_are_the_scores_of_resampled_sums(protocol):
    per_image = matrices(np.random.default_rng(0))
    per_image[:, 4] = per_image[:, :, 4] = 0  # a class without pixels
    found = headline_replicates(per_image, protocol, resamples=5)
    for replicate, weights in zip(found, resampling_weights(12, 5), strict=True):
        drawn = np.repeat(np.arange(12), weights.astype(int))
        means = score(per_image[drawn].sum(0), protocol)["means"]
        assert replicate == pytest.approx(next(iter(means.values()))["value"], abs=1e-12)


def test_every_resample_draws_as_many_images_as_there_are():
    weights = resampling_weights(30)
    assert weights.shape == (statistics.RESAMPLES, 30) and (weights.sum(1) == 30).all()


def test_the_image_interval_of_a_linear_score_agrees_with_scipys_bootstrap():
    hits = np.random.default_rng(3).integers(0, PIXELS, 80)
    ours = statistics.image_interval(headline_replicates(one_class(hits), "all", 4000))
    theirs = stats.bootstrap(
        (hits / PIXELS / 2,), np.mean, method="percentile", n_resamples=4000, rng=5
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.004)


@pytest.mark.parametrize("images", [4, 80])
def test_the_image_variance_of_a_linear_score_is_that_of_a_mean(images):
    hits = np.random.default_rng(3).integers(0, PIXELS, images)
    replicates = headline_replicates(one_class(hits), "all", 20000)
    covariance = image_covariance(replicates[None], len(hits))
    expected = stats.sem(hits / PIXELS / 2) ** 2
    assert covariance == pytest.approx(np.array([[expected]]), rel=0.04)


# Both together.


def test_images_widen_the_interval_by_what_all_seeds_share():
    values, covariance = [0.4, 0.5, 0.6], np.array([[9, 1, 2], [1, 9, 3], [2, 3, 9.0]]) * 1e-3
    assert shared_part(covariance) == pytest.approx(2e-3)
    found = combined_estimate(values, covariance, 100)
    assert found.error**2 == pytest.approx(stats.sem(values) ** 2 + 2e-3)


def test_a_negative_shared_part_counts_as_none():
    covariance = np.array([[1.0, -0.5], [-0.5, 1.0]])
    assert shared_part(covariance) == 0.0
    assert combined_estimate([0.4, 0.5], covariance, 9) == seed_estimate([0.4, 0.5])
    nowhere = np.eye(3) - 0.1
    assert combined_estimate([0.4, 0.5, 0.7], nowhere, 9) == seed_estimate([0.4, 0.5, 0.7])


def test_doubt_over_seeds_and_images_is_never_less_than_over_seeds_alone():
    """Two seeds: t has 1 degree of freedom, and 4 once a second term of equal size joins it."""
    values, covariance = [0.50, 0.52], np.full((2, 2), 1e-4)
    found = combined_estimate(values, covariance, 60)
    over_seeds = Estimate(0.51, stats.sem(values), 1)  # which alone is not told
    assert found.df > 3 and found.error > over_seeds.error
    assert found.interval == pytest.approx(over_seeds.interval)
    assert found.p_value == pytest.approx(over_seeds.p_value)
    told = detectable_difference([over_seeds])
    assert detectable_difference([found]) == pytest.approx(told)
    wide = combined_estimate(values, 100 * covariance, 60)
    low, high = wide.interval
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, wide.df) * wide.error)


@pytest.mark.parametrize("seeds", [(0, 1, 2), (5, 6, 7)])
def test_a_difference_is_no_surer_either(seeds):
    rng = np.random.default_rng(0)
    one, other = ({s: rng.normal(0.5, 0.02) for s in of} for of in ((0, 1, 2), seeds))
    apart = np.kron(np.eye(2), np.ones((3, 3))) * 1e-5
    alone, both = (difference(one, other, c, 50) for c in (np.zeros((6, 6)), apart))
    assert both.error > alone.error and both.df > alone.df
    assert both.p_value >= alone.p_value


def test_one_image_says_nothing_about_others():
    """Rounding may leave a covariance of 1e-34 between its equal resamples."""
    values = [0.4, 0.5]
    assert combined_estimate(values, np.full((2, 2), 1e-34), 1) == seed_estimate(values)


def test_satterthwaite_of_one_part_is_that_part_and_of_two_equal_ones_twice_the_freedom():
    assert satterthwaite([(4.0, 7), (0.0, 99)]) == (2.0, 7.0)
    assert satterthwaite([(2.0, 5), (2.0, 5)]) == (2.0, 10.0)


def test_what_images_do_to_both_rows_alike_is_no_doubt_about_their_difference():
    images = np.ones((6, 6)) * 0.01  # every run moves with the images in the same way
    one, other = {0: 0.50, 1: 0.52, 2: 0.51}, {0: 0.40, 1: 0.43, 2: 0.40}
    alike = difference(one, other, images, 50)
    assert alike == difference(one, other, np.zeros((6, 6)), 50)
    apart = np.kron(np.eye(2), np.ones((3, 3))) * 0.01
    assert difference(one, other, apart, 50).error > 10 * alike.error


def test_the_same_holds_for_rows_without_common_seeds():
    one, other = {0: 0.50, 1: 0.52, 2: 0.51}, {5: 0.40, 6: 0.43, 7: 0.44}
    alike = difference(one, other, np.ones((6, 6)) * 0.01, 50)
    assert alike.error == pytest.approx(difference(one, other, np.zeros((6, 6)), 50).error)


# Many comparisons.


def test_holm_agrees_with_its_definition():
    p = np.random.default_rng(0).uniform(0, 0.2, 7)
    adjusted = holm(p)
    for alpha in np.linspace(0.01, 0.99, 25):
        rejected, order = set(), np.argsort(p)
        for step, index in enumerate(order):
            if p[index] > alpha / (len(p) - step):
                break
            rejected.add(int(index))
        assert set(np.flatnonzero(adjusted <= alpha).tolist()) == rejected
    assert holm([]).shape == (0,)


def test_the_detectable_difference_is_found_with_the_stated_power():
    df, error = 4, 0.01
    found = detectable_difference([Estimate(0.0, error, df)])
    shifted = stats.t(df, loc=found, scale=error)
    assert shifted.sf(stats.t.ppf(0.975, df) * error) == pytest.approx(0.8)
    assert detectable_difference([Estimate(0.0, error, df)] * 3) > found
    assert detectable_difference([Estimate(0.5)]) is None


# Do the intervals hold what they promise?


def one_class(hits):
    """Per-image matrices (N, 2, 2) whose mean IoU is linear: the mean of hits / PIXELS / 2."""
    found = np.zeros((len(hits), 2, 2), np.int64)
    found[:, 0, 0], found[:, 0, 1] = hits, PIXELS - hits
    return found


def coverage(boards, seeds, seed_deviation, image_deviation=0.15, images=60, resamples=200):
    """Share of told seed intervals and of told combined ones that hold the truth."""
    rng, held, told = np.random.default_rng(seeds), np.zeros(2), np.zeros(2)
    for _ in range(boards):
        image = image_deviation * rng.normal(size=(1, images))
        accuracy = (
            0.5
            + seed_deviation * rng.normal(size=(seeds, 1))
            + image
            + 0.1 * rng.normal(size=(seeds, images))
        )
        hits = np.rint(PIXELS * accuracy).astype(int)
        replicates = np.stack([headline_replicates(one_class(h), "all", resamples) for h in hits])
        values = hits.mean(1) / PIXELS / 2
        these_images = (0.5 + image.mean()) / 2
        over_seeds = seed_estimate(values).interval
        both = combined_estimate(values, image_covariance(replicates, images), images).interval
        for which, (found, truth) in enumerate(((over_seeds, these_images), (both, 0.25))):
            if found[0] is not None:  # of two seeds there is none without the images' doubt
                told[which] += 1
                held[which] += found[0] <= truth <= found[1]
    return held / told.clip(1)


def test_both_intervals_cover_about_as_often_as_they_say():
    assert (abs(coverage(150, 3, 0.02) - 0.95) < 0.05).all()


def test_equal_rows_are_rarely_called_different():
    """Holm's promise: over 6 equal rows of 3 seeds, one false finding in 5 % of boards at most."""
    rng, rows, seeds, images, boards, found = np.random.default_rng(0), 6, 3, 60, 150, 0
    weights = resampling_weights(images, 200) / images
    for _ in range(boards):
        scores = 0.5 + 0.15 * rng.normal(size=images) + 0.02 * rng.normal(size=(rows, seeds, 1))
        scores = scores + 0.1 * rng.normal(size=(rows, seeds, images))
        replicates = (scores @ weights.T).reshape(rows * seeds, -1)
        covariance = image_covariance(replicates, images)
        p_values = []
        for one, other in itertools.combinations(range(rows), 2):
            both = [seeds * row + seed for row in (one, other) for seed in range(seeds)]
            means = [dict(enumerate(scores[row].mean(1))) for row in (one, other)]
            block = covariance[np.ix_(both, both)]
            p_values.append(difference(*means, block, images).p_value)
        found += (holm(p_values) < 0.05).any()
    assert found / boards < 0.09  # 0.05 and two standard errors


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("seed_deviation", [0.005, 0.02, 0.05])
@pytest.mark.parametrize("image_deviation", [0.05, 0.15])
def test_both_intervals_cover_between_93_and_97_percent(seeds, seed_deviation, image_deviation):
    over_seeds, both = coverage(2000, seeds, seed_deviation, image_deviation)
    assert 0.93 <= over_seeds <= 0.97
    assert 0.93 <= both <= 0.97


@pytest.mark.slow
def test_two_seeds_are_not_surer_than_they_may_be():
    assert coverage(2000, 2, 0.02, 0.05)[1] >= 0.93
