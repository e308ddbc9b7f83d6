"""Sweep files: the shipped ones are the published tables, and what mistakes say."""

import csv
import json
from pathlib import Path

import pytest
from sweeps import COMPONENTS, call, resolved, written

from spcl.configuration.config import load
from spcl.configuration.layers import CONFIGS
from spcl.scoring.protocols import PROTOCOLS
from spcl.settings import flatten
from tune import sweep
from tune.sweeping.file import read_sweep


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
    path = CONFIGS.parent / "spcl/boards/published/ablations.csv"
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
    assert "arXiv:" in head and f"python tune/sweep.py configs/sweeps/{path.name}" in head


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
