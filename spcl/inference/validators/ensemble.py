"""EnsV: of several networks, how far each agrees with what they say together.

Source: Hu et al. 2023, "Simplifying and Stabilizing Model Selection in Unsupervised Domain
Adaptation": the ensemble's mean probabilities give the labels that candidates are scored against;
IoU in place of accuracy is ours.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from spcl.inference.predict import count_pixels
from spcl.scoring.metrics import mean_iou


def ensemble_agreement(predictions: Iterable[Tensor]) -> list[float]:
    """Mean IoU over classes of each of M networks' predictions with those of their ensemble.

    predictions  of one image each: probabilities (M, K, H, W); one image is held at a time
    """
    counts: Tensor | int = 0
    for probabilities in predictions:
        models, classes = probabilities.shape[:2]
        ensemble = probabilities.mean(0).max(0).indices
        own = probabilities.max(1).indices
        counts = counts + count_pixels(ensemble.expand(models, -1, -1), own, classes)
    if not torch.is_tensor(counts):
        raise ValueError("agreement needs at least one image")
    return [mean_iou(matrix)[0] for matrix in counts.cpu().numpy()]
