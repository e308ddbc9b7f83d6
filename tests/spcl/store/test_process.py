import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from spcl.store import process
from spcl.store.process import Process, State, is_left_behind, this_process


@pytest.fixture
def child():
    """A process that sleeps, and its full name."""
    made = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    _, started = process._read_stat(made.pid)
    yield made, dataclasses.replace(this_process(), pid=made.pid, started=started)
    made.kill()
    made.wait()


def wait_for(name: Process, state: State) -> None:
    deadline = time.monotonic() + 20
    while name.state is not state and time.monotonic() < deadline:
        time.sleep(0.01)
    assert name.state is state


def test_a_process_is_running_stopped_or_dead(child):
    made, name = child
    assert this_process().state is name.state is State.RUNNING
    made.send_signal(signal.SIGSTOP)
    wait_for(name, State.STOPPED)
    made.send_signal(signal.SIGCONT)
    wait_for(name, State.RUNNING)
    made.kill()
    wait_for(name, State.DEAD)  # a zombie: nobody has asked for its exit code yet
    os.kill(made.pid, 0)
    made.wait()
    assert name.state is State.DEAD


def test_another_process_with_the_number_of_a_dead_one_is_not_it(child):
    _, name = child
    assert dataclasses.replace(name, started=name.started + 1).state is State.DEAD


@pytest.mark.parametrize("other", ["boot", "namespace"])
def test_of_another_boot_or_namespace_nothing_is_known(child, other):
    _, name = child
    assert dataclasses.replace(name, **{other: "1"}, pid=2**22 + 1).state is State.UNKNOWN


def test_a_number_alone_says_only_who_is_dead():
    """Of an older record, or where there is no /proc."""
    name = Process(this_process().host, os.getppid())
    assert name.state is State.UNKNOWN
    assert dataclasses.replace(name, pid=2**22 + 1).state is State.DEAD
    assert dataclasses.replace(name, pid=2**22 + 1, host="elsewhere").state is State.UNKNOWN


def test_without_proc_the_number_is_all_there_is(monkeypatch, tmp_path):
    known = this_process()
    monkeypatch.setattr(process, "PROC", tmp_path)
    assert this_process() == Process(known.host, os.getpid())
    assert known.state is State.UNKNOWN
    assert dataclasses.replace(known, pid=2**22 + 1).state is State.DEAD


def test_what_a_dead_process_left_is_told_by_its_name(child, tmp_path):
    made, name = child
    reused = dataclasses.replace(name, started=name.started + 1)
    elsewhere = dataclasses.replace(name, host="elsewhere")
    before_boot = dataclasses.replace(name, boot="0" * 8)
    old = Process(name.host, 2**22 + 1)
    found = {}
    for what, one in (
        ("live", name), ("reused", reused), ("elsewhere", elsewhere), ("boot", before_boot),
        ("old", old),
    ):  # fmt: skip
        folder = tmp_path / f".stage-of-x.{one.label}.tmp"
        folder.mkdir()
        found[what] = is_left_behind(folder)
        if what == "boot":
            os.utime(folder, (time.time() - process.ABANDONED - 60,) * 2)
            found["boot, a day ago"] = is_left_behind(folder)
    assert found == {
        "live": False, "reused": True, "elsewhere": False, "boot": False, "boot, a day ago": True,
        "old": True,
    }  # fmt: skip
    made.kill()
    made.wait()
    assert is_left_behind(tmp_path / f".stage-of-x.{name.label}.tmp")
    assert not is_left_behind(tmp_path / "stage-of-x-0123456789abcdef")
