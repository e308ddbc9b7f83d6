"""Checkpoints of a stage in progress: method state, optimizers, position in the streams.

Written atomically by rank 0 into the run's own folder, each with the sha256 of its file; resuming
takes the newest one that is whole.  Loaded with `weights_only=True`.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from spcl import distributed
from spcl.store import atomic, lease

SCHEMA = 1
KEPT = 2  # the newest, and one before it should the disk have lost the newest


class Checkpoints:
    """The checkpoints of one stage of one run, and the stage's clock (rank 0 only).

    before  device-seconds of earlier launches, up to the checkpoint that `newest` gave; None where
            it does not say.  What they took beyond it is lost with its steps.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.before: float | None = 0.0
        self._started = time.perf_counter()

    def seconds(self) -> float | None:
        """Device-seconds that the stage has taken so far, in all launches; None: unknown."""
        mine = (time.perf_counter() - self._started) * distributed.world_size()
        return None if self.before is None else self.before + mine

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Store the state reached after `step` steps (rank 0 only)."""
        with atomic.folder(self.folder / f"step-{step:08d}") as temporary:
            with atomic.opened(temporary / "state.pt") as file:
                torch.save(state, file)
            digest = atomic.sha256(temporary / "state.pt")
            manifest = {"schema": SCHEMA, "step": step, "sha256": digest}
            manifest["device_seconds"] = self.seconds()
            atomic.write_json(temporary / "manifest.json", manifest)
        for old in self._folders()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self, limit: int) -> Path | None:
        """The newest whole checkpoint's file of at most `limit` steps; damaged ones don't count."""
        for folder in reversed(self._folders()):
            try:
                manifest = json.loads((folder / "manifest.json").read_text())
                usable = manifest["schema"] == SCHEMA and manifest["step"] <= limit
                if usable and atomic.sha256(folder / "state.pt") == manifest["sha256"]:
                    self.before = manifest.get("device_seconds")
                    return folder / "state.pt"
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    def clear(self) -> None:
        """Forget them; called once the stage's artefact is published."""
        lease.check(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def load(path: Path, device: torch.device) -> dict[str, Any]:
    return torch.load(path, map_location=device, weights_only=True)
