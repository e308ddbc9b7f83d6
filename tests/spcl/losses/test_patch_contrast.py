"""Against the hand-checked values of PiPa's patch term, and images whose pixels say their place."""

import pytest
import torch
import torch.nn.functional as F

from spcl.data.pairs import overlap_boxes
from spcl.errors import ConfigError
from spcl.losses import patch_contrast as module
from spcl.losses.patch_contrast import learners, matching_cells, on_grid, patch_contrast

FIRST = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
SECOND = torch.tensor([[0.8, 0.6]], dtype=torch.float64)
NEGATIVES = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
YES = torch.tensor([True])


def contrast(anchor, positive, temperature=1.0, wanted=YES, negatives=NEGATIVES, labels=(1, 2)):
    zero = torch.zeros(len(anchor), dtype=torch.int64)
    kinds = torch.tensor(labels)
    return patch_contrast(anchor, positive, wanted, zero, negatives, kinds, temperature)


@pytest.mark.parametrize(
    ("temperature", "forth", "back"),
    [(1.0, 0.47910450, 0.70340799), (0.1, 0.00033542, 0.12692811)],
)
def test_the_loss_of_either_direction(temperature, forth, back):
    assert float(contrast(FIRST, SECOND, temperature)[0]) == pytest.approx(forth, abs=1e-6)
    assert float(contrast(SECOND, FIRST, temperature)[0]) == pytest.approx(back, abs=1e-6)


def test_negatives_of_the_same_class_and_empty_places_are_none():
    more = torch.cat([NEGATIVES, FIRST, FIRST])
    found = contrast(FIRST, SECOND, negatives=more, labels=(1, 2, 0, 255))
    assert float(found[0]) == pytest.approx(0.47910450, abs=1e-6)
    assert float(contrast(FIRST, SECOND, labels=(0, 255))[0]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "forth", "back"),
    [
        (0.8, 0.95, True, False),
        (0.95, 0.95, False, False),
        (0.5, 0.85, False, False),
        (0.97, 0.95, False, True),
        (0.5, 0.9, False, False),
    ],
)
def test_only_the_more_confident_teaches(first, second, forth, back):
    first, second = torch.tensor(first), torch.tensor(second)
    assert bool(learners(first, second, 0.9)) == forth
    assert bool(learners(second, first, 0.9)) == back


def test_only_anchors_get_a_gradient():
    parts = [t.clone().requires_grad_() for t in (FIRST, SECOND, NEGATIVES)]
    contrast(parts[0], parts[1], negatives=parts[2])[0].backward()
    assert parts[0].grad.abs().sum() > 0 and parts[1].grad is None and parts[2].grad is None
    rng = torch.Generator().manual_seed(0)
    anchors = torch.randn(5, 3, dtype=torch.float64, generator=rng).requires_grad_()
    others = torch.randn(6, 3, dtype=torch.float64, generator=rng)
    wanted = torch.tensor([True, True, False, True, True])

    def loss(x):
        kinds = torch.tensor([1, 2, 0, 1, 255, 2])
        labels = torch.tensor([0, 1, 2, 0, 1])
        return patch_contrast(x, others[:5], wanted, labels, others, kinds, 0.5)[0]

    assert torch.autograd.gradcheck(loss, anchors)
    (gradient,) = torch.autograd.grad(loss(anchors), anchors)
    assert (gradient * anchors).sum(1).abs().max() < 1e-12 and not gradient[2].any()


def test_without_an_anchor_the_loss_is_a_zero_with_a_graph():
    anchor = FIRST.clone().requires_grad_()
    total, count = contrast(anchor, SECOND, wanted=~YES)
    total.backward()
    assert total.item() == int(count) == 0 and not anchor.grad.any()


def test_chunks_change_nothing_and_bound_what_is_kept(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 37, 4, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 37), generator=rng)
    wanted = torch.rand(37, generator=rng) < 0.5

    def run():
        anchors = rows[0].clone().requires_grad_()
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.numel()) or t, lambda t: t
        ):
            total, count = patch_contrast(
                anchors, rows[1], wanted, labels[0], rows[1], labels[1], 0.1
            )
        total.backward()
        return total.detach(), count, anchors.grad, max(kept)

    whole = run()
    monkeypatch.setattr(module, "CHUNK", 8)
    parts = run()
    torch.testing.assert_close(parts[:3], whole[:3], rtol=0, atol=1e-12)
    assert parts[3] < 37 * 37  # no table of similarities waits for the backward


# Geometry: 32-pixel crops at stride 8, the second 8 further down and 16 further right.

CROP, GRID = (32, 32), (4, 4)
CORNERS = torch.tensor([[0, 0], [8, 16]])
SCENE = torch.arange(64 * 64, dtype=torch.float64).view(1, 1, 64, 64)


def crops(flips: tuple[bool, bool]):
    """Two crops of a scene of pixel numbers, (2, 1, 32, 32), their boxes and flips."""
    made, boxes = [], overlap_boxes(CORNERS, CROP)
    for number, (top, left) in enumerate(CORNERS.tolist()):
        crop = SCENE[..., top : top + 32, left : left + 32]
        if flips[number]:
            crop = crop.flip(-1)
            boxes[number, 1] = 32 - boxes[number, 1] - boxes[number, 3]
        made.append(crop[0])
    return torch.stack(made), boxes[None], torch.tensor(flips)[None]


@pytest.mark.parametrize("flips", [(a, b) for a in (False, True) for b in (False, True)])
def test_matching_cells_show_the_same(flips):
    images, boxes, mirrored = crops(flips)
    index, inside = matching_cells(boxes, mirrored, CROP, GRID, 8)
    cells = on_grid(images, GRID)  # (2, 1, 4, 4)
    whole = on_grid(images if not any(flips) else crops((False, False))[0], GRID)
    both = set(whole[0].flatten().tolist()) & set(whole[1].flatten().tolist())
    assert len(both) == 6
    for own, other in ((0, 1), (1, 0)):
        mine, its = cells[own].flatten(), cells[other].flatten()
        there = inside[0, own]
        assert set(mine[there].tolist()) == both
        assert torch.equal(mine[there], its[index[0, own]][there])


def test_where_the_cells_of_an_overlap_lie():
    _, boxes, flips = crops((False, False))
    _, inside = matching_cells(boxes, flips, CROP, GRID, 8)
    first, second = inside[0].view(2, 4, 4)
    assert first.nonzero().tolist() == [[r, c] for r in (1, 2, 3) for c in (2, 3)]
    assert second.nonzero().tolist() == [[r, c] for r in (0, 1, 2) for c in (0, 1)]


def test_a_mirrored_crop_is_not_compared_as_it_lies():
    images, boxes, flips = crops((False, True))
    cells = on_grid(images, GRID).flatten(1)
    # Without the flip, the cell beside; with the box as if there were none, the one furthest away.
    for where, furthest in ((boxes, 8), (crops((False, False))[1], 24)):
        index, inside = matching_cells(where, torch.zeros_like(flips), CROP, GRID, 8)
        apart = (cells[0] - cells[1][index[0, 0]])[inside[0, 0]].abs()
        assert apart.max() == furthest


@pytest.mark.parametrize(
    ("crop", "grid", "multiple"),
    [((32, 32), (4, 4), 4), ((36, 32), (8, 8), 8), ((32, 32), (4, 4), 12)],
)
def test_cells_that_cannot_lie_on_each_other_are_refused(crop, grid, multiple):
    _, boxes, flips = crops((False, False))
    with pytest.raises(ConfigError, match=r"crops of .* change pipa\.crop or pipa\.multiple"):
        matching_cells(boxes, flips, crop, grid, multiple)


def test_finer_maps_are_averaged_and_coarser_ones_upsampled():
    values = torch.randn(1, 2, 8, 8)
    assert torch.equal(on_grid(values, (4, 4)), F.avg_pool2d(values, 2))
    assert on_grid(values, (16, 16)).shape == (1, 2, 16, 16) and on_grid(values, (8, 8)) is values
