"""Score predictions at the labels' own resolution, with one global confusion matrix."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from spcl import distributed
from spcl.configuration.sections import Evaluation
from spcl.data.labels import IGNORE_INDEX
from spcl.data.shards import ShardSet
from spcl.inference.reader import Group, groups, of_rank, read
from spcl.losses.segmentation import most_likely, upsample

Shape = tuple[int, ...]
Predict = Callable[[Tensor], Tensor]  # images (B, 3, H, W) -> logits (B, K, h, w)


def predict_labels(
    predict: Predict,
    views: Sequence[Tensor],
    shapes: Sequence[Shape],
    settings: Evaluation,
) -> list[Tensor]:
    """Labels of B images, each (H, W) uint8 trainIds at its shape.

    views   the images (B, 3, h, w) as the network reads them, at each of `view_sizes`
    shapes  (H, W) of each image's labels

    Logits are brought to the shape bilinearly; where an image is read in several ways, the
    probabilities there are averaged.
    Source: the flip and the softmax before the mean are SPCL's code.
    """
    scores = []
    for images in views:
        scores.append(_scores(predict, images, settings))
        if settings.flip:
            scores.append(_scores(predict, images.flip(-1), settings).flip(-1))
    labels: list[Tensor] = []
    for shape, run in itertools.groupby(shapes):
        alike = slice(len(labels), len(labels) + len(list(run)))
        labels += _decide([each[alike] for each in scores], shape)
    return labels


def view_sizes(settings: Evaluation) -> list[tuple[int, int]]:
    """At which sizes an image is read."""
    height, width = settings.size
    return [(round(height * scale), round(width * scale)) for scale in settings.scales]


def _decide(scores: Sequence[Tensor], shape: Shape) -> Tensor:
    """Labels (B, H, W) uint8 of logits (B, K, ?, ?), of one way of reading or of several."""
    if len(scores) == 1:
        return most_likely(scores[0], shape)[0]
    total = torch.stack([upsample(each, shape).softmax(1) for each in scores]).sum(0)
    return total.max(1).indices.byte()


def _scores(predict: Predict, view: Tensor, settings: Evaluation) -> Tensor:
    """Logits (B, K, h, w) of a view, or, read window by window, the log of mean probabilities."""
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
                total = probabilities.new_zeros(*probabilities.shape[:2], height, width)
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
    truth, prediction = truth.flatten(1), prediction.flatten(1)
    # Ignored pixels are counted in a bin of their own, so that shapes do not depend on the data.
    bins = classes * classes + 1
    cells = (truth.int() * classes).add_(prediction)
    cells.masked_fill_(truth == IGNORE_INDEX, bins - 1)
    cells += torch.arange(0, len(truth) * bins, bins, dtype=torch.int32, device=cells.device)[
        :, None
    ]
    if cells.is_cuda:  # where bincount would wait for the GPU
        counts = torch.zeros(len(truth) * bins, dtype=torch.int64, device=cells.device)
        counts.scatter_add_(0, cells.flatten().long(), counts.new_ones(()).expand(cells.numel()))
    else:
        counts = torch.bincount(cells.flatten(), minlength=len(truth) * bins)
    return counts.reshape(-1, bins)[:, :-1].reshape(-1, classes, classes)


def batch_confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K, K) int64, rows truth.  Logits (B, K, h, w) are brought to labels (B, H, W)."""
    prediction, _ = most_likely(logits, labels.shape[-2:])
    return count_pixels(labels, prediction, logits.shape[1])


@torch.no_grad()
def evaluate(
    predict: Predict,
    shards: ShardSet,
    settings: Evaluation,
    device: torch.device,
    *,
    threads: int = 0,
) -> tuple[list[str], np.ndarray]:
    """Per-image confusion matrices (N, K, K) int64 in the order of the split, on every rank.

    Each rank takes every W-th group of images; none is padded or counted twice.
    threads  that read ahead
    """
    mine = of_rank(groups(len(shards), settings.size))
    matrices: dict[int, np.ndarray] = {}
    sizes = view_sizes(settings)
    for group in read("the evaluation", shards, mine, sizes, labelled=True, threads=threads):
        predicted = predict_labels(predict, group.inputs(device), group.shapes, settings)
        matrices |= confusions(group, predicted, len(shards.class_names))
    everyone = {k: v for part in distributed.gather(matrices) for k, v in part.items()}
    return shards.sample_ids, np.stack([everyone[i] for i in range(len(shards))])


def confusions(group: Group, predicted: Sequence[Tensor], classes: int) -> dict[int, np.ndarray]:
    """(K, K) int64 of each image of a labelled group, by its number."""
    counts = [
        count_pixels(truth[None].to(own.device), own[None], classes)[0]
        for truth, own in zip(group.labels, predicted, strict=True)
    ]
    return dict(zip(group.indices, torch.stack(counts).cpu().numpy(), strict=True))
