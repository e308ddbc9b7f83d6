"""Directions n = f / |f| of pixel features, and products with them; they are never built.

Features are the largest tensors of a step.  They are read once forward and once backward, a chunk
at a time in the order of their memory, and of their size nothing is made but the gradient.
Letters: B batch, D feature dimension, K classes, P pixels.
"""

from typing import Any

import torch
from torch import Tensor

from spcl.precision import at_least_float32, without_autocast

EPSILON = 1e-12  # a feature shorter than this is not brought to unit length

# Elements of a chunk: on a CPU what its caches hold, no less, for where cores are shared every
# operation's threads wait for each other; on a GPU enough to be worth starting kernels.
CHUNK = {"cpu": 2**19, "cuda": 2**24}


def chunks(flat: Tensor) -> list[tuple[slice, slice]]:
    """Which channels and which pixels of features (B, D, P) to take together.

    All pixels and some channels, or, where a pixel's channels lie side by side, the reverse.
    """
    batch, dimension, pixels = flat.shape
    elements, whole = CHUNK.get(flat.device.type, CHUNK["cuda"]), slice(None)

    def parts(length: int, others: int) -> list[slice]:
        size = max(1, elements // max(1, others))
        return [slice(start, start + size) for start in range(0, length, size)]

    if flat.stride(1) == 1:
        return [(whole, part) for part in parts(pixels, batch * dimension)]
    return [(part, whole) for part in parts(dimension, batch * pixels)]


@torch.no_grad()
def lengths(flat: Tensor) -> Tensor:
    """|f|, but at least EPSILON, of features (B, D, P): (B, 1, P), at least float32."""
    squares = _zeros(flat, 1)
    for channels, pixels in chunks(flat):
        x = at_least_float32(flat[:, channels, pixels])
        squares[:, :, pixels].add_(x.square().sum(1, keepdim=True))
    return squares.sqrt_().clamp_(min=EPSILON)


def products(features: Tensor, keys: Tensor, weights: Tensor | None = None) -> tuple[Tensor, ...]:
    """n keys' and, with weights, n**2 weights' for every pixel: each (B, K, P), at least float32.

    features  (B, D, h, w), with gradient
    keys, weights  (K, D), used without gradient
    """
    flat = features.flatten(2)  # (B, D, P), a view, also of channels_last
    wide = torch.promote_types(flat.dtype, torch.float32)
    given = [matrix if matrix is None else matrix.detach().to(wide) for matrix in (keys, weights)]
    with without_autocast(flat):
        return _Products.apply(flat, *given)


class _Products(torch.autograd.Function):
    """Written out because autograd would differentiate |f| by maps of the features' size.

    With c = n key and q = n**2 weight of one pixel, whose length is a constant where it is clamped:
        dc/df = key / |f| - f c / |f|**2
        dq/df = 2 f weight / |f|**2 - 2 f q / |f|**2
    So the gradient is a small matrix product and a multiple of f; all that is summed over channels
    is known from the forward.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor, keys: Tensor, weights: Tensor | None) -> tuple[Tensor, ...]:
        linear, squares = _zeros(flat, len(keys)), _zeros(flat, 1)
        quadratic = _zeros(flat, 0 if weights is None else len(weights))
        for channels, pixels in chunks(flat):
            x = at_least_float32(flat[:, channels, pixels])
            square = x.square()
            squares[:, :, pixels].add_(square.sum(1, keepdim=True))
            linear[:, :, pixels].baddbmm_(_of_each(x, keys[:, channels]), x)
            if weights is not None:
                quadratic[:, :, pixels].baddbmm_(_of_each(x, weights[:, channels]), square)
        length = squares.sqrt_().clamp_(min=EPSILON)
        linear /= length
        quadratic /= length.square()
        ctx.save_for_backward(flat, keys, weights, length, linear, quadratic)
        return (linear,) if weights is None else (linear, quadratic)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, d_linear: Tensor, d_quadratic: Tensor | None = None
    ) -> tuple[Tensor, None, None]:
        flat, keys, weights, length, linear, quadratic = ctx.saved_tensors
        by_key = d_linear / length
        along = (d_linear * linear).sum(1, keepdim=True)
        if d_quadratic is not None:
            by_weight = 2 * d_quadratic / length.square()
            along += 2 * (d_quadratic * quadratic).sum(1, keepdim=True)
        own = torch.where(length > EPSILON, -along / length.square(), 0)  # (B, 1, P)
        gradient = torch.empty_like(flat)
        with without_autocast(flat):
            for channels, pixels in chunks(flat):
                x, scale = flat[:, channels, pixels], own[:, :, pixels]
                if d_quadratic is not None:
                    weight = _of_each(x, weights[:, channels].mT)
                    scale = torch.baddbmm(scale, weight, by_weight[:, :, pixels])
                key = _of_each(x, keys[:, channels].mT)
                gradient[:, channels, pixels] = (x * scale).baddbmm_(key, by_key[:, :, pixels])
        return gradient, None, None


def _zeros(flat: Tensor, rows: int) -> Tensor:
    """(B, rows, P), at least float32."""
    wide = torch.promote_types(flat.dtype, torch.float32)
    return flat.new_zeros(len(flat), rows, flat.shape[2], dtype=wide)


def _of_each(x: Tensor, matrix: Tensor) -> Tensor:
    """The same matrix for each image of x."""
    return matrix.expand(len(x), -1, -1)
