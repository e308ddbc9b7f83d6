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
Window = tuple[Any, ...]  # an index of rows and columns
#: Elements of each temporary, for each thread: more leave a CPU's cache, fewer cost calls.
STRIP = 2**17


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
    (result,) = _convolved(probabilities, layer, margin, (neighbours, border, eps), copies=1)
    return result


def affinity_convolution_apart(
    probabilities: Tensor,
    layer: nn.Conv2d,
    margin: tuple[int, int] = (0, 0),
    *,
    neighbours: int = 8,
    border: str = "replicate",
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """What `affinity_convolution` returns, computed once and returned twice.

    Gradients go through the first to the probabilities alone, through the second to `layer` alone.
    """
    first, second = _convolved(probabilities, layer, margin, (neighbours, border, eps), copies=2)
    return first, second


def _convolved(
    probabilities: Tensor,
    layer: nn.Conv2d,
    margin: tuple[int, int],
    options: tuple[int, str, float],
    copies: int,
) -> tuple[Tensor, ...]:
    neighbours, border, eps = options
    p = at_least_float32(probabilities)
    # A neighbour of probability 1 changes nothing: A and its gradient are 0 there.
    padded = _padded(p, border, nothing=1.0)
    padded = _as_fast(padded)
    geometry = layer.stride, layer.padding
    with without_autocast(p):
        return _Convolution.apply(
            padded, layer.weight, layer.bias, geometry, margin, neighbours, eps, copies
        )


class _Convolution(torch.autograd.Function):
    """Two opposite neighbours at a time, and again in the backward pass: nothing is kept but P.

    Written out because autograd would keep ten maps of each neighbour, and is twice as slow with
    checkpoints.  Of two copies of the result, the first is for P's gradient, the last for the
    layer's.
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
        copies: int,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(padded, weight)
        ctx.arguments = geometry, margin, neighbours, eps
        ctx.set_materialize_grads(False)  # None for the player that has no part in the loss
        field, parts = _Field.of(padded, eps), [*map(_as_fast, weight.chunk(neighbours, 1))]
        result, seen = bias[:, None, None], _two_maps(padded, margin)
        for offset, ways in _opposites(neighbours):
            for rows in _strips(padded):
                for pair, maps in zip(field.strip(rows).pairs(offset), seen, strict=True):
                    pair.map(out=maps[..., rows, : field.width])
            for way, maps in zip(ways, seen, strict=True):
                result = result + F.conv2d(maps, parts[way], None, *geometry)
        return (result, result.detach())[:copies]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        padded, weight = ctx.saved_tensors
        geometry, margin, neighbours, eps = ctx.arguments
        for_p, for_weight, for_bias = (
            gradient if wanted else None
            for gradient, wanted in zip(
                (gradients[0], gradients[-1], gradients[-1]), ctx.needs_input_grad, strict=False
            )
        )
        field, parts = _Field.of(padded, eps), [*map(_as_fast, weight.chunk(neighbours, 1))]
        seen, d_weight = _two_maps(padded, margin), [weight] * neighbours
        d_p = None if for_p is None else _Gradient(field)
        for offset, ways in _opposites(neighbours):
            if for_p is not None:
                d_maps = [conv2d_input(seen[0].shape, parts[w], for_p, *geometry) for w in ways]
            for rows in _strips(padded):
                pairs = field.strip(rows).pairs(offset)
                if for_weight is not None:
                    for pair, maps in zip(pairs, seen, strict=True):
                        pair.map(out=maps[..., rows, : field.width])
                if d_p:
                    d_p.add(rows, offset, pairs, [d[..., rows, : field.width] for d in d_maps])
            if for_weight is not None:
                for way, maps in zip(ways, seen, strict=True):
                    d_weight[way] = conv2d_weight(maps, parts[way].shape, for_weight, *geometry)
        return (
            d_p.total() if d_p else None,
            None if for_weight is None else torch.cat(d_weight, 1),
            None if for_bias is None else for_bias.sum((0, 2, 3)),
            *[None] * 5,
        )


def _as_fast(x: Tensor) -> Tensor:
    """Channels last on a CPU: its convolutions of few channels are faster, and their results so."""
    return x if x.is_cuda else x.contiguous(memory_format=torch.channels_last)


def _opposites(neighbours: int) -> list[tuple[Offset, tuple[int, int]]]:
    """Half of the neighbours; each with its number and that of the one at the other side."""
    offsets = NEIGHBOURS[neighbours]
    return [(offsets[i], (i, neighbours - 1 - i)) for i in range(neighbours // 2)]


def _two_maps(padded: Tensor, margin: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Maps of two neighbours, to be written: zeros, with `margin` rows and columns that stay so."""
    larger = F.pad(_at(padded, ITSELF), (0, margin[1], 0, margin[0]))
    return torch.zeros_like(larger), torch.zeros_like(larger)


def _strips(padded: Tensor) -> list[slice]:
    """The rows of the image, as many at a time as a CPU's cache holds: a GPU takes all."""
    rows = padded.shape[-2] - 2
    some = torch.get_num_threads() * STRIP // padded[..., 0, :].numel()
    step = rows if padded.is_cuda else max(1, some)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


class _Pair(NamedTuple):
    """All pixels with one neighbour each; (B, K, H, W) each."""

    q: Tensor  # c(q)
    rest: Tensor  # c(1 - q)
    ln_q: Tensor  # ln(c(q) / c(P_i))
    ln_rest: Tensor  # ln(c(1 - q) / c(1 - P_i))

    def map(self, out: Tensor) -> None:
        torch.mul(self.q, self.ln_q, out=out).addcmul_(self.rest, self.ln_rest)


class _Field(NamedTuple):
    """Probabilities with a margin of one pixel, and their logarithms; (B, K, H + 2, W + 2) each."""

    p: Tensor
    ln: Tensor
    ln_rest: Tensor  # ln c(1 - P)
    eps: float

    @classmethod
    def of(cls, padded: Tensor, eps: float) -> "_Field":
        return cls(padded, padded.log(), padded.neg().log1p_().clamp_(math.log(eps)), eps)

    @property
    def width(self) -> int:
        return self.p.shape[-1] - 2

    def strip(self, rows: slice) -> "_Field":
        p, ln, ln_rest = (_with_margin(x, rows) for x in self[:3])
        return _Field(p, ln, ln_rest, self.eps)

    def pairs(self, offset: Offset) -> tuple[_Pair, _Pair]:
        """Each pixel with its neighbour at the offset, and with that at the other side.

        q is the same for both ways between two pixels, and so are its logarithms, which are slow.
        """
        one, other, there, back = _windows(self.p, offset)
        least = math.log(self.eps)
        # That of q is a sum of two that are known.
        ln_q = (self.ln[one] + self.ln[other]).clamp_(least)
        q = self.p[one] * self.p[other]
        rest = q.neg()
        ln_rest = rest.log1p().clamp_(least)
        q, rest = q.clamp_(self.eps), rest.add_(1).clamp_(self.eps)
        ln_p, ln_rest_p = _at(self.ln, ITSELF).clamp(least), _at(self.ln_rest, ITSELF)
        first, second = (
            _Pair(q[way], rest[way], ln_q[way] - ln_p, ln_rest[way] - ln_rest_p)
            for way in (there, back)
        )
        return first, second


class _Gradient:
    """The gradient of P, gathered from strips and pairs."""

    def __init__(self, field: _Field):
        self.field = field
        self.of_q = torch.zeros_like(field.p)  # through q
        self.of_p = torch.zeros_like(_at(field.p, ITSELF))  # through ln c(P_i)
        self.of_rest = torch.zeros_like(self.of_p)  # through ln c(1 - P_i)

    def add(
        self, rows: slice, offset: Offset, pairs: tuple[_Pair, _Pair], d_maps: list[Tensor]
    ) -> None:
        """Add what two opposite neighbours give.  Overwrites the logarithms of the pairs."""
        eps = self.field.eps
        p, of_q = _with_margin(self.field.p, rows), _with_margin(self.of_q, rows)
        one, other, *ways = _windows(p, offset)
        q = p[one] * p[other]
        by_q, by_rest = torch.zeros_like(q), torch.zeros_like(q)
        for pair, d_map, way in zip(pairs, d_maps, ways, strict=True):
            self.of_p[..., rows, :].addcmul_(d_map, pair.q)
            self.of_rest[..., rows, :].addcmul_(d_map, pair.rest)
            by_q[way].addcmul_(d_map, pair.ln_q.add_(1))
            by_rest[way].addcmul_(d_map, pair.ln_rest.add_(1))
        d_q = _where_above(eps, q, by_q).sub_(_where_above(eps, 1 - q, by_rest))
        of_q[one].addcmul_(d_q, p[other])
        of_q[other].addcmul_(d_q, p[one])

    def total(self) -> Tensor:
        p, eps = _at(self.field.p, ITSELF), self.field.eps
        rest = 1 - p
        _at(self.of_q, ITSELF).sub_(_where_above(eps, p, self.of_p.div_(p)))
        _at(self.of_q, ITSELF).add_(_where_above(eps, rest, self.of_rest.div_(rest)))
        return self.of_q


def _with_margin(padded: Tensor, rows: slice) -> Tensor:
    """Those rows of the image, with those above and below."""
    return padded[..., rows.start : rows.stop + 2, :]


def _windows(padded: Tensor, offset: Offset) -> tuple[Window, Window, Window, Window]:
    """Of all pairs of pixels at `offset` from each other, of which one or both are in the image.

    Windows on what has a margin: the one of each pair, and the other.  Windows on the result: pairs
    whose one is in the image, and pairs whose other is.
    """
    sides: list[tuple[slice, ...]] = []
    for shift, side in zip(offset, padded.shape[-2:], strict=True):
        image, least = side - 2, 1 - max(shift, 0)
        starts = least, least + shift, max(shift, 0), max(-shift, 0)
        lengths = image + abs(shift), image + abs(shift), image, image
        sides.append(tuple(slice(a, a + n) for a, n in zip(starts, lengths, strict=True)))
    one, other, there, back = ((..., *window) for window in zip(*sides, strict=True))
    return one, other, there, back


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
