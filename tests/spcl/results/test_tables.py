import numpy as np
import pytest
from scipy import stats

from spcl.results.tables import ccd_table, interval, run_table, seeds_table

SUMMARY = {
    "classes": ["road", "sky"],
    "protocol": "cityscapes19",
    "images": 3,
    "selection": "last",
    "table": [
        {
            "title": "warm-up",
            "iou": [0.5, None],
            "means": {"mIoU": {"value": 0.5, "classes": 1}},
        }
    ],
}


def test_the_interval_is_scipys_t_interval():
    values = [3.0, 4.0, 8.0, 2.5]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_one_seed_has_no_interval():
    assert interval([3.0]) == (3.0, None)
    assert "no interval: one seed" in seeds_table([SUMMARY])


def test_a_class_without_pixels_is_a_dash_and_the_number_averaged_is_named():
    text = run_table(SUMMARY)
    assert [line.split()[-1] for line in text.splitlines()[2:4]] == ["50.0", "-"]
    assert "mIoU over 1 classes" in text and "checkpoint: last" in text


def test_notes_end_the_table():
    assert run_table(SUMMARY | {"notes": ["x has no sky."]}).splitlines()[-1] == "x has no sky."


def test_a_run_without_evaluation_has_no_numbers_to_show():
    empty = SUMMARY | {"table": []}
    assert run_table(empty) == seeds_table([empty, empty])
    assert run_table(empty) == "not evaluated: no labelled evaluation split"


def test_class_centre_distances_end_with_the_mean_of_those_found():
    rows = [line.split() for line in ccd_table({"road": 0.5, "sky": None, "car": 1.0}).splitlines()]
    assert rows[1:] == [["road", "0.500"], ["sky", "-"], ["car", "1.000"], ["mean", "0.750"]]
