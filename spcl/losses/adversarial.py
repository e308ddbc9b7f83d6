"""A critic against a segmentor: what each of the two loses.  Source: AdaptSegNet, 1802.10349."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from spcl.precision import at_least_float32

SOURCE, TARGET = 0.0, 1.0  # what the critic should say


def players(
    critic: nn.Module, source: Tensor, target: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(sum, count) of the segmentor, which wants target to look like source, and of the critic
    about source and about target.

    source, target  what the critic is shown of each domain

    One backward serves both: the segmentor is judged by the critic with detached parameters, the
    critic learns from detached inputs.
    """
    frozen = {name: p.detach() for name, p in critic.named_parameters()}
    judged = functional_call(critic, frozen, target)
    on_source = bce_to(critic(source.detach()), SOURCE)
    on_target = bce_to(critic(target.detach()), TARGET)
    return bce_to(judged, SOURCE), on_source, on_target


def bce_to(logits: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """Sum over all cells of the map, and their number.  logits: any shape; target in [0, 1]."""
    logits = at_least_float32(logits)
    losses = F.binary_cross_entropy_with_logits(
        logits, torch.full_like(logits, target), reduction="sum"
    )
    return losses, torch.tensor(logits.numel(), device=logits.device)
