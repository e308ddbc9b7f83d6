"""The recipe through Ray Train, as a user starts it: one worker, two, a job, interrupted."""

import os
import signal
from pathlib import Path

import pytest
from clusters import Command, Commands, RayCluster, environment, wait_until
from mini import ADAPTATION_STEPS, TRAIN, arguments, assert_same_bits, messages, reached

from spcl import cli
from spcl.engine.commit import VARIABLE, commit
from spcl.store.run_folder import RunFolder
from spcl.train import main as plain_main

# A hang is what the limits look for: they are generous.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
#: These tests' settings are for any recipe.
NOTE = "note: what source_only.* says is read by no stage of adversarial, spcl, self_training"


@pytest.fixture(scope="module")
def plain(mini_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The recipe without Ray: what every other way to run it is compared with."""
    storage = tmp_path_factory.mktemp("plain")
    assert cli.guarded(plain_main, arguments(mini_data, storage, "plain")) == 0
    return RunFolder(storage / "plain")


@pytest.fixture(scope="module")
def finished(
    cluster: RayCluster,
    commands: Commands,
    mini_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RunFolder, Command]:
    """The recipe through Ray with one worker."""
    storage = tmp_path_factory.mktemp("ray")
    line = arguments(mini_data, storage, "one")
    command = commands.run([*TRAIN, *line], cluster.environment)
    assert command.code == 0, command.err
    return RunFolder(storage / "one"), command


def test_a_run_prints_progress_its_table_and_nothing_to_wonder_about(finished):
    run, command = finished
    (line,) = command.err.splitlines()
    assert line.startswith("joining Ray at ")
    note, *lines = command.out.splitlines()
    assert note == NOTE
    end = lines.index("one  (seed 0)")
    assert [line for line in lines[:end] if line.endswith(": started")] == messages(run)
    assert all(" images/s " in text or text.endswith(": started") for text in lines[: end - 1])
    assert any(text.startswith(f"spcl {ADAPTATION_STEPS}/{ADAPTATION_STEPS} ") for text in lines)
    assert any(text.startswith("mIoU ") for text in lines[end:])
    assert lines[-1].startswith(f"outputs: {run.folder}")


def test_all_outputs_are_there(finished):
    run, _ = finished
    names = {path.name for path in run.folder.iterdir()}
    assert {"config.yaml", "manifest.json", "metrics.jsonl", "tensorboard", "panel.png"} < names
    assert {"DONE.json", "evaluations", "logs", "ray"} < names
    assert not {"FAILED.json", "lease.json"} & names
    (launch,) = (run.folder / "ray").iterdir()
    (handed_to_ray,) = launch.glob("checkpoint_*/checkpoint.pt")
    (stored,) = run.folder.parent.glob("artefacts/self_training-*/checkpoint.pt")
    assert handed_to_ray.read_bytes() == stored.read_bytes()


def test_one_ray_worker_gives_the_bits_of_plain_python(finished, plain):
    assert_same_bits(finished[0], plain)


def test_a_finished_command_says_so_without_ray(finished, commands, mini_data):
    run, _ = finished
    line = arguments(mini_data, run.folder.parent, "one")
    nowhere = environment({"RAY_ADDRESS": "127.0.0.1:9"})  # joining that would be an error
    again = commands.run([*TRAIN, *line], nowhere)
    assert again.code == 0 and again.err == ""
    assert again.out.startswith(f"{NOTE}\none is finished already\n") and "mIoU" in again.out


def submit(commands: Commands, cluster: RayCluster, line: list[str]) -> Command:
    """As the README says; the dashboard's address is given because the port is a free one."""
    job = ("ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--")
    known = ("env", f"{VARIABLE}={commit()}")  # as the submitting shell would say
    return commands.run([*job, *known, *TRAIN, *line], environment(cluster.token))


@pytest.mark.slow
def test_a_job_reuses_stored_stages_under_another_name(finished, commands, cluster, mini_data):
    run, _ = finished
    job = submit(commands, cluster, arguments(mini_data, run.folder.parent, "job"))
    assert job.code == 0, job.out + job.err
    assert "job  (seed 0)" in job.out and "mIoU " in job.out
    expected = [text.replace("started", "done before, reused") for text in messages(run)]
    assert messages(RunFolder(run.folder.parent / "job")) == expected
    manifest = RunFolder(run.folder.parent / "job").manifest
    assert (manifest["commit"], manifest["dirty"]) == commit() and "note: the commit" not in job.out
    # It ran in a copy of the repository, which holds no environment, data or results.
    packages = cluster.folder.glob("session_2*/runtime_resources/working_dir_files/*")
    (copy,) = (path for path in packages if path.is_dir())
    assert (copy / "ray_jobs/train.py").is_file()
    assert not {".venv", ".git", "data", "runs"} & {path.name for path in copy.iterdir()}
    assert sum(path.stat().st_size for path in copy.rglob("*") if path.is_file()) < 5e6


def test_a_job_that_fails_says_why_and_is_not_a_success(commands, cluster, mini_data):
    job = submit(commands, cluster, ["--data", str(mini_data), "--storage", "runs"])
    assert job.code != 0
    assert "error: inside a Ray job --storage must be absolute" in job.out
    assert "Traceback" not in job.out.split("error: inside")[0]


@pytest.mark.slow
def test_two_workers_agree_with_one(commands, cluster, mini_data, tmp_path):
    """Rank 0 logs sums over both ranks; ten steps of each stage.

    The rates are low: at those of streets.yaml rounding errors grow tenfold every few steps.
    """
    shared = ("stages=[adversarial,spcl]", "spcl.steps=10")
    gentle = ("adversarial.learning_rate=0.002", "spcl.learning_rate=0.001")
    one, two = (arguments(mini_data, tmp_path / n, n, *shared, *gentle) for n in ("one", "two"))
    assert cli.guarded(plain_main, one) == 0
    command = commands.run([*TRAIN, *two, "--workers", 2], cluster.environment)
    assert command.code == 0, command.err
    runs = [RunFolder(tmp_path / n / n) for n in ("one", "two")]
    left, right = ({(r["stage"], r["step"]): r["losses"] for r in x.metrics()} for x in runs)
    assert len(left) == 20 and left.keys() == right.keys()
    for step, losses in left.items():
        assert right[step] == pytest.approx(losses, abs=1e-4, rel=0), step
    logs = [path.read_text() for path in sorted((runs[1].folder / "logs").iterdir())]
    assert [log[:11] for log in logs] == ["rank 0 of 2", "rank 1 of 2"]


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line_and_the_same_command_continues(
    plain, commands, cluster, mini_data, tmp_path
):
    """Started on a Ray of its own, while another runs on this machine; continued on that one."""
    run = RunFolder(tmp_path / "runs/r")
    line = arguments(mini_data, tmp_path / "runs", "r")
    alone = environment({"HOME": str(tmp_path)})  # where Ray puts a token
    first = commands.start([*TRAIN, *line], alone)
    wait_until(lambda: first.code is not None or reached(run, "spcl", 12), 150, "spcl runs")
    os.killpg(first.process.pid, signal.SIGINT)  # as a terminal does
    assert first.finish(60) == 130
    assert first.err.splitlines() == [
        "starting Ray on this machine",
        "interrupted; the same command continues where it stopped",
    ]
    assert not run.done and not run.failed and not (run.folder / "lease.json").exists()

    second = commands.run([*TRAIN, *line], cluster.environment)
    assert second.code == 0, second.err
    assert any(text.startswith("spcl: resumed at step ") for text in messages(run))
    assert_same_bits(run, plain)
    assert len(list((run.folder / "ray").iterdir())) == 1  # of the first launch nothing is left
