"""Command line of the embedded benchmark: write its trees, or a sheet to look at."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spcl.cli import Parser, guarded
from spcl.errors import DataError

if TYPE_CHECKING:
    import numpy as np

PREVIEW_SCENES = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 on a user's mistake."""
    return guarded(run, argv)


def run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    width, height = _size(arguments.size)
    if not (arguments.out or arguments.preview):
        raise DataError("nothing to do: give --out DIR, --preview FILE.png, or both")
    if arguments.out:
        from spcl.data.streets.trees import write_trees

        write_trees(
            arguments.out,
            world=arguments.world,
            source_images=arguments.source_images,
            target_images=arguments.target_images,
            val_images=arguments.val_images,
            height=height,
            width=width,
            progress=_show,
        )
        print(f"streets, world {arguments.world}: {arguments.out}")
    if arguments.preview:
        from spcl.data.export import write_png

        write_png(arguments.preview, contact_sheet(arguments.world, height, width))
        print(f"preview: {arguments.preview}")
    return 0


def contact_sheet(world: int, height: int, width: int) -> np.ndarray:
    """One scene per row: sim image, sim label, real image, real label; (H, W, 3) uint8."""
    import numpy as np

    from spcl.data.labels import colorize
    from spcl.data.streets.domains import DOMAINS
    from spcl.data.streets.render import render

    rows = []
    for index in range(PREVIEW_SCENES):
        row = []
        for domain in DOMAINS:
            image, train_ids = render(world, domain, "train", index, height, width)
            row += [image, colorize(train_ids)]
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise DataError(f"--size must be WIDTHxHEIGHT, such as 128x64, got {text!r}")
    return int(match[1]), int(match[2])


def _show(done: int, total: int) -> None:
    """A line that rewrites itself; in a log, ten lines."""
    live = sys.stderr.isatty()
    if live or done == total or done % max(1, total // 10) == 0:
        end = "\r" if live and done < total else "\n"
        print(f"{done}/{total} images", end=end, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m spcl.data.streets",
        description="Render the embedded street benchmark: a GTA5 tree and a Cityscapes tree.",
        epilog="example: python -m spcl.data.streets --out data/streets/raw --preview sheet.png",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write the trees to")
    parser.add_argument("--world", type=int, default=0, help="0 benchmark (default), 1 calibration")
    parser.add_argument("--source-images", type=int, default=600, metavar="N")
    parser.add_argument("--target-images", type=int, default=600, metavar="N")
    parser.add_argument("--val-images", type=int, default=200, metavar="N")
    parser.add_argument("--size", default="128x64", metavar="WxH", help="pixels (default 128x64)")
    parser.add_argument("--preview", type=Path, metavar="FILE.png", help="write a contact sheet")
    return parser


if __name__ == "__main__":
    sys.exit(main())
