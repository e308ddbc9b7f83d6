"""Batch normalisation for two domains and many ranks, the frozen kind, and the running one.

All read the state of an `nn.BatchNorm2d`.  Letters: B batch, C channels, h w grid.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl import distributed
from spcl.precision import at_least_float32

DOMAINS = ("source", "target")
_OVER = (0, 2, 3)  # what moments are taken over


def set_domain(module: nn.Module, domain: str, moves: bool = True) -> None:
    """Make every DomainNorm inside `module` use the statistics of "source" or "target".

    moves  whether images in training move running statistics
    """
    index = _index(domain)
    for layer in module.modules():
        if isinstance(layer, DomainNorm):
            layer.domain = index
        if isinstance(layer, DomainNorm | RunningBatchNorm2d):
            layer.moves = moves


def fill_unseen_statistics(module: nn.Module) -> None:
    """Give a domain that was never trained on the other's statistics, where that one has some."""
    for layer in module.modules():
        if isinstance(layer, DomainNorm):
            updates = layer.updates.tolist()
            for unseen, other in ((0, 1), (1, 0)):
                if updates[unseen] == 0 and updates[other] > 0:
                    layer.running_mean[unseen] = layer.running_mean[other]
                    layer.running_var[unseen] = layer.running_var[other]


def _index(domain: str) -> int:
    if domain not in DOMAINS:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}, not {domain!r}")
    return DOMAINS.index(domain)


def _sum(x: Tensor) -> Tensor:
    """Per channel, in float64: then the number of ranks changes no digit that float32 shows."""
    return x.sum(_OVER, dtype=torch.float64)


def _per_channel(vector: Tensor) -> Tensor:
    return vector[:, None, None]  # (C, 1, 1), against (B, C, h, w)


class _Normalize(torch.autograd.Function):
    """x -> weight * (x - mean) / sqrt(var + eps) + bias, with moments over all ranks.

    Written out because autograd would keep several maps where the input alone is enough.  Each
    direction has one collective.  A rank may hold an empty batch.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = at_least_float32(x)
        here = wide.numel() // len(weight)
        own = _sum(wide) / max(here, 1)
        own_mean = own.to(wide.dtype)
        centred = wide - _per_channel(own_mean)
        mean, var, count = _over_ranks(own, _sum(centred.square()), here)
        mean, var = mean.to(wide.dtype), var.to(wide.dtype)
        scale = weight * (var + eps).rsqrt()
        offset = bias + (own_mean - mean) * scale
        y = torch.addcmul(_per_channel(offset), centred, _per_channel(scale))
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        gradient = at_least_float32(gradient)
        centred = at_least_float32(x) - _per_channel(mean)
        inverse = (var + ctx.eps).rsqrt()
        local = torch.cat([_sum(gradient), _sum(gradient * centred)])
        # Those of parameters are of this rank, DDP adds them up.  What reaches the moments comes
        # from all ranks: every rank's loss depends on them.
        d_bias, d_weight = local.to(mean.dtype).split(len(mean))
        total = (distributed.all_reduce(local.clone()) / count).to(mean.dtype)
        through_mean, through_var = total.split(len(mean))
        scale = weight * inverse
        d_x = torch.addcmul(_per_channel(-through_mean * scale), gradient, _per_channel(scale))
        d_x.addcmul_(centred, _per_channel(-through_var * scale * inverse.square()))
        return d_x.to(x.dtype), d_weight * inverse, d_bias, None


def _over_ranks(mean: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and count () over ranks, from each rank's own, all float64.

    squares  (C,) sum of squared distances from the rank's own mean

    Ranks exchange moments about their own means, not plain sums of squares, which cancel where a
    mean is large against its deviation.
    """
    rows = mean.new_zeros(distributed.world_size(), 2 * len(mean) + 1)
    rows[distributed.rank()] = torch.cat([mean, squares, mean.new_full((1,), count)])
    rows = distributed.all_reduce(rows)  # every rank filled its own row
    means, squares, counts = rows.split([len(mean), len(mean), 1], dim=1)  # (W, C), (W, C), (W, 1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    between = (counts * (means - mean).square()).sum(0)
    return mean, (squares.sum(0) + between) / total, total


def batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, factor: float, eps: float
) -> Tensor:
    """Normalise (B, C, h, w) by its moments on all ranks, which call this alike.

    mean, var  (C,) running statistics; they are moved by `factor` towards the batch's, in place
    """
    kernel = _alone if distributed.world_size() == 1 else _together
    return kernel(x, mean, var, weight, bias, factor, eps)


def _alone(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, factor: float, eps: float
) -> Tensor:
    """By torch's fused kernel: several times faster than ours, equal but for rounding."""
    return F.batch_norm(x, mean, var, weight, bias, True, factor, eps)


def _together(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, factor: float, eps: float
) -> Tensor:
    y, batch_mean, batch_var, count = _Normalize.apply(x, weight, bias, eps)
    with torch.no_grad():
        unbiased = (count / (count - 1).clamp(min=1)).to(var.dtype)
        mean.lerp_(batch_mean, factor)
        var.lerp_(batch_var * unbiased, factor)
    return y


class DomainNorm(nn.Module):
    """Batch normalisation with running statistics per domain and one affine map for both.

    In training the moments are those of the batch on all ranks, so N ranks equal one and hold the
    same buffers.  In evaluation they are the running ones of the current domain (`set_domain`).
    momentum  weight of the new value, as in BatchNorm; None is the cumulative mean of batches

    Buffers: running_mean, running_var (2, C) and updates (2,), how often each domain was updated.
    The state of a BatchNorm2d loads into both domains and counts as no update.
    """

    running_mean: Tensor
    running_var: Tensor
    updates: Tensor

    def __init__(self, channels: int, momentum: float | None = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.domain, self.moves = 0, True
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(len(DOMAINS), channels))
        self.register_buffer("running_var", torch.ones(len(DOMAINS), channels))
        self.register_buffer("updates", torch.zeros(len(DOMAINS), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same.  In training every rank must call it, forward and backward."""
        mean, var = self.running_mean[self.domain], self.running_var[self.domain]
        if not self.training:
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        if not self.moves:
            mean, var = mean.clone(), var.clone()
            return batch_norm(x, mean, var, self.weight, self.bias, 0.0, self.eps)
        self.updates[self.domain] += 1
        factor = self.momentum
        if factor is None:
            factor = 1 / int(self.updates[self.domain])
        # Moves both statistics, which are views of the buffers.
        return batch_norm(x, mean, var, self.weight, self.bias, factor, self.eps)

    def forget(self, domain: str) -> None:
        """Back to the state before the first update of a domain."""
        index = _index(domain)
        self.running_mean[index] = 0
        self.running_var[index] = 1
        self.updates[index] = 0

    def _load_from_state_dict(self, state: dict, prefix: str, *rest: Any) -> None:
        mean = state.get(prefix + "running_mean")
        if mean is not None and mean.dim() == 1:  # a BatchNorm2d's
            state.pop(prefix + "num_batches_tracked", None)
            for name in ("running_mean", "running_var"):
                state[prefix + name] = state[prefix + name].expand(len(DOMAINS), -1)
            state[prefix + "updates"] = torch.zeros_like(self.updates)
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, momentum={self.momentum}, eps={self.eps}"


class FrozenBatchNorm2d(nn.Module):
    """A BatchNorm2d in evaluation whose four vectors are buffers; the identity until loaded.

    The authors' frozen kind has no eps; here it is BatchNorm's, so that freezing changes nothing.
    """

    weight: Tensor  # (C,), as the three below
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same, in x's type, by the stored moments."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        # Unlike F.batch_norm this keeps no copy of x for the backward pass.
        y = torch.addcmul(_per_channel(bias), at_least_float32(x), _per_channel(scale))
        return y.to(x.dtype)

    def _load_from_state_dict(self, state: dict, prefix: str, *rest: Any) -> None:
        state.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class RunningBatchNorm2d(FrozenBatchNorm2d):
    """In training normalised by the batch, whose moments move one running set for both domains.

    The affine map stays frozen, as in the code of AdaptSegNet and ASANet.  Theirs runs on one GPU
    with one image at a time; here the batch is that on all ranks, so N ranks equal one.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__(channels, eps)
        self.momentum, self.moves = momentum, True

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same.  In training every rank must call it, forward and backward."""
        if not self.training:
            return super().forward(x)
        mean, var, factor = self.running_mean, self.running_var, self.momentum
        if not self.moves:
            mean, var, factor = mean.clone(), var.clone(), 0.0
        return batch_norm(x, mean, var, self.weight, self.bias, factor, self.eps)


#: Layers that normalise an image by its neighbours in the batch, in train mode.
BATCH_NORMS = (DomainNorm, RunningBatchNorm2d, nn.modules.batchnorm._BatchNorm)

#: What `model.norm` may name.
NORMS: dict[str, type[nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "domain": DomainNorm,
    "running": RunningBatchNorm2d,
}
