"""Who has chosen a run's settings: united, never lost, no part of any key."""

import dataclasses
import itertools

import pytest
import yaml
from conftest import MINI

from spcl.configuration.chosen_by import ChosenBy, carry, of_manifest, stored
from spcl.configuration.config import (
    differences,
    from_dict,
    load,
    operational_keys,
    result_settings,
)
from spcl.engine.run_config import open_run
from spcl.engine.stages import plan
from spcl.errors import ConfigError
from spcl.launch import default_name
from spcl.settings import scientific
from spcl.store.run_folder import RunFolder

NOBODY = ChosenBy()
FREE = ChosenBy(search="free", objective="label_free")
FEW = ChosenBy(search="few", objective="few_label:20", label_budget=20)
MANY = ChosenBy(search="many", objective="few_label:100", label_budget=100)
ORACLE = ChosenBy(search="oracle", objective="target_oracle")  # of a budget that is not said
ALL = (NOBODY, FREE, FEW, MANY, ORACLE)


# Uniting.


def test_union_is_of_sets_in_any_order_and_any_number_of_times():
    for one, two, three in itertools.product(ALL, repeat=3):
        assert one | two == two | one
        assert (one | two) | three == one | (two | three)
        assert one | two | one == one | two
        assert one | NOBODY == one


def test_the_objective_that_read_more_labels_stands_and_every_search_is_named():
    assert FREE | FEW == ChosenBy(search="few, free", objective="few_label:20", label_budget=20)
    assert (FEW | MANY).label_budget == 100
    for one, two in itertools.product(ALL, repeat=2):
        united = one | two
        assert united.reads_target_labels == (one.reads_target_labels or two.reads_target_labels)
        assert united.label_budget >= max(one.label_budget, two.label_budget)
        assert {*one.search.split(", "), *two.search.split(", ")} - {""} == (
            set(united.search.split(", ")) - {""}
        )


@pytest.mark.parametrize("one", ALL)
def test_a_manifest_says_it_and_gives_it_back(one):
    assert of_manifest(one.in_manifest()) == one


def test_a_manifest_of_older_code_names_nobody():
    assert of_manifest({"selection": "last", "label_budget": 0}) == of_manifest(None) == NOBODY


def test_people_read_how_many_labels_were_used():
    assert str(NOBODY) == ""
    assert "search few: few_label:20, 20 labelled target images" in str(FEW)
    assert "label_free, no target label" in str(FREE) and "target labels" in str(ORACLE)


# As a part of the configuration.


def config_file(folder, values, name="f.yaml"):
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return path


def test_it_is_in_no_key_no_name_and_no_difference():
    plain = load("streets", "spcl", None, MINI)
    chosen = dataclasses.replace(plain, chosen_by=FEW)
    prints = dict.fromkeys(("source", "target", "evaluation"), "f" * 64)
    assert [s.key for s in plan(chosen, prints)] == [s.key for s in plan(plain, prints)]
    assert [s.settings_key for s in plan(chosen, prints)] == [
        s.settings_key for s in plan(plain, prints)
    ]
    assert default_name(chosen) == default_name(plain)
    assert differences(chosen, plain) == [] and result_settings(chosen) == result_settings(plain)
    assert scientific(FEW) == {}
    fields = {f"chosen_by.{field.name}" for field in dataclasses.fields(ChosenBy)}
    assert fields <= operational_keys()
    assert from_dict(chosen.as_dict()) == chosen


@pytest.mark.parametrize(
    "setting",
    [
        "chosen_by={}",
        "chosen_by=null",
        "chosen_by=",
        "chosen_by.objective=last",
        "chosen_by.objective=",
        "chosen_by.label_budget=0",
        "chosen_by.search=other",
        "chosen_by.anything=1",
        "chosen_by={objective: few_label:4}",
    ],
)
def test_the_command_line_neither_sets_nor_empties_it(setting, tmp_path):
    path = config_file(tmp_path, {"chosen_by": dataclasses.asdict(FEW)})
    for file in (None, path):
        with pytest.raises(ConfigError, match="only a search's own files set it, and nothing emp"):
            load("streets", "spcl", file, [*MINI, setting])


def test_a_file_gives_it_and_an_empty_section_takes_nothing(tmp_path, monkeypatch):
    path = config_file(tmp_path, {"chosen_by": dataclasses.asdict(FEW)})
    assert load("streets", "spcl", path, MINI).chosen_by == FEW
    empty = config_file(tmp_path, {"chosen_by": {}, "seed": 3}, "empty.yaml")
    assert load("streets", "spcl", empty).chosen_by == NOBODY
    for wrong in (None, [], "few_label", {"label_budget": -1}, {"objectiv": "few_label:4"}):
        with pytest.raises(ConfigError, match=r"wrong.yaml: .*chosen_by"):
            load("streets", "spcl", config_file(tmp_path, {"chosen_by": wrong}, "wrong.yaml"))


@pytest.mark.parametrize("layer", ["benchmarks", "methods"])
def test_layers_unite(tmp_path, monkeypatch, layer):
    """Whatever a file that is read later says, or leaves empty."""
    import shutil

    from spcl.configuration import layers

    shutil.copytree(layers.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(layers, "CONFIGS", tmp_path / "configs")
    name = {"benchmarks": "streets", "methods": "spcl"}[layer]
    with open(tmp_path / "configs" / layer / f"{name}.yaml", "a") as file:
        file.write(yaml.safe_dump({"chosen_by": dataclasses.asdict(MANY)}))
    assert load("streets", "spcl", None, MINI).chosen_by == MANY
    for given, wanted in ((NOBODY, MANY), (FREE, FREE | MANY), (FEW, FEW | MANY)):
        path = config_file(tmp_path, {"chosen_by": dataclasses.asdict(given)})
        assert load("streets", "spcl", path, MINI).chosen_by == wanted
    path = config_file(tmp_path, {"chosen_by": {}})
    assert load("streets", "spcl", path, MINI).chosen_by == MANY
    for other in (tmp_path / "configs/methods/spcl.yaml", tmp_path / "configs/compat/spcl.yaml"):
        if layer == "benchmarks":  # which is read between these two
            with open(other, "a") as file:
                file.write(yaml.safe_dump({"chosen_by": dataclasses.asdict(FEW)}))
            official = load("streets", "spcl", None, [*MINI, "compat=official"])
            assert official.chosen_by == FEW | MANY


# In a run's folder.


def opened(storage, chosen_by, name="r"):
    config = dataclasses.replace(load("streets", "spcl", None, MINI), chosen_by=chosen_by)
    return open_run(config, storage, name)


@pytest.mark.parametrize("lost", [None, "config.yaml", "manifest.json"])
@pytest.mark.parametrize("later", [NOBODY, FREE, MANY])
def test_later_launches_unite_with_what_either_file_says(tmp_path, lost, later):
    run = opened(tmp_path, FEW)
    run.write("manifest.json", {"seed": 0} | FEW.in_manifest())
    if lost:
        (run.folder / lost).unlink()
    for _ in range(2):
        opened(tmp_path, later)
        opened(tmp_path, NOBODY)
        assert stored(RunFolder(tmp_path / "r")) == FEW | later
        written = yaml.safe_load((run.folder / "config.yaml").read_text())
        assert from_dict(written).chosen_by == FEW | later
        if lost != "manifest.json":
            assert of_manifest(run.manifest) == FEW | later and run.manifest["seed"] == 0


def test_a_run_of_older_code_takes_it_up(tmp_path):
    run = opened(tmp_path, NOBODY)
    path = run.folder / "config.yaml"
    values = yaml.safe_load(path.read_text())
    del values["chosen_by"]
    path.write_text(yaml.safe_dump(values))
    run.write("manifest.json", {"selection": "last", "label_budget": 0, "commit": "c"})
    assert carry(run, NOBODY) == NOBODY
    assert "search" not in run.manifest and "chosen_by" not in yaml.safe_load(path.read_text())
    assert carry(run, FEW) == FEW == stored(run)
    assert run.manifest["selection"] == "few_label:20" and run.manifest["commit"] == "c"


def test_a_folder_without_files_is_left_alone(tmp_path):
    assert carry(RunFolder(tmp_path / "none"), FEW) == FEW
    assert not (tmp_path / "none").exists()
