"""Which files make up a split: lists folders, joins images with labels, opens no file.

The checks of this file are those that need names only.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

from spcl.data.datasets import Dataset, LabelFiles, Split
from spcl.data.layouts import SHOWN_NAMES, alike, endings, find_folders, find_root, nfc
from spcl.data.lists import Found, restrict
from spcl.data.pictures import other_than_a_file
from spcl.errors import DataError

FOLDER = other_than_a_file(stat.S_IFDIR)
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")

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


class _File(NamedTuple):
    """What lies below a folder: a file, or something that is `special`, such as "a FIFO"."""

    inside: str  # path relative to that folder
    path: str  # path relative to the root
    size: int
    special: str | None


def _list_files(root: Path, folders: Iterable[str]) -> list[_File]:
    """Sorted, all that lies in these folders below the root, at any depth."""
    return sorted(file for folder in folders for file in _files_below(root, folder))


def _files_below(root: Path, folder: str) -> Iterable[_File]:
    for parent, folders, names in os.walk(root / folder, onerror=_cannot_list, followlinks=True):
        for name in (*folders, *names):
            path = Path(parent, name)
            try:
                found = path.stat()
                size, special = found.st_size, other_than_a_file(found.st_mode)
            except OSError:
                size, special = 0, None  # a dangling link fails when read
            inside = path.relative_to(root / folder).as_posix()
            yield _File(inside, f"{folder}/{inside}".lstrip("/"), size, special)
        folders[:] = [name for name in folders if not _leads_back(parent, name)]


def _cannot_list(error: OSError) -> NoReturn:
    raise DataError(
        f"cannot list {error.filename} ({error.strerror}); all below --root must be readable"
    )


def _leads_back(parent: str, name: str) -> bool:
    """Whether a folder is a link to one on the way to it, which would be walked without end."""
    path = Path(parent, name)
    if not path.is_symlink():
        return False
    target, way = path.resolve(), (Path(parent), *Path(parent).parents)
    return any(above.resolve().is_relative_to(target) for above in way)


def _fullmatch(pattern: re.Pattern[str], inside: str) -> tuple[re.Match[str] | None, bool]:
    """The match of a name, and whether only its ending differs, as .PNG from .png."""
    for name in (inside, nfc(inside)):
        if match := pattern.fullmatch(name):
            return match, False
    stem, ending = os.path.splitext(nfc(inside))
    return pattern.fullmatch(stem + ending.lower()), True


def _match(
    files: list[_File], pattern: re.Pattern[str], problems: list[Problem]
) -> dict[str, Found]:
    """Key, as NFC -> file, for the files whose whole relative path matches."""
    matched: dict[str, Found] = {}
    found = [(*_fullmatch(pattern, file.inside), file) for file in files]
    for match, other_ending, file in sorted(found, key=lambda one: one[1]):
        if match is None or file.special == FOLDER:
            continue
        if file.special:
            problems.append(_not_a_file(file))
            continue
        named = match.groupdict()
        key = named.get("key") or "/".join(part for part in match.groups() if part)
        twin = matched.get(nfc(key))
        if twin is None:
            matched[nfc(key)] = Found(key, file.path, file.size, named)
        elif other_ending:
            message = f"left out {file.path}: {twin.path} has the same name but for its ending"
            problems.append(Problem("ignored_file", NOTE, (file.path,), message))
        else:
            how = f"the same name {key}"
            if key != twin.key:
                how += ", but for how its accents are stored (Unicode NFC or NFD)"
            message = f"{file.path} and {twin.path} have {how}; remove one"
            problems.append(Problem("duplicate_name", ERROR, (file.path,), message))
    suspects = [file for match, _, file in found if match and _is_called_image(file)]
    for file in suspects:
        if not any(one.path.startswith(f"{file.path}/") for one in matched.values()):
            problems.append(_not_a_file(file))
    return matched


def _is_called_image(file: _File) -> bool:
    """Of a folder."""
    return file.special == FOLDER and file.path.lower().endswith(IMAGE_ENDINGS)


def _not_a_file(file: _File) -> Problem:
    message = f"{file.path} is {file.special}, not a file; remove it or put the image there"
    return Problem("not_a_file", ERROR, (file.path,), message)


def _ignored(files: list[_File], patterns: list[re.Pattern[str]], folder: str) -> list[Problem]:
    """Files that are no part of the dataset, by the form of their names."""
    strange: dict[str, list[str]] = {}
    for file in files:
        known = any(_fullmatch(pattern, file.inside)[0] for pattern in patterns)
        if file.special != FOLDER and not known:
            form = re.sub(r"^.*\d{2,}", "*", Path(file.path).name)
            strange.setdefault(form, []).append(file.path)
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
    what: str, dataset: Dataset, root: Path, folders: list[str], files: list[_File]
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
) -> tuple[LabelFiles, list[str], dict[str, Found], list[_File]]:
    """The first kind of label files that is there: the kind, its folders, its files, all files."""
    seen: list[_File] = []
    searched: list[str] = []
    for deeper in (False, True):
        for kind in dataset.labels:
            expected = split.labels if kind.folder is None else kind.folder
            folders = find_folders(dataset, root, expected, deeper)
            if deeper and set(folders) <= set(searched):
                continue
            files = _list_files(root, folders)
            partners = _match(files, split.label or kind.pattern, problems)
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
    files = _list_files(root, find_folders(dataset, root, split.previous))
    frames = _match(files, split.image or dataset.image, [])
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
    image_files = _list_files(root, image_folders)
    images = _match(image_files, known[0], problems)
    if not images:
        raise _nothing("images", dataset, root, image_folders, image_files)
    problems += _ignored(image_files, known, ", ".join(image_folders))

    kind, partners = None, None
    if split.labels is not None:
        kind, folders, partners, label_files = _list_labels(dataset, root, split, problems)
        if folders != image_folders:
            problems += _ignored(label_files, known, ", ".join(folders))
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
