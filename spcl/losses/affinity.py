"""Affinity of neighbouring pixels: what class probabilities say about pairs of them.

Letters: B batch, K classes, H W pixels, N neighbours of a pixel (8 or 4).
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from spcl.losses.segmentation import upsample
from spcl.precision import at_least_float32, without_autocast

#: N -> (rows down, columns to the right) of each neighbour, row by row
NEIGHBOURS = {
    8: ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)),
    4: ((-1, 0), (0, -1), (0, 1), (1, 0)),
}
#: What is beside a pixel of the border: a copy of itself, or nothing.
BORDERS = ("replicate", "valid")
ITSELF = (0, 0)
Offset = tuple[int, int]


def probabilities(logits: Tensor, size: tuple[int, ...], stride: int = 1) -> Tensor:
    """Softmax of logits (B, K, h, w) at every `stride`-th pixel of an image of `size` (H, W).

    Neighbours on that coarser grid are `stride` pixels apart.
    """
    return upsample(logits, size)[..., ::stride, ::stride].softmax(1)


def affinity_cleaning(
    probabilities: Tensor, neighbours: int = 8, border: str = "replicate"
) -> tuple[Tensor, Tensor]:
    """Sum of 1 - <P_i, P_j> over all pixels i and their neighbours j, and the number of pairs.

    probabilities (B, K, H, W).  Source: ASANet, arXiv:2009.12559, affinity space cleaning.
    """
    p = at_least_float32(probabilities)
    padded = _padded(p, border, nothing=0.0)
    partners = _around(_padded(torch.ones_like(p[:1, :1]), border, nothing=0.0), neighbours)
    # Subtracted pixel by pixel: two sums over the image would differ in their last digits only.
    agreement = _Agreement.apply(padded, neighbours)
    return (partners - agreement).sum(), partners.sum() * len(p)


class _Agreement(torch.autograd.Function):
    """sum_j <P_i, P_j> over the neighbours j of each pixel i, (B, 1, H, W).

    <P_i, sum_j P_j> is the same, so that one pass over the classes is enough.  Written out because
    autograd would keep the inner sum and a map for each neighbour.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, neighbours: int) -> Tensor:
        ctx.save_for_backward(padded)
        ctx.neighbours = neighbours
        return _around(padded, neighbours).mul_(_at(padded, ITSELF)).sum(1, keepdim=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (padded,) = ctx.saved_tensors
        result = torch.zeros_like(padded)
        _at(result, ITSELF).add_(_around(padded, ctx.neighbours).mul_(gradient))
        given = _at(padded, ITSELF) * gradient
        for offset in NEIGHBOURS[ctx.neighbours]:
            _at(result, offset).add_(given)
        return result, None


def affinity_convolution(
    probabilities: Tensor,
    layer: nn.Conv2d,
    margin: tuple[int, int] = (0, 0),
    *,
    neighbours: int = 8,
    border: str = "replicate",
    eps: float = 1e-4,
) -> Tensor:
    """`layer` applied to the affinity maps (B, N*K, H, W), which never exist together.

    probabilities  (B, K, H, W), each in [0, 1]
    layer          with N*K inputs: the first K are of the first neighbour
    margin         rows of zeros below the maps and columns to their right
    eps            c(x) = max(x, eps)

    The map of a neighbour j is, with q = P_i P_j for each class alone,
        A = c(q) ln(c(q) / c(P_i)) + c(1 - q) ln(c(1 - q) / c(1 - P_i)),
    the divergence of Bernoulli(q) from Bernoulli(P_i): 0 for certain and equal neighbours, -ln eps
    at the inner side of a certain edge.  Where the border is valid, it is 0 without a neighbour.

    Computed in at least float32.  Source: ASANet, arXiv:2009.12559; the clamp is its code's.
    """
    p = at_least_float32(probabilities)
    # A neighbour of probability 1 changes nothing: A and its gradient are 0 there.
    padded = _padded(p, border, nothing=1.0)
    geometry = layer.stride, layer.padding
    with without_autocast(p):
        return _Convolution.apply(
            padded, layer.weight, layer.bias, geometry, margin, neighbours, eps
        )


class _Convolution(torch.autograd.Function):
    """One neighbour after the other, and again in the backward pass: nothing is kept but P.

    Written out because autograd would keep ten maps of each neighbour, and is twice as slow with
    checkpoints.
    """

    @staticmethod
    def forward(
        ctx: Any,
        padded: Tensor,
        weight: Tensor,
        bias: Tensor,
        geometry: tuple[Any, Any],
        margin: tuple[int, int],
        neighbours: int,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(padded, weight)
        ctx.arguments = geometry, margin, neighbours, eps
        result, logs = bias[:, None, None], _logs(padded, eps)
        for offset, part in zip(NEIGHBOURS[neighbours], weight.chunk(neighbours, 1), strict=True):
            seen = _enlarged(_pair(padded, offset, logs, eps).map(), margin)
            result = result + F.conv2d(seen, part, None, *geometry)
            del seen  # before the next is made
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight = ctx.saved_tensors
        geometry, margin, neighbours, eps = ctx.arguments
        wants_p, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        p, logs, d_weight = _at(padded, ITSELF), _logs(padded, eps), []
        if wants_p:
            result = torch.zeros_like(padded)
            through_p, through_rest = torch.zeros_like(p), torch.zeros_like(p)  # c(P_i), c(1 - P_i)
        for offset, part in zip(NEIGHBOURS[neighbours], weight.chunk(neighbours, 1), strict=True):
            pair = _pair(padded, offset, logs, eps)
            if wants_weight:
                seen = _enlarged(pair.map(), margin)
                d_weight.append(conv2d_weight(seen, part.shape, gradient, *geometry))
                del seen
            if wants_p:
                height, width = p.shape[-2:]
                shape = (*p.shape[:2], height + margin[0], width + margin[1])
                d_map = conv2d_input(shape, part, gradient, *geometry)[..., :height, :width]
                through_p.addcmul_(d_map, pair.q)
                through_rest.addcmul_(d_map, pair.rest)
                d_q = pair.slope(eps).mul_(d_map)
                _at(result, ITSELF).addcmul_(d_q, _at(padded, offset))
                _at(result, offset).addcmul_(d_q, p)
                del d_map, d_q
            del pair
        if wants_p:
            rest = 1 - p
            _at(result, ITSELF).sub_(_where_above(eps, p, through_p.div_(p)))
            _at(result, ITSELF).add_(_where_above(eps, rest, through_rest.div_(rest)))
        return (
            result if wants_p else None,
            torch.cat(d_weight, 1) if wants_weight else None,
            gradient.sum((0, 2, 3)) if wants_bias else None,
            *[None] * 4,
        )


def _enlarged(x: Tensor, margin: tuple[int, int]) -> Tensor:
    return F.pad(x, (0, margin[1], 0, margin[0])) if any(margin) else x


class _Pair(NamedTuple):
    """All pixels with one neighbour each; (B, K, H, W) each."""

    q: Tensor  # c(q)
    rest: Tensor  # c(1 - q)
    ln_q: Tensor  # ln(c(q) / c(P_i))
    ln_rest: Tensor  # ln(c(1 - q) / c(1 - P_i))

    def map(self) -> Tensor:
        return (self.q * self.ln_q).addcmul_(self.rest, self.ln_rest)

    def slope(self, eps: float) -> Tensor:
        """The map's derivative by q.  Overwrites the logarithms."""
        by_rest = _where_above(eps, self.rest, self.ln_rest.add_(1))
        return _where_above(eps, self.q, self.ln_q.add_(1)).sub_(by_rest)


def _logs(padded: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """ln P with the margin; ln c(P_i); ln c(1 - P_i)."""
    logs, least = padded.log(), math.log(eps)
    return (
        logs,
        _at(logs, ITSELF).clamp(least),
        _at(padded, ITSELF).neg().log1p_().clamp_(least),
    )


def _pair(padded: Tensor, offset: Offset, logs: tuple[Tensor, Tensor, Tensor], eps: float) -> _Pair:
    ln, ln_p, ln_rest_p = logs
    q = _at(padded, ITSELF) * _at(padded, offset)
    # A logarithm is slow: that of q is a sum of two that are known.
    ln_q = (_at(ln, ITSELF) + _at(ln, offset)).clamp_(math.log(eps)).sub_(ln_p)
    ln_rest = q.neg().log1p_().clamp_(math.log(eps)).sub_(ln_rest_p)
    rest = (1 - q).clamp_(eps)
    return _Pair(q.clamp_(eps), rest, ln_q, ln_rest)


def _where_above(least: float, x: Tensor, value: Tensor) -> Tensor:
    """value where x > least, else 0: the gradient of max(x, least).

    torch.where takes fifteen times as long on a CPU.
    """
    return torch.ops.aten.threshold_backward(value, x, least)


def _padded(x: Tensor, border: str, nothing: float) -> Tensor:
    """x with a margin of one pixel: copies of the border, or `nothing`."""
    margin = (1, 1, 1, 1)
    return (
        F.pad(x, margin, mode="replicate")
        if border == "replicate"
        else F.pad(x, margin, value=nothing)
    )


def _at(padded: Tensor, offset: Offset) -> Tensor:
    """For each pixel what lies at `offset` from it: a view without the margin."""
    rows, columns = (
        slice(1 + shift, side - 1 + shift)
        for shift, side in zip(offset, padded.shape[-2:], strict=True)
    )
    return padded[..., rows, columns]


def _around(padded: Tensor, neighbours: int) -> Tensor:
    """Sum over the neighbours of each pixel."""
    total = torch.zeros_like(_at(padded, ITSELF))
    for offset in NEIGHBOURS[neighbours]:
        total.add_(_at(padded, offset))
    return total
