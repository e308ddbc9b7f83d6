from collections import Counter
from dataclasses import replace

import pytest

from spcl.boards.published import TABLES, published_ablations, published_results

HEADER = (TABLES / "results.csv").read_text().splitlines()[0]


def test_every_row_of_the_tables_is_read():
    rows = published_results()
    assert Counter(row.benchmark for row in rows) == {"gta5": 30, "synscapes": 4, "synthia": 29}
    assert len(published_ablations()) == 22


def test_values_are_those_printed():
    (row,) = [
        row
        for row in published_results()
        if (row.benchmark, row.backbone, row.method) == ("synthia", "resnet101", "SPCL")
    ]
    assert (row.miou, row.miou_13, row.miou_tail) == (47.2, 54.4, None)
    assert row.iou["traffic light"] == 12.7 and row.iou["traffic sign"] == 12.1
    assert row.iou["terrain"] is None and row.iou["bicycle"] == 45.7


def written(tmp_path, benchmark, iou, means):
    path = tmp_path / "results.csv"
    path.write_text("\n".join([HEADER, ",".join([benchmark, "b", "m", "s", *iou, *means])]))
    return published_results(path)[0]


@pytest.mark.parametrize(("stated", "flagged"), [("50.0", 0), ("50.1", 1), ("49.9", 1)])
def test_a_stated_mean_is_flagged_where_its_columns_give_another(tmp_path, stated, flagged):
    row = written(tmp_path, "gta5", ["50.0"] * 19, [stated, "", ""])
    assert len(row.flags) == flagged


def test_rounding_alone_is_not_flagged(tmp_path):
    iou = ["50.0"] * 18 + ["51.1"]  # their mean is 50.058
    assert written(tmp_path, "gta5", iou, ["50.0", "", ""]).flags == ()
    assert written(tmp_path, "gta5", ["50.0"] * 18 + ["51.2"], ["50.0", "", ""]).flags != ()


def test_each_mean_is_taken_over_its_own_classes(tmp_path):
    absent = [9, 14, 16]
    iou = ["" if k in absent else "10.0" if k in (3, 4, 5) else "42.0" for k in range(19)]
    row = written(tmp_path, "synthia", iou, ["36.0", "42.0", ""])  # 16 classes, and 13
    assert row.flags == ()
    assert len(written(tmp_path, "synthia", iou, ["42.0", "36.0", ""]).flags) == 2


def test_a_mean_with_an_empty_column_cannot_be_checked(tmp_path):
    iou = ["" if k in (3, 4, 5, 9, 14, 16) else "42.0" for k in range(19)]
    assert written(tmp_path, "synthia", iou, ["10.0", "42.0", ""]).flags == ()


def test_the_shipped_rows_that_disagree_with_themselves_are_known():
    flagged = {(r.benchmark, r.backbone, r.method) for r in published_results() if r.flags}
    assert flagged == {
        ("gta5", "vgg16", "APODA"),
        ("gta5", "resnet101", "IntraDA"),
        ("gta5", "resnet101", "CAG-UDA"),
        ("synthia", "vgg16", "CBST"),
        ("synthia", "vgg16", "SPCL"),
        ("synthia", "resnet101", "FADA"),
        ("synthia", "resnet101", "CCM"),
        ("synthia", "resnet101", "PLCA"),
    }


def test_inferred_ablations_say_so():
    inferred = [row.value for row in published_ablations() if row.inferred]
    assert inferred == ["source contrast (inferred)", "self-training (inferred)"] * 2
    assert not replace(published_ablations()[0], note="").inferred
