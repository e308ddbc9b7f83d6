"""Source-only training: cross-entropy on labelled source images, the baseline of every table."""

from dataclasses import dataclass

from spcl.data.batch import Batch
from spcl.losses.lovasz import lovasz_softmax
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Method, Outputs, Seen, Term
from spcl.methods.stage import StageConfig
from spcl.randomness import Step
from spcl.settings import setting


@dataclass(frozen=True, kw_only=True)
class SourceOnlyConfig(StageConfig):
    lovasz_weight: float = setting(0.0, "ours: a plain baseline; SDCA's code has 0.75", low=0.0)
    lovasz: str = setting(
        "image", "ours: ranks equal one; batch is SDCA's code", choices=("image", "batch")
    )

    @property
    def by_rank(self) -> tuple[str, ...]:
        return ("lovasz",) if self.lovasz == "batch" and self.lovasz_weight > 0 else ()


class SourceOnly(Method):
    Config = SourceOnlyConfig
    config: SourceOnlyConfig
    title = "source-only"
    reads = {"source": frozenset({"image", "label"})}

    def losses(self, batch: Batch, step: Step) -> Outputs:
        label = batch.source.label
        source = self.segment(batch.source, "source", step)
        terms = {"segmentation": Term(*cross_entropy(source.logits, label))}
        if self.config.lovasz_weight:
            lovasz = lovasz_softmax(source.logits, label, self.config.lovasz)
            terms["lovasz"] = Term(*lovasz, self.config.lovasz_weight)
        return Outputs(terms, {"source": Seen(batch.source, source, label)})
