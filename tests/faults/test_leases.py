"""Two writers of one run: frozen, dead and mistaken holders of a lease.

Nobody takes the run of a process that lives here, and nobody writes to a run that is another's.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from clusters import environment, wait_until
from mini import arguments, reached

from spcl.errors import UserError
from spcl.store import atomic, lease, process
from spcl.store.checkpoint import Checkpoints
from spcl.store.lease import Lease, LeaseLost
from spcl.store.process import State, this_process
from spcl.store.run_folder import RunFolder
from spcl.store.telemetry import Telemetry

HOLD = (
    "import sys; from pathlib import Path; from spcl.store.lease import Lease\n"
    "with Lease(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
)


@contextmanager
def holder(folder: Path, code: str = HOLD):
    """A live process that holds the lease."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "held\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def silence(folder: Path, seconds: float) -> None:
    """Its heart was last heard so long ago."""
    os.utime(folder / lease.FILE, (time.time() - seconds,) * 2)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Lease(folder).__enter__()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_frozen_holder_of_this_host_keeps_its_run_and_is_told_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    with holder(folder) as child:
        child.send_signal(signal.SIGSTOP)
        found = lease._process((folder / lease.FILE).read_text())
        wait_until(lambda: found.state is State.STOPPED, 20, "it stops")
        for seconds in (0, lease.EXPIRES + 5, 1e6):
            silence(folder, seconds)
            message = refusal(folder)
            assert f"'run' is being written by process {child.pid} on " in message
            assert f"is stopped (state T): let it go on with `kill -CONT {child.pid}`" in message
        child.send_signal(signal.SIGCONT)
        wait_until(lambda: found.state is State.RUNNING, 20, "it goes on")
        silence(folder, 1e6)
        assert "which lives but was last heard of 1000000 s ago" in refusal(folder)
        child.communicate()  # its end of file: it lets go
    with Lease(folder):
        pass


MINE = dataclasses.asdict(this_process())
OTHERS = {
    "number used again": (MINE | {"started": MINE["started"] + 1}, 0, True),
    "another boot": (MINE | {"boot": "another"}, 5, False),
    "another boot, silent": (MINE | {"boot": "another"}, lease.EXPIRES + 5, True),
    "another container": (MINE | {"namespace": "1", "pid": 1}, 5, False),
    "another container, silent": (MINE | {"namespace": "1"}, lease.EXPIRES + 5, True),
    "another host": (MINE | {"host": "elsewhere", "boot": "x"}, 5, False),
    "another host, silent": (MINE | {"host": "elsewhere", "boot": "x"}, lease.EXPIRES + 5, True),
    "older, alive": ({"host": MINE["host"], "pid": MINE["pid"]}, 5, False),
    "older, alive, silent": ({"host": MINE["host"], "pid": MINE["pid"]}, 65, True),
    "older, dead": ({"host": MINE["host"], "pid": 2**22 + 1}, 0, True),
    "older, another host": ({"host": "elsewhere", "pid": 1}, 5, False),
    "damaged": (None, 5, False),
    "damaged, silent": (None, lease.EXPIRES + 5, True),
}


def test_who_else_may_hold_a_run(tmp_path):
    tried = 0
    for name, (record, seconds, free) in OTHERS.items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        (folder / lease.FILE).write_text('{"host": "el' if record is None else json.dumps(record))
        silence(folder, seconds)
        if free:
            with Lease(folder):
                assert json.loads((folder / lease.FILE).read_text())["pid"] == os.getpid(), name
        else:
            assert "is being written by " in refusal(folder), name
            assert (folder / lease.FILE).exists()
        assert not list(folder.glob("*.tmp")), name
        tried += 1
    assert tried == 13


def take(path: Path) -> None:
    """As another host does, once this one was silent for long enough."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps({"host": "elsewhere", "pid": 7, "id": "another"}))
    os.replace(fresh, path)


LOSSES: dict[str, Callable[[Path], None]] = {
    "taken": take,
    "removed": Path.unlink,
    "emptied": lambda path: path.write_text(""),
    "changed": lambda path: path.write_text('{"host": 3}'),
}
WRITES: dict[str, Callable[[Path], object]] = {
    "message": lambda run: Telemetry(run).message("hello"),
    "log line": lambda run: Telemetry(run).write("spcl", 1, 2),
    "checkpoint": lambda run: Checkpoints(run / "checkpoints/x").save(2, {"a": torch.ones(2)}),
    "end of a stage": lambda run: Checkpoints(run / "checkpoints/x").clear(),
    "manifest": lambda run: RunFolder(run).write("manifest.json", {"a": 2}),
    "result": lambda run: RunFolder(run).finish({"a": 2}),
    "failure": lambda run: RunFolder(run).fail("why", "UserError"),
    "any file": lambda run: atomic.write_json(run / "evaluations/x.json", {}),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_who_lost_a_run_writes_nothing_more_to_it(tmp_path):
    tried = 0
    for loss, lose in LOSSES.items():
        for name, write in WRITES.items():
            folder = tmp_path / f"{loss}-{name}"
            with Lease(folder):
                for earlier in ("manifest", "checkpoint", "message"):
                    WRITES[earlier](folder)
                lose(folder / lease.FILE)
                left = contents(folder)
                with pytest.raises(LeaseLost) as caught:
                    write(folder)
                assert contents(folder) == left, (loss, name)
                said = "process 7 on elsewhere writes it now" if loss == "taken" else "lease.json"
                assert said in str(caught.value) and "\n" not in str(caught.value)
                WRITES["manifest"](tmp_path / "another run")  # is none of its business
            assert contents(folder) == left, (loss, name)  # nor is the other's lease released
            tried += 1
    assert tried == 32


def test_workers_work_under_the_lease_of_the_driver(tmp_path):
    folder = tmp_path / "run"
    with holder(folder):
        shared = json.loads((folder / lease.FILE).read_text())["id"]
        with lease.under(folder, shared):
            WRITES["manifest"](folder)
            take(folder / lease.FILE)
            with pytest.raises(LeaseLost, match="process 7 on elsewhere"):
                WRITES["manifest"](folder)
        WRITES["manifest"](folder)  # nothing is held here any more


def test_of_two_that_take_a_dead_holders_run_one_gets_it(tmp_path, monkeypatch):
    """The slower one has judged the old lease and finds the other's in its place: puts it back."""
    path = tmp_path / lease.FILE
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    silence(tmp_path, lease.EXPIRES + 5)
    find = lease._find

    def slow(*args):
        found = find(*args)
        monkeypatch.setattr(lease, "_find", find)
        take(path)
        return found

    monkeypatch.setattr(lease, "_find", slow)
    assert "process 7 on elsewhere" in refusal(tmp_path)
    assert json.loads(path.read_text())["id"] == "another"


def test_the_heart_of_a_lost_lease_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT", 0.02)
    with Lease(tmp_path) as held:
        take(held.path)
        held._thread.join(20)
        assert not held._thread.is_alive()


def test_a_lease_leaves_no_folder_that_it_made_and_nobody_used(tmp_path):
    with Lease(tmp_path / "unused"):
        pass
    with Lease(tmp_path / "used"):
        (tmp_path / "used/x").touch()
    (tmp_path / "empty").mkdir()
    with Lease(tmp_path / "empty"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "used"]


def test_a_conversion_that_waits_says_for_whom(tmp_path):
    code = (
        "import sys; from pathlib import Path; from spcl.data.output import only_writer\n"
        "with only_writer(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    with holder(tmp_path / "split", code) as child:
        child.send_signal(signal.SIGSTOP)
        name = dataclasses.replace(
            this_process(), pid=child.pid, started=process._read_stat(child.pid)[1]
        )
        wait_until(lambda: name.state is State.STOPPED, 20, "it stops")
        handle = os.open(tmp_path, os.O_RDONLY)
        found = process.who_locks(handle)
        os.close(handle)
        if found is None:
            pytest.skip("this file system's numbers are not those of /proc/locks")
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "split")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as second:
            said = second.stderr.readline()
            child.kill()
            assert second.stdout.readline() == "held\n"
    assert said == (
        f"waiting for another conversion in {tmp_path}, by process {child.pid}, which is stopped "
        f"(state T): let it go on with `kill -CONT {child.pid}`, or end it with `kill -KILL "
        f"{child.pid}`\n"
    )


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_run_that_was_frozen_and_taken_stops_with_one_line(commands, mini_data, tmp_path):
    run = RunFolder(tmp_path / "r")
    more = ("spcl.steps=4000", "spcl.horizon=4000")
    line = ["python", "-m", "spcl.train", *arguments(mini_data, tmp_path, "r", *more)]
    command = commands.start(line, environment())
    wait_until(lambda: command.code is not None or reached(run, "spcl", 3), 100, "spcl runs")
    assert command.code is None, command.err
    command.process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)  # what it was writing is written
    take(run.folder / lease.FILE)
    left = contents(run.folder)
    command.process.send_signal(signal.SIGCONT)
    assert command.finish() == 2, command.err
    (message,) = command.err.splitlines()
    assert message.startswith("error: the run 'r' is no longer this process's: process 7 on else")
    # TensorBoard's file has this process's number in its name: nobody else writes it.
    changed = {name for name, data in contents(run.folder).items() if left.get(name) != data}
    assert not {name for name in changed if "tfevents" not in name}
