"""Where Ray Train meets spcl: what runs on each worker.

Workers import this module by name, so it stays importable and free of driver state.  A mistake of
ours or the user's, or a full disk, is what the worker returns, and in FAILED.json where that can be
written; only what is left, lost workers, is for Ray to try again.
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
from spcl import atomic, distributed
from spcl.commit import VARIABLE, commit
from spcl.config import from_dict
from spcl.errors import UserError
from spcl.launch import Request
from spcl.lease import LeaseLost, check, under
from spcl.results.store import RunFolder
from spcl.train import run_on_rank


def pack(request: Request, launch: str, lease: str) -> dict[str, Any]:
    """What travels to the workers: plain values only."""
    return {
        "config": request.config.as_dict(),
        "data": str(request.data),
        "storage": str(request.storage),
        "name": request.name,
        "launch": launch,
        "commit": str(commit()),  # Ray leaves .git and the driver's environment behind
        "lease": lease,
    }


def train_worker(job: dict[str, Any]) -> str | None:
    """Run one recipe on this rank of a Ray Train worker group; returns why it failed, if it did."""
    os.environ[VARIABLE] = job["commit"]
    request = Request(
        from_dict(job["config"]), Path(job["data"]), Path(job["storage"]), job["name"]
    )
    run = RunFolder(request.storage / request.name)
    with under(run.folder, job["lease"]):
        return _run(request, run, job)


def _run(request: Request, run: RunFolder, job: dict[str, Any]) -> str | None:
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    earlier = [reason for reason in distributed.gather(_over(run, job["launch"])) if reason]
    if earlier:
        return earlier[0]  # restarted after the failure below
    try:
        log = run.folder / "logs" / f"{job['launch']}-rank{rank}.log"
        with atomic.writing(log):
            _redirect_output(log)
            sys.stderr.write(
                f"rank {rank} of {world_size}: process {os.getpid()} on {socket.gethostname()}\n"
            )
        # Ray decides which of a node's GPUs are this worker's.
        summary = run_on_rank(request, get_device().index or 0, ray.train.report)
        with atomic.writing(run.folder / "ray"):
            _report_final(request, summary)
    except UserError as error:  # the run may be another's now
        if world_size > 1:
            stop(job["launch"], str(error))
            raise  # a rank that waits for this one hears of it only when Ray stops the group
        return str(error)
    return None


def _over(run: RunFolder, launch: str) -> str | None:
    """Why this launch must not go on, if it must not: a failure of before, or the run is lost."""
    try:
        check(run.folder)
    except LeaseLost as error:
        return str(error)
    return stopped(launch)


def _report_final(request: Request, summary: dict[str, Any]) -> None:
    """Hand Ray the last network, once; every rank reports equally often."""
    metrics = {"finished": True}
    if distributed.rank() != 0:
        ray.train.report(metrics)
        return
    last = summary["artefacts"][request.config.stages[-1]]
    folder = request.storage / "artefacts" / last
    for row in summary["table"][-1:]:  # none where there is no evaluation split
        metrics |= {name: mean["value"] for name, mean in row["means"].items()}
    ray.train.report(metrics, checkpoint=Checkpoint.from_directory(str(folder)))


def _redirect_output(path: Path) -> None:
    """Send this process's stdout and stderr to a file of the run."""
    atomic.mkdir(path.parent)
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
