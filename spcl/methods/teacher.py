"""A teacher: a network that is the running mean of the student's, and labels images for it.

Source: Tarvainen and Valpola 2017, arXiv:1703.01780; values of DAFormer's code (arXiv:2111.14887).
"""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spcl import distributed
from spcl.losses.segmentation import upsample
from spcl.models.segmentor import Output, Segmentor

CHECK_EVERY = 500  # steps between two comparisons of the ranks' teachers
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number
DIGEST_BASE = 1_000_003  # a prime: so that two tensors that change places are told


class Lesson(NamedTuple):
    """What a teacher says of images.

    label       (B, H, W) uint8 trainIds, of every pixel
    confidence  (B, H, W) the probability of that class
    """

    output: Output
    label: Tensor
    confidence: Tensor


def new_teacher(student: Segmentor) -> Segmentor:
    """A copy that nothing trains, in eval mode: as a sub-module of a method it stays so."""
    # Tensors are copied first, since a fake one (`spcl.engine.footprint`) would copy its mode too.
    copies: dict[int, Any] = {id(b): b.clone() for b in student.buffers()}
    for parameter in student.parameters():
        copies[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
    return copy.deepcopy(student, copies).eval()


@torch.no_grad()
def teach(teacher: Segmentor, image: Tensor) -> Lesson:
    """Its labels of target images (B, 3, H, W), free of gradients; one forward.

    Not in inference mode, whose tensors no loss may use.
    """
    output = teacher(image, "target")
    confidence, label = upsample(output.logits, image.shape[-2:]).softmax(1).max(1)
    return Lesson(output, label.byte(), confidence)


def momentum_at(step: int, most: float) -> float:
    """Weight of the old value before step `step`: min(1 - 1 / (step + 1), most); 0 is a copy."""
    return min(1 - 1 / (step + 1), most)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float, *, buffers: str) -> None:
    """Teacher <- momentum * teacher + (1 - momentum) * student, in place.

    buffers  "mean", as parameters, those that hold no fractions as copies; "own" leaves them
    """
    old, new = _pairs(teacher.parameters(), student.parameters())
    if buffers == "mean":
        for mine, its in zip(teacher.buffers(), student.buffers(), strict=True):
            if mine.is_floating_point():
                old.append(mine)
                new.append(its)
            else:
                mine.copy_(its)
    # One call for all: a network has hundreds of tensors, most of them small.
    torch._foreach_lerp_(old, new, 1 - momentum)


def _pairs(mine: Iterator[Tensor], its: Iterator[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    old, new = list(mine), [tensor.detach() for tensor in its]
    assert len(old) == len(new), "a teacher is a copy of its student"
    return old, new


def digest(module: nn.Module) -> Tensor:
    """() int64 on the module's device: equal for equal states, and a few sums long."""
    total: Tensor | None = None
    for tensor in (*module.parameters(), *module.buffers()):
        bits = tensor.detach().contiguous().view(BITS[tensor.element_size()])
        own = bits.sum(dtype=torch.int64)
        total = own if total is None else total * DIGEST_BASE + own
    assert total is not None, "a network has a state"
    return total


def check_equal(module: nn.Module, what: str, step: int) -> None:
    """RuntimeError unless a module is the same, bit for bit, on all ranks, which all call this."""
    found = distributed.gather(int(digest(module)))
    if len(set(found)) > 1:
        own = ", ".join(f"rank {rank}: {value:x}" for rank, value in enumerate(found))
        raise RuntimeError(
            f"{what} must be the same on all ranks, but after step {step} its digests are {own}; "
            "this is an error of ours or of the hardware: go on from an earlier checkpoint"
        )
