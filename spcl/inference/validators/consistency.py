"""Consistency: does a network see the same in an image that is mirrored, scaled or recoloured?

Ours; a network that predicts one class everywhere is consistent too, so this needs company.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from spcl.data.batch import Sample
from spcl.data.sampling import stream_seed
from spcl.data.transforms import Augment, normalize, resize_image
from spcl.inference.predict import Predict, count_pixels
from spcl.losses.segmentation import most_likely

SCALES = (0.75, 1.25)
# Brightness, contrast, saturation; a changed hue can change a class.  Not that of training, which
# a search may change.
JITTER = (0.4, 0.4, 0.4, 0.0)


def disturbed(
    plain: Tensor, images: Sequence[Tensor], sample_ids: Sequence[str]
) -> list[tuple[Tensor, bool]]:
    """Batches (B, 3, h, w), normalised, each with whether it is mirrored.

    plain   (B, 3, H, W) the images as they are predicted, normalised
    images  the same before they were resized, each (3, ?, ?) uint8
    """
    height, width = plain.shape[-2:]
    recolour = Augment((height, width), JITTER)
    jittered = [
        recolour(Sample(image), stream_seed(0, f"validation/jitter/{name}")).image
        for image, name in zip(images, sample_ids, strict=True)
    ]
    batches = [(plain.flip(-1), True), (torch.stack(jittered), False)]
    for scale in SCALES:
        size = (round(height * scale), round(width * scale))
        scaled = [normalize(resize_image(image, size)) for image in images]
        batches.append((torch.stack(scaled), False))
    return batches


def agreement(
    predict: Predict, labels: Tensor, batches: list[tuple[Tensor, bool]], classes: int
) -> Tensor:
    """(B, K, K) int64 pixel counts over all batches, rows the plain prediction `labels` (B, H, W).

    The mIoU of their sum is the score.
    """
    counts = torch.zeros(len(labels), classes, classes, dtype=torch.int64, device=labels.device)
    for batch, mirrored in batches:
        logits = predict(batch)
        found, _ = most_likely(logits.flip(-1) if mirrored else logits, labels.shape[-2:])
        counts += count_pixels(labels, found, classes)
    return counts
