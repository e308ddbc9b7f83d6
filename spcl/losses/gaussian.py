"""Contrast of pixel features with class distributions: infinitely many keys, in closed form.

Letters: B batch, D feature dimension, K classes, h w feature grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl.data.labels import IGNORE_INDEX
from spcl.losses.contrast import EPSILON
from spcl.precision import at_least_float32, without_autocast


def gaussian_contrast(
    features: Tensor,
    labels: Tensor,
    mean: Tensor,
    variance: Tensor,
    seen: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Pull each pixel's feature toward the distribution of its class and away from the others.

    features  (B, D, h, w); only their direction f counts
    labels    (B, h, w) trainIds; 255 is ignored, and so is a pixel whose class is not seen
    mean, variance  (K, D) of each class's Gaussian, used as they are, without gradient
    seen      (K,) bool; a class that is not seen has no part in the softmax
    temperature  divides the dot product; larger is softer

    Returns (sum, count) over the pixels that count; (0, 0) with a graph where none does.

    An upper bound of the expected contrast with a key k ~ N(mean_k, variance_k) of every class:
    by Jensen, with E exp(f k / t) = exp(f mean / t + f' variance f / (2 t**2)) for each,
        -f mean_y / t + log sum_k exp(f mean_k / t + f' variance_k f / (2 t**2)).
    Without variance it is `pixel_contrast`.  Source: SDCA, arXiv:2105.05013; diagonal covariance as
    in its code.
    """
    with without_autocast(features):
        # Two products in the features' own layout, then a scale per pixel: of the features' size
        # there is their square, and nothing of shape (pixels, K, D) is ever built.
        flat = at_least_float32(features).flatten(2)  # (B, D, h*w), a view
        mean, variance = (
            x.detach().to(flat.dtype).expand(len(flat), -1, -1) for x in (mean, variance)
        )
        norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=EPSILON)
        scale = norms * temperature
        dots = torch.bmm(mean, flat) / scale  # (B, K, h*w)
        quadratic = torch.bmm(variance, flat.square()) / (2 * scale.square())
        logits = (dots + quadratic).masked_fill(~seen[:, None], -torch.inf)

        labels = labels.flatten(1).long()
        valid = (labels != IGNORE_INDEX) & seen[labels.clamp(max=len(seen) - 1)]
        labels = torch.where(valid, labels, IGNORE_INDEX)
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
        # The pixel's own quadratic term is in the softmax's sum but not in what is pulled.
        own = F.nll_loss(quadratic, labels, ignore_index=IGNORE_INDEX, reduction="none")
        return (losses - own).sum(), valid.sum()
