"""The SPCL recipe in a hundred steps, and what two runs of it have in common."""

import json
from pathlib import Path

import numpy as np
import torch
from conftest import MINI

from spcl.store.run_folder import RunFolder, read_confusions

ADAPTATION_STEPS = 60  # enough for a test to see the stage under way and stop it there
RECIPE = (
    *MINI,
    "adversarial.steps=10",
    f"spcl.steps={ADAPTATION_STEPS}",
    "train.checkpoint_every=10",
)


TRAIN = ("python", "ray_jobs/train.py")


def arguments(data: Path, storage: Path, name: str, *more: str) -> list[str]:
    """A command line after its program; settings in `more` win over RECIPE's."""
    return ["--data", str(data), "--storage", str(storage), "--name", name, *RECIPE, *more]


def states(storage: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every stored checkpoint, by artefact and name."""
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(storage.glob("artefacts/*/checkpoint.pt"))
        for name, tensor in torch.load(path, weights_only=True)["method"].items()
    }


def confusions(run: RunFolder) -> dict[str, np.ndarray]:
    """Per-image confusion matrices of each stage."""
    paths = sorted((run.folder / "evaluations").glob("*.parquet"))
    return {path.stem: read_confusions(path)[1] for path in paths}


def assert_same_bits(one: RunFolder, other: RunFolder) -> None:
    """All networks and all confusion matrices of two finished runs are equal."""
    left, right = states(one.folder.parent), states(other.folder.parent)
    assert len({name.split("/")[0] for name in left}) == 3 and left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    left, right = confusions(one), confusions(other)
    assert len(left) == 3 and left.keys() == right.keys()
    assert all(np.array_equal(left[stage], right[stage]) for stage in left)


def messages(run: RunFolder) -> list[str]:
    """What the run said to people: stages started, reused, resumed."""
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["message"] for line in lines if '"message"' in line]


def reached(run: RunFolder, stage: str, step: int) -> bool:
    """Has the run logged this step of a stage, or a later one?"""
    return any(r["stage"] == stage and r["step"] >= step for r in run.metrics())
