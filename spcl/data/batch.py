"""What one training step reads."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

# The type of a field that only some streams read is that of its content: a method reads what it
# has declared in `Method.reads`, and need not ask each time whether it is there.
_NOT_READ: Any = None


class Labels(Protocol):
    """Where a stream's labels come from: sample number -> (H, W) uint8 trainIds."""

    def __call__(self, index: int) -> Tensor: ...


@dataclass(frozen=True)
class Images:
    """A rank's share of one stream at one step; what the stream does not read is None.

    image     (B, 3, H, W) float32, normalised
    position  (B,) int64, of each sample in its stream: what random draws are made from
    label     (B, H, W) uint8 trainIds, 255 ignored; of a target always a pseudo label
    """

    image: Tensor
    position: Tensor
    label: Tensor = _NOT_READ

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """With every tensor changed."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in values.items() if v is not None})

    def split(self, size: int) -> Iterator[Self]:
        """Parts of at most `size` samples, in order."""
        for start in range(0, len(self.position), size):
            yield self.each(lambda tensor, start=start: tensor[start : start + size])


@dataclass(frozen=True)
class Batch:
    """Stream name -> what was read of it: "source", "target" and a method's own streams."""

    streams: Mapping[str, Images]

    def __getitem__(self, stream: str) -> Images:
        if stream not in self.streams:
            raise KeyError(
                f"a method may use the streams that its `reads` declares, "
                f"{', '.join(self.streams)}; it asked for {stream!r}"
            )
        return self.streams[stream]

    @property
    def source(self) -> Images:
        return self["source"]

    @property
    def target(self) -> Images:
        return self["target"]

    def to(self, device: torch.device, channels_last: bool = False) -> Self:
        def move(tensor: Tensor) -> Tensor:
            if channels_last and tensor.dim() == 4:
                return tensor.to(device, non_blocking=True, memory_format=torch.channels_last)
            return tensor.to(device, non_blocking=True)

        return self._each(move)

    def pin_memory(self) -> Self:
        """In page-locked memory, which a GPU reads while the processor goes on."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, streams={k: v.each(change) for k, v in self.streams.items()})
