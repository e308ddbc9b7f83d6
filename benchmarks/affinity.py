"""Affinity of neighbouring pixels and Lovász, forward and backward: ours against the naive way.

    python benchmarks/affinity.py [--size 512 1024] [--rounds 3] [--device cpu]

    discriminator  affinity maps and the discriminator's first convolution, gradients of both
    game           both players of ASANet: source and target through the whole discriminator
    cleaning       the cleaning loss
    lovasz         Lovász-softmax, every class present

The naive way is what one writes first: a map for each of 8 neighbours, all in one tensor of 8K
channels, the target's for each player; Lovász class by class, as published.  Same inputs, same
result (checked); one image, K = 19.  Prints the ratio of times, taken in turn in one process, and
each one's peak memory above the inputs, in a process of its own.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import Step, alone, compare, growth_mib, step
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from spcl.data.labels import NUM_CLASSES
from spcl.losses.adversarial import players
from spcl.losses.affinity import (
    affinity_cleaning,
    affinity_convolution,
    affinity_convolution_apart,
)
from spcl.losses.lovasz import lovasz_softmax
from spcl.models.discriminator import Discriminator

OFFSETS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
EPS = 1e-4
WIDTH = 64  # channels of the discriminator's first layer
BOUND = 0.25  # of the naive way's memory, which ours should stay below


def naive_neighbours(p: Tensor) -> list[Tensor]:
    height, width = p.shape[-2:]
    padded = F.pad(p, (1, 1, 1, 1), mode="replicate")
    return [padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in OFFSETS]


def naive_maps(p: Tensor) -> Tensor:
    """(B, K, H, W) -> (B, 8K, H, W)"""
    maps = []
    for neighbour in naive_neighbours(p):
        q = p * neighbour
        a, b = q.clamp(EPS, 1), (1 - q).clamp(EPS, 1)
        ln_a, ln_b = (a / p.clamp(EPS, 1)).log(), (b / (1 - p).clamp(EPS, 1)).log()
        maps.append(a * ln_a + b * ln_b)
    return torch.cat(maps, 1)


def naive_discriminator(p: Tensor, layer: nn.Conv2d) -> Tensor:
    return layer(naive_maps(p)).square().mean()


def our_discriminator(p: Tensor, layer: nn.Conv2d) -> Tensor:
    return affinity_convolution(p, layer).square().mean()


def naive_cleaning(p: Tensor, layer: nn.Conv2d) -> Tensor:
    neighbours = torch.cat(naive_neighbours(p), 1).unflatten(1, (len(OFFSETS), -1))
    return (1 - (p[:, None] * neighbours).sum(2)).mean()


def our_cleaning(p: Tensor, layer: nn.Conv2d) -> Tensor:
    total, count = affinity_cleaning(p)
    return total / count


def bce(logits: Tensor, answer: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, answer))


def naive_game(source: Tensor, target: Tensor, discriminator: Discriminator) -> Tensor:
    fixed = {name: p.detach() for name, p in discriminator.named_parameters()}
    fooling = functional_call(discriminator, fixed, naive_maps(target))
    told = discriminator(naive_maps(source.detach())), discriminator(naive_maps(target.detach()))
    return bce(fooling, 0.0) + (bce(told[0], 0.0) + bce(told[1], 1.0)) / 2


def our_game(source: Tensor, target: Tensor, discriminator: Discriminator) -> Tensor:
    fooling, *told = (total / count for total, count in players(discriminator, source, target))
    return fooling + (told[0] + told[1]) / 2


def naive_lovasz(logits: Tensor, labels: Tensor) -> Tensor:
    losses = []
    probabilities, truth = logits.softmax(1)[0].flatten(1), labels.flatten()
    for c in truth.unique():
        foreground = (truth == c).float()
        errors, order = (foreground - probabilities[c]).abs().sort(descending=True)
        hit = foreground[order]
        jaccard = 1 - (hit.sum() - hit.cumsum(0)) / (hit.sum() + (1 - hit).cumsum(0))
        losses.append(errors @ jaccard.diff(prepend=jaccard.new_zeros(1)))
    return torch.stack(losses).mean()


def our_lovasz(logits: Tensor, labels: Tensor) -> Tensor:
    return lovasz_softmax(logits, labels)[0]


Variant = Callable[..., Tensor]
VARIANTS: dict[str, dict[str, Variant]] = {
    "discriminator": {"ours": our_discriminator, "naive": naive_discriminator},
    "game": {"ours": our_game, "naive": naive_game},
    "cleaning": {"ours": our_cleaning, "naive": naive_cleaning},
    "lovasz": {"ours": our_lovasz, "naive": naive_lovasz},
}
BOUNDED = ("discriminator", "game", "cleaning")


def inputs(what: str, size: tuple[int, int], device: str) -> list[Any]:
    """What both ways are given: smooth probabilities (1, K, H, W) or logits, and the rest."""
    torch.manual_seed(0)
    coarse = 3 * torch.randn(2, NUM_CLASSES, size[0] // 8, size[1] // 8)
    logits = F.interpolate(coarse, size, mode="bilinear", align_corners=True).to(device)
    if what == "lovasz":
        labels = torch.randint(0, NUM_CLASSES, (1, *size), device=device)
        return [logits[:1].requires_grad_(), labels]
    source, target = (p[None].requires_grad_() for p in logits.softmax(1).unbind())
    if what == "game":
        return [source, target, discriminator(our=True).to(device)]
    layer = nn.Conv2d(len(OFFSETS) * NUM_CLASSES, WIDTH, kernel_size=4, stride=2, padding=1)
    return [source, layer.to(device)]


def discriminator(our: bool) -> Discriminator:
    torch.manual_seed(1)
    channels = len(OFFSETS) * NUM_CLASSES
    if our:
        return Discriminator(channels, WIDTH, affinity_convolution, affinity_convolution_apart)
    return Discriminator(channels, WIDTH)


def steps(what: str, size: tuple[int, int], device: str) -> dict[str, Step]:
    given = {name: inputs(what, size, device) for name in VARIANTS[what]}
    if what == "game":
        given["naive"][-1] = discriminator(our=False).to(device)
    return {name: partial(run, VARIANTS[what][name], given[name]) for name in given}


def run(way: Variant, given: list[Any]) -> Tensor:
    parameters = [p for x in given if isinstance(x, nn.Module) for p in x.parameters()]
    leaves = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
    return step(partial(way, *given), [*leaves, *parameters])


def report(what: str, arguments: argparse.Namespace) -> bool:
    """Print both ratios; is the one of memory below the bound?"""
    made = steps(what, arguments.size, arguments.device)
    loss, faster = compare(made["ours"], made["naive"], arguments.rounds)
    (ours,), (naive,) = (alone(*sys.argv[1:], "--peak", what, name) for name in made)
    ratio, bounded = ours / naive, what in BOUNDED
    print(f"{what}: loss {loss:.6f} both ways; device {arguments.device}")
    print(f"  time:   ours is {faster:.2f}x as fast as the naive way (median of pairs)")
    print(
        f"  memory: ours {ours:.0f} MiB above its inputs, naive {naive:.0f} "
        f"MiB: {ratio:.3f} of it"
        + (f", {'below' if ratio < BOUND else 'NOT below'} {BOUND}" if bounded else "")
    )
    return ratio < BOUND or not bounded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        what, name = arguments.peak
        made = steps(what, arguments.size, arguments.device)
        print(growth_mib(made[name], arguments.device))
        return 0
    return 0 if all([report(what, arguments) for what in VARIANTS]) else 1


if __name__ == "__main__":
    sys.exit(main())
