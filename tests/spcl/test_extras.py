"""Toys of what the seam is for: an extra, a teacher, a reference network."""

import copy

import pytest
import torch
from toys import Quiet, Stripes, method, train, with_quiet

from spcl import cli
from spcl.configuration.config import load
from spcl.engine import networks
from spcl.engine.stages import plan
from spcl.engine.trainer import evaluating
from spcl.errors import ConfigError
from spcl.extras import EXTRAS
from spcl.losses.segmentation import cross_entropy
from spcl.methods import METHODS
from spcl.methods.base import Method, Outputs, Seen, Term
from spcl.methods.stage import StageConfig
from spcl.models.segmentor import build_segmentor
from spcl.randomness import Step


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setitem(EXTRAS, "quiet", Quiet)


@pytest.mark.parametrize("name", METHODS)
def test_an_extra_on_any_method_adds_terms_learns_and_resumes(name, tmp_path):
    plain = method(name).train()(Stripes()[0], Step(0))
    terms = with_quiet(name).train()(Stripes()[0], Step(0))
    added = {term for term in terms if term.startswith("quiet/")}
    assert added and terms.keys() - added == plain.keys()
    for term in plain:
        assert torch.equal(plain[term].sum, terms[term].sum)  # the method's own are as without it
    straight, stopped = with_quiet(name, steps=8), with_quiet(name, steps=4)
    start = copy.deepcopy(straight.state_dict())
    train(straight, tmp_path / "a", checkpoint_every=4)
    train(stopped, tmp_path / "b", checkpoint_every=4)
    again = with_quiet(name, steps=8)
    train(again, tmp_path / "b", checkpoint_every=4)
    state = straight.state_dict()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in state.items())
    assert not torch.equal(state["quiet.head.weight"], start["quiet.head.weight"])


def configured(*overrides: str):
    return load("streets", "source_only", None, list(overrides))


def test_an_extra_is_a_section_a_list_entry_and_part_of_the_key(quiet):
    keys = {
        plan(configured(*settings), {"source": "s", "target": "t", "evaluation": "e"})[0].key
        for settings in (
            [],
            ["source_only.extras=[quiet]"],
            ["source_only.extras=[quiet]", "quiet.weight=0.2"],
            ["quiet.weight=0.3"],  # read by no stage: the first one's key
        )
    }
    assert len(keys) == 3
    config = configured("source_only.extras=[quiet]", "quiet.weight=0.2")
    made = networks.new_method(config, "source_only", networks.new_segmentor(config, 5))
    assert made.extras()["quiet"].config.weight == 0.2
    with pytest.raises(ConfigError, match="did you mean 'quiet'"):
        configured("source_only.extras=[quite]")


def test_an_extra_that_does_not_exist_is_refused():
    with pytest.raises(
        ConfigError, match=r"extras 'quiet' is unknown; known: feature_distance, masked_consistency"
    ):
        configured("source_only.extras=[quiet]")


def test_an_extra_that_is_read_by_name_runs_a_whole_recipe(quiet, mini_data, tmp_path):
    from conftest import MINI

    from spcl.train import main

    arguments = ["--benchmark", "streets", "--method", "source_only", "--name", "r"]
    settings = ["source_only.extras=[quiet]", "source_only.steps=2", *MINI]
    code = cli.guarded(
        main, [*arguments, "--data", str(mini_data), "--storage", str(tmp_path), *settings]
    )
    assert code == 0
    (state,) = tmp_path.glob("artefacts/source_only-*/checkpoint.pt")
    assert "quiet.head.weight" in torch.load(state)["method"]


# A teacher and a reference network.


class Taught(Method):
    """A toy: a teacher that follows the student labels the target; a reference holds features."""

    scored = "teacher"

    def __init__(self, segmentor, config):
        super().__init__(segmentor, config)
        self.teacher = copy.deepcopy(segmentor).requires_grad_(False).eval()

    def losses(self, batch, step):
        source = self.segment(batch.source, "source", step)
        target = self.segment(batch.target, "target", step)
        assert not self.teacher.training
        with torch.no_grad():
            label = self.teacher(batch.target.image, "target").logits.argmax(1).byte()
        terms = {
            "segmentation": Term(*cross_entropy(source.logits, batch.source.label)),
            "taught": Term(*cross_entropy(target.logits, label)),
        }
        return Outputs(terms, {"target": Seen(batch.target, target, label)})

    @torch.no_grad()
    def after_step(self, step):
        for mine, its in zip(self.teacher.parameters(), self.segmentor.parameters(), strict=True):
            mine.lerp_(its, 0.1)


def taught(steps=6) -> Taught:
    return Taught(
        method("source_only").segmentor, StageConfig(steps=steps, horizon=100, learning_rate=0.01)
    )


def test_a_frozen_teacher_stays_in_eval_mode_and_its_statistics_stay(tmp_path):
    made = taught()
    before = copy.deepcopy(made.teacher.state_dict())
    train(made, tmp_path, panel_every=2)  # panels and source mIoU go to eval mode and back
    for name, value in made.teacher.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == (name in dict(made.teacher.named_parameters())), name
    assert made.train().segmentor.training and not made.teacher.training


def test_evaluating_puts_every_module_back_into_its_own_mode():
    made = taught().train()
    made.segmentor.head.eval()
    modes = {name: part.training for name, part in made.named_modules()}
    with evaluating(made):
        assert not any(part.training for part in made.modules())
    assert modes == {name: part.training for name, part in made.named_modules()}
    assert len(set(modes.values())) == 2


def test_the_scored_network_is_what_an_artefact_hands_on(tmp_path):
    config = configured("model.name=tiny")
    made = Taught(networks.new_segmentor(config, 5), config.of("source_only"))
    with torch.no_grad():
        for parameter in made.teacher.parameters():
            parameter.add_(1)
    torch.save(networks.network_state(made), tmp_path / "checkpoint.pt")
    loaded = networks.load_segmentor(config, 5, tmp_path)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, made.teacher.state_dict()[name])
    assert any(
        not torch.equal(v, made.segmentor.state_dict()[k]) for k, v in loaded.state_dict().items()
    )


def test_a_network_makes_another_of_its_kind_with_other_weights(tmp_path):
    torch.manual_seed(0)
    first = build_segmentor("tiny", 5, norm="domain", absent=(2,))
    path = tmp_path / "weights.pt"
    torch.save(first.backbone.state_dict(), path)
    other = first.new(weights="none")
    assert other.absent == first.absent and other.state_dict().keys() == first.state_dict().keys()
    assert not torch.equal(next(other.parameters()), next(first.parameters()))
    with pytest.raises(ValueError, match="build_segmentor"):
        method("source_only").segmentor.new("none")
