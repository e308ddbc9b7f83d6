import os
import socket
import subprocess
import sys

import pytest

from spcl.engine.artefacts import ArtefactStore
from spcl.engine.stages import Stage
from spcl.errors import DataError


def stage(seed=0):
    return Stage("prototypes", "some pass", None, 1, seed, {"size": [2, 3]}, {"source": "s"})


def test_what_is_written_is_found_by_key(tmp_path):
    store = ArtefactStore(tmp_path)
    assert not store.has(stage())
    with store.write(stage()) as folder:
        (folder / "a.txt").write_text("a")
        assert not store.has(stage())  # not before it is whole
    assert (store.open(stage()) / "a.txt").read_text() == "a"
    assert not store.has(stage(seed=1))


def test_a_failed_stage_leaves_nothing(tmp_path):
    store = ArtefactStore(tmp_path)
    with pytest.raises(RuntimeError), store.write(stage()) as folder:
        (folder / "a.txt").write_text("half")
        raise RuntimeError
    assert list(store.root.iterdir()) == []


def test_a_lost_race_is_harmless(tmp_path):
    store = ArtefactStore(tmp_path)
    with store.write(stage()) as folder:
        (folder / "a.txt").write_text("mine")
        os.rename(folder, folder.with_name("aside"))  # meanwhile another process publishes
        store.path(stage()).mkdir()
        (store.path(stage()) / "theirs").touch()
        os.rename(folder.with_name("aside"), folder)
    assert (store.path(stage()) / "theirs").exists()


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_a_changed_file_is_named(tmp_path, change):
    store = ArtefactStore(tmp_path)
    with store.write(stage()) as folder:
        (folder / "a.txt").write_text("a")
    path = store.path(stage()) / "a.txt"
    path.write_text("b") if change == "edit" else path.unlink()
    with pytest.raises(DataError, match=f"{path} is damaged or missing"):
        store.open(stage())


def test_leftovers_of_dead_processes_are_swept_and_of_live_ones_kept(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    store = ArtefactStore(tmp_path)
    host = socket.gethostname()
    dead, live = (store.root / f".x.{host}-{pid}.tmp" for pid in (child.pid, os.getppid()))
    for folder in (dead, live):
        folder.mkdir(parents=True)
    with store.write(stage()):
        pass
    assert not dead.exists() and live.exists()
