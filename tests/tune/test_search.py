"""`python tune/search.py` as a user starts it, on a real Ray."""

import dataclasses
import json
import os
import random
import re
import signal
from pathlib import Path

import experiments
import pytest
import searches
import trees
import yaml
from clusters import environment, wait_until
from conftest import MINI
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from spcl.store.run_folder import RunFolder
from tune import search
from tune.searching.experiment import Experiment
from tune.searching.outputs import write_outputs
from tune.searching.study import JOURNAL

SEARCH = ("python", "tune/search.py")
OUTPUTS = ("best.yaml", "trials.csv", "trials.parquet", "report.html", "agreement.json")
#: Of a record: what a clock, a machine or a kill may change.  A job that is killed after it has
#: stored the shared stages finds them when it is tried again.
FREE = ("attempts", "checksum", "device_seconds", "finished", "host", "shared_steps")


def line(data: Path, storage: Path, *more: object) -> list[object]:
    """A small search by source_val; settings in `more` win over MINI's."""
    places = ["--data", data, "--storage", storage, "--name", "s", "--objective", "source_val"]
    return [*SEARCH, *places, "--trials", 3, *MINI, *more]


def results(folder: Path) -> dict[str, dict]:
    """Every record, without what may differ between two equal searches."""
    return {
        name: {key: value for key, value in record.items() if key not in FREE}
        for name, record in searches.records(folder).items()
    }


def study(folder: Path) -> list[tuple]:
    """The journal's trials, without clocks."""
    import optuna

    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return [
        (t.state, t.params, t.intermediate_values, t.values, t.user_attrs["rung"]) for t in trials
    ]


def failed_line(call: list[object], capsys: pytest.CaptureFixture) -> str:
    assert search.main([str(part) for part in call]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trials", 0], "--trials must be at least 1"),
        (["--concurrent", "many"], "--concurrent must be auto or a number"),
        (["--objective", "labelfree"], "did you mean 'label_free'"),
        (["--objective", "few_label"], "few_label must say how many labelled images"),
        (
            ["--objective", "few_label:4"],
            "write them with: python ray_jobs/ingest.py --dataset",
        ),
        (["--method", "source_only"], "method 'source_only' has no search space of its own"),
        (["--devices-per-trial", 3], "must be divisible by the workers"),
        (["--sampler", "grid"], "--help"),
        (["--audit", "nothing"], "there are no searches"),
    ],
)
def test_mistakes_are_one_line(more, message, mini_data, tmp_path, capsys):
    error = failed_line(line(mini_data, tmp_path, *more)[2:], capsys)
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "searches").exists()


def test_a_dry_run_says_what_would_run_and_starts_nothing(mini_data, tmp_path, capsys):
    arguments = line(mini_data, tmp_path, "--trials", 9, "--eta", 3, "--dry-run")[2:]
    assert search.main([str(part) for part in arguments]) == 0
    out = capsys.readouterr().out
    assert "spcl.contrast_weight/relative" in out and "predictions of adversarial" in out
    rows = {parts[0]: parts for parts in map(str.split, out.splitlines()) if parts}
    assert rows["self_training"][1:3] == ["1", "4"]  # jobs, steps
    assert "14 jobs" in out and "device-hours" in out
    assert not (tmp_path / "searches").exists()


@pytest.mark.parametrize("objective", ["label_free", "source_val"])
def test_the_end_of_a_search_says_how_far_its_default_objective_can_be_trusted(
    objective, tmp_path, capsys
):
    jobs = [experiments.record(n, 2, experiments.validators(0.1 * n)) for n in range(3)]
    folder = experiments.make(tmp_path, jobs, objective=objective)
    search._show(Experiment(folder))
    write_outputs(folder)
    for text in (capsys.readouterr().out, (folder / "report.html").read_text()):
        told = "label_free has not been shown to rank networks" in text
        assert told == (objective == "label_free") == ("-0.45 -0.27 -0.34" in text)


def test_a_search_of_older_code_goes_on_and_calls_its_first_configuration_the_default(
    mini_data, tmp_path
):
    asked = searches.search(mini_data, tmp_path)
    asked.open()
    path = asked.folder / "search.yaml"
    values = yaml.safe_load(path.read_text())
    assert "published" not in values and Experiment(asked.folder).default == 0
    left_out = ("default", "checksum")
    old = {key: value for key, value in values.items() if key not in left_out}
    old |= {"schema": 1, "published": 0}
    del old["config"]["chosen_by"]  # and in `values`, too
    path.write_text(yaml.safe_dump(old))
    assert Experiment(asked.folder).default == 0
    asked.open()
    again = yaml.safe_load(path.read_text())
    del again["config"]["chosen_by"], again["checksum"], values["checksum"]
    assert again == values


def test_jobs_of_a_search_say_what_chooses_among_them(mini_data, tmp_path):
    asked = searches.search(mini_data, tmp_path, objective="target_oracle")
    job = asked.job(1, 0, asked.space.defaults(asked.config), {})
    by = {"search": "s", "objective": "target_oracle", "label_budget": 3}
    assert job.config["chosen_by"] == by == dataclasses.asdict(asked.chosen_by)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_search_from_nothing_to_its_report(cluster, commands, mini_data, tmp_path):
    command = commands.run(line(mini_data, tmp_path), cluster.environment)
    assert command.code == 0, command.err
    folder = tmp_path / "searches/s"
    assert "best: configuration " in command.out
    assert all((folder / name).is_file() for name in (*OUTPUTS, "audit.json", "audit.parquet"))
    found = results(folder)
    assert {f"000{n}-0.json" for n in range(3)} < found.keys() and "reference.json" in found
    assert any(name.endswith("-3.json") for name in found)
    assert all(record["label_budget"] == 0 for record in found.values())
    made = [path.name for path in (tmp_path / "artefacts").iterdir()]
    assert sum(name.startswith("adversarial-") for name in made) == 1
    assert not any(name.startswith("evaluation-") for name in made)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_recipe_of_one_stage_is_searched_as_planned_and_once(
    cluster, commands, mini_data, tmp_path, capsys
):
    space = tmp_path / "space.yaml"
    space.write_text("adversarial.weight: {low: 1.0e-4, high: 1.0e-2, log: true}\n")
    call = line(mini_data, tmp_path, "--method", "adversarial", "--space", space)
    call += ["source_only.steps=8"]
    assert search.main([str(part) for part in (*call[2:], "--dry-run")]) == 0
    planned = int(re.search(r" (\d+) steps of training", capsys.readouterr().out)[1])

    command = commands.run(call, cluster.environment)
    assert command.code == 0, command.err
    folder = tmp_path / "searches/s"
    assert "the reference network (source_only): ready" in command.err
    assert "best: configuration " in command.out and "after adversarial" in command.out
    assert all((folder / name).is_file() for name in (*OUTPUTS, "audit.json", "audit.parquet"))
    found = results(folder)
    assert sorted(name[5:] for name in found) == ["0.json"] * 3 + ["1.json", "2.json", "ence.json"]
    logged = {path.name: _trained(path) for path in folder.glob("configurations/*")}
    assert sum(logged.values()) == planned and logged["reference"] == 8
    assert sum(record["steps"] for record in found.values()) == planned - 8

    again = commands.run(call, environment())
    assert again.code == 0, again.err
    assert "s is finished already" in again.err and "Ray" not in again.err
    assert results(folder) == found
    assert {path.name: _trained(path) for path in folder.glob("configurations/*")} == logged

    assert "(eta: 4 -> 2)" in failed_line([*call[2:], "--eta", 2], capsys)


def _trained(folder: Path) -> int:
    """Lines of training steps in a run's log, each of which was made once."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return sum("loss" in text and "step" in json.loads(text) for text in lines)


@pytest.mark.ray
def test_what_the_cluster_cannot_hold_is_said_at_once(cluster, commands, mini_data, tmp_path):
    call = line(mini_data, tmp_path, "--devices-per-trial", 2, "--concurrent", 2)
    command = commands.start(call, cluster.environment)
    assert command.finish(60) == 2
    error = command.err.splitlines()[-1]
    assert "2 configuration(s) of 2 device(s) with 1 CPU each do not fit" in error
    assert "nodes have: 2 CPU; it holds 1 of them" in error


# What kills processes.


def one_slot(data: Path, storage: Path, *more: object) -> list[object]:
    settings = ("--trials", 5, "--sampler", "tpe", "--eta", 2, "spcl.steps=60", *more)
    return [*line(data, storage), "--concurrent", 1, "evaluation.dataset=none", *settings]


@pytest.fixture(scope="module")
def undisturbed(cluster, commands, mini_data, tmp_path_factory) -> Path:
    storage = tmp_path_factory.mktemp("undisturbed")
    command = commands.run(one_slot(mini_data, storage), cluster.environment)
    assert command.code == 0, command.err
    return storage / "searches/s"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_same_seed_gives_the_same_study(undisturbed, cluster, commands, mini_data, tmp_path):
    command = commands.run(one_slot(mini_data, tmp_path), cluster.environment)
    assert command.code == 0, command.err
    assert study(tmp_path / "searches/s") == study(undisturbed)
    assert results(tmp_path / "searches/s") == results(undisturbed)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_killed_five_times_ends_with_the_same_search(
    how, undisturbed, cluster, commands, mini_data, tmp_path
):
    rng = random.Random(int(how))
    folder = tmp_path / "searches/s"
    whole = sum(len(line) for line in _progress(undisturbed))
    for kill in range(1, 6):
        command = commands.start(one_slot(mini_data, tmp_path), cluster.environment)
        wanted = whole * (kill - rng.random()) / 6
        wait_until(
            lambda command=command, wanted=wanted: (
                command.code is not None
                or ("at a time" in command.err and sum(map(len, _progress(folder))) >= wanted)
            ),
            200,
            f"the search has done {wanted:.0f} steps",
        )
        assert command.code is None, command.err
        command.process.send_signal(how)
        assert command.finish(60) == (-how if how == signal.SIGKILL else 130)
    command = commands.run(one_slot(mini_data, tmp_path), cluster.environment)
    assert command.code == 0, command.err
    assert results(folder) == results(undisturbed)
    assert study(folder) == study(undisturbed)
    resumed = [text for run in folder.glob("configurations/*/metrics.jsonl")
               for text in run.read_text().splitlines() if "resumed at step" in text]  # fmt: skip
    assert resumed


def _progress(folder: Path) -> list[list]:
    """The logged steps of every configuration."""
    return [list(RunFolder(path).metrics()) for path in folder.glob("configurations/*")]


def _process(folder: Path, configuration: int, rung: int) -> int | None:
    """The process of a job's last attempt."""
    path = folder / f"configurations/{configuration:04d}/attempts.jsonl"
    attempts = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    return next((one["pid"] for one in reversed(attempts) if one["rung"] == rung), None)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_job_is_tried_again_as_configured_then_recorded(
    cluster, commands, mini_data, tmp_path
):
    folder = tmp_path / "searches/s"
    command = commands.start(
        one_slot(mini_data, tmp_path, "--trials", 3, "spcl.steps=200"), cluster.environment
    )
    killed: set[int] = set()

    def kill(configuration: int, times: int) -> bool:
        process = _process(folder, configuration, 0)
        run = RunFolder(folder / f"configurations/{configuration:04d}")
        if process and process not in killed and any(r["step"] > 2 for r in run.metrics()):
            os.kill(process, signal.SIGKILL)
            killed.add(process)
        return command.code is not None or len(killed) == times

    wait_until(lambda: kill(0, 1), 100, "configuration 0 trains")
    wait_until(lambda: kill(1, 3), 100, "configuration 1 trains, twice")
    assert command.finish() == 0, command.err
    found = searches.records(folder)
    assert (found["0000-0.json"]["status"], found["0000-0.json"]["attempts"]) == ("done", 2)
    assert (found["0001-0.json"]["status"], found["0001-0.json"]["attempts"]) == ("failed", 2)
    assert "killed or lost" in found["0001-0.json"]["reason"]
    assert found["0002-0.json"]["status"] == "done"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_configuration_on_two_devices_frees_them_for_the_next(
    cluster, commands, mini_data, tmp_path
):
    """Two CPUs, two workers per configuration: the second can start only where the first ended."""
    more = ("--devices-per-trial", 2, "--trials", 2, "evaluation.dataset=none")
    command = commands.start(line(mini_data, tmp_path, *more), cluster.environment)
    assert command.finish(500) == 0, command.err
    found = searches.records(tmp_path / "searches/s")
    assert {record["status"] for record in found.values()} == {"done"}
    assert {"reference.json", "0000-0.json", "0001-0.json"} < found.keys()
    manifest = RunFolder(tmp_path / "searches/s/configurations/0001").manifest
    assert manifest["hardware"]["workers"] == 2


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_real_datasets_run_the_same_path(cluster, commands, tmp_path):
    """Synscapes to Cityscapes from fixture trees: search, final trainings, audit."""
    from spcl.data.convert import convert

    size = (64, 48)
    trees.synscapes_tree(tmp_path / "raw/synscapes", 12)
    trees.cityscapes_tree(tmp_path / "raw/cityscapes", size=size)
    for name, split in (("synscapes", "train"), ("cityscapes", "train"), ("cityscapes", "val")):
        convert(name, tmp_path / "raw" / name, tmp_path / "data" / name / split, split=split)
    tiny = [text for text in MINI if not text.startswith("streets")]
    sizes = [f"{role}.size=[48,64]" for role in ("source", "target", "evaluation")]
    call = [*SEARCH, "--benchmark", "synscapes", "--data", tmp_path / "data"]
    call += ["--storage", tmp_path / "runs", "--trials", 3, "--name", "s", "model=tiny"]
    call += ["--objective", "source_val", "--final-seeds", 2]
    command = commands.run(
        [*call, *tiny, *sizes, "train.batch=2", "self_training.batch=2"], cluster.environment
    )
    assert command.code == 0, command.err
    folder = tmp_path / "runs/searches/s"
    assert any(name.endswith("-3.json") for name in searches.records(folder))
    finals = [RunFolder(path.parent).done for path in (tmp_path / "runs").glob("s-c*/DONE.json")]
    assert len(finals) in (2, 4) and all(final["table"] for final in finals)
    audited = commands.run([*SEARCH, "--audit", "s", "--storage", tmp_path / "runs"], environment())
    assert audited.code == 0 and "cityscapes/val" in audited.out, audited.err
