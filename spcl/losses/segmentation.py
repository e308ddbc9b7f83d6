"""Cross-entropy of a coarse logit map against full-resolution labels.

Letters: B batch, K classes, h w feature grid, H W label size.
"""

import torch.nn.functional as F
from torch import Tensor

from spcl.data.labels import IGNORE_INDEX
from spcl.precision import at_least_float32


def upsample(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Logits (B, K, h, w) at `size` (H, W), bilinear with aligned corners, at least float32."""
    logits = at_least_float32(logits)
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=True)


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over valid pixels and their number; both 0, with a graph, where all are ignored.

    logits   (B, K, h, w), upsampled to the labels' size
    labels   (B, H, W) trainIds, uint8 or int64; 255 is ignored
    weights  (B, H, W) what the loss of each pixel is multiplied by; all count alike
    """
    labels = labels.long()
    logits = upsample(logits, labels.shape[-2:])
    # Summed here and not by the loss: its own sum over pixels is not deterministic on CUDA.
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    if weights is not None:
        losses = losses * weights
    return losses.sum(), (labels != IGNORE_INDEX).sum()
