"""Processes for tests: ranks of a gloo group, and a limit on the files of this one."""

import contextlib
import resource
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=60)  # of a collective: a rank that waits longer fails the test


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Every rank's result of function(rank, *args), in rank order.

    The function lives at the top of an importable module; what it returns is what torch.save takes.
    An exception in any rank is raised here.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (function, world_size, folder, args), world_size)
        # weights_only is off because these files are our own.
        return [torch.load(_result(folder, rank), weights_only=False) for rank in range(world_size)]


def _run(
    rank: int, function: Callable[..., Any], world_size: int, folder: str, args: tuple
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
    )
    try:
        torch.save(function(rank, *args), _result(folder, rank))
    finally:
        dist.destroy_process_group()


def _result(folder: str, rank: int) -> Path:
    return Path(folder, f"result-{rank}.pt")


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
