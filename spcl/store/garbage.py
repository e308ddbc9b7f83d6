"""Artefacts that nothing refers to any more.  Reads records only; needs no torch.

An artefact is kept while its key stands in any record of the storage folder: a run's manifest or
DONE.json, a job of a search, a sweep; in folders that are links, too.  What such an artefact was
made from is kept with it.  A record or folder that cannot be read might name anything, so it keeps
everything; a run that has not yet written what it needs keeps every artefact of its seed.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from spcl.errors import ConfigError, DataError
from spcl.settings import read_yaml
from spcl.store import atomic, records
from spcl.store.process import is_left_behind, this_process
from spcl.store.run_folder import RunFolder

ARTEFACTS = "artefacts"
KEY_LETTERS = 16  # of a stage's key, at the end of its artefact's name
NAME = re.compile(rf"[^.].*-([0-9a-f]{{{KEY_LETTERS}}})")
KEYS = re.compile(rb"(?<![0-9a-f])[0-9a-f]{16}(?:[0-9a-f]{48})?(?![0-9a-f])")
RECORDS = ("manifest.json", "DONE.json")  # what a run refers to; and everything in a jobs/ folder
REQUESTS = ("config.yaml", "search.yaml")


@dataclass(frozen=True)
class Garbage:
    """folders: safe to delete; because: why those that nothing refers to are kept all the same."""

    folders: list[Path]
    because: list[str]

    @cached_property
    def sizes(self) -> list[int]:
        """Bytes of each folder."""
        return [RunFolder(folder).bytes for folder in self.folders]


@dataclass
class _Found:
    """What the records of a storage folder say."""

    keys: set[str] = field(default_factory=set)
    seeds: set[int] = field(default_factory=set)  # of which everything is kept
    everything: bool = False
    because: list[str] = field(default_factory=list)

    def keep_everything(self, why: str) -> None:
        self.everything = True
        self.because.append(why)

    def is_unreadable(self, path: Path | str) -> None:
        self.keep_everything(
            f"{path} cannot be read, so what it refers to is unknown; everything is kept until it "
            "is removed or restored"
        )


def find_garbage(storage: Path) -> Garbage:
    """Artefacts that no record of the storage refers to, and what killed processes have left."""
    root = storage / ARTEFACTS
    if not root.is_dir():
        return Garbage([], [])
    # Listed first: an artefact made while the records are read is not judged by them.
    entries = sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())
    found = _read_records(storage)
    artefacts = {match[1]: path for path in entries if (match := NAME.fullmatch(path.name))}
    manifests = {key: _manifest(path) for key, path in artefacts.items()}
    kept = {k for k in artefacts if k in found.keys or _seed(manifests[k]) in found.seeds}
    queue = list(kept)
    while queue:
        key = queue.pop()
        manifest = manifests[key]
        if manifest is None:
            found.keep_everything(
                f"{artefacts[key]} is in use but its manifest cannot be read, so what it was made "
                "from is unknown; everything is kept until it is removed or restored"
            )
            continue
        inputs = {value[:KEY_LETTERS] for value in manifest["inputs"].values()}
        queue += (inputs & artefacts.keys()) - kept
        kept |= inputs & artefacts.keys()
    unused = [] if found.everything else [p for key, p in artefacts.items() if key not in kept]
    return Garbage(unused + [p for p in entries if is_left_behind(p)], found.because)


def remove(storage: Path, garbage: Garbage) -> list[Path]:
    """Remove what is garbage still, now that someone has looked at it; returns what went."""
    still = set(find_garbage(storage).folders)
    gone = [folder for folder in garbage.folders if folder in still]
    for folder in gone:
        # A rename first, so that nobody ever finds half an artefact under its name; the name is
        # that of a temporary folder, which is swept up should this process die here.
        name = f".{folder.name.strip('.')}.{this_process().label}.tmp"
        with atomic.writing(folder):
            doomed = folder.rename(folder.with_name(name))
            shutil.rmtree(doomed)
    return gone


def _read_records(storage: Path) -> _Found:
    found = _Found()
    for folder, names in _folders(storage, found):
        for name in (n for n in names if n.endswith(".json")):
            path = folder / name
            try:
                text = path.read_bytes()
            except FileNotFoundError:
                continue  # the run was removed meanwhile
            except OSError:
                found.is_unreadable(path)
                continue
            found.keys |= {key.decode()[:KEY_LETTERS] for key in KEYS.findall(text)}
            if (name in RECORDS or folder.name == "jobs") and not records.is_sound(text):
                found.is_unreadable(path)
        request = next((name for name in REQUESTS if name in names), None)
        if request and not any(_refers(folder, name) for name in (*RECORDS, "jobs")):
            _keep_for(folder / request, found)
    return found


def _keep_for(request: Path, found: _Found) -> None:
    """A run or search that has asked, and not yet written which artefacts it needs."""
    try:
        values = read_yaml(request)
        seed = values.get("config", values)["seed"]
        if not isinstance(seed, int):
            raise ValueError
    except (ConfigError, ValueError, KeyError, TypeError):
        found.keep_everything(
            f"{request} has no record beside it and names no seed, so what it needs is unknown; "
            "everything is kept until its folder is removed or its run continued"
        )
        return
    found.seeds.add(seed)
    found.because.append(
        f"{request.parent} has not begun, so all artefacts of its seed {seed} are kept"
    )


def _refers(folder: Path, name: str) -> bool:
    path = folder / name
    return any(path.glob("*.json")) if path.is_dir() else path.is_file()


def _folders(storage: Path, found: _Found) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below the storage but those of the artefacts, with its files' names."""

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # removed meanwhile
            found.is_unreadable(error.filename)

    seen = set()  # links may lead back
    for folder, folders, names in os.walk(storage, onerror=failed, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if Path(folder) == storage:
            folders[:] = [name for name in folders if name != ARTEFACTS]
            for path in map(storage.joinpath, names):
                if path.is_symlink() and not path.exists():  # a run on a disk that is not there
                    found.is_unreadable(path)
        # A folder that stands where a record should be is a record that cannot be read.
        yield Path(folder), names + [name for name in folders if name.endswith(".json")]


def _manifest(artefact: Path) -> dict[str, Any] | None:
    """None: damaged, or of no version we know."""
    try:
        manifest = records.read(artefact / "manifest.json", "restore it")
    except DataError:
        return None
    inputs = manifest.get("inputs")
    is_ours = isinstance(inputs, dict) and all(isinstance(key, str) for key in inputs.values())
    return manifest if is_ours else None


def _seed(manifest: dict[str, Any] | None) -> int | None:
    seed = None if manifest is None else manifest.get("seed")
    return seed if isinstance(seed, int) else None
