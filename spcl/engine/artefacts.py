"""The store of finished stages: a folder each, named by key, verified on use.

<storage>/artefacts/<title>-<key>/manifest.json   what made it, each file's sha256, its own checksum
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spcl import distributed
from spcl.engine.stages import Stage
from spcl.errors import DataError
from spcl.store import atomic, records
from spcl.store.process import is_left_behind, this_process

COST_SCHEMA = 1
MANIFEST = "manifest.json"
COST = "cost.json"  # device-seconds; no part of the result, so the manifest does not list it


class ArtefactStore:
    def __init__(self, storage: Path):
        self.root = storage / "artefacts"

    def path(self, stage: Stage) -> Path:
        return self.root / stage.folder

    def has(self, stage: Stage) -> bool:
        """Is the stage finished?  Rank 0 looks; all ranks agree."""
        return distributed.gather((self.path(stage) / MANIFEST).exists())[0]

    def open(self, stage: Stage) -> Path:
        """The artefact's folder, every file checked.  DataError names a damaged one."""
        folder = self.path(stage)
        if verify(folder)["key"] != stage.key:
            raise DataError(f"{folder} holds another stage's result; remove it and run again")
        return folder

    @contextmanager
    def write(
        self, stage: Stage, seconds: Callable[[], float | None] = lambda: None
    ) -> Iterator[Path]:
        """Yield one temporary folder to all ranks; it becomes the artefact when all are done.

        seconds  device-seconds that the stage has taken, if known; stored beside the result
        """
        # The name carries rank 0's process, so a killed launch and its successor never share it.
        name = distributed.gather(f".{stage.folder}.{this_process().label}.tmp")[0]
        temporary = self.root / name
        if distributed.rank() == 0:
            self._sweep()
            atomic.mkdir(temporary)
        distributed.barrier()
        try:
            yield temporary
            distributed.barrier()
            if distributed.rank() == 0:
                self._publish(stage, temporary, seconds())
            distributed.barrier()
        finally:
            if distributed.rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)

    def cost(self, stage: Stage) -> float | None:
        """Device-seconds of a stage and all it was made from; None where one is unknown."""
        made_from = {s.key: s for s in _ancestry(stage)}.values()
        seconds = [_seconds(self.path(s) / COST) for s in made_from]
        known = [s for s in seconds if s is not None]
        return sum(known) if len(known) == len(seconds) else None

    def _sweep(self) -> None:
        """Remove what killed processes of this host left half-written."""
        for leftover in filter(is_left_behind, self.root.glob(".*.tmp")):
            shutil.rmtree(leftover, ignore_errors=True)

    def _publish(self, stage: Stage, temporary: Path, seconds: float | None) -> None:
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        manifest = {
            "key": stage.key,
            "stage": stage.title,
            "kind": stage.kind,
            "version": stage.version,
            "seed": stage.seed,
            "settings": stage.settings,
            "data": stage.data,
            "inputs": {role: s.key for role, s in stage.inputs.items()},
            "files": {str(p.relative_to(temporary)): atomic.sha256(p) for p in files},
        }
        records.write(temporary / MANIFEST, manifest)
        if seconds is not None:
            cost = {"schema": COST_SCHEMA, "device_seconds": seconds}
            atomic.write_json(temporary / COST, cost)
        atomic.publish(temporary, self.path(stage))


def _ancestry(stage: Stage) -> Iterator[Stage]:
    yield stage
    for needed in stage.inputs.values():
        yield from _ancestry(needed)


def _seconds(path: Path) -> float | None:
    """What a cost.json says; None where it can't be read: it is no part of a result."""
    try:
        seconds = json.loads(path.read_bytes())["device_seconds"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    known = isinstance(seconds, (int, float)) and 0 <= seconds < math.inf
    return seconds if known else None


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of an artefact, every file checked.  DataError names a damaged one."""
    way_out = f"remove the folder {folder} and run the same command again"
    manifest = records.read(folder / MANIFEST, way_out)
    if not isinstance(manifest.get("files"), dict) or "key" not in manifest:
        raise DataError(f"{folder / MANIFEST} is no manifest of an artefact; {way_out}")
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file() or atomic.sha256(path) != expected:
            raise DataError(
                f"{path} is damaged or missing: its sha256 is not the one in {MANIFEST}; {way_out}"
            )
    return manifest
