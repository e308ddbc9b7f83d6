import dataclasses
import json

import pytest

from spcl.store import heartbeat
from spcl.store.heartbeat import BEAT, QUIET, Watch
from spcl.store.process import this_process
from spcl.store.telemetry import Telemetry


class World:
    """Ranks that beat and move when they are told to, and a clock of one's own."""

    def __init__(self, run, monkeypatch, ranks: int = 2):
        self.folder = run / heartbeat.FOLDER
        self.folder.mkdir(parents=True)
        self.now, self.beats = 1000.0, 0
        self.places = {rank: [0, "stage spcl", 0] for rank in range(ranks)}  # moves, where, step
        monkeypatch.setattr(heartbeat.time, "monotonic", lambda: self.now)

    def move(self, rank: int, step: int, where: str = "stage spcl") -> None:
        self.places[rank] = [self.places[rank][0] + 1, where, step]

    def beat(self, rank: int) -> None:
        self.beats += 1
        moves, where, number = self.places[rank]
        name = dataclasses.asdict(this_process()) | {"pid": 100 + rank, "boot": "another"}
        place = {"where": where, "number": number, "unit": "step", "moves": moves}
        record = name | {"host": f"node{rank}"} | place | {"beats": self.beats}
        (self.folder / f"{rank}.json").write_text(json.dumps(record))

    def pass_time(self, watches: list[Watch], seconds: float, *alive: int) -> None:
        """Beat after beat; the ranks that are alive say so."""
        for _ in range(round(seconds / BEAT)):
            self.now += BEAT
            for rank in alive:
                self.beat(rank)
            for watch in watches:
                watch.tick()


def watch(tmp_path, ranks: int = 2, **options) -> tuple[Watch, list[str]]:
    said: list[str] = []
    return Watch(tmp_path, ranks, said.append, **options), said


def test_a_rank_that_falls_silent_is_named_with_where_it_was(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    listening, said = watch(tmp_path)
    for step in range(410, 413):
        for rank in (0, 1):
            world.move(rank, step)
        world.pass_time([listening], BEAT, 0, 1)
    world.pass_time([listening], QUIET - BEAT, 0)
    assert said == []
    world.pass_time([listening], BEAT, 0)
    assert said == [
        "no step for 60 s: rank 1 (process 101 on node1) was last heard of 60 s ago, in stage "
        "spcl, step 412"
    ]
    world.pass_time([listening], QUIET, 0)
    assert len(said) == 2 and said[1].startswith("no step for 120 s: rank 1 (")
    for rank in (0, 1):
        world.move(rank, 413)
    world.pass_time([listening], QUIET - BEAT, 0, 1)
    assert len(said) == 2


def test_of_ranks_that_are_alive_the_one_that_stood_first_is_named(tmp_path, monkeypatch):
    """The others wait for it: rank 1 reads its images in vain."""
    world = World(tmp_path, monkeypatch)
    listening, said = watch(tmp_path)
    world.move(1, 411)
    world.pass_time([listening], BEAT, 0, 1)
    world.move(0, 412)
    world.pass_time([listening], QUIET + BEAT, 0, 1)
    assert said == [
        "no step for 60 s, though every rank is alive: rank 1 (process 101 on node1) has stood "
        "longest, for 65 s, in stage spcl, step 411"
    ]


@pytest.mark.parametrize("where", ["the evaluation", "stage spcl"])
def test_nothing_is_told_while_any_rank_moves(where, tmp_path, monkeypatch):
    """An evaluation without a step, and the rank that has finished its share before."""
    world = World(tmp_path, monkeypatch)
    listening, said = watch(tmp_path)
    for number in range(30):
        world.move(1, number, where)
        world.pass_time([listening], QUIET / 2, 0, 1)
    assert said == []


def test_a_rank_that_never_came_and_an_earlier_launch_are_told_apart(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, ranks=3)
    for rank in (0, 1, 2):
        world.beat(rank)  # files of an earlier launch
    listening, said = watch(tmp_path, ranks=3)
    world.pass_time([listening], QUIET + BEAT, 0, 1)
    assert said == ["no step for 60 s: rank 2 has not been heard of since this one's start"]


def test_a_deputy_tells_only_while_rank_0_is_silent(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    deputy, said = watch(tmp_path, deputy=True)
    world.pass_time([deputy], 3 * QUIET)  # no rank has come yet: others say that
    world.pass_time([deputy], 3 * QUIET, 0)  # rank 0 tells that rank 1 has not come
    assert said == []
    world.pass_time([deputy], QUIET + BEAT, 1)
    assert said == [
        "no step for 60 s: rank 0 (process 100 on node0) was last heard of 65 s ago, in stage "
        "spcl, step 0"
    ]
    (world.folder / "0.json").unlink()  # the stages are done
    world.pass_time([deputy], 2 * QUIET, 1)
    assert len(said) == 1


def test_images_of_a_pass_are_moves():
    before = heartbeat._here.moves
    assert list(heartbeat.counted("the evaluation", "abc")) == ["a", "b", "c"]
    assert heartbeat._here.moves == before + 3
    assert (heartbeat._here.where, heartbeat._here.number) == ("the evaluation", 2)


def test_a_step_costs_no_file_and_no_lock(monkeypatch):
    """`moved` only sets a variable: it stays out of the way of a training step."""
    code = heartbeat.moved.__code__
    assert set(code.co_names) <= {"_here", "where", "number", "unit", "moves"}


def test_nothing_is_left_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT", 0.01)
    with heartbeat.beating(tmp_path, Telemetry(None), 1, 2):
        pulse = tmp_path / "ranks/1.json"
        while not pulse.exists():
            pass
    with heartbeat.beating(tmp_path, Telemetry(None), 0, 2):
        pass
    assert not list(tmp_path.iterdir())
