"""One scalar that makes a network's confidence honest: p = softmax(logits / temperature)."""

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

LOWEST, HIGHEST = 0.05, 20.0  # beyond, a network is not miscalibrated but broken
TOLERANCE = 1e-10  # of the temperature's logarithm


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the least mean negative log-likelihood of labels, in [0.05, 20].

    logits (N, K), labels (N,) int64, every one below K

    With b = 1 / temperature the mean of logsumexp(b z) - b z_y is convex in b, so its slope has
    one root.  Source: temperature scaling, Guo et al. 2017, arXiv:1706.04599.
    """
    logits = logits.double()
    of_label = logits.gather(1, labels[:, None]).mean()

    def slope(log_temperature: float) -> float:
        expected = (logits * (logits / np.exp(log_temperature)).softmax(1)).sum(1).mean()
        return float(expected - of_label)

    low, high = np.log(LOWEST), np.log(HIGHEST)
    if slope(low) <= 0:  # even the highest confidence is too low: (nearly) no mistake
        return LOWEST
    if slope(high) >= 0:  # even the lowest is too high: worse than guessing
        return HIGHEST
    return float(np.exp(brentq(slope, low, high, xtol=TOLERANCE)))


def fitting_pixels(label: Tensor, count: int, ignored: int, rng: np.random.Generator) -> Tensor:
    """At most `count` places of a flattened label (P,) that are not ignored, drawn by `rng`."""
    valid = torch.nonzero(label != ignored)[:, 0]
    return valid[rng.choice(len(valid), min(count, len(valid)), replace=False)]
