"""Score predictions at the labels' own resolution, with one global confusion matrix."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from spcl import distributed
from spcl.configuration.sections import Evaluation
from spcl.data.labels import IGNORE_INDEX
from spcl.data.loader import rank_indices
from spcl.data.shards import ShardSet
from spcl.data.transforms import decode, decode_label, normalize, resize_image
from spcl.losses.segmentation import upsample
from spcl.store import heartbeat

Predict = Callable[[Tensor], Tensor]  # images (B, 3, H, W) -> logits (B, K, h, w)


def load_image(shards: ShardSet, index: int, size: tuple[int, int]) -> Tensor:
    """One image as the network reads it outside training: (1, 3, H, W), resized, normalised."""
    return normalize(resize_image(decode(shards.image(index)), size))[None]


def predict_labels(
    predict: Predict,
    image: Tensor,
    shape: tuple[int, ...],
    settings: Evaluation,
    device: torch.device,
) -> Tensor:
    """(H, W) uint8 trainIds at `shape` of one image (3, h, w) uint8.

    The input is the image at `settings.size`.  Logits are brought to `shape` bilinearly; where
    several views of the image are read, their probabilities there are averaged.
    Source: the flip and the softmax before the mean are SPCL's code.
    """
    mirrored = (False, True) if settings.flip else (False,)
    views = list(itertools.product(settings.scales, mirrored))
    total = torch.zeros((), device=device)
    for scale, flipped in views:
        size = (round(settings.size[0] * scale), round(settings.size[1] * scale))
        view = normalize(resize_image(image, size))[None].to(device)
        scores = _scores(predict, view.flip(-1) if flipped else view, settings)
        scores = upsample(scores.flip(-1) if flipped else scores, shape)
        total = total + (scores.softmax(1) if len(views) > 1 else scores)
    return total.argmax(1)[0].byte()


def _scores(predict: Predict, view: Tensor, settings: Evaluation) -> Tensor:
    """Logits (1, K, h, w) of a view, or, read window by window, the log of mean probabilities."""
    height, width = view.shape[-2:]
    window = (min(settings.window[0], height), min(settings.window[1], width))
    if not any(settings.window) or window == (height, width):
        return predict(view)
    # Half a window by default: every pixel is away from a window's edge at least once.
    stride = [s or max(1, w // 2) for s, w in zip(settings.stride, window, strict=True)]
    total, count = None, view.new_zeros(1, 1, height, width)
    for top in window_starts(height, window[0], stride[0]):
        for left in window_starts(width, window[1], stride[1]):
            where = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            probabilities = upsample(predict(view[where]), window).softmax(1)
            if total is None:
                total = probabilities.new_zeros(1, probabilities.shape[1], height, width)
            total[where] += probabilities
            count[where] += 1
    assert total is not None, "every image holds a window"
    # As logits these have the mean probabilities as their softmax, whoever takes it.
    return (total / count).clamp_min(torch.finfo(total.dtype).tiny).log()


def window_starts(length: int, window: int, stride: int) -> Iterator[int]:
    """Where windows begin along one side; the last one ends with the image."""
    yield from range(0, length - window, stride)
    yield length - window


def count_pixels(truth: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """(B, K, K) int64, rows truth, of trainIds (B, ...); pixels whose truth is 255 are left out."""
    truth, prediction = truth.flatten(1).long(), prediction.flatten(1).long()
    valid = truth != IGNORE_INDEX
    # Ignored pixels are counted in a bin of their own, so that shapes do not depend on the data.
    cells = torch.where(valid, truth * classes + prediction, classes * classes)
    counts = truth.new_zeros(len(truth), classes * classes + 1)
    counts.scatter_add_(1, cells, torch.ones_like(cells))
    return counts[:, :-1].reshape(-1, classes, classes)


def batch_confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K, K) int64, rows truth.  Logits (B, K, h, w) are brought to labels (B, H, W)."""
    prediction = upsample(logits.float(), labels.shape[-2:]).argmax(1)
    return count_pixels(labels, prediction, logits.shape[1])


@torch.no_grad()
def evaluate(
    predict: Predict, shards: ShardSet, settings: Evaluation, device: torch.device
) -> tuple[list[str], np.ndarray]:
    """Per-image confusion matrices (N, K, K) int64 in the order of the split, on every rank.

    Each rank takes every W-th image; none is padded or counted twice.
    """
    classes = len(shards.class_names)
    matrices = {}
    mine = rank_indices(len(shards), distributed.rank(), distributed.world_size())
    for index in heartbeat.counted("the evaluation", mine):
        label = decode_label(shards.label(index))
        image = decode(shards.image(index))
        prediction = predict_labels(predict, image, tuple(label.shape), settings, device)
        counts = count_pixels(label[None].to(device), prediction[None], classes)
        matrices[int(index)] = counts[0].cpu().numpy()
    everyone = {k: v for part in distributed.gather(matrices) for k, v in part.items()}
    return shards.sample_ids, np.stack([everyone[i] for i in range(len(shards))])
