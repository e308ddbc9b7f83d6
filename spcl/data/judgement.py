"""Checks on the whole set, from what was read of its labels: is this the dataset that was meant?"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spcl.data.checks import Job, Read
from spcl.data.datasets import LabelFiles, Release
from spcl.data.datasets.synthia import SPACE as SYNTHIA_SPACE
from spcl.data.labels import IGNORE_INDEX, NUM_CLASSES
from spcl.data.problems import ERROR, NOTE, Problem

# A sampler of rare classes wants more than 3000 pixels of a class in a frame of GTA5 (DAFormer).
RARE_PIXELS = 3000
RARE_FRAME = 1914 * 1052
ENOUGH = 32  # labels that together show every frequent class
_SEQS_ID = 12  # motorcycle in SYNTHIA-RAND-CITYSCAPES, lane marking in SYNTHIA-SEQS
_RAND_IDS = {17, 19, 21}  # rider, bus, wall: in SYNTHIA-RAND-CITYSCAPES only


@dataclass
class Census:
    """What a pass over labels has seen.

    labels        label files that were mapped
    with_class    how many of them show each trainId
    with_raw      how many show each raw id
    single_class  how many show at most one class
    """

    num_classes: int
    read: int = 0
    labels: int = 0
    single_class: int = 0
    with_class: list[int] = field(default_factory=list)
    with_raw: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.with_class = self.with_class or [0] * self.num_classes

    def add(self, read: Read) -> None:
        self.read += 1
        for raw in read.raw_ids:
            self.with_raw[raw] = self.with_raw.get(raw, 0) + 1
        for train_id in read.classes:
            self.with_class[train_id] += 1
        mapped = bool(read.raw_ids) and not any(p.severity == ERROR for p in read.problems)
        self.labels += mapped
        self.single_class += mapped and len(read.classes) <= 1

    def merge(self, other: "Census") -> None:
        self.read += other.read
        self.labels += other.labels
        self.single_class += other.single_class
        self.with_class = [a + b for a, b in zip(self.with_class, other.with_class, strict=True)]
        for raw, count in other.with_raw.items():
            self.with_raw[raw] = self.with_raw.get(raw, 0) + count


def judge(job: Job, census: Census, problems: list[Problem]) -> list[Problem]:
    """The problems of single samples, put together where they tell one thing about the set."""
    if job.labels is None:
        return problems
    told = [problem for problem in problems if problem.check == "label_space"]
    others = [problem for problem in problems if problem.check != "label_space"]
    space = _mixed_spaces(job.labels, census, told) or _never_high(job.labels, census)
    flavour = _flavour(job.labels, census) or _one_class(job.labels, census)
    return [*(p for p in (space, flavour) if p), *others]


def _mixed_spaces(kind: LabelFiles, census: Census, told: list[Problem]) -> Problem | None:
    """labelIds among trainIds, or the reverse."""
    if not told:
        return None
    files = tuple(file for problem in told for file in problem.files)
    found = "trainIds" if kind.space == "labelIds" else "labelIds"
    other = "" if len(files) == census.read else f", the others {kind.space}"
    share = "all" if len(files) == census.read else f"{len(files)} of"
    message = (
        f"{share} {census.read} labels hold {found} (first {files[0]}){other}, expected "
        f"{kind.space}; point --root at labels of one kind"
    )
    return Problem("label_space", ERROR, files, message)


def _never_high(kind: LabelFiles, census: Census) -> Problem | None:
    """trainIds without a single 255 pass as labelIds: nothing but road, walls and poles."""
    ids = kind.ids
    high = [raw for raw, to in ids.items() if raw >= NUM_CLASSES and to != IGNORE_INDEX]
    if kind.space != "labelIds" or not census.labels or any(map(census.with_raw.get, high)):
        return None
    message = (
        f"none of {census.labels} labels has an id above {NUM_CLASSES - 1} (sky, people, cars), so "
        f"they look like trainIds; expected {kind.space}; point --root at labels of one kind"
    )
    return Problem("label_space", ERROR, (), message)


def _flavour(kind: LabelFiles, census: Census) -> Problem | None:
    """Another set of the same name.  Source: the official tables of the two SYNTHIA sets."""
    seen = census.with_raw.keys()
    if kind.space != SYNTHIA_SPACE or _SEQS_ID not in seen or _RAND_IDS & seen:
        return None
    message = (
        f"this looks like SYNTHIA-SEQS (class 12 = lane marking), not SYNTHIA-RAND-CITYSCAPES: "
        f"{census.with_raw[_SEQS_ID]} of {census.labels} labels hold class 12 and none a rider, "
        f"bus or wall; download RAND-CITYSCAPES"
    )
    return Problem("wrong_flavour", ERROR, (), message)


def _one_class(kind: LabelFiles, census: Census) -> Problem | None:
    if not census.labels or census.single_class < census.labels:
        return None
    raw = ", ".join(map(str, sorted(census.with_raw)))
    message = (
        f"each of {census.labels} labels decoded to a single class (raw ids {raw}); "
        f"{' or '.join(kind.encodings)} of {kind.space} expected. Did another tool "
        f"re-save the labels?"
    )
    return Problem("one_class_labels", ERROR, (), message)


def rare_classes(job: Job, rows: list[dict[str, Any]]) -> list[Problem]:
    """Classes that a sampler of rare classes could not draw from this source set."""
    if job.split.role != "source" or not rows or job.labels is None:
        return []
    pixels = np.array([row["class_pixels"] for row in rows], np.int64)
    area = np.array([row["label_height"] * row["label_width"] for row in rows], np.int64)
    enough = (pixels * RARE_FRAME > RARE_PIXELS * area[:, None]).any(0)
    names = job.metadata["class_names"]
    rare = [names[k] for k in np.flatnonzero(~enough) if k not in job.dataset.absent]
    if not rare:
        return []
    limit = round(RARE_PIXELS * int(np.median(area)) / RARE_FRAME)
    message = (
        f"source has no image with more than {limit} pixels of: {', '.join(rare)} "
        f"({len(rows)} images); rare-class sampling will skip them"
    )
    return [Problem("rare_class", NOTE, (), message)]


def compare(release: Release | None, converted: dict[str, Any], census: Census) -> dict[str, Any]:
    """What a whole download holds and this one doesn't: fact -> [expected, found]."""
    if release is None:
        return {}
    differing: dict[str, Any] = {}
    if census.read != release.images:
        differing["images"] = [release.images, census.read]
    sizes = {"{}x{}".format(*size) for size in release.sizes}
    other = {size: n for size, n in converted["image_sizes"].items() if size not in sizes}
    if sizes and other:
        differing["image_sizes"] = [sorted(sizes), other]
    if release.class_images and list(release.class_images) != census.with_class:
        differing["class_images"] = [list(release.class_images), census.with_class]
    return differing


def golden_problem(differing: dict[str, Any]) -> Problem | None:
    """Counts must be those of the release; image sizes are hearsay, so they are only noted."""
    differing = {fact: pair for fact, pair in differing.items() if fact != "image_sizes"}
    if not differing:
        return None
    said = "; ".join(
        f"{fact}: {found}, expected {want}" for fact, (want, found) in differing.items()
    )
    return Problem("golden", ERROR, (), f"not the release that was published: {said}")
