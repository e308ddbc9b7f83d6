"""Class-median self-training: cross-entropy on the target's own confident predictions.

Source: the last stage of SPCL (arXiv:2111.12358); thresholds are in `spcl.pseudo_label`.
"""

from dataclasses import dataclass

from spcl.data.batch import Batch
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Method, StageConfig, Term
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
    needs = frozenset({"checkpoint", "predictions"})
    domains = ("target",)
    version = 2  # the default of scale is another one, and defaults are not in keys

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:
        logits = self.segmentor(batch.target_image, "target").logits
        return {"self_training": Term(*cross_entropy(logits, batch.target_label))}
