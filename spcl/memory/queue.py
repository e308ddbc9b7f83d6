"""A queue of what the last steps have seen: rows with a label, as buffers."""

import torch
from torch import Tensor, nn

from spcl.data.labels import IGNORE_INDEX


class StepQueue(nn.Module):
    """The rows of the last steps, from new to old; equal on all ranks if what is pushed is.

    Buffers: rows (T, N, D) without gradients and labels (T, N) uint8 trainIds, 255 where there is
    no row.  No index stands beside them: a push moves everything by one step.
    """

    rows: Tensor
    labels: Tensor

    def __init__(self, steps: int, size: int, dimension: int):
        """steps  T;  size  N, rows that a step may have"""
        super().__init__()
        self.register_buffer("rows", torch.zeros(steps, size, dimension))
        empty = torch.full((steps, size), IGNORE_INDEX, dtype=torch.uint8)
        self.register_buffer("labels", empty)

    @torch.no_grad()
    def push(self, rows: Tensor, labels: Tensor) -> None:
        """Take in a step's (n, D) and (n,), n <= N, and forget the oldest step's."""
        for buffer, new, filler in ((self.rows, rows, 0), (self.labels, labels, IGNORE_INDEX)):
            newest = torch.full_like(buffer[:1], filler)
            newest[0, : len(new)] = new
            buffer.copy_(torch.cat([newest, buffer[:-1]]))

    def all(self) -> tuple[Tensor, Tensor]:
        """(T * N, D) rows and (T * N,) labels, copies that a later push leaves alone."""
        return self.rows.flatten(0, 1).clone(), self.labels.flatten().clone()
