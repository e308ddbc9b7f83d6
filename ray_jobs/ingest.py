"""Convert raw datasets into shards, in parallel on Ray.

python ray_jobs/ingest.py --dataset gta5 --root /data/raw/gta5
python ray_jobs/ingest.py --dataset cityscapes --root /data/raw/cityscapes --out /data/spcl
python ray_jobs/ingest.py --verify /data/spcl/gta5/train
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ray_jobs import cluster
from ray_jobs.progress import Progress
from spcl.cli import REPOSITORY, guarded
from spcl.data.convert import convert, verify
from spcl.data.datasets import DATASETS
from spcl.data.listing import NOTE
from spcl.errors import UserError
from spcl.settings import choose

LABELLED = "train_labelled"
ON_MISMATCH = "image and label of unequal size, or one missing (default: leave out and report)"

T = TypeVar("T")
R = TypeVar("R")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="ray_jobs/ingest.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", help=f"format of the raw files: {', '.join(DATASETS)}")
    add("--root", type=Path, help="folder of the raw files")
    add("--split", help="one split (default: all that are there)")
    add("--out", help="converted data, OUT/<dataset>/<split> (default: $SPCL_DATA, else ./data)")
    add("--name", help="the set's name where it only comes in the format of --dataset")
    add("--workers", type=int, help="shards at a time (default: all CPUs); 0: without Ray")
    add("--address", help="Ray cluster (default: $RAY_ADDRESS, else one on this machine)")
    add("--on-mismatch", choices=("skip", "error"), default="skip", help=ON_MISMATCH)
    add("--drop-blank", action="store_true", help="leave out images of one colour")
    add("--with-labels", action="store_true", help=f"also write {LABELLED}: for oracles")
    add("--overwrite", action="store_true", help="replace shards made from other files")
    add("--verify", type=Path, metavar="DIR", help="hash the files of a converted split again")
    return parser.parse_args(argv)


def chosen_splits(arguments: argparse.Namespace) -> list[str]:
    """The splits to convert.  What a file system shows is enough; no file is opened."""
    dataset = DATASETS[arguments.dataset]
    if arguments.split:
        splits = [choose(arguments.split, dataset.splits, f"split of {dataset.name}")]
    else:
        plain = [split for split in dataset.splits if split != LABELLED]
        there = [
            split for split in plain if (arguments.root / dataset.splits[split].images).is_dir()
        ]
        splits = there or plain[:1]  # nothing there: let the conversion say what it misses
    if arguments.with_labels:
        if LABELLED not in dataset.splits or "train" not in splits:
            raise UserError(
                f"--with-labels adds the labels of an unlabelled train split, which "
                f"{dataset.name} {', '.join(splits)} has not; leave it away"
            )
        splits.append(LABELLED)
    return splits


def resolve_paths(arguments: argparse.Namespace) -> None:
    """Make paths absolute here, on the driver; inside a job only absolute ones can be meant."""
    out = arguments.out or os.environ.get("SPCL_DATA")
    given = {"--root": arguments.root, "--out": out and Path(out)}
    if cluster.inside_job():
        wrong = [name for name, path in given.items() if path is None or not path.is_absolute()]
        if wrong:
            raise UserError(
                f"inside a Ray job {' and '.join(wrong)} must be absolute and exist on every node "
                f"(the working folder is a copy that is thrown away); use: python "
                f"ray_jobs/ingest.py --dataset {arguments.dataset} --root /shared/raw "
                f"--out /shared/data"
            )
    arguments.root = arguments.root.expanduser().resolve()
    arguments.out = Path(out or REPOSITORY / "data").expanduser().resolve()


def describe(report: dict[str, Any]) -> str:
    """What one conversion did, in a few lines."""
    lines = [
        f"{report['name']}: {report['converted']} samples in {report['shards']} shards, "
        f"{report['bytes'] / 1e9:.2f} GB, {report['out']}"
    ]
    if report["status"] == "unchanged":
        lines[0] += " (there already, from files of the same names and sizes; nothing done)"
    for check, found in report.get("checks", {}).items():
        effect = "" if found["severity"] == NOTE else ", left out"
        known = f"; {found['known']}" if "known" in found else ""
        lines.append(f"  {check}: {found['count']}{effect} ({found['messages'][0]}{known})")
    return "\n".join(lines)


def run(argv: Sequence[str] | None) -> int:
    arguments = parse(argv)
    if arguments.verify:
        manifest = verify(arguments.verify)
        files = len(manifest["shards"]) + 1
        print(f"{arguments.verify}: {files} files are as they were written")
        return 0
    if not arguments.dataset or not arguments.root:
        raise UserError("--dataset and --root are needed, or --verify; see --help")
    choose(arguments.dataset, DATASETS, "dataset")
    if arguments.workers is not None and arguments.workers < 0:
        raise UserError(f"--workers must be 0 or more, got {arguments.workers}")
    resolve_paths(arguments)

    def map_tasks(function: Callable[[T], R], tasks: list[T]) -> Iterable[R]:
        if arguments.workers == 0:
            return map(function, tasks)
        cluster.connect(arguments.address)
        return cluster.ray_map(function, tasks, arguments.workers)

    try:
        convert_splits(arguments, map_tasks)
    except KeyboardInterrupt:
        print("interrupted; finished splits stay, nothing is left of the other", file=sys.stderr)
        return 130
    return 0


def convert_splits(arguments: argparse.Namespace, map_tasks: Callable) -> None:
    name = arguments.name or arguments.dataset
    for split in chosen_splits(arguments):
        report = convert(
            arguments.dataset,
            arguments.root,
            arguments.out / name / split,
            split=split,
            name=arguments.name,
            map_tasks=map_tasks,
            on_mismatch=arguments.on_mismatch,
            drop_blank=arguments.drop_blank,
            overwrite=arguments.overwrite,
            progress=Progress(f"{name}/{split}"),
        )
        print(describe(report), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return guarded(run, argv)
    except OSError as error:  # a full disk, a folder without permission
        print(f"error: {error}", file=sys.stderr)
        return 2


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # so that a stopped job cleans up, too
    sys.exit(main())
