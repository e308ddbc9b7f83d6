"""Where the folders of a data set lie below the root that was given: as its layout says, or deeper.

Names are compared as Unicode NFC: macOS stores an accent as a letter of its own, others do not.
"""

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from spcl.data.datasets import Dataset, Split
from spcl.errors import DataError

SHOWN_NAMES = 10  # names or ranges of names listed in one message
SHOWN_ENDINGS = 5
DEPTHS = (1, 2)  # folders between the root and where an archive's own tree may begin
LEFT_BY_MACOS = "__MACOSX"  # beside what its archiver packs


def nfc(text: str) -> str:
    """One spelling of a name: macOS stores an accent as a letter of its own, others do not."""
    return unicodedata.normalize("NFC", text)


def on_disk(root: Path, folder: str) -> str | None:
    """A folder below the root as its parts are spelled there; None where there is none."""
    if (root / folder).is_dir():
        return folder
    spelled: list[str] = []
    for part in folder.split("/"):
        alike = [name for name in names_in(root.joinpath(*spelled)) if nfc(name) == nfc(part)]
        if not alike:
            return None
        spelled.append(alike[0])
    return "/".join(spelled) if root.joinpath(*spelled).is_dir() else None


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def find_folders(dataset: Dataset, root: Path, folder: str, deeper: bool = True) -> list[str]:
    """Where a folder of a split lies, relative to the root: there, else in folders of archives.

    Several only where an archive came in numbered parts, as 01_images/images, 02_images/images;
    DataError where it can't be told which of several is meant.
    """
    if found := on_disk(root, folder):
        return [found]
    for depth in DEPTHS if deeper else ():
        inner = {
            outer: f"{outer}/{found}"
            for outer in _folders_at(root, depth)
            for place in reversed(dataset.roots)
            if (found := on_disk(root / outer, f"{place}/{folder}".strip("/")))
        }
        if len({re.sub(r"\d+", "", outer) for outer in inner}) > 1:
            raise DataError(
                f"{root} has no folder {folder}, and it can't be told which is meant of "
                f"{', '.join(list(inner.values())[:SHOWN_NAMES])}; name one of these with --root: "
                f"{', '.join(str(root / outer) for outer in list(inner)[:SHOWN_NAMES])}"
            )
        if inner:
            return list(inner.values())
    return []


def _folders_at(root: Path, depth: int) -> list[str]:
    """Sorted, the folders at this depth below the root, but for hidden ones."""
    found = [""]
    for _ in range(depth):
        found = [f"{outer}/{name}".lstrip("/") for outer in found for name in _inner(root / outer)]
    return [path for path in found if not path.startswith(".") and "/." not in path]


def _inner(folder: Path) -> list[str]:
    """Sorted, the folders in a folder; none where it may not be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(one.name for one in entries if one.is_dir() and one.name != LEFT_BY_MACOS)
    except (NotADirectoryError, FileNotFoundError, PermissionError):
        return []


def splits_there(dataset: Dataset, root: Path) -> list[str]:
    """The splits that are converted unasked and whose images are there.

    Folders of archives are only looked into where no split lies as the layout says.
    """
    plain = {name: split for name, split in dataset.splits.items() if not split.on_request}
    direct = [
        name
        for name, split in plain.items()
        if any(on_disk(root / place, split.images) for place in dataset.roots)
    ]
    return direct or [name for name, split in plain.items() if _is_deeper(dataset, root, split)]


def _is_deeper(dataset: Dataset, root: Path, split: Split) -> bool:
    try:
        return bool(find_folders(dataset, root, split.images))
    except DataError:
        return True  # told when it is converted


def find_root(dataset: Dataset, root: Path, split: Split) -> tuple[Path, list[str]]:
    """The folder in which the tree begins, and those of the images, relative to it.

    DataError if nothing there looks like the dataset.
    """
    if not root.is_dir():
        what = f"{root} is a file; extract it" if root.exists() else f"no folder {root}"
        raise DataError(f"{what}{alike(root)}; {dataset.name} must be there as {dataset.layout}")
    for place in dataset.roots:
        if direct := on_disk(root / place, split.images):
            return root / place, [direct]
    found = find_folders(dataset, root, split.images)
    if len(found) == 1 and found[0].endswith(split.images):
        base = root / found[0].removesuffix(split.images)
        folders_of_labels = {kind.folder or split.labels for kind in dataset.labels}
        if (
            split.labels is None
            or any(on_disk(base, one) for one in folders_of_labels if one is not None)
        ) and (split.previous is None or on_disk(base, split.previous)):
            return base, [split.images]  # the whole tree lies one folder deeper
    if found:
        return root, found
    folders = _inner(root)
    files = endings(name for name in names_in(root) if name not in folders)
    folders = folders[:SHOWN_NAMES]
    inside = ", ".join([*folders, *([files] if files else [])]) or "nothing"
    raise DataError(
        f"{root} has no folder {split.images}, it holds {inside}{alike(root, split.images)}; "
        f"{dataset.name} must be there as {dataset.layout}"
    )


def alike(root: Path, folder: str = "") -> str:
    """ "; did you mean ...?": a folder above that fits, or one whose name is nearly the same."""
    for above in list(root.parents)[: len(DEPTHS) + 1] if folder else ():
        if (above / folder).is_dir():
            return f"; did you mean --root {above}?"
    parent, part = (root, folder.split("/")[0]) if folder else (root.parent, root.name)
    names = {name.strip().casefold(): name for name in _inner(parent)}
    close = difflib.get_close_matches(part.strip().casefold(), names, 1)
    if not close:
        return ""
    if folder:
        return f"; is {names[close[0]]!r} to be called {part!r}?"
    return f"; did you mean {str(parent / names[close[0]])!r}?"


def endings(names: Iterable[str]) -> str:
    """ "2500 .jpg, 3 .txt": what files there are, the most frequent first."""
    counts = Counter(PurePosixPath(name).suffix or "without ending" for name in names)
    common = counts.most_common(SHOWN_ENDINGS)
    more = f", {len(counts) - len(common)} other endings" if len(counts) > len(common) else ""
    return ", ".join(f"{count} {ending}" for ending, count in common) + more
