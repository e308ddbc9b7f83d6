import numpy as np
import pytest
from scipy import stats

from spcl.boards.tables import ccd_table, interval, run_table, seeds_table, with_spread
from spcl.configuration.chosen_by import ChosenBy

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


@pytest.mark.parametrize(
    ("values", "why"),
    [([3.0], "one seed"), ([3.0, 4.0], "two seeds"), ([3.0] * 3, "equal seeds")],
)
def test_where_seeds_say_nothing_there_is_no_interval_and_it_is_said(values, why):
    assert interval(values) == (np.mean(values), None)
    assert with_spread(values, "+") == f"+{np.mean(values):.1f} (no interval: {why})"
    runs = [scored(value / 100) for value in values]
    assert f"no interval: {why}" in seeds_table(runs)


def scored(value):
    means = {"mIoU": {"value": value, "classes": 1}}
    return SUMMARY | {"table": [SUMMARY["table"][0] | {"means": means}]}


def test_three_seeds_have_an_interval():
    assert with_spread([40, 42, 44]) == "42.0 ± 5.0"
    assert "42.0 ± 5.0  " in seeds_table([scored(v / 100) for v in (40, 42, 44)])


def test_a_table_ends_with_the_search_that_has_chosen_the_settings():
    by = ChosenBy(search="s", objective="few_label:20", label_budget=20)
    said = "settings chosen by search s: few_label:20, 20 labelled target images"
    for summary in (SUMMARY, SUMMARY | {"table": []}):
        assert run_table(summary, by).splitlines()[-1] == said
        assert run_table(summary, ChosenBy()) == run_table(summary)


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
