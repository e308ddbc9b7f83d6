"""Which files make up a split: lists folders, joins images with labels, opens no file.

The checks of this file are those that need names only.
"""

import difflib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

from spcl.data.datasets import Dataset, LabelFiles, Split
from spcl.data.pictures import other_than_a_file
from spcl.errors import DataError

SHOWN_NAMES = 10  # names or ranges of names listed in one message
SHOWN_ENDINGS = 5
DEPTHS = (1, 2)  # folders between the root and where an archive's own tree may begin
FOLDER = other_than_a_file(stat.S_IFDIR)
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
LEFT_BY_MACOS = "__MACOSX"  # beside what its archiver packs

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


class _Found(NamedTuple):
    key: str
    path: str
    size: int
    groups: dict[str, str]


def _nfc(text: str) -> str:
    """One spelling of a name: macOS stores an accent as a letter of its own, others do not."""
    return unicodedata.normalize("NFC", text)


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
    for name in (inside, _nfc(inside)):
        if match := pattern.fullmatch(name):
            return match, False
    stem, ending = os.path.splitext(_nfc(inside))
    return pattern.fullmatch(stem + ending.lower()), True


def _match(
    files: list[_File], pattern: re.Pattern[str], problems: list[Problem]
) -> dict[str, _Found]:
    """Key, as NFC -> file, for the files whose whole relative path matches."""
    matched: dict[str, _Found] = {}
    found = [(*_fullmatch(pattern, file.inside), file) for file in files]
    for match, other_ending, file in sorted(found, key=lambda one: one[1]):
        if match is None or file.special == FOLDER:
            continue
        if file.special:
            problems.append(_not_a_file(file))
            continue
        named = match.groupdict()
        key = named.get("key") or "/".join(part for part in match.groups() if part)
        twin = matched.get(_nfc(key))
        if twin is None:
            matched[_nfc(key)] = _Found(key, file.path, file.size, named)
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


def _on_disk(root: Path, folder: str) -> str | None:
    """A folder below the root as its parts are spelled there; None where there is none."""
    if (root / folder).is_dir():
        return folder
    spelled: list[str] = []
    for part in folder.split("/"):
        alike = [name for name in _names(root.joinpath(*spelled)) if _nfc(name) == _nfc(part)]
        if not alike:
            return None
        spelled.append(alike[0])
    return "/".join(spelled) if root.joinpath(*spelled).is_dir() else None


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _find_folders(dataset: Dataset, root: Path, folder: str, deeper: bool = True) -> list[str]:
    """Where a folder of a split lies, relative to the root: there, else in folders of archives.

    Several only where an archive came in numbered parts, as 01_images/images, 02_images/images;
    DataError where it can't be told which of several is meant.
    """
    if found := _on_disk(root, folder):
        return [found]
    for depth in DEPTHS if deeper else ():
        inner = {
            outer: f"{outer}/{found}"
            for outer in _folders_at(root, depth)
            for place in reversed(dataset.roots)
            if (found := _on_disk(root / outer, f"{place}/{folder}".strip("/")))
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
        if any(_on_disk(root / place, split.images) for place in dataset.roots)
    ]
    return direct or [name for name, split in plain.items() if _is_deeper(dataset, root, split)]


def _is_deeper(dataset: Dataset, root: Path, split: Split) -> bool:
    try:
        return bool(_find_folders(dataset, root, split.images))
    except DataError:
        return True  # told when it is converted


def _find_root(dataset: Dataset, root: Path, split: Split) -> tuple[Path, list[str]]:
    """The folder in which the tree begins, and those of the images, relative to it.

    DataError if nothing there looks like the dataset.
    """
    if not root.is_dir():
        what = f"{root} is a file; extract it" if root.exists() else f"no folder {root}"
        raise DataError(f"{what}{_alike(root)}; {dataset.name} must be there as {dataset.layout}")
    for place in dataset.roots:
        if found := _on_disk(root / place, split.images):
            return root / place, [found]
    found = _find_folders(dataset, root, split.images)
    if len(found) == 1 and found[0].endswith(split.images):
        base = root / found[0].removesuffix(split.images)
        label_folders = {kind.folder or split.labels for kind in dataset.labels}
        if (split.labels is None or any(_on_disk(base, one) for one in label_folders)) and (
            split.previous is None or _on_disk(base, split.previous)
        ):
            return base, [split.images]  # the whole tree lies one folder deeper
    if found:
        return root, found
    folders = _inner(root)
    files = _endings(name for name in _names(root) if name not in folders)
    folders = folders[:SHOWN_NAMES]
    inside = ", ".join([*folders, *([files] if files else [])]) or "nothing"
    raise DataError(
        f"{root} has no folder {split.images}, it holds {inside}{_alike(root, split.images)}; "
        f"{dataset.name} must be there as {dataset.layout}"
    )


def _alike(root: Path, folder: str = "") -> str:
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


def _endings(names: Iterable[str]) -> str:
    """ "2500 .jpg, 3 .txt": what files there are, the most frequent first."""
    counts = Counter(PurePosixPath(name).suffix or "without ending" for name in names)
    common = counts.most_common(SHOWN_ENDINGS)
    more = f", {len(counts) - len(common)} other endings" if len(counts) > len(common) else ""
    return ", ".join(f"{count} {ending}" for ending, count in common) + more


def _nothing(
    what: str, dataset: Dataset, root: Path, folders: list[str], files: list[_File]
) -> DataError:
    special = Counter(file.special for file in files if file.special and file.special != FOLDER)
    plain = _endings(file.path for file in files if not file.special)
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
    if [_nfc(folder) for folder in folders] == [_nfc(expected)]:
        return []
    message = f"{expected} was found as {', '.join(folders[:SHOWN_NAMES])}"
    return [Problem("layout", NOTE, (), message)]


def _list_labels(
    dataset: Dataset, root: Path, split: Split, problems: list[Problem]
) -> tuple[LabelFiles, list[str], dict[str, _Found], list[_File]]:
    """The first kind of label files that is there: the kind, its folders, its files, all files."""
    seen: list[_File] = []
    searched: list[str] = []
    for deeper in (False, True):
        for kind in dataset.labels:
            expected = split.labels if kind.folder is None else kind.folder
            folders = _find_folders(dataset, root, expected, deeper)
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
            f"{root} has no folder {split.labels}{_alike(root, split.labels)}; {dataset.name} must "
            f"be there as {dataset.layout}"
        )
    raise _nothing("labels", dataset, root, searched, seen)


def _find_previous(
    dataset: Dataset, root: Path, split: Split, samples: list[Sample], stop: bool
) -> tuple[list[Sample], list[Problem]]:
    """Samples with the frame before theirs, and what is said of those that have none."""
    files = _list_files(root, _find_folders(dataset, root, split.previous))
    frames = _match(files, split.image or dataset.image, [])
    kept, lonely = [], []
    for sample in samples:
        key = _nfc(sample.previous_key)
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


class _Lookup:
    """Files of a split by what a list may call them: by key, by file name, by path."""

    def __init__(self, files: dict[str, _Found]) -> None:
        self._files = files
        self._by_last: dict[str, list[str]] = {}
        for key, found in files.items():
            path = PurePosixPath(_nfc(found.path))
            ending = path.suffix.lower()
            lasts = {key.rpartition("/")[2], path.stem, path.name, path.stem + ending}
            for last in lasts:
                self._by_last.setdefault(last, []).append(key)

    def find(self, name: str, whole: bool) -> list[str]:
        """The keys of the files that fit a name best; several where it fits them equally.

        whole  only where the name is the end of the file's path or key, or ends with its path
        """
        name = _nfc(name)
        if name in self._files:
            return [name]
        *folders, last = [part for part in name.split("/") if part not in ("", ".")] or [""]
        two_names = _ENDING_INSIDE.search("/".join(folders)) is not None
        best, found = 0, []
        for key in self._by_last.get(last, ()):
            path = _nfc(self._files[key].path).split("/")[:-1]
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


# Within a path: what looks like the end of a name and the start of another.
_ENDING_INSIDE = re.compile(r"\.(png|jpe?g|webp)[^\w/]", re.IGNORECASE)


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


def _restrict(
    images: dict[str, _Found], partners: dict[str, _Found] | None, names: Path
) -> dict[str, _Found]:
    """The images that a list file names, one a line: by key, by file name, or by path.

    Lists of several code bases are read: with or without the ending, with or without the folder,
    with the label or more behind a tab or a space, with comments, a last line without its end.
    """
    by_image, by_label = _Lookup(images), _Lookup(partners or {})
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


def list_samples(
    dataset: Dataset, root: Path, split: Split, on_mismatch: str, only: Path | None = None
) -> Listed:
    """The samples of a split; DataError if there is nothing to convert.

    only  a file that names the images to take
    """
    given, stop = root, on_mismatch == "error"
    root, image_folders = _find_root(dataset, given, split)
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
        images = _restrict(images, partners, only)
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
