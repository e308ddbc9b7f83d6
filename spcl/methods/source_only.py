"""Source-only training: cross-entropy on labelled source images, the baseline of every table."""

from dataclasses import dataclass

from spcl.data.batch import Batch
from spcl.losses.lovasz import lovasz_softmax
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Method, StageConfig, Term
from spcl.settings import setting


@dataclass(frozen=True, kw_only=True)
class SourceOnlyConfig(StageConfig):
    lovasz_weight: float = setting(0.0, "ours: a plain baseline; SDCA's code has 0.75", low=0.0)
    lovasz: str = setting(
        "image", "ours: ranks equal one; batch is SDCA's code", choices=("image", "batch")
    )

    @property
    def by_rank(self) -> bool:
        return self.lovasz == "batch" and self.lovasz_weight > 0


class SourceOnly(Method):
    Config = SourceOnlyConfig
    title = "source-only"
    domains = ("source",)

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:
        logits = self.segmentor(batch.source_image, "source").logits
        terms = {"segmentation": Term(*cross_entropy(logits, batch.source_label))}
        if self.config.lovasz_weight:
            lovasz = lovasz_softmax(logits, batch.source_label, self.config.lovasz)
            terms["lovasz"] = Term(*lovasz, self.config.lovasz_weight)
        return terms
