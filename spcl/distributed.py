"""Rank, world size and reductions; each is harmless when there is one process."""

import contextlib
from collections.abc import Iterator

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
