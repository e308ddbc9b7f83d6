"""Which files make up a split: lists folders, joins images with labels, opens no file.

The checks of this file are those that need names only.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from spcl.data.datasets import Dataset, Split
from spcl.errors import DataError

SHOWN_NAMES = 10  # names or ranges of names listed in one message

ERROR, SKIP, NOTE = "error", "skip", "note"


class Sample(NamedTuple):
    """One image and, where labels are written, its label file; paths relative to the root."""

    key: str
    sequence: str | None
    frame: int | None
    image: str
    image_bytes: int
    label: str | None
    label_bytes: int


class Problem(NamedTuple):
    """Something a check found.

    severity  error: nothing is written; skip: the sample is left out; note: it is only reported
    """

    check: str
    severity: str
    files: tuple[str, ...]
    message: str


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
            found.append((inside, f"{folder}/{inside}", size))
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
        key = match["key"]
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
        matched[key] = _Found(path, size, match.groupdict())
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
            f"ignored {len(paths)} files named {form} in {folder}: not part of the dataset",
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


def _unpaired(
    images: dict[str, _Found], partners: dict[str, _Found], split: Split, on_mismatch: str
) -> list[Problem]:
    problems = []
    severity = ERROR if on_mismatch == "error" else SKIP
    counts = f"images {len(images)}, labels {len(partners)}"
    for what, here, there in (("label", images, partners), ("image", partners, images)):
        lonely = sorted(here.keys() - there.keys())
        if lonely:
            folder = split.labels if what == "label" else split.images
            problems.append(
                Problem(
                    "missing_partner",
                    severity,
                    tuple(here[key].path for key in lonely),
                    f"{counts}: no {what} for {_ranges(lonely)}; extract the archives of {folder} "
                    f"again",
                )
            )
    return problems


def _nothing(what: str, dataset: Dataset, folder: Path, files: list) -> DataError:
    return DataError(
        f"no {what} of {dataset.name} in {folder} ({len(files)} other files); {dataset.name} must "
        f"be there as {dataset.layout}"
    )


def list_samples(
    dataset: Dataset, root: Path, split: Split, on_mismatch: str
) -> tuple[list[Sample], int | None, list[Problem]]:
    """The samples of a split, sorted by key; which kind of label files it has; what was noticed.

    DataError if there is nothing to convert.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}; {dataset.name} must be there as {dataset.layout}")
    for folder in (split.images, split.labels):
        if folder is not None and not (root / folder).is_dir():
            inside = ", ".join(sorted(os.listdir(root))[:SHOWN_NAMES]) or "nothing"
            raise DataError(
                f"{root} has no folder {folder}, it holds {inside}; {dataset.name} must be there "
                f"as {dataset.layout}"
            )
    problems: list[Problem] = []
    known = [dataset.image, *(kind.pattern for kind in dataset.labels)]
    if dataset.companions:
        known.append(dataset.companions)
    image_files = _list_files(root, split.images)
    images = _match(image_files, dataset.image, problems)
    if not images:
        raise _nothing("images", dataset, root / split.images, image_files)
    problems += _ignored(image_files, known, split.images)

    used, partners = None, None
    if split.labels is not None:
        label_files = _list_files(root, split.labels)
        for number, kind in enumerate(dataset.labels):
            used, partners = number, _match(label_files, kind.pattern, problems)
            if partners:
                break
        if not partners:
            raise _nothing("labels", dataset, root / split.labels, label_files)
        if used:
            problems.append(
                Problem(
                    "label_files",
                    NOTE,
                    (),
                    f"{split.labels} has no files of {dataset.labels[0].space}; its files of "
                    f"{dataset.labels[used].space} are used instead",
                )
            )
        problems += _ignored(label_files, known, split.labels)
        problems += _unpaired(images, partners, split, on_mismatch)
    samples = []
    for key in sorted(images):
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
    return samples, used, problems
