"""Views: a converted split with its images resized to a method's working size.

A second, derived shard set, made so that training decodes fewer bytes and resizes nothing.  Images
are resized by Pillow's BICUBIC and labels by its NEAREST, as `spcl.data.transforms` does at the
same size (bicubic to +-1, to +-2 in one value of a million); with a random scale the view is
resized a second time.  For training only: a JPEG view changes pixels, and scores are of original
images and labels.
"""

import datetime
import hashlib
import io
import re
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from spcl.data import output, shards
from spcl.data.columns import label_columns
from spcl.data.manifest import INDEX, MANIFEST, read_manifest, write_manifest
from spcl.data.shards import ShardSet
from spcl.errors import DataError
from spcl.store import atomic

VIEW_VERSION = 1  # raise when the same parent gives other bytes
MAX_SIDE = 16383  # pixels; the limit of WebP
_PLACE = ("shard", "batch", "row")  # index columns that belong to the parent's files


@dataclass(frozen=True)
class Codec:
    """How the images of a view are encoded."""

    format: str  # "jpeg", "png" or "webp": Pillow's name in lower case
    options: tuple[tuple[str, Any], ...] = ()  # of Pillow's save

    def encode(self, picture: Image.Image) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, self.format, **dict(self.options))
        return buffer.getvalue()


@dataclass(frozen=True)
class ViewTask:
    """One shard of the parent to resize."""

    parent: str
    folder: str
    shard: int
    metadata: dict[str, Any]
    size: tuple[int, int]
    codec: Codec


@dataclass(frozen=True)
class Written:
    """One shard of the view: its manifest entry and index rows."""

    shard: int
    entry: dict[str, Any]
    rows: list[dict[str, Any]]


def parse_view(text: str) -> tuple[int, int]:
    """ "1280x720" -> (width, height) = (1280, 720)."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise DataError(
            f"the size of a view is WIDTHxHEIGHT in pixels, each 1..{MAX_SIDE}, as 1280x720; "
            f"got {text!r}"
        )
    return size


def parse_codec(text: str) -> Codec:
    """ "jpeg95" (quality 1..100, colour at full resolution), "png" or "webp" (both lossless)."""
    if text == "png":
        return Codec("png")
    if text == "webp":
        return Codec("webp", (("lossless", True),))
    found = re.fullmatch(r"jpeg([1-9]\d?|100)", text)
    if not found:
        raise DataError(
            f"the codec of a view is jpeg<quality> (1..100, as jpeg95), png or webp; got {text!r}"
        )
    return Codec("jpeg", (("quality", int(found[1])), ("subsampling", 0)))  # 0: 4:4:4


def make_view(
    parent: Path,
    out: Path,
    *,
    name: str,
    size: tuple[int, int],
    codec: str,
    map_tasks: Callable[[Callable[[ViewTask], Written], list[ViewTask]], Iterable[Written]] = map,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a view of the converted split in `parent` into the folder `out`; returns the report.

    name       the view's data set name, as gta5-1280x720-jpeg95
    size       (width, height) of every image and label of the view
    codec      see `parse_codec`
    map_tasks  like `map`, in any order: where the shards are written, one task each
    progress   called with the number of samples done and of all
    overwrite  replace what an earlier view or conversion wrote to `out`

    A sample keeps its sample_id, paths, flags and the hash of its label file as found; class pixels
    and the hashes of pixels are of the resized label.  `source_image_sha256` is of the view's own
    encoded image: the fingerprint of a data set is made of it, and the view's pixels are other data
    than the parent's, also where there is no label to differ.  The metadata's `view` says how and
    from what it was made.

    Does nothing when `out` already holds this view of this parent.  DataError, and nothing written,
    when the parent is itself a view or damaged.
    """
    started = datetime.datetime.now(datetime.UTC)
    parent, out = Path(parent).absolute(), Path(out).absolute()
    encoder = parse_codec(codec)
    data = ShardSet(parent)
    _check_parent(data, out)
    width, height = parse_view("{}x{}".format(*size))
    parent_sha256 = atomic.sha256(parent / MANIFEST)
    made_as = {"size": f"{width}x{height}", "codec": codec, "parent": data.name}
    metadata = {
        **data.metadata,
        "name": f"{name}/{data.metadata['split']}",
        "dataset": name,
        "label_size": "the image's",
        "view": {
            **made_as,
            "kernel": "bicubic",
            "label_kernel": "nearest",
            "library": f"Pillow {PIL.__version__}",
            "parent_fingerprint": data.fingerprint,
            "parent_manifest_sha256": parent_sha256,
        },
    }
    inputs = {"view_version": VIEW_VERSION, "name": metadata["name"], **made_as}
    inputs["parent_manifest_sha256"] = parent_sha256
    report = {
        "schema": output.REPORT_SCHEMA,
        "name": metadata["name"],
        "parent": str(parent),
        "out": str(out),
        "host": socket.gethostname(),
        "started": started.isoformat(timespec="seconds"),
        "samples": len(data),
    }
    with atomic.writing(out), output.only_writer(out):
        if not overwrite and output.is_done(out, inputs):
            return {**report, "status": "unchanged", **output.summary(read_manifest(out))}
        if overwrite:
            output.check_replaceable(out)
        with output.replacing(out) as folder:
            tasks = [
                ViewTask(str(parent), str(folder), number, metadata, (width, height), encoder)
                for number in range(len(read_manifest(parent)["shards"]))
            ]
            done = _run(tasks, map_tasks, progress, len(data))
            pairs = [(one.entry, one.rows) for one in done]
            manifest = write_manifest(folder, metadata, inputs, pairs)
            report |= {"status": "done", **output.summary(manifest), **output.clock(started)}
            atomic.write_json(folder / output.REPORT, report)
    return report


def _check_parent(data: ShardSet, out: Path) -> None:
    if data.metadata["view"] is not None:
        raise DataError(
            f"{data.name} in {data.folder} is a view already; make a view of what it was made "
            f"from, {data.metadata['view']['parent']}"
        )
    if out.resolve() == data.folder.resolve():
        raise DataError(f"a view needs a folder of its own, got that of its parent, {out}")


def _run(
    tasks: list[ViewTask],
    map_tasks: Callable,
    progress: Callable[[int, int], None] | None,
    total: int,
) -> list[Written]:
    """What the tasks return, in their order."""
    finished: list[Written] = []
    results = iter(map_tasks(write_view_task, tasks))
    try:
        for done in results:
            finished.append(done)
            if progress:
                progress(sum(len(one.rows) for one in finished), total)
    finally:
        if hasattr(results, "close"):
            results.close()  # remote tasks stop before their folder goes
    return sorted(finished, key=lambda done: done.shard)


def write_view_task(task: ViewTask) -> Written:
    """Resize the samples of one shard, a record batch at a time.  Safe to run again."""
    data = ShardSet(Path(task.parent))  # checks the index before it is read here again
    index = pq.ParquetFile(data.folder / INDEX).read()
    here = pc.equal(index["shard"], task.shard)
    first = pc.index(index["shard"], task.shard).as_py()
    known = index.filter(here).drop_columns(_PLACE).to_pylist()

    def rows() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(known, first):
            yield view_row(task, data, number, row)

    path = Path(task.folder, f"shard-{task.shard:05d}.arrow")
    entry, written = shards.write_shard(path, task.metadata, rows())
    return Written(task.shard, entry, written)


def view_row(task: ViewTask, data: ShardSet, index: int, row: dict[str, Any]) -> dict[str, Any]:
    """The row of the view for sample `index` of the parent, whose row of the index is `row`."""
    width, height = task.size
    image = _resized(data.image(index), task)
    row = {
        **row,
        "dataset": task.metadata["dataset"],
        "image": image,
        "image_format": task.codec.format,
        "height": height,
        "width": width,
        "source_image_sha256": hashlib.sha256(image).digest(),
        "image_crc32": zlib.crc32(image),
    }
    if row["prev_sample_id"] is not None:
        previous = _resized(data.previous(index), task)
        row |= {"prev_image": previous, "prev_image_crc32": zlib.crc32(previous)}
    if not data.labelled:
        return row
    with Image.open(io.BytesIO(data.label(index))) as picture:
        label = picture.resize(task.size, Image.Resampling.NEAREST)
    return row | label_columns(np.asarray(label), len(data.class_names))


def _resized(image: bytes, task: ViewTask) -> bytes:
    with Image.open(io.BytesIO(image)) as picture:
        return task.codec.encode(picture.convert("RGB").resize(task.size, Image.Resampling.BICUBIC))
