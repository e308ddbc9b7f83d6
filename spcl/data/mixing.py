"""ClassMix: some classes of one image are pasted onto another.

Letters: B batch, H W pixels, V the 256 values that a label may have.
Source: Olsson et al. 2021, arXiv:2007.07936, as DAFormer's code (arXiv:2111.14887) uses it.
"""

import torch
from torch import Tensor

from spcl.data.labels import IGNORE_INDEX

VALUES = 256  # of a uint8


def classmix(label: Tensor, draws: Tensor, *, over_batch: bool = False) -> Tensor:
    """(B, H, W) bool: the pixels of half of an image's classes, rounded up.

    label       (B, H, W) uint8 trainIds of the images that are pasted
    draws       (B, V) in [0, 1): those present with the smallest are chosen
    over_batch  choose among all values in the batch, void too, as DAFormer's code does; else among
                the image's own classes, and void is never pasted
    """
    values = label.flatten(1).long()
    present = torch.zeros(len(label), VALUES, dtype=torch.bool, device=label.device)
    present.scatter_(1, values, True)
    if over_batch:
        present = present.any(0).expand_as(present)
    else:
        present[:, IGNORE_INDEX] = False
    # A rank among those present, without asking the device how many there are.
    order = torch.where(present, draws, torch.inf).argsort(dim=1, stable=True).argsort(1)
    chosen = present & (order < (present.sum(1, keepdim=True) + 1) // 2)
    return chosen.gather(1, values).view_as(label)


def paste(mask: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """`upper` where (B, H, W) mask, else `lower`; both (B, H, W) or (B, C, H, W)."""
    return torch.where(mask if upper.dim() == mask.dim() else mask[:, None], upper, lower)
