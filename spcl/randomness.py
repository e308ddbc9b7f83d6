"""Random numbers inside a training step, as a pure function of what they are for.

A global generator's numbers depend on all that was drawn before: on the rank, on the size of a
micro-batch, on where a run was resumed.  Here a number is computed from the run's seed, the stage,
a name and the position of the sample in its stream, so that all of those agree to the bit.  What is
handed out are tensors on the device: a compiled region is given them and draws nothing itself.
Source: the mixing function is SplitMix64's (Steele, Lea and Flood 2014), whose n-th number needs no
other.
"""

import zlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's increment: 2**64 over the golden ratio, made odd
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # its shifts and multipliers
LAST_SHIFT = 31
UNIFORM_BITS = 24  # a float32's mantissa: every number is exact, and none rounds up to 1


class Step(NamedTuple):
    """One step of a stage: what a method's `losses` may depend on besides the batch."""

    number: int
    seed: int = 0
    stage: str = ""

    def keys(self, name: str, positions: Tensor) -> Tensor:
        """(B,) int64, a key for each sample from which everything of one name is drawn.

        name       what the draws are for; different names give independent numbers
        positions  (B,) int64, of the samples in their stream; they tell the step, too
        """
        start = mix(torch.full_like(positions, _signed(self.seed)))
        return mix(mix(start ^ _name_number(f"{self.stage}/{name}")) ^ positions)

    def uniform(self, name: str, positions: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) float32 in [0, 1), on the positions' device."""
        return uniform(self.keys(name, positions), shape)

    def of_step(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """(*shape,) float32 in [0, 1), the same on all ranks: for a draw that no sample owns."""
        number = torch.tensor([self.number], device=device)
        return self.uniform(f"step/{name}", number, shape)[0]


def uniform(keys: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """(B, *shape) float32 in [0, 1): the first numbers of SplitMix64 from each of (B,) int64."""
    count = 1
    for size in shape:
        count *= size
    counter = torch.arange(1, count + 1, device=keys.device) * _signed(GOLDEN)
    bits = _shift(mix(keys[:, None] + counter), 64 - UNIFORM_BITS)
    return (bits.to(torch.float32) * 2.0**-UNIFORM_BITS).reshape(len(keys), *shape)


def derived(keys: Tensor, names: Tensor) -> Tensor:
    """(L, B) int64 keys for parts (layers) of what (B,) int64 keys are for.

    names  (L, 1) of `name_numbers`
    """
    return mix(keys ^ names)


def name_numbers(names: Iterable[str]) -> Tensor:
    """(L,) int64, a number for each name."""
    return torch.tensor([_name_number(name) for name in names], dtype=torch.int64)


def mix(state: Tensor) -> Tensor:
    """SplitMix64's output of int64 states; products wrap around, as those of uint64 do."""
    for shift, multiplier in MIX:
        state = (state ^ _shift(state, shift)) * _signed(multiplier)
    return state ^ _shift(state, LAST_SHIFT)


def _shift(state: Tensor, bits: int) -> Tensor:
    """To the right as if without a sign: torch has no uint64 arithmetic."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """The int64 of the same 64 bits."""
    return (number + 2**63) % 2**64 - 2**63


def _name_number(name: str) -> int:
    return _signed(zlib.crc32(name.encode()) * GOLDEN % 2**64)
