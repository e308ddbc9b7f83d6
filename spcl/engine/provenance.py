"""What a number came from: code, data, settings, hardware; and that all ranks agree on it."""

import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from spcl import distributed
from spcl.configuration.config import Config
from spcl.data.shards import ShardSet
from spcl.engine.commit import commit
from spcl.engine.stages import Stage
from spcl.errors import UserError
from spcl.methods import METHODS

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "segmentation-models-pytorch",
    "numpy",
    "pyarrow",
    "pillow",
    "ray",
    "optuna",
)


def describe(
    config: Config, stages: Sequence[Stage], data: Mapping[str, ShardSet], name: str
) -> dict[str, Any]:
    """The run's manifest: what ran, on what, and how its checkpoint was chosen."""
    cuda = torch.cuda.is_available()
    return {
        "name": name,
        "benchmark": config.benchmark,
        "method": config.method,
        "compat": config.compat,
        "spec": any(METHODS[stage].spec for stage in config.stages),
        "recalled": config.recalled(),  # defaults in force that no source was read for
        "backbone": config.model.name,
        "licence": config.model.spec.licence,  # of the network; "": nothing beyond this project's
        "evaluation_size": list(config.evaluation.size),
        "seed": config.seed,
        "stages": [
            {"title": s.title, "kind": s.kind, "key": s.key, "settings": s.settings_key}
            for s in stages
        ],
        "data": {
            role: {"name": s.name, "fingerprint": s.fingerprint, "samples": len(s)}
            for role, s in data.items()
        },
        **config.chosen_by.in_manifest(),
        "protocol": config.evaluation.protocol,
        "code": code_version(),
        "commit": commit().hash,
        "dirty": commit().dirty,  # None: unknown
        "hardware": {
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
            "cores": os.cpu_count(),
            "workers": distributed.world_size(),
            "threads": config.train.threads,
        },
        "versions": versions(),
        "started": time.time(),
    }


def check_ranks_agree(**values: str) -> None:
    """Raise UserError on every rank unless all ranks hold the same values."""
    everyone = distributed.gather(values)
    for rank, other in enumerate(everyone):
        for what, value in other.items():
            if value != everyone[0][what]:
                raise UserError(
                    f"every rank must run the same job, but rank {rank} has another {what} "
                    f"({value}) than rank 0 ({everyone[0][what]})"
                )


@cache
def code_version() -> str:
    """sha256 over spcl's sources: says which code ran, in a git checkout or out of it."""
    root = Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that a result may depend on; None where one is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found | {"torch": torch.__version__}  # names its build, too
