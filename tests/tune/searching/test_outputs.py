"""What a search's files carry: target labels that have chosen settings are told on every board."""

import argparse
import contextlib
import io
import shutil
from pathlib import Path

import pytest
import yaml
from experiments import make, record, validators

from spcl import cli, runs
from spcl.boards.aggregate import read_runs
from spcl.boards.ranking import make_boards
from spcl.boards.rows import TARGET_LABELS
from spcl.configuration.chosen_by import ChosenBy
from spcl.configuration.config import load
from spcl.settings import flatten
from spcl.store.run_folder import RunFolder
from spcl.train import main as train
from tune import search
from tune.searching.experiment import Experiment
from tune.searching.outputs import write_outputs

BUDGET = 4
STAGES = "stages=[adversarial,spcl]"
BY = ChosenBy(search="s", objective=f"few_label:{BUDGET}", label_budget=BUDGET)


def search_folder(storage: Path, data: Path) -> Path:
    """A finished search by labelled target images with its files: 2 of 3 configurations picked."""
    few = [{"value": value, "images": BUDGET} for value in (0.1, 0.3, 0.2)]
    jobs = [record(n, 2, validators(0.0, few_label=value)) for n, value in enumerate(few)]
    request = {"objective": f"few_label:{BUDGET}", "label_budget": BUDGET, "name": "s"}
    folder = make(storage, jobs, STAGES, data=str(data), **request)
    (folder / "agreement.json").write_text('{"schema": 1, "configuration": 2}')
    write_outputs(folder)
    return folder


def start(data: Path, storage: Path, *arguments: object) -> str:
    """Train without Ray; returns what was printed."""
    line = ["--data", data, "--storage", storage, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.guarded(train, [str(part) for part in line]) == 0
    return printed.getvalue()


def badges(storage: Path) -> set[tuple[str, ...]]:
    """Of the rows of all runs in a storage, as the boards have them."""
    found, problems = read_runs([storage])
    assert (
        found and [p for p in problems if "no configuration" not in p and "audited" not in p] == []
    )
    return {row.badges for board in make_boards(found) for row in board.rows}


def typed(best: Path) -> list[str]:
    """The settings of a file as somebody would type them, without who chose them."""
    values = yaml.safe_load(best.read_text())
    del values["chosen_by"], values["benchmark"], values["method"]
    return [f"{key}={yaml.safe_dump(value).strip().removesuffix('...').strip()}"
            for key, value in flatten(values).items()]  # fmt: skip


LABELLED = {(f"few_label:{BUDGET}", TARGET_LABELS)}


@pytest.fixture(scope="module")
def found(mini_data, tmp_path_factory) -> Path:
    """The search's storage."""
    storage = tmp_path_factory.mktemp("search")
    search_folder(storage, mini_data)
    return storage


@pytest.fixture(scope="module")
def trained(found, mini_data, tmp_path_factory) -> Path:
    """A storage where best.yaml was trained under its default name."""
    storage = tmp_path_factory.mktemp("trained")
    printed = start(mini_data, storage, "--config", found / "searches/s/best.yaml")
    assert str(BY) in printed
    return storage


def run_in(storage: Path) -> RunFolder:
    (run,) = [RunFolder(path.parent) for path in storage.glob("*/DONE.json")]
    return run


def test_a_run_of_best_yaml_wears_the_badge_under_its_default_name(trained, capsys):
    run = run_in(trained)
    assert "-c" not in run.name and run.manifest["search"] == "s"
    assert (run.manifest["selection"], run.manifest["label_budget"]) == ("few_label:4", BUDGET)
    assert badges(trained) == LABELLED
    assert runs.main(["--storage", str(trained), "show", run.name]) == 0
    shown = capsys.readouterr().out
    assert "  search: s" in shown and "  label_budget: 4" in shown and str(BY) in shown


def test_typed_settings_are_the_files(found):
    best = found / "searches/s/best.yaml"
    assert load("streets", "spcl", None, typed(best)).as_dict() | {"chosen_by": None} == (
        load(file=best).as_dict() | {"chosen_by": None}
    )


def test_the_badge_stands_when_the_run_is_copied_renamed_and_the_search_is_gone(
    trained, found, mini_data, tmp_path
):
    """The search never was in this storage; and whoever starts it again need not have the file."""
    shutil.copytree(run_in(trained).folder, tmp_path / "mine")
    assert badges(tmp_path) == LABELLED
    again = ["--name", "mine", *typed(found / "searches/s/best.yaml")]
    assert "mine is finished already" in (printed := start(mini_data, tmp_path, *again))
    assert str(BY) in printed and badges(tmp_path) == LABELLED
    # Unfinished, it is made again: so is its manifest.
    (tmp_path / "mine/DONE.json").unlink()
    assert str(BY) in start(mini_data, tmp_path, *again) and badges(tmp_path) == LABELLED
    (tmp_path / "mine/DONE.json").unlink()
    (tmp_path / "mine/manifest.json").unlink()
    assert str(BY) in start(mini_data, tmp_path, *again) and badges(tmp_path) == LABELLED


def test_a_finished_run_without_labels_that_is_started_from_the_file_gets_the_badge(
    found, mini_data, tmp_path
):
    best = found / "searches/s/best.yaml"
    printed = start(mini_data, tmp_path, *typed(best))
    assert "chosen by" not in printed and badges(tmp_path) == {("last",)}
    done = (run_in(tmp_path).folder / "DONE.json").read_bytes()
    printed = start(mini_data, tmp_path, "--config", best)
    assert "is finished already" in printed and str(BY) in printed
    assert badges(tmp_path) == LABELLED
    start(mini_data, tmp_path, *typed(best))
    assert badges(tmp_path) == LABELLED
    assert (run_in(tmp_path).folder / "DONE.json").read_bytes() == done


def test_a_cache_of_the_boards_sees_the_badge(found, mini_data, tmp_path):
    best, cache = found / "searches/s/best.yaml", tmp_path / "cache.parquet"
    start(mini_data, tmp_path / "runs", *typed(best))
    before = {run.label_budget for run in read_runs([tmp_path / "runs"], cache)[0]}
    start(mini_data, tmp_path / "runs", "--config", best)
    after = {run.label_budget for run in read_runs([tmp_path / "runs"], cache)[0]}
    assert (before, after) == ({0}, {BUDGET})


def test_final_picks_are_trained_from_files_that_say_who_chose_them(mini_data, tmp_path, capsys):
    folder = search_folder(tmp_path, mini_data)
    experiment = Experiment(folder)
    assert experiment.picks == [1, 2]
    for number in experiment.picks:
        pick = load(file=folder / f"pick-{number}.yaml")
        assert pick == experiment.config(number) and pick.chosen_by == BY
    asked = argparse.Namespace(final_seeds=1, devices_per_trial=0, address=None)  # 0: without Ray
    search._train_picks(experiment, asked)
    names = sorted(path.parent.name for path in tmp_path.glob("*/DONE.json"))
    assert names == ["s-c1-s0", "s-c2-s0"]
    assert "--config" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "searches")
    (tmp_path / "s-c1-s0").rename(tmp_path / "one")
    assert badges(tmp_path) == LABELLED
    for name, number in (("one", 1), ("s-c2-s0", 2)):
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        chosen = record(number, 2, {})["settings"]
        assert {key: flatten(config)[key] for key in chosen} == chosen
        assert config["source"]["holdout"] == 2
