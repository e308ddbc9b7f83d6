"""Which runs and searches there are below a folder, on any filesystem.

A folder is a storage folder, one run or one search, as a path or as a URI that pyarrow knows.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pyarrow import fs

from spcl.settings import parse_yaml
from spcl.store import records

CONTAINERS = ("searches",)  # folders of a storage that hold more of what is looked for
OTHER = ("artefacts", "sweeps")  # sub-folders to skip: they hold no run at full budget
RECORDS = ("DONE.json", "manifest.json", "FAILED.json", "config.yaml", "search.yaml", "audit.json")
SCORES = "evaluation.json"  # of a report on a run
BOARDS = "leaderboard.json"  # in a folder that boards were written to
PROBED = (*RECORDS, BOARDS)


@dataclass(frozen=True)
class Folder:
    """A folder on some filesystem."""

    files: fs.FileSystem
    path: str  # as the filesystem names it
    address: str  # as the user does: a path or a URI
    query: str = ""  # of a URI

    def __truediv__(self, name: str) -> "Folder":
        path, address = f"{self.path.rstrip('/')}/{name}", f"{self.address.rstrip('/')}/{name}"
        return Folder(self.files, path, address, self.query)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.address + self.query

    def read(self) -> bytes:
        with self.files.open_input_stream(self.path) as stream:
            return stream.read()

    def json(self) -> dict[str, Any]:
        return records.parse(self.read(), self.name, "restore it, or make it again")

    def yaml(self) -> dict[str, Any]:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster
        return parse_yaml(self.read(), self.name, loader)

    def record(self) -> dict[str, Any]:
        """Of a record in YAML."""
        return records.check(self.yaml(), self.name, "restore it")

    def children(self) -> list["Folder"]:
        found = self.files.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return [self / info.base_name for info in sorted(found, key=lambda info: info.path)]


def open_folder(folder: Path | str) -> Folder:
    """The folder (or file) of a path or URI; OSError or ValueError where pyarrow knows no such."""
    text = str(folder)
    if "://" not in text:
        path = os.path.abspath(text)
        return Folder(fs.LocalFileSystem(), path, path)
    files, path = fs.FileSystem.from_uri(text)
    address, mark, query = text.partition("?")
    return Folder(files, path, address.rstrip("/"), mark + query)


@dataclass(frozen=True)
class Found:
    """A run or search to be read.  stamp: changes whenever its records do."""

    folder: Folder
    kind: str  # "run" or "search"
    stamp: str


def find(root: Folder) -> tuple[list[Found], list[str]]:
    """Runs and searches at or below a folder, and what else there was."""
    info = root.files.get_file_info(root.path)
    if info.type != fs.FileType.Directory:
        return [], [f"{root}: there is no such folder"]
    found, problems = _classify([root], quiet=True)
    if found:
        return found, problems
    children = [child for child in root.children() if not child.name.startswith(".")]
    for child in [c for c in children if c.name in CONTAINERS]:
        inner, reasons = find(child)
        found, problems = found + inner, problems + reasons
    rest = [c for c in children if c.name not in (*CONTAINERS, *OTHER)]
    here, reasons = _classify(rest)
    return found + here, problems + reasons


def _classify(folders: Sequence[Folder], quiet: bool = False) -> tuple[list[Found], list[str]]:
    """What each folder is, by the files in it; all of them asked for at once."""
    if not folders:
        return [], []
    files = folders[0].files
    paths = [f"{folder.path.rstrip('/')}/{name}" for folder in folders for name in ("", *PROBED)]
    infos = iter(files.get_file_info([path.rstrip("/") for path in paths]))
    found, problems = [], []
    for folder in folders:
        itself = next(infos)
        probed = {name: next(infos) for name in PROBED}
        have = {name: info for name, info in probed.items() if info.is_file}
        if itself.type != fs.FileType.Directory:
            continue
        wrong = [name for name, i in probed.items() if i.type == fs.FileType.Directory]
        if wrong:
            problems.append(f"{folder}: {wrong[0]} must be a file, but a folder is there")
            continue
        if "search.yaml" in have:
            jobs = files.get_file_info(fs.FileSelector(f"{folder.path}/jobs", allow_not_found=True))
            infos_of = [have["search.yaml"], *jobs]
            infos_of += [have["audit.json"]] if "audit.json" in have else []
            found.append(Found(folder, "search", _stamp(infos_of)))
        elif "DONE.json" in have:
            stamped = [have[name] for name in ("DONE.json", "manifest.json") if name in have]
            stamped += files.get_file_info([(one / SCORES).path for one in reports(folder)])
            found.append(Found(folder, "run", _stamp(stamped)))
        elif "FAILED.json" in have:
            problems.append(f"{folder}: failed: {_failure(folder)}")
        elif "config.yaml" in have or "manifest.json" in have:
            problems.append(f"{folder}: not finished")
        elif not quiet and BOARDS not in have:
            problems.append(f"{folder}: neither a run nor a search")
    return found, problems


def reports(run: Folder) -> list[Folder]:
    """Of a run: what ray_jobs/evaluate.py has written, in its usual place."""
    return [one for one in (run / "reports").children() if not one.name.startswith(".")]


def _stamp(infos: Iterable[fs.FileInfo]) -> str:
    lines = sorted(f"{info.base_name} {info.mtime_ns} {info.size}" for info in infos)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _failure(folder: Folder) -> str:
    try:
        return str((folder / "FAILED.json").json()["error"]).splitlines()[0]
    except Exception as error:  # whatever stands there, it is no run to read
        return f"FAILED.json cannot be read ({reason_of(error)})"


def reason_of(error: Exception) -> str:
    """Why something could not be read, in one line."""
    if isinstance(error, KeyError):
        return f"a record lacks {error}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
