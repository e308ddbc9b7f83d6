"""Rank, world size and reductions; each is harmless when there is one process."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: In what gloo and NCCL say where another process is gone or silent.
LOST = (
    "Timed out waiting",
    "Connection closed by peer",
    "Connection reset by peer",
    "ncclRemoteError",
)


_on_its_own = False


@contextlib.contextmanager
def on_its_own() -> Iterator[None]:
    """Within, this process has no others: for what each rank does for itself, on fake tensors."""
    global _on_its_own
    before, _on_its_own = _on_its_own, True
    try:
        yield
    finally:
        _on_its_own = before


def _grouped() -> bool:
    return not _on_its_own and dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    return dist.get_rank() if _grouped() else 0


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place and without a gradient; returns its argument."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def stack(vector: Tensor) -> Tensor:
    """Every rank's vector (L,) as a row of (W, L), on every rank and without a gradient."""
    if world_size() == 1:
        return vector[None]
    rows = vector.new_empty(world_size(), len(vector))
    dist.all_gather_into_tensor(rows.view(-1), vector)
    return rows


class _Summed(torch.autograd.Function):
    """The sum over ranks; each rank's loss depends on every summand, so its backward is one too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_reduce(tensor.clone())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce(gradient.clone())


def gathered(tensor: Tensor) -> Tensor:
    """(W, ...) every rank's tensor of one shape, in rank order, with a gradient to each.

    Every rank must call it, and so its backward.
    Costs an all-reduce of W times the tensor, forward and backward: a sum with zeros is exact.
    """
    world = world_size()
    if world == 1:
        return tensor[None]
    rows = tensor.new_zeros(world, *tensor.shape)
    rows[rank()] = tensor
    return _Summed.apply(rows)


def in_order(values: Tensor) -> Tensor:
    """(B, ...) of every rank -> (W * B, ...), in the order of the samples' positions in a stream.

    Ranks read a stream in strides; else as `gathered`.
    """
    return gathered(values).transpose(0, 1).flatten(0, 1)


def broadcast(tensor: Tensor) -> Tensor:
    """Rank 0's values on every rank, in place; returns its argument."""
    if world_size() > 1:
        values = tensor.contiguous()  # the same tensor but for other layouts, which gloo refuses
        dist.broadcast(values, 0)
        tensor.copy_(values)
    return tensor


def gather(value: object) -> list:
    """Every rank's (picklable) value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def lost_another(error: RuntimeError) -> bool:
    """Whether an operation failed because another rank is gone or does not answer."""
    at_start = isinstance(error, (dist.DistStoreError, dist.DistNetworkError))
    return at_start or any(text in str(error) for text in LOST)


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()
