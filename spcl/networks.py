"""Networks and methods as a configuration asks for them, new or from an artefact."""

from pathlib import Path
from typing import Any

import torch

from spcl import checkpoint
from spcl.config import Config
from spcl.data.batch import Batch, Images
from spcl.extras import EXTRAS
from spcl.methods import METHODS
from spcl.methods.base import Method
from spcl.models.segmentor import Segmentor, build_segmentor


def new_segmentor(config: Config, num_classes: int, *, weights: str | None = None) -> Segmentor:
    """The network of a configuration; `weights` in place of those that it names."""
    return build_segmentor(
        config.model.name,
        num_classes,
        norm=config.norm,
        weights=config.weights if weights is None else weights,
        input=config.input,
        aspp_branches=config.model.aspp_branches,
        absent=config.model.absent,
        mean_order=config.model.mean_order,
        mixed=(config.model.mixed_norm, config.model.mixed_statistics == "move"),
    )


def load_segmentor(config: Config, num_classes: int, artefact: Path | None) -> Segmentor:
    """The network of an artefact that holds a checkpoint, or a new one."""
    segmentor = new_segmentor(config, num_classes, weights="none" if artefact else None)
    if artefact:
        stored = checkpoint.load(artefact / "checkpoint.pt", torch.device("cpu"))
        prefix = stored.get("scored", Method.scored) + "."
        state = stored["method"]
        segmentor.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
    return segmentor


def network_state(method: Method) -> dict[str, Any]:
    """What an artefact holds of a trained method: `load_segmentor` finds the scored network."""
    stored = {"schema": checkpoint.SCHEMA, "method": method.cpu().state_dict()}
    return stored if method.scored == Method.scored else stored | {"scored": method.scored}


def new_method(config: Config, stage: str, segmentor: Segmentor) -> Method:
    """The method of a training stage, with its extras."""
    section = config.of(stage)
    method = METHODS[stage](segmentor, section)
    # After the method, so that an extra's own initial weights leave the method's as they were.
    for name in section.extras:
        method.attach(name, EXTRAS[name](segmentor, config.extra(name)))
    return method


def random_batch(config: Config, stage: str, size: int, num_classes: int) -> Batch:
    """Random numbers in the shape of a step's batch, `size` images of each stream: for timing."""
    streams = {}
    for name, reads in config.reads_of(stage).items():
        shape = getattr(config, name.split("/")[0]).size
        label = torch.randint(0, num_classes, (size, *shape), dtype=torch.uint8)
        streams[name] = Images(
            torch.randn(size, 3, *shape),
            torch.arange(size),
            **({"label": label} if "label" in reads else {}),
        )
    return Batch(streams)
