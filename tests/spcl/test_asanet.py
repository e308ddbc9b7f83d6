"""ASANet: what both strategies do with a step, and their recipes to the end."""

import json
from functools import partial

import pytest
import torch
from conftest import MINI
from torch import nn
from torch.func import functional_call
from toys import CLASSES, Stripes, method, train

from spcl import cli
from spcl.configuration.config import load
from spcl.configuration.layers import CONFIGS
from spcl.engine.stages import plan
from spcl.engine.trainer import total
from spcl.losses.adversarial import bce_to
from spcl.losses.affinity import (
    NEIGHBOURS,
    affinity_cleaning,
    affinity_convolution,
    probabilities,
)
from spcl.losses.segmentation import cross_entropy
from spcl.models.discriminator import Discriminator
from spcl.randomness import Step
from spcl.settings import read_yaml
from spcl.store.run_folder import RunFolder
from spcl.train import main
from tune.searching.rungs import ladder, shared_stages

METHODS = ("asanet_asc", "asanet")
SIZE = (32, 64)


def one_step(made, step=0):
    return made.train()(Stripes()[0], Step(step))


# The discriminator.


@pytest.mark.parametrize(("neighbours", "channels"), [(8, 152), (4, 76)])
def test_the_discriminators_first_convolution_sees_every_class_with_every_neighbour(
    neighbours, channels
):
    discriminator = method("asanet", neighbours=neighbours).discriminator
    assert discriminator.layers[0].weight.shape == (4, channels, 4, 4) and CLASSES == 19


def test_the_discriminator_is_the_plain_one_on_all_maps_and_their_checkpoints_fit():
    discriminator = method("asanet", discriminator_width=2).discriminator.double()
    plain = Discriminator(len(NEIGHBOURS[8]) * CLASSES, width=2).double()
    plain.load_state_dict(discriminator.state_dict())
    p = torch.randn(2, CLASSES, 32, 40, dtype=torch.float64).softmax(1)
    channels = 8 * CLASSES
    identity = nn.Conv2d(channels, channels, 1).double()
    with torch.no_grad():
        identity.weight.copy_(torch.eye(channels)[..., None, None])
        identity.bias.zero_()
    maps = discriminator.first(p, identity, (0, 0))
    assert maps.shape == (2, channels, 32, 40)
    assert torch.allclose(discriminator(p), plain(maps), atol=1e-12)


@pytest.mark.parametrize(
    ("stride", "size", "cells"), [(1, (64, 128), (2, 4)), (2, (64, 128), (1, 2)), (8, SIZE, (1, 1))]
)
def test_a_stride_leaves_a_coarser_map(stride, size, cells):
    discriminator = method("asanet").discriminator
    p = probabilities(torch.randn(1, CLASSES, 8, 16), size, stride)
    assert discriminator(p).shape == (1, 1, *cells)


@pytest.mark.parametrize(
    "asked",
    [{}, {"neighbours": 4}, {"border": "valid"}, {"eps": 0.05}, {"affinity_stride": 2}],
    ids=str,
)
def test_the_discriminator_is_shown_affinities_as_asked(asked):
    made = method("asanet", **asked)
    judged = one_step(made)["adversarial"].sum
    options = {"neighbours": 8, "border": "replicate", "eps": 1e-4} | asked
    stride = options.pop("affinity_stride", 1)
    p = probabilities(made.segmentor(Stripes()[0].target.image, "target").logits, SIZE, stride)
    discriminator = Discriminator(
        options["neighbours"] * CLASSES, width=4, first=partial(affinity_convolution, **options)
    )
    discriminator.load_state_dict(made.discriminator.state_dict())
    assert judged.item() == pytest.approx(bce_to(discriminator(p), 0.0)[0].item(), rel=1e-6)
    if asked and "neighbours" not in asked:  # and the choice shows
        usual = method("asanet")
        usual.discriminator.load_state_dict(made.discriminator.state_dict())
        assert one_step(usual)["adversarial"].sum.item() != judged.item()


def test_an_undecided_discriminator_costs_ln_2_and_the_segmentor_its_weight_of_it():
    made = method("asanet", damping=False)
    nn.init.zeros_(made.discriminator.layers[-1].weight)
    nn.init.zeros_(made.discriminator.layers[-1].bias)
    terms = one_step(made)
    means = {name: (term.sum / term.count).item() for name, term in terms.items()}
    for name in ("adversarial", "discriminator_source", "discriminator_target"):
        assert means[name] == pytest.approx(0.69314718, abs=1e-6)
    assert means["adversarial"] * terms["adversarial"].weight == pytest.approx(0.00069315, abs=1e-8)
    assert [terms[f"discriminator_{domain}"].weight for domain in ("source", "target")] == [
        0.5,
        0.5,
    ]


def test_equal_maps_leave_the_bias_of_an_undecided_discriminator_alone():
    discriminator = method("asanet").discriminator
    nn.init.zeros_(discriminator.layers[-1].weight)
    nn.init.zeros_(discriminator.layers[-1].bias)
    p = torch.randn(1, CLASSES, *SIZE).softmax(1)
    (bce_to(discriminator(p), 0.0)[0] + bce_to(discriminator(p), 1.0)[0]).backward()
    assert discriminator.layers[-1].bias.grad.abs().max() < 1e-7


@pytest.mark.parametrize(
    ("damping", "step", "factor"),
    [(True, 0, 1.0), (True, 25_000, 0.75), (True, 100_000, 0.0), (False, 25_000, 1.0)],
)
def test_the_weight_falls_linearly_over_the_horizon(damping, step, factor):
    made = method("asanet", damping=damping, horizon=100_000)
    assert one_step(made, step)["adversarial"].weight == pytest.approx(0.001 * factor, abs=1e-12)


# Who learns of what.


def test_players_do_not_touch_each_other():
    made = method("asanet")
    terms = one_step(made)
    for name in ("segmentation", "adversarial"):
        made.zero_grad(set_to_none=True)
        terms[name].sum.backward(retain_graph=True)
        assert all(p.grad is None for p in made.discriminator.parameters()), name
        assert all(p.grad.any() for p in made.segmentor.head.parameters()), name
    for name in ("discriminator_source", "discriminator_target"):
        made.zero_grad(set_to_none=True)
        terms[name].sum.backward(retain_graph=True)
        assert all(p.grad is None for p in made.segmentor.parameters()), name
        assert all(p.grad.any() for p in made.discriminator.parameters()), name


def test_one_backward_gives_each_player_the_gradient_of_its_own_loss():
    made = method("asanet", weight=0.5)
    loss, _ = total(one_step(made))
    together = torch.autograd.grad(loss, list(made.parameters()))

    batch = Stripes()[0]
    source = made.segmentor(batch.source.image, "source").logits
    target = made.segmentor(batch.target.image, "target").logits
    maps = [probabilities(logits, SIZE) for logits in (source, target)]
    ce, pixels = cross_entropy(source, batch.source.label)
    fooled, cells = bce_to(made.discriminator(maps[1]), 0.0)
    segmentors = ce / pixels + 0.5 * fooled / cells
    told = [
        bce_to(made.discriminator(p.detach()), answer)[0]
        for p, answer in zip(maps, (0.0, 1.0), strict=True)
    ]
    discriminators = (told[0] + told[1]) / 2 / cells
    expected = [
        *torch.autograd.grad(segmentors, list(made.segmentor.parameters())),
        *torch.autograd.grad(discriminators, list(made.discriminator.parameters())),
    ]
    for one, other in zip(together, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_only_the_segmentor_learns_where_only_it_steps():
    made = method("asanet")
    before = [p.clone() for p in made.discriminator.parameters()]
    loss, _ = total(one_step(made))
    loss.backward()
    segmentor, discriminator = made.optimizers()
    segmentor.step()
    assert all(
        torch.equal(a, b) for a, b in zip(before, made.discriminator.parameters(), strict=True)
    )
    discriminator.step()
    assert not any(
        torch.equal(a, b) for a, b in zip(before, made.discriminator.parameters(), strict=True)
    )
    assert discriminator.defaults["lr"] == 1e-4 and discriminator.defaults["betas"] == (0.9, 0.99)
    assert (
        method("asanet", discriminator_learning_rate=0.003).optimizers()[1].defaults["lr"] == 0.003
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("neighbours", "border"), [(8, "replicate"), (4, "valid")])
def test_cleaning_is_of_the_target_alone(stride, neighbours, border):
    made = method(
        "asanet_asc", weight=0.3, affinity_stride=stride, neighbours=neighbours, border=border
    )
    term = one_step(made)["cleaning"]
    target = made.segmentor(Stripes()[0].target.image, "target").logits
    p = torch.nn.functional.interpolate(target, SIZE, mode="bilinear", align_corners=True)
    wanted = affinity_cleaning(p.softmax(1)[..., ::stride, ::stride], neighbours, border)
    assert term.weight == 0.3 and term.count == wanted[1]
    assert term.sum.item() == pytest.approx(wanted[0].item(), rel=1e-5)
    term.sum.backward()
    assert all(p.grad.any() for p in made.segmentor.head.parameters())


def test_cleaning_makes_neighbours_agree(tmp_path):
    lines = {
        weight: train(
            method("asanet_asc", learning_rate=0.1, weight=weight), tmp_path / str(weight)
        )
        for weight in (0.0, 1.0)
    }
    last = {weight: lines[weight][-1]["losses"]["cleaning"] for weight in lines}
    assert last[1.0] < 0.95 * last[0.0]


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_stays_close_to_float32(name, tmp_path):
    single = train(method(name, steps=2), tmp_path / "a")
    half = train(method(name, steps=2), tmp_path / "b", dtype="bfloat16")
    for one, other in zip(single, half, strict=True):
        assert other["losses"] == pytest.approx(one["losses"], rel=3e-2)


def test_affinities_work_under_functional_call_as_in_place():
    discriminator = method("asanet").discriminator
    p = torch.randn(1, CLASSES, *SIZE).softmax(1)
    other = {name: 2 * value.detach() for name, value in discriminator.named_parameters()}
    called = functional_call(discriminator, other, p)
    discriminator.load_state_dict(other)
    assert torch.equal(called, discriminator(p))


# Recipes.


@pytest.mark.parametrize("name", METHODS)
def test_the_recipe_runs_to_the_end_and_may_end_with_self_training(
    name, mini_data, tmp_path, capsys
):
    line = ["--method", name, "--data", str(mini_data), "--storage", str(tmp_path)]
    steps = [f"{name}.steps=4", "train.checkpoint_every=4", *MINI]
    assert cli.guarded(main, [*line, "--name", "a", *steps]) == 0
    more = f"stages=[source_only,{name},self_training]"
    assert cli.guarded(main, [*line, "--name", "b", more, *steps]) == 0
    assert f"{name}: done before, reused" in capsys.readouterr().out
    table = RunFolder(tmp_path / "b").done["table"]
    assert [row["stage"] for row in table] == ["source_only", name, "self_training"]
    assert table[:2] == RunFolder(tmp_path / "a").done["table"]
    losses = [line["losses"] for line in RunFolder(tmp_path / "a").metrics()]
    assert "NaN" not in json.dumps(losses)


DATA = {"source": "s", "target": "t", "evaluation": "e"}


def test_both_strategies_start_from_one_network():
    first = [plan(load("streets", name), DATA)[0] for name in METHODS]
    assert first[0].title == "source_only" and first[0].key == first[1].key


@pytest.mark.parametrize("name", METHODS)
def test_on_streets_it_has_the_steps_of_the_demo_on_the_same_images(name):
    config, spcl = load("streets", name), load("streets", "spcl")
    assert sum(config.of(stage).steps for stage in config.stages) == 3600
    assert sum(spcl.of(stage).steps for stage in spcl.stages) == 3600
    for stage in config.stages:
        section = config.of(stage)
        assert config.batch_of(stage) == spcl.batch_of("spcl")
        assert (section.learning_rate, section.augment) == (0.1, "both")
    assert (config.source, config.target, config.model) == (spcl.source, spcl.target, spcl.model)


@pytest.mark.parametrize("name", METHODS)
def test_a_search_climbs_without_self_training(name):
    config, keys = load("streets", name), read_yaml(CONFIGS / "search" / f"{name}.yaml")
    assert shared_stages(config, keys) == ("source_only",)
    rungs = ladder(config, keys)
    assert [rung.name for rung in rungs] == [f"{name} 1/4", f"{name} 1/2", name]
    assert [rung.steps[name] for rung in rungs] == [600, 1200, 2400]
