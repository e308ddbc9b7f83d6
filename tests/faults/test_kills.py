"""Processes are killed: the run goes on, or the same command continues it, to the same bits."""

import os
import re
import signal
from pathlib import Path

import pytest
from clusters import Command, Commands, RayCluster, environment, wait_until
from mini import TRAIN, arguments, assert_same_bits, messages, reached

from spcl.store.run_folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

# Workers outlive a killed driver by some seconds; the stage must outlive them.
STEPS = 400
LONG = f"spcl.steps={STEPS}"
SHORTER = 200  # where a worker is killed, and the driver lives
SEEN_STEP = 12  # past the first checkpoint of the adaptation, far from its end


@pytest.fixture(scope="module")
def undisturbed(
    cluster: RayCluster,
    commands: Commands,
    mini_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, RunFolder]:
    """The recipe with one and two workers, never stopped, each in a storage of its own."""
    runs = {}
    for workers in (1, 2):
        storage = tmp_path_factory.mktemp(f"undisturbed-{workers}")
        line = [*TRAIN, *arguments(mini_data, storage, "r", LONG), "--workers", workers]
        command = commands.run(line, cluster.environment)
        assert command.code == 0, command.err
        runs[workers] = RunFolder(storage / "r")
    return runs


def wait_for_adaptation(
    run: RunFolder, command: Command, stage: str = "spcl", steps: int = STEPS
) -> None:
    wait_until(
        lambda: command.code is not None or reached(run, stage, SEEN_STEP), 200, f"{stage} runs"
    )
    assert not reached(run, stage, steps), "seen too late to disturb"


def assert_resumed_in_adaptation(run: RunFolder, stage: str = "spcl") -> None:
    """Not from the stage's start, and no finished stage was done again."""
    said = messages(run)
    (resumed,) = [text for text in said if "resumed at step" in text]
    assert 10 <= int(re.fullmatch(rf"{stage}: resumed at step (\d+)", resumed)[1]) < STEPS
    others = [text for text in said if text.endswith("started") and not text.startswith(stage)]
    assert "self_training: started" in others and len(others) == len(set(others))


def kill_worker(run: RunFolder, rank: int) -> re.Pattern:
    """SIGKILL to one of two workers; returns what its log says at each start."""
    (log,) = (run.folder / "logs").glob(f"*-rank{rank}.log")
    pattern = re.compile(rf"^rank {rank} of 2: process (\d+) on ", re.MULTILINE)
    (process,) = pattern.findall(log.read_text())
    os.kill(int(process), signal.SIGKILL)
    return pattern


def assert_started_twice(run: RunFolder, rank: int, pattern: re.Pattern) -> None:
    (log,) = (run.folder / "logs").glob(f"*-rank{rank}.log")
    assert len(pattern.findall(log.read_text())) == 2


@pytest.mark.parametrize("where", ["own Ray", "cluster"])
def test_after_a_killed_driver_the_same_command_ends_with_the_same_bits(
    where, undisturbed, commands, cluster, mini_data, tmp_path
):
    run = RunFolder(tmp_path / "runs/r")
    line = [*TRAIN, *arguments(mini_data, tmp_path / "runs", "r", LONG)]
    own = environment({"HOME": str(tmp_path)})
    variables = own if where == "own Ray" else cluster.environment
    first = commands.start(line, variables)
    wait_for_adaptation(run, first)
    first.process.kill()
    assert first.finish() == -signal.SIGKILL and not run.done
    assert (run.folder / "lease.json").exists()  # of a dead process

    second = commands.run(line, variables)
    assert second.code == 0, second.err
    assert_resumed_in_adaptation(run)
    assert_same_bits(run, undisturbed[1])


def test_a_driver_asked_to_end_gives_everything_back(commands, cluster, mini_data, tmp_path):
    """SIGTERM, from a scheduler or `ray job stop`, is Ctrl-C."""
    run = RunFolder(tmp_path / "r")
    command = commands.start(
        [*TRAIN, *arguments(mini_data, tmp_path, "r", LONG)], cluster.environment
    )
    wait_for_adaptation(run, command)
    command.process.terminate()
    assert command.finish(60) == 130
    assert command.err.splitlines()[1:] == [
        "interrupted; the same command continues where it stopped"
    ]
    assert not run.done and not run.failed and not (run.folder / "lease.json").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_goes_on_by_itself_after_a_killed_worker(
    rank, undisturbed, commands, cluster, mini_data, tmp_path
):
    run = RunFolder(tmp_path / "r")
    line = [*TRAIN, *arguments(mini_data, tmp_path, "r", LONG), "--workers", 2]
    command = commands.start(line, cluster.environment)
    wait_for_adaptation(run, command)
    pattern = kill_worker(run, rank)
    assert command.finish() == 0, command.err
    assert_started_twice(run, rank, pattern)
    assert_resumed_in_adaptation(run)
    assert_same_bits(run, undisturbed[2])


@pytest.mark.parametrize("method", ["sdca", "asanet"])
def test_other_methods_survive_a_killed_worker_too(method, commands, cluster, mini_data, tmp_path):
    recipe = [f"stages=[source_only,{method},self_training]", f"{method}.steps={SHORTER}"]
    shape = ["--method", method, "--workers", 2, "source_only.steps=10", *recipe]
    left, right = RunFolder(tmp_path / "left/r"), RunFolder(tmp_path / "right/r")
    line = [*TRAIN, *arguments(mini_data, left.folder.parent, "r", *shape)]
    undisturbed = commands.run(line, cluster.environment)
    assert undisturbed.code == 0, undisturbed.err

    line = [*TRAIN, *arguments(mini_data, right.folder.parent, "r", *shape)]
    command = commands.start(line, cluster.environment)
    wait_for_adaptation(right, command, method, SHORTER)
    pattern = kill_worker(right, 1)
    assert command.finish() == 0, command.err
    assert_started_twice(right, 1, pattern)
    assert_resumed_in_adaptation(right, method)
    assert_same_bits(right, left)


def test_a_failure_that_stays_is_explained_with_the_workers_output(
    commands, cluster, mini_data, tmp_path
):
    """A file where the stages should be stored: no user's mistake that spcl knows of."""
    (tmp_path / "artefacts").touch()
    run = RunFolder(tmp_path / "r")
    line = arguments(mini_data, tmp_path, "r", "stages=[adversarial]", "adversarial.steps=2", LONG)
    command = commands.run([*TRAIN, *line], cluster.environment)
    assert command.code == 2
    _, error, *output = command.err.splitlines()
    assert error.startswith("error: training failed: rank 0: NotADirectoryError: [Errno 20]")
    assert error.endswith("(after 3 restarts)")
    (log,) = (run.folder / "logs").iterdir()
    assert output[0] == f"--- end of {log}"
    assert output[1:] == log.read_text().splitlines()[-20:]
    assert run.failed["error"] == error.removeprefix("error: ")
