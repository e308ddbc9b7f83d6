"""Planning searches and sweeps without data; when a dry run times a step."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import MINI

from spcl.configuration.config import load
from spcl.engine import timing
from tune import search, sweep

UNWRITABLE = "/proc/spcl"  # nobody can make a folder there
COMMANDS: dict[str, tuple[Callable, list[str]]] = {
    "search": (search.main, []),
    "sweep": (sweep.main, ["components"]),
}


def call(command: str, data: Path, storage: Path | str, *more: str) -> int:
    main, first = COMMANDS[command]
    return main([*first, "--data", str(data), "--storage", str(storage), *more])


@pytest.fixture
def untimed(monkeypatch):
    """Who times a step fails."""

    def fail(*of: object) -> float:
        raise AssertionError("a step was timed")

    monkeypatch.setattr(timing, "_timed", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_mission_is_planned_without_data(untimed, tmp_path, capsys):
    assert call("search", tmp_path, UNWRITABLE, "--benchmark", "synscapes", "--dry-run") == 0
    captured = capsys.readouterr()
    out, lines = captured.out, captured.out.splitlines()
    assert "synscapes/train, 25000 images of 1440x720, 256 held out, not converted yet" in out
    assert "cityscapes/train, 2975 images of 2048x1024, not converted yet" in out
    assert re.search(r"spcl.temperature +100 +\[0.05, 200\] log", out)
    for stage in ("adversarial", "prototypes of adversarial", "predictions of adversarial"):
        assert re.search(rf"^{stage} +not converted yet \? *$", out, re.MULTILINE)
    rungs = {line[:24].strip(): line[24:].split() for line in lines}
    # jobs, steps a job: a quarter, half and all of 40000, then 20000; one of four climbs
    assert [rungs[n][:2] for n in ("spcl 1/4", "spcl 1/2", "spcl", "self_training")] == [
        ["16", "10000"],
        ["4", "10000"],
        ["1", "20000"],
        ["1", "20000"],
    ]
    # A job of self-training keeps what that stage needs, not what the one before did.
    mib = {name: int(rungs[name][-1]) for name in ("spcl 1/4", "spcl", "self_training", "shared")}
    assert mib["self_training"] < mib["spcl"] == mib["spcl 1/4"] < mib["shared"]
    assert "22 jobs, 280000 steps of training; no step was timed" in out
    assert not re.search(r"[0-9a-f]{16}", out)
    # The evaluation split is no part of a search.
    assert "cityscapes/train: register" in out and "cityscapes/val" not in out
    assert lines[-1] == "can't start yet: 2 data sets missing"
    assert list(tmp_path.iterdir()) == [] and not captured.err


def space(folder: Path, line: str) -> list[str]:
    path = folder / "mine.yaml"
    path.write_text(line)
    return ["--space", str(path)]


@pytest.mark.parametrize(
    ("asked", "rungs", "total"),
    [
        # 16 of a quarter, 4 of as much, 1 of a half; the reference, which has more steps.
        (["--method", "adversarial"], {"adversarial 1/4": ["16", "300"]}, 20 * 300 + 600 + 3600),
        # Whole after two more stages of 1200 steps each.
        (["--method", "spcl"], {"self_training": ["1", "1200"]}, 20 * 300 + 600 + 2400 + 3600),
        (["--trials", "1", "stages=[adversarial]"], {"adversarial": ["1", "600"]}, 1200 + 3600),
    ],
)
def test_a_search_of_the_first_stage_counts_its_reference(
    asked, rungs, total, untimed, tmp_path, capsys
):
    mine = space(tmp_path, "adversarial.weight: {low: 1.0e-4, high: 1.0e-2, log: true}")
    assert call("search", tmp_path / "data", UNWRITABLE, *mine, *asked, "--dry-run") == 0
    out = capsys.readouterr().out
    assert re.search(r"^reference stage +key +stored *\nsource_only ", out, re.MULTILINE)
    assert "measured against it after as many steps: 300, 600, 1200" in out
    found = {line[:24].strip(): line[24:].split()[:2] for line in out.splitlines()}
    assert rungs.items() <= found.items()
    assert f" jobs, {total} steps of training" in out and "one job less" not in out


@pytest.mark.parametrize(("trials", "total"), [(16, 19 * 900 + 1800 + 3600), (1, 3600)])
def test_a_search_of_source_only_training_does_not_count_its_default_twice(
    trials, total, untimed, tmp_path, capsys
):
    """The default configuration, which begins at the lowest rung, is the reference."""
    mine = space(tmp_path, "source_only.learning_rate: {low: 0.01, high: 0.2, log: true}")
    asked = [*mine, "--method", "source_only", "--trials", str(trials), "--dry-run"]
    assert call("search", tmp_path / "data", UNWRITABLE, *asked) == 0
    out = capsys.readouterr().out
    assert f" jobs, {total} steps of training" in out
    assert "of each rung that it climbs, one job less trains" in out


def test_validators_read_the_target_of_a_recipe_that_does_not(tmp_path, capsys):
    mine = space(tmp_path, "source_only.learning_rate: {low: 0.01, high: 0.2, log: true}")
    asked = [*mine, "--method", "source_only", "--benchmark", "gta5", "--final-seeds", "1"]
    assert call("search", tmp_path / "data", tmp_path / "runs", *asked) == 2
    error = capsys.readouterr().err
    assert "cityscapes/val, cityscapes/train" in error and "of 2 data sets" in error


def test_a_reference_whose_batch_does_not_fit_the_workers_is_refused(tmp_path, capsys):
    mine = space(tmp_path, "adversarial.weight: {low: 1.0e-4, high: 1.0e-2, log: true}")
    asked = [*mine, "--method", "adversarial", "--devices-per-trial", "2", "source_only.batch=3"]
    assert call("search", tmp_path, tmp_path, *asked) == 2
    error = capsys.readouterr().err
    assert "the batch of stage 'source_only' must be divisible by the workers" in error


def test_a_sweep_is_planned_without_data(untimed, tmp_path, capsys):
    assert call("sweep", tmp_path, UNWRITABLE, "--benchmark", "gta5", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "15 distinct runs in 15 cells; 39 distinct stages for 84, 0 stored" in out
    # Of three seeds 40000 steps of the warm-up; of adaptation and self-training two kinds.
    assert f"{3 * 40000 + 6 * 40000 + 6 * 20000} steps of training to do; no step was timed" in out
    assert re.search(r"^all +2  not converted yet +0 of 9 +to do$", out, re.MULTILINE)
    assert not re.search(r"[0-9a-f]{12}", out)
    assert out.splitlines()[-1] == "can't start yet: 2 data sets missing"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "more", "missing"),
    [
        ("search", [], ["gta5/train", "cityscapes/train"]),
        (
            "search",
            ["--objective", "few_label:3"],
            ["gta5/train", "cityscapes/train, cityscapes/train_labelled"],
        ),
        (
            "search",
            ["--objective", "target_oracle"],
            ["gta5/train", "cityscapes/train, cityscapes/val"],
        ),
        ("search", ["--final-seeds", "2"], ["gta5/train", "cityscapes/train, cityscapes/val"]),
        ("sweep", [], ["gta5/train", "cityscapes/train, cityscapes/val"]),
    ],
)
def test_plans_and_starts_list_the_same_missing_sets(command, more, missing, tmp_path, capsys):
    asked = ["--benchmark", "gta5", *more]
    storage = tmp_path / "runs"
    assert call(command, tmp_path / "data", storage, *asked, "--dry-run") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "can't start yet: 2 data sets missing" and not storage.exists()
    planned = [line for line in out if "ray_jobs/ingest.py" in line]
    assert [line.split(":")[0].strip() for line in planned] == missing
    assert call(command, tmp_path / "data", storage, *asked) == 2
    head, *refused = capsys.readouterr().err.splitlines()
    assert head == f"error: no shards in {tmp_path}/data of 2 data sets:" and refused == planned
    assert list(storage.iterdir()) == [] and not (tmp_path / "data").exists()


def test_the_budget_of_an_oracle_is_known_before_its_data(tmp_path, capsys):
    asked = ["--benchmark", "gta5", "--objective", "target_oracle", "--dry-run"]
    assert call("search", tmp_path, UNWRITABLE, *asked) == 0
    assert "objective target_oracle, 250 labelled target images" in capsys.readouterr().out


def test_labels_that_are_missing_are_no_reason_not_to_plan(untimed, mini_data, capsys):
    asked = ["--objective", "few_label:4", "--dry-run", *MINI]
    assert call("search", mini_data, UNWRITABLE, *asked) == 0
    out = capsys.readouterr().out
    assert re.search(r"^adversarial +[0-9a-f]{16} +no", out, re.MULTILINE)
    raw = mini_data / "streets/raw/cityscapes"
    assert (
        "streets/real/train_labelled: once a run has rendered streets, write them with: python "
        f"ray_jobs/ingest.py --dataset cityscapes --split train_labelled --root {raw} "
        f"--out {mini_data} --name streets/real\n"
    ) in out
    assert out.splitlines()[-1] == "can't start yet: 1 data set missing"


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_rendered_before_a_start_is_refused(command, tmp_path, capsys):
    mixed = ["target.dataset=cityscapes", "evaluation.dataset=cityscapes"]
    assert call(command, tmp_path / "data", tmp_path / "runs", *mixed) == 2
    error = capsys.readouterr().err
    assert "of cityscapes/train" in error and "rendering" not in error
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_timed_on_a_cpu_unless_asked(command, untimed, mini_data, capsys):
    assert call(command, mini_data, UNWRITABLE, "--dry-run", *MINI) == 0
    out = capsys.readouterr().out
    assert "no step was timed (--time tells device-hours of this machine)" in out
    with pytest.raises(AssertionError, match="a step was timed"):
        call(command, mini_data, UNWRITABLE, "--dry-run", "--time", *MINI)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_says_what_it_times(command, mini_data, monkeypatch, capsys):
    """A step takes an hour here."""
    monkeypatch.setattr(timing, "_timed", lambda *of: 3600.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(command, mini_data, UNWRITABLE, "--dry-run", "--time", *MINI) == 0
    captured = capsys.readouterr()
    for stage in ("adversarial", "spcl", "self_training"):
        assert f"timing 4 steps of {stage} on this machine's cpu, 4 image(s)" in captured.err
    hours = {
        # 16 configurations of 2 and 4 of 1 and 1 of 3 steps, 1 of 4, the warm-up of 6.
        "search": 16 * 2 + 4 * 1 + 3 + 4 + 6,
        # Stages that differ: three warm-ups, six adaptations and six self-trainings.
        "sweep": 3 * 6 + 6 * 6 + 6 * 4,
    }
    assert f"{hours[command]}.00 device-hours of training on this machine's cpu" in captured.out


def test_what_is_too_large_for_a_cpu_is_timed_with_one_image(monkeypatch, capsys):
    images = []
    monkeypatch.setattr(timing, "_timed", lambda *of: images.append(of[3]) or 2.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = load("synscapes", "spcl")
    assert timing.step_seconds(config, "spcl", 19, 2) == 4.0  # two images, of 2 s each
    assert images == [1]
    assert "4 steps of spcl on this machine's cpu, 1 image(s)" in capsys.readouterr().err


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("asked", [True, False])
def test_a_gpu_is_timed_without_being_asked(there, device, asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    config = load("streets", "spcl", None, [f"train.device={device}"])
    assert timing.is_timed(config, asked) == (asked or (there and device == "auto"))


@pytest.mark.parametrize("command", COMMANDS)
def test_time_is_of_a_dry_run(command, tmp_path, capsys):
    assert call(command, tmp_path, tmp_path, "--time") == 2
    assert "--time is of a dry run; add --dry-run" in capsys.readouterr().err
