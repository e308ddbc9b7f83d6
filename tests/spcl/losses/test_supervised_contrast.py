"""Against the hand-checked values of PiPa's pixel term, and a slow version of its sampler."""

import math

import pytest
import torch
import torch.nn.functional as F

from spcl.losses.supervised_contrast import (
    at_pixels,
    pairs_by_label,
    pixels_of_kinds,
    sample_pixels,
    supervised_contrast,
    views_per_group,
)

FOUR = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
FIVE = torch.cat([FOUR, torch.tensor([[0.8, -0.6]], dtype=torch.float64)])
OF_FOUR, OF_FIVE = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 0])
VOID = 255


def per_anchor(rows, labels, **options) -> list[float]:
    options = {"temperature": 1.0} | options
    found = [
        supervised_contrast(row[None], label[None], rows, labels, first=n, **options)
        for n, (row, label) in enumerate(zip(rows, labels, strict=True))
    ]
    assert [int(count) for _, count in found] == [1] * len(rows)
    return [float(total) for total, _ in found]


@pytest.mark.parametrize(
    ("rows", "labels", "options", "expected"),
    [
        (FOUR, OF_FOUR, {}, [0.56002037, 0.92528891, 1.44114728, 0.65060030]),
        (
            FOUR,
            OF_FOUR,
            {"denominators": "pos_neg"},
            [0.56002037, 0.92528891, 1.44114728, 0.65060030],
        ),
        (
            FOUR,
            OF_FOUR,
            {"temperature": 0.1},
            [0.00247580, 2.12692874, 8.00067070, 0.00252097],
        ),
        (FIVE, OF_FIVE, {}, [0.98927245, 1.42213629, 1.56325838, 0.86120924, 1.04070715]),
        (
            FIVE,
            OF_FIVE,
            {"denominators": "pos_neg"},
            [0.51956243, 1.12675889, 1.56325838, 0.86120924, 0.53137054],
        ),
    ],
)
def test_the_loss_of_each_anchor(rows, labels, options, expected):
    assert per_anchor(rows, labels, **options) == pytest.approx(expected, abs=1e-6)
    # Lengths do not count, and the sum over all anchors is that of each by itself.
    total, count = supervised_contrast(
        3 * rows, labels, 3 * rows, labels, **{"temperature": 1.0} | options
    )
    assert float(total) == pytest.approx(sum(expected), abs=1e-6) and int(count) == len(rows)


def contrast(rows, labels, **options):
    return supervised_contrast(rows, labels, rows, labels, **{"temperature": 1.0} | options)


@pytest.mark.parametrize("denominators", ["all", "pos_neg"])
def test_void_and_anchors_without_a_positive_are_left_out(denominators):
    rows = torch.cat([FOUR, torch.tensor([[0.3, 0.9], [-0.5, 0.1]], dtype=torch.float64)])
    plain = contrast(FOUR, OF_FOUR, denominators=denominators)
    with_void = contrast(rows, torch.tensor([0, 0, 1, 1, VOID, VOID]), denominators=denominators)
    assert float(plain[0]) == pytest.approx(float(with_void[0]), abs=1e-12)
    assert int(with_void[1]) == 4
    alone = contrast(rows[:5], torch.tensor([0, 0, 1, 1, 2]), denominators=denominators)
    assert int(alone[1]) == 4 and float(alone[0]) > float(plain[0])  # a negative of the others


@pytest.mark.parametrize("denominators", ["all", "pos_neg"])
@pytest.mark.parametrize("labels", [[VOID] * 4, [0, 1, 2, 3], [VOID, VOID, VOID, 0]])
def test_without_a_pair_the_loss_is_a_zero_with_a_graph(denominators, labels):
    rows = FOUR.clone().requires_grad_()
    total, count = contrast(rows, torch.tensor(labels), denominators=denominators)
    total.backward()
    assert total.item() == int(count) == 0 and torch.equal(rows.grad, torch.zeros_like(rows))


@pytest.mark.parametrize("denominators", ["all", "pos_neg"])
def test_two_alike_and_nothing_else_are_at_zero(denominators):
    total, count = contrast(FOUR[:2], OF_FOUR[:2], denominators=denominators)
    assert float(total) == pytest.approx(0, abs=1e-12) and int(count) == 2


@pytest.mark.parametrize("denominators", ["all", "pos_neg"])
def test_the_gradient_reaches_anchors_and_keys(denominators):
    rows = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1, 0, VOID])

    def loss(x):
        return contrast(x, labels, temperature=0.3, denominators=denominators)[0]

    assert torch.autograd.gradcheck(loss, rows.requires_grad_())
    (gradient,) = torch.autograd.grad(loss(rows), rows)
    assert (gradient * rows).sum(1).abs().max() < 1e-12  # orthogonal: directions alone count
    shuffled = torch.tensor([3, 0, 5, 2, 4, 1])
    again = contrast(rows[shuffled], labels[shuffled], temperature=0.3, denominators=denominators)
    assert float(again[0]) == pytest.approx(float(loss(rows)), abs=1e-12)


def test_bfloat16_is_near_float32():
    rows, labels = torch.randn(40, 8), torch.arange(40) % 5
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = contrast(rows.bfloat16(), labels, temperature=0.1)
    exact, _ = contrast(rows.bfloat16().float(), labels, temperature=0.1)
    assert total.dtype == torch.float32 and torch.equal(total, exact)


def test_views_of_a_group():
    groups = [1, 10, 11, 16, 19, 38, 5000]
    views = [int(views_per_group(torch.tensor(g), 1024, 100)) for g in groups]
    assert views == [100, 100, 93, 64, 53, 26, 1]


def slow_sample(labels, right, draws, views, more_than, classes):
    """The sampler in loops: indices of what is taken, as a set."""
    taken = set()
    for image in range(len(labels)):
        for kind in range(classes):
            mine = [p for p in range(labels.shape[1]) if labels[image, p] == kind]
            if len(mine) <= more_than:
                continue
            wanted = min(int(views[image, kind]), len(mine))
            hard = sorted((float(draws[image, p]), p) for p in mine if not right[image, p])
            easy = sorted((float(draws[image, p]), p) for p in mine if right[image, p])
            if len(hard) >= wanted / 2 and len(easy) >= wanted / 2:
                of_hard = wanted // 2
            elif len(hard) >= wanted / 2:
                of_hard = wanted - len(easy)
            else:
                of_hard = len(hard)
            chosen = hard[:of_hard] + easy[: wanted - of_hard]
            taken |= {image * labels.shape[1] + p for _, p in chosen}
    return taken


@pytest.mark.parametrize("seed", range(6))
def test_the_sampler_takes_what_the_slow_one_takes(seed):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (3, 60), generator=rng).byte()
    labels[torch.rand(3, 60, generator=rng) < 0.3] = VOID
    labels[0, labels[0] == 1] = 2
    right = torch.rand(3, 60, generator=rng) < [0.0, 0.1, 0.5, 0.5, 0.9, 1.0][seed]
    draws, views = torch.rand(3, 60, generator=rng), torch.full((3, 4), 9 - seed)
    chosen, meant = sample_pixels(labels, right, draws, views, 8, 120)
    expected = slow_sample(labels, right, draws, views, 8, 4)
    assert len(chosen) == 120 and set(chosen[meant].tolist()) == expected
    assert int(meant.sum()) == len(expected) > 20
    counts = pixels_of_kinds(labels, right, 4)
    assert int(counts[0, 1].sum()) == 0 and int(counts.sum()) == int((labels != VOID).sum())
    assert int(counts[..., 1].sum()) == int((right & (labels != VOID)).sum())


def test_pairs_are_counted_by_label():
    labels, keys = torch.tensor([[0, 3], [1, VOID]]), torch.tensor([0, 0, 1, 2, VOID]).byte()
    alike, others = pairs_by_label(labels, keys, 4)
    assert alike.tolist() == [[2, 0], [1, 0]] and others.tolist() == [[2, 4], [3, 0]]


def test_a_class_needs_more_than_a_hundred_pixels():
    labels = torch.tensor([0] * 100 + [1] * 101 + [VOID] * 300)[None]
    right = torch.ones(labels.shape, dtype=torch.bool)
    draws, views = torch.rand(labels.shape), torch.full((1, 2), 100)
    chosen, meant = sample_pixels(labels, right, draws, views, 100, 200)
    assert labels.flatten()[chosen[meant]].tolist() == [1] * 100


def test_features_at_pixels_are_those_of_whole_maps():
    rng = torch.Generator().manual_seed(0)
    sizes = [(8, 12), (4, 6), (3, 5), (1, 2), (16, 24)]
    levels = tuple(
        torch.randn(2, 3, *s, generator=rng, dtype=torch.float64).requires_grad_() for s in sizes
    )
    indices = torch.randperm(2 * 8 * 12, generator=rng)[:70]
    found = at_pixels(levels, indices, (8, 12))
    maps = [F.interpolate(level, (8, 12), mode="bilinear") for level in levels]
    whole = torch.cat(maps, 1).permute(0, 2, 3, 1).flatten(0, 2)[indices]
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    weights = torch.randn(found.shape, generator=rng, dtype=torch.float64)
    ours = torch.autograd.grad((found * weights).sum(), levels, retain_graph=True)
    theirs = torch.autograd.grad((whole * weights).sum(), levels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert math.prod(found.shape) == 70 * 15
