"""Contrast of both domains, forward and backward: ours against plainer ways.

    python benchmarks/contrast.py [--dimension 2048] [--rounds 3] [--device cpu]

    prototypes     prototype update + contrast with the keys
    distributions  contrast with Gaussians, the bound of SDCA

"plain" is what one writes first: for prototypes, move channels last, normalise, index the valid
pixels, loop over classes for their means, multiply; for distributions, the formula in the features'
layout, differentiated by autograd.  "authors" takes the steps of SPCL's code: a mask as wide as the
features picks each class's pixels.  Same inputs, same loss (checked); sizes are those of DeepLab-v2
at 720x1280 (source, 90x160) and 512x1024 (target, 64x128).  Prints ratios of times, taken in turn
in one process, and each one's peak memory above the inputs, in a process of its own.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from measure import Step, alone, compare, growth_mib, step
from torch import Tensor
from torch.nn import functional as F

from spcl.data.labels import NUM_CLASSES
from spcl.losses.contrast import pixel_contrast
from spcl.losses.gaussian import gaussian_contrast
from spcl.memory.prototypes import PrototypeBank

GRIDS = {"source": (90, 160), "target": (64, 128)}
VOID = 0.2  # share of ignored pixels
TEMPERATURE, MOMENTUM = 100.0, 0.1

Pairs = list[tuple[Tensor, Tensor]]  # (features (1, D, h, w), labels (1, h, w)) of each domain


def inputs(dimension: int, device: str) -> Pairs:
    torch.manual_seed(0)
    made = []
    for grid in GRIDS.values():
        labels = torch.randint(0, NUM_CLASSES, (1, *grid), device=device)
        labels[torch.rand(labels.shape, device=device) < VOID] = 255
        made.append((torch.randn(1, dimension, *grid, device=device, requires_grad=True), labels))
    return made


def ours(pairs: Pairs, bank: PrototypeBank) -> Tensor:
    bank.update(pairs[0][0].detach(), pairs[0][1])
    loss = 0.0
    for features, labels in pairs:
        total, count = pixel_contrast(features, labels, bank.keys(), bank.seen, TEMPERATURE)
        loss = loss + total / count
    return loss


def plain(pairs: Pairs, bank: PrototypeBank) -> Tensor:
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


def authors(pairs: Pairs, bank: PrototypeBank) -> Tensor:
    features, labels = pairs[0]
    unit = F.normalize(features.detach().clone(), dim=1).permute(0, 2, 3, 1).contiguous()
    for k in labels.unique():
        if k != 255:
            wide = (labels == k)[..., None].repeat(1, 1, 1, unit.shape[-1])
            mean = unit[wide].view(-1, unit.shape[-1]).mean(0)
            bank.mean[k] = MOMENTUM * bank.mean[k] + (1 - MOMENTUM) * mean
    keys = F.normalize(bank.mean, dim=1)
    loss = 0.0
    for features, labels in pairs:
        rows = F.normalize(features, dim=1).permute(0, 2, 3, 1).contiguous().flatten(0, 2)
        logits = rows.mm(keys.t()) / TEMPERATURE
        loss = loss + F.cross_entropy(logits, labels.flatten(), ignore_index=255)
    return loss


def our_bound(pairs: Pairs, bank: PrototypeBank) -> Tensor:
    loss = 0.0
    for features, labels in pairs:
        keys = bank.keys(), bank.keys().square(), bank.seen, TEMPERATURE
        total, count = gaussian_contrast(features, labels, *keys)
        loss = loss + total / count
    return loss


def plain_bound(pairs: Pairs, bank: PrototypeBank) -> Tensor:
    keys, variance = bank.keys(), bank.keys().square()
    loss = 0.0
    for features, labels in pairs:
        unit = F.normalize(features, dim=1).flatten(2)
        quadratic = variance @ unit.square() / (2 * TEMPERATURE**2)
        logits, labels = keys @ unit / TEMPERATURE + quadratic, labels.flatten(1)
        own = F.nll_loss(quadratic, labels, ignore_index=255)
        loss = loss + F.cross_entropy(logits, labels, ignore_index=255) - own
    return loss


VARIANTS: dict[str, dict[str, Callable[[Pairs, PrototypeBank], Tensor]]] = {
    "prototypes": {"ours": ours, "plain": plain, "authors": authors},
    "distributions": {"ours": our_bound, "plain": plain_bound},
}


def new_bank(dimension: int, device: str) -> PrototypeBank:
    torch.manual_seed(1)
    bank = PrototypeBank(NUM_CLASSES, dimension, momentum=MOMENTUM).to(device)
    bank.load(torch.randn(NUM_CLASSES, dimension), torch.ones(NUM_CLASSES, dtype=torch.bool))
    return bank


def steps(what: str, pairs: Pairs) -> dict[str, Step]:
    leaves = [features for features, _ in pairs]
    dimension, device = leaves[0].shape[1], leaves[0].device.type
    return {
        name: partial(step, partial(forward, pairs, new_bank(dimension, device)), leaves)
        for name, forward in VARIANTS[what].items()
    }


def report(what: str, pairs: Pairs, rounds: int) -> None:
    """Print how each way compares with ours."""
    gradient = sum(f.numel() * f.element_size() for f, _ in pairs) / 2**20
    print(f"{what}: the gradient has {gradient:.0f} MiB")
    for name in VARIANTS[what]:
        (peak,) = alone(*sys.argv[1:], "--peak", what, name)
        memory = f"{peak:.0f} MiB above the inputs, {peak / gradient:.2f}x the gradient"
        if name == "ours":
            print(f"  ours: {memory}")
        else:
            made = steps(what, pairs)  # anew: a step moves its bank
            loss, ratio = compare(made["ours"], made[name], rounds)
            print(f"  {name}: {memory}; ours is {ratio:.1f}x as fast; loss {loss:.6f} both ways")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    pairs = inputs(arguments.dimension, arguments.device)
    if arguments.peak:
        what, name = arguments.peak
        steps(what, inputs(16, arguments.device))[name]()  # what libraries load is not of a step
        print(growth_mib(steps(what, pairs)[name], arguments.device))
        return
    for what in VARIANTS:
        report(what, pairs, arguments.rounds)


if __name__ == "__main__":
    main()
