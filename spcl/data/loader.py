"""Independent streams, of the source and of the target, read by step.

`Steps[s]` is this rank's share of step s, a pure function of s, so a DataLoader over the remaining
steps, with any number of workers, continues a run exactly.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from spcl.data.batch import Batch, Flow, Frames, Images, Labels, Pair, PairSample, Sample
from spcl.data.pairs import AugmentPair
from spcl.data.sampling import ORDERS, Order, RareClass, Rarity, positions, stream_seed
from spcl.data.shards import ShardSet
from spcl.data.transforms import Augment, decode, decode_label
from spcl.errors import UserError
from spcl.store.sockets import shorten_for_loaders


@dataclass(frozen=True)
class StoredLabels:
    """The ground truth in the shards: source domain only."""

    shards: ShardSet

    def __call__(self, index: int) -> torch.Tensor:
        return decode_label(self.shards.label(index))


@dataclass(frozen=True)
class StoredFrames:
    """The frames before those of a split, where its shards hold them."""

    shards: ShardSet

    def __call__(self, index: int) -> torch.Tensor:
        return decode(self.shards.previous(index))


def stored_flow(shards: ShardSet) -> Flow | None:
    """The flow that is stored beside a split: of none yet."""
    return None


@dataclass
class Stream:
    """One domain's samples in one stage, and where what is read besides the image comes from."""

    name: str  # "<stage>/<stream>"; part of every draw
    shards: ShardSet
    augment: Augment | AugmentPair
    labels: Labels | None
    seed: int
    order: str = "uniform"  # of ORDERS
    rarity: Rarity = Rarity()
    previous: Frames | None = None
    flow: Flow | None = None

    def __post_init__(self) -> None:
        make = ORDERS[self.order]
        self.index: Order = make(self.shards, self.seed, self.name + "/order", self.rarity)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "index"}  # holds what can be drawn

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def sample_id(self, position: int) -> str:
        return self.shards.sample_ids[self.index(position)]

    def sample(self, position: int) -> Sample | PairSample:
        """The augmented sample at a position of the stream."""
        index = self.index(position)
        found = Sample(
            decode(self.shards.image(index)),
            self.labels(index) if self.labels else None,
            self.previous(index) if self.previous else None,
            self.flow(index) if self.flow else None,
        )
        kind = self.index.kind(position) if isinstance(self.index, RareClass) else None
        return self.augment(found, stream_seed(self.seed, self.name, position), kind)

    def read(self, where: range) -> Images | Pair:
        samples: list[Any] = [self.sample(p) for p in where]  # of what `makes` is made of
        return self.augment.makes.of(samples, torch.tensor(where))


class Steps(Dataset):
    """Step number -> this rank's Batch."""

    def __init__(
        self,
        streams: Mapping[str, Stream],
        *,
        batch: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        """streams by name; batch counts the images of each per step, over all ranks."""
        if batch % world_size:
            raise ValueError(f"batch {batch} must be divisible by world size {world_size}")
        self.streams = dict(streams)
        self.batch, self.rank, self.world_size = batch, rank, world_size

    def __getitem__(self, step: int) -> Batch:
        where = positions(step, self.batch, self.rank, self.world_size)
        return Batch({name: stream.read(where) for name, stream in self.streams.items()})

    def sample_ids(self, step: int) -> dict[str, list[str]]:
        """What all ranks read at a step, for an error message."""
        where = range(step * self.batch, (step + 1) * self.batch)
        return {name: [s.sample_id(p) for p in where] for name, s in self.streams.items()}

    def batches(self, start: int, stop: int, workers: int, pin: bool = False) -> Iterator[Batch]:
        """The batches of steps start .. stop-1, in order."""
        if workers:
            shorten_for_loaders()
        loader = DataLoader(
            _Careful(self),
            batch_size=None,  # an item is a batch already
            sampler=range(start, stop),
            num_workers=workers,
            pin_memory=pin,
            prefetch_factor=4 if workers else None,
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


@dataclass(frozen=True)
class _Careful(Dataset):
    """Hands a UserError over as an item: raised in a DataLoader worker, it would arrive as text.

    A user would then read a traceback in place of one clear line.
    """

    steps: Steps

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            return self.steps[step]
        except UserError as error:
            return error


def rank_indices(size: int, rank: int, world_size: int) -> np.ndarray:
    """The images of a pass that a rank reads: strided, without padding."""
    return np.arange(rank, size, world_size)
