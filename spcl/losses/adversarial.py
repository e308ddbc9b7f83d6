"""A discriminator against a segmentor: what each of the two loses.

Source: AdaptSegNet, arXiv:1802.10349.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from spcl.precision import at_least_float32

SOURCE, TARGET = 0.0, 1.0  # what the discriminator should say


def players(
    discriminator: nn.Module, source: Tensor, target: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Losses, each (sum, count): the segmentor's, the discriminator's about source, about target.

    The segmentor loses where the discriminator tells target from source.
    source, target  what the discriminator is shown of each domain, (B, C, H, W)

    One backward serves both players: the segmentor's loss comes through a discriminator of detached
    parameters, the discriminator learns from detached inputs.
    """
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    fooling = functional_call(discriminator, frozen, target)
    on_source = bce_to(discriminator(source.detach()), SOURCE)
    on_target = bce_to(discriminator(target.detach()), TARGET)
    return bce_to(fooling, SOURCE), on_source, on_target


def bce_to(logits: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """Sum over all cells of the map, and their number.  logits: any shape; target in [0, 1]."""
    logits = at_least_float32(logits)
    losses = F.binary_cross_entropy_with_logits(
        logits, torch.full_like(logits, target), reduction="sum"
    )
    return losses, torch.tensor(logits.numel(), device=logits.device)
