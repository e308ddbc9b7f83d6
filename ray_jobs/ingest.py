"""Convert raw datasets into shards, in parallel on Ray.

python ray_jobs/ingest.py --dataset gta5 --root /data/raw/gta5
python ray_jobs/ingest.py --dataset cityscapes --root /data/raw/cityscapes --out /data/spcl
python ray_jobs/ingest.py --dataset my-data.yaml --root /data/raw/mine
python ray_jobs/ingest.py --dataset gta5 --view 1280x720 --codec jpeg95
python ray_jobs/ingest.py --verify /data/spcl/gta5/train

Finished shards of an interrupted conversion are kept: the same command continues it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ray_jobs import cluster
from ray_jobs.progress import Progress
from spcl import cli
from spcl.cli import REPOSITORY, guarded
from spcl.errors import UserError

if TYPE_CHECKING:
    from spcl.data.datasets import Dataset

LABELLED = "train_labelled"
DESCRIPTIONS = (".yaml", ".yml")
LARGEST = "a file of more pixels is an error (default: {}, as Pillow)"
ON_MISMATCH = "image and label of unequal size, or one missing (default: leave out and report)"

T = TypeVar("T")
R = TypeVar("R")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from spcl.data.datasets import DATASETS
    from spcl.data.encodings import ENCODINGS
    from spcl.data.pictures import MAX_PIXELS

    parser = cli.Parser(
        prog="ray_jobs/ingest.py",
        description=__doc__,
    )
    add = parser.add_argument
    known = f"{', '.join(DATASETS)}, or a YAML file that describes your own"
    add("--dataset", help=f"the raw files: {known} (spcl/data/datasets/custom.py)")
    add("--root", type=Path, help="folder of the raw files")
    add("--split", help="one split (default: all that are there)")
    add("--out", help="converted data, OUT/<dataset>/<split> (default: $SPCL_DATA, else ./data)")
    add("--name", help="the set's name where it only comes in the format of --dataset")
    add("--licence", help="of the files, where --name says that they are another set")
    add("--workers", type=int, help="shards at a time (default: all CPUs); 0: without Ray")
    add("--address", help="Ray cluster (default: $RAY_ADDRESS, else one on this machine)")
    add("--on-mismatch", choices=("skip", "error"), default="skip", help=ON_MISMATCH)
    add("--label-encoding", choices=tuple(ENCODINGS), help="labels, if not as in the release")
    add("--list", type=Path, metavar="FILE", help="convert only the images that FILE names")
    add("--drop-blank", action="store_true", help="leave out images of one colour")
    add("--with-labels", action="store_true", help=f"also write {LABELLED}: for oracles")
    add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help=LARGEST.format(MAX_PIXELS))
    add("--overwrite", action="store_true", help="replace shards made from other files")
    add("--verify-golden", action="store_true", help="an error unless it is the whole release")
    add("--view", metavar="WxH", help="also write the images at a size to train at")
    add("--codec", help="of a view: png, webp or jpeg95 (default)")
    add("--verify", type=Path, metavar="DIR", help="hash the files of a converted split again")
    return parser.parse_args(argv)


def find_dataset(given: str) -> Dataset:
    """A known dataset, or the one that the user's file describes."""
    from spcl.data.datasets import DATASETS
    from spcl.data.datasets.custom import read_description
    from spcl.settings import choose

    if Path(given).suffix in DESCRIPTIONS:
        return read_description(Path(given))
    if given == "custom":
        raise UserError(
            "your own files are described by a YAML file: --dataset my-data.yaml; the README's "
            "section 'Your data' shows one"
        )
    return DATASETS[choose(given, DATASETS, "dataset")]


def chosen_splits(arguments: argparse.Namespace, dataset: Dataset) -> list[str]:
    """The splits to convert.  What a file system shows is enough; no file is opened."""
    from spcl.data.layouts import splits_there
    from spcl.settings import choose

    if arguments.split:
        splits = [choose(arguments.split, dataset.splits, f"split of {dataset.name}")]
    else:
        splits = splits_there(dataset, arguments.root)
        if not splits:  # let the conversion say what it misses
            splits = [name for name, one in dataset.splits.items() if not one.on_request][:1]
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
    if arguments.view and not arguments.root:
        del given["--root"]
    if cluster.inside_job():
        wrong = [name for name, path in given.items() if path is None or not path.is_absolute()]
        if wrong:
            raise UserError(
                f"inside a Ray job {' and '.join(wrong)} must be absolute and exist on every node "
                f"(the working folder is a copy that is thrown away); use: python "
                f"ray_jobs/ingest.py --dataset {arguments.dataset} --root /shared/raw "
                f"--out /shared/data"
            )
    if arguments.root:
        arguments.root = arguments.root.expanduser().resolve()
    arguments.out = Path(out or REPOSITORY / "data").expanduser().resolve()


def describe(report: dict[str, Any]) -> str:
    """What one conversion did, in a few lines."""
    from spcl.data.problems import NOTE

    lines = [
        f"{report['name']}: {report['converted']} samples in {report['shards']} shards, "
        f"{report['bytes'] / 1e9:.2f} GB, {report['out']}"
    ]
    if report["status"] == "unchanged":
        lines[0] += " (there already, made from the same; nothing done)"
    for check, found in report.get("checks", {}).items():
        effect = "" if found["severity"] == NOTE else ", left out"
        known = f"; {found['known']}" if "known" in found else ""
        count = f"{found['count']}{effect} " if found["count"] else ""
        lines.append(f"  {check}: {count}({found['messages'][0]}{known})")
    differing = report.get("differs_from_release", {})
    if "images" in differing:
        expected, there = differing["images"]
        lines.append(f"  {there} images are here, the whole release has {expected}")
    elif differing:
        lines.append(f"  differs from the release in: {', '.join(differing)}")
    if report.get("shards_from_before"):
        lines.append(f"  {report['shards_from_before']} shards were there from an earlier try")
    return "\n".join(lines)


def run(argv: Sequence[str] | None) -> int:
    arguments = parse(argv)
    from spcl.data.manifest import MANIFEST
    from spcl.data.verify import verify
    from spcl.data.views import parse_view
    from spcl.store.records import CHECKSUM

    if arguments.verify:
        manifest = verify(arguments.verify)
        files = len(manifest["shards"]) + 1
        print(f"{arguments.verify}: {files} files are as they were written")
        if CHECKSUM not in manifest:
            print(
                f"note: {MANIFEST} is older than checksums and has none; what it says agrees with "
                "the shards, but what was converted (inputs) is not checked; a conversion with "
                "--overwrite writes one"
            )
        return 0
    if not arguments.dataset or not (arguments.root or arguments.view):
        raise UserError("--dataset and --root are needed, or --verify; see --help")
    dataset = find_dataset(arguments.dataset)
    if arguments.workers is not None and arguments.workers < 0:
        raise UserError(f"--workers must be 0 or more, got {arguments.workers}")
    if arguments.max_pixels < 1:
        raise UserError(f"--max-pixels must be at least 1, got {arguments.max_pixels}")
    if arguments.codec and not arguments.view:
        raise UserError("--codec says how a view is stored; give its size, too: --view 1280x720")
    size = parse_view(arguments.view) if arguments.view else None
    resolve_paths(arguments)

    def map_tasks(function: Callable[[T], R], tasks: list[T]) -> Iterable[R]:
        if arguments.workers == 0 or not tasks:
            return map(function, tasks)
        cluster.connect(arguments.address)
        return cluster.ray_map(function, tasks, arguments.workers)

    if arguments.root:
        convert_splits(arguments, dataset, map_tasks)
    if size:
        make_views(arguments, dataset, size, map_tasks)
    return 0


def convert_splits(arguments: argparse.Namespace, dataset: Dataset, map_tasks: Callable) -> None:
    from spcl.data.convert import convert
    from spcl.data.request import Options

    name = arguments.name or dataset.name
    for split in chosen_splits(arguments, dataset):
        report = convert(
            dataset,
            arguments.root,
            arguments.out / name / split,
            split=split,
            map_tasks=map_tasks,
            progress=Progress(f"{name}/{split}"),
            options=Options(
                name=arguments.name,
                on_mismatch=arguments.on_mismatch,
                drop_blank=arguments.drop_blank,
                label_encoding=arguments.label_encoding,
                only=arguments.list,
                golden=arguments.verify_golden,
                overwrite=arguments.overwrite,
                max_pixels=arguments.max_pixels,
                licence=arguments.licence,
            ),
        )
        print(describe(report), flush=True)


def make_views(
    arguments: argparse.Namespace, dataset: Dataset, size: tuple[int, int], map_tasks: Callable
) -> None:
    """Views of the converted splits to train on; scores are of original images only."""
    from spcl.data.views import make_view

    parent = arguments.out / (arguments.name or dataset.name)
    codec = arguments.codec or "jpeg95"
    name = f"{arguments.name or dataset.name}-{arguments.view}-{codec}"
    splits = [arguments.split] if arguments.split else list(dataset.splits)
    there = [
        split
        for split in splits
        if dataset.splits[split].role != "eval" and (parent / split / "manifest.json").is_file()
    ]
    if not there:
        raise UserError(
            f"no converted split to train on in {parent}; convert it first, with --root"
        )
    for split in there:
        report = make_view(
            parent / split,
            arguments.out / name / split,
            name=name,
            size=size,
            codec=codec,
            map_tasks=map_tasks,
            progress=Progress(f"{name}/{split}"),
            overwrite=arguments.overwrite,
        )
        print(describe(report), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    return guarded(run, argv, OSError)  # a full disk, a folder without permission


if __name__ == "__main__":
    cli.treat_sigterm_as_ctrl_c()  # so that a stopped job cleans up, too
    sys.exit(main())
