"""The images that a list file names (`--list`), in the forms that several code bases write."""

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from spcl.data.layouts import SHOWN_NAMES, nfc
from spcl.data.pictures import other_than_a_file
from spcl.errors import DataError

# Within a path: what looks like the end of a name and the start of another.
_ENDING_INSIDE = re.compile(r"\.(png|jpe?g|webp)[^\w/]", re.IGNORECASE)


class Found(NamedTuple):
    key: str
    path: str
    size: int
    groups: dict[str, str]


class _Lookup:
    """Files of a split by what a list may call them: by key, by file name, by path."""

    def __init__(self, files: dict[str, Found]) -> None:
        self._files = files
        self._by_last: dict[str, list[str]] = {}
        for key, found in files.items():
            path = PurePosixPath(nfc(found.path))
            ending = path.suffix.lower()
            lasts = {key.rpartition("/")[2], path.stem, path.name, path.stem + ending}
            for last in lasts:
                self._by_last.setdefault(last, []).append(key)

    def find(self, name: str, whole: bool) -> list[str]:
        """The keys of the files that fit a name best; several where it fits them equally.

        whole  only where the name is the end of the file's path or key, or ends with its path
        """
        name = nfc(name)
        if name in self._files:
            return [name]
        *folders, last = [part for part in name.split("/") if part not in ("", ".")] or [""]
        two_names = _ENDING_INSIDE.search("/".join(folders)) is not None
        best = 0
        found: list[str] = []
        for key in self._by_last.get(last, ()):
            path = nfc(self._files[key].path).split("/")[:-1]
            shared = max(_shared(folders, path), _shared(folders, key.split("/")[:-1]))
            its_end = shared == len(folders)
            longer = 0 < shared == len(path) and not two_names
            if not its_end and (two_names or (whole and not longer)):
                continue
            if shared > best:
                best, found = shared, []
            if shared == best:
                found.append(key)
        if not found and "\\" in name:
            return self.find(name.replace("\\", "/"), whole)
        return found


def _shared(some: list[str], others: list[str]) -> int:
    """How many folders two paths share at their ends."""
    shorter = min(len(some), len(others))
    return next((n for n in range(shorter) if some[-1 - n] != others[-1 - n]), shorter)


def _read_list(names: Path) -> list[str]:
    """The lines of a list file that are not blank."""
    try:
        special = other_than_a_file(names.stat().st_mode)
        if special:  # it is read more than once
            raise DataError(f"the list {names} is {special}; write the names to a file first")
        text = names.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the list {names}: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read the list {names}: {error}; save it as UTF-8") from None
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if not lines:
        raise DataError(f"{names} is empty; it must name files of this split, one a line")
    return lines


def restrict(
    images: dict[str, Found], partners: dict[str, Found] | None, names: Path
) -> dict[str, Found]:
    """The images that a list file names, one a line: by key, by file name, or by path.

    Lists of several code bases are read: with or without the ending, with or without the folder,
    with the label or more behind a tab or a space, with comments, a last line without its end.
    """
    partners = partners or {}
    by_image, by_label = _Lookup(images), _Lookup(partners)
    chosen, unknown = {}, []
    for line in _read_list(names):
        found, more = _file_of(line, by_image)
        if found is None:
            if not line.lstrip().startswith("#"):
                unknown.append(line.strip())
            continue
        if len(found) > 1:
            paths = ", ".join(images[key].path for key in found[:SHOWN_NAMES])
            raise DataError(
                f"{names}: {line.strip()} may be any of {paths}; write it with its folder"
            )
        labels = _file_of(more, by_label)[0] if re.search(r"[./]", more) else None
        if labels and found[0] not in labels:
            raise DataError(
                f"{names} joins {images[found[0]].path} with {partners[labels[0]].path}, but an "
                f"image and its label are joined by name; leave the labels out of the list, or "
                f"rename one"
            )
        chosen[found[0]] = images[found[0]]
    if unknown or not chosen:
        shown = ", ".join(unknown[:SHOWN_NAMES]) or "nothing"
        raise DataError(
            f"{names} names {len(unknown)} images that are not there ({shown}); it must name files "
            f"of this split, one a line"
        )
    return chosen


def _file_of(line: str, files: _Lookup) -> tuple[list[str] | None, str]:
    """The files that a line may name, and what stands behind; None where it names none.

    The whole line is a name if that fits.  Else it is cut at tabs, or at spaces if it has none, at
    the last place that leaves a name in front.
    """
    for name in (line, line.strip()):
        if found := files.find(name, whole=True):
            return found, ""
    line = line.strip()
    gaps = [match.span() for match in re.finditer("\t+" if "\t" in line else " +", line)]
    for whole in (True, False):
        for start, end in reversed(gaps):
            if found := files.find(line[:start].strip(), whole):
                return found, line[end:].strip()
    return files.find(line, whole=False) or None, ""
