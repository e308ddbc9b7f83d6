"""Networks and methods as a configuration asks for them, new or from an artefact."""

from pathlib import Path
from typing import Any

import torch

from spcl.configuration.config import Config
from spcl.data.batch import Batch, Images, Pair
from spcl.data.pairs import PairCrops
from spcl.data.reads import domain_of
from spcl.extras import EXTRAS
from spcl.methods import METHODS
from spcl.methods.base import Method
from spcl.models.segmentor import Segmentor, build_segmentor
from spcl.store import checkpoint


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
    streams: dict[str, Images | Pair] = {}
    for name, read in config.reads_of(stage).items():
        if isinstance(read, PairCrops):
            streams[name] = _random_pair(read, size)
        else:
            scene = getattr(config, domain_of(name)).shown
            streams[name] = _random_images(read, size, scene, num_classes)
    return Batch(streams)


def _random_images(read: frozenset[str], size: int, scene: tuple[int, int], classes: int) -> Images:
    channels = {"image": 3, "previous": 3, "flow": 2}
    parts = {
        name: torch.randn(size, count, *scene)
        for name, count in channels.items()
        if name in read | {"image"}
    }
    if "label" in read:
        parts["label"] = torch.randint(0, classes, (size, *scene), dtype=torch.uint8)
    return Images(position=torch.arange(size), **parts)


def _random_pair(crops: PairCrops, size: int) -> Pair:
    """Of crops that share all they show, the most that a method may have to work on."""
    first, second = torch.randn(2, size, 3, *crops.size)
    position = torch.arange(size)
    boxes = torch.tensor([0, 0, *crops.size]).repeat(size, 2, 1)
    flips = torch.zeros(size, 2, dtype=torch.bool)
    return Pair(Images(first, position), Images(second, position), boxes, flips, position)
