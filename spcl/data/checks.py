"""One sample of a raw dataset, checked and turned into a row of a shard.

Decodes with Pillow only: a damaged file can kill faster decoders.  Every check says what must hold,
what was found and what to do, and goes on to the next, so that one pass finds all problems.
"""

import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageStat

from spcl.data import labels
from spcl.data.datasets import DATASETS, LabelFiles
from spcl.data.labels import IGNORE_INDEX, NUM_CLASSES
from spcl.data.listing import ERROR, NOTE, SKIP, Problem, Sample

BLANK_STD = 1.0  # an image whose every channel varies less is a constant one

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_OVERHEAD = 12  # bytes of a chunk besides its data: length, name, CRC

RGB8 = (8, 2)  # PNG bit depth and colour type

# How label ids are packed: encoding -> (PNG bit depth, PNG colour type, words for a message).
ENCODINGS = {
    "png8:P": (8, 3, "8-bit palette PNG"),
    "png8:L": (8, 0, "8-bit grey PNG"),
}
_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}


@dataclass(frozen=True)
class Job:
    """What all tasks of one conversion share."""

    dataset: str
    kind: int | None  # which of the dataset's kinds of label files; None writes no labels
    root: str
    prefix: str
    metadata: dict[str, Any]
    on_mismatch: str
    drop_blank: bool


def png_problem(data: bytes) -> str | None:
    """Why these bytes are no whole PNG file (chunk checksums, end marker), or None."""
    if not data:
        return "is empty"
    if not data.startswith(PNG_SIGNATURE):
        return "is not a PNG file"
    position, view = len(PNG_SIGNATURE), memoryview(data)
    while position + PNG_OVERHEAD <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + PNG_OVERHEAD + length
        if end > len(data):
            break
        (expected,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[position + 4 : end - 4]) != expected:
            return f"has a damaged chunk at byte {position} (checksum of {kind!r} is wrong)"
        if kind == b"IEND":
            return None
        position = end
    return f"is truncated: it ends after {len(data)} bytes, before the PNG end marker"


# What Pillow raises for damaged files.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


class _File(NamedTuple):
    path: str
    data: bytes
    picture: Image.Image


def _open(root: str, path: str, problems: list[Problem]) -> _File | None:
    """Read and fully decode one file; None and a problem if it is damaged."""
    try:
        data = Path(root, path).read_bytes()
        wrong = None
        if data.startswith(PNG_SIGNATURE) or path.endswith(".png"):
            wrong = png_problem(data)
        if wrong is None:
            ImageFile.LOAD_TRUNCATED_IMAGES = False  # else missing rows are silently black
            picture = Image.open(io.BytesIO(data))
            picture.load()
            return _File(path, data, picture)
    except _UNREADABLE as error:
        wrong = f"cannot be decoded ({error})"
    problems.append(
        Problem("damaged_file", ERROR, (path,), f"{path} {wrong}; extract this file again")
    )
    return None


def _png_form(data: bytes) -> tuple[int, int]:
    """(bit depth, colour type) from a PNG's header."""
    return data[24], data[25]


def _form_words(file: _File) -> str:
    if file.picture.format != "PNG":
        return f"{file.picture.format} {file.picture.mode}"
    depth, colour = _png_form(file.data)
    return f"{depth}-bit {_COLOUR_TYPES.get(colour, colour)} PNG"


def _check_image(file: _File) -> list[Problem]:
    png = file.picture.format == "PNG"  # of 16 bits, Pillow would silently drop eight
    if file.picture.mode == "RGB" and (not png or _png_form(file.data) == RGB8):
        return []
    message = (
        f"{file.path} is {_form_words(file)}, expected 8-bit RGB; extract the original file again"
    )
    return [Problem("image_encoding", ERROR, (file.path,), message)]


def _map_label(file: _File, kind: LabelFiles) -> tuple[np.ndarray | None, list[Problem]]:
    """(H, W) uint8 trainIds, or what forbids to read them."""
    depth, colour, words = ENCODINGS[kind.encoding]
    if file.picture.format != "PNG" or _png_form(file.data) != (depth, colour):
        message = (
            f"{file.path} is {_form_words(file)}, expected {words} of {kind.space}; did another "
            f"tool save it again? extract the original labels"
        )
        return None, [Problem("label_encoding", ERROR, (file.path,), message)]
    raw = np.asarray(file.picture)  # of a palette file: the indices
    present = np.flatnonzero(np.bincount(raw.ravel(), minlength=256)).tolist()
    unknown = [value for value in present if value not in kind.ids]
    if not unknown:
        return labels.lookup_table(kind.ids)[raw], []
    if _is_other_space(present, kind.space):
        message = f"{file.path} does not hold {kind.space}"
        return None, [Problem("label_space", ERROR, (file.path,), message)]
    message = (
        f"{file.path}: value {', '.join(map(str, unknown))} is not in the table of {kind.space} "
        f"({min(kind.ids)}..{max(kind.ids)}); map it in spcl/data/datasets or drop the file"
    )
    return None, [Problem("unknown_id", ERROR, (file.path,), message)]


def _is_other_space(present: list[int], space: str) -> bool:
    """Whether these values are trainIds where labelIds are expected, or the reverse."""
    if space == "labelIds":
        train_ids = {*range(NUM_CLASSES), IGNORE_INDEX}
        return IGNORE_INDEX in present and train_ids.issuperset(present)
    return labels.GTA5_IDS.keys() >= set(present)


def _check_sizes(image: _File, label: _File, on_mismatch: str) -> list[Problem]:
    if image.picture.size == label.picture.size:
        return []
    sizes = "image {}x{}, label {}x{}".format(*image.picture.size, *label.picture.size)
    stop = on_mismatch == "error"
    advice = "leave such pairs out with --on-mismatch skip" if stop else "left out"
    message = f"{image.path}: {sizes}, expected equal sizes; {advice}"
    return [Problem("size_mismatch", ERROR if stop else SKIP, (image.path,), message)]


def _image_columns(job: Job, sample: Sample, file: _File) -> dict[str, Any]:
    return {
        "sample_id": f"{job.prefix}/{sample.key}",
        "dataset": job.metadata["dataset"],
        "split": job.metadata["split"],
        "domain_role": job.metadata["domain_role"],
        "image": file.data,
        "image_format": file.picture.format.lower(),
        "height": file.picture.height,
        "width": file.picture.width,
        "sequence_id": sample.sequence,
        "frame_index": sample.frame,
        "flags": [],
        "source_image_path": file.path,
        "source_image_sha256": hashlib.sha256(file.data).digest(),
        "image_crc32": zlib.crc32(file.data),
    }


def _label_columns(file: _File, train_ids: np.ndarray, num_classes: int) -> dict[str, Any]:
    counts = np.bincount(train_ids.ravel(), minlength=256)
    buffer = io.BytesIO()
    Image.fromarray(train_ids).save(buffer, "PNG")
    encoded = buffer.getvalue()
    return {
        "label": encoded,
        "label_height": train_ids.shape[0],
        "label_width": train_ids.shape[1],
        "class_pixels": counts[:num_classes].tolist(),
        "ignore_pixels": int(counts[IGNORE_INDEX]),
        "source_label_path": file.path,
        "source_label_sha256": hashlib.sha256(file.data).digest(),
        "label_sha256": hashlib.sha256(train_ids.tobytes()).digest(),
        "label_crc32": zlib.crc32(encoded),
    }


def _flag(row: dict[str, Any], image: _File, drop_blank: bool) -> list[Problem]:
    """Mark what can be read and teaches nothing."""
    found = []
    if max(ImageStat.Stat(image.picture).stddev) < BLANK_STD:
        row["flags"].append("blank")
        what = "left out" if drop_blank else "kept (leave it out with --drop-blank)"
        message = f"{image.path} is a constant image; {what}"
        found.append(Problem("blank_image", SKIP if drop_blank else NOTE, (image.path,), message))
    if "label" in row and np.count_nonzero(row["class_pixels"]) <= 1:
        row["flags"].append("single_class")
        path = row["source_label_path"]
        message = f"{path} holds fewer than two classes; kept"
        found.append(Problem("single_class", NOTE, (path,), message))
    return found


def read_sample(job: Job, sample: Sample) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Check one sample; its row, or None where a problem forbids it or leaves it out."""
    problems: list[Problem] = []
    image = _open(job.root, sample.image, problems)
    if image:
        problems += _check_image(image)
    label, train_ids = None, None
    if job.kind is not None:
        label = _open(job.root, sample.label, problems)
        if label:
            train_ids, wrong = _map_label(label, DATASETS[job.dataset].labels[job.kind])
            problems += wrong
        if image and label:
            problems += _check_sizes(image, label, job.on_mismatch)
    if problems:
        return None, problems
    row = _image_columns(job, sample, image)
    if label:
        row |= _label_columns(label, train_ids, len(job.metadata["class_names"]))
    problems = _flag(row, image, job.drop_blank)
    return (None if any(p.severity == SKIP for p in problems) else row), problems


def judge_label_space(
    job: Job, read: int, rows: list[dict[str, Any]], problems: list[Problem]
) -> list[Problem]:
    """The problems, with what single labels told about labelIds and trainIds put together.

    read  number of samples looked at
    rows  those that passed
    """
    if job.kind is None:
        return problems
    kind = DATASETS[job.dataset].labels[job.kind]
    told = [problem for problem in problems if problem.check == "label_space"]
    files = [file for problem in told for file in problem.files]
    if files:
        found = "trainIds" if kind.space == "labelIds" else "labelIds"
        share = f"all {read}" if len(files) == read else f"{len(files)} of {read}"
        what = f"{share} labels hold {found} (first {files[0]}), expected {kind.space}"
    else:
        # trainIds without a single 255 pass as labelIds: nothing but road, walls and poles.
        files = [row["source_label_path"] for row in rows]
        high = {to for raw, to in kind.ids.items() if raw >= NUM_CLASSES and to != IGNORE_INDEX}
        if not high or not rows or any(row["class_pixels"][to] for row in rows for to in high):
            return problems
        what = (
            f"none of {len(rows)} labels has an id above {NUM_CLASSES - 1} (sky, people, cars), so "
            f"they look like trainIds; expected {kind.space}"
        )
    message = f"{what}; point --root at labels of one kind"
    others = [problem for problem in problems if problem.check != "label_space"]
    return [Problem("label_space", ERROR, tuple(files), message), *others]
