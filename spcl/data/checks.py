"""One sample of a raw dataset, checked and turned into a row of a shard.

Every check says what must hold, what was found and what to do, and goes on to the next, so that one
pass finds all problems.  Not here: checks on names (`listing`) and on the whole set (`judgement`).
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageStat

from spcl.data import labels
from spcl.data.columns import label_columns
from spcl.data.datasets import Dataset, LabelFiles, Split
from spcl.data.encodings import COLOR, ENCODINGS, from_colors
from spcl.data.labels import IGNORE_INDEX, NUM_CLASSES
from spcl.data.listing import Sample
from spcl.data.pictures import (
    BESIDES_PIXELS,
    MAX_PIXELS,
    Picture,
    as_rgb8,
    other_than_a_file,
    read_picture,
)
from spcl.data.problems import ERROR, NOTE, SKIP, Problem
from spcl.errors import DataError

BLANK_STD = 1.0  # an image whose every channel varies less is a constant one
PROPORTION = 0.01  # by which width / height of an image and its label may differ, relatively
SHOWN_IDS = 5  # unknown ids that a message names


@dataclass(frozen=True)
class Job:
    """What all tasks of one conversion share.

    labels      the kind that is used; None writes none
    max_pixels  a file of more is refused
    """

    dataset: Dataset
    split: Split
    labels: LabelFiles | None
    root: str
    prefix: str
    metadata: dict[str, Any]
    on_mismatch: str
    drop_blank: bool
    max_pixels: int = MAX_PIXELS

    @property
    def num_classes(self) -> int:
        return len(self.metadata["class_names"])


class Read(NamedTuple):
    """One sample: its row, None where a problem forbids it or leaves it out.

    raw_ids  what the label file holds, () where it cannot be read
    classes  the trainIds among them, also of a sample that is left out
    """

    row: dict[str, Any] | None
    problems: list[Problem]
    raw_ids: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()


def _open(job: Job, path: str, problems: list[Problem]) -> Picture | None:
    try:
        return read_picture(job.root, path, job.max_pixels)
    except DataError as error:
        problems.append(Problem("damaged_file", ERROR, (path,), str(error)))
        return None


def _image_bytes(
    job: Job, picture: Picture, problems: list[Problem]
) -> tuple[bytes, str | None] | None:
    """What the shard will hold for an image, and the flag of one that was written anew."""
    if picture.is_rgb8 and not job.dataset.any_image:
        return picture.data, None
    if job.dataset.any_image:
        try:
            data, new = as_rgb8(picture)
            return data, "converted_from_16_bits" if new else None
        except ValueError as error:
            message = f"{picture.path} {error}"
    else:
        message = (
            f"{picture.path} is {picture.words}, expected 8-bit RGB; extract the original file "
            f"again"
        )
    problems.append(Problem("image_encoding", ERROR, (picture.path,), message))
    return None


def _encoding_message(job: Job, kind: LabelFiles, picture: Picture) -> str:
    """A label file is of another form than its dataset's: likely why, and what to do."""
    expected = " or ".join(ENCODINGS[name].words for name in kind.encodings)
    depth, colour = picture.form
    found = f"{picture.path} is {picture.words}, expected {expected}"
    if 0 < depth < 8 and colour == 0:
        return (
            f"{found}: readers stretch its values to 0..255; divide what Pillow reads by "
            f"{255 // (2**depth - 1)} and save it as 8-bit grey PNG"
        )
    fitting = _fitting_encoding(job, kind, picture)
    if fitting:
        option = f"--label-encoding {fitting}"
        if job.dataset.described_in:
            option = f"labels.encoding: {fitting} in {job.dataset.described_in}"
        merged = " (license plates will merge with car)" if fitting == COLOR else ""
        return f"{found}; extract the original labels, or read these with {option}{merged}"
    if "png16:RGB" in kind.encodings and depth == 8:
        return (
            f"{job.dataset.name} label {picture.path} decoded to a single class (0). {expected} "
            f"expected; got {picture.words}. Did another tool re-save the labels? Is this another "
            f"set of the same name?"
        )
    return f"{found} of {kind.space}; did another tool save it again? extract the original labels"


def _fitting_encoding(job: Job, kind: LabelFiles, picture: Picture) -> str | None:
    """The encoding by which this file holds two ids or more of the table, and no other."""
    palette = job.dataset.palette
    if palette is not None and picture.form in ENCODINGS[COLOR].forms:
        if not from_colors(ENCODINGS[COLOR].read(picture), palette)[1]:
            return COLOR
    if COLOR in kind.encodings:
        return None  # its ids only number the colours
    for name, encoding in ENCODINGS.items():
        if name != COLOR and picture.form in encoding.forms:
            present = np.unique(encoding.read(picture)).tolist()
            if len(present) > 1 and kind.ids.keys() >= set(present):
                return name
    return None


def _raw_ids(
    job: Job, kind: LabelFiles, picture: Picture, problems: list[Problem]
) -> np.ndarray | None:
    """(H, W) ids as they are stored, or None and a problem."""

    def refuse(check: str, message: str) -> None:
        problems.append(Problem(check, ERROR, (picture.path,), message))

    name = next((n for n in kind.encodings if picture.form in ENCODINGS[n].forms), None)
    if name is None:
        refuse("label_encoding", _encoding_message(job, kind, picture))
        return None
    pixels = ENCODINGS[name].read(picture)
    if name == COLOR:
        assert job.dataset.palette is not None, "a dataset that names colours has a palette"
        pixels, strange = from_colors(pixels, job.dataset.palette)
        if strange:
            shown = "; ".join(strange[:SHOWN_IDS])
            refuse(
                "unknown_id",
                f"{picture.path}: {len(strange)} colours are not in the table of "
                f"{job.dataset.name} ({shown}); were the labels resized or compressed?",
            )
            return None
    elif name == "png8:P" and job.dataset.palette is not None:
        moved = _reordered(picture, pixels, job.dataset.palette)
        if moved:
            refuse(
                "label_encoding",
                f"{picture.path}: the palette is in another order ({moved}), so its indices are no "
                f"longer ids; did another tool save it again? extract the original labels",
            )
            return None
    return pixels


def _reordered(picture: Picture, pixels: np.ndarray, palette: np.ndarray) -> str | None:
    """Whether a pixel's colour is that of another id.  A colour that no id has says nothing."""
    stored = np.array(picture.image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    known = [tuple(color) for color in palette.tolist()]
    for index in np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist():
        color = tuple(stored[index].tolist()) if index < len(stored) else None
        mine = known[index] if index < len(known) else None
        if color != mine and color in known and any(color):
            return f"index {index} has the colour of id {known.index(color)}"
    return None


def _map_ids(
    job: Job, kind: LabelFiles, path: str, raw: np.ndarray
) -> tuple[np.ndarray | None, list[int], Problem | None]:
    """(H, W) uint8 trainIds, the raw ids there are, or what forbids to map them."""
    present = np.flatnonzero(np.bincount(raw.ravel())).tolist()
    unknown = [value for value in present if value not in kind.ids]
    if not unknown:
        return labels.lookup_table(kind.ids, max(256, max(present) + 1))[raw], present, None
    if _is_other_space(present, kind.space):
        problem = Problem("label_space", ERROR, (path,), f"{path} does not hold {kind.space}")
        return None, present, problem
    if "png16:RGB" in kind.encodings and max(unknown) > max(kind.ids):
        message = (
            f"{path}: values up to {max(unknown)} found in the class plane: this is the instance "
            f"channel. {job.dataset.name} stores the class in R, the instance in G"
        )
        return None, present, Problem("wrong_channel", ERROR, (path,), message)
    shown = ", ".join(map(str, unknown[:SHOWN_IDS]))
    where = job.dataset.described_in or "a YAML file of your own (--dataset FILE.yaml)"
    message = (
        f"{path}: value {shown} is not in the table of {kind.space} "
        f"({min(kind.ids)}..{max(kind.ids)}); map it to a class or to ignore under labels.ids of "
        f"{where}, or drop the file"
    )
    return None, present, Problem("unknown_id", ERROR, (path,), message)


def _is_other_space(present: list[int], space: str) -> bool:
    """Whether these values are trainIds where labelIds are expected, or the reverse."""
    if space == "labelIds":
        train_ids = {*range(NUM_CLASSES), IGNORE_INDEX}
        return IGNORE_INDEX in present and train_ids.issuperset(present)
    return space == "trainIds" and labels.GTA5_IDS.keys() >= set(present)


def _check_sizes(
    job: Job, image: Image.Image, other: Image.Image, what: str, path: str
) -> list[Problem]:
    if image.size == other.size:
        return []
    (width, height), (other_width, other_height) = image.size, other.size
    expected = "equal sizes"
    if job.split.any_size:
        expected = "equal proportions"
        if abs(width * other_height / (height * other_width) - 1) < PROPORTION:
            return []
    sizes = f"image {width}x{height}, {what} {other_width}x{other_height}"
    stop = job.on_mismatch == "error"
    advice = "leave such pairs out with --on-mismatch skip" if stop else "left out"
    message = f"{path}: {sizes}, expected {expected}; {advice}"
    return [Problem("size_mismatch", ERROR if stop else SKIP, (path,), message)]


def _image_columns(
    job: Job, sample: Sample, picture: Picture, data: bytes, flag: str | None
) -> dict[str, Any]:
    return {
        "sample_id": f"{job.prefix}/{sample.key}",
        "dataset": job.metadata["dataset"],
        "split": job.metadata["split"],
        "domain_role": job.metadata["domain_role"],
        "image": data,
        "image_format": "png" if flag else str(picture.image.format).lower(),
        "height": picture.image.height,
        "width": picture.image.width,
        "sequence_id": sample.sequence,
        "frame_index": sample.frame,
        "flags": [flag] if flag else [],
        "source_image_path": sample.image,
        "source_image_sha256": hashlib.sha256(picture.data).digest(),
        "image_crc32": zlib.crc32(data),
    }


def _label_columns(file: Picture, train_ids: np.ndarray, num_classes: int) -> dict[str, Any]:
    return {
        "source_label_path": file.path,
        "source_label_sha256": hashlib.sha256(file.data).digest(),
        **label_columns(train_ids, num_classes),
    }


def _previous_columns(job: Job, sample: Sample, picture: Picture) -> dict[str, Any]:
    assert sample.frame is not None, "only a numbered frame has one before it"
    return {
        "prev_sample_id": f"{job.prefix}/{sample.previous_key}",
        "prev_image": picture.data,
        "prev_image_crc32": zlib.crc32(picture.data),
        "prev_frame_index": sample.frame - 1,
    }


def _extra(job: Job, path: str, problems: list[Problem]) -> str | None:
    """The JSON file of facts about a sample, without its white space; None where there is none."""
    file = Path(job.root, path)
    try:
        found = file.stat()
        special = other_than_a_file(found.st_mode)
        if special:
            raise ValueError(f"it is {special}")
        if found.st_size > BESIDES_PIXELS:
            raise ValueError(f"it has {found.st_size} bytes, at most {BESIDES_PIXELS} are read")
        text = file.read_text(encoding="utf-8")
        return json.dumps(json.loads(text), separators=(",", ":"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        message = f"{path} is not valid JSON ({error}); extract this file again"
        problems.append(Problem("damaged_file", ERROR, (path,), message))
        return None


def _flag(row: dict[str, Any], image: Image.Image, drop_blank: bool) -> list[Problem]:
    """Mark what can be read and teaches nothing."""
    found = []
    path = row["source_image_path"]
    if max(ImageStat.Stat(image).stddev) < BLANK_STD:
        row["flags"].append("blank")
        what = "left out" if drop_blank else "kept (leave it out with --drop-blank)"
        message = f"{path} is a constant image; {what}"
        found.append(Problem("blank_image", SKIP if drop_blank else NOTE, (path,), message))
    if "label" in row and np.count_nonzero(row["class_pixels"]) <= 1:
        row["flags"].append("single_class")
        path = row["source_label_path"]
        message = f"{path} holds fewer than two classes; kept"
        found.append(Problem("single_class", NOTE, (path,), message))
    return found


def read_sample(job: Job, sample: Sample) -> Read:
    """Check one sample, and make its row."""
    problems: list[Problem] = []
    image = _open(job, sample.image, problems)
    stored = _image_bytes(job, image, problems) if image else None
    row: dict[str, Any] = {}
    raw_ids: Sequence[int] = ()
    classes: tuple[int, ...] = ()
    if job.labels is not None:
        assert sample.label is not None, "each image of a labelled split has a label"
        label = _open(job, sample.label, problems)
        raw = _raw_ids(job, job.labels, label, problems) if label else None
        if label and raw is not None:
            train_ids, raw_ids, wrong = _map_ids(job, job.labels, label.path, raw)
            problems += [wrong] if wrong else []
            if train_ids is not None:
                row |= _label_columns(label, train_ids, job.num_classes)
                classes = tuple(np.flatnonzero(row["class_pixels"]).tolist())
        if image and label:
            problems += _check_sizes(job, image.image, label.image, "label", image.path)
    if sample.previous:
        previous = _open(job, sample.previous, problems)
        if previous and image:
            _image_bytes(job, previous, problems)
            problems += _check_sizes(job, image.image, previous.image, "previous", image.path)
            row |= _previous_columns(job, sample, previous)
    if job.dataset.extra:
        row["extra_json"] = _extra(job, job.dataset.extra.format(key=sample.key), problems)
    if image and stored and not problems:
        row |= _image_columns(job, sample, image, *stored)
        problems = _flag(row, image.image, job.drop_blank)
    kept = all(problem.severity == NOTE for problem in problems)
    return Read(row if kept else None, problems, tuple(raw_ids), classes)
