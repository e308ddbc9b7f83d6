"""Micro-batches against whole batches: terms, gradients, weights and state, in float64."""

import copy

import pytest
import torch
from processes import run_ranks
from toys import (
    CLASSES,
    Stripes,
    changed,
    drawing,
    method,
    segmentor,
    train_all_on_rank,
    train_on_rank,
    with_quiet,
)

from spcl.configuration.config import load
from spcl.configuration.sections import Train
from spcl.engine.footprint import training
from spcl.engine.gradients import AtOnce, InParts, average, refuse_batch_statistics, runner
from spcl.engine.trainer import total
from spcl.errors import ConfigError
from spcl.losses.segmentation import cross_entropy
from spcl.methods import METHODS
from spcl.methods.base import Method, Outputs, Term
from spcl.methods.stage import StageConfig
from spcl.models.normalization import NORMS
from spcl.models.segmentor import build_segmentor
from spcl.randomness import Step

EXACT = 1e-9  # of float64 sums in another order; the promise is 1e-6
SIZES = (1, 3)  # of Stripes' 4 images: even parts, and a last part that is smaller


def doubled(number: int = 0):
    batch = Stripes()[number]
    for domain in ("source", "target"):
        batch = changed(batch, domain, image=batch[domain].image.double())
    return batch


def one_step(running: AtOnce | InParts, made: Method):
    """Terms, gradients by name and state after a forward and a backward."""
    terms = running.terms(doubled(), Step(0, 3, "toy"))
    running.backward(total(terms)[0])
    values = {name: (t.sum.item(), t.count.item()) for name, t in terms.items()}
    return values, {n: p.grad for n, p in made.named_parameters()}, made.state_dict()


def assert_parts_equal_the_whole(made: Method, size: int) -> None:
    made = made.double().train()
    other = copy.deepcopy(made)
    terms, gradients, state = one_step(AtOnce(made), made)
    in_parts, others, other_state = one_step(InParts(other, size), other)
    assert in_parts.keys() == terms.keys()
    for name, value in terms.items():
        assert in_parts[name] == pytest.approx(value, rel=EXACT, abs=EXACT), name
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=EXACT, atol=EXACT, msg=name)
    for name, value in state.items():
        torch.testing.assert_close(other_state[name], value, rtol=EXACT, atol=EXACT, msg=name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_parts_give_the_terms_gradients_and_state_of_the_whole(name, size):
    assert_parts_equal_the_whole(method(name, norm="frozen"), size)


@pytest.mark.parametrize("name", METHODS)
def test_with_an_extra_that_draws_and_has_a_head(name):
    assert_parts_equal_the_whole(with_quiet(name, norm="frozen"), 1)


@pytest.mark.parametrize("size", SIZES)
def test_with_dropout_and_mixed_images(size):
    """Random layers draw the same in both passes, whatever part an image is in."""
    assert_parts_equal_the_whole(drawing("frozen"), size)


class Looking(Method):
    """A toy: the student labels the target itself, and its head is used once more by hand."""

    def losses(self, batch, step):
        source = self.segment(batch.source, "source", step)
        with torch.no_grad():
            label = self.segment(batch.target, "target", step).logits.argmax(1)
        target = self.segment(batch.target, "target", step, draws="again")
        small = torch.nn.functional.interpolate(label[:, None].float(), target.logits.shape[-2:])
        by_hand = self.segmentor.head(source.features)
        terms = {
            "segmentation": Term(*cross_entropy(by_hand + source.logits, batch.source.label)),
            "own": Term(*cross_entropy(target.logits, small[:, 0].byte())),
        }
        return Outputs(terms, {})


def test_calls_without_gradient_twice_and_of_the_head_alone():
    made = Looking(segmentor("frozen"), StageConfig())
    assert_parts_equal_the_whole(made, 1)


def test_a_frozen_backbone_is_no_obstacle():
    made = method("spcl", norm="frozen")
    made.segmentor.backbone.requires_grad_(False)
    made = made.double().train()
    other = copy.deepcopy(made)
    for running, one in ((AtOnce(made), made), (InParts(other, 1), other)):
        running.backward(total(running.terms(doubled(), Step(0)))[0])
        assert all(p.grad is None for p in one.segmentor.backbone.parameters())
    for mine, its in zip(
        made.segmentor.head.parameters(), other.segmentor.head.parameters(), strict=True
    ):
        torch.testing.assert_close(mine.grad, its.grad, rtol=EXACT, atol=EXACT)


# Over many steps, ranks and a stop.

TRAINED = {"norm": "frozen", "double": True, "steps": 4}
# Each method on a toy, and one on a network with drop path, layer norms and a head of its own.
KINDS = {name: (name, TRAINED) for name in METHODS}
KINDS["transformer"] = ("spcl", TRAINED | {"model": "tiny_transformer"})
CASES = {kind: (name, options | {"micro_batch": 1}) for kind, (name, options) in KINDS.items()}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Every method on two ranks, each with two images of a domain in two parts."""
    return run_ranks(train_all_on_rank, 2, str(tmp_path_factory.mktemp("two")), CASES)


def same(one: dict, other: dict, tolerance: float) -> None:
    for mine, its in zip(one["losses"], other["losses"], strict=True):
        assert mine == pytest.approx(its, rel=tolerance, abs=tolerance)
    for name, value in one["state"].items():
        torch.testing.assert_close(
            value, other["state"][name], rtol=tolerance, atol=tolerance, msg=name
        )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_training_in_parts_is_training_on_one_rank_and_on_two(kind, two_ranks, tmp_path):
    name, options = KINDS[kind]
    whole = train_on_rank(0, str(tmp_path / "whole"), name, dict(options))
    parts = train_on_rank(0, str(tmp_path / "parts"), name, options | {"micro_batch": 1})
    assert len(whole["losses"]) == 4
    same(whole, parts, 1e-6)
    first, second = (rank[kind] for rank in two_ranks)
    same(whole, first, 1e-6)
    assert all(torch.equal(value, second["state"][key]) for key, value in first["state"].items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_in_parts_ends_with_the_same_bits(kind, tmp_path):
    name, options = KINDS[kind]
    options = options | {"micro_batch": 3}
    straight = train_on_rank(0, str(tmp_path / "straight"), name, dict(options))
    stopped = train_on_rank(0, str(tmp_path / "stopped"), name, options | {"stop": 2})
    assert len(stopped["losses"]) == len(straight["losses"])  # of both halves
    for key, value in straight["state"].items():
        assert torch.equal(stopped["state"][key], value), key


def test_a_parameter_without_a_gradient_is_told(monkeypatch):
    from spcl import distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(RuntimeError, match=r"shape \(4, 3\) is trained, but no term"):
        average(torch.nn.Linear(3, 4).parameters())


# What is refused, and what it is for.


@pytest.mark.parametrize("norm", NORMS)
def test_statistics_of_the_batch_are_refused_by_name(norm):
    settings = ["model.weights=none", f"model.norm={norm}", "train.micro_batch=2"]
    network = build_segmentor("tiny", 5, norm=norm)
    if norm == "frozen":
        assert load("streets", "spcl", None, settings).train.micro_batch == 2
        refuse_batch_statistics(network)
        return
    with pytest.raises(ConfigError, match=f"train.micro_batch needs .* got {norm}"):
        load("streets", "spcl", None, settings)
    with pytest.raises(ConfigError, match=r"its layer backbone\..* normalises by statistics"):
        refuse_batch_statistics(network)


def test_a_network_without_such_norms_may_run_in_parts():
    settings = ["model.name=deeplabv2_vgg16", "model.weights=none", "train.micro_batch=1"]
    assert load("streets", "source_only", None, settings).train.micro_batch == 1


def test_a_share_that_is_no_larger_runs_at_once():
    made = method("source_only", norm="frozen")
    assert isinstance(runner(made, 2, Train(micro_batch=2)), AtOnce)
    assert isinstance(runner(made, 4, Train()), AtOnce)
    assert isinstance(runner(made, 4, Train(micro_batch=2)), InParts)


def test_bfloat16_in_parts_learns_every_weight():
    """The head, cast without a gradient in pass (a), must be cast anew where pass (b) uses it."""
    gradients = []
    for micro_batch in (0, 1):
        made = Looking(segmentor("frozen"), StageConfig()).train()
        running = runner(made, 4, Train(micro_batch=micro_batch, dtype="bfloat16"))
        running.backward(total(running.terms(Stripes()[0], Step(0)))[0])
        gradients.append({name: p.grad for name, p in made.named_parameters()})
    for name, whole in gradients[0].items():
        assert (gradients[1][name] - whole).norm() < 0.05 * whole.norm(), name


def test_images_that_depend_on_parameters_are_refused():
    class Styled(Method):
        def losses(self, batch, step):
            image = batch.source.image * next(self.segmentor.parameters()).mean()
            styled = changed(batch, "source", image=image).source
            output = self.segment(styled, "source", step)
            return Outputs({"x": Term(output.logits.sum(), torch.ones(()))}, {})

    made = Styled(segmentor("frozen"), StageConfig())
    with pytest.raises(ConfigError, match="free of gradients"):
        InParts(made, 1).terms(Stripes()[0], Step(0))
    assert made._run is None  # put back all the same


def test_parts_need_little_more_than_a_single_image():
    """At the paper's sizes, where activations are most of it: nothing is run, so it costs none."""

    def needed(micro_batch: int, images: int) -> int:
        settings = ["model.name=deeplabv2_vgg16", f"train.micro_batch={micro_batch}"]
        config = load("gta5", "source_only", None, settings)
        return training(config, "source_only", images, CLASSES).activations

    one, parts, whole = needed(0, 1), needed(1, 4), needed(0, 4)
    assert whole > 3.5 * one
    assert parts < 1.5 * one  # outputs of all images are kept beside the parts
