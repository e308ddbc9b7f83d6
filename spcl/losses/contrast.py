"""Contrast of pixel features with class keys.

Letters: B batch, D feature dimension, K classes, h w feature grid, H W image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl.data.labels import IGNORE_INDEX
from spcl.losses.directions import products


def downsample_labels(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Labels (B, H, W) on a grid of `size` (h, w): pixel floor(i * H / h), the legacy "nearest"."""
    rows, columns = (
        torch.arange(small, device=labels.device) * large // small
        for small, large in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[:, rows[:, None], columns]


def pixel_contrast(
    features: Tensor, labels: Tensor, keys: Tensor, seen: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Pull each pixel's feature toward the key of its class and away from the others.

    features  (B, D, h, w); only their direction counts
    labels    (B, h, w) trainIds; 255 is ignored, and so is a pixel whose class is not seen
    keys      (K, D), used as they are, without gradient
    seen      (K,) bool; a class that is not seen has no part in the softmax
    temperature  divides the dot product; larger is softer

    Returns (sum, count) over the pixels that count; (0, 0) with a graph where none does.
    Source: SPCL, arXiv:2111.12358: cross-entropy of <f / |f|, key_k> / temperature.
    """
    (cosines,) = products(features, keys)
    losses, targets = class_losses(cosines / temperature, labels, seen)
    return losses.sum(), (targets != IGNORE_INDEX).sum()


def class_losses(logits: Tensor, labels: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (B, P) among the classes that are seen, and what it was taken of.

    logits  (B, K, P); labels (B, h, w) with P pixels.  The second result is the labels (B, P) with
    255 wherever a pixel does not count; its loss is 0.
    """
    labels = labels.flatten(1).long()
    valid = (labels != IGNORE_INDEX) & seen[labels.clamp(max=len(seen) - 1)]
    targets = torch.where(valid, labels, IGNORE_INDEX)
    logits = logits.masked_fill(~seen[:, None], -torch.inf)
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")
    return losses, targets
