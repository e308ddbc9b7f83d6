"""What each term of PiPa is for, on points of Gaussian classes: reached with it, not where broken.

Pixel by pixel networks see places (x, y) and a clue.  Figures: measured once, on these seeds.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toys import batch_of

from spcl.data.batch import Batch, Images, Pair
from spcl.engine.trainer import total
from spcl.extras.pipa import PiPa, PiPaConfig
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Method, Outputs, Seen, Term
from spcl.methods.stage import StageConfig
from spcl.models.backbone import Backbone
from spcl.models.segmentor import Segmentor
from spcl.randomness import Step

SECTORS, GRID, CELL = 6, (8, 12), 2
TURN = math.radians(15)  # of the target's points
SMALL = {
    "pixel_more_than": 4,
    "pixel_samples": 96,
    "patch_start": 0,
    "patch_samples": 48,
    "confidence": 0.3,
    "crop": GRID,
    "multiple": CELL,
}


def cells(seed: int) -> Tensor:
    """(4, 8, 12) numbers 0 .. 5, the same within a patch."""
    draws = torch.Generator().manual_seed(seed)
    small = torch.randint(0, SECTORS, (4, GRID[0] // CELL, GRID[1] // CELL), generator=draws)
    return small.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)


def points(seed: int, turn: float) -> tuple[Tensor, Tensor]:
    """(4, 2, 8, 12) points around a circle and the sectors that they are drawn for."""
    sector, draws = cells(seed), torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * sector / SECTORS + turn
    centre = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + 0.3 * torch.randn(4, 2, *GRID, generator=draws), sector


def with_clue(places: Tensor, number: Tensor) -> Tensor:
    return torch.cat([places, number[:, None] - (SECTORS - 1) / 2], 1)


class Points(nn.Sequential, Backbone):
    feature_dimension = 16

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU())


class Plain(Method):
    def losses(self, batch, step):
        source = self.segment(batch.source, "source", step)
        terms = {"segmentation": Term(*cross_entropy(source.logits, batch.source.label))}
        return Outputs(terms, {"source": Seen(batch.source, source, batch.source.label)})


def trained(seed: int, steps: int, batch: Callable[[int], Batch], **settings) -> Segmentor:
    torch.manual_seed(seed)
    network = Segmentor(Points(), nn.Conv2d(16, SECTORS, 1), SECTORS)
    made = Plain(network, StageConfig()).train()
    made.attach("pipa", PiPa(network, PiPaConfig(**SMALL | settings)))
    optimizer = torch.optim.Adam(made.parameters(), 0.01)
    for number in range(steps):
        terms = made(batch(number), Step(number))
        optimizer.zero_grad()
        total(terms)[0].backward()
        optimizer.step()
    return network


def pixel_control(seed: int, change: Callable[[Tensor], Tensor]) -> float:
    """Accuracy on turned points, of the nearest class mean of features that the term alone made.

    A class is two opposite sectors, so that the points themselves have no such means.
    """

    def batch(number: int) -> Batch:
        places, sector = points(1000 * seed + number, 0.0)
        label = change(sector % 3)
        return batch_of(source=(with_clue(places, cells(-number % 997)), label.byte()))

    network = trained(seed, 60, batch, patch_weight=0.0, pixel_weight=1e3)  # segmentation: nothing

    def features(own: int, turn: float) -> tuple[Tensor, Tensor]:
        places, sector = points(own, turn)
        with torch.no_grad():
            found = network(with_clue(places, cells(own + 1)), "target").features
        return found.permute(0, 2, 3, 1).flatten(0, 2), sector.flatten() % 3

    straight, label = features(77, 0.0)
    means = torch.stack([straight[label == k].mean(0) for k in range(3)])
    turned, label = features(78, TURN)
    return float((torch.cdist(turned, means).argmin(1) == label).float().mean())


def patch_control(seed: int, second: Callable[[Tensor], Tensor]) -> float:
    """Accuracy on a target whose clue lies, where on the source it gives the class away.

    The crops of a pair show the same places with other clues.
    """
    everything = torch.tensor([0, 0, *GRID]).repeat(4, 2, 1)

    def batch(number: int) -> Batch:
        own = 1000 * seed + number
        places, sector = points(own, 0.0)
        shown, _ = points(own + 500_000, 0.0)
        position = torch.arange(4) + 4 * number
        crops = with_clue(shown, cells(own + 1)), second(with_clue(shown, cells(own + 2)))
        pair = Pair(
            *(Images(crop, position) for crop in crops),
            everything,
            torch.zeros(4, 2, dtype=torch.bool),
            position,
        )
        source = Images(with_clue(places, sector), position, sector.byte())
        return Batch({"source": source, "target/pairs": pair})

    network = trained(seed, 120, batch, pixel_weight=0.0, patch_weight=1.0)
    places, sector = points(88, 0.0)
    with torch.no_grad():
        found = network(with_clue(places, cells(89)), "target").logits.argmax(1)
    return float((found == sector).float().mean())


def mean(control, change) -> float:
    return sum(control(seed, change) for seed in range(3)) / 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("control", "least", "most"),
    [(pixel_control, 0.8, 0.6), (patch_control, 0.84, 0.78)],
    # Measured: 0.91 and 0.49, 0.89 and 0.73.
)
def test_a_term_does_what_it_is_for_and_not_where_it_is_broken(control, least, most):
    assert mean(control, lambda given: given) > least
    assert mean(control, lambda given: given.flip(0)) < most  # another image's labels, or places
