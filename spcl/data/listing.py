"""Which files make up a split: lists folders, joins images with labels, opens no file.

The checks of this file are those that need names only.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from spcl.data.datasets import Dataset, LabelFiles, Split
from spcl.errors import DataError

SHOWN_NAMES = 10  # names or ranges of names listed in one message

ERROR, SKIP, NOTE = "error", "skip", "note"


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
        digits = re.search(r"\d+$", self.key)[0]
        return f"{self.key[: -len(digits)]}{self.frame - 1:0{len(digits)}d}"


class Problem(NamedTuple):
    """Something a check found.

    severity  error: nothing is written; skip: the sample is left out; note: it is only reported
    """

    check: str
    severity: str
    files: tuple[str, ...]
    message: str


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


class _Found(NamedTuple):
    path: str
    size: int
    groups: dict[str, str]


def _list_files(root: Path, folder: str) -> list[tuple[str, str, int]]:
    """Sorted (path relative to `folder`, path relative to `root`, bytes) of every file below."""
    found = []
    for parent, _, names in os.walk(root / folder, followlinks=True):
        for name in names:
            path = Path(parent, name)
            size = path.stat().st_size if path.exists() else 0  # a dangling link fails when read
            inside = path.relative_to(root / folder).as_posix()
            found.append((inside, f"{folder}/{inside}".lstrip("/"), size))
    return sorted(found)


def _match(
    files: list[tuple[str, str, int]], pattern: re.Pattern[str], problems: list[Problem]
) -> dict[str, _Found]:
    """Key -> file, for the files whose whole relative path matches."""
    matched: dict[str, _Found] = {}
    for inside, path, size in files:
        match = pattern.fullmatch(inside)
        if match is None:
            continue
        named = match.groupdict()
        key = named.get("key") or "/".join(part for part in match.groups() if part)
        if key in matched:
            problems.append(
                Problem(
                    "duplicate_name",
                    ERROR,
                    (path,),
                    f"{path} and {matched[key].path} have the same name {key}; remove one",
                )
            )
            continue
        matched[key] = _Found(path, size, named)
    return matched


def _ignored(
    files: list[tuple[str, str, int]], patterns: list[re.Pattern[str]], folder: str
) -> list[Problem]:
    """Files that are no part of the dataset, by the form of their names."""
    strange: dict[str, list[str]] = {}
    for inside, path, _ in files:
        if not any(pattern.fullmatch(inside) for pattern in patterns):
            form = re.sub(r"^.*\d{2,}", "*", Path(path).name)
            strange.setdefault(form, []).append(path)
    return [
        Problem(
            "ignored_file",
            NOTE,
            tuple(paths),
            f"ignored {len(paths)} files matching {form} in {folder} (left by another tool)",
        )
        for form, paths in sorted(strange.items())
    ]


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
    images: dict[str, _Found], partners: dict[str, _Found], folders: tuple[str, str], stop: bool
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


def _find_root(dataset: Dataset, root: Path, split: Split) -> Path:
    """The folder in which the tree begins; DataError if nothing there looks like it."""
    if not root.is_dir():
        raise DataError(f"no folder {root}; {dataset.name} must be there as {dataset.layout}")
    for place in dataset.roots:
        if (root / place / split.images).is_dir():
            return root / place
    inside = ", ".join(sorted(os.listdir(root))[:SHOWN_NAMES]) or "nothing"
    raise DataError(
        f"{root} has no folder {split.images}, it holds {inside}; {dataset.name} must be there "
        f"as {dataset.layout}"
    )


def _nothing(what: str, dataset: Dataset, folder: Path, count: int) -> DataError:
    return DataError(
        f"no {what} of {dataset.name} in {folder} ({count} other files); {dataset.name} must "
        f"be there as {dataset.layout}"
    )


def _list_labels(
    dataset: Dataset, root: Path, split: Split, problems: list[Problem]
) -> tuple[LabelFiles, str, dict[str, _Found], list[tuple[str, str, int]]]:
    """The first kind of label files that is there: the kind, its folder, its files, all files."""
    seen = 0
    for kind in dataset.labels:
        folder = split.labels if kind.folder is None else kind.folder
        files = _list_files(root, folder)
        partners = _match(files, split.label or kind.pattern, problems)
        seen += len(files)
        if partners:
            if kind is not dataset.labels[0]:
                first = dataset.labels[0]
                message = (
                    f"{split.labels} has no files of {first.space}; the files of {kind.space} in "
                    f"{folder} are used instead"
                )
                problems.append(Problem("label_files", NOTE, (), message))
            return kind, folder, partners, files
    if not (root / split.labels).is_dir():
        raise DataError(
            f"{root} has no folder {split.labels}; {dataset.name} must be there as {dataset.layout}"
        )
    raise _nothing("labels", dataset, root / split.labels, seen)


def _find_previous(
    dataset: Dataset, root: Path, split: Split, samples: list[Sample], stop: bool
) -> tuple[list[Sample], list[Problem]]:
    """Samples with the frame before theirs, and what is said of those that have none."""
    files = _list_files(root, split.previous)
    frames = _match(files, split.image or dataset.image, [])
    kept, lonely = [], []
    for sample in samples:
        key = sample.previous_key
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


def _restrict(images: dict[str, _Found], names: Path) -> dict[str, _Found]:
    """The images that a list file names, one a line: by key, by file name, or by path.

    Lists of several code bases are read: with or without the ending, with or without the folder, a
    last line without its end.
    """
    try:
        lines = names.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list {names}: {error}") from None
    by_name = {}
    for key, found in images.items():
        stem = Path(found.path).stem
        by_name |= {key: key, Path(key).name: key, stem: key, Path(found.path).name: key}
    chosen, unknown = {}, []
    for line in lines:
        key = by_name.get(line) or by_name.get(Path(line).name)
        if key is None:
            unknown.append(line)
        else:
            chosen[key] = images[key]
    if unknown or not chosen:
        shown = ", ".join(unknown[:SHOWN_NAMES]) or "nothing"
        raise DataError(
            f"{names} names {len(unknown)} images that are not there ({shown}); it must name files "
            f"of this split, one a line"
        )
    return chosen


def list_samples(
    dataset: Dataset, root: Path, split: Split, on_mismatch: str, only: Path | None = None
) -> Listed:
    """The samples of a split; DataError if there is nothing to convert.

    only  a file that names the images to take
    """
    root, stop = _find_root(dataset, root, split), on_mismatch == "error"
    problems: list[Problem] = []
    known = [split.image or dataset.image]
    known += [split.label or kind.pattern for kind in dataset.labels]
    if dataset.companions:
        known.append(dataset.companions)
    image_files = _list_files(root, split.images)
    images = _match(image_files, known[0], problems)
    if not images:
        raise _nothing("images", dataset, root / split.images, len(image_files))
    problems += _ignored(image_files, known, split.images)
    if only:
        images = _restrict(images, only)

    kind, partners = None, None
    if split.labels is not None:
        kind, folder, partners, label_files = _list_labels(dataset, root, split, problems)
        if only:
            partners = {key: found for key, found in partners.items() if key in images}
        if folder != split.images:
            problems += _ignored(label_files, known, folder)
        problems += _unpaired(images, partners, (split.images, folder), stop)
    samples = []
    for key in sorted(images, key=_natural):
        partner = partners.get(key) if partners is not None else None
        if partners is not None and partner is None:
            continue
        image = images[key]
        frame = image.groups.get("frame")
        samples.append(
            Sample(
                key,
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
