"""Who makes which stage, in whatever order work ends."""

import random

import pytest
from sweeps import COMPONENTS, TWO_ROWS, Store, resolved, written

from tune.sweeping.schedule import Schedule


def finish(schedule: Schedule, store: Store, order: random.Random, slots: int) -> None:
    """Work to the end, in any order that `slots` allow."""
    while True:
        while len(schedule.running) < slots and schedule.next():
            pass
        if not schedule.running:
            return
        under_way = [s.key for work in schedule.running for s in work.stages]
        assert len(under_way) == len(set(under_way)), "two make the same stage at a time"
        names = [work.cell.name for work in schedule.running]
        assert len(names) == len(set(names)), "two write the same run at a time"
        work = order.choice(schedule.running)
        store.make(work)
        schedule.finished(work, None)


@pytest.mark.parametrize("slots", [1, 2, 5, 100])
def test_every_stage_is_made_once_in_whatever_order_work_ends(slots, mini_data, tmp_path):
    made = resolved(COMPONENTS, mini_data, tmp_path, (0, 1, 2))
    everything = {key for cell in made.distinct for key in cell.keys}
    for seed in range(10):
        store = Store()
        schedule = Schedule(made.distinct, store.has)
        finish(schedule, store, random.Random(seed), slots)
        assert sorted(store.made) == sorted(everything)
        assert schedule.waiting == [] and schedule.failed == {}


def test_a_shared_warm_up_comes_first_and_alone(mini_data, tmp_path):
    made = resolved(COMPONENTS, mini_data, tmp_path)
    store = Store()
    schedule = Schedule(made.distinct, store.has)
    for title in ("adversarial", "evaluation of adversarial"):
        work = schedule.next()
        assert [s.title for s in work.stages] == [title] and not work.finish
        assert schedule.next() is None  # everyone waits for it
        store.make(work)
        schedule.finished(work, None)
    assert schedule.next().finish and len(schedule.running) == 1  # the baseline has all it needs
    assert [s.title for s in schedule.next().stages] == ["prototypes of adversarial"]


def test_seeds_share_nothing_and_run_beside_each_other(mini_data, tmp_path):
    made = resolved(written(tmp_path, TWO_ROWS), mini_data, tmp_path, (0, 1))
    schedule = Schedule(made.distinct, Store().has)
    works = [schedule.next(), schedule.next()]
    assert [work.cell.config.seed for work in works] == [0, 1]
    assert schedule.next() is None


def test_what_a_worker_has_made_counts_before_it_is_seen_here(mini_data, tmp_path):
    """A shared folder may show other nodes' files late."""
    made = resolved(written(tmp_path, TWO_ROWS), mini_data, tmp_path)
    schedule = Schedule(made.distinct, lambda stage: False)
    first = schedule.next()
    schedule.finished(first, None)
    assert schedule.next().stages != first.stages


def test_what_is_stored_is_not_made_again(mini_data, tmp_path):
    made = resolved(written(tmp_path, TWO_ROWS), mini_data, tmp_path)
    store = Store()
    store.made = [s.key for s in made.cells["baseline", 0].stages]
    schedule = Schedule(made.distinct, store.has)
    assert (schedule.next().stages, len(schedule.next().stages)) == ((), 4)


def test_a_shared_stage_that_fails_takes_its_cells_and_no_other(mini_data, tmp_path):
    made = resolved(COMPONENTS, mini_data, tmp_path, (0, 1))
    store = Store()
    schedule = Schedule(made.distinct, store.has)
    ended = schedule.finished(schedule.next(), "no luck")
    assert [cell.config.seed for cell in ended] == [0] * 5
    finish(schedule, store, random.Random(0), 2)
    assert schedule.failed == {cell.name: "no luck" for cell in ended}
    assert made.cells["all", 1].keys <= set(store.made)


def test_a_cell_that_fails_alone_fails_alone(mini_data, tmp_path):
    made = resolved(written(tmp_path, TWO_ROWS), mini_data, tmp_path)
    store = Store()
    store.made = [s.key for s in made.cells["baseline", 0].stages]
    schedule = Schedule(made.distinct, store.has)
    work = schedule.next()
    assert schedule.finished(work, "no luck") == [work.cell]
    assert [cell.name for cell in schedule.waiting] == [made.cells["adapted", 0].name]
