import numpy as np
import pytest

from spcl.data.pseudo_label import (
    CONFIDENCE_LEVELS,
    apply_thresholds,
    class_thresholds,
    confidence_histogram,
    quantize,
)

TOP = CONFIDENCE_LEVELS - 1
LEVEL = 2 / TOP  # what two roundings down may cost


def threshold(confidences, **options):
    """Of one class, in [0, 1]."""
    labels = np.zeros(len(confidences), np.uint8)
    histogram = confidence_histogram(labels, quantize(np.array(confidences)), 1)
    return class_thresholds(histogram, **options)[0] / TOP


@pytest.mark.parametrize(
    ("confidences", "true", "lower", "ref_index"),
    [
        ([0.2, 0.6, 0.95, 0.97], 0.775, 0.6, 0.9),
        ([0.3, 0.5, 0.7], 0.5, 0.5, 0.7),
        ([0.4, 0.6], 0.5, 0.4, 0.6),
        ([0.4], 0.4, 0.4, 0.4),
        ([0.91, 0.95, 0.99], 0.9, 0.9, 0.9),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 0.3, 0.3, 0.3),
        ([], 0, 0, 0),
    ],
)
def test_three_medians(confidences, true, lower, ref_index):
    found = [threshold(confidences, median=m) for m in ("true", "lower", "ref_index")]
    assert found == pytest.approx([true, lower, ref_index], abs=LEVEL)


def test_positions_of_the_authors_median():
    positions = []
    for n in range(1, 7):
        values = [0.1 * (i + 1) for i in range(n)]
        found = threshold(values, median="ref_index")
        positions.append(int(np.abs(np.array(values) - found).argmin()))
    assert positions == [0, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 100_001])
@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_histogram_equals_sorting(n, quantile):
    drawn = quantize(np.random.default_rng(n).beta(2, 2, n))
    histogram = confidence_histogram(np.zeros(n, np.uint8), drawn, 1)
    for median, method in (("true", "linear"), ("lower", "lower")):
        found = class_thresholds(histogram, cap=1.0, quantile=quantile, median=median)[0]
        assert found == pytest.approx(np.quantile(drawn, quantile, method=method), abs=1e-9)
    index = min(round(n * quantile), n - 1)
    found = class_thresholds(histogram, cap=1.0, quantile=quantile, median="ref_index")[0]
    assert found == np.sort(drawn)[index]


def test_quantisation_moves_the_median_by_less_than_a_level():
    drawn = np.random.default_rng(0).beta(2, 2, 100_001)
    assert abs(threshold(drawn) - np.median(drawn)) < 2e-5


def test_histograms_of_shards_add_up_in_any_order():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    confidences = rng.integers(0, CONFIDENCE_LEVELS, (4, 5, 6)).astype(np.uint16)
    parts = [confidence_histogram(labels[i], confidences[i], 3) for i in (2, 0, 3, 1)]
    whole = confidence_histogram(labels, confidences, 3)
    assert np.array_equal(sum(parts), whole)
    assert whole.shape == (3, CONFIDENCE_LEVELS) and whole.dtype == np.int64


def test_cap_is_the_integer_below():
    assert threshold([1.0], cap=0.9) * TOP == 58981
    assert threshold([1.0], cap=1.0) * TOP == TOP


def test_each_class_has_its_own_threshold_and_an_unseen_one_none():
    labels = np.array([0, 0, 2], np.uint8)
    histogram = confidence_histogram(labels, np.array([10, 20, 40_000], np.uint16), 3)
    assert class_thresholds(histogram).tolist() == [15, 0, 40_000]


def test_confidences_at_the_threshold_are_kept():
    labels = np.array([[0, 0, 1], [1, 1, 255]], np.uint8)
    confidences = np.array([[14, 15, 7], [8, 9, 0]], np.uint16)
    kept = apply_thresholds(labels, confidences, np.array([15.0, 7.5]))
    assert kept.tolist() == [[255, 0, 255], [1, 1, 255]]
    assert kept.dtype == np.uint8


def test_quantisation_rounds_down():
    assert quantize(np.array([0.0, 0.5, 1 - 1e-9, 1.0])).tolist() == [0, 32767, 65534, 65535]
    # A float32 confidence is multiplied in float32, here and on any device.
    assert quantize(np.float32(0.93623955)) == int(np.float32(0.93623955) * np.float32(65535))


@pytest.mark.parametrize(("divisor", "expected"), [(1.0, 0.93623955), (1.8, 0.77086523)])
def test_sharper_logits_meet_the_cap_more_often(divisor, expected):
    exponentials = np.exp(np.array([4.0, 1.0, 0.0]) / divisor)
    top = exponentials.max() / exponentials.sum()
    assert top == pytest.approx(expected, abs=1e-7)
    assert (threshold([top]) == pytest.approx(0.9, abs=LEVEL)) == (divisor == 1.0)


def test_unknown_median_is_refused():
    with pytest.raises(ValueError, match="upper"):
        class_thresholds(np.zeros((1, CONFIDENCE_LEVELS), np.int64), median="upper")
