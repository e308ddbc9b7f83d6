from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spcl.boards.columns import detectable, interval
from spcl.boards.published import Published
from spcl.boards.ranking import make_boards
from spcl.boards.rows import TARGET_LABELS
from spcl.boards.runs import Run
from spcl.scoring.statistics import RESAMPLES
from spcl.store.run_folder import write_confusions

STEADY = np.full(RESAMPLES, 0.5, np.float32)  # replicates of a run that images do not move
RUN = Run(
    benchmark="streets",
    protocol="all",
    method="spcl",
    stage="spcl",
    backbone="tiny",
    selection="last",
    label_budget=0,
    seed=0,
    eval_size=(64, 128),
    classes=("road", "sky"),
    target="streets/real/val",
    target_fingerprint="f" * 64,
    settings="s",
    iou=(0.5, None),
    means={"mIoU": 0.5},
    confusions=Path("/nowhere.parquet"),
    device_seconds=1800.0,
    date="2026-11-21",
    code="c0",
    folder="/runs/a",
    source="run",
    images=40,
    sample_ids="ids",
    replicates=STEADY,
)
PRINTED = Published("gta5", "vgg16", "FADA", "Table 1", {"road": 92.3}, 43.8, None, 24.6, ())


def row(name, scores, **changes):
    """Runs of seeds 0, 1, ... with these headline scores."""
    base = replace(RUN, settings=name, method=name, **changes)
    return [
        replace(base, seed=seed, means={"mIoU": score}, folder=f"/runs/{name}-{seed}")
        for seed, score in enumerate(scores)
    ]


GOOD = [0.80, 0.81, 0.79, 0.80]
SAME = [0.79, 0.80, 0.81, 0.795]  # as good as can be told
BAD = [0.30, 0.32, 0.29, 0.31]


def ranks(runs, published=()):
    (board,) = make_boards(runs, published)
    return {r.method: r.rank for r in board.rows}


# Ranks.


def test_rows_that_cannot_be_told_apart_share_a_rank_and_the_next_counts_both():
    assert ranks(row("a", GOOD) + row("b", SAME) + row("c", BAD)) == {"a": 1, "b": 1, "c": 3}


def test_the_higher_mean_alone_gives_no_better_rank():
    noisy = [0.2, 0.9, 0.4, 0.7]
    assert ranks(row("a", noisy) + row("b", [0.5, 0.3, 0.8, 0.55])) == {"a": 1, "b": 1}


def test_differences_are_paired_over_seeds():
    seeds = np.array([0.1, 0.5, 0.9, 0.3])  # how a seed does, for every method
    paired = row("a", seeds + [0.020, 0.021, 0.019, 0.020]) + row("b", seeds)
    assert ranks(paired) == {"a": 1, "b": 2}
    apart = [replace(run, seed=run.seed + 10) if run.method == "b" else run for run in paired]
    assert ranks(apart) == {"a": 1, "b": 1}


def test_images_that_move_one_row_alone_leave_its_difference_in_doubt():
    rng = np.random.default_rng(0)
    shaken = (0.5 + 0.2 * rng.normal(size=RESAMPLES)).astype(np.float32)
    certain = row("a", [0.60, 0.61, 0.59, 0.60]) + row("b", [0.50, 0.51, 0.49, 0.495])
    assert ranks(certain) == {"a": 1, "b": 2}
    alone = [replace(r, replicates=shaken) if r.method == "b" else r for r in certain]
    assert ranks(alone) == {"a": 1, "b": 1}
    assert ranks([replace(r, replicates=shaken) for r in certain]) == {"a": 1, "b": 2}


def test_more_rows_ask_for_stronger_evidence():
    weak = row("a", [0.52, 0.55, 0.53, 0.54]) + row("b", [0.50, 0.50, 0.50, 0.52])
    assert ranks(weak) == {"a": 1, "b": 2}  # p = 0.015: enough for one comparison, not for 28
    others = [run for n in range(6) for run in row(f"x{n}", [0.4, 0.6, 0.52 + n / 99, 0.5])]
    assert ranks(weak + others)["b"] == 1


def test_a_row_of_one_seed_has_no_interval_and_no_rank_and_says_so():
    (board,) = make_boards(row("a", GOOD) + row("b", [0.1]), ())
    one = next(r for r in board.rows if r.method == "b")
    assert (one.rank, one.low, one.high) == (None, None, None)
    assert "one seed" in one.note
    assert any("1 row of one seed" in line for line in board.kept_apart)


def without_matrices(runs):
    return [replace(run, replicates=None) for run in runs]


def shaken(runs, seed=0):
    """With matrices: images move every run of these alike."""
    moved = 0.02 * np.random.default_rng(seed).normal(size=RESAMPLES)
    return [replace(r, replicates=(r.means["mIoU"] + moved).astype(np.float32)) for r in runs]


def test_two_seeds_without_matrices_have_no_interval_no_test_and_no_rank():
    """Equal differences gave p = 1.8e-15, hence ranks 1 and 2."""
    rows = row("a", [0.8, 0.7]) + row("b", [0.6, 0.5]) + row("c", GOOD)
    (board,) = make_boards(without_matrices(rows), ())
    found = {r.method: r for r in board.rows}
    for name in "ab":
        one = found[name]
        assert (one.rank, one.low, one.high, one.seed_interval) == (None, None, None, None)
        assert interval(one) == "none: two seeds"
        assert one.note.startswith("two seeds without matrices: no interval over seeds, not ranked")
    assert found["c"].rank == 1 and board.detectable is None
    (line,) = board.kept_apart
    assert line.startswith("2 rows of two seeds without matrices: not ranked")


def test_two_seeds_with_matrices_are_compared_unless_those_say_nothing():
    both = shaken(row("a", [0.8, 0.7])) + shaken(row("b", [0.5, 0.45]), 1)
    (board,) = make_boards(both, ())
    assert {r.method: r.rank for r in board.rows}.keys() == {"a", "b"}
    assert all(r.rank and r.low < r.mean < r.high for r in board.rows)
    assert all(r.seed_interval is None and r.image_interval for r in board.rows)
    # The images of one row alone are no doubt about its difference from another one's.
    half = shaken(row("a", [0.8, 0.7])) + without_matrices(row("b", [0.6, 0.5, 0.51]))
    (board,) = make_boards(half, ())
    assert [r.rank for r in board.rows] == [1, 1] and board.detectable is None
    # Images that move both rows alike leave nothing but two equal differences.
    alike = shaken(row("a", [0.8, 0.7])) + shaken(row("b", [0.6, 0.5]))
    assert ranks(alike) == {"a": 1, "b": 1}


def test_a_pair_that_cannot_be_tested_asks_for_no_stronger_evidence():
    weak = row("a", [0.52, 0.55, 0.53, 0.54]) + row("b", [0.50, 0.50, 0.50, 0.52])
    lower = [[score - 0.2 * n for score in (0.52, 0.55, 0.53, 0.54)] for n in (1, 2)]
    rows = weak + row("c", lower[0]) + row("d", lower[1])  # a, c and d differ by the same always
    assert ranks(rows) == {"a": 1, "b": 2, "c": 2, "d": 2}


def test_equal_seeds_are_no_certainty():
    rows = row("a", [0.8, 0.8, 0.8]) + row("b", [0.5, 0.5, 0.5])
    (board,) = make_boards(without_matrices(rows), ())
    assert [(r.rank, interval(r)) for r in board.rows] == [(None, "none: equal seeds")] * 2
    steady = row("a", GOOD) + row("b", [score - 0.2 for score in GOOD])
    assert ranks(steady) == {"a": 1, "b": 1}  # all differences are 0.2, to rounding
    assert ranks(shaken(row("a", [0.8] * 3)) + shaken(row("b", [0.5] * 3), 1)) == {"a": 1, "b": 2}


def test_the_detectable_difference_separates_what_is_ranked_from_what_is_not():
    (board,) = make_boards(row("a", GOOD) + row("b", BAD), ())
    assert 0 < board.detectable < 0.5
    (alone,) = make_boards(row("a", GOOD), ())
    assert alone.detectable is None


def test_the_detectable_difference_is_that_of_the_group_with_most_comparisons():
    singles = [run for n in range(4) for run in row(f"s{n}", [0.5], eval_size=(32, 64))]
    both = make_boards(row("a", GOOD) + row("b", BAD) + singles, ())[0]
    assert both.detectable == make_boards(row("a", GOOD) + row("b", BAD), ())[0].detectable
    assert "in the group with the most" in detectable(both)
    assert "No two rows" in detectable(make_boards(row("a", GOOD) + singles, ())[0])


# The linter.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eval_size": (32, 64)}, "evaluation size 32x64, not 64x128"),
        ({"classes": ("road", "car")}, "classes 2 classes"),
        ({"target_fingerprint": "0" * 64}, "target images streets/real/val"),
        ({"sample_ids": "half"}, "target images streets/real/val"),
        ({"selection": "target_oracle"}, "selected with target labels"),
        ({"selection": "few_label:8", "label_budget": 8}, "selected with target labels"),
        ({"selection": "target_oracle:best"}, "selected with target labels"),
        ({"label_budget": 1}, "selected with target labels"),
    ],
)
def test_rows_are_not_ranked_across(change, said):
    runs = row("a", GOOD) + row("b", SAME) + row("c", BAD, **change)
    assert ranks(runs) == {"a": 1, "b": 1, "c": 1}
    (board,) = make_boards(runs, ())
    (line,) = board.kept_apart
    assert line.startswith("1 row not ranked with 2 others") and said in line
    assert make_boards(runs[::-1], ())[0].kept_apart == [line]


def test_without_a_reason_nothing_is_kept_apart():
    (board,) = make_boards(row("a", GOOD) + row("c", BAD, selection="label_free:infomax"), ())
    assert board.kept_apart == [] and [r.rank for r in board.rows] == [1, 2]


def test_other_protocols_and_benchmarks_are_boards_of_their_own_and_say_so():
    full = {"protocol": "syn16_full"}
    boards = make_boards(row("a", GOOD) + row("b", BAD, **full), ())
    assert [(b.protocol, [r.rank for r in b.rows]) for b in boards] == [
        ("all", [1]),
        ("syn16_full", [1]),
    ]
    assert boards[0].kept_apart == ["rows of protocol syn16_full are on a board of their own"]
    apart = make_boards(row("a", GOOD) + row("b", BAD, benchmark="gta5"), ())
    assert [b.kept_apart for b in apart] == [[], []]


def test_a_row_selected_with_target_labels_wears_the_badge_and_others_do_not():
    runs = row("a", GOOD) + row("b", BAD, selection="target_oracle")
    badges = {r.method: r.badges for r in make_boards(runs, ())[0].rows}
    assert badges == {"a": ("last",), "b": ("target_oracle", TARGET_LABELS)}


# Rows.


def test_a_row_is_the_mean_over_its_seeds():
    runs = row("a", [0.4, 0.6, 0.5])
    runs[1] = replace(runs[1], iou=(0.8, 0.2), code="c1", date="2026-11-22")
    (found,) = make_boards(runs, ())[0].rows
    assert found.mean == pytest.approx(0.5) and found.seeds == (0, 1, 2)
    assert found.means == pytest.approx({"mIoU": 0.5})
    assert found.iou == pytest.approx((0.6, 0.2)) and found.device_hours == 1.5
    assert (found.code, found.date) == (("c0", "c1"), "2026-11-22")
    assert found.low < 0.5 < found.high


def test_other_settings_selection_or_backbone_are_another_row():
    for change in ({"settings": "t"}, {"selection": "source_val"}, {"backbone": "vgg16"}):
        runs = row("a", GOOD) + [replace(run, **change) for run in row("a", SAME)]
        assert len(make_boards(runs, ())[0].rows) == 2


def test_rows_of_one_name_tell_their_settings():
    runs = row("a", GOOD) + [replace(run, settings="t") for run in row("a", SAME)]
    notes = [r.note for r in make_boards(runs, ())[0].rows]
    assert all(note.startswith("settings ") for note in notes) and len(set(notes)) == 2


def test_rows_of_one_name_tell_what_is_set_otherwise_in_them(tmp_path):
    runs = row("a", GOOD) + [replace(run, settings="t") for run in row("a", SAME)]
    for number, run in enumerate(runs):
        folder = tmp_path / f"{run.settings}{run.seed}"
        folder.mkdir()
        new = f"new: {number}" if number < 4 else ""  # a setting of a newer version
        text = f"seed: {run.seed}\nspcl: {{sync: {number < 4}, absent: keep}}\n{new}"
        (folder / "config.yaml").write_text(text.lower())
        runs[number] = replace(run, folder=str(folder))
    rows = make_boards(runs, ())[0].rows
    assert {r.settings for r in rows} == {"spcl.sync=true", "spcl.sync=false"}
    assert all(r.note == f"settings {r.key}: {r.settings}" for r in rows)
    unknown = [replace(run, settings="u", folder="/nowhere") for run in row("a", BAD)]
    rows = make_boards(runs + unknown, ())[0].rows
    assert {r.settings for r in rows} == {"spcl.sync=true", "spcl.sync=false", ""}
    (alone,) = make_boards(runs[:4], ())[0].rows
    assert alone.settings == alone.note == ""


def test_of_two_runs_of_a_seed_the_latest_counts_and_a_disagreement_is_told():
    old, new = row("a", [0.2]) + row("a", [0.9], date="2026-11-30")
    (found,) = make_boards([new, old], ())[0].rows
    assert (found.mean, found.seeds) == (0.9, (0,)) and "seed 0 differ" in found.note
    morning, noon = replace(old, date="2026-11-21T08:00:00"), replace(new, date="2026-11-21T12:00")
    (found,) = make_boards([noon, replace(morning, folder="/runs/z")], ())[0].rows
    assert (found.mean, found.date) == (0.9, "2026-11-21")
    (same,) = make_boards([old, replace(old, folder="/runs/copy")], ())[0].rows
    assert "differ" not in same.note


def test_unknown_costs_are_not_counted_as_none():
    runs = row("a", [0.4, 0.6])
    runs[0] = replace(runs[0], device_seconds=None)
    assert make_boards(runs, ())[0].rows[0].device_hours is None


def test_an_earlier_stage_is_named_beside_its_method():
    runs = row("spcl", GOOD) + row("spcl", BAD, stage="warm-up", final=False)
    assert [r.method for r in make_boards(runs, ())[0].rows] == ["spcl", "spcl: warm-up"]
    shorter = [replace(run, final=True) for run in runs[-1:]]  # a recipe that ends with the warm-up
    assert [r.method for r in make_boards(runs + shorter, ())[0].rows] == ["spcl", "spcl: warm-up"]
    assert make_boards(shorter, ())[0].rows[0].method == "spcl"


def test_classes_stand_in_the_order_of_the_largest_set():
    few = row("a", GOOD, classes=("car", "road"), iou=(0.1, 0.2))
    many = row("b", GOOD, classes=("road", "sky", "car"), iou=(0.3, 0.4, 0.5))
    (board,) = make_boards(few + many, ())
    assert board.classes == ("road", "sky", "car")
    assert {r.method: r.iou for r in board.rows}["a"] == pytest.approx((0.2, None, 0.1))


def test_matrices_are_read_where_a_run_comes_without_its_replicates(tmp_path):
    path = tmp_path / "a.parquet"
    write_confusions(path, ["x", "y"], np.arange(8).reshape(2, 2, 2))
    runs = [replace(r, confusions=path, replicates=None) for r in row("a", GOOD)]
    (found,) = make_boards(runs, ())[0].rows
    assert found.image_interval[0] < found.image_interval[1]


def test_without_matrices_the_interval_is_over_seeds_alone_and_says_so():
    (found,) = make_boards([replace(r, replicates=None) for r in row("a", GOOD)], ())[0].rows
    assert (found.low, found.high) == found.seed_interval and "no per-image" in found.note


# Published rows.


def test_published_rows_stand_in_order_of_value_without_a_rank():
    runs = row("a", [0.5, 0.51, 0.505], benchmark="gta5", protocol="cityscapes19")
    runs += row("b", [0.30, 0.31, 0.31], benchmark="gta5", protocol="cityscapes19")
    (board,) = make_boards(runs, [PRINTED])
    assert [(r.method, r.published, r.rank) for r in board.rows] == [
        ("a", False, 1),
        ("FADA", True, None),
        ("b", False, 2),
    ]
    printed = board.rows[1]
    assert printed.mean == pytest.approx(0.438) and printed.note == "Table 1"
    assert printed.iou[0] == pytest.approx(0.923) and "published" in printed.badges


def test_a_published_mean_that_disagrees_is_marked():
    (board,) = make_boards([], [replace(PRINTED, flags=("mIoU is stated as 1",))])
    assert "mean disagrees" in board.rows[0].badges and "stated as 1" in board.rows[0].note


def test_a_published_row_without_the_headline_comes_last():
    thin = replace(PRINTED, benchmark="synthia", method="CLAN", miou=None, miou_13=99.0)
    (board,) = make_boards([], [thin, replace(PRINTED, benchmark="synthia")])
    assert [(r.method, r.mean is None) for r in board.rows] == [("FADA", False), ("CLAN", True)]
    assert board.protocol == "syn16_masked"


def names(runs):
    (board,) = make_boards(runs)
    return [r.method for r in board.rows]


def test_a_row_says_whose_switches_its_method_has():
    ours = [replace(RUN, seed=seed) for seed in (0, 1)]
    official = [replace(run, settings="o", compat="official") for run in ours]
    assert sorted(names(ours + official)) == ["spcl", "spcl (official)"]
    warm = [replace(run, stage="adversarial", final=False) for run in official]
    assert names(warm) == ["spcl (official): adversarial"]


def test_a_stage_that_the_switches_do_not_touch_is_ours():
    """It has ours' settings, so it is one row."""
    shared = [RUN, replace(RUN, seed=1, compat="official")]
    assert names(shared) == ["spcl"]
