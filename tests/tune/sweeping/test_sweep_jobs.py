"""`python tune/sweep.py`: what runs, what fails, and what kills change."""

import csv
import dataclasses
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from clusters import environment, wait_until
from conftest import MINI
from sweeps import (
    COMPONENTS,
    TWO_ROWS,
    artefacts,
    call,
    handmade_sweep,
    resolved,
    run_folders,
    written,
)

from ray_jobs import piece
from spcl.store.lease import Lease
from spcl.store.run_folder import RunFolder, read_confusions
from tune import sweep
from tune.sweeping import estimate, jobs
from tune.sweeping.grid import Sweep
from tune.sweeping.schedule import Schedule
from tune.sweeping.table import make_table


@pytest.fixture
def handmade(mini_data, tmp_path) -> Sweep:
    return handmade_sweep(mini_data, tmp_path)


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
    monkeypatch.setattr(estimate, "step_seconds", lambda *of: 3600.0)
    out = estimate.describe(handmade, timed=True)
    hours = {line[:34].strip(): line.split()[-1] for line in out.splitlines() if line}
    # Open are "self-training" of three seeds and "all" of two.
    assert (hours["adversarial"], hours["spcl"]) == ("18.00", "12.00")
    assert hours["self_training"] == "20.00"
    assert "; 50.00 device-hours" in out


def test_a_step_is_timed_anew_for_another_batch(mini_data, tmp_path, monkeypatch):
    def of_batch(config, name, classes, workers):
        return config.batch_of(name) * 3600.0

    monkeypatch.setattr(estimate, "step_seconds", of_batch)
    values = {"settings": {"stages": ["adversarial"]}, "grid": {"train.batch": [2, 4]}}
    made = resolved(written(tmp_path, values), mini_data, tmp_path)
    out = estimate.describe(made, timed=True)
    assert "; 36.00 device-hours" in out  # 6 steps of 2, and of 4


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
    task = jobs.task_of(schedule.next(), made, {})
    nowhere = dataclasses.replace(task.piece, data=str(tmp_path / "nowhere"))
    reason = jobs.attempt(dataclasses.replace(task, piece=nowhere))
    run = task.piece.folder
    assert "nowhere" in reason and len(reason.splitlines()) == 1
    assert run.failed["error"] == reason
    assert "nowhere" in (run.folder / "traceback.txt").read_text()
    assert not task.finish and jobs.attempt(task) is None  # a part of the run, this time
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
