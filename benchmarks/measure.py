"""What the benchmarks of speed and memory share: steps, times taken in turn, peaks of a process."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

Step = Callable[[], Tensor]


def step(forward: Step, leaves: Sequence[Tensor]) -> Tensor:
    """Forward, and backward to the leaves; the loss."""
    for leaf in leaves:
        leaf.grad = None
    loss = forward()
    loss.backward()
    if loss.is_cuda:
        torch.cuda.synchronize()
    return loss.detach()


def seconds(run: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def compare(ours: Step, other: Step, rounds: int) -> tuple[Tensor, float]:
    """The loss, the same both ways, and how many times as fast ours is: the median of pairs."""
    loss = ours()
    torch.testing.assert_close(loss, other(), rtol=1e-5, atol=1e-6)  # and both are warm
    return loss, statistics.median(seconds(other) / seconds(ours) for _ in range(rounds))


def resident_mib(field: str) -> float:
    """This process's resident memory: VmRSS now, VmHWM the most so far."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if field in x]
    return int(line.split()[1]) / 1024


def peak_mib() -> float:
    return resident_mib("VmHWM")


def growth_mib(run: Callable[[], object], device: str) -> float:
    """How far memory rises above what is held now; once in a process, for the peak stays."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resident_mib("VmRSS")
    run()
    return peak_mib() - before


def alone(*arguments: str) -> list[float]:
    """The numbers that this script prints in a process of its own; a failure there is one here."""
    command = [sys.executable, sys.argv[0], *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.split()]
