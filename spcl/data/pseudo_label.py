"""Class-wise confidence thresholds, and the labels they keep.

A confidence is by definition the integer floor(p * 65535): a histogram with a bin per integer then
says as much as all confidences sorted, and thresholds are exact.  No torch in here.
Letters: K classes, H W image.
"""

import math

import numpy as np

from spcl.data.labels import IGNORE_INDEX

CONFIDENCE_LEVELS = 65536
_TOP = CONFIDENCE_LEVELS - 1


def quantize(probability: np.ndarray) -> np.ndarray:
    """Probabilities in [0, 1] -> uint16, floor(p * 65535)."""
    return np.floor(np.asarray(probability) * _TOP).astype(np.uint16)


def confidence_histogram(
    labels: np.ndarray, confidences: np.ndarray, num_classes: int
) -> np.ndarray:
    """(K, 65536) int64 pixel counts per predicted class and confidence.

    labels uint8 below K and confidences uint16, of equal shape.
    """
    cells = labels.astype(np.int64).ravel() * CONFIDENCE_LEVELS + confidences.ravel()
    counts = np.bincount(cells, minlength=num_classes * CONFIDENCE_LEVELS)
    return counts.reshape(num_classes, CONFIDENCE_LEVELS)


def class_thresholds(
    histogram: np.ndarray, *, cap: float = 0.9, quantile: float = 0.5, median: str = "true"
) -> np.ndarray:
    """(K,) float64 smallest confidence kept, in integer units; 0 for a class never predicted.

    cap       no threshold is above floor(cap * 65535)
    quantile  share of a class's pixels to drop, 0.5 is its median
    median    "true" interpolates between neighbours and "lower" takes the lower one, as
              numpy.quantile does; "ref_index" takes the value at position round(n * quantile) of
              the ascending order, as the authors' code does: for 3 pixels that is the largest
    """
    if median not in ("true", "lower", "ref_index"):
        raise ValueError(f"median must be 'true', 'lower' or 'ref_index', not {median!r}")
    thresholds = np.zeros(len(histogram))
    for k, counts in enumerate(histogram):
        below = np.cumsum(counts)  # how many have at most this confidence
        n = int(below[-1])
        if n:
            thresholds[k] = min(_quantile(below, n, quantile, median), math.floor(cap * _TOP))
    return thresholds


def _quantile(below: np.ndarray, n: int, quantile: float, median: str) -> float:
    def at(position: int) -> int:  # of the ascending order
        return int(np.searchsorted(below, min(position, n - 1), side="right"))

    if median == "ref_index":
        return at(round(n * quantile))  # Python rounds halves to even
    position = quantile * (n - 1)
    lower = math.floor(position)
    if median == "lower":
        return at(lower)
    return at(lower) + (at(lower + 1) - at(lower)) * (position - lower)


def apply_thresholds(
    labels: np.ndarray, confidences: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """Labels (H, W) uint8, 255 where the confidence is below the threshold of the class."""
    # Confidences are integers: c >= t is c >= ceil(t), without an image of floats.
    table = np.zeros(256, np.uint16)
    table[: len(thresholds)] = np.ceil(thresholds)
    return np.where(confidences >= table[labels], labels, IGNORE_INDEX).astype(np.uint8)
