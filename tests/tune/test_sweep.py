"""`python tune/sweep.py`: sweep files, who makes which stage, tables, and what kills change."""

import csv
import dataclasses
import io
import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from clusters import environment, wait_until
from conftest import MINI

from ray_jobs import piece
from spcl.chosen_by import ChosenBy
from spcl.config import load
from spcl.errors import ConfigError
from spcl.layers import CONFIGS
from spcl.lease import Lease
from spcl.protocols import PROTOCOLS
from spcl.results.aggregate import read_runs
from spcl.results.ranking import make_boards
from spcl.results.store import RunFolder, read_confusions
from spcl.results.tables import interval
from spcl.settings import digest, flatten
from tune import sweep, sweep_estimate, sweep_jobs
from tune.sweep_file import read_sweep
from tune.sweep_grid import Sweep, resolve
from tune.sweep_live import Live
from tune.sweep_schedule import Schedule
from tune.sweep_table import as_csv, as_html, as_markdown, as_text, make_table

COMPONENTS = CONFIGS / "sweeps/components.yaml"
#: Student's t for 95 % and 2 degrees of freedom, from printed tables.
T_TWO = 4.302653
TWO_ROWS = {
    "title": "Two",
    "rows": [
        {"name": "baseline", "settings": {"stages": ["adversarial"]}},
        {"name": "adapted", "settings": {"stages": ["adversarial", "spcl"]}},
    ],
}


def written(folder: Path, values: dict, name: str = "two.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values, allow_unicode=True))
    return path


def resolved(path: Path, data: Path, storage: Path, seeds=(0,), scale="full", *more: str) -> Sweep:
    settings = [*MINI, *more]
    return resolve(path, None, seeds, scale, settings, data, storage, lambda text: None)


def call(path: Path, data: Path, storage: Path, *more: object) -> list[str]:
    places = ["--data", data, "--storage", storage, "--name", "s", "--workers", 0]
    return [str(part) for part in (path, *places, *more, *MINI)]


def artefacts(storage: Path) -> dict[str, int]:
    """Time of the last change of every artefact by its folder's name."""
    return {p.name: p.stat().st_mtime_ns for p in (storage / "artefacts").iterdir()}


def run_folders(storage: Path) -> list[str]:
    return sorted(path.parent.name for path in storage.glob("*/config.yaml"))


# Sweep files.


def test_the_component_table_is_the_published_one():
    rows = {row.name: row for row in read_sweep(COMPONENTS).rows}
    table = {
        # stages, source contrast, target contrast; gta5, synthia over 16 and 13; inferred
        "baseline": (["adversarial"], None, None, 41.4, 39.5, 45.9, False),
        "source contrast": (["adversarial", "spcl"], None, False, 44.5, 42.3, 49.1, True),
        "self-training": (["adversarial", "self_training"], None, None, 43.9, 40.8, 47.5, True),
        "both contrasts": (["adversarial", "spcl"], None, None, 49.2, 45.8, 52.6, False),
        "all": (None, None, None, 52.1, 47.2, 54.4, False),
    }
    assert list(rows) == list(table)
    for name, (stages, source, target, gta5, synthia, thirteen, inferred) in table.items():
        row = rows[name]
        assert row.settings.get("stages") == stages
        assert row.settings.get("spcl.source_contrast") is source
        assert row.settings.get("spcl.target_contrast") is target
        assert row.published == {
            "gta5": {"mIoU": gta5},
            "synthia": {"mIoU": synthia, "mIoU-13": thirteen},
        }
        assert row.inferred is inferred


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("components", "components"),
        ("alpha", "prototype_momentum"),
        ("lambda", "contrast_weight"),
    ],
)
def test_published_values_are_those_of_the_shipped_table(name, factor):
    path = CONFIGS.parent / "spcl/results/published/ablations.csv"
    with open(path, encoding="utf-8") as file:
        records = [r for r in csv.DictReader(file) if r["factor"] == factor]
    expected = []
    for record in records:
        means = {"mIoU": float(record["miou"])}
        if record["miou_13"]:
            means["mIoU-13"] = float(record["miou_13"])
        value = record["value"].removesuffix(" (inferred)")
        expected.append((record["benchmark"], value, means, "inferred" in record["note"]))
    found = []
    for benchmark in dict.fromkeys(record["benchmark"] for record in records):
        for row in read_sweep(CONFIGS / f"sweeps/{name}.yaml").rows:
            given = row.settings.get(f"spcl.{factor}", row.name)
            found.append((benchmark, str(given), dict(row.published[benchmark]), row.inferred))
    assert found == expected


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("benchmark", ["gta5", "streets"])
def test_every_shipped_row_is_a_configuration(path, benchmark):
    made = read_sweep(path)
    for row in made.rows:
        settings = [f"{key}={json.dumps(value)}" for key, value in row.settings.items()]
        load(benchmark, made.method, None, settings)
    head = path.read_text().split("\ntitle:")[0]
    assert "2111.12358" in head and f"python tune/sweep.py configs/sweeps/{path.name}" in head


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_published_means_are_those_that_their_benchmark_is_scored_by(path):
    """Else a published value would stand beside no value of ours."""
    for row in read_sweep(path).rows:
        for benchmark, means in row.published.items():
            protocol = PROTOCOLS[load(benchmark).evaluation.protocol]
            assert means.keys() <= protocol.means.keys()


def test_each_switch_differs_from_the_default_in_itself_alone():
    rows = read_sweep(CONFIGS / "sweeps/switches.yaml").rows
    assert rows[0].settings == {}
    default = flatten(load("gta5", "spcl").as_dict())
    official = flatten(load("gta5", "spcl", None, ["compat=official"]).as_dict())
    differing = {key for key in default if default[key] != official[key]} - {"compat"}
    assert {key for row in rows for key in row.settings} == differing
    for row in rows[1:]:
        assert all(official[key] == value for key, value in row.settings.items())
        assert {key.rpartition(".")[2] for key in row.settings} >= {row.name.partition("=")[0]}


def test_a_grid_is_every_combination_and_the_last_setting_varies_fastest(tmp_path):
    grid = {"spcl": {"temperature": [1.0, 2.0]}, "spcl.absent": ["keep", "decay"]}
    rows = read_sweep(written(tmp_path, {"grid": grid})).rows
    pairs = [(1.0, "keep"), (1.0, "decay"), (2.0, "keep"), (2.0, "decay")]
    assert [tuple(row.settings.values()) for row in rows] == pairs
    assert rows[1].name == 'spcl.temperature=1.0, spcl.absent="decay"'


def test_a_grid_multiplies_rows_and_drops_their_published_values(tmp_path):
    row = {"name": "a", "settings": {"spcl.steps": 3}, "published": {"gta5": {"mIoU": 50.0}}}
    rows = read_sweep(written(tmp_path, {"rows": [row], "grid": {"spcl.absent": ["keep"]}})).rows
    assert [row.settings for row in rows] == [{"spcl.steps": 3, "spcl.absent": "keep"}]
    assert rows[0].published == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"row": []}, "did you mean 'rows'"),
        ({"rows": [{"name": "a", "setting": {}}]}, "did you mean 'rows.settings'"),
        ({"rows": [{"settings": {}}]}, "every row must have a name"),
        ({"rows": [{"name": "a"}, {"name": "a"}]}, "'a' stands twice"),
        ({"rows": "a"}, "rows must be a list"),
        ({}, "a sweep needs rows"),
        ({"grid": {"spcl.absent": "keep"}}, "grid.spcl.absent must be a list"),
        ({"columns": ["x"], "rows": [{"name": "a", "marks": ["y"]}]}, "mark 'y' is unknown"),
        ({"rows": [{"name": "a"}], "reference": "b"}, "reference 'b' is unknown"),
        ({"rows": [{"name": "a", "published": {"gta": {}}}]}, "did you mean 'gta5'"),
        ({"rows": [{"name": "a", "published": {"gta5": {"mIoU": "x"}}}]}, "must be a number"),
        ({"rows": [{"name": "a", "published": {"gta5": {"miou": 1}}}]}, "did you mean 'mIoU'"),
        ({"backbone": "resnet101", "rows": [{"name": "a"}]}, "did you mean 'deeplabv2_resnet101'"),
        ({"columns": [1], "rows": [{"name": "a"}]}, "columns must be a list of names"),
        ({"columns": ["x"], "rows": [{"name": "a", "marks": "x"}]}, "marks must be a list"),
        ({"rows": [{"name": "a", "settings": {"seed": 1}}]}, "must not set seed"),
        ({"rows": [{"name": "a", "settings": {"train": {"workers": 2}}}]}, "not set train.workers"),
        ({"rows": [{"name": "a", "settings": {"train.threads": 2}}]}, "must not set train.threads"),
        (
            {"rows": [{"name": "a", "settings": {"evaluation.protocol": "all"}}]},
            "must not set evaluation.protocol",
        ),
        ({"settings": {"seed": 1}, "rows": [{"name": "a"}]}, "set by --seeds"),
        ({"rows": [{"name": "a", "inferred": "yes"}]}, "inferred must be a bool"),
        ({"rows": [{"name": "a", "settings": {"spcl.temprature": 1}}]}, "spcl.temperature"),
        ({"rows": [{"name": "a"}, {"name": "b", "settings": {"sdca.delta": 0.5}}]}, "are one run"),
    ],
)
def test_mistakes_in_a_file_are_one_line(values, message, mini_data, tmp_path, capsys):
    assert sweep.main(call(written(tmp_path, values), mini_data, tmp_path / "runs")) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["stages=[adversarial]"], "stages is set by the sweep's rows"),
        (["spcl={target_contrast: true}"], "spcl.target_contrast is set by the sweep's rows"),
        (["seed=3"], "seed is set by --seeds"),
        (["train.workers=2"], "train.workers is set by --workers-per-cell"),
        (["spcl.temprature=1"], "error: setting 'spcl.temprature' is unknown"),  # and no row's
        (["train.log_every"], "error: a setting is given as key=value"),
        (["--seeds", "3..1"], "--seeds must look like"),
        (["--scale", "huge"], "--help"),
        (["--workers-per-cell", "0"], "--workers-per-cell must be at least 1"),
        (["--workers-per-cell", "2"], "needs Ray"),
        (["--workers", "1", "--workers-per-cell", "3"], "divisible by the workers"),
        (["--benchmark", "street"], "did you mean 'streets'"),
        (["evaluation.dataset=none"], "must be a labelled set"),
        (["--name", "sweeps"], "the folder of sweeps"),
    ],
)
def test_mistakes_in_a_command_are_one_line(more, message, mini_data, tmp_path, capsys):
    line = call(COMPONENTS, mini_data, tmp_path, *more)
    assert sweep.main(line) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.parametrize("word", ["source.order=uniform", "source.class_balanced=false"])
def test_what_rows_set_is_taken_however_it_is_spelled(word, mini_data, tmp_path, capsys):
    rows = {"rows": [{"name": "a"}, {"name": "b", "settings": {"source.order": "in_order"}}]}
    line = call(written(tmp_path, rows), mini_data, tmp_path / "runs", word)
    assert sweep.main(line) == 2
    message = f"{word.partition('=')[0]} is set by the sweep's rows; leave it out"
    assert message in capsys.readouterr().err


def test_official_switches_make_a_sweep_of_their_own(mini_data, tmp_path):
    rows = {"rows": [{"name": "a"}, {"name": "b", "settings": {"spcl.temperature": 0.5}}]}
    settings = ([], ["train.threads=1"], ["compat=official"])
    usual, same, official = (
        resolved(written(tmp_path, rows), mini_data, tmp_path, (0,), "full", *more).name
        for more in settings
    )
    assert usual == same != official


def test_a_file_that_is_no_yaml_is_named_once(mini_data, tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text("a: b: c")
    assert sweep.main(call(path, mini_data, tmp_path)) == 2
    assert capsys.readouterr().err.count(str(path)) == 1


def test_an_unknown_sweep_names_the_nearest(mini_data, tmp_path, capsys):
    assert sweep.main(call(Path("component"), mini_data, tmp_path)) == 2
    assert "did you mean 'components'" in capsys.readouterr().err


# Cells.


def test_a_cell_is_named_by_its_stages_keys(mini_data, tmp_path):
    made = resolved(written(tmp_path, TWO_ROWS), mini_data, tmp_path, (0, 1))
    cell = made.cells["baseline", 1]
    key = digest([stage.key for stage in cell.stages])[:12]
    assert cell.name == f"streets-adversarial-{key}-s1"
    assert [stage.title for stage in cell.stages] == ["adversarial", "evaluation of adversarial"]
    assert len({cell.name for cell in made.cells.values()}) == 4


def test_sweeps_share_cells_that_are_equal(mini_data, tmp_path):
    """Alpha 0.1 is the default, so that row of table 5 is the last row of table 4."""
    components = resolved(COMPONENTS, mini_data, tmp_path)
    alpha = resolved(CONFIGS / "sweeps/alpha.yaml", mini_data, tmp_path)
    assert alpha.cells["α = 0.1", 0].name == components.cells["all", 0].name
    names = {cell.name for cell in (*components.distinct, *alpha.distinct)}
    assert len(names) == 5 + 6 - 1


def test_what_cannot_change_a_result_changes_no_cell(mini_data, tmp_path):
    path = written(tmp_path, TWO_ROWS)
    one = resolved(path, mini_data, tmp_path)
    other = resolved(path, mini_data, tmp_path, (0,), "full", "train.log_every=7")
    assert [cell.name for cell in one.distinct] == [cell.name for cell in other.distinct]
    assert one.name == other.name


def test_what_can_change_a_result_gives_the_table_a_folder_of_its_own(mini_data, tmp_path):
    path = written(tmp_path, TWO_ROWS)
    one = resolved(path, mini_data, tmp_path)
    other = resolved(path, mini_data, tmp_path, (0,), "full", "spcl.temperature=2")
    assert one.folder != other.folder
    assert one.cells["baseline", 0].name == other.cells["baseline", 0].name
    assert one.cells["adapted", 0].name != other.cells["adapted", 0].name


def test_a_files_settings_hold_for_all_rows_and_the_command_line_goes_before_them(
    mini_data, tmp_path
):
    values = {"method": "adversarial", "settings": {"train.batch": 2, "adversarial.momentum": 0.5}}
    values["rows"] = [{"name": "a"}, {"name": "b", "settings": {"adversarial.weight_decay": 0.0}}]
    path = written(tmp_path, values)
    made = resolved(path, mini_data, tmp_path, (0,), "full", "train.batch=6")
    for cell in made.distinct:
        assert (cell.config.train.batch, cell.config.of("adversarial").momentum) == (6, 0.5)
        assert (cell.config.method, cell.config.stages) == ("adversarial", ("adversarial",))
    assert len(made.distinct) == 2


def test_a_files_benchmark_is_the_default(mini_data, tmp_path):
    path = written(tmp_path, TWO_ROWS | {"benchmark": "street"})
    with pytest.raises(ConfigError, match="did you mean 'streets'"):
        resolved(path, mini_data, tmp_path)


def test_equal_rows_are_one_run(mini_data, tmp_path):
    rows = [{"name": name, "settings": {"spcl.absent": name}} for name in ("keep", "decay")]
    made = resolved(written(tmp_path, {"rows": [{"name": "a"}, *rows]}), mini_data, tmp_path)
    assert made.cells["a", 0] is made.cells["keep", 0] and len(made.distinct) == 2


def test_tiny_stages_are_a_twentieth_and_apart_from_full_results(mini_data, tmp_path):
    steps = ("adversarial.steps=50", "spcl.steps=200")
    path = written(tmp_path, TWO_ROWS)
    tiny = resolved(path, mini_data, tmp_path, (0,), "tiny", *steps)
    full = resolved(path, mini_data, tmp_path, (0,), "full", *steps)
    config = tiny.cells["adapted", 0].config
    assert (config.of("adversarial").steps, config.of("spcl").steps) == (2, 10)
    shortest = resolved(path, mini_data, tmp_path, (0,), "tiny").cells["adapted", 0]
    assert shortest.config.of("spcl").steps == 1  # of 6
    assert config.of("spcl").horizon == full.cells["adapted", 0].config.of("spcl").horizon
    assert tiny.folder != full.folder
    for row in ("baseline", "adapted"):
        one, other = tiny.cells[row, 0], full.cells[row, 0]
        assert not one.keys & other.keys
        assert one.run.folder.parent == tmp_path / "sweeps/tiny"
        assert other.run.folder.parent == tmp_path


# Who makes what.


class Store:
    """Which stages are stored, and by whose work, without making any."""

    def __init__(self):
        self.made: list[str] = []

    def has(self, stage) -> bool:
        return stage.key in self.made

    def make(self, work) -> None:
        for stage in work.stages:
            assert all(s.key in self.made for s in stage.inputs.values()), "an input is missing"
            self.made.append(stage.key)


def finish(schedule: Schedule, store: Store, order: random.Random, slots: int) -> None:
    """Work to the end, in any order that `slots` allow."""
    while True:
        while len(schedule.running) < slots and schedule.next():
            pass
        if not schedule.running:
            return
        under_way = [s.key for work in schedule.running for s in work.stages]
        assert len(under_way) == len(set(under_way)), "two make the same stage at a time"
        names = [work.cell.name for work in schedule.running]
        assert len(names) == len(set(names)), "two write the same run at a time"
        work = order.choice(schedule.running)
        store.make(work)
        schedule.finished(work, None)


@pytest.mark.parametrize("slots", [1, 2, 5, 100])
def test_every_stage_is_made_once_in_whatever_order_work_ends(slots, mini_data, tmp_path):
    made = resolved(COMPONENTS, mini_data, tmp_path, (0, 1, 2))
    everything = {key for cell in made.distinct for key in cell.keys}
    for seed in range(10):
        store = Store()
        schedule = Schedule(made.distinct, store.has)
        finish(schedule, store, random.Random(seed), slots)
        assert sorted(store.made) == sorted(everything)
        assert schedule.waiting == [] and schedule.failed == {}


def test_a_shared_warm_up_comes_first_and_alone(mini_data, tmp_path):
    made = resolved(COMPONENTS, mini_data, tmp_path)
    store = Store()
    schedule = Schedule(made.distinct, store.has)
    for title in ("adversarial", "evaluation of adversarial"):
        work = schedule.next()
        assert [s.title for s in work.stages] == [title] and not work.finish
        assert schedule.next() is None  # everyone waits for it
        store.make(work)
        schedule.finished(work, None)
    assert schedule.next().finish and len(schedule.running) == 1  # the baseline has all it needs
    assert [s.title for s in schedule.next().stages] == ["prototypes of adversarial"]


def test_seeds_share_nothing_and_run_beside_each_other(mini_data, tmp_path):
    made = resolved(written(tmp_path, TWO_ROWS), mini_data, tmp_path, (0, 1))
    schedule = Schedule(made.distinct, Store().has)
    works = [schedule.next(), schedule.next()]
    assert [work.cell.config.seed for work in works] == [0, 1]
    assert schedule.next() is None


def test_what_a_worker_has_made_counts_before_it_is_seen_here(mini_data, tmp_path):
    """A shared folder may show other nodes' files late."""
    made = resolved(written(tmp_path, TWO_ROWS), mini_data, tmp_path)
    schedule = Schedule(made.distinct, lambda stage: False)
    first = schedule.next()
    schedule.finished(first, None)
    assert schedule.next().stages != first.stages


def test_what_is_stored_is_not_made_again(mini_data, tmp_path):
    made = resolved(written(tmp_path, TWO_ROWS), mini_data, tmp_path)
    store = Store()
    store.made = [s.key for s in made.cells["baseline", 0].stages]
    schedule = Schedule(made.distinct, store.has)
    assert (schedule.next().stages, len(schedule.next().stages)) == ((), 4)


def test_a_shared_stage_that_fails_takes_its_cells_and_no_other(mini_data, tmp_path):
    made = resolved(COMPONENTS, mini_data, tmp_path, (0, 1))
    store = Store()
    schedule = Schedule(made.distinct, store.has)
    ended = schedule.finished(schedule.next(), "no luck")
    assert [cell.config.seed for cell in ended] == [0] * 5
    finish(schedule, store, random.Random(0), 2)
    assert schedule.failed == {cell.name: "no luck" for cell in ended}
    assert made.cells["all", 1].keys <= set(store.made)


def test_a_cell_that_fails_alone_fails_alone(mini_data, tmp_path):
    made = resolved(written(tmp_path, TWO_ROWS), mini_data, tmp_path)
    store = Store()
    store.made = [s.key for s in made.cells["baseline", 0].stages]
    schedule = Schedule(made.distinct, store.has)
    work = schedule.next()
    assert schedule.finished(work, "no luck") == [work.cell]
    assert [cell.name for cell in schedule.waiting] == [made.cells["adapted", 0].name]


# Tables, from records made by hand.


def record(cell, value: float, tail: float) -> None:
    """A finished run with these means, as fractions."""
    means = {
        "mIoU": {"value": value, "classes": 19},
        "mIoU-tail": {"value": tail, "classes": 11},
    }
    other = {"mIoU": {"value": 0.99, "classes": 19}, "mIoU-tail": {"value": 0.99, "classes": 11}}
    rows = [{"stage": name, "means": other} for name in cell.config.stages[:-1]]
    cell.run.finish({"table": [*rows, {"stage": cell.config.stages[-1], "means": means}]})


VALUES = {
    "baseline": (0.40, 0.42, 0.44),
    "source contrast": (0.41, 0.43, 0.48),
    "both contrasts": (0.50, 0.50, 0.50),
}


@pytest.fixture
def handmade(mini_data, tmp_path) -> Sweep:
    """Three rows of the component table with three seeds, one with one seed, one with none."""
    made = resolved(COMPONENTS, mini_data, tmp_path, (0, 1, 2))
    for row, values in VALUES.items():
        for seed, value in enumerate(values):
            record(made.cells[row, seed], value, value / 2)
    record(made.cells["all", 1], 0.521, 0.3)
    return made


def as_if_on_gta5(made: Sweep, model: str = "deeplabv2_resnet101") -> Sweep:
    """The same records as of another benchmark and network."""
    cells = {}
    for place, cell in made.cells.items():
        network = dataclasses.replace(cell.config.model, name=model)
        config = dataclasses.replace(cell.config, benchmark="gta5", model=network)
        other = dataclasses.replace(cell, config=config)
        if cell.run.done:
            other.run.finish(cell.run.done)
        cells[place] = other
    return dataclasses.replace(made, benchmark="gta5", cells=cells)


def test_a_row_is_mean_and_t_interval_over_seeds_and_its_gain_is_paired(handmade):
    lines = {line.row.name: line for line in make_table(handmade, {}).lines}
    assert lines["baseline"].scores["mIoU"] == pytest.approx([40, 42, 44])
    assert lines["baseline"].scores["mIoU-tail"] == pytest.approx([20, 21, 22])
    assert lines["baseline"].gain is None
    # Differences 1, 1, 4: mean 2, standard deviation sqrt(3), of the mean 1.
    mean, half = interval(lines["source contrast"].gain)
    assert mean == pytest.approx(2) and half == pytest.approx(T_TWO, rel=1e-5)
    # One common seed gives no interval.
    assert lines["all"].gain == [pytest.approx(10.1)]
    assert lines["self-training"].seeds == () and lines["self-training"].gain is None
    shown = dict(
        line.split("  ", 1) for line in as_text(make_table(handmade, {})).splitlines()[3:8]
    )
    # Values 40, 42, 44: standard deviation 2, half width 4.3027 * 2 / sqrt(3) = 4.97.
    assert "42.0 ± 5.0" in shown["baseline"] and "21.0 ± 2.5" in shown["baseline"]
    for value in ("52.1", "+10.1"):
        assert f"{value} (no interval: one seed)" in shown["all"]
    # Of three seeds that are all alike none is known either.
    assert "50.0 (no interval: equal seeds)" in shown["both contrasts"]


def test_on_another_benchmark_published_values_stand_there_without_a_difference(handmade):
    table = make_table(handmade, {})
    assert table.against == "gta5" and all(not line.difference for line in table.lines)
    text = as_text(table)
    assert "With adversarial.steps=6 " in text and "train.threads" not in text
    assert "published (gta5)" in text and "44.5 (inferred)" in text and "41.4 " in text
    assert "No difference to it" in text


def test_on_its_benchmark_the_difference_is_ours_minus_published(handmade):
    table = make_table(as_if_on_gta5(handmade), {})
    difference = {line.row.name: line.difference for line in table.lines}
    assert difference["baseline"] == {"mIoU": pytest.approx(42.0 - 41.4)}
    assert difference["source contrast"] == {"mIoU": pytest.approx(44.0 - 44.5)}
    assert difference["self-training"] == {}
    assert "+0.6" in as_text(table) and "-0.5" in as_text(table)


def test_on_synthia_the_values_are_synthias_over_both_class_sets(handmade):
    table = make_table(dataclasses.replace(handmade, benchmark="synthia"), {})
    assert table.against == "synthia"
    assert table.lines[0].published == {"mIoU": 39.5, "mIoU-13": 45.9}


def test_a_gain_is_over_the_seeds_that_the_reference_has(handmade):
    file = dataclasses.replace(handmade.file, reference="all")
    lines = {r.row.name: r for r in make_table(dataclasses.replace(handmade, file=file), {}).lines}
    assert lines["baseline"].gain == [pytest.approx(42 - 52.1)]


def test_a_row_of_another_network_is_not_compared_and_its_neighbours_are(handmade):
    made = as_if_on_gta5(handmade)
    cells = {
        (row, seed): as_if_on_gta5(handmade, "deeplabv2_vgg16").cells[row, seed]
        if row == "baseline"
        else cell
        for (row, seed), cell in made.cells.items()
    }
    lines = make_table(dataclasses.replace(made, cells=cells), {}).lines
    assert {line.row.name for line in lines if line.difference} == {
        "source contrast",
        "both contrasts",
        "all",
    }


def test_published_values_of_another_network_are_compared_with_that(handmade):
    made = as_if_on_gta5(handmade, "deeplabv2_vgg16")
    file = dataclasses.replace(made.file, backbone="deeplabv2_vgg16")
    table = make_table(dataclasses.replace(made, file=file), {})
    assert table.lines[0].difference == {"mIoU": pytest.approx(42.0 - 41.4)}
    assert "its backbone is deeplabv2_vgg16" in as_text(table)


def test_another_network_or_a_tiny_budget_is_not_compared(handmade):
    other = as_if_on_gta5(handmade, "deeplabv2_vgg16")
    tiny = dataclasses.replace(as_if_on_gta5(handmade), scale="tiny")
    for made in (other, tiny):
        assert all(not line.difference for line in make_table(made, {}).lines)
    assert "TINY" in as_text(make_table(tiny, {}))


def test_marks_stand_under_the_papers_columns(handmade):
    lines = as_markdown(make_table(handmade, {})).splitlines()
    head = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert head[1:5] == ["source contrast", "target contrast", "self-training", "seeds"]
    marks = {}
    for line in lines[4:9]:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        marks[cells[0]] = "".join("x" if cell else "." for cell in cells[1:4])
    assert marks == {
        "baseline": "...",
        "source contrast": "x..",
        "self-training": "..x",
        "both contrasts": "xx.",
        "all": "xxx",
    }


def test_the_csv_holds_every_number_in_full(handmade):
    rows = list(csv.DictReader(as_csv(make_table(as_if_on_gta5(handmade), {})).splitlines()))
    by = {(row["row"], row["mean"]): row for row in rows}
    baseline = by["baseline", "mIoU"]
    assert float(baseline["value"]) == pytest.approx(42)
    assert float(baseline["half_width"]) == pytest.approx(T_TWO * 2 / 3**0.5, rel=1e-5)
    assert [float(v) for v in baseline["each_seed"].split()] == pytest.approx([40, 42, 44])
    assert (baseline["published"], baseline["inferred"]) == ("41.4", "False")
    assert float(baseline["difference"]) == pytest.approx(0.6)
    contrast = by["source contrast", "mIoU"]
    assert (contrast["inferred"], contrast["published_benchmark"]) == ("True", "gta5")
    assert by["source contrast", "mIoU-tail"]["published"] == ""
    assert (by["all", "mIoU"]["seeds"], by["all", "mIoU"]["half_width"]) == ("1", "")
    assert by["self-training", "mIoU"]["value"] == ""


def test_names_are_escaped(mini_data, tmp_path):
    name = '<script>alert("1")</script> | x'
    values = {"title": "<b>", "rows": [{"name": name, "settings": {"stages": ["adversarial"]}}]}
    made = resolved(written(tmp_path, values), mini_data, tmp_path)
    table = make_table(made, {made.cells[name, 0].name: "<i>"})
    page = as_html(table)
    assert "<script" not in page and "<b>" not in page and "<i>" not in page
    assert "&lt;script&gt;" in page and "http" not in page
    row = next(line for line in as_markdown(table).splitlines() if "alert" in line)
    assert row.replace("\\|", "").count("|") == len(row_header(table)) + 1


def row_header(table) -> list[str]:
    from tune.sweep_table import header

    return header(table)


# Who has chosen the settings of rows.

BY = ChosenBy(search="found", objective="few_label:4", label_budget=4)
SAID = "settings chosen by search found: few_label:4, 4 labelled target images"


def best_yaml(folder: Path, **values: object) -> Path:
    """What a search has left: a file of settings that says who chose them."""
    chosen = {"spcl": {"temperature": 2.5}, "chosen_by": dataclasses.asdict(BY)}
    return written(folder, {"benchmark": "streets", "method": "spcl"} | chosen | values, "b.yaml")


def manifest_of(cell) -> dict:
    return {key: cell.run.manifest[key] for key in ("search", "selection", "label_budget")}


def badges(storage: Path) -> set[tuple[str, ...]]:
    found, _ = read_runs([storage])
    return {row.badges for board in make_boards(found) for row in board.rows}


def test_a_sweep_that_begins_from_a_searchs_file_says_so_everywhere(mini_data, tmp_path, capsys):
    path, best = written(tmp_path, TWO_ROWS), best_yaml(tmp_path)
    storage = tmp_path / "runs"
    plain = [str(part) for part in call(path, mini_data, storage)]
    assert sweep.main([*plain, "--seeds", "0", "spcl.temperature=2.5"]) == 0
    assert "chosen by" not in capsys.readouterr().out and badges(storage) == {("last",)}
    # The same cells, finished without labels, get the badge.
    assert sweep.main([*plain, "--seeds", "0", "--config", str(best)]) == 0
    captured = capsys.readouterr()
    assert "2 runs, 0 to do" in captured.err and f"{SAID}: baseline, adapted." in captured.out
    assert badges(storage) == {("few_label:4", "target labels")}
    # It stays when they are asked for without the file, and new ones have it from the start.
    assert sweep.main([*plain, "--seeds", "0", "spcl.temperature=2.5"]) == 0
    assert SAID in capsys.readouterr().out
    assert sweep.main([*plain, "--seeds", "0..1", "--config", str(best)]) == 0
    assert badges(storage) == {("few_label:4", "target labels")}
    runs = [RunFolder(storage / name) for name in run_folders(storage)]
    assert [run.manifest["label_budget"] for run in runs] == [4] * 4
    for name in ("table.md", "table.csv", "table.html"):
        assert SAID in (storage / "sweeps/s" / name).read_text()


@pytest.mark.parametrize("where", ["config", "settings", "row"])
def test_a_searchs_file_may_be_given_or_pasted(where, mini_data, tmp_path):
    best = yaml.safe_load(best_yaml(tmp_path).read_text())
    pasted = {"spcl": best["spcl"], "chosen_by": best["chosen_by"]}
    rows = [{"name": "a", "settings": pasted if where == "row" else {}}]
    rows += [{"name": "b", "settings": {"spcl.contrast_weight": 0.5}}]
    values = {"rows": rows} | ({"settings": pasted} if where == "settings" else {})
    base = tmp_path / "b.yaml" if where == "config" else None
    found = resolve(
        written(tmp_path, values), None, (0,), "full", MINI, mini_data, tmp_path, print, base=base
    )
    a, b = found.cells["a", 0].config, found.cells["b", 0].config
    assert (a.of("spcl").temperature, a.chosen_by) == (2.5, BY)
    assert b.chosen_by == (ChosenBy() if where == "row" else BY)
    assert b.of("spcl").temperature == (a.of("spcl").temperature if where != "row" else 0.1)


def test_equal_rows_share_the_badge_of_either(mini_data, tmp_path):
    settings = {"spcl.temperature": 2.5}
    labelled = settings | {"chosen_by": dataclasses.asdict(BY)}
    rows = [{"name": "plain", "settings": settings}, {"name": "picked", "settings": labelled}]
    rows.append({"name": "other"})
    for ordered in (rows, rows[::-1]):
        made = resolved(written(tmp_path, {"rows": ordered}), mini_data, tmp_path)
        assert made.cells["plain", 0] is made.cells["picked", 0]
        assert made.cells["plain", 0].config.chosen_by == BY
        assert not made.cells["other", 0].config.chosen_by


def test_the_rows_and_the_command_line_go_before_the_file_that_they_begin_from(mini_data, tmp_path):
    best = best_yaml(tmp_path, seed=7, train={"batch": 2})
    rows = [{"name": "a"}, {"name": "b", "settings": {"spcl.temperature": 9.0}}]
    path = written(tmp_path, {"rows": rows})
    given = resolve(
        path, None, (0,), "full", [*MINI, "train.batch=6"], mini_data, tmp_path, print, base=best
    )
    configs = [given.cells[name, 0].config for name in "ab"]
    assert [c.of("spcl").temperature for c in configs] == [2.5, 9.0]
    assert {(c.train.batch, c.seed) for c in configs} == {(6, 0)}
    assert given.name != resolved(path, mini_data, tmp_path, (0,), "full", "train.batch=6").name


def test_a_file_of_another_method_is_no_beginning(mini_data, tmp_path, capsys):
    best = best_yaml(tmp_path, method="sdca", spcl={})
    line = call(written(tmp_path, TWO_ROWS), mini_data, tmp_path, "--config", best)
    assert sweep.main(line) == 2
    error = capsys.readouterr().err
    assert "is of method sdca, but the sweep two of spcl" in error and error.count("\n") == 1


@pytest.mark.parametrize("where", ["grid", "dotted", "line"])
def test_no_grid_and_no_command_line_says_who_chose(where, mini_data, tmp_path, capsys):
    values = dict(TWO_ROWS)
    if where == "grid":
        values["grid"] = {"chosen_by.label_budget": [0, 1]}
    if where == "dotted":
        values["settings"] = {"chosen_by.label_budget": 0}
    line = call(written(tmp_path, values), mini_data, tmp_path)
    line += ["chosen_by={}"] if where == "line" else []
    assert sweep.main(line) == 2
    assert "only a search's own files set it" in capsys.readouterr().err


# What runs.


def test_a_sweep_shares_stages_and_its_table_is_what_its_matrices_say(mini_data, tmp_path, capsys):
    path, storage = written(tmp_path, TWO_ROWS), tmp_path / "runs"
    assert sweep.main(call(path, mini_data, storage, "--seeds", "0")) == 0
    made = artefacts(storage)
    assert sum(name.startswith("adversarial-") for name in made) == 1
    assert len(made) == 6  # two trainings, two passes, two evaluations
    table = csv.DictReader((storage / "sweeps/s/table.csv").read_text().splitlines())
    for row in (row for row in table if row["mean"] == "mIoU"):
        stage = {"baseline": "adversarial", "adapted": "spcl"}[row["row"]]
        (run,) = [n for n in run_folders(storage) if n.startswith(f"streets-{stage}-")]
        matrix = read_confusions(storage / run / f"evaluations/{stage}.parquet")[1].sum(0)
        union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
        iou = np.diag(matrix)[union > 0] / union[union > 0]
        assert float(row["value"]) == pytest.approx(100 * iou.mean())
    assert "(no interval: one seed)" in capsys.readouterr().out

    before = {name: (storage / name / "DONE.json").read_bytes() for name in run_folders(storage)}
    first = (storage / "sweeps/s/table.md").read_bytes()
    assert sweep.main(call(path, mini_data, storage, "--seeds", "0")) == 0
    assert "2 runs, 0 to do" in capsys.readouterr().err
    assert (storage / "sweeps/s/table.md").read_bytes() == first

    assert sweep.main(call(path, mini_data, storage, "--seeds", "0..1")) == 0
    assert "4 runs, 2 to do" in capsys.readouterr().err
    assert {name: artefacts(storage)[name] for name in made} == made
    assert len(artefacts(storage)) == 12
    assert {name: (storage / name / "DONE.json").read_bytes() for name in before} == before
    assert "seeds 0 1" in (storage / "sweeps/s/table.md").read_text()


def test_stages_of_a_plain_run_are_used(mini_data, tmp_path):
    from spcl.train import main as train

    places = ["--data", str(mini_data), "--storage", str(tmp_path), "--name", "plain"]
    assert train([*places, "--method", "adversarial", *MINI]) == 0
    before = artefacts(tmp_path)
    values = {"rows": TWO_ROWS["rows"][:1]}
    assert sweep.main(call(written(tmp_path, values), mini_data, tmp_path)) == 0
    after = artefacts(tmp_path)
    assert {name: after[name] for name in before} == before
    assert sum(name.startswith("adversarial-") for name in after) == 3  # seeds 0 to 2


def test_a_failed_cell_is_listed_with_its_reason_and_tried_again(mini_data, tmp_path, capsys):
    bad = {
        "name": "bad",
        "settings": {"stages": ["adversarial", "spcl"], "spcl.learning_rate": 1e30},
    }
    path = written(tmp_path, {"rows": [bad, *TWO_ROWS["rows"]]})
    line = call(path, mini_data, tmp_path, "--seeds", "0")
    assert sweep.main(line) == 1
    printed = capsys.readouterr()
    failure = "failed: bad, seed 0: the loss of stage 'spcl' must stay finite"
    assert failure in printed.out and failure in (tmp_path / "sweeps/s/table.md").read_text()
    lines = make_table(resolved(path, mini_data, tmp_path), {}).lines
    assert [line.seeds for line in lines] == [(), (0,), (0,)]
    assert sweep.main(line) == 1
    assert "3 runs, 1 to do" in capsys.readouterr().err


def test_a_dry_run_counts_cells_and_shared_stages_and_starts_nothing(mini_data, tmp_path, capsys):
    assert sweep.main(call(COMPONENTS, mini_data, tmp_path, "--dry-run")) == 0
    out = capsys.readouterr().out
    rows = {line[:34].strip(): line[34:].split() for line in out.splitlines()}
    # distinct, used by, stored; of three seeds
    assert rows["adversarial"][:3] == ["3", "15", "0"]
    assert rows["spcl"][:3] == ["6", "9", "0"]
    assert rows["self_training"][:3] == ["6", "6", "0"]
    assert "15 distinct runs in 15 cells; 39 distinct stages for 84, 0 stored" in out
    assert "device-hours" in out and list(tmp_path.iterdir()) == []


def test_an_estimate_is_of_what_is_missing(handmade, monkeypatch):
    """Every step takes an hour here, so hours are steps."""
    monkeypatch.setattr(sweep_estimate, "step_seconds", lambda *of: 3600.0)
    out = sweep_estimate.describe(handmade, timed=True)
    hours = {line[:34].strip(): line.split()[-1] for line in out.splitlines() if line}
    # Open are "self-training" of three seeds and "all" of two.
    assert (hours["adversarial"], hours["spcl"]) == ("18.00", "12.00")
    assert hours["self_training"] == "20.00"
    assert "; 50.00 device-hours" in out


def test_a_step_is_timed_anew_for_another_batch(mini_data, tmp_path, monkeypatch):
    def of_batch(config, name, classes, workers):
        return config.batch_of(name) * 3600.0

    monkeypatch.setattr(sweep_estimate, "step_seconds", of_batch)
    values = {"settings": {"stages": ["adversarial"]}, "grid": {"train.batch": [2, 4]}}
    made = resolved(written(tmp_path, values), mini_data, tmp_path)
    out = sweep_estimate.describe(made, timed=True)
    assert "; 36.00 device-hours" in out  # 6 steps of 2, and of 4


def test_a_terminal_sees_rows_by_seeds(handmade):
    schedule = Schedule(handmade.distinct, Store().has)
    schedule.failed[handmade.cells["self-training", 0].name] = "no luck"
    live = Live(handmade, schedule)
    head, *rows = live.table()
    assert head.split() == ["seed", "0", "seed", "1", "seed", "2"]
    states = {row[:17].strip(): row[17:] for row in rows}
    assert states["baseline"].split() == "done, mIoU 40.0 done, mIoU 42.0 done, mIoU 44.0".split()
    assert "failed: no luck" in states["self-training"]
    assert states["all"].split() == ["waiting", "done,", "mIoU", "52.1", "waiting"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def live_on(terminal: io.StringIO, made: Sweep, monkeypatch, columns: int, lines: int) -> Live:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    return Live(made, Schedule(made.distinct, Store().has), terminal)


def test_a_table_is_redrawn_in_its_place_and_a_narrow_terminal_shows_every_seed(
    handmade, monkeypatch
):
    terminal = Terminal()
    live = live_on(terminal, handmade, monkeypatch, 80, 24)
    live.show()
    once = terminal.getvalue()
    lines = once.splitlines()
    assert len(lines) == 6 and not once.startswith("\x1b[6A")
    assert max(len(line.removeprefix("\x1b[2K")) for line in lines) < 80
    assert lines[1].count("done, mIoU") == 3
    live.started(live.schedule.next())
    again = terminal.getvalue().removeprefix(once)
    assert again.startswith("\x1b[6A") and "starting" in again  # and no plain line


@pytest.mark.parametrize(("columns", "lines"), [(80, 6), (60, 24)])
def test_a_table_larger_than_the_terminal_is_plain_lines(handmade, monkeypatch, columns, lines):
    terminal = Terminal()
    live = live_on(terminal, handmade, monkeypatch, columns, lines)
    work = live.schedule.next()
    live.started(work)
    live.ended(work, live.schedule.finished(work, "no luck"))
    told = terminal.getvalue().splitlines()
    assert told == [
        "[10/15] self-training, seed 0: started (shared: adversarial)",
        "[12/15] self-training, seed 0: failed: no luck",
        "[12/15] all, seed 0: failed: no luck",
    ]


def test_a_running_cell_shows_the_last_whole_line_of_its_log(handmade):
    live = Live(handmade, Schedule(handmade.distinct, Store().has))
    cell = live.schedule.next().cell
    assert live.state(cell) == "starting"
    log = cell.run.folder / "metrics.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    step = {"stage": "adversarial", "step": 50, "steps": 60}
    log.write_text("x" * 5000 + "\n" + json.dumps(step) + '\n{"message": "a"}\n{"stage": "adv')
    assert live.state(cell) == "adversarial 50/60"


def test_a_tiny_sweep_leaves_no_run_beside_full_ones(mini_data, tmp_path, capsys):
    path = written(tmp_path, {"rows": TWO_ROWS["rows"][:1]})
    line = call(path, mini_data, tmp_path, "--seeds", "0,0", "--scale", "tiny")
    assert sweep.main(line) == 0
    out = capsys.readouterr().out
    assert "TINY" in out and "(no interval: one seed)" in out  # however often it is asked for
    assert run_folders(tmp_path) == [] and len(run_folders(tmp_path / "sweeps/tiny")) == 1


def test_a_piece_of_work_says_why_it_failed(mini_data, tmp_path):
    made = resolved(written(tmp_path, TWO_ROWS), mini_data, tmp_path / "runs")
    schedule = Schedule.of(made)
    task = sweep_jobs.task_of(schedule.next(), made, {})
    nowhere = dataclasses.replace(task.piece, data=str(tmp_path / "nowhere"))
    reason = sweep_jobs.attempt(dataclasses.replace(task, piece=nowhere))
    run = task.piece.folder
    assert "nowhere" in reason and len(reason.splitlines()) == 1
    assert run.failed["error"] == reason
    assert "nowhere" in (run.folder / "traceback.txt").read_text()
    assert not task.finish and sweep_jobs.attempt(task) is None  # a part of the run, this time
    assert not run.failed


def test_two_commands_do_not_write_one_table(mini_data, tmp_path, capsys):
    with Lease(tmp_path / "sweeps/s"):
        assert sweep.main(call(COMPONENTS, mini_data, tmp_path)) == 2
    assert "is being written by process" in capsys.readouterr().err


def test_a_run_that_another_process_holds_is_a_failed_cell_and_no_end(
    mini_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(piece, "EXPIRES", 0.0)  # no time to wait
    path = written(tmp_path, TWO_ROWS)
    storage = tmp_path / "runs"
    held = resolved(path, mini_data, storage).cells["adapted", 0]
    with Lease(held.run.folder):
        assert sweep.main(call(path, mini_data, storage, "--seeds", "0")) == 1
    assert "failed: adapted, seed 0: the run 'streets-spcl-" in capsys.readouterr().out
    assert resolved(path, mini_data, storage).cells["baseline", 0].run.done


# What kills processes.


def killed_line(path: Path, data: Path, storage: Path, *more: object) -> list[object]:
    line = call(path, data, storage, "--seeds", "0", *more, "train.checkpoint_every=5")
    return [sys.executable, "tune/sweep.py", *line, "adversarial.steps=40", "spcl.steps=40"]


def stage_reached(storage: Path, stage: str, step: int) -> bool:
    return any(
        record["stage"] == stage and record["step"] >= step
        for name in run_folders(storage)
        for record in RunFolder(storage / name).metrics()
    )


def same_tables(one: Path, other: Path) -> bool:
    names = ("table.md", "table.csv", "table.html")
    return all(
        (one / "sweeps/s" / n).read_bytes() == (other / "sweeps/s" / n).read_bytes() for n in names
    )


@pytest.mark.slow  # seconds for every process
def test_a_sweep_killed_twice_ends_in_the_table_of_one_never_stopped(commands, mini_data, tmp_path):
    path = written(tmp_path, TWO_ROWS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert sweep.main(list(map(str, killed_line(path, mini_data, whole)[2:]))) == 0
    for stage in ("adversarial", "spcl"):
        command = commands.start(killed_line(path, mini_data, killed), environment())
        wait_until(
            lambda stage=stage, c=command: stage_reached(killed, stage, 12) or c.code is not None,
            60,
            f"{stage} is under way",
        )
        os.kill(command.process.pid, signal.SIGKILL)
        assert command.finish() == -signal.SIGKILL
        assert not (killed / "sweeps/s/table.md").exists()
    command = commands.run(killed_line(path, mini_data, killed), environment())
    assert command.code == 0, command.err
    assert same_tables(whole, killed)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_on_ray_a_sweep_killed_twice_ends_in_the_same_table(cluster, commands, mini_data, tmp_path):
    path = written(tmp_path, TWO_ROWS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = commands.run(killed_line(path, mini_data, whole), environment())
    assert command.code == 0, command.err
    for stage in ("adversarial", "spcl"):
        line = killed_line(path, mini_data, killed, "--workers", 1)
        command = commands.start(line, cluster.environment)
        wait_until(
            lambda stage=stage: stage_reached(killed, stage, 12), 60, f"{stage} is under way"
        )
        os.kill(command.process.pid, signal.SIGKILL)
        command.finish()
    line = killed_line(path, mini_data, killed, "--workers", 2)
    command = commands.run(line, cluster.environment)
    assert command.code == 0, command.err
    assert same_tables(whole, killed)


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_on_ray_cells_run_beside_each_other_and_one_that_fails_stops_nobody(
    cluster, commands, mini_data, tmp_path
):
    bad = {
        "name": "bad",
        "settings": {"stages": ["adversarial", "spcl"], "spcl.learning_rate": 1e30},
    }
    path = written(tmp_path, {"rows": [bad, *TWO_ROWS["rows"]]})
    # More at a time than fit: as many as fit.
    line = call(path, mini_data, tmp_path, "--workers", 1000, "--seeds", "0..1")
    command = commands.run([sys.executable, "tune/sweep.py", *line], cluster.environment)
    assert command.code == 1, command.err
    assert command.out.count("must stay finite") == 2
    first, second = [line for line in command.err.splitlines() if "started" in line][:2]
    assert "seed 0: started" in first and "seed 1: started" in second
    assert sum(name.startswith("adversarial-") for name in artefacts(tmp_path)) == 2
    lines = make_table(resolved(path, mini_data, tmp_path, (0, 1)), {}).lines
    assert [line.seeds for line in lines] == [(), (0, 1), (0, 1)]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_on_ray_a_cell_may_have_two_workers(cluster, commands, mini_data, tmp_path):
    path = written(tmp_path, {"rows": TWO_ROWS["rows"][:1]})
    line = call(path, mini_data, tmp_path, "--seeds", "0", "--workers", 1, "--workers-per-cell", 2)
    command = commands.run([sys.executable, "tune/sweep.py", *line], cluster.environment)
    assert command.code == 0, command.err
    (name,) = run_folders(tmp_path)
    assert RunFolder(tmp_path / name).manifest["hardware"]["workers"] == 2
    assert not (tmp_path / name / "ray").exists()
