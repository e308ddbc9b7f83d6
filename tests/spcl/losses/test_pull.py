"""T2S-DA's pieces against numbers by hand and slow, obvious versions."""

import math

import pytest
import torch

from spcl.losses import pull

Q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
NEGATIVES = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
ONES = torch.ones(1, 2)


@pytest.mark.parametrize(
    ("key", "temperature", "expected"),
    [
        ((1.0, 0.0), 0.1, 4.5401e-5),
        ((1.0, 0.0), 0.2, 0.00676044),
        ((1.0, 0.0), 0.5, 0.14293163),
        ((1.0, 0.0), 1.0, 0.40760596),
        ((0.6, 0.8), 0.2, 0.04890685),
    ],
)
def test_info_nce_by_hand(key, temperature, expected):
    key = torch.tensor([key], dtype=torch.float64)
    found = pull.info_nce(Q, key, NEGATIVES, ONES, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_info_nce_by_hand():
    query = Q.clone().requires_grad_()
    key = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    pull.info_nce(query, key, NEGATIVES, ONES, 0.2).sum().backward()
    torch.testing.assert_close(
        query.grad[0], torch.tensor([-0.14478778, 0.04613292], dtype=torch.float64)
    )


def test_a_query_without_negatives_loses_nothing_and_has_no_gradient():
    query = Q.clone().requires_grad_()
    loss = pull.info_nce(query, Q, NEGATIVES, torch.zeros(1, 2), 0.2)
    loss.sum().backward()
    assert not loss.any() and not query.grad.any()


def test_a_weight_of_two_is_the_negative_twice():
    twice = pull.info_nce(Q, Q, NEGATIVES[[0, 0, 1]], torch.ones(1, 3), 0.5)
    weighted = pull.info_nce(Q, Q, NEGATIVES, torch.tensor([[2.0, 1.0]]), 0.5)
    torch.testing.assert_close(weighted, twice)


def test_class_weights_by_hand():
    sigma = torch.tensor([0.9, 0.5, 0.8], dtype=torch.float64)
    for power, expected in (
        (0.0, (1, 1, 1)),
        (0.5, (0.44721360, 1, 0.63245553)),
        (1.0, (0.2, 1, 0.4)),
        (2.0, (0.04, 1, 0.16)),
    ):
        assert pull.class_weights(sigma, power).tolist() == pytest.approx(expected)
    mean = pull.class_weights(sigma, 0.5, "mean")
    assert mean.tolist() == pytest.approx((0.64512223, 1.44253716, 0.91234061))


@pytest.mark.parametrize("everywhere", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("norm", ["max", "mean"])
def test_equal_confidence_is_equal_weight(everywhere, norm):
    sigma = torch.full((3,), everywhere)
    assert pull.class_weights(sigma, 0.5, norm).tolist() == [1, 1, 1]


def test_entropy_by_hand():
    logits = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64).log()[..., None, None]
    found = pull.entropy(logits).flatten().tolist()
    assert found == pytest.approx([0.69314718, 0.32508297])
    uniform = torch.zeros(1, 19, 1, 1)
    assert float(pull.entropy(uniform)) == pytest.approx(2.94443898)
    assert int(pull.entropy_levels(uniform)) == pull.LEVELS - 1
    sure = torch.nn.functional.one_hot(torch.tensor([3]), 19)[..., None, None] * 1e4
    assert int(pull.entropy_levels(sure)) == 0


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_the_quantile_of_levels_is_that_of_the_sorted_levels(share):
    levels = torch.randint(0, 3000, (2, 10, 25), generator=torch.Generator().manual_seed(1))
    found = int(pull.quantile_level(pull.histogram(levels), share))
    ordered = levels.flatten().sort().values
    assert found == int(ordered[math.ceil(share * len(ordered)) - 1])
    assert (levels > found).double().mean() <= 1 - share + 1e-9


def test_queries_follow_the_labels_of_the_batch():
    assert pull.query_counts(torch.tensor([7, 3]), 4).tolist() == [6, 3]
    assert pull.query_counts(torch.tensor([999_999, 1, 0]), 8).tolist() == [24, 1, 0]
    assert pull.query_counts(torch.zeros(3), 8).tolist() == [0, 0, 0]


def test_the_chosen_of_each_class_are_those_with_the_smallest_draws():
    draws = torch.rand(200, generator=torch.Generator().manual_seed(2))
    labels = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(3)).byte()
    labels[labels == 2] = 255  # and class 2 is absent
    counts = torch.tensor([5, 1000, 7, 0])
    indices, meant = pull.choose_of_each(labels, draws, counts, 150)
    expected = set()
    for kind, count in enumerate(counts.tolist()):
        own = [i for i in range(200) if labels[i] == kind]
        expected |= set(sorted(own, key=lambda i: draws[i])[:count])
    assert set(indices[meant].tolist()) == expected and len(indices) == 150
    assert int(meant.sum()) == len(expected)


def test_none_is_chosen_where_all_is_void():
    void, draws = torch.full((9,), 255, dtype=torch.uint8), torch.rand(9)
    assert not pull.choose_of_each(void, draws, torch.tensor([3, 3]), 4)[1].any()
    assert not pull.choose(void, draws, 4)[1].any()


def test_negatives_are_the_smallest_draws_among_what_has_a_label():
    labels = torch.tensor([0, 255, 1, 1, 0], dtype=torch.uint8)
    draws = torch.tensor([0.5, 0.1, 0.2, 0.9, 0.3])
    indices, meant = pull.choose(labels, draws, 3)
    assert set(indices.tolist()) == {2, 4, 0} and meant.all()
    assert pull.choose(labels, draws, 9)[1].sum() == 4


def test_negatives_never_have_the_querys_class_and_weigh_the_total():
    labels, meant = torch.tensor([0, 0, 1, 2, 1]), torch.tensor([True, True, True, True, False])
    weights = pull.negative_weights(labels, meant, 4, 6.0)
    assert weights.tolist() == [
        [0, 0, 3, 3, 0],
        [2, 2, 0, 2, 0],
        [2, 2, 2, 0, 0],
        [1.5, 1.5, 1.5, 1.5, 0],
    ]
    alone = pull.negative_weights(torch.tensor([1]), torch.tensor([True]), 2, 6.0)
    assert alone.tolist() == [[6], [0]]
