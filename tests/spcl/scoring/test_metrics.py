import numpy as np
import pytest

from spcl.scoring.metrics import class_center_distance, confusion_matrix, iou, mean_iou

CONFUSION = np.array([[3, 1, 0], [1, 4, 0], [0, 0, 0]])


def test_iou_of_a_known_matrix():
    values = iou(CONFUSION)
    assert values[:2] == pytest.approx([0.6, 2 / 3], abs=1e-8)
    assert np.isnan(values[2])


def test_mean_is_over_present_classes_and_says_how_many():
    value, count = mean_iou(CONFUSION)
    assert (value, count) == (pytest.approx(0.63333333, abs=1e-8), 2)
    # With the absent class as 0, as the authors' code has it:
    assert value * count / 3 == pytest.approx(0.42222222, abs=1e-8)


def test_mean_over_a_subset_of_classes():
    assert mean_iou(CONFUSION, [1, 2]) == (pytest.approx(2 / 3), 1)
    value, count = mean_iou(CONFUSION, [2])
    assert np.isnan(value) and count == 0


def test_class_that_is_only_predicted_scores_zero():
    assert iou(np.array([[3, 1], [0, 0]])).tolist() == [0.75, 0]


def test_confusion_matrix_equals_counting():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 4, (2, 6, 7)).astype(np.uint8)
    truth[0] = 255
    expected = np.zeros((4, 4), int)
    for t, p in zip(truth.flat, prediction.flat, strict=True):
        if t != 255:
            expected[t, p] += 1
    found = confusion_matrix(truth, prediction, 4)
    assert np.array_equal(found, expected) and found.dtype == np.int64


def test_matrices_of_parts_add_up_to_that_of_the_whole():
    truth, prediction = np.random.default_rng(1).integers(0, 4, (2, 6, 7))
    parts = [confusion_matrix(truth[i::2], prediction[i::2], 4) for i in (0, 1)]
    assert np.array_equal(sum(parts), confusion_matrix(truth, prediction, 4))


def test_ignored_truth_hides_any_prediction():
    assert confusion_matrix(np.array([255]), np.array([250]), 4).sum() == 0


@pytest.mark.parametrize(("truth", "prediction"), [([4], [0]), ([0], [255])])
def test_ids_out_of_range_are_refused(truth, prediction):
    with pytest.raises(ValueError, match=f"below 4, found {max(truth + prediction)}"):
        confusion_matrix(np.array(truth), np.array(prediction), 4)


def test_center_distance_of_a_known_layout():
    means = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    features = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [9.0, 9.0]])
    found = class_center_distance(features, np.array([0, 0, 0, 0, 255]), means)
    assert found[0] == pytest.approx(0.15625, abs=1e-12)
    assert np.isnan(found[1:]).all()


def test_center_distance_leaves_out_classes_without_a_mean():
    means = np.array([[0.0, 0.0], [2.0, 0.0], [np.nan, np.nan]])
    found = class_center_distance(np.array([[1.0, 0.0]]), np.array([0]), means)
    assert found[0] == 0.25
