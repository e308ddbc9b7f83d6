"""Contrast of pixel features with class keys.

Letters: B batch, D feature dimension, K classes, h w feature grid, H W image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl.data.labels import IGNORE_INDEX
from spcl.precision import at_least_float32, without_autocast

EPSILON = 1e-12  # a feature shorter than this is not brought to unit length


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
    with without_autocast(features):
        # One product in the features' own layout, then a scale per pixel: the unit features and
        # anything of shape (pixels, K, D) are never built.
        flat = at_least_float32(features).flatten(2)  # (B, D, h*w), a view
        keys = keys.detach().to(flat.dtype)
        dots = torch.bmm(keys.expand(len(flat), -1, -1), flat)  # (B, K, h*w)
        norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=EPSILON)
        logits = dots / (norms * temperature)
        logits = logits.masked_fill(~seen[:, None], -torch.inf)

        labels = labels.flatten(1).long()
        valid = (labels != IGNORE_INDEX) & seen[labels.clamp(max=len(seen) - 1)]
        labels = torch.where(valid, labels, IGNORE_INDEX)
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
        return losses.sum(), valid.sum()
