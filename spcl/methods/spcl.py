"""SPCL: pull every pixel's feature, of both domains, to the source prototype of its class.

Source: Xie et al. 2021, arXiv:2111.12358.  Defaults follow the paper; the temperature, whose value
the readable text lacks, follows the authors' code, which divides the cosine by 100.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spcl.data.batch import Batch
from spcl.data.labels import IGNORE_INDEX
from spcl.losses.contrast import downsample_labels, pixel_contrast
from spcl.losses.segmentation import cross_entropy
from spcl.memory.prototypes import PrototypeAccumulator, PrototypeBank
from spcl.methods.base import Method, Outputs, Seen, Term
from spcl.methods.passes import PseudoLabelPass, StatePass
from spcl.methods.stage import StageConfig
from spcl.models.segmentor import Output, Segmentor
from spcl.randomness import Step
from spcl.settings import setting


@dataclass(frozen=True, kw_only=True)
class SPCLConfig(StageConfig):
    prototype_momentum: float = setting(
        0.1, "paper: alpha, weighs the old value", low=0.0, high=1.0
    )
    contrast_weight: float = setting(1.0, "paper: lambda", low=0.0)
    temperature: float = setting(100.0, "authors' code; the paper's text lost it", low=1e-3)
    source_contrast: bool = setting(True, "paper")
    target_contrast: bool = setting(True, "paper")
    # Switches; the second choice is what the authors' code does.
    absent: str = setting("keep", "paper; a class not in the batch", choices=("keep", "decay"))
    sync: bool = setting(True, "ours: prototypes are equal on all ranks")
    normalize_keys: bool = setting(True, "ours: the paper's unit sphere, for keys too")
    source_mask: str = setting("gt", "paper; source pixels that count", choices=("gt", "agree"))
    init: str = setting("per_pixel", "paper; first mean", choices=("per_pixel", "per_image"))
    seg_temperature: float = setting(
        1.0, "paper: none; 1.8 in the authors' code: divides logits before cross-entropy", low=1e-3
    )

    @property
    def by_rank(self) -> tuple[str, ...]:
        return () if self.sync else ("sync",)


def source_mask(output: Output, labels: Tensor, rule: str) -> Tensor:
    """Labels (B, h, w) on the feature grid; "agree" ignores wrongly predicted pixels."""
    small = downsample_labels(labels, output.features.shape[-2:])
    if rule == "agree":
        small = torch.where(output.logits.detach().argmax(1) == small, small, IGNORE_INDEX)
    return small


class PrototypePass(StatePass):
    """The mean unit feature of each class over the whole source."""

    name = "prototypes"
    version = 2  # rounds otherwise: sums in chunks, images in groups
    reads = ("init", "source_mask")

    def __init__(
        self, segmentor: Segmentor, config: SPCLConfig, device: torch.device, folder: Path
    ):
        super().__init__(segmentor, config, device, folder)
        self.mask = config.source_mask
        self.accumulator = PrototypeAccumulator(
            segmentor.num_classes, segmentor.feature_dimension, init=config.init, device=device
        )

    def add(self, sample_id: str, image: Tensor, output: Output, label: Tensor | None) -> None:
        assert label is not None, "a source has labels"
        self.accumulator.add(output.features, source_mask(output, label, self.mask))

    def result(self) -> dict[str, Tensor]:
        """mean (K, D), seen (K,)."""
        self.accumulator.reduce()
        mean, seen = self.accumulator.result()
        return {"mean": mean, "seen": seen}


class SPCL(Method):
    Config = SPCLConfig
    config: SPCLConfig
    title = "adapted"
    reads = {
        "source": frozenset({"image", "label"}),
        "target": frozenset({"image", "label"}),
    }
    passes = (PrototypePass, PseudoLabelPass)
    sections = ("pseudo_label",)
    starts_trained = True
    version = 2  # rounds otherwise: the contrast's gradient

    def __init__(self, segmentor: Segmentor, config: SPCLConfig):
        super().__init__(segmentor, config)
        self.prototypes = PrototypeBank(
            segmentor.num_classes,
            segmentor.feature_dimension,
            momentum=config.prototype_momentum,
            absent=config.absent,
            sync=config.sync,
            normalize_keys=config.normalize_keys,
        )

    def start_from(self, state: dict[str, Tensor]) -> None:
        self.prototypes.load(state["mean"], state["seen"])

    def losses(self, batch: Batch, step: Step) -> Outputs:
        c = self.config
        source = self.segment(batch.source, "source", step)
        target = self.segment(batch.target, "target", step)
        source_labels = source_mask(source, batch.source.label, c.source_mask)
        target_labels = downsample_labels(batch.target.label, target.features.shape[-2:])

        if self.training:
            self.prototypes.update(source.features.detach(), source_labels)  # before the loss
        keys = self.prototypes.keys(), self.prototypes.seen, c.temperature
        on_source = pixel_contrast(source.features, source_labels, *keys)
        on_target = pixel_contrast(target.features, target_labels, *keys)
        segmentation = cross_entropy(source.logits / c.seg_temperature, batch.source.label)
        terms = {
            "segmentation": Term(*segmentation),
            "source_contrast": Term(*on_source, c.contrast_weight * c.source_contrast),
            "target_contrast": Term(*on_target, c.contrast_weight * c.target_contrast),
        }
        seen = {
            "source": Seen(batch.source, source, batch.source.label),
            "target": Seen(batch.target, target, batch.target.label),
        }
        return Outputs(terms, seen)
