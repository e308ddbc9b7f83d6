"""Feature distance: on things, the features stay close to those that the network started from.

Source: Hoyer et al. 2022, arXiv:2111.14887: what ImageNet knows of things is not to be forgotten.
Letters: B batch, D feature dimension, h w feature grid, H W image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl.data.batch import Batch
from spcl.data.labels import IGNORE_INDEX
from spcl.extras.base import Extra, ExtraConfig
from spcl.methods.base import Method, Seen, Term
from spcl.methods.teacher import new_teacher
from spcl.models.segmentor import Segmentor
from spcl.precision import at_least_float32
from spcl.randomness import Step
from spcl.settings import setting

CODE = "DAFormer's code"


@dataclass(frozen=True, kw_only=True)
class FeatureDistanceConfig(ExtraConfig):
    weight: float = setting(0.005, f"{CODE}: lambda", low=0.0)
    classes: tuple[int, ...] = setting(
        (6, 7, 11, 12, 13, 14, 15, 16, 17, 18), f"{CODE}: trainIds of things", low=0
    )
    majority: float = setting(
        0.75, f"{CODE}: a cell is of a class that has this share of its pixels", low=0.5, high=1.0
    )


class FeatureDistance(Extra):
    """The reference is the network as the stage starts: of a first stage, pre-trained weights."""

    Config = FeatureDistanceConfig
    config: FeatureDistanceConfig
    reads = {"source": frozenset({"image", "label"})}
    needs_pretrained = True

    def __init__(self, segmentor: Segmentor, config: FeatureDistanceConfig):
        super().__init__(segmentor, config)
        self.reference = new_teacher(segmentor)

    def forward(
        self, method: Method, batch: Batch, seen: Mapping[str, Seen], step: Step
    ) -> dict[str, Term]:
        source = seen["source"]
        with torch.no_grad():
            before = self.reference(source.images.image, "source").features
        features = source.output.features
        assert source.label is not None, "a source has labels"
        cells = cells_of(
            source.label, features.shape[-2:], self.config.classes, self.config.majority
        )
        return {"distance": Term(*distance(features, before, cells), self.config.weight)}


def cells_of(
    label: Tensor, size: tuple[int, ...], classes: tuple[int, ...], majority: float
) -> Tensor:
    """(B, h, w) bool: cells of which one of the classes has `majority` of the pixels or more.

    label  (B, H, W); void is no class, but its pixels are counted
    """
    height, width = size
    found = torch.zeros(len(label), height, width, dtype=torch.bool, device=label.device)
    for kind in classes:  # one at a time: all at once would be a map of floats per class
        if kind != IGNORE_INDEX:
            share = F.adaptive_avg_pool2d((label == kind).float()[:, None], (height, width))[:, 0]
            found |= share >= majority
    return found


def distance(features: Tensor, before: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over (B, h, w) cells of |features - before|, and their number.

    features, before  (B, D, h, w); a cell without any distance gets no gradient
    """
    apart = at_least_float32(features) - at_least_float32(before)
    squares = apart.square().sum(1)
    # The root has no gradient at 0, where a run starts: there, as outside of cells, it is left out.
    counts = cells & (squares > 0)
    root = torch.where(counts, squares, 1.0).sqrt()
    return torch.where(counts, root, 0.0 * squares).sum(), cells.sum()
