"""Lovász-softmax: a surrogate of 1 - IoU, averaged over the classes that are present.

Source: Berman et al. 2018, arXiv:1705.08790.  Letters: B batch, K classes, N pixels, h w feature
grid, H W label size.
"""

from typing import Any

import numpy as np
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
    losses = [_OfOne.apply(p, y) for p, y in zip(probabilities, labels, strict=True)]
    return torch.stack(losses).sum(), (labels != IGNORE_INDEX).any(1).sum()


class _OfOne(torch.autograd.Function):
    """The loss of an image: probabilities (K, N), labels (N,).

    Written out because the gradient is known with the value: a weight or its negative.
    """

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, labels: Tensor) -> Tensor:
        classes = torch.arange(len(probabilities), device=labels.device)
        foreground = labels == classes[:, None]  # (K, N)
        present = foreground.any(1)
        # Absent classes weigh nothing.  They are sorted too on a GPU, which would have to be waited
        # for to know which they are.
        seen = present.nonzero().squeeze(1) if _can_be_read(labels) else classes
        foreground, p = foreground[seen], probabilities[seen]
        errors = torch.where(foreground, 1 - p, p)
        weights = _steps(errors, foreground, labels != IGNORE_INDEX)
        weights *= 1 / present.sum().clamp(min=1).to(errors.dtype)
        loss = errors.mul_(weights).sum()
        gradient = torch.zeros_like(probabilities)
        gradient[seen] = torch.where(foreground, -weights, weights)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * by_loss, None


def _steps(errors: Tensor, foreground: Tensor, valid: Tensor) -> Tensor:
    """Gradient of each class's Lovász extension by its errors, (K, N); 0 without foreground.

    It depends on the errors' order alone: with those of a class in descending order, it is the step
    of 1 - IoU at each of them, 1 / union at a pixel of the class, else intersection / (union * the
    union before).
    """
    # Ignored pixels come last, where no intersection is left: their weight is 0, and they change no
    # other's.
    order = descending(errors, valid)
    hit = foreground.gather(1, order)
    size = foreground.sum(1, keepdim=True, dtype=torch.int32)  # (K, 1); a float32 stops at 2**24
    hits = hit.cumsum(1, dtype=torch.int32)
    ranks = torch.arange(1, errors.shape[1] + 1, device=errors.device, dtype=torch.int32)
    left = size - hits  # intersection
    union = (left + ranks).to(errors.dtype)
    steps = torch.where(hit, 1 / union, left / union / (union - 1).clamp_(min=1))
    steps.masked_fill_(size == 0, 0)
    return torch.empty_like(errors).scatter_(1, order, steps)


def descending(errors: Tensor, valid: Tensor) -> Tensor:
    """The order of each row's errors (K, N), in [0, 1]: the largest first, the ignored last.

    Equal ones stay in the order of their pixels, so that their weights are the same in every run.

    valid  (N,) which are not ignored
    """
    if errors.dtype != torch.float32 or not _can_be_read(errors):
        return errors.masked_fill(~valid, -1).sort(dim=1, descending=True, stable=True).indices
    # The bits of a float >= 0, read as an integer, rise with it.  numpy sorts 16 bits by counting,
    # and twice that takes a fifth of the time of a sort by comparison.
    keys = errors.view(torch.int32).neg().masked_fill_(~valid, 1)
    high = (keys >> 16).to(torch.int16)
    order = _stable_order(keys.numpy().astype(np.uint16))  # by the lower half
    return order.gather(1, _stable_order(high.gather(1, order).numpy()))


def _can_be_read(x: Tensor) -> bool:
    """In the CPU's memory, and not a stand-in without values, with which memory is estimated."""
    return x.device.type == "cpu" and type(x) is Tensor


def _stable_order(keys: np.ndarray) -> Tensor:
    return torch.from_numpy(keys.argsort(axis=1, kind="stable"))
