"""How a sweep's work runs: in this process, or as Ray tasks beside each other.

Workers import this module by name.  A cell's run folder is its only result: DONE.json, or
FAILED.json with the reason, which is what a piece of work returns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray_jobs import cluster, slots
from ray_jobs.piece import perform, waiting_lease
from spcl.engine.commit import commit
from spcl.engine.piece import Piece
from spcl.engine.recipe import Recipe
from spcl.engine.run_config import open_run
from spcl.errors import StorageError, reason
from tune.sweeping.grid import Cell, Sweep
from tune.sweeping.schedule import Schedule, Work

POLL = 0.5  # seconds between looks at the cells' progress
LOST_WORKERS = 1  # that a piece of work survives; the next one goes on from its checkpoint

Started = Callable[[Work], None]
Ended = Callable[[Work, list[Cell]], None]


@dataclass(frozen=True)
class Task:
    """What a worker needs: plain values only."""

    piece: Piece
    keys: tuple[str, ...]  # of the stages to make
    finish: bool  # the whole run, to its table
    worker: dict[str, float]  # resources of each worker of a group


def task_of(work: Work, sweep: Sweep, worker: dict[str, float]) -> Task:
    """Opens the cell's run folder, too."""
    cell = work.cell
    if not (cell.run.folder / "config.yaml").is_file():
        open_run(cell.config, cell.runs, cell.name)
    piece = Piece(
        config=cell.config.as_dict(),
        data=str(sweep.data),
        run=str(cell.run.folder),
        storage=str(sweep.storage),
        one_of_many=True,
        commit=str(commit()),
    )
    return Task(piece, tuple(stage.key for stage in work.stages), work.finish, worker)


def make(recipe: Recipe, keys: Sequence[str], finish: bool) -> None:
    """On every rank: those stages, or the whole run."""
    if finish:
        recipe()
    else:
        recipe.make([stage for stage in recipe.stages if stage.key in keys])


def attempt(task: Task) -> str | None:
    """Do the work; returns why it failed, if it did.

    StorageError where nothing more can be written: then no cell has failed, and the sweep stops.
    """
    run = task.piece.folder
    # A group takes long to start: not to gather what is stored already.
    each = task.worker if task.keys else {}
    work = partial(make, keys=task.keys, finish=task.finish)
    try:
        with waiting_lease(run.folder) as lease:
            if run.done:
                return None
            return perform(task.piece, work, lease.id, each, restarts=LOST_WORKERS)
    except StorageError:
        raise
    except Exception as error:  # another process holds the run, or its folder cannot be used
        return reason(error)


def here(schedule: Schedule, sweep: Sweep, started: Started, ended: Ended) -> None:
    """Everything in this process, one piece after another."""
    while (work := schedule.next()) is not None:
        started(work)
        error = attempt(task_of(work, sweep, {}))
        ended(work, schedule.finished(work, error))


def on_ray(
    schedule: Schedule,
    sweep: Sweep,
    limit: int | None,
    address: str | None,
    started: Started,
    ended: Ended,
    show: Callable[[], None],
) -> None:
    """Everything on the cluster.  limit: cells at a time, at most (default: as many as fit)."""
    import ray

    train = sweep.distinct[0].config.train
    slots.connect(address)
    worker = slots.worker_resources(train)
    fit = slots.slots(worker, train.workers, None)
    places = min(limit or fit, fit)
    options: dict[str, Any] = {"num_cpus": worker["CPU"], "num_gpus": worker.get("GPU", 0)}
    if train.workers > 1:  # a task that only waits for its group
        options = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
    remote = ray.remote(max_retries=LOST_WORKERS, **options)(attempt)
    running: dict[Any, Work] = {}
    try:
        while True:
            while len(running) < places and (work := schedule.next()) is not None:
                started(work)
                running[remote.remote(task_of(work, sweep, worker))] = work
            if not running:
                break
            for reference in ray.wait(list(running), timeout=POLL)[0]:
                work = running.pop(reference)
                error = _result(reference)
                ended(work, schedule.finished(work, error))
            show()
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=cluster.CANCEL_SECONDS)
        slots.leave()


def _result(reference: Any) -> str | None:
    """Why a task failed, if it did: it says so, or its process was lost.  StorageError."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, StorageError):
            raise error.cause from None
        return reason(error.cause)
    except ray.exceptions.RayError as error:
        return reason(error)
