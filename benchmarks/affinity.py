"""Affinity of neighbouring pixels, forward and backward: ours against the naive 8K channels.

    python benchmarks/affinity.py [--size 512 1024] [--rounds 3] [--device cpu]

    critic     affinity maps and the critic's first convolution, gradients of both
    cleaning   the cleaning loss

The naive way is what one writes first: a map for each of 8 neighbours, all in one tensor of 8K
channels.  Same inputs, same result (checked); one image, K = 19.  Prints the ratio of times, taken
in turn in one process, and each one's peak memory above the inputs, in a process of its own.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spcl.data.labels import NUM_CLASSES
from spcl.losses.affinity import affinity_cleaning, affinity_convolution

OFFSETS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
EPS = 1e-4
WIDTH = 64  # channels of the critic's first layer
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


def naive_critic(p: Tensor, layer: nn.Conv2d) -> Tensor:
    return layer(naive_maps(p)).square().mean()


def our_critic(p: Tensor, layer: nn.Conv2d) -> Tensor:
    return affinity_convolution(p, layer).square().mean()


def naive_cleaning(p: Tensor, layer: nn.Conv2d) -> Tensor:
    neighbours = torch.cat(naive_neighbours(p), 1).unflatten(1, (len(OFFSETS), -1))
    return (1 - (p[:, None] * neighbours).sum(2)).mean()


def our_cleaning(p: Tensor, layer: nn.Conv2d) -> Tensor:
    total, count = affinity_cleaning(p)
    return total / count


Variant = Callable[[Tensor, nn.Conv2d], Tensor]
VARIANTS: dict[str, dict[str, Variant]] = {
    "critic": {"ours": our_critic, "naive": naive_critic},
    "cleaning": {"ours": our_cleaning, "naive": naive_cleaning},
}


def inputs(size: tuple[int, int], device: str) -> tuple[Tensor, nn.Conv2d]:
    """Smooth probabilities (1, K, H, W), and the critic's first layer."""
    torch.manual_seed(0)
    coarse = 3 * torch.randn(1, NUM_CLASSES, size[0] // 8, size[1] // 8)
    logits = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
    layer = nn.Conv2d(len(OFFSETS) * NUM_CLASSES, WIDTH, kernel_size=4, stride=2, padding=1)
    return logits.softmax(1).to(device).requires_grad_(), layer.to(device)


def step(variant: Variant, p: Tensor, layer: nn.Conv2d) -> Tensor:
    p.grad = None
    layer.zero_grad(set_to_none=True)
    loss = variant(p, layer)
    loss.backward()
    if p.is_cuda:
        torch.cuda.synchronize()
    return loss.detach()


def peak(variant: Variant, p: Tensor, layer: nn.Conv2d) -> float:
    """Growth of this process's peak memory over one step, in MiB."""
    if p.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(variant, p, layer)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resident("VmRSS")
    step(variant, p, layer)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """This process's resident memory, MiB: VmRSS now, VmHWM the most so far."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if field in x]
    return int(line.split()[1]) / 1024


def compare(what: str, arguments: argparse.Namespace) -> bool:
    """Print both ratios; is the one of memory below the bound?"""
    p, layer = inputs(arguments.size, arguments.device)
    variants = VARIANTS[what]
    losses = {name: step(variant, p, layer) for name, variant in variants.items()}  # and warm up
    torch.testing.assert_close(losses["ours"], losses["naive"], rtol=1e-5, atol=1e-6)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, variant in variants.items():
            started = time.perf_counter()
            step(variant, p, layer)
            times[name].append(time.perf_counter() - started)
    faster = statistics.median(n / o for n, o in zip(times["naive"], times["ours"], strict=True))
    memory = {}
    for name in variants:
        command = [sys.executable, __file__, *sys.argv[1:], "--peak", what, name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        memory[name] = float(done.stdout)
    ratio = memory["ours"] / memory["naive"]
    print(f"{what}: loss {losses['ours']:.6f} both ways; device {arguments.device}")
    print(f"  time:   ours is {faster:.2f}x as fast as the naive way (median of pairs)")
    print(
        f"  memory: ours {memory['ours']:.0f} MiB above its inputs, naive {memory['naive']:.0f} "
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
        print(peak(VARIANTS[what][name], *inputs(arguments.size, arguments.device)))
        return 0
    return 0 if all([compare(what, arguments) for what in VARIANTS]) else 1


if __name__ == "__main__":
    sys.exit(main())
