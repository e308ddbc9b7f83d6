"""Which files make up a split: joins images with labels, opens no file.

The checks of this file are those that need names only; `files` lists and matches them.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from spcl.data.datasets import Dataset, LabelFiles, Split
from spcl.data.files import FOLDER, File, ignored, list_files, match_files
from spcl.data.layouts import SHOWN_NAMES, alike, endings, find_folders, find_root, nfc
from spcl.data.lists import Found, restrict
from spcl.data.problems import ERROR, NOTE, SKIP, Problem
from spcl.errors import DataError


class Sample(NamedTuple):
    """One image and the files that go with it; paths relative to the root."""

    key: str
    sequence: str | None
    frame: int | None
    image: str
    image_bytes: int
    label: str | None
    label_bytes: int
    previous: str | None = None
    previous_bytes: int = 0

    @property
    def bytes(self) -> int:
        return self.image_bytes + self.label_bytes + self.previous_bytes

    @property
    def previous_key(self) -> str:
        """The key of the frame before this one."""
        digits = re.search(r"\d+$", self.key)
        assert digits and self.frame is not None, self.key  # of a sequence, by its pattern
        return f"{self.key[: digits.start()]}{self.frame - 1:0{len(digits[0])}d}"


class Listed(NamedTuple):
    """What list_samples found.

    root      where the tree begins: the user's root or a folder in it
    samples   sorted by key, numbers by their value
    labels    which of the dataset's kinds of label files is used; None where labels aren't written
    problems  what was noticed
    """

    root: Path
    samples: list[Sample]
    labels: LabelFiles | None
    problems: list[Problem]


def _ranges(keys: Iterable[str]) -> str:
    """ "2154-2158, 4634" for numbers, else the names; the first ten."""
    keys = sorted(keys)
    if not all(key.isdigit() for key in keys):
        parts = keys
    else:
        runs: list[list[str]] = []
        for key in keys:
            if runs and int(key) == int(runs[-1][-1]) + 1:
                runs[-1].append(key)
            else:
                runs.append([key])
        parts = [run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    more = f", ... ({len(keys)} in all)" if len(parts) > SHOWN_NAMES else ""
    return ", ".join(parts[:SHOWN_NAMES]) + more


def _natural(key: str) -> list[tuple[int, str]]:
    """Sorts 2 before 10, padded with zeros or not."""
    parts = re.split(r"(\d+)", key)
    return [(int(part) if number % 2 else 0, part) for number, part in enumerate(parts)]


def _unpaired(
    images: dict[str, Found], partners: dict[str, Found], folders: tuple[str, str], stop: bool
) -> list[Problem]:
    problems = []
    counts = f"images {len(images)}, labels {len(partners)}"
    cases = (("label", images, partners), ("image", partners, images))
    for (what, here, there), folder in zip(cases, reversed(folders), strict=True):
        lonely = sorted(here.keys() - there.keys(), key=_natural)
        if lonely:
            problems.append(
                Problem(
                    "missing_partner",
                    ERROR if stop else SKIP,
                    tuple(here[key].path for key in lonely),
                    f"{counts}: no {what} for {_ranges(lonely)}; extract the archives of "
                    f"{folder or 'the root'} again",
                )
            )
    return problems


def _nothing(
    what: str, dataset: Dataset, root: Path, folders: list[str], files: list[File]
) -> DataError:
    special = Counter(file.special for file in files if file.special and file.special != FOLDER)
    plain = endings(file.path for file in files if not file.special)
    found = [*([plain] if plain else []), *(f"{n} {kind}" for kind, n in special.items())]
    wanted = f"globs in {dataset.described_in}" if dataset.described_in else dataset.layout
    return DataError(
        f"no {what} of {dataset.name} in {_shown(root, folders)} (found "
        f"{', '.join(found) or 'no file'}); {dataset.name} must be there as {wanted}"
    )


def _shown(root: Path, folders: list[str]) -> str:
    return " and ".join(str(root / folder) for folder in folders[:SHOWN_NAMES])


def _said_where(folders: list[str], expected: str) -> list[Problem]:
    """A note where a folder was found deeper than the layout says."""
    if [nfc(folder) for folder in folders] == [nfc(expected)]:
        return []
    message = f"{expected} was found as {', '.join(folders[:SHOWN_NAMES])}"
    return [Problem("layout", NOTE, (), message)]


def _list_labels(
    dataset: Dataset, root: Path, split: Split, problems: list[Problem]
) -> tuple[LabelFiles, list[str], dict[str, Found], list[File]]:
    """The first kind of label files that is there: the kind, its folders, its files, all files."""
    assert split.labels is not None, split
    seen: list[File] = []
    searched: list[str] = []
    for deeper in (False, True):
        for kind in dataset.labels:
            expected = split.labels if kind.folder is None else kind.folder
            folders = find_folders(dataset, root, expected, deeper)
            if deeper and set(folders) <= set(searched):
                continue
            files = list_files(root, folders)
            partners = match_files(files, split.label or kind.pattern, problems)
            if not set(folders) <= set(searched):
                seen, searched = seen + files, searched + folders
            if partners:
                if kind is not dataset.labels[0]:
                    first = dataset.labels[0]
                    message = (
                        f"{split.labels} has no files of {first.space}; the files of {kind.space} "
                        f"in {', '.join(folders)} are used instead"
                    )
                    problems.append(Problem("label_files", NOTE, (), message))
                problems += _said_where(folders, expected)
                return kind, folders, partners, files
    if not searched:
        raise DataError(
            f"{root} has no folder {split.labels}{alike(root, split.labels)}; {dataset.name} must "
            f"be there as {dataset.layout}"
        )
    raise _nothing("labels", dataset, root, searched, seen)


def _find_previous(
    dataset: Dataset, root: Path, split: Split, samples: list[Sample], stop: bool
) -> tuple[list[Sample], list[Problem]]:
    """Samples with the frame before theirs, and what is said of those that have none."""
    assert split.previous is not None, split
    files = list_files(root, find_folders(dataset, root, split.previous))
    frames = match_files(files, split.image or dataset.image, [])
    kept, lonely = [], []
    for sample in samples:
        key = nfc(sample.previous_key)
        if key in frames:
            kept.append(sample._replace(previous=frames[key].path, previous_bytes=frames[key].size))
        else:
            lonely.append((key, sample))
    if not lonely:
        return kept, []
    names = ", ".join(Path(key).name for key, _ in lonely[:SHOWN_NAMES])
    more = f", ... ({len(lonely)} in all)" if len(lonely) > SHOWN_NAMES else ""
    message = f"{names}{more} not found under {split.previous.split('/')[0]}/"
    if not kept:
        hint = dataset.hints.get("missing_previous", "put the neighbour frames there")
        raise DataError(f"{message}; {hint}")
    paths = tuple(sample.image for _, sample in lonely)
    return kept, [Problem("missing_previous", ERROR if stop else SKIP, paths, message)]


def list_samples(
    dataset: Dataset, root: Path, split: Split, on_mismatch: str, only: Path | None = None
) -> Listed:
    """The samples of a split; DataError if there is nothing to convert.

    only  a file that names the images to take
    """
    given, stop = root, on_mismatch == "error"
    root, image_folders = find_root(dataset, given, split)
    problems: list[Problem] = _said_where(image_folders, split.images)
    if root not in [given / place for place in dataset.roots]:
        message = f"{split.images} is not in {given}; taken from {root}"
        problems.append(Problem("layout", NOTE, (), message))
    known = [split.image or dataset.image]
    known += [split.label or kind.pattern for kind in dataset.labels]
    if dataset.companions:
        known.append(dataset.companions)
    image_files = list_files(root, image_folders)
    images = match_files(image_files, known[0], problems)
    if not images:
        raise _nothing("images", dataset, root, image_folders, image_files)
    problems += ignored(image_files, known, ", ".join(image_folders))

    kind, partners = None, None
    if split.labels is not None:
        kind, folders, partners, label_files = _list_labels(dataset, root, split, problems)
        if folders != image_folders:
            problems += ignored(label_files, known, ", ".join(folders))
    if only:
        images = restrict(images, partners, only)
    if partners is not None:
        if only:
            partners = {key: found for key, found in partners.items() if key in images}
        both = (", ".join(image_folders), ", ".join(folders))
        problems += _unpaired(images, partners, both, stop)
    samples = []
    for key in sorted(images, key=lambda key: _natural(images[key].key)):
        partner = partners.get(key) if partners is not None else None
        if partners is not None and partner is None:
            continue
        image = images[key]
        frame = image.groups.get("frame")
        samples.append(
            Sample(
                image.key,
                image.groups.get("sequence"),
                int(frame) if frame is not None else None,
                image.path,
                image.size,
                partner.path if partner else None,
                partner.size if partner else 0,
            )
        )
    if not samples:
        raise DataError(f"no image in {root} has a label: {problems[-1].message}")
    if split.previous:
        samples, found = _find_previous(dataset, root, split, samples, stop)
        problems += found
    return Listed(root, samples, kind, problems)
