"""Affinity of neighbouring pixels, forward and backward: ours against the naive 8K channels.

    python benchmarks/affinity.py [--size 512 1024] [--rounds 3] [--device cpu]

    discriminator     affinity maps and the discriminator's first convolution, gradients of both
    cleaning   the cleaning loss

The naive way is what one writes first: a map for each of 8 neighbours, all in one tensor of 8K
channels.  Same inputs, same result (checked); one image, K = 19.  Prints the ratio of times, taken
in turn in one process, and each one's peak memory above the inputs, in a process of its own.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from measure import Step, alone, compare, growth_mib, step
from torch import Tensor, nn
from torch.nn import functional as F

from spcl.data.labels import NUM_CLASSES
from spcl.losses.affinity import affinity_cleaning, affinity_convolution

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


Variant = Callable[[Tensor, nn.Conv2d], Tensor]
VARIANTS: dict[str, dict[str, Variant]] = {
    "discriminator": {"ours": our_discriminator, "naive": naive_discriminator},
    "cleaning": {"ours": our_cleaning, "naive": naive_cleaning},
}


def inputs(size: tuple[int, int], device: str) -> tuple[Tensor, nn.Conv2d]:
    """Smooth probabilities (1, K, H, W), and the discriminator's first layer."""
    torch.manual_seed(0)
    coarse = 3 * torch.randn(1, NUM_CLASSES, size[0] // 8, size[1] // 8)
    logits = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
    layer = nn.Conv2d(len(OFFSETS) * NUM_CLASSES, WIDTH, kernel_size=4, stride=2, padding=1)
    return logits.softmax(1).to(device).requires_grad_(), layer.to(device)


def steps(what: str, size: tuple[int, int], device: str) -> dict[str, Step]:
    p, layer = inputs(size, device)
    leaves = [p, *layer.parameters()]
    return {name: partial(step, partial(v, p, layer), leaves) for name, v in VARIANTS[what].items()}


def report(what: str, arguments: argparse.Namespace) -> bool:
    """Print both ratios; is the one of memory below the bound?"""
    made = steps(what, arguments.size, arguments.device)
    loss, faster = compare(made["ours"], made["naive"], arguments.rounds)
    (ours,), (naive,) = (alone(*sys.argv[1:], "--peak", what, name) for name in made)
    ratio = ours / naive
    print(f"{what}: loss {loss:.6f} both ways; device {arguments.device}")
    print(f"  time:   ours is {faster:.2f}x as fast as the naive way (median of pairs)")
    print(
        f"  memory: ours {ours:.0f} MiB above its inputs, naive {naive:.0f} "
        f"MiB: {ratio:.3f} of it, {'below' if ratio < BOUND else 'NOT below'} {BOUND}"
    )
    return ratio < BOUND


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
