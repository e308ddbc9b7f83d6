"""Batch normalisation for two domains and many ranks, the frozen kind, and the running one.

All read the state of an `nn.BatchNorm2d`.  Letters: B batch, C channels, h w grid.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl import distributed

DOMAINS = ("source", "target")
HALF = (torch.float16, torch.bfloat16)
EXACT = 2**24  # float32 holds every whole number up to here


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


def _per_channel(vector: Tensor) -> Tensor:
    return vector[:, None, None]  # (C, 1, 1), against (B, C, h, w)


class _Affine(torch.autograd.Function):
    """x -> x * scale + bias in half precision: one pass in x's type, computed in float32.

    The kernel is that of evaluation with mean 0 and variance 1, which reads float32 vectors beside
    a narrower x; torch.addcmul would round them first.  Unlike F.batch_norm this keeps no copy of x
    for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        mean, var = torch.zeros_like(scale), torch.ones_like(scale)
        return F.batch_norm(x, mean, var, scale, bias, eps=0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return _Affine.apply(gradient, scale, torch.zeros_like(scale)), None, None


class _Normalize(torch.autograd.Function):
    """x -> weight * (x - mean) / sqrt(var + eps) + bias, with moments over all ranks.

    Made of the kernels of torch's own batch norm, with one collective between them in each
    direction.  The input alone is kept.  A rank may hold an empty batch.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, var, count = _over_ranks(*_moments(x, weight), x.numel() // len(weight))
        mean, var = mean.to(weight.dtype), var.to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        if gradient.stride() != x.stride():  # there the kernel would sum bfloat16 in bfloat16
            gradient = torch.empty_like(x).copy_(gradient)
        d_weight, d_bias = _sums(gradient, x, weight, mean, var, ctx.eps)
        # Those of parameters are of this rank, DDP adds them up.  What reaches the moments comes
        # from all ranks: every rank's loss depends on them.
        total = distributed.all_reduce(torch.cat([d_weight, d_bias]))
        scale = weight * (var + ctx.eps).rsqrt()
        through_var, through_mean = ((total / -count).to(scale.dtype) * scale.repeat(2)).chunk(2)
        d_x = F.batch_norm(x, mean, var, through_var, through_mean, eps=ctx.eps)
        d_x.addcmul_(gradient, _per_channel(scale.to(x.dtype)))
        return d_x, d_weight, d_bias, None


def _moments(x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of this rank's batch, 0 where it is empty, in like's type."""
    zero = torch.zeros_like(like)
    if x.numel() == 0:
        return zero, zero
    # Running statistics of a wider type, which do not move, ask for moments of that type.
    return torch.ops.aten.batch_norm_update_stats(x, zero, torch.ones_like(like), 0.0)


def _sums(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Sums (C,) of gradient * (x - mean) / sqrt(var + eps) and of gradient, on this rank."""
    if x.numel() == 0:
        return torch.zeros_like(weight), torch.zeros_like(weight)
    wanted = [False, True, True]  # of the gradients of x, weight and bias, given fixed moments
    _, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
        gradient, x, weight, mean, var, None, None, False, eps, wanted
    )
    return d_weight, d_bias


def _over_ranks(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and count () over ranks, in float64, from each rank's own.

    Ranks exchange moments about their own means (Chan et al., 1983), not sums about a shift that
    they share: such sums cancel wherever the shift is far from the mean, as a running mean is that
    started from 0 and has moved by a tenth.
    """
    high, low = divmod(count, EXACT)  # each is a whole number that float32 holds
    lanes = [mean, var, mean.new_full((1,), high), mean.new_full((1,), low)]
    rows = distributed.stack(torch.cat(lanes)).double()
    means, variances, highs, lows = rows.split([len(mean), len(mean), 1, 1], dim=1)  # (W, C or 1)
    counts = highs * EXACT + lows
    total = counts.sum()
    shares = counts / total
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    return mean, var, total


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
        if x.dtype in HALF:
            return _Affine.apply(x, scale, bias)
        # Unlike F.batch_norm this keeps no copy of x for the backward pass.
        return torch.addcmul(_per_channel(bias), x, _per_channel(scale))

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
