"""Nuclear norm of the predictions: large where they are both certain and of many classes.

Source: batch nuclear-norm maximisation, Cui et al. 2020, arXiv:2003.12237.
"""

import numpy as np
import torch
from torch import Tensor

CLASS_PIXELS = 1000  # a class counts as at most so many pixels, or the frequent ones would decide


def class_grams(probabilities: Tensor, labels: Tensor) -> Tensor:
    """(K, K, K) float64: entry c is the sum of p p^T over the pixels predicted as c.

    probabilities (K, P) of one image; labels (P,) int64, their argmax
    """
    classes = len(probabilities)
    counts = labels.bincount(minlength=classes).tolist()
    by_class = probabilities.mT[labels.argsort(stable=True)].double().split(counts)
    return torch.stack([rows.mT @ rows for rows in by_class])


def nuclear_norm(grams: np.ndarray, pixels: np.ndarray) -> float:
    """In (0, 1]: 1 where all pixels are certain and every class has as many.

    grams (K, K, K) and pixels (K,), sums over images

    The norm of the (N, K) matrix of predictions is the sum of the roots of the eigenvalues of its
    (K, K) Gram matrix, and at most sqrt(N K), by which it is divided.  Where a class has more than
    1000 pixels, its share of the Gram matrix is scaled down to 1000: the mean of all draws of so
    many, without drawing.
    """
    weight = np.minimum(1.0, CLASS_PIXELS / np.maximum(pixels, 1))
    eigenvalues = np.linalg.eigvalsh(np.tensordot(weight, grams, 1)).clip(min=0)
    return float(np.sqrt(eigenvalues).sum() / np.sqrt((weight * pixels).sum() * len(pixels)))
