"""Ranks that are frozen: those that wait say for whom, and give up after the time that was set."""

import signal

import pytest
from clusters import Command, Commands, environment, free_ports, wait_until
from mini import arguments, messages, reached

from spcl.store.run_folder import RunFolder

#: `python -m spcl.train` that beats and tells faster.
QUICK = """
import sys
from spcl import cli
from spcl.store import heartbeat
heartbeat.BEAT, heartbeat.QUIET = 0.1, 1.0
from spcl.train import main
sys.exit(cli.guarded(main))
"""
LONG = ("spcl.steps=40", "train.checkpoint_every=20", "stages=[adversarial,spcl]")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


def start(commands: Commands, *line: str, ranks: int = 2) -> list[Command]:
    """That many of two ranks."""
    port, started = free_ports(1)[0], []
    for rank in range(ranks):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        variables["MASTER_ADDR"] = "127.0.0.1"
        own = environment({name: str(value) for name, value in variables.items()})
        started.append(commands.start(["python", "-c", QUICK, *line], own))
    return started


def wait_for_training(run: RunFolder, ranks: list[Command]) -> None:
    def seen() -> bool:
        return any(rank.code is not None for rank in ranks) or reached(run, "spcl", 3)

    wait_until(seen, 100, "spcl runs")
    assert [rank.code for rank in ranks] == [None, None], ranks[0].err + ranks[1].err


def test_who_is_waited_for_is_told_and_the_run_goes_on_afterwards(commands, mini_data, tmp_path):
    run = RunFolder(tmp_path / "r")
    ranks = start(commands, *arguments(mini_data, tmp_path, "r", *LONG))
    wait_for_training(run, ranks)
    for frozen, teller in ((1, 0), (0, 1)):
        pid = ranks[frozen].process.pid
        wanted = f": rank {frozen} (process {pid} on "

        def told(teller: int = teller, wanted: str = wanted) -> list[str]:
            text = "".join(messages(run)) + ranks[0].out if teller == 0 else ranks[1].err
            return [line for line in text.splitlines() if wanted in line and "stopped" in line]

        ranks[frozen].process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: bool(told()), 60, f"rank {teller} tells of rank {frozen}")
        finally:
            ranks[frozen].process.send_signal(signal.SIGCONT)
        assert " was last heard of " in told()[0] and " s ago, in stage spcl, step " in told()[0]
        assert f"goes on with `kill -CONT {pid}`" in told()[0]
    assert [rank.finish() for rank in ranks] == [0, 0], ranks[0].err
    assert run.done and not (run.folder / "ranks").exists()


def test_a_rank_that_waits_too_long_gives_up_with_one_line(commands, mini_data, tmp_path):
    run = RunFolder(tmp_path / "r")
    more = (*LONG, "train.collective_timeout=4")
    ranks = start(commands, *arguments(mini_data, tmp_path, "r", *more))
    wait_for_training(run, ranks)
    ranks[1].process.send_signal(signal.SIGSTOP)
    assert ranks[0].finish(60) == 2
    errors = [line for line in ranks[0].err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in ranks[0].err
    assert errors[0].startswith("error: process 0 of 2 heard nothing (more) of another one (")
    ranks[1].process.send_signal(signal.SIGCONT)
    assert ranks[1].finish(60) == 2 and "Traceback" not in ranks[1].err
    assert not run.done and not run.failed and not (run.folder / "lease.json").exists()


def test_a_rank_that_never_comes_is_not_waited_for_for_ever(commands, mini_data, tmp_path):
    line = arguments(mini_data, tmp_path, "r", "train.collective_timeout=2")
    (rank,) = start(commands, *line, ranks=1)
    assert rank.finish(60) == 2
    (error,) = (line for line in rank.err.splitlines() if line.startswith("error: "))
    assert error.startswith("error: process 0 of 2 heard nothing (more) of another one (")
    assert "Traceback" not in rank.err and not list(tmp_path.iterdir())
