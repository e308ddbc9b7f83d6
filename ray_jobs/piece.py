"""A piece of work where Ray may be: in this process, or on the workers of a Ray Train group."""

import contextlib
import gc
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ray_jobs.group import stopped, worker_group
from spcl.configuration.config import from_dict
from spcl.configuration.sections import Train
from spcl.engine.piece import Piece, Work, on_rank
from spcl.errors import StorageError, UserError, reason
from spcl.store import atomic
from spcl.store.lease import EXPIRES, Lease, check

LEASE_POLL = 0.5  # seconds


@contextlib.contextmanager
def waiting_lease(folder: Path) -> Iterator[Lease]:
    """One writer per run; a killed driver's workers live on for some seconds."""
    deadline = time.monotonic() + 2 * EXPIRES
    lease = Lease(folder)
    while True:
        try:
            lease.__enter__()
            break
        except UserError as error:
            if isinstance(error, StorageError) or time.monotonic() > deadline:
                raise
            time.sleep(LEASE_POLL)
    try:
        yield lease
    finally:
        lease.__exit__()


def perform(
    piece: Piece, work: Work, lease: str, each: dict[str, float], *, restarts: int = 0
) -> str | None:
    """Do one of many pieces, in a group if it has several workers; returns why it failed, if so.

    Raises what is no failure of the piece: StorageError and LeaseLost.
    lease     of the run's folder, held by this process
    each      resources of each worker of a group; empty: here in any case
    restarts  of a group after lost workers.  After the last a lost worker is a failure; without
              any it is raised, for the caller to try again.
    """
    piece.folder.forget_failure()
    train = from_dict(piece.config).train
    if each and train.workers > 1:
        failed = in_group(piece, work, train, lease, each, restarts)
    else:
        failed = _here(piece, work)
    gc.collect()  # this process is used again
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return failed


def _here(piece: Piece, work: Work) -> str | None:
    try:
        on_rank(piece, work)
    except Exception as error:
        if not piece.is_failed_by(error):
            raise
        return reason(error)
    return None


def in_group(
    piece: Piece, work: Work, train: Train, lease: str, each: dict[str, float], restarts: int
) -> str | None:
    """The same in a Ray Train worker group of its own."""
    from ray_jobs.worker import group_worker  # imports ray

    launch, folder = uuid.uuid4().hex[:12], piece.folder.folder / "ray"
    trainer = worker_group(
        group_worker,
        pack(piece, work, launch, lease),
        folder,
        train.workers,
        each,
        timeout=train.collective_timeout,
        restarts=restarts,
        name=launch,
    )
    lost: Exception | None = None
    try:
        with atomic.writing(folder):
            trainer.fit()
    except StorageError:
        raise
    except Exception as error:
        lost = error
    check(folder)  # this process may have been frozen meanwhile
    failed = piece.folder.failed
    if failed is None and (told := stopped(launch)):
        raise StorageError(told)
    if failed is None and lost:
        if not restarts:
            raise lost
        piece.folder.fail(reason(lost), type(lost).__name__)
        return reason(lost)
    shutil.rmtree(folder, ignore_errors=True)  # Ray's own record of the launch
    return failed["error"] if failed else None


def pack(
    piece: Piece, work: Work, launch: str, lease: str, *, watched: bool = False
) -> dict[str, Any]:
    """What travels to the workers of a group.

    work     a function of a module, or a `partial` of one
    watched  a driver follows this launch: it hears of checkpoints, and every rank keeps a log
    """
    about = {"launch": launch, "lease": lease, "watched": watched}
    return {"piece": asdict(piece), "work": work, **about}
