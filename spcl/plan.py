"""How much memory each stage of a recipe needs on a worker, and what fits a GPU: nothing is run."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from spcl import cli
from spcl.errors import ConfigError

if TYPE_CHECKING:
    from spcl.configuration.config import Config
    from spcl.engine.footprint import Footprint

MIB, GIB = 2**20, 2**30
# Ours: the CUDA context, the workspaces of cuDNN and cuBLAS and what the allocator can't use.
RESERVED = 3 * GIB // 2
COLUMNS = ("weights", "gradients", "optimizers", "buffers", "batch", "activations", "peak")
# With micro-batches hundreds of images may fit, and each costs the count most of a second.
COUNTED_IN_PARTS = 8  # ours: images a worker; beyond is "or more"

EXAMPLE = """example:
  python -m spcl.plan --benchmark gta5 --method spcl --gpu 24GB,80GB train.workers=4
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m spcl.plan",
        description=__doc__,
        epilog=EXAMPLE,
    )
    cli.add_config_arguments(parser)
    cli.add_data(parser)
    parser.add_argument("--gpu", default="", help="memory of GPUs to ask about, e.g. 24GB,80GB")
    arguments = parser.parse_intermixed_args(argv)
    gpus = parse_sizes(arguments.gpu)
    from spcl.configuration import table

    given = (arguments.benchmark, arguments.method, arguments.config, arguments.settings)
    table.check(*given)  # a typing error is answered before torch is loaded
    from spcl.configuration.config import load
    from spcl.data.labels import NUM_CLASSES
    from spcl.engine.inputs import data_root, expect_data
    from spcl.engine.planned import count_classes
    from spcl.launch import check_batches

    config = load(*given)
    check_batches(config, config.train.workers)
    classes = count_classes(expect_data(config, data_root(arguments.data)).values())
    if classes is None:
        print(f"the data are not there yet: planned for {NUM_CLASSES} classes")
    print(describe(config, classes or NUM_CLASSES, gpus))
    return 0


def parse_sizes(text: str) -> dict[str, int]:
    """ "24GB,80GB" -> bytes by name.  As GPUs are sold, a GB is 2**30 bytes, and so is a GiB."""
    sizes = {}
    for name in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)Gi?B?", name, re.IGNORECASE)
        if not found or not float(found[1]):
            raise ConfigError(f"--gpu must be sizes like 24GB or 24GB,80GB, got {text!r}")
        sizes[name] = int(float(found[1]) * GIB)
    return sizes


def describe(config: Config, classes: int, gpus: dict[str, int]) -> str:
    """A row per stage in MiB; then, for each GPU, whether all fit and how many images would."""
    from spcl.engine.footprint import without_training
    from spcl.engine.stages import plan

    workers = config.train.workers
    stages = plan(config, {"source": None, "target": None, "evaluation": None})
    lines = [f"{'MiB on each worker':<34}{'images':>7}" + "".join(f"{c:>12}" for c in COLUMNS)]
    peaks: dict[str, int] = {}
    for stage in stages:
        if stage.method:
            images = share(config, stage.method)
            found = footprint(config, stage.method, images, classes)
            peaks[stage.title] = found.peak
            cells = "".join(f"{getattr(found, c) / MIB:>12.1f}" for c in COLUMNS)
            lines.append(f"{stage.title:<34}{images:>7}{cells}")
        else:
            peaks[stage.title] = without_training(config, stage, workers, classes)
            rest = f"{peaks[stage.title] / MIB:>{12 * len(COLUMNS)}.1f}"
            lines.append(f"{stage.title:<34}{'':>7}{rest}")
    for name, size in gpus.items():
        lines += ["", *fits(config, classes, name, size, peaks)]
    return "\n".join(lines)


def fits(config: Config, classes: int, name: str, size: int, peaks: dict[str, int]) -> list[str]:
    """What a GPU of a size says to peaks by stage's title, and the largest batches for it."""
    free, workers = size - RESERVED, config.train.workers
    over = {title: peak for title, peak in peaks.items() if peak > free}
    most = max(peaks.values()) / GIB
    verdict = f"does not fit: {', '.join(over)}" if over else "fits"
    lines = [
        f"{name}: {verdict}; {most:.2f} GiB at most, {free / GIB:.2f} left of {size / GIB:g} "
        f"beside {RESERVED / GIB:g} for the CUDA context and workspaces (ours)"
    ]
    for stage in config.stages:
        counted = max(COUNTED_IN_PARTS, share(config, stage)) if config.train.micro_batch else None
        batch = largest(partial(need, config, stage, classes), free, counted)
        setting = "train.batch" if config.of(stage).batch is None else f"{stage}.batch"
        told = f"{batch} images or more" if batch == counted else f"at most {batch} images"
        lines.append(f"  {stage:<16} {told} a worker: {setting}={batch * workers}")
        if stage in over and in_parts(config, 1):
            micro_batch = largest_part(config, stage, classes, free)
            told = f"train.micro_batch={micro_batch}" if micro_batch else "not in parts either"
            lines.append(f"  {'':<16} all {share(config, stage)} images of a worker: {told}")
    return lines


def largest_part(config: Config, stage: str, classes: int, limit: int) -> int:
    """The largest `train.micro_batch` with which a worker's share of a stage fits; 0: none."""
    images = share(config, stage)

    def part(size: int) -> int:
        changed = in_parts(config, size)
        if changed is None or size >= images:  # all at once, which has been found too large
            return limit + 1
        return need(changed, stage, classes, images)

    return largest(part, limit)


def in_parts(config: Config, size: int) -> Config | None:
    """The same with `train.micro_batch`; None where the network forbids it."""
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=size))
    try:
        changed.check()
    except ConfigError:
        return None
    return changed


def share(config: Config, stage: str) -> int:
    """Images of a domain in a worker's step."""
    return config.batch_of(stage) // config.train.workers


def need(config: Config, stage: str, classes: int, images: int) -> int:
    """Peak bytes of a step of a stage with so many images on a worker."""
    return footprint(config, stage, images, classes).peak


def footprint(config: Config, stage: str, images: int, classes: int) -> Footprint:
    from spcl.engine.footprint import training

    return training(config, stage, images, classes, workers=config.train.workers)


def largest(need: Callable[[int], int], limit: int, most: int | None = None) -> int:
    """The largest number of images whose need is within the limit; 0 if one image is too many.

    most  no larger one is looked for

    need  grows with the number, and nearly on a line: what a step needs is the largest of sums
          that each have a part for every image.  So few numbers are tried.
    """
    if most and need(most) <= limit:
        return most
    low, at_low = 1, need(1)
    if at_low > limit:
        return 0
    high, at_high = 2, need(2)
    while at_high <= limit:
        slope = max(1, (at_high - at_low) // (high - low))
        low, at_low = high, at_high
        high = low + max(1, (limit - at_low) // slope + 1)
        at_high = need(high)
    while high - low > 1:  # low fits, high does not
        guess = low + (limit - at_low) * (high - low) // (at_high - at_low)
        middle = min(max(guess, low + 1), high - 1)
        at_middle = need(middle)
        if at_middle <= limit:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    return low


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
