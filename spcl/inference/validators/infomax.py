"""Class-balanced InfoMax: sure of every pixel, and of each class as often as the source has it.

    score = - mean over predicted classes c of H_c  -  KL(q || prior)

H_c is the mean entropy of the pixels predicted as c: a plain mean over pixels would be one of road,
building and sky.  q is the mean prediction.  In nats, at most 0.
Source: information maximisation with a class prior, Krause et al. 2010 (RIM), where a uniform prior
gives mutual information less log K; the mean per class is ours.
"""

import numpy as np
import torch
from torch import Tensor

from spcl.data.shards import ShardSet


def class_prior(source: ShardSet) -> np.ndarray:
    """(K,) share of each class among the labelled pixels of a split.

    One pixel is added to each: a class that the source lacks is improbable, not impossible.
    """
    assert source.class_pixels is not None, "a source has labels"
    pixels = source.class_pixels.sum(0, dtype=np.float64) + 1
    return pixels / pixels.sum()


def infomax_statistics(log_probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums per image, each (B, K): `pixels` and `entropy` by predicted class, `probability`.

    log_probabilities (B, K, P); labels (B, P), their argmax
    """
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities).sum(1)  # (B, P)
    classes = torch.arange(log_probabilities.shape[1], device=labels.device)
    # A product, not a scatter: its sum is the same each time, on CUDA too.
    member = (labels[:, None] == classes[:, None]).to(entropy.dtype)  # (B, K, P)
    return {
        "pixels": member.sum(2, dtype=torch.float64),
        "entropy": (member @ entropy[:, :, None])[:, :, 0].double(),
        "probability": probabilities.sum(2, dtype=torch.float64),
    }


def infomax(
    entropy: np.ndarray, probability: np.ndarray, pixels: np.ndarray, prior: np.ndarray
) -> float:
    """The score from sums over images, each (K,)."""
    predicted = pixels > 0
    conditional = (entropy[predicted] / pixels[predicted]).mean()
    marginal = probability / probability.sum()
    some = marginal > 0
    divergence = (marginal[some] * np.log(marginal[some] / prior[some])).sum()
    return float(-conditional - divergence)
