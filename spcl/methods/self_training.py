"""Class-median self-training: cross-entropy on the target's own confident predictions.

Source: the last stage of SPCL (arXiv:2111.12358); thresholds are in `spcl.data.pseudo_label`.
"""

from dataclasses import dataclass

from spcl.data.batch import Batch
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Method, Outputs, Seen, Term
from spcl.methods.passes import PseudoLabelPass
from spcl.methods.stage import StageConfig
from spcl.randomness import Step
from spcl.settings import setting


@dataclass(frozen=True, kw_only=True)
class SelfTrainingConfig(StageConfig):
    steps: int = setting(20_000, "authors' code", low=0)
    horizon: int = setting(31_250, "authors' code", low=1)
    learning_rate: float = setting(5e-4, "authors' code", low=0.0)
    batch: int | None = setting(8, "authors' code: 8 target images", low=1)
    scale: tuple[float, float] = setting(
        (1.0, 3.0),
        "authors' code: 0.5 to 1.5 times an image of 2048x1024, for crops of 1024x512",
        low=0.1,
    )


class SelfTraining(Method):
    Config = SelfTrainingConfig
    title = "self-trained"
    reads = {"target": frozenset({"image", "label"})}
    passes = (PseudoLabelPass,)
    sections = ("pseudo_label",)
    starts_trained = True
    version = 2  # the default of scale is another one, and defaults are not in keys

    def losses(self, batch: Batch, step: Step) -> Outputs:
        target = self.segment(batch.target, "target", step)
        terms = {"self_training": Term(*cross_entropy(target.logits, batch.target.label))}
        return Outputs(terms, {"target": Seen(batch.target, target, batch.target.label)})
