import json
import os
import subprocess
import sys
import time

import pytest

from spcl.errors import UserError
from spcl.store import lease
from spcl.store.lease import Lease


def _other_process(folder):
    """A live process that holds the lease until its stdin closes."""
    code = (
        "import sys; from pathlib import Path; from spcl.store.lease import Lease\n"
        f"with Lease(Path({str(folder)!r})):\n    print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    return child


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path):
    child = _other_process(tmp_path / "run")
    try:
        with pytest.raises(UserError, match=f"'run' is being written by process {child.pid} on"):
            Lease(tmp_path / "run").__enter__()
    finally:
        child.communicate()
    with Lease(tmp_path / "run"):  # free again
        pass
    assert not (tmp_path / "run" / "lease.json").exists()


def test_a_killed_holder_does_not_block(tmp_path):
    child = _other_process(tmp_path)
    child.kill()
    child.wait()
    assert (tmp_path / "lease.json").exists()
    with Lease(tmp_path):
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(("age", "free"), [(5, False), (lease.EXPIRES + 5, True)])
def test_another_hosts_lease_counts_until_its_heart_stops(tmp_path, age, free):
    path = tmp_path / "lease.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(path, (time.time() - age,) * 2)
    if free:
        with Lease(tmp_path):
            pass
    else:
        with pytest.raises(UserError, match="process 1 on elsewhere"):
            Lease(tmp_path).__enter__()


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT", 0.05)
    with Lease(tmp_path):
        os.utime(tmp_path / "lease.json", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / "lease.json").stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / "lease.json").stat().st_mtime > 1
