"""Checkpoints of a stage in progress: method state, optimizers, position in the streams.

Written atomically by rank 0 into the run's own folder, each with the sha256 of its file; resuming
takes the newest one that is whole.  Loaded with `weights_only=True`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from spcl import atomic, lease

SCHEMA = 1
KEPT = 2  # the newest, and one before it should the disk have lost the newest


class Checkpoints:
    """The checkpoints of one stage of one run."""

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Store the state reached after `step` steps (rank 0 only)."""
        with atomic.folder(self.folder / f"step-{step:08d}") as temporary:
            torch.save(state, temporary / "state.pt")
            digest = atomic.sha256(temporary / "state.pt")
            atomic.write_json(
                temporary / "manifest.json", {"schema": SCHEMA, "step": step, "sha256": digest}
            )
        for old in self._folders()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self, limit: int) -> Path | None:
        """The newest whole checkpoint's file of at most `limit` steps; damaged ones don't count."""
        for folder in reversed(self._folders()):
            try:
                manifest = json.loads((folder / "manifest.json").read_text())
                usable = manifest["schema"] == SCHEMA and manifest["step"] <= limit
                if usable and atomic.sha256(folder / "state.pt") == manifest["sha256"]:
                    return folder / "state.pt"
            except (OSError, ValueError, KeyError):
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
