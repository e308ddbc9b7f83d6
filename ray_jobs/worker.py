"""Where Ray Train meets spcl: what runs on each worker of a group.

Workers import this module by name, so it stays importable and free of driver state.  What a piece
has failed by is in FAILED.json where that can be written, and in the cluster's memory
(`ray_jobs.group.stop`); only what is left, lost workers, is for Ray to try again.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint
from ray.train.torch import get_device

from ray_jobs.group import stop, stopped
from spcl import distributed
from spcl.engine.piece import Piece, Work, on_rank
from spcl.errors import UserError
from spcl.store import atomic
from spcl.store.lease import LeaseLost, check, under
from spcl.store.run_folder import RunFolder


def group_worker(values: dict[str, Any]) -> str | None:
    """Do a piece on this rank of a Ray Train group; returns why it failed, if it did.

    values  as `ray_jobs.piece.pack` makes them
    """
    piece = Piece(**values["piece"])
    with under(piece.folder.folder, values["lease"]):
        return _run(piece, values["work"], values["launch"], values["watched"])


def _run(piece: Piece, work: Work, launch: str, watched: bool) -> str | None:
    earlier = [text for text in distributed.gather(_over(piece.folder, launch)) if text]
    if earlier:
        return earlier[0]  # restarted after the failure below
    try:
        local_rank = get_device().index or 0  # Ray decides which of a node's GPUs are whose
        if not watched:
            on_rank(piece, work, local_rank)
            return None
        _keep_log(piece.folder, launch)
        summary = on_rank(piece, work, local_rank, report=ray.train.report)
        with atomic.writing(piece.folder.folder / "ray"):
            _report_final(piece, summary)
    except UserError as error:  # the run may be another's now
        if distributed.world_size() > 1:
            stop(launch, str(error))
            raise  # a rank that waits for this one hears of it only when Ray stops the group
        return str(error)
    return None


def _over(run: RunFolder, launch: str) -> str | None:
    """Why this launch must not go on, if it must not: a failure of before, or the run is lost."""
    try:
        check(run.folder)
    except LeaseLost as error:
        return str(error)
    return stopped(launch) or (run.failed or {}).get("error")


def _keep_log(run: RunFolder, launch: str) -> None:
    """Send this process's stdout and stderr to a file of the run, which begins with who it is."""
    rank, ranks = distributed.rank(), distributed.world_size()
    path = run.folder / "logs" / f"{launch}-rank{rank}.log"
    with atomic.writing(path):
        atomic.mkdir(path.parent)
        sys.stdout.flush()
        sys.stderr.flush()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
        sys.stderr.write(
            f"rank {rank} of {ranks}: process {os.getpid()} on {socket.gethostname()}\n"
        )


def _report_final(piece: Piece, summary: dict[str, Any]) -> None:
    """Hand Ray the last network, once; every rank reports equally often."""
    metrics = {"finished": True}
    if distributed.rank() != 0:
        ray.train.report(metrics)
        return
    last = summary["artefacts"][piece.config["stages"][-1]]
    folder = Path(piece.storage) / "artefacts" / last
    for row in summary["table"][-1:]:  # none where there is no evaluation split
        metrics |= {name: mean["value"] for name, mean in row["means"].items()}
    ray.train.report(metrics, checkpoint=Checkpoint.from_directory(str(folder)))
