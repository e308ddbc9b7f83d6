"""Draws inside a step: a slow obvious generator, published numbers, ranks, resumed runs."""

import pytest
import torch
from processes import run_ranks
from torch import nn
from toys import Dropping, ThreeConvolutions, drawing, train

from spcl.errors import ConfigError
from spcl.models.segmentor import MODELS, Segmentor, build_segmentor
from spcl.models.stochastic import SampleDropout, random_layers
from spcl.randomness import GOLDEN, Step, derived, mix, name_numbers, uniform

WORD = 2**64


def splitmix(state: int) -> int:
    """SplitMix64's next number, in Python's own integers."""
    z = (state + GOLDEN) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def test_numbers_are_splitmix64s():
    # Published with the algorithm: the first numbers of state 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix((1234567 + n * GOLDEN) % WORD) for n in range(3)] == published
    states = torch.arange(1, 4) * (GOLDEN - WORD) + 1234567
    assert [int(x) % WORD for x in mix(states)] == published
    drawn = uniform(torch.tensor([1234567]), (3,))[0].double()
    assert drawn.tolist() == [(number >> 40) / 2**24 for number in published]


def test_draws_are_uniform_and_names_stages_seeds_and_positions_independent():
    where = torch.arange(64)
    drawn = Step(0, 1, "x").uniform("mask", where, (4096,)).double()
    assert 0 <= drawn.min() and drawn.max() < 1
    count = drawn.numel()
    assert abs(drawn.mean() - 0.5) < 5 * (1 / 12 / count) ** 0.5  # five deviations
    cells = torch.histc(drawn, 64, 0, 1)
    chi2 = float(((cells - count / 64) ** 2 / (count / 64)).sum())
    assert chi2 < 63 + 5 * (2 * 63) ** 0.5
    others = [
        Step(0, 2, "x").uniform("mask", where, (4096,)),
        Step(0, 1, "y").uniform("mask", where, (4096,)),
        Step(0, 1, "x").uniform("other", where, (4096,)),
        Step(0, 1, "x").uniform("mask", where + 64, (4096,)),
        drawn[torch.randperm(64, generator=torch.Generator().manual_seed(0))],
    ]
    for other in others[:-1]:
        correlation = torch.corrcoef(torch.stack([drawn.flatten(), other.double().flatten()]))
        assert abs(correlation[0, 1]) < 5 / count**0.5


def test_a_draw_belongs_to_its_sample_not_to_its_batch_or_the_step_it_is_asked_in():
    whole = Step(3, 7, "x").uniform("mask", torch.arange(12, 16), (2, 3))
    alone = Step(0, 7, "x").uniform("mask", torch.tensor([14]), (2, 3))
    assert whole.shape == (4, 2, 3) and torch.equal(whole[2:3], alone)
    step = Step(3, 7, "x").of_step("mix", (5,), torch.device("cpu"))
    assert step.shape == (5,) and not torch.equal(
        step, Step(4, 7, "x").of_step("mix", (5,), torch.device("cpu"))
    )


# A method that draws in every way there is.


def trained_on_rank(rank: int, folder, norm: str = "domain"):
    from pathlib import Path

    made = drawing(norm)
    lines = train(made, Path(folder))
    return [line["losses"] for line in lines], made.state_dict()


def test_a_method_that_draws_resumes_to_the_same_bits(tmp_path):
    losses, straight = trained_on_rank(0, tmp_path / "straight")
    train(drawing(steps=10), tmp_path / "stopped")
    torch.rand(1000)  # another process would have drawn something else
    again = drawing()
    train(again, tmp_path / "stopped")
    for name, value in straight.items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.timeout(120)
def test_a_method_that_draws_gives_the_same_on_one_and_two_ranks(tmp_path):
    losses, alone = trained_on_rank(0, tmp_path / "one")
    (both, state), _ = run_ranks(trained_on_rank, 2, str(tmp_path / "two"))
    for one, two in zip(losses, both, strict=True):
        assert one == pytest.approx(two, abs=1e-4)
    for name, value in alone.items():
        assert torch.allclose(value.double(), state[name].double(), atol=1e-4), name


#: Of the same layers as a smaller one, and seconds to start.
LARGER = {"dinov2_vitb14", "mit_b5"}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in LARGER])
def test_no_network_moves_the_global_generator(name):
    network = build_segmentor(name, 5, norm=(MODELS[name].norms or ("frozen",))[0]).train()
    images = torch.rand(2, 3, 33, 33)
    before = torch.get_rng_state()
    for domain in ("source", "target", "mixed"):
        network(images, domain, torch.arange(2))
    assert torch.equal(before, torch.get_rng_state())


def test_the_walk_sees_a_network_that_does(monkeypatch):
    network = Segmentor(Dropping("domain"), nn.Conv2d(16, 5, 1), 5)
    network.backbone.dropout = nn.Dropout(0.3)  # after the replacement
    images = torch.rand(2, 3, 32, 32)
    before = torch.get_rng_state()
    network.train()(images, "source", torch.arange(2))
    assert not torch.equal(before, torch.get_rng_state())


def test_each_layer_that_drops_has_keys_of_its_name():
    network = Segmentor(Dropping("frozen"), nn.Conv2d(16, 5, 1), 5).train()
    network(torch.rand(3, 3, 32, 32), "source", torch.arange(3))
    layers = random_layers(network)
    assert list(layers) == ["backbone.dropout", "backbone.channels"]
    for name, layer in layers.items():
        alone = derived(torch.arange(3), name_numbers([name])[:, None])[0]
        assert torch.equal(layer.keys, alone + 1)  # it has drawn once
    silent = Dropping("frozen")
    silent.dropout.p = 0.0
    assert list(random_layers(Segmentor(silent, nn.Conv2d(16, 5, 1), 5))) == ["backbone.channels"]


def test_a_layer_that_runs_twice_draws_twice():
    """As that of MiT's blocks does: behind the attention, and behind the MLP."""
    layer = SampleDropout(0.5, "sample").train()
    ones = torch.ones(1000, 1, 1)
    layer.keys = torch.arange(1000)
    first, second = layer(ones), layer(ones)
    layer.keys = torch.arange(1000)
    assert torch.equal(layer(ones), first) and torch.equal(layer(ones), second)
    assert abs(float((first == second).double().mean()) - 0.5) < 0.08  # five deviations


class DropPath(nn.Module):
    """As timm's: its own name, its own attribute."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob


@pytest.mark.parametrize(
    ("layer", "covers"),
    [
        (nn.Dropout(0.5), "element"),
        (nn.Dropout2d(0.5), "channel"),
        (DropPath(0.5), "sample"),
    ],
)
def test_a_random_layer_becomes_one_that_covers_the_same(layer, covers):
    class Body(ThreeConvolutions):
        def __init__(self):
            super().__init__("frozen")
            self.drop = layer

    made = Segmentor(Body(), nn.Conv2d(16, 5, 1), 5).backbone.drop
    assert isinstance(made, SampleDropout) and (made.p, made.covers) == (0.5, covers)
    made.keys = torch.arange(200)
    ones = torch.ones(200, 8, 4, 4)
    dropped = made.train()(ones)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert abs(float(dropped.mean()) - 1) < 0.25
    within = dropped.flatten(2 if covers != "sample" else 1)
    assert (within.std(-1) == 0).all() == (covers != "element")
    assert torch.equal(made.eval()(ones), ones)
    made.train().keys = torch.arange(100)  # two windows each: the same masks, sample by sample
    assert made(ones).shape == ones.shape


def test_a_random_layer_without_keys_or_counterpart_is_refused():
    network = Segmentor(Dropping("frozen"), nn.Conv2d(16, 5, 1), 5).train()
    with pytest.raises(RuntimeError, match="Method.segment"):
        network(torch.rand(1, 3, 32, 32), "source")
    body = ThreeConvolutions("frozen")
    body.drop = nn.AlphaDropout(0.1)
    with pytest.raises(ConfigError, match=r"backbone\.drop is a AlphaDropout"):
        Segmentor(body, nn.Conv2d(16, 5, 1), 5)


# Mixed images.


@pytest.mark.parametrize("norm", ["domain", "running"])
@pytest.mark.parametrize(("domain", "moves"), [("source", True), ("target", False)])
def test_mixed_images_get_the_statistics_that_the_setting_names(norm, domain, moves):
    torch.manual_seed(0)
    network = build_segmentor("tiny", 5, norm=norm, mixed=(domain, moves)).train()
    before = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
    network(torch.rand(2, 3, 32, 32), "mixed")
    for name, value in network.state_dict().items():
        if name not in before:
            continue
        if norm == "running":
            assert torch.equal(value, before[name]) != moves, name
        else:
            index = ("source", "target").index(domain)
            assert torch.equal(value[index], before[name][index]) != moves, name
            assert torch.equal(value[1 - index], before[name][1 - index]), name
    network(torch.rand(2, 3, 32, 32), "target")  # the others move theirs as ever
    assert any(
        not torch.equal(v, before[k]) for k, v in network.state_dict().items() if k in before
    )
