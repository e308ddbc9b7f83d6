"""Prototype update + contrast of both domains, forward and backward: ours against the plain way.

    python benchmarks/contrast.py [--dimension 2048] [--rounds 3] [--device cpu]

The plain way is what one writes first: move channels last, normalise, index the valid pixels, loop
over classes for their means, multiply.  Same inputs, same loss (checked); sizes are those of
DeepLab-v2 at 720x1280 (source, 90x160) and 512x1024 (target, 64x128).  Prints the ratio of times,
taken in turn in one process, and each one's peak memory above the inputs, in a process of its own.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from spcl.data.labels import NUM_CLASSES
from spcl.losses.contrast import pixel_contrast
from spcl.memory.prototypes import PrototypeBank

GRIDS = {"source": (90, 160), "target": (64, 128)}
VOID = 0.2  # share of ignored pixels
TEMPERATURE, MOMENTUM = 100.0, 0.1


def inputs(dimension: int, device: str) -> list[tuple[Tensor, Tensor]]:
    """(features (1, D, h, w), labels (1, h, w)) of each domain."""
    torch.manual_seed(0)
    made = []
    for grid in GRIDS.values():
        labels = torch.randint(0, NUM_CLASSES, (1, *grid), device=device)
        labels[torch.rand(labels.shape, device=device) < VOID] = 255
        made.append((torch.randn(1, dimension, *grid, device=device, requires_grad=True), labels))
    return made


def ours(pairs: list[tuple[Tensor, Tensor]], bank: PrototypeBank) -> Tensor:
    bank.update(pairs[0][0].detach(), pairs[0][1])
    loss = 0.0
    for features, labels in pairs:
        total, count = pixel_contrast(features, labels, bank.keys(), bank.seen, TEMPERATURE)
        loss = loss + total / count
    return loss


def plain(pairs: list[tuple[Tensor, Tensor]], bank: PrototypeBank) -> Tensor:
    unit, targets = [], []
    for features, labels in pairs:
        rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
        flat = labels.reshape(-1)
        unit.append(F.normalize(rows[flat != 255], dim=1))
        targets.append(flat[flat != 255])
    source = unit[0].detach()
    for k in range(NUM_CLASSES):
        member = source[targets[0] == k]
        if len(member):
            bank.mean[k] = MOMENTUM * bank.mean[k] + (1 - MOMENTUM) * member.mean(0)
    keys = F.normalize(bank.mean, dim=1)
    return sum(
        F.cross_entropy(rows @ keys.t() / TEMPERATURE, labels)
        for rows, labels in zip(unit, targets, strict=True)
    )


VARIANTS = {"ours": ours, "plain": plain}


def new_bank(dimension: int, device: str) -> PrototypeBank:
    torch.manual_seed(1)
    bank = PrototypeBank(NUM_CLASSES, dimension, momentum=MOMENTUM).to(device)
    bank.load(torch.randn(NUM_CLASSES, dimension), torch.ones(NUM_CLASSES, dtype=torch.bool))
    return bank


def step(name: str, pairs: list[tuple[Tensor, Tensor]], bank: PrototypeBank) -> Tensor:
    for features, _ in pairs:
        features.grad = None
    loss = VARIANTS[name](pairs, bank)
    loss.backward()
    if pairs[0][0].is_cuda:
        torch.cuda.synchronize()
    return loss.detach()


def peak(name: str, arguments: argparse.Namespace) -> None:
    """Print this process's growth in peak memory over one step, in MiB."""
    pairs = inputs(arguments.dimension, arguments.device)
    bank = new_bank(arguments.dimension, arguments.device)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(name, pairs, bank)
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    before = peak_rss()
    step(name, pairs, bank)
    print(peak_rss() - before)


def peak_rss() -> float:
    """This process's peak resident memory so far, MiB."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peak", choices=tuple(VARIANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak(arguments.peak, arguments)
        return
    pairs = inputs(arguments.dimension, arguments.device)
    banks = {name: new_bank(arguments.dimension, arguments.device) for name in VARIANTS}
    losses = {name: step(name, pairs, banks[name]) for name in VARIANTS}  # also the warm-up
    torch.testing.assert_close(losses["ours"], losses["plain"], rtol=1e-5, atol=1e-6)
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name in VARIANTS:
            started = time.perf_counter()
            step(name, pairs, banks[name])
            times[name].append(time.perf_counter() - started)
    ratio = statistics.median(p / o for p, o in zip(times["plain"], times["ours"], strict=True))
    memory = {}
    for name in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--peak", name]
        memory[name] = float(subprocess.run(command, capture_output=True, text=True).stdout)
    print(f"loss {losses['ours']:.6f} both ways; device {arguments.device}")
    print(f"time:   ours is {ratio:.2f}x as fast as the plain way (median of pairs)")
    print(
        f"memory: ours {memory['ours']:.0f} MiB above its inputs, plain {memory['plain']:.0f} MiB"
    )


if __name__ == "__main__":
    main()
