"""What one training step reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

# The type of a field that only some streams read is that of its content: a method reads what it
# has declared in `Method.reads`, and need not ask each time whether it is there.
NOT_READ: Any = None


class Labels(Protocol):
    """Where a stream's labels come from: sample number -> (H, W) uint8 trainIds."""

    def __call__(self, index: int) -> Tensor: ...


class Frames(Protocol):
    """Where the frames before come from: sample number -> (3, H, W) uint8 RGB."""

    def __call__(self, index: int) -> Tensor: ...


class Flow(Protocol):
    """Where the flow comes from: sample number -> (2, H, W) float32, as `Images.flow`.

    In pixels of its own grid, which may be coarser than the image's.
    """

    def __call__(self, index: int) -> Tensor: ...


class Sample(NamedTuple):
    """One sample, with the fields of `Images`; before and after augmentation.

    Before it the frames are uint8, and all may differ in size.
    """

    image: Tensor
    label: Tensor | None = None
    previous: Tensor | None = None
    flow: Tensor | None = None

    def each(self, change: Callable[[str, Tensor], Tensor]) -> "Sample":
        """With all that there is changed, by the name of its field."""
        there = {name: part for name, part in self._asdict().items() if part is not None}
        return self._replace(**{name: change(name, part) for name, part in there.items()})


class PairSample(NamedTuple):
    """Two crops of one image, with the fields of `Pair`: boxes (2, 4), flips (2,)."""

    first: Tensor
    second: Tensor
    boxes: Tensor
    flips: Tensor


@dataclass(frozen=True)
class _Tensors:
    """Tensors whose first dimension is the samples, some of them perhaps None."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """With every tensor changed."""

        def changed(value: "Tensor | _Tensors") -> "Tensor | _Tensors":
            return value.each(change) if isinstance(value, _Tensors) else change(value)

        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: changed(v) for k, v in values.items() if v is not None})

    def tensors(self) -> Iterator[Tensor]:
        """All that there are, in the order of the fields."""
        for value in (getattr(self, f.name) for f in fields(self)):
            if isinstance(value, _Tensors):
                yield from value.tensors()
            elif value is not None:
                yield value


@dataclass(frozen=True)
class Images(_Tensors):
    """A rank's share of one stream at one step; what the stream does not read is None.

    image     (B, 3, H, W) float32, normalised
    position  (B,) int64, of each sample in its stream: what random draws are made from
    label     (B, H, W) uint8 trainIds, 255 ignored; of a target always a pseudo label
    previous  (B, 3, H, W) as `image`: the frame before it, in the same window and colours
    flow      (B, 2, H, W) float32 pixels (x, y): the image's pixel (x, y) shows what lies at
              (x + flow[0], y + flow[1]) of `previous`, which may be outside of it
    """

    image: Tensor
    position: Tensor
    label: Tensor = NOT_READ
    previous: Tensor = NOT_READ
    flow: Tensor = NOT_READ

    @classmethod
    def of(cls, samples: Sequence[Sample], position: Tensor) -> Self:
        """Samples of one stream, which all have the same fields."""
        columns = zip(Sample._fields, zip(*samples, strict=True), strict=True)
        read = {name: torch.stack(column) for name, column in columns if column[0] is not None}
        return cls(position=position, **read)


@dataclass(frozen=True)
class Pair(_Tensors):
    """Two overlapping crops of each image of a stream, without labels.

    first, second  the crops, each (B, 3, h, w) and in colours of its own
    boxes  (B, 2, 4) int64: top, left, height, width of the overlap within each crop as it is given,
           mirrored or not
    flips  (B, 2) bool: which crop is mirrored, left to right
    position  (B,) int64, of each image in its stream
    """

    first: Images
    second: Images
    boxes: Tensor
    flips: Tensor
    position: Tensor

    @classmethod
    def of(cls, samples: Sequence[PairSample], position: Tensor) -> Self:
        """Samples of one stream."""
        first, second, boxes, flips = map(torch.stack, zip(*samples, strict=True))
        return cls(Images(first, position), Images(second, position), boxes, flips, position)


_Content = TypeVar("_Content", Images, Pair)


@dataclass(frozen=True)
class Batch:
    """Stream name -> what was read of it: "source", "target" and a method's own streams."""

    streams: Mapping[str, Images | Pair]

    def __getitem__(self, stream: str) -> Images:
        return self._get(stream, Images)

    def pair(self, stream: str) -> Pair:
        """What a stream that is read as `spcl.data.pairs.PairCrops` holds."""
        return self._get(stream, Pair)

    def _get(self, stream: str, kind: type[_Content]) -> _Content:
        if stream not in self.streams:
            raise KeyError(
                f"a method may use the streams that its `reads` declares, "
                f"{', '.join(self.streams)}; it asked for {stream!r}"
            )
        content = self.streams[stream]
        if not isinstance(content, kind):
            raise TypeError(
                f"batch[name] must name a stream of images and batch.pair(name) one of pairs; "
                f"{stream!r} holds {type(content).__name__}"
            )
        return content

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
