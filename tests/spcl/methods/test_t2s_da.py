"""The contrast of T2S-DA as a whole: against a loop over pixels, and one process against two."""

import copy
import json
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import MINI
from processes import run_ranks
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from toys import CLASSES, Stripes, batch_of, method, train

from spcl import cli
from spcl.boards.aggregate import read_runs
from spcl.boards.ranking import make_boards
from spcl.configuration.config import load
from spcl.data.batch import Batch, Images
from spcl.data.fourier import fda
from spcl.engine.footprint import training
from spcl.engine.trainer import total
from spcl.losses import pull as pieces
from spcl.losses.contrast import downsample_labels
from spcl.methods import METHODS
from spcl.methods.base import ACTIVITY, Method, Term
from spcl.methods.t2s_da import Pull, T2SDAConfig
from spcl.models.segmentor import Output
from spcl.randomness import Step
from spcl.store.run_folder import RunFolder
from spcl.train import main

D, GRID = 6, (6, 8)
CONFIG = T2SDAConfig(queries=2, negatives=20, projection_width=5, confidence_momentum=0.5)
STEP = Step(3, 1, "t2s_da")


def outputs(images: int, seed: int) -> Output:
    draws = torch.Generator().manual_seed(seed)
    features = torch.randn(images, D, *GRID, generator=draws, dtype=torch.float64)
    logits = 3 * torch.randn(images, CLASSES, *GRID, generator=draws, dtype=torch.float64)
    return Output(features, logits)


def some_batch(images: int = 4) -> Batch:
    draws = torch.Generator().manual_seed(9)
    label = torch.randint(0, 6, (images, 12, 16), generator=draws).byte()
    label[label == 5] = 255
    empty = torch.zeros(images, 3, 12, 16)
    return batch_of(source=(empty, label), target=(empty, None))


def made() -> Pull:
    torch.manual_seed(4)
    return Pull(D, CLASSES, CONFIG).double()


def share_of(output: Output, rows: torch.Tensor) -> Output:
    return Output(output.features[rows], output.logits[rows])


def computed(rank: int, world: int) -> dict[str, torch.Tensor]:
    """For `processes.run_ranks`: of a rank's share of four images, summed over its rows."""
    rows = torch.arange(rank, 4, world)
    whole = some_batch()
    batch = Batch({k: v.each(lambda tensor: tensor[rows]) for k, v in whole.streams.items()})
    styled, source, target = (share_of(outputs(4, seed), rows) for seed in range(3))
    styled.features.requires_grad_()
    term, _ = (module := made())(styled, source, target, batch, STEP)
    term.sum.backward()
    return {
        "sum": term.sum.detach(),
        "count": term.count,
        "features": styled.features.grad,
        "head": module.head[0].weight.grad,
        "confidence": module.confidence.mean,
    }


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_give_what_one_gives():
    (alone,) = [computed(0, 1)]
    both = run_ranks(computed, 2, 2)
    for name in ("sum", "count", "head"):
        torch.testing.assert_close(both[0][name] + both[1][name], alone[name], rtol=1e-9, atol=0)
    for rank, one in enumerate(both):
        torch.testing.assert_close(one["features"], alone["features"][rank::2], rtol=1e-9, atol=0)
        torch.testing.assert_close(one["confidence"], alone["confidence"], rtol=1e-12, atol=0)
    assert alone["features"].any() and alone["head"].any()


def test_it_is_the_loss_of_a_loop_over_queries():
    batch, module = some_batch(), made()
    styled, source, target = (outputs(4, seed) for seed in range(3))
    term, _ = module(styled, source, target, batch, STEP)

    def unit(head, output):
        return F.normalize(head(output.features.movedim(1, -1).reshape(-1, D)), dim=1)

    labels = downsample_labels(batch.source.label, GRID).flatten()
    queries = unit(module.head, styled)
    keys, others = unit(module.teacher_head, source), unit(module.teacher_head, target)
    entropy = pieces.entropy(target.logits).flatten()
    predicted = target.logits.argmax(1).flatten()
    # What is chosen has the smallest draws: the choice itself is tested with its pieces.
    draws = {
        name: STEP.uniform(f"pull/{name}", torch.arange(4), (48,)).flatten()
        for name in ("queries", "source", "target")
    }
    valid = [i for i in range(192) if labels[i] != 255]
    half = CONFIG.negatives // 2
    near = sorted(valid, key=lambda i: draws["source"][i])[:half]
    unsure = entropy.argsort(descending=True)[: int(0.2 * 192)].tolist()
    far = sorted(unsure, key=lambda i: draws["target"][i])[:half]
    total, classes = 0.0, 0
    confidence = target.logits.softmax(1).amax(1).flatten()
    means = torch.zeros(CLASSES, dtype=torch.float64)
    for k in range(CLASSES):
        if (predicted == k).any():
            means[k] = 0.5 * confidence[predicted == k].mean()
    importance = ((1 - means) / (1 - means).max()) ** 0.5
    for k in range(CLASSES):
        mine = sorted((i for i in valid if labels[i] == k), key=lambda i: draws["queries"][i])
        mine = mine[: -(-CLASSES * 2 * len(mine) // len(valid))]
        if not mine:
            continue
        classes += 1
        prototype = F.normalize(keys[labels == k].mean(0), dim=0)
        for i in mine:
            positive = (queries[i] @ prototype / 0.2).exp()
            negative = 0.0
            for pool, vectors, kinds in ((near, keys, labels), (far, others, predicted)):
                allowed = [(queries[i] @ vectors[j] / 0.2).exp() for j in pool if kinds[j] != k]
                negative += half * sum(allowed) / len(allowed)
            total -= importance[k] * (positive / (positive + negative)).log() / len(mine)
    torch.testing.assert_close(term.sum, total)
    assert float(term.count) == pytest.approx(classes) == 5


def test_gradients_reach_the_student_alone():
    module = made()
    views = [outputs(4, seed) for seed in range(3)]
    for view in views:
        view.features.requires_grad_()
        view.logits.requires_grad_()
    module(*views, some_batch(), STEP)[0].sum.backward()
    assert views[0].features.grad.any() and module.head[2].weight.grad.any()
    assert all(view.features.grad is None for view in views[1:])
    assert all(view.logits.grad is None for view in views)
    assert all(p.grad is None for p in module.teacher_head.parameters())


def test_void_alone_is_nothing_with_a_graph_and_one_class_has_no_source_negatives():
    for value, classes in ((255, 0), (3, 1)):
        batch = some_batch()
        label = torch.full_like(batch.source.label, value)
        source = Images(batch.source.image, batch.source.position, label)
        batch = Batch({**batch.streams, "source": source})
        views = [outputs(4, seed) for seed in range(3)]
        views[0].features.requires_grad_()
        module = made()
        term, found = module(*views, batch, STEP)
        term.sum.backward()
        assert float(term.count) == pytest.approx(classes) and torch.isfinite(term.sum)
        assert bool(views[0].features.grad.any()) == (classes > 0)
        assert torch.isfinite(views[0].features.grad).all()
        assert bool(found["queries"].sum) == bool(found["source_negatives"].sum) == (classes > 0)


def test_logits_may_be_on_a_finer_grid_than_features():
    views = [outputs(4, seed) for seed in range(3)]
    finer = [Output(v.features, v.logits.repeat_interleave(2, 2)) for v in views]
    plain, _ = made()(*views, some_batch(), STEP)
    term, _ = made()(*finer, some_batch(), STEP)
    torch.testing.assert_close(term, plain)


def test_a_scale_of_the_students_features_behind_the_head_changes_nothing():
    """The head's output is brought to unit length."""
    module = made()
    views = [outputs(4, seed) for seed in range(3)]
    before = module(*views, some_batch(), STEP)[0].sum
    with torch.no_grad():
        module.confidence.mean.zero_()
        for parameter in module.head[2].parameters():
            parameter.mul_(3)
    torch.testing.assert_close(module(*views, some_batch(), STEP)[0].sum, before)


def test_no_value_is_looked_at_on_the_host():
    """On fake tensors any such look is an error; so would a GPU have to wait."""
    with FakeTensorMode(), torch.device("cuda"):
        features, logits = torch.empty(4, D, *GRID), torch.empty(4, CLASSES, *GRID)
        positions = torch.empty(4, dtype=torch.int64)
        image, label = torch.empty(4, 3, 12, 16), torch.empty(4, 12, 16, dtype=torch.uint8)
        source, target = Images(image, positions, label), Images(image, positions)
        batch = Batch({"source": source, "target": target})
        one = Output(features, logits)
        assert Pull(D, CLASSES, CONFIG)(one, one, one, batch, STEP)[0].sum.device.type == "cuda"
        assert fda(image, image, 0.1).device.type == "cuda"


SECTORS, TURN = 6, math.radians(30)  # classes on a circle, and by how much the target is turned


def points(step: int, turn: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(4, 2, 6, 8) points of Gaussian classes around a circle, and their classes."""
    draws = torch.Generator().manual_seed(step)
    label = torch.randint(0, SECTORS, (4, *GRID), generator=draws)
    angle = 2 * math.pi * label / SECTORS + turn
    centre = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + 0.3 * torch.randn(4, 2, *GRID, generator=draws), label


def recognised(change: Callable[[Output], Output], steps: int = 120) -> float:
    """Accuracy on turned points of a network that is trained on straight ones, and the contrast."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(2, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU())
    head = nn.Conv2d(16, SECTORS, 1)
    config = T2SDAConfig(queries=8, negatives=40, projection_width=8, pull_weight=1.0)
    module = Pull(16, SECTORS, config)
    networks = nn.ModuleList([body, head, module.head])
    optimizer = torch.optim.Adam(networks.parameters(), 0.01)

    def run(image: torch.Tensor) -> Output:
        features = body(image)
        return Output(features, head(features))

    for number in range(steps):
        (image, label), (turned, _) = points(number, 0.0), points(number + 10_000, TURN)
        image_in_style, _ = points(number, TURN)
        batch = batch_of(source=(image, label.byte()), target=(turned, None))
        source = run(image)
        with torch.no_grad():
            target = run(turned)
        term, _ = module(change(run(image_in_style)), source, target, batch, Step(number))
        loss = F.cross_entropy(source.logits, label)
        (loss + term.weight * term.sum / term.count.clamp(min=1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        module.teacher_head.load_state_dict(module.head.state_dict())
    turned, label = points(-1 % 2**31, TURN)
    return float((run(turned).logits.argmax(1) == label).float().mean())


def test_what_it_pulls_is_recognised_and_not_where_it_is_broken():
    def cut(styled: Output) -> Output:  # as without the term
        return Output(styled.features.detach(), styled.logits)

    def shuffled(styled: Output) -> Output:
        return Output(styled.features.flip(-1), styled.logits)

    without = recognised(cut)
    assert without < 0.6 < 0.8 < recognised(lambda styled: styled)  # measured: 0.47 and 0.95
    assert recognised(shuffled) < without + 0.1


# The method.


def gradients(made: Method, terms: dict[str, Term], names) -> dict[str, torch.Tensor]:
    """Of the terms of these names alone, on the network that is trained."""
    loss = total({name: terms[name] for name in names})[0]
    parameters = dict(made.segmentor.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_the_bases_terms_and_their_gradients_are_its_own_bit_for_bit(weight):
    base, made = method("daformer").train(), method("t2s_da", pull_weight=weight).train()
    for one in (base, made):
        one.segmentor.mixed = ("target", True)  # as in the recipes: but styled images move nothing
    for number in range(2):
        terms, more = (one(Stripes()[number], Step(number)) for one in (base, made))
        losses = {name for name in more.keys() - terms.keys() if not name.startswith(ACTIVITY)}
        assert losses == ({"pull"} if weight else set())
        assert all(torch.equal(term.sum, more[name].sum) for name, term in terms.items())
        expected, found = gradients(base, terms, terms), gradients(made, more, terms)
        assert all(torch.equal(gradient, found[name]) for name, gradient in expected.items())
    state, longer = base.state_dict(), made.state_dict()
    assert all(torch.equal(value, longer[name]) for name, value in state.items())
    assert bool(longer.keys() - state.keys()) == bool(weight)


def test_the_contrast_trains_the_network_and_its_head_and_moves_the_teachers(tmp_path):
    made = method("t2s_da", steps=3)
    before = copy.deepcopy(made.state_dict())
    terms = made.train()(Stripes()[0], Step(0))
    (gradient,) = torch.autograd.grad(terms["pull"].sum, next(made.segmentor.parameters()))
    assert gradient.any()
    train(made, tmp_path)
    moved = {k for k, v in made.state_dict().items() if not torch.equal(v, before[k])}
    assert {"pull.head.0.weight", "pull.teacher_head.0.weight", "pull.confidence.mean"} <= moved


@pytest.mark.parametrize(("weight", "student", "teacher"), [(0.0, 2, 1), (0.1, 3, 2)])
def test_a_step_takes_one_more_forward_of_the_student_and_one_of_the_teacher(
    weight, student, teacher
):
    made, calls = method("t2s_da", pull_weight=weight).train(), []
    for network in (made.segmentor, made.teacher):
        network.register_forward_hook(lambda module, *_: calls.append(module))
    made(Stripes()[0], Step(0))
    found = [sum(one is network for one in calls) for network in (made.segmentor, made.teacher)]
    assert found == [student, teacher]


def test_its_settings_say_that_they_were_recalled_and_manifests_list_them():
    config = load("gta5", "t2s_da", None, ["t2s_da.temperature=0.1"])
    found = config.recalled()
    assert "t2s_da.pull_weight" in found and "t2s_da.temperature" not in found
    assert "t2s_da.weight_norm" not in found  # ours
    assert load("gta5", "spcl").recalled() == []
    assert METHODS["t2s_da"].spec and not METHODS["spcl"].spec


def test_its_memory_is_counted_as_that_of_any_method():
    base, made = (training(load("streets", name), name, 2, 19) for name in ("daformer", "t2s_da"))
    assert base.peak < made.peak and base.gradients < made.gradients


def test_a_recipe_logs_what_was_there_and_its_manifest_says_what_was_recalled(mini_data, tmp_path):
    line = ["--benchmark", "streets", "--method", "t2s_da", "--name", "r"]
    places = ["--data", str(mini_data), "--storage", str(tmp_path)]
    settings = ["t2s_da.steps=4", "source.rare_class_pixels=1"]
    assert cli.guarded(main, [*line, *places, *MINI, *settings]) == 0
    run = RunFolder(tmp_path / "r")
    lines = list(run.metrics())
    assert len(lines) == 4
    for logged in lines:
        assert logged["losses"]["pull"] > 0
        for name in ("queries", "source_negatives", "target_negatives", "restyled"):
            assert logged["activity"][name] > 0, name
    manifest = json.loads((tmp_path / "r/manifest.json").read_text())
    assert manifest["spec"] and "t2s_da.temperature" in manifest["recalled"]
    assert "t2s_da.queries" not in manifest["recalled"]  # set for streets
    runs, problems = read_runs([tmp_path / "r"])
    (board,) = make_boards(runs)
    assert problems == [] and [row.method for row in board.rows] == ["t2s_da (spec)"]
