"""Score predictions at the labels' own resolution, with one global confusion matrix."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from spcl import distributed
from spcl.data.labels import IGNORE_INDEX
from spcl.data.loader import rank_indices
from spcl.data.shards import ShardSet
from spcl.data.transforms import decode, decode_label, normalize, resize_image
from spcl.losses.segmentation import upsample

Predict = Callable[[Tensor], Tensor]  # images (B, 3, H, W) -> logits (B, K, h, w)


def load_image(shards: ShardSet, index: int, size: tuple[int, int]) -> Tensor:
    """One image as the network reads it outside training: (1, 3, H, W), resized, normalised."""
    return normalize(resize_image(decode(shards.image(index)), size))[None]


def batch_confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K, K) int64, rows truth.  Logits (B, K, h, w) are brought to labels (B, H, W)."""
    classes = logits.shape[1]
    logits = upsample(logits.float(), labels.shape[-2:])
    prediction = logits.argmax(1).flatten(1)
    truth = labels.flatten(1).long()
    valid = truth != IGNORE_INDEX
    # Ignored pixels are counted in a bin of their own, so that shapes do not depend on the data.
    cells = torch.where(valid, truth * classes + prediction, classes * classes)
    counts = truth.new_zeros(len(labels), classes * classes + 1)
    counts.scatter_add_(1, cells, torch.ones_like(cells))
    return counts[:, :-1].reshape(-1, classes, classes)


@torch.no_grad()
def evaluate(
    predict: Predict, shards: ShardSet, size: tuple[int, int], device: torch.device
) -> tuple[list[str], np.ndarray]:
    """Per-image confusion matrices (N, K, K) int64 in the order of the split, on every rank.

    Each rank takes every W-th image; none is padded or counted twice.
    """
    mine = rank_indices(len(shards), distributed.rank(), distributed.world_size())
    matrices = {}
    for index in mine:
        logits = predict(load_image(shards, index, size).to(device))
        label = decode_label(shards.label(index)).to(device)
        matrices[int(index)] = batch_confusion(logits, label[None])[0].cpu().numpy()
    everyone = {k: v for part in distributed.gather(matrices) for k, v in part.items()}
    return shards.sample_ids, np.stack([everyone[i] for i in range(len(shards))])
