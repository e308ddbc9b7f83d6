"""Which files lie in a folder, and which of them a dataset means, by their names alone."""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

from spcl.data.layouts import nfc
from spcl.data.lists import Found
from spcl.data.pictures import other_than_a_file
from spcl.data.problems import ERROR, NOTE, Problem
from spcl.errors import DataError

FOLDER = other_than_a_file(stat.S_IFDIR)
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


class File(NamedTuple):
    """What lies below a folder: a file, or something that is `special`, such as "a FIFO"."""

    inside: str  # path relative to that folder
    path: str  # path relative to the root
    size: int
    special: str | None


def list_files(root: Path, folders: Iterable[str]) -> list[File]:
    """Sorted, all that lies in these folders below the root, at any depth."""
    return sorted(file for folder in folders for file in _files_below(root, folder))


def _files_below(root: Path, folder: str) -> Iterable[File]:
    for parent, folders, names in os.walk(root / folder, onerror=_cannot_list, followlinks=True):
        for name in (*folders, *names):
            path = Path(parent, name)
            try:
                found = path.stat()
                size, special = found.st_size, other_than_a_file(found.st_mode)
            except OSError:
                size, special = 0, None  # a dangling link fails when read
            inside = path.relative_to(root / folder).as_posix()
            yield File(inside, f"{folder}/{inside}".lstrip("/"), size, special)
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


def match_files(
    files: list[File], pattern: re.Pattern[str], problems: list[Problem]
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


def _is_called_image(file: File) -> bool:
    """Of a folder."""
    return file.special == FOLDER and file.path.lower().endswith(IMAGE_ENDINGS)


def _not_a_file(file: File) -> Problem:
    message = f"{file.path} is {file.special}, not a file; remove it or put the image there"
    return Problem("not_a_file", ERROR, (file.path,), message)


def ignored(files: list[File], patterns: list[re.Pattern[str]], folder: str) -> list[Problem]:
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
