"""Binary cross-entropy of a critic's map against one constant answer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl.precision import at_least_float32


def bce_to(logits: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """Sum over all cells of the map, and their number.  logits: any shape; target in [0, 1]."""
    logits = at_least_float32(logits)
    losses = F.binary_cross_entropy_with_logits(
        logits, torch.full_like(logits, target), reduction="sum"
    )
    return losses, torch.tensor(logits.numel(), device=logits.device)
