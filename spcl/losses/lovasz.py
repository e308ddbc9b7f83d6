"""Lovász-softmax: a surrogate of 1 - IoU, averaged over the classes that are present.

Source: Berman et al. 2018, arXiv:1705.08790.  Letters: B batch, K classes, N pixels, h w feature
grid, H W label size.
"""

import torch
from torch import Tensor

from spcl.data.labels import IGNORE_INDEX
from spcl.losses.segmentation import upsample


def lovasz_softmax(logits: Tensor, labels: Tensor, over: str = "image") -> tuple[Tensor, Tensor]:
    """Sum over images, and the number of images with a valid pixel; 0 with a graph without any.

    logits  (B, K, h, w), upsampled to the labels' size
    labels  (B, H, W) trainIds; 255 is ignored
    over    "image"; "batch" takes this rank's pixels as those of one image, as SDCA's code does
    """
    probabilities = upsample(logits, labels.shape[-2:]).softmax(1).flatten(2)  # (B, K, N)
    labels = labels.flatten(1).long()  # (B, N)
    if over == "batch":
        probabilities = probabilities.transpose(0, 1).flatten(1)[None]  # (1, K, B*N)
        labels = labels.flatten()[None]
    losses = [_of_one(p, y) for p, y in zip(probabilities, labels, strict=True)]
    return torch.stack(losses).sum(), (labels != IGNORE_INDEX).any(1).sum()


def _of_one(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The loss of an image: probabilities (K, N), labels (N,)."""
    classes = torch.arange(len(probabilities), device=labels.device)
    foreground = labels == classes[:, None]  # (K, N)
    errors = torch.where(foreground, 1 - probabilities, probabilities)
    return (errors * _weights(errors, foreground, labels != IGNORE_INDEX)).sum()


@torch.no_grad()
def _weights(errors: Tensor, foreground: Tensor, valid: Tensor) -> Tensor:
    """Gradient of the Lovász extension by the errors, (K, N); depends on their order alone.

    With the errors of a class in descending order, it is the step of 1 - IoU at each of them:
    1 / union at a pixel of the class, else intersection / (union * the union before).
    """
    # Ignored pixels come last, where no intersection is left: their weight is 0, and they change no
    # other's.  A stable order, so that equal errors get the same weights in every run.
    order = errors.masked_fill(~valid, -1).sort(dim=1, descending=True, stable=True).indices
    hit = foreground.gather(1, order)
    size = foreground.sum(1, keepdim=True)  # (K, 1)
    hits = hit.cumsum(1, dtype=torch.int32)  # a float32 would stop at 2**24
    ranks = torch.arange(1, errors.shape[1] + 1, device=errors.device, dtype=torch.int32)
    union = (size + ranks - hits).to(errors.dtype)
    left = (size - hits).to(errors.dtype)  # intersection
    steps = torch.where(hit, 1 / union, left / union / (union - 1).clamp(min=1))
    present = (size > 0).to(errors.dtype)
    steps *= present / present.sum().clamp(min=1)
    return torch.empty_like(errors).scatter_(1, order, steps)
