"""Prototype update + contrast of both domains, forward and backward: ours against the plain way.

    python benchmarks/contrast.py [--dimension 2048] [--rounds 3] [--device cpu]

The plain way is what one writes first: move channels last, normalise, index the valid pixels, loop
over classes for their means, multiply.  Same inputs, same loss (checked); sizes are those of
DeepLab-v2 at 720x1280 (source, 90x160) and 512x1024 (target, 64x128).  Prints the ratio of times,
taken in turn in one process, and each one's peak memory above the inputs, in a process of its own.
"""

import argparse
import sys
from functools import partial

import torch
from measure import Step, alone, compare, growth_mib, step
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


def steps(dimension: int, device: str) -> dict[str, Step]:
    pairs = inputs(dimension, device)
    leaves = [features for features, _ in pairs]
    forwards = {n: partial(v, pairs, new_bank(dimension, device)) for n, v in VARIANTS.items()}
    return {name: partial(step, forward, leaves) for name, forward in forwards.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peak", choices=tuple(VARIANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    made = steps(arguments.dimension, arguments.device)
    if arguments.peak:
        print(growth_mib(made[arguments.peak], arguments.device))
        return
    loss, ratio = compare(made["ours"], made["plain"], arguments.rounds)
    (ours,), (plain,) = (alone(*sys.argv[1:], "--peak", name) for name in made)
    print(f"loss {loss:.6f} both ways; device {arguments.device}")
    print(f"time:   ours is {ratio:.2f}x as fast as the plain way (median of pairs)")
    print(f"memory: ours {ours:.0f} MiB above its inputs, plain {plain:.0f} MiB")


if __name__ == "__main__":
    main()
