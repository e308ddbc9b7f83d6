"""What a method learns in one look at a whole domain, before its stage's first step.

Each look is a stored stage of its own.  Methods share those here; one that a single method needs
stands in its file.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spcl import distributed
from spcl.data.batch import Labels
from spcl.data.predictions import HISTOGRAM, PredictionSet, PredictionWriter
from spcl.data.pseudo_label import (
    CONFIDENCE_LEVELS,
    apply_thresholds,
    class_thresholds,
    confidence_histogram,
    quantize,
)
from spcl.losses.segmentation import most_likely, probability
from spcl.models.segmentor import Output, Segmentor
from spcl.store import atomic


class Pass:
    """What a method learns in one look at a whole domain, before its first step.

    It is a stored stage of its own, made by the network that the method's stage starts from.
    """

    #: Of the stage, and of what it stores.
    name: ClassVar[str]
    #: "source", whose labels are read too, or "target", whose labels nobody may see.
    domain: ClassVar[str] = "source"
    #: The method's settings that the result depends on.
    reads: ClassVar[tuple[str, ...]] = ()
    #: Raised when the same settings would give other results than before.
    version: ClassVar[int] = 1

    def __init__(self, segmentor: Segmentor, config: Any, device: torch.device, folder: Path):
        """config: the method's section; folder: of this pass's results, on every rank."""
        self.folder = folder

    def add(self, sample_id: str, image: Tensor, output: Output, label: Tensor | None) -> None:
        """One image (1, 3, H, W), what the network makes of it and, of a source image, its label.

        label  (1, H, W) trainIds, at the image's size
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Write into the folder what was learnt on all ranks, which call it once each."""
        raise NotImplementedError


class StatePass(Pass):
    """A pass that gives the method a state to start from: `Method.start_from`."""

    def result(self) -> dict[str, Tensor]:
        """Over all ranks, which call it once each."""
        raise NotImplementedError

    def finish(self) -> None:
        state = {name: tensor.cpu() for name, tensor in self.result().items()}
        if distributed.rank() == 0:
            with atomic.opened(self.folder / f"{self.name}.pt") as file:
                torch.save(state, file)


class LabelPass(Pass):
    """A pass whose stored results are a stream's labels: pseudo labels."""

    domain = "target"

    @classmethod
    def labels(cls, folder: Path, sample_ids: Sequence[str], config: Any) -> Labels:
        """The labels of the domain's samples, in their order; config: the run's `Config`."""
        raise NotImplementedError


@dataclass(frozen=True)
class PseudoLabels:
    """Stored predictions, confident ones only."""

    sample_ids: Sequence[str]
    predictions: PredictionSet
    thresholds: np.ndarray  # (K,) in integer confidences

    def __call__(self, index: int) -> Tensor:
        label, confidence = self.predictions[self.sample_ids[index]]
        return torch.from_numpy(apply_thresholds(label, confidence, self.thresholds))


class PseudoLabelPass(LabelPass):
    """Each target image's label and confidence at the input's size, and their histogram.

    A confidence is, by definition, the integer floor(p * 65535): thresholds, and what they keep,
    are exact on those integers.  Thresholds are settings of who reads them, so that a search over
    them makes no prediction twice.
    """

    name = "predictions"
    version = 2  # rounds otherwise: images in groups, softmax of the best class alone

    def __init__(self, segmentor: Segmentor, config: Any, device: torch.device, folder: Path):
        super().__init__(segmentor, config, device, folder)
        self.device, self.classes = device, segmentor.num_classes
        self.histogram = np.zeros((self.classes, CONFIDENCE_LEVELS), np.int64)
        self.writer = PredictionWriter(folder, distributed.rank())

    def add(self, sample_id: str, image: Tensor, output: Output, label: Tensor | None) -> None:
        predicted, best = most_likely(output.logits, image.shape[-2:])
        confidence = probability(output.logits, best)
        levels = quantize(confidence[0].cpu().numpy())
        labels = predicted[0].cpu().numpy()
        self.histogram += confidence_histogram(labels, levels, self.classes)
        self.writer.add(sample_id, labels, levels)

    def finish(self) -> None:
        self.writer.close()
        mine = torch.from_numpy(self.histogram).to(self.device)
        total = distributed.all_reduce(mine).cpu().numpy()
        if distributed.rank() == 0:
            buffer = io.BytesIO()
            np.save(buffer, total)
            atomic.write_bytes(self.folder / HISTOGRAM, buffer.getvalue())

    @classmethod
    def labels(cls, folder: Path, sample_ids: Sequence[str], config: Any) -> Labels:
        predictions, c = PredictionSet(folder), config.pseudo_label
        thresholds = class_thresholds(
            predictions.histogram(), cap=c.cap, quantile=c.quantile, median=c.median
        )
        return PseudoLabels(sample_ids, predictions, thresholds)
