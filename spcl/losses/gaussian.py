"""Contrast of pixel features with class distributions: infinitely many keys, in closed form.

Letters: B batch, D feature dimension, K classes, h w feature grid.
"""

import torch.nn.functional as F
from torch import Tensor

from spcl.data.labels import IGNORE_INDEX
from spcl.losses.contrast import class_losses
from spcl.losses.directions import products


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
    linear, quadratic = products(features, mean, variance)
    quadratic = quadratic / (2 * temperature**2)
    losses, targets = class_losses(linear / temperature + quadratic, labels, seen)
    # The pixel's own quadratic term is in the softmax's sum but not in what is pulled.
    own = F.nll_loss(quadratic, targets, ignore_index=IGNORE_INDEX, reduction="none")
    return (losses - own).sum(), (targets != IGNORE_INDEX).sum()
