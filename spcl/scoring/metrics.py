"""Scores from a confusion matrix, and how tight classes are in feature space.  numpy only.

Letters: K classes, N pixels, D feature dimension.
"""

from collections.abc import Sequence

import numpy as np

from spcl.data.labels import IGNORE_INDEX


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) int64 pixel counts, rows truth.  Pixels whose truth is 255 are left out.

    Raises ValueError where any other id is not below K.
    """
    valid = truth != IGNORE_INDEX
    truth, prediction = truth[valid].astype(np.int64), prediction[valid].astype(np.int64)
    top = max(truth.max(initial=0), prediction.max(initial=0))
    if top >= num_classes:
        raise ValueError(f"class ids must be below {num_classes}, found {top}")
    cells = np.bincount(truth * num_classes + prediction, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def iou(confusion: np.ndarray) -> np.ndarray:
    """(K,) intersection over union in [0, 1]; NaN where neither truth nor prediction has any."""
    intersection = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray, classes: Sequence[int] | None = None) -> tuple[float, int]:
    """Mean IoU over `classes` (all) whose union is not empty, and how many those are."""
    values = iou(confusion)
    if classes is not None:
        values = values[list(classes)]
    values = values[~np.isnan(values)]
    return (float(values.mean()) if len(values) else float("nan")), len(values)


def class_center_distance(
    features: np.ndarray, labels: np.ndarray, means: np.ndarray
) -> np.ndarray:
    """(K,) spread within a class relative to its distance from the others; smaller is better.

    For class k, the mean over other classes j of  mean |f - mean_k|^2 / |mean_k - mean_j|^2.
    features (N, D); labels (N,) trainIds, 255 is ignored; means (K, D), a row with NaN is a class
    without a mean and is left out.  NaN for a class without pixels or without another class.
    Source: the CCD of SPCL, arXiv:2111.12358; its formula is recalled, not read.
    """
    result = np.full(len(means), np.nan)
    for k, mean in enumerate(means):
        mine = features[labels == k]
        distances = ((means - mean) ** 2).sum(1)
        others = (np.arange(len(means)) != k) & ~np.isnan(distances)
        if len(mine) and others.any():
            spread = ((mine - mean) ** 2).sum(1).mean()
            result[k] = (spread / distances[others]).mean()
    return result
