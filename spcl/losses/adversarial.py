"""A discriminator against a segmentor: what each of the two loses.

Source: AdaptSegNet, arXiv:1802.10349.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl.precision import at_least_float32

SOURCE, TARGET = 0.0, 1.0  # what the discriminator should say


class Apart(Protocol):
    """A discriminator, as `spcl.models.discriminator` has it."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def apart(self, x: Tensor, /) -> tuple[Tensor, Tensor]: ...


def players(
    discriminator: Apart, source: Tensor, target: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Losses, each (sum, count): the segmentor's, the discriminator's about source, about target.

    The segmentor loses where the discriminator tells target from source.
    source, target  what the discriminator is shown of each domain, (B, C, H, W)

    One backward serves both players: through what `apart` returns, the segmentor's loss leaves the
    discriminator's parameters alone, and the discriminator's the target.
    """
    fooling, telling = discriminator.apart(target)
    on_source = bce_to(discriminator(source.detach()), SOURCE)
    return bce_to(fooling, SOURCE), on_source, bce_to(telling, TARGET)


def bce_to(logits: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """Sum over all cells of the map, and their number.  logits: any shape; target in [0, 1]."""
    logits = at_least_float32(logits)
    losses = F.binary_cross_entropy_with_logits(
        logits, torch.full_like(logits, target), reduction="sum"
    )
    return losses, torch.tensor(logits.numel(), device=logits.device)
