"""How a sweep's work runs: in this process, or as Ray tasks beside each other.

Workers import this module by name.  A cell's run folder is its only result: DONE.json, or
FAILED.json with the reason, which is what a piece of work returns.
"""

import os
import shutil
import traceback
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray_jobs import cluster
from ray_jobs.group import stop, stopped, worker_group
from spcl import atomic, distributed
from spcl.commit import VARIABLE, commit
from spcl.config import from_dict
from spcl.devices import choose_device
from spcl.errors import StorageError, UserError
from spcl.lease import LeaseLost, is_lost, under
from spcl.recipe import Recipe
from spcl.results.store import RunFolder
from spcl.run_config import open_run
from spcl.telemetry import Telemetry
from spcl.trainer import Surroundings
from tune.jobs import free_memory, waiting_lease
from tune.sweep_grid import Cell, Sweep
from tune.sweep_schedule import Schedule, Work

POLL = 0.5  # seconds between looks at the cells' progress
LOST_WORKERS = 1  # that a piece of work survives; the next one goes on from its checkpoint

Started = Callable[[Work], None]
Ended = Callable[[Work, list[Cell]], None]


@dataclass(frozen=True)
class Task:
    """Everything a worker needs: plain values only."""

    run: str  # folder
    config: dict[str, Any]
    data: str
    storage: str
    keys: list[str]  # of the stages to make
    finish: bool
    worker: dict[str, float]  # resources of each worker of a group
    commit: str  # the driver's: Ray leaves .git and the driver's environment behind

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.run))


def task_of(work: Work, sweep: Sweep, worker: dict[str, float]) -> Task:
    """Opens the cell's run folder, too."""
    cell = work.cell
    if not (cell.run.folder / "config.yaml").is_file():
        open_run(cell.config, cell.runs, cell.name)
    return Task(
        run=str(cell.run.folder),
        config=cell.config.as_dict(),
        data=str(sweep.data),
        storage=str(sweep.storage),
        keys=[stage.key for stage in work.stages],
        finish=work.finish,
        worker=worker,
        commit=str(commit()),
    )


def perform(values: dict[str, Any]) -> str | None:
    """Do the work; returns why it failed, if it did.

    StorageError where nothing more can be written: then no cell has failed, and the sweep stops.
    """
    task = Task(**values)
    try:
        with waiting_lease(task.folder.folder) as lease:
            if task.folder.done:
                return None
            task.folder.forget_failure()
            # A group takes long to start: not to gather what is stored already.
            if task.keys and task.worker and from_dict(task.config).train.workers > 1:
                _in_group(task, lease.id)
            else:
                attempt(task)
    except StorageError:
        raise
    except Exception as error:  # another process holds the run, or its folder cannot be used
        return _reason(error)
    free_memory()
    return (task.folder.failed or {}).get("error")


def attempt(task: Task, local_rank: int = 0) -> None:
    """Make the stages on this rank; a failure is in FAILED.json afterwards."""
    os.environ[VARIABLE] = task.commit
    config, run = from_dict(task.config), task.folder
    telemetry = Telemetry(run.folder if distributed.rank() == 0 else None)
    try:
        around = Surroundings(choose_device(config.train, local_rank), telemetry)
        recipe = Recipe(config, Path(task.data), run, around, storage=Path(task.storage))
        if task.finish:
            recipe()
        else:
            recipe.make([stage for stage in recipe.stages if stage.key in task.keys])
    except (StorageError, LeaseLost):
        raise  # nothing can be written, or what the folder says is another's
    except Exception as error:
        run.fail(_reason(error), type(error).__name__)
        atomic.write_bytes(run.folder / "traceback.txt", traceback.format_exc().encode())
        if distributed.world_size() > 1:
            raise  # other ranks wait for this one until Ray stops the group


def _reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"


def here(schedule: Schedule, sweep: Sweep, started: Started, ended: Ended) -> None:
    """Everything in this process, one piece after another."""
    while (work := schedule.next()) is not None:
        started(work)
        error = perform(asdict(task_of(work, sweep, {})))
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

    from tune import trials

    train = sweep.distinct[0].config.train
    trials.connect(address)
    worker = trials.worker_resources(train)
    fit = trials.slots(worker, train.workers, None)
    slots = min(limit or fit, fit)
    options: dict[str, Any] = {"num_cpus": worker["CPU"], "num_gpus": worker.get("GPU", 0)}
    if train.workers > 1:  # a task that only waits for its group
        options = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
    remote = ray.remote(max_retries=LOST_WORKERS, **options)(perform)
    running: dict[Any, Work] = {}
    try:
        while True:
            while len(running) < slots and (work := schedule.next()) is not None:
                started(work)
                running[remote.remote(asdict(task_of(work, sweep, worker)))] = work
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
        trials.leave()


def _result(reference: Any) -> str | None:
    """Why a task failed, if it did: it says so, or its process was lost.  StorageError."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, StorageError):
            raise error.cause from None
        return _reason(error.cause)
    except ray.exceptions.RayError as error:
        return _reason(error)


# More than one worker per cell.


def _in_group(task: Task, lease: str) -> None:
    """Do the work in a Ray Train worker group.  StorageError."""
    train = from_dict(task.config).train
    launch = uuid.uuid4().hex[:12]
    trainer = worker_group(
        group_worker,
        {"task": asdict(task), "launch": launch, "lease": lease},
        Path(task.run) / "ray",
        train.workers,
        task.worker,
        timeout=train.collective_timeout,
        restarts=LOST_WORKERS,
        name=launch,
    )
    try:
        with atomic.writing(Path(task.run) / "ray"):
            trainer.fit()
    except StorageError:
        raise
    except Exception as error:
        if not task.folder.failed and not stopped(launch):
            task.folder.fail(_reason(error), type(error).__name__)
    if stopped(launch):
        raise StorageError(stopped(launch))
    shutil.rmtree(Path(task.run) / "ray", ignore_errors=True)  # Ray's own record of the launch


def group_worker(values: dict[str, Any]) -> None:
    """What each worker of the group runs."""
    from ray.train.torch import get_device

    task, launch = Task(**values["task"]), values["launch"]
    with under(task.folder.folder, values["lease"]):
        failed = task.folder.failed is not None or stopped(launch) is not None
        if any(distributed.gather(failed or is_lost(task.folder.folder))):
            return  # restarted after a failure that another attempt does not mend
        try:
            attempt(task, get_device().index or 0)
        except StorageError as error:
            stop(launch, str(error))
            raise
