"""Source-only training: cross-entropy on labelled source images, the baseline of every table."""

from spcl.data.batch import Batch
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Method, Term


class SourceOnly(Method):
    title = "source-only"
    domains = ("source",)

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:
        logits = self.segmentor(batch.source_image, "source").logits
        return {"segmentation": Term(*cross_entropy(logits, batch.source_label))}
