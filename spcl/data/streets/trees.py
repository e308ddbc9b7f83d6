"""Write `streets` as files: a GTA5 tree for the source, a Cityscapes tree for the target.

    <out>/gta5/{images,labels}/00001.png
    <out>/cityscapes/{leftImg8bit,gtFine}/{train,val}/<city>/<city>_000000_000019_*.png
    <out>/streets.json      the arguments, so that a second call knows what it finds

The benchmark thus takes the same road as real data; nothing later knows that it was rendered.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from spcl.data.labels import GTA5_PALETTE, TRAIN_TO_LABEL_ID
from spcl.data.streets.render import render
from spcl.errors import DataError
from spcl.store import atomic

RENDERER_VERSION = 2  # counts up when any pixel changes
RECORD = "streets.json"
TERMS = {"licence": "MIT, as this project, which rendered it", "redistribution": "allowed"}
SMALLEST, LARGEST = 16, 4096  # pixels each way
MOST_IMAGES = 99_999  # five digits name an image of the GTA5 tree
CITIES = {"train": ("ahornau", "birkenfels", "lindenbruck"), "val": ("eschental", "ulmenhof")}
FRAME = 19  # the annotated frame of most Cityscapes snippets
COMPRESSION = 1  # zlib; noise does not shrink, and more effort triples the time


@dataclass(frozen=True)
class _Job:
    """One scene and its two files, relative to the tree's root."""

    domain: str
    split: str
    index: int
    image: str
    label: str


def are_rendered(root: Path) -> bool:
    """Whether a tree of raw files is one of those that `write_trees` writes."""
    return (root.parent / RECORD).is_file()


def write_trees(
    out: Path,
    *,
    world: int = 0,
    source_images: int = 600,
    target_images: int = 600,
    val_images: int = 200,
    height: int = 64,
    width: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Render the benchmark into `out`, all of it or nothing; equal arguments give equal bytes.

    progress  called with (images done, images in all)

    An `out` with the same arguments is left alone.  DataError on arguments out of range and on an
    `out` that holds anything else.
    """
    record = {
        "schema": 1,
        "renderer_version": RENDERER_VERSION,
        "world": world,
        "source_images": source_images,
        "target_images": target_images,
        "val_images": val_images,
        "height": height,
        "width": width,
    }
    _check(record)
    out = Path(out)
    if out.exists():
        _check_existing(out, record)
        return
    jobs = list(_jobs(source_images, target_images, val_images))
    with atomic.folder(out) as temporary:
        for folder in {temporary / p for job in jobs for p in (job.image, job.label)}:
            atomic.mkdir(folder.parent)
        for done, job in enumerate(jobs, 1):
            image, train_ids = render(world, job.domain, job.split, job.index, height, width)
            _save(temporary, job, image, train_ids)
            if progress:
                progress(done, len(jobs))
        atomic.write_json(temporary / RECORD, record)
    _check_existing(out, record)  # another process may have won the race with other arguments


def _check(record: dict[str, int]) -> None:
    limits = {
        "world": (0, 2**31),
        "source_images": (1, MOST_IMAGES),
        "target_images": (1, MOST_IMAGES),
        "val_images": (1, MOST_IMAGES),
        "height": (SMALLEST, LARGEST),
        "width": (SMALLEST, LARGEST),
    }
    for name, (low, high) in limits.items():
        if not low <= record[name] <= high:
            raise DataError(f"{name} must be between {low} and {high}, got {record[name]}")


def _check_existing(out: Path, record: dict[str, int]) -> None:
    path = out / RECORD
    if not path.is_file():
        raise DataError(f"{out} exists and was not written by streets (no {RECORD}); use another")
    try:
        found = json.loads(path.read_text())
        differs = {n: found.get(n) for n, value in record.items() if found.get(n) != value}
    except (ValueError, AttributeError):
        raise DataError(f"{path} is damaged; remove {out} and run again") from None
    if differs:
        has = ", ".join(f"{name} {value}" for name, value in differs.items())
        wanted = ", ".join(f"{name} {record[name]}" for name in differs)
        raise DataError(f"{out} holds {has}, wanted {wanted}; remove it or use another folder")


def _jobs(source: int, target: int, val: int) -> Iterator[_Job]:
    for n in range(source):
        name = f"{n + 1:05d}.png"
        yield _Job("sim", "train", n, f"gta5/images/{name}", f"gta5/labels/{name}")
    for split, count in (("train", target), ("val", val)):
        cities = CITIES[split]
        for n in range(count):
            city = cities[n % len(cities)]
            name = f"{split}/{city}/{city}_{n // len(cities):06d}_{FRAME:06d}"
            yield _Job(
                "real",
                split,
                n,
                f"cityscapes/leftImg8bit/{name}_leftImg8bit.png",
                f"cityscapes/gtFine/{name}_gtFine_labelIds.png",
            )


def _save(root: Path, job: _Job, image: np.ndarray, train_ids: np.ndarray) -> None:
    with atomic.opened(root / job.image) as file:
        Image.fromarray(image).save(file, "PNG", compress_level=COMPRESSION)
    label = Image.fromarray(TRAIN_TO_LABEL_ID[train_ids])
    if job.domain == "sim":
        label = label.convert("L")
        label.putpalette(GTA5_PALETTE.tobytes())
    # Pillow would store few colours in fewer bits, which GTA5's own files do not.
    with atomic.opened(root / job.label) as file:
        label.save(file, "PNG", bits=8, compress_level=COMPRESSION)
