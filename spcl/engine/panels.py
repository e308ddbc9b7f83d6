"""Pictures for people: images beside label maps."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from spcl.data.batch import Batch
from spcl.data.labels import colorize
from spcl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from spcl.losses.segmentation import upsample
from spcl.methods.base import Method
from spcl.models.normalization import DOMAINS

CAPTION = 14  # pixels
SHOWN = 2  # images per domain in a training panel


def to_picture(image: Tensor) -> np.ndarray:
    """(3, H, W) normalised -> (H, W, 3) uint8."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    rgb = image.detach().cpu().permute(1, 2, 0) * std + mean
    return (rgb.clamp(0, 1) * 255).round().byte().numpy()


def grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures of equal size (h, w, 3), side by side and one row under another."""
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def captioned_grid(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str]) -> np.ndarray:
    """A grid under one caption per column."""
    body = grid(rows)
    canvas = Image.new("RGB", (body.shape[1], CAPTION), "white")
    draw = ImageDraw.Draw(canvas)
    width = body.shape[1] // len(captions)
    for column, caption in enumerate(captions):
        draw.text((column * width + 3, 1), caption, fill="black")
    return np.concatenate([np.array(canvas), body], axis=0)


@torch.no_grad()
def training_panel(method: Method, batch: Batch, palette: np.ndarray) -> np.ndarray:
    """Image, prediction and label of a few samples of each domain of the step."""
    rows = []
    network = method.get_submodule(method.scored)
    for domain in [name for name in DOMAINS if name in batch.streams]:
        images, labels = batch[domain].image, batch[domain].label
        logits = network(images[:SHOWN], domain).logits
        predictions = upsample(logits.float(), images.shape[-2:]).argmax(1).byte().cpu().numpy()
        for i, prediction in enumerate(predictions):
            label = np.full_like(prediction, 255) if labels is None else labels[i].cpu().numpy()
            rows.append(
                [to_picture(images[i]), colorize(prediction, palette), colorize(label, palette)]
            )
    return captioned_grid(same_size(rows), ("image", "prediction", "label"))


def same_size(rows: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Bring all pictures to the first one's size; domains, and images, may differ in theirs."""
    height, width = rows[0][0].shape[:2]

    def fit(picture: np.ndarray) -> np.ndarray:
        if picture.shape[:2] == (height, width):
            return picture
        return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST))

    return [[fit(picture) for picture in row] for row in rows]
