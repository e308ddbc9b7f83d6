"""SDCA: pull every pixel, of both domains, to the source distribution of its class.

Source: Li et al. 2021, arXiv:2105.05013.  A class is a Gaussian, not a prototype, on two levels:
backbone features and logits.  Its text was not read: defaults follow the authors' code where they
are numbers, and its quirks are switches.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from spcl.data.batch import Batch
from spcl.data.labels import IGNORE_INDEX
from spcl.losses.contrast import downsample_labels
from spcl.losses.gaussian import gaussian_contrast
from spcl.losses.lovasz import lovasz_softmax
from spcl.losses.segmentation import cross_entropy
from spcl.memory.moments import ClassMoments, MomentsAccumulator, update_moments
from spcl.methods.base import Method, Outputs, Seen, Term
from spcl.methods.passes import StatePass
from spcl.methods.stage import StageConfig
from spcl.models.segmentor import ABSENT_LOGIT, Output, Segmentor
from spcl.precision import at_least_float32
from spcl.randomness import Step
from spcl.settings import setting


@dataclass(frozen=True, kw_only=True)
class SDCAConfig(StageConfig):
    temperature: float = setting(100.0, "authors' code", low=1e-3)
    feature_weight: float = setting(1.0, "authors' code: of the backbone's level", low=0.0)
    output_weight: float = setting(1.0, "authors' code: of the logits' level; 0 is off", low=0.0)
    lovasz_weight: float = setting(0.75, "authors' code", low=0.0)
    delta: float = setting(
        0.9, "authors' code: confidence of target pixels that count", low=0.0, high=1.0
    )
    moments: str = setting(
        "cumulative",
        "authors' code: all pixels so far weigh the same; ema forgets",
        choices=("cumulative", "ema"),
    )
    moments_momentum: float = setting(
        0.999, "ours: weighs the old value, read with moments=ema", low=0.0, below=1.0
    )
    # Switches; the second choice is what the authors' code does.
    moments_on: str = setting(
        "normalized",
        "ours: of what is compared; raw variances are in the features' own units, which a low "
        "temperature bears with cov_normalize=l2_rows alone",
        choices=("normalized", "raw"),
    )
    cov_normalize: str = setting("none", "ours: the bound holds", choices=("none", "l2_rows"))
    sync: bool = setting(True, "ours: distributions are equal on all ranks")
    delta_on: str = setting(
        "prob", "authors' code since 2021-07-07; logits before", choices=("prob", "logits")
    )
    lovasz: str = setting("image", "ours: ranks equal one", choices=("image", "batch"))

    @property
    def by_rank(self) -> tuple[str, ...]:
        of_batch = self.lovasz == "batch" and self.lovasz_weight > 0
        return (*(() if self.sync else ("sync",)), *(("lovasz",) if of_batch else ()))


def levels(output: Output) -> dict[str, Tensor]:
    """The two maps whose classes have distributions, (B, D, h, w) and (B, K, h, w).

    A class without an output has no logit, so its channel is 0 there: no direction has any of it.
    """
    absent = output.logits.detach() <= ABSENT_LOGIT / 2  # half: whatever its type rounds to
    return {"feature": output.features, "output": output.logits.masked_fill(absent, 0)}


def confident_labels(logits: Tensor, delta: float, delta_on: str) -> Tensor:
    """(B, h, w): the predicted class where its probability (or logit) is at least delta, else 255.

    logits (B, K, h, w), whose gradient ends here.
    """
    scores = at_least_float32(logits.detach())
    scores, labels = (scores.softmax(1) if delta_on == "prob" else scores).max(1)
    return torch.where(scores >= delta, labels, IGNORE_INDEX)


class MomentsPass(StatePass):
    """Mean, variance and count of each class over the whole source, on both levels."""

    name = "moments"
    version = 2  # rounds otherwise: sums in chunks, images in groups
    reads = ("moments_on",)

    def __init__(
        self, segmentor: Segmentor, config: SDCAConfig, device: torch.device, folder: Path
    ):
        super().__init__(segmentor, config, device, folder)
        sizes = {"feature": segmentor.feature_dimension, "output": segmentor.num_classes}
        unit = config.moments_on == "normalized"
        self.accumulators = {
            name: MomentsAccumulator(segmentor.num_classes, size, unit=unit, device=device)
            for name, size in sizes.items()
        }

    def add(self, sample_id: str, image: Tensor, output: Output, label: Tensor | None) -> None:
        assert label is not None, "a source has labels"
        small = downsample_labels(label, output.features.shape[-2:])
        for name, level in levels(output).items():
            self.accumulators[name].add(level, small)

    def result(self) -> dict[str, Tensor]:
        """{feature,output}_{mean,variance}, (K, D) and (K, K); count (K,)."""
        state = {}
        for name, accumulator in self.accumulators.items():
            accumulator.reduce()
            state[f"{name}_mean"], state[f"{name}_variance"], state["count"] = accumulator.result()
        return state


class SDCA(Method):
    Config = SDCAConfig
    config: SDCAConfig
    title = "adapted"
    passes = (MomentsPass,)
    starts_trained = True
    version = 2  # rounds otherwise: the contrast's gradient

    def __init__(self, segmentor: Segmentor, config: SDCAConfig):
        super().__init__(segmentor, config)
        sizes = {"feature": segmentor.feature_dimension, "output": segmentor.num_classes}
        momentum = config.moments_momentum if config.moments == "ema" else None
        unit = config.moments_on == "normalized"
        self.moments = torch.nn.ModuleDict(
            {
                name: ClassMoments(segmentor.num_classes, size, momentum=momentum, unit=unit)
                for name, size in sizes.items()
            }
        )

    def _levels(self) -> dict[str, ClassMoments]:
        """By name, with the type that a ModuleDict forgets."""
        return cast(dict[str, ClassMoments], dict(self.moments.items()))

    def start_from(self, state: dict[str, Tensor]) -> None:
        for name, moments in self._levels().items():
            moments.load(state[f"{name}_mean"], state[f"{name}_variance"], state["count"])

    def losses(self, batch: Batch, step: Step) -> Outputs:
        c = self.config
        source = self.segment(batch.source, "source", step)
        target = self.segment(batch.target, "target", step)
        source_labels = downsample_labels(batch.source.label, source.features.shape[-2:])
        target_labels = confident_labels(target.logits, c.delta, c.delta_on)
        source_maps, target_maps = levels(source), levels(target)

        if self.training:  # before the loss
            maps = [source_maps[name].detach() for name in self.moments]
            update_moments(list(self._levels().values()), maps, source_labels, sync=c.sync)
        terms = {"segmentation": Term(*cross_entropy(source.logits, batch.source.label))}
        if c.lovasz_weight:
            lovasz = lovasz_softmax(source.logits, batch.source.label, c.lovasz)
            terms["lovasz"] = Term(*lovasz, c.lovasz_weight)
        for name, moments in self._levels().items():
            mean, variance = moments.keys(unit_rows=c.cov_normalize == "l2_rows")
            keys = mean, variance, moments.seen, c.temperature
            weight = getattr(c, f"{name}_weight")
            on_source = gaussian_contrast(source_maps[name], source_labels, *keys)
            on_target = gaussian_contrast(target_maps[name], target_labels, *keys)
            terms[f"source_{name}"] = Term(*on_source, weight)
            terms[f"target_{name}"] = Term(*on_target, weight)
        seen = {
            "source": Seen(batch.source, source, batch.source.label),
            "target": Seen(batch.target, target, target_labels),
        }
        return Outputs(terms, seen)
