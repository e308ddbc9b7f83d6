import pytest
import torch

from spcl.methods import METHODS, optimization
from spcl.methods.optimization import factor, poly_factor
from spcl.methods.stage import StageConfig
from spcl.models.segmentor import build_segmentor


@pytest.mark.parametrize(
    ("horizon", "step", "factor"),
    [
        (62500, 20000, 0.70673731),
        (62500, 40000, 0.39872388),
        (31250, 20000, 0.39872388),
        (100000, 80000, 0.23492379),
        (250000, 150000, 0.43838329),
    ],
)
def test_poly_schedule(horizon, step, factor):
    assert poly_factor(step, horizon, 0.9) == pytest.approx(factor, abs=1e-8)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 6e-11), (750, 2.943753e-5), (1499, 5.7713e-5), (1500, 5.775e-5), (20000, 3e-5)],
)
def test_warm_up_and_linear_decay_are_daformers(step, rate):
    stage = StageConfig(learning_rate=6e-5, horizon=40_000, poly_power=1.0, warm_up_steps=1500)
    assert stage.learning_rate * factor(stage, step) == pytest.approx(rate, rel=1e-5)


def test_without_a_warm_up_the_factor_is_the_poly_one_to_the_bit():
    stage = StageConfig()
    for step in (0, 1, 39_999):
        assert factor(stage, step) == poly_factor(step, stage.horizon, stage.poly_power)


def segmentor():
    return build_segmentor("tiny", 19, norm="domain")


def groups_of(**settings):
    optimizer = optimization.build(segmentor(), StageConfig(**settings))
    return optimizer, [
        (len(group["params"]), group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    ]


def test_the_default_is_the_authors_sgd_with_two_groups():
    optimizer, groups = groups_of(learning_rate=0.5, head_multiplier=10.0, weight_decay=0.25)
    assert type(optimizer) is torch.optim.SGD
    assert [group[1:] for group in groups] == [(0.5, 0.25), (5.0, 0.25)]


def test_adamw_without_decay_of_norms():
    optimizer, groups = groups_of(
        optimizer="adamw", norm_decay=False, learning_rate=0.5, weight_decay=0.25
    )
    assert type(optimizer) is torch.optim.AdamW
    assert [group[1:] for group in groups] == [(0.5, 0.25), (0.5, 0.0), (5.0, 0.25)]
    norms = list(optimization.norm_parameters(segmentor()))
    assert groups[1][0] == len(norms) > 0
    assert all(norm.dim() == 1 for norm in norms)
    assert sum(group[0] for group in groups) == len(list(segmentor().parameters()))


def test_adamw_steps_as_its_formula_says():
    """First step: the rate times the gradient's sign, and the decay apart from it."""
    net = segmentor()
    before = net.head.weight.detach().clone()
    optimizer = optimization.build(
        net,
        StageConfig(optimizer="adamw", learning_rate=0.1, head_multiplier=1.0, weight_decay=0.5),
    )
    net.head.weight.sum().backward()
    optimizer.step()
    assert torch.allclose(net.head.weight, before * (1 - 0.1 * 0.5) - 0.1, atol=1e-6)


def test_each_optimizer_is_clipped_by_itself():
    """Large gradients of a discriminator leave those of the network as they are."""
    name = "adversarial"
    method = METHODS[name](segmentor(), METHODS[name].Config())
    for parameter in method.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    for parameter in method.discriminator.parameters():
        parameter.grad.fill_(1e6)
    optimization.clip(method.optimizers(), 1.0)
    assert all((p.grad == 1e-6).all() for p in method.segmentor.parameters())
    norm = torch.stack([p.grad.norm() for p in method.discriminator.parameters()]).norm()
    assert float(norm) == pytest.approx(1.0, rel=1e-3)  # of 1e6 in float32
