"""The clock of a stage, kept by its checkpoints."""

import json

import pytest

from spcl.store import checkpoint
from spcl.store.checkpoint import Checkpoints


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that tests move."""
    now = [1000.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])
    return now


def test_device_seconds_survive_two_kills_and_lose_what_was_not_stored(clock, tmp_path):
    for spent, kept in ((100.0, 100.0), (40.0, 140.0)):
        stage = Checkpoints(tmp_path)
        found = stage.newest(1000)
        clock[0] += spent
        stage.save(10 if found is None else 20, {})
        clock[0] += 50  # not stored when the process is killed
        assert stage.seconds() == kept + 50
    last = Checkpoints(tmp_path)
    assert last.newest(1000).parent.name == "step-00000020"
    clock[0] += 7
    assert last.seconds() == 147


def test_all_ranks_count(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.distributed, "world_size", lambda: 4)
    stage = Checkpoints(tmp_path)
    clock[0] += 3
    assert stage.seconds() == 12


def test_a_checkpoint_of_an_older_spcl_loads_and_its_seconds_are_unknown(clock, tmp_path):
    Checkpoints(tmp_path).save(10, {})
    path = tmp_path / "step-00000010/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["device_seconds"]
    path.write_text(json.dumps(manifest))
    stage = Checkpoints(tmp_path)
    assert stage.newest(1000) is not None and stage.seconds() is None
