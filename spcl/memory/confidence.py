"""How sure a network is of each class: an exponential mean over steps, equal on all ranks."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def confidence_sums(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) sum of the confidence of the pixels predicted as each class, and (K,) their number.

    logits (B, K, h, w); both float64
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    kinds = torch.arange(logits.shape[1], device=logits.device)
    member = (predicted.flatten() == kinds[:, None]).double()  # (K, N)
    return member @ confidence.flatten(), member.sum(1)


class ClassConfidence(nn.Module):
    """momentum  weight of the past; a class that is not predicted keeps its value, at first 0."""

    mean: Tensor  # (K,)

    def __init__(self, num_classes: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(num_classes))

    @torch.no_grad()
    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Move toward the means of a batch: what `confidence_sums` gave, summed over ranks."""
        batch = (sums / counts.clamp(min=1)).to(self.mean.dtype)
        moved = batch.lerp(self.mean, self.momentum)
        self.mean.copy_(torch.where(counts > 0, moved, self.mean))
