import pytest
import torch

from spcl.losses.adversarial import bce_to


def mean(logits, target):
    total, count = bce_to(logits, target)
    return (total / count).item()


@pytest.mark.parametrize(
    ("logit", "target", "expected"),
    [(0, 0.0, 0.69314718), (0, 1.0, 0.69314718), (2, 0.0, 2.12692801), (2, 1.0, 0.12692801)],
)
def test_value_in_closed_form(logit, target, expected):
    logits = torch.full((2, 1, 2, 4), logit, dtype=torch.float64)
    assert mean(logits, target) == pytest.approx(expected, abs=1e-7)
    assert bce_to(logits, target)[1] == 16


def test_undecided_discriminator_costs_the_generator_its_weight_times_ln_2():
    assert 0.001 * mean(torch.zeros(1, 1, 2, 4), 0.0) == pytest.approx(0.00069315, abs=1e-8)


def test_equal_maps_leave_the_bias_of_an_undecided_discriminator_alone():
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    logits = bias.expand(1, 1, 2, 4)
    (bce_to(logits, 0.0)[0] + bce_to(logits, 1.0)[0]).backward()
    assert bias.grad.item() == 0


def test_gradient_is_that_of_the_value():
    logits = torch.randn(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: bce_to(z, 1.0)[0], logits)


def test_half_precision_is_summed_in_float32():
    logits = torch.full((1, 1, 100, 100), 2.0)
    assert bce_to(logits.bfloat16(), 0.0)[0].item() == pytest.approx(21269.28, rel=1e-4)
