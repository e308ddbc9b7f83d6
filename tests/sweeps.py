"""Sweeps for tests: a small file, its cells, and records made by hand."""

from pathlib import Path

import yaml
from conftest import MINI

from spcl.configuration.layers import CONFIGS
from tune.sweeping.grid import Sweep, resolve

COMPONENTS = CONFIGS / "sweeps/components.yaml"
TWO_ROWS = {
    "title": "Two",
    "rows": [
        {"name": "baseline", "settings": {"stages": ["adversarial"]}},
        {"name": "adapted", "settings": {"stages": ["adversarial", "spcl"]}},
    ],
}


def written(folder: Path, values: dict, name: str = "two.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values, allow_unicode=True))
    return path


def resolved(path: Path, data: Path, storage: Path, seeds=(0,), scale="full", *more: str) -> Sweep:
    settings = [*MINI, *more]
    return resolve(path, None, seeds, scale, settings, data, storage, lambda text: None)


def call(path: Path, data: Path, storage: Path, *more: object) -> list[str]:
    places = ["--data", data, "--storage", storage, "--name", "s", "--workers", 0]
    return [str(part) for part in (path, *places, *more, *MINI)]


def artefacts(storage: Path) -> dict[str, int]:
    """Time of the last change of every artefact by its folder's name."""
    return {p.name: p.stat().st_mtime_ns for p in (storage / "artefacts").iterdir()}


def run_folders(storage: Path) -> list[str]:
    return sorted(path.parent.name for path in storage.glob("*/config.yaml"))


class Store:
    """Which stages are stored, and by whose work, without making any."""

    def __init__(self):
        self.made: list[str] = []

    def has(self, stage) -> bool:
        return stage.key in self.made

    def make(self, work) -> None:
        for stage in work.stages:
            assert all(s.key in self.made for s in stage.inputs.values()), "an input is missing"
            self.made.append(stage.key)


def record(cell, value: float, tail: float) -> None:
    """A finished run with these means, as fractions."""
    means = {
        "mIoU": {"value": value, "classes": 19},
        "mIoU-tail": {"value": tail, "classes": 11},
    }
    other = {"mIoU": {"value": 0.99, "classes": 19}, "mIoU-tail": {"value": 0.99, "classes": 11}}
    rows = [{"stage": name, "means": other} for name in cell.config.stages[:-1]]
    cell.run.finish({"table": [*rows, {"stage": cell.config.stages[-1], "means": means}]})


VALUES = {
    "baseline": (0.40, 0.42, 0.44),
    "source contrast": (0.41, 0.43, 0.48),
    "both contrasts": (0.50, 0.50, 0.50),
}


def handmade_sweep(data: Path, storage: Path) -> Sweep:
    """Three rows of the component table with three seeds, one with one seed, one with none."""
    made = resolved(COMPONENTS, data, storage, (0, 1, 2))
    for row, values in VALUES.items():
        for seed, value in enumerate(values):
            record(made.cells[row, seed], value, value / 2)
    record(made.cells["all", 1], 0.521, 0.3)
    return made
