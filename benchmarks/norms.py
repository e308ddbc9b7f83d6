"""Batch norms on two ranks against two single processes, and the frozen norm in bfloat16.

    python benchmarks/norms.py [--height 512] [--width 512] [--rounds 5]

Ranks: the 104 norm layers of DeepLab-v2's ResNet-101 at one image a rank, forward and backward, as
one group of two processes and as two processes without a group, side by side on one thread each,
in alternating rounds.  The group's maps are the same; what it adds is its collectives.  Prints the
ratio of times (median of pairs) and what a collective costs at the least.

Frozen: one map (2, 256, 90, 160), forward and backward.  The old way converts to float32 and back
around a multiply-add; F.batch_norm keeps its input.  Each one's peak memory above the input is that
of a process of its own.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measure import Step, alone, growth_mib, seconds, step
from torch import Tensor
from torch.nn import functional as F

from spcl import distributed
from spcl.engine.devices import keep_freed_memory
from spcl.models.normalization import DomainNorm, FrozenBatchNorm2d

WORLD = 2
#: (blocks, width, stride of the grid) of ResNet-101 as DeepLab-v2 dilates it.
STAGES = ((3, 64, 4), (4, 128, 8), (23, 256, 8), (3, 512, 8))
EXPANSION = 4  # a block's last layer against its width
FROZEN_MAP = (2, 256, 90, 160)
TIMEOUT = timedelta(seconds=120)
PINGS = 200


def layer_shapes(height: int, width: int) -> list[tuple[int, int, int]]:
    """(channels, h, w) of each norm layer: the stem's, and three a block and one a short cut."""
    shapes = [(64, height // 2, width // 2)]
    for blocks, channels, stride in STAGES:
        grid = height // stride, width // stride
        shapes.append((channels * EXPANSION, *grid))
        shapes += blocks * [(channels, *grid), (channels, *grid), (channels * EXPANSION, *grid)]
    return shapes


def on_rank(rank: int, store: str, shapes: list, rounds: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as every training does
    torch.manual_seed(rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD, timeout=TIMEOUT
    )
    made = {shape: torch.randn(1, *shape, requires_grad=True) for shape in set(shapes)}
    layers = [DomainNorm(shape[0]) for shape in shapes]

    def once() -> None:
        for layer, shape in zip(layers, shapes, strict=True):
            layer(made[shape]).backward(made[shape].detach())

    def apart() -> None:
        with distributed.on_its_own():
            once()

    def both(run: Callable[[], object]) -> None:
        run()
        dist.barrier()  # until the slower one has finished

    def timed(run: Callable[[], object]) -> float:
        dist.barrier()
        return seconds(both, run)

    for warm_up in (once, apart):
        timed(warm_up)
    pairs = [(timed(once), timed(apart)) for _ in range(rounds)]
    vector = torch.zeros(2 * max(shape[0] for shape in shapes) + 2)
    gathers = statistics.median(timed(partial(distributed.stack, vector)) for _ in range(PINGS))
    sums = statistics.median(timed(partial(distributed.all_reduce, vector)) for _ in range(PINGS))
    empty = statistics.median(timed(lambda: None) for _ in range(PINGS))
    if rank == 0:
        together, single = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"ranks:  a group of {WORLD} takes {ratio:.2f}x the time of {WORLD} processes apart")
        print(f"        {len(shapes)} layers: {together:.3f} s against {single:.3f} s")
        print(
            f"        a collective: gather {1e6 * (gathers - empty):.0f} us, "
            f"sum {1e6 * (sums - empty):.0f} us of {1e6 * empty:.0f} us for a barrier"
        )
    dist.destroy_process_group()


Variant = Callable[[FrozenBatchNorm2d, Tensor], Tensor]


def old(layer: FrozenBatchNorm2d, x: Tensor) -> Tensor:
    scale = layer.weight * (layer.running_var + layer.eps).rsqrt()
    bias = layer.bias - layer.running_mean * scale
    return torch.addcmul(bias[:, None, None], x.float(), scale[:, None, None]).to(x.dtype)


def torchs(layer: FrozenBatchNorm2d, x: Tensor) -> Tensor:
    stored = layer.running_mean, layer.running_var, layer.weight, layer.bias
    return F.batch_norm(x, *stored, eps=layer.eps)


VARIANTS: dict[str, Variant] = {
    "ours": FrozenBatchNorm2d.forward,
    "the old way": old,
    "F.batch_norm": torchs,
}


def frozen_steps() -> dict[str, Step]:
    torch.manual_seed(0)
    layer = FrozenBatchNorm2d(FROZEN_MAP[1])
    layer.running_mean.normal_()
    layer.weight.uniform_(0.5, 1.5)
    x = torch.randn(FROZEN_MAP).bfloat16().requires_grad_()

    def summed(variant: Variant) -> Tensor:
        return variant(layer, x).sum()

    return {name: partial(step, partial(summed, v), [x]) for name, v in VARIANTS.items()}


def frozen(rounds: int) -> None:
    torch.set_num_threads(1)
    made = frozen_steps()
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds + 1):  # the first warms up
        for name, run in made.items():
            times[name].append(seconds(run))
    for name in made:
        ratio = statistics.median(
            a / b for a, b in zip(times[name][1:], times["ours"][1:], strict=True)
        )
        (memory,) = alone(*sys.argv[1:], "--peak", name)
        print(f"frozen: {name} takes {ratio:.2f}x ours, {memory:.0f} MiB above its input")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=tuple(VARIANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(growth_mib(frozen_steps()[arguments.peak], "cpu"))
        return
    shapes = layer_shapes(arguments.height, arguments.width)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (f"{folder}/store", shapes, arguments.rounds), WORLD)
    frozen(arguments.rounds)


if __name__ == "__main__":
    main()
