"""Experiment folders made by hand, without a search: records, request, and networks if wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from conftest import MINI

from spcl.configuration.config import load
from spcl.engine.artefacts import MANIFEST
from spcl.models.segmentor import build_segmentor
from spcl.store import atomic

RUNGS = ("spcl 1/4", "spcl 1/2", "spcl")
REFERENCE_ARTEFACT = "adversarial-reference"
SPACE = {
    "spcl.temperature": {"low": 0.05, "high": 200.0, "log": True},
    "spcl.contrast_weight": {
        "low": 0.01,
        "high": 10.0,
        "log": True,
        "relative_to": "spcl.temperature",
    },
    "spcl.source_mask": {"choices": ["gt", "agree"]},
}
REFERENCE = {
    "infomax": 0.0,
    "nuclear": 0.0,
    "consistency": 0.0,
    "density": 0.0,
    "source_val": 0.5,
    "temperature": 1.0,
    "classes_predicted": 1.0,
    "finite": True,
    "few_label": {"value": 0.1, "low": 0.0, "high": 0.2, "images": 4},
    "target_oracle": 0.1,
    "sd": {"infomax": 1.0, "nuclear": 1.0, "consistency": 1.0, "density": 1.0},
}


def validators(score: float, **values: Any) -> dict[str, Any]:
    """Validators whose label-free score is `score`."""
    same = {name: score for name in ("infomax", "nuclear", "consistency", "density")}
    return {**REFERENCE, "sd": None} | same | values


def record(configuration: int, rung: int, values: Mapping[str, Any], **other: Any) -> dict:
    temperature, ratio = 0.1 * (configuration + 2), 2.0 ** (3 * configuration % 8 - 3)
    return {
        "schema": 1,
        "configuration": configuration,
        "rung": rung,
        "status": "done",
        "reason": None,
        "attempts": 1,
        "parameters": {
            "spcl.temperature": temperature,
            "spcl.contrast_weight/relative": ratio,
            "spcl.source_mask": ("gt", "agree")[configuration % 2],
        },
        "settings": {
            "spcl.temperature": temperature,
            "spcl.contrast_weight": temperature * ratio,
            "spcl.source_mask": ("gt", "agree")[configuration % 2],
        },
        "artefact": f"spcl-{configuration}-{rung}",
        "steps": 300,
        "shared_steps": {},
        "device_seconds": 10.0 + configuration,
        "validators": dict(values),
        "host": "here",
        "finished": "2026-01-01T00:00:00",
    } | other


def failure(configuration: int, rung: int, reason: str) -> dict:
    other = {"status": "failed", "reason": reason, "artefact": None, "attempts": 3}
    return record(configuration, rung, {}, **other)


def make(folder: Path, records: list[dict], *settings: str, **request: Any) -> Path:
    """An experiment folder <folder>/searches/<name> with these records."""
    experiment = folder / "searches" / request.pop("name", "made")
    config = load("streets", "spcl", None, [*MINI, *settings])
    asked = {
        "schema": 1,
        "benchmark": "streets",
        "method": "spcl",
        "objective": "label_free",
        "trials": 16,
        "eta": 2,
        "seed": 0,
        "sampler": "tpe",
        "holdout": 2,
        "settings": [*MINI, *settings],
        "space": SPACE,
        "config": config.as_dict(),
        "data": str(folder / "data"),
        "storage": str(folder),
        "rungs": [{"name": name, "stages": ["adversarial", "spcl"]} for name in RUNGS],
        "label_budget": 0,
        "default": 0,
    } | request
    atomic.write_bytes(experiment / "search.yaml", yaml.safe_dump(asked).encode())
    reference = record(-1, -1, REFERENCE, artefact=REFERENCE_ARTEFACT, parameters={}, settings={})
    atomic.write_json(experiment / "jobs" / "reference.json", reference)
    for made in records:
        name = f"{made['configuration']:04d}-{made['rung']}.json"
        atomic.write_json(experiment / "jobs" / name, made)
    return experiment


def make_artefacts(storage: Path, names: list[str]) -> None:
    """A random network of its own in each artefact."""
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        network = build_segmentor("tiny", 19, norm="domain", weights="none")
        state = {f"segmentor.{key}": value for key, value in network.state_dict().items()}
        with atomic.folder(storage / "artefacts" / name) as folder:
            torch.save({"schema": 1, "method": state}, folder / "checkpoint.pt")
            files = {"checkpoint.pt": atomic.sha256(folder / "checkpoint.pt")}
            atomic.write_json(folder / MANIFEST, {"schema": 1, "key": name, "files": files})
