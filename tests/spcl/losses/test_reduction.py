"""What becomes of (sum, count) on two ranks, in a real network under DDP."""

import pytest
import torch
from processes import run_ranks
from torch import Tensor, nn

from spcl.losses.contrast import downsample_labels, pixel_contrast
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Term
from spcl.models.segmentor import build_segmentor
from spcl.trainer import total, wrap

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


def loss_and_gradient(images: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    network = Losses()
    wrapped = wrap(network)  # must outlive the backward pass
    loss, _ = total(wrapped(images, labels))
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in network.parameters()])


def on_rank(rank: int) -> dict:
    results = {}
    for void in (False, True):
        images, labels = (x[rank : rank + 1] for x in batch(void))
        results[void] = loss_and_gradient(images, labels)
    sums, counts = torch.tensor([1.0, 3.0]), torch.tensor([2, 1])
    results["row"] = total({"x": Term(sums[rank], counts[rank])})[0].item()
    return results


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(on_rank, 2)


def test_pixels_of_all_ranks_weigh_the_same(ranks):
    # The mean of both ranks' own means would be 1.75.
    assert sum(rank["row"] for rank in ranks) / 2 == pytest.approx(1.33333333, abs=1e-6)


@pytest.mark.parametrize("void", [False, True])
def test_two_ranks_equal_one_even_where_one_has_no_label(ranks, void):
    loss, gradient = loss_and_gradient(*batch(void))
    assert sum(rank[void][0] for rank in ranks) / 2 == pytest.approx(loss, abs=1e-9)
    for rank in ranks:
        assert torch.allclose(rank[void][1], gradient, atol=1e-9)
    assert gradient.abs().max() > 0.1
