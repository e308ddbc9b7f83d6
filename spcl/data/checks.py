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
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageStat

from spcl.data import labels
from spcl.data.datasets import DATASETS, LabelFiles
from spcl.data.labels import IGNORE_INDEX, NUM_CLASSES
from spcl.data.listing import ERROR, NOTE, SKIP, Problem, Sample

BLANK_STD = 1.0  # an image whose every channel varies less is a constant one

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_OVERHEAD = 12  # bytes of a chunk besides its data: length, name, CRC

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


def _open(root: str, path: str, problems: list[Problem]) -> tuple[bytes, Image.Image] | None:
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
            return data, picture
    except _UNREADABLE as error:
        wrong = f"cannot be decoded ({error})"
    problems.append(
        Problem("damaged_file", ERROR, (path,), f"{path} {wrong}; extract this file again")
    )
    return None


def _png_form(data: bytes) -> tuple[int, int]:
    """(bit depth, colour type) from a PNG's header."""
    return data[24], data[25]


def _form_words(data: bytes, picture: Image.Image) -> str:
    if picture.format != "PNG":
        return f"{picture.format} {picture.mode}"
    depth, colour = _png_form(data)
    return f"{depth}-bit {_COLOUR_TYPES.get(colour, colour)} PNG"


def _image_encoding(path: str, data: bytes, picture: Image.Image) -> Problem | None:
    if picture.mode == "RGB" and (picture.format != "PNG" or _png_form(data) == (8, 2)):
        return None
    words = _form_words(data, picture)
    return Problem(
        "image_encoding",
        ERROR,
        (path,),
        f"{path} is {words}, expected 8-bit RGB; extract the original file again",
    )


def _map_label(
    path: str, data: bytes, picture: Image.Image, kind: LabelFiles
) -> tuple[np.ndarray | None, Problem | None]:
    """(H, W) uint8 trainIds, or what forbids to read them."""
    depth, colour, words = ENCODINGS[kind.encoding]
    if picture.format != "PNG" or _png_form(data) != (depth, colour):
        return None, Problem(
            "label_encoding",
            ERROR,
            (path,),
            f"{path} is {_form_words(data, picture)}, expected {words} of {kind.space}; "
            f"did another tool save it again? extract the original labels",
        )
    raw = np.asarray(picture)  # of a palette file: the indices
    present = np.flatnonzero(np.bincount(raw.ravel(), minlength=256)).tolist()
    unknown = [value for value in present if value not in kind.ids]
    if unknown:
        high = any(NUM_CLASSES <= value < IGNORE_INDEX for value in present)
        if kind.space == "labelIds" and IGNORE_INDEX in present and not high:
            return None, _wrong_space(path, "trainIds", kind.space)
        if kind.space == "trainIds" and all(v in labels.GTA5_IDS for v in present):
            return None, _wrong_space(path, "labelIds", kind.space)
        return None, Problem(
            "unknown_id",
            ERROR,
            (path,),
            f"{path}: value {', '.join(map(str, unknown))} is not in the table of {kind.space} "
            f"({min(kind.ids)}..{max(kind.ids)}); map it in spcl/data/datasets or drop the file",
        )
    return labels.lookup_table(kind.ids)[raw], None


def _wrong_space(path: str, found: str, expected: str) -> Problem:
    return Problem(
        "label_space",
        ERROR,
        (path,),
        f"{path} holds {found}, expected {expected}; point --root at files of one kind",
    )


def _grey_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _label_columns(sample: Sample, data: bytes, train_ids: np.ndarray) -> dict[str, Any]:
    counts = np.bincount(train_ids.ravel(), minlength=256)
    encoded = _grey_png(train_ids)
    return {
        "label": encoded,
        "label_height": train_ids.shape[0],
        "label_width": train_ids.shape[1],
        "class_pixels": counts[:NUM_CLASSES].tolist(),
        "ignore_pixels": int(counts[IGNORE_INDEX]),
        "source_label_path": sample.label,
        "source_label_sha256": hashlib.sha256(data).digest(),
        "label_sha256": hashlib.sha256(train_ids.tobytes()).digest(),
        "label_crc32": zlib.crc32(encoded),
    }


def read_sample(job: Job, sample: Sample) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Check one sample; its row, or None where a problem forbids it or leaves it out."""
    problems: list[Problem] = []
    row: dict[str, Any] = {}
    flags: list[str] = []
    image = _open(job.root, sample.image, problems)
    if image is not None:
        data, picture = image
        row = {
            "sample_id": f"{job.prefix}/{sample.key}",
            "dataset": job.metadata["dataset"],
            "split": job.metadata["split"],
            "domain_role": job.metadata["domain_role"],
            "image": data,
            "image_format": picture.format.lower(),
            "height": picture.height,
            "width": picture.width,
            "sequence_id": sample.sequence,
            "frame_index": sample.frame,
            "flags": flags,
            "source_image_path": sample.image,
            "source_image_sha256": hashlib.sha256(data).digest(),
            "image_crc32": zlib.crc32(data),
        }
        wrong = _image_encoding(sample.image, data, picture)
        if wrong:
            problems.append(wrong)
        elif max(ImageStat.Stat(picture).stddev) < BLANK_STD:
            flags.append("blank")
            what = "left out" if job.drop_blank else "kept (leave it out with --drop-blank)"
            problems.append(
                Problem(
                    "blank_image",
                    SKIP if job.drop_blank else NOTE,
                    (sample.image,),
                    f"{sample.image} is a constant image; {what}",
                )
            )
    if job.kind is not None:
        label = _open(job.root, sample.label, problems)
        if label is not None:
            kind = DATASETS[job.dataset].labels[job.kind]
            train_ids, wrong = _map_label(sample.label, *label, kind)
            if wrong:
                problems.append(wrong)
            else:
                row.update(_label_columns(sample, label[0], train_ids))
                if np.count_nonzero(row["class_pixels"]) <= 1:
                    flags.append("single_class")
                    problems.append(
                        Problem(
                            "single_class",
                            NOTE,
                            (sample.label,),
                            f"{sample.label} holds fewer than two classes; kept",
                        )
                    )
        if image is not None and label is not None and image[1].size != label[1].size:
            sizes = "image {}x{}, label {}x{}".format(*image[1].size, *label[1].size)
            stop = job.on_mismatch == "error"
            problems.append(
                Problem(
                    "size_mismatch",
                    ERROR if stop else SKIP,
                    (sample.image,),
                    f"{sample.image}: {sizes}, expected equal sizes; "
                    + ("leave such pairs out with --on-mismatch skip" if stop else "left out"),
                )
            )
    if any(problem.severity != NOTE for problem in problems):
        return None, problems
    return row, problems


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
