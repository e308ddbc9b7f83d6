"""Cross-entropy of a coarse logit map against full-resolution labels, and labels from it.

Letters: B batch, K classes, h w feature grid, H W label size.
"""

from collections.abc import Iterator

import torch
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


def by_class(logits: Tensor, size: tuple[int, ...]) -> Iterator[Tensor]:
    """`upsample`, a class (B, H, W) at a time: what is worked on then stays in a CPU's cache."""
    logits = logits.contiguous()
    for k in range(logits.shape[1]):
        yield upsample(logits[:, k : k + 1], size)[:, 0]


def most_likely(logits: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """`upsample(logits, size).max(1)`, but for rounding: labels (B, H, W) uint8, logits (B, H, W).

    Of equal logits the first class wins.  A NaN beats none before it and is beaten by none after.
    """
    classes = by_class(logits, size)
    best = next(classes).clone()
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for k, own in enumerate(classes, 1):
        labels.masked_fill_(own > best, k)
        torch.maximum(best, own, out=best)
    return labels, best


def probability(logits: Tensor, best: Tensor) -> Tensor:
    """The softmax of the most likely class, (B, H, W), from its logit `best` (B, H, W)."""
    total = torch.zeros_like(best)
    for own in by_class(logits, best.shape[-2:]):
        total += (own - best).exp_()
    return total.reciprocal_()


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
