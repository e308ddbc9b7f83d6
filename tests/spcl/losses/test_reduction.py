"""What becomes of (sum, count) on two ranks, in a real network under DDP."""

import pytest
import torch
from processes import run_ranks
from torch import Tensor, nn

from spcl.engine.gradients import wrap
from spcl.engine.trainer import total
from spcl.losses.contrast import downsample_labels, pixel_contrast
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Term
from spcl.models.segmentor import build_segmentor

CLASSES = 3
VOID = 255


def batch(void: bool) -> tuple[Tensor, Tensor]:
    """Two images; the second has only four valid pixels, or none."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, CLASSES, (2, 16, 24), generator=generator)
    labels[1] = VOID
    if not void:
        labels[1, 4:6, 6:8] = 1
    return images, labels


class Losses(nn.Module):
    """A network in both domains, and both losses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.segmentor = build_segmentor("tiny", CLASSES, norm="domain").double()
        self.keys = torch.eye(CLASSES, self.segmentor.feature_dimension, dtype=torch.float64)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Term]:
        source = self.segmentor(images, "source")
        target = self.segmentor(images + 1, "target")
        small = downsample_labels(labels, target.features.shape[-2:])
        seen = torch.ones(CLASSES, dtype=torch.bool)
        contrast = pixel_contrast(target.features, small, self.keys, seen, 0.1)
        return {"a": Term(*cross_entropy(source.logits, labels), 0.5), "b": Term(*contrast, 2.0)}


def loss_and_gradient(
    images: Tensor, labels: Tensor, reduction: str = "global"
) -> tuple[float, Tensor]:
    network = Losses()
    wrapped = wrap(network)  # must outlive the backward pass
    loss, _ = total(wrapped(images, labels), reduction)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in network.parameters()])


def on_rank(rank: int) -> dict:
    results = {}
    for void in (False, True):
        images, labels = (x[rank : rank + 1] for x in batch(void))
        results[void] = loss_and_gradient(images, labels)
    sums, counts = torch.tensor([1.0, 3.0]), torch.tensor([2, 1])
    for reduction in ("global", "per_rank"):
        loss, count = total({"x": Term(sums[rank], counts[rank])}, reduction)
        results[reduction] = loss.item(), count.tolist(), weight_gradient(rank, reduction)
    return results


class TwoPixelsAndOne(nn.Module):
    """A term linear in its one weight, of 1.0 over two pixels on rank 0, 3.0 over one on rank 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, rank: int) -> dict[str, Term]:
        sums, counts = torch.tensor([1.0, 3.0]), torch.tensor([2, 1])
        return {"x": Term(self.weight * sums[rank], counts[rank])}


def weight_gradient(rank: int, reduction: str) -> float:
    network = TwoPixelsAndOne()
    wrapped = wrap(network)
    total(wrapped(rank), reduction)[0].backward()
    return network.weight.grad.item()


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(on_rank, 2)


@pytest.mark.parametrize(("reduction", "value"), [("global", 1.33333333), ("per_rank", 1.75)])
def test_two_pixels_and_one(ranks, reduction, value):
    """1.0 over two pixels, 3.0 over one: all pixels weigh the same, or all ranks do."""
    losses, counts, gradients = zip(*(rank[reduction] for rank in ranks), strict=True)
    assert sum(losses) / 2 == pytest.approx(value, abs=1e-6)
    assert gradients == pytest.approx([value, value], abs=1e-6)  # what DDP leaves on both ranks
    assert counts == ([3.0], [3.0])  # for the log, which is of all pixels


def test_alone_both_reductions_are_the_same_bits():
    for void in (False, True):
        one, other = (loss_and_gradient(*batch(void), r) for r in ("global", "per_rank"))
        assert one[0] == other[0] and torch.equal(one[1], other[1])


@pytest.mark.parametrize("void", [False, True])
def test_two_ranks_equal_one_even_where_one_has_no_label(ranks, void):
    loss, gradient = loss_and_gradient(*batch(void))
    assert sum(rank[void][0] for rank in ranks) / 2 == pytest.approx(loss, abs=1e-9)
    for rank in ranks:
        assert torch.allclose(rank[void][1], gradient, atol=1e-9)
    assert gradient.abs().max() > 0.1
