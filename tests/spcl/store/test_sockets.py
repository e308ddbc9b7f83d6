import os
import subprocess
import sys
from pathlib import Path

import pytest

from spcl.errors import UserError
from spcl.store import sockets


def test_another_users_folder_is_not_taken(monkeypatch, tmp_path):
    theirs = tmp_path / "ray"
    theirs.mkdir()
    assert sockets._is_own(theirs)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert not sockets._is_own(theirs)
    assert not sockets._is_own(tmp_path / "missing/ray")


LOADER = """
import tempfile, torch
from spcl.store.sockets import shorten_for_loaders
from torch.utils.data import DataLoader, Dataset
class Zeros(Dataset):
    def __getitem__(self, index): return torch.zeros(3)
    def __len__(self): return 4
if __name__ == "__main__":
    usual = tempfile.gettempdir()
    shorten_for_loaders()
    assert tempfile.gettempdir() == usual
    print(sum(len(x) for x in DataLoader(Zeros(), batch_size=None, num_workers=1)))
"""


def test_loaders_work_below_a_long_temporary_folder(tmp_path):
    """Without `shorten_for_loaders` this hangs: the worker cannot send what it has read."""
    long = tmp_path / "scratch/".ljust(90, "x")
    long.mkdir(parents=True)
    (tmp_path / "loader.py").write_text(LOADER)
    done = subprocess.run(
        [sys.executable, tmp_path / "loader.py"],
        env=os.environ | {"TMPDIR": str(long)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == ("12\n", 0), done.stderr
    assert not list(long.iterdir())


def test_where_no_folder_is_short_enough_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(sockets.tempfile, "tempdir", "/" + "x" * 90)
    monkeypatch.setattr(sockets, "SHORT_FOLDERS", (Path("/proc"), tmp_path / "missing"))
    with pytest.raises(UserError, match="but a loader's in /x+ has 123; set TMPDIR to a shorter"):
        sockets.shorten_for_loaders()
