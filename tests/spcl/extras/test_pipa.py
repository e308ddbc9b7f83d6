"""PiPa on real streams, on a method without a teacher and on a toy with one."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import MINI
from processes import run_ranks
from toys import CLASSES, ThreeConvolutions, changed, train

from spcl.configuration.config import Config, load
from spcl.data.loader import Steps
from spcl.engine import networks
from spcl.engine.footprint import training
from spcl.engine.recipe import Recipe
from spcl.engine.trainer import Context, total
from spcl.errors import ConfigError
from spcl.extras import pipa as module
from spcl.extras.pipa import PiPa, PiPaConfig
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import ACTIVITY, Method, Outputs, Seen, Term
from spcl.models.segmentor import Segmentor
from spcl.randomness import Step
from spcl.store.run_folder import RunFolder
from spcl.store.telemetry import Telemetry

SMALL = (
    "pipa.crop=[16,32]",
    "pipa.multiple=4",
    "pipa.crop_scale=[1.0,1.5]",
    "pipa.pixel_more_than=5",
    "pipa.pixel_samples=128",
    "pipa.patch_start=0",
    "pipa.patch_samples=30",  # of four images: seven each, and some of the bank stays empty
    "pipa.confidence=0.06",
)


def configured(*more: str, stage: str = "source_only") -> Config:
    settings = [*MINI, *SMALL, f"{stage}.extras=[pipa]", f"{stage}.steps=4", *more]
    method = "source_only" if stage == "source_only" else "spcl"
    return load("streets", method, None, settings)


def steps_of(config: Config, data: Path, folder: Path) -> Steps:
    recipe = Recipe(config, data, RunFolder(folder), Context(telemetry=Telemetry(None)))
    return recipe._steps(recipe.stages[0])


@pytest.fixture(scope="module")
def steps(mini_data, tmp_path_factory) -> Steps:
    return steps_of(configured(), mini_data, tmp_path_factory.mktemp("steps"))


def made_by(config: Config, stage: str = "source_only") -> Method:
    torch.manual_seed(0)
    return networks.new_method(config, stage, networks.new_segmentor(config, CLASSES)).train()


def gradients(terms: dict[str, Term], names: tuple[str, ...], module) -> list[torch.Tensor]:
    loss = torch.stack([terms[f"pipa/{name}"].sum for name in names]).sum()
    parameters = list(module.parameters())
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(
            parameters,
            torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True),
            strict=True,
        )
    ]


def some(found: list[torch.Tensor]) -> bool:
    return any(bool(gradient.any()) for gradient in found)


ACTIVE = (
    ("pixel_anchors", "pixel_positives", "pixel_negatives"),
    ("patch_anchors", "patch_negatives"),
)
PATCHES = ("patch_first", "patch_second")


def test_both_terms_train_the_network_and_not_its_classifier(steps):
    made = made_by(configured())
    terms = made(steps[0], Step(0))
    losses = {"segmentation", "pipa/pixel", *(f"pipa/{name}" for name in PATCHES)}
    activities = {f"{ACTIVITY}pipa/{name}" for part in ACTIVE for name in part}
    assert terms.keys() == losses | activities
    assert all(term.count > 0 and term.sum > 0 for term in terms.values())
    assert all(terms[name].weight == 0 for name in activities)
    assert {name: term.weight for name, term in terms.items()}.pop("pipa/pixel") == 0.1
    for names, head in ((("pixel",), "pixel_head"), (PATCHES, "patch_head")):
        assert some(gradients(terms, names, made.segmentor.backbone))
        assert some(gradients(terms, names, made.get_submodule(f"pipa.{head}")))
        assert not some(gradients(terms, names, made.segmentor.head))


class Taught(Method):
    """A toy with a teacher, of another initialisation."""

    def __init__(self, segmentor, config):
        super().__init__(segmentor, config)
        torch.manual_seed(1)
        self.teacher = segmentor.new("none").requires_grad_(False).eval()

    def losses(self, batch, step):
        source = self.segment(batch.source, "source", step)
        terms = {"segmentation": Term(*cross_entropy(source.logits, batch.source.label))}
        return Outputs(terms, {"source": Seen(batch.source, source, batch.source.label)})


def taught(*more: str) -> Taught:
    config = configured(*more)
    torch.manual_seed(0)
    segmentor = networks.new_segmentor(config, CLASSES)
    made = Taught(segmentor, config.of("source_only"))
    made.attach("pipa", PiPa(segmentor, config.extra("pipa")))
    return made.train()


def test_the_released_mode_never_reaches_the_network(steps):
    made = taught("pipa.patch_features=ref_teacher")
    terms = made(steps[0], Step(0))
    assert terms["pipa/patch_first"].sum > 0
    assert not some(gradients(terms, PATCHES, made.segmentor))  # exactly zero
    assert some(gradients(terms, PATCHES, made.pipa.patch_head))
    with pytest.raises(ConfigError, match="ref_teacher needs a method with a teacher"):
        made_by(configured("pipa.patch_features=ref_teacher"))(steps[0], Step(0))


def test_a_teacher_judges_where_there_is_one_in_a_single_forward(steps):
    made, calls = taught(), []
    made.teacher.register_forward_hook(lambda m, given, output: calls.append(output))
    terms = made(steps[0], Step(0))
    assert some(gradients(terms, PATCHES, made.segmentor.backbone))
    (output,) = calls
    assert output.logits.shape[0] == 2 * len(steps[0].source.position)
    unsure = taught()
    with torch.no_grad():
        for parameter in unsure.teacher.head.parameters():
            parameter.zero_()  # never above 1/19
    assert int(unsure(steps[0], Step(0))["pipa/patch_first"].count) == 0
    classes = made.pipa.bank.labels[0]
    assert set(classes[classes != 255].tolist()) <= set(output.logits.argmax(1).unique().tolist())


def test_hard_pixels_are_those_the_main_head_gets_wrong(steps, monkeypatch):
    asked = []
    plain = module.sample_pixels
    monkeypatch.setattr(
        module, "sample_pixels", lambda *given: asked.append(given) or plain(*given)
    )
    made, batch = made_by(configured()), steps[0]
    outputs = []
    made.segmentor.register_forward_hook(lambda m, given, output: outputs.append(output))
    made(batch, Step(0))
    labels, right, *_ = asked[0]
    small = batch.source.label[:, ::2, ::2].flatten(1)
    assert torch.equal(labels, small)
    assert torch.equal(right, outputs[0].logits.argmax(1).flatten(1) == small)


@pytest.mark.parametrize(("kind", "anchors"), [(255, False), (3, True)])
def test_void_alone_and_one_class_alone(steps, kind, anchors):
    batch = steps[0]
    batch = changed(batch, "source", label=torch.full_like(batch.source.label, kind))
    made = made_by(configured())
    terms = made(batch, Step(0))
    assert (int(terms["pipa/pixel"].count) > 0) == anchors
    found = gradients(terms, ("pixel",), made.segmentor)
    assert some(found) == anchors and all(g.isfinite().all() for g in found)
    loss, _ = total(terms)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in made.parameters())


def test_a_term_that_has_not_started_costs_no_forward(steps):
    made, calls = made_by(configured("pipa.pixel_start=2", "pipa.patch_start=3")), []
    made.segmentor.register_forward_hook(lambda m, given, output: calls.append(len(given[0])))
    found = []
    for number in (1, 2, 3):
        calls.clear()
        terms = made(steps[number], Step(number))
        total(terms)[0].backward()
        assert all(p.grad is not None for p in made.parameters())  # as DDP asks
        active = [int(terms[f"pipa/{name}"].count) > 0 for name in ("pixel", "patch_first")]
        found.append((*active, len(calls)))
    assert found == [(False, False, 1), (True, False, 1), (True, True, 3)]


def test_a_weight_of_zero_leaves_a_term_out_with_all_it_needs():
    both = configured()
    for weight, kept, stream in (
        ("pixel_weight", "patch_head", True),
        ("patch_weight", "pixel_head", False),
    ):
        config = configured(f"pipa.{weight}=0")
        (head,) = (
            n for n, _ in made_by(config).get_submodule("pipa").named_children() if "head" in n
        )
        assert head == kept and ("target/pairs" in config.reads_of("source_only")) == stream
    assert "target/pairs" in both.reads_of("source_only")


def test_the_temperature_of_the_code_is_a_factor(steps):
    plain = made_by(configured())(steps[0], Step(0))["pipa/pixel"]
    theirs = made_by(configured("pipa.base_temperature=0.07"))(steps[0], Step(0))["pipa/pixel"]
    assert torch.equal(plain.sum, theirs.sum)
    assert theirs.weight / plain.weight == pytest.approx(0.1 / 0.07)


def test_pairs_come_shuffled_without_labels_and_go_on(steps):
    ids = [steps.sample_ids(number)["target/pairs"] for number in range(4)]
    assert len({tuple(some) for some in ids}) == 4  # the released code: the first images for ever
    assert sum(ids, []) != sorted(sum(ids, [])) and len(set(sum(ids, []))) == 16
    pair = steps[0].pair("target/pairs")
    assert pair.first.label is None and pair.first.image.shape[1:] == (3, 16, 32)
    assert (pair.boxes % 4 == 0).all()


def test_every_parameter_learns_at_the_heads_rate(steps):
    made = made_by(configured("source_only.head_multiplier=7"))
    (optimizer,) = made.pipa.optimizers(made.config)
    (group,) = optimizer.param_groups
    assert set(map(id, group["params"])) == set(map(id, made.pipa.parameters()))
    assert group["lr"] == pytest.approx(7 * made.config.learning_rate)


def test_the_bank_holds_as_many_places_of_every_image(steps):
    made, lengths = made_by(configured()), []
    for number in range(4):
        made(steps[number], Step(number))
        lengths.append((made.pipa.bank.labels != 255).sum(1).tolist())
    assert lengths == [[56, 0, 0], [56, 56, 0], [56, 56, 56], [56, 56, 56]]  # 7 * 2 * 4 of 60
    with pytest.raises(ConfigError, match="at least the images of a step, got 3"):
        made_by(configured("pipa.patch_samples=3"))(steps[0], Step(0))


def outputs_of(made: Method, name: str) -> list:
    """What a part of a method gives from now on, call by call."""
    kept: list = []
    made.get_submodule(name).register_forward_hook(lambda m, given, output: kept.append(output))
    return kept


def slow_patch(pair, embedded, probabilities, bank, own: int) -> tuple[float, int]:
    """(sum, count) of one crop's term in loops, on cells of 4 pixels."""
    rows = [(row, int(k)) for row, k in zip(*bank, strict=True) if k != 255]
    loss, anchors, other = 0.0, 0, 1 - own
    for image, boxes in enumerate(pair.boxes.tolist()):
        (top, left, height, width), (its_top, its_left, _, _) = boxes[own], boxes[other]
        for y in range(0, height, 4):
            for x in range(0, width, 4):
                across = width - 4 - x if pair.flips[image, 0] != pair.flips[image, 1] else x
                mine = (top + y) // 4, (left + x) // 4
                its = (its_top + y) // 4, (its_left + across) // 4
                here, there = (
                    probabilities[own][image][:, *mine],
                    probabilities[other][image][:, *its],
                )
                if not (there.max() > 0.06 and here.max() < there.max()):
                    continue
                anchor = embedded[image, own, mine[0] * 8 + mine[1]]
                positive = embedded[image, other, its[0] * 8 + its[1]]

                def share(row, anchor=anchor):
                    return torch.cosine_similarity(anchor, row, 0).div(0.1).exp()

                far = sum(share(row) for row, kind in rows if kind != int(here.argmax()))
                loss -= float((share(positive) / (share(positive) + far)).log())
                anchors += 1
    return loss, anchors


def test_the_patch_term_is_that_of_a_slow_version(steps):
    made = made_by(configured())
    networks_outputs, heads = outputs_of(made, "segmentor"), outputs_of(made, "pipa.patch_head")
    for number in (0, 1):
        terms = made(steps[number], Step(number))
    embedded = heads[1].detach()
    softmaxes = [output.logits.detach().softmax(1) for output in networks_outputs[-2:]]
    probabilities = [F.avg_pool2d(some, 2) for some in softmaxes]
    bank = made.pipa.bank.all()
    labels = torch.stack([some.argmax(1).flatten(1) for some in probabilities], 1)
    for row, kind in zip(*(part[:56] for part in bank), strict=True):  # the step's own
        (at,) = (embedded == row).all(-1).nonzero()
        assert int(labels[tuple(at)]) == int(kind)
    pair = steps[1].pair("target/pairs")
    assert pair.flips[:, 0].ne(pair.flips[:, 1]).any()
    pairs = 0
    for own, name in enumerate(PATCHES):
        loss, anchors = slow_patch(pair, embedded, probabilities, bank, own)
        found = terms[f"pipa/{name}"]
        assert anchors == int(found.count) > 5
        pairs += anchors
        assert found.sum.item() == pytest.approx(loss, rel=1e-4)

    active = terms["activity/pipa/patch_anchors"]
    assert (int(active.sum), int(active.count)) == (pairs, 8)
    usual = terms["activity/pipa/patch_negatives"]
    assert 0 < usual.sum / usual.count <= int((bank[1] != 255).sum())


def test_a_crop_has_the_colours_that_are_asked_for():
    crops = configured("pipa.grayscale=0.5").reads_of("source_only")["target/pairs"]
    assert (crops.jitter, crops.grayscale) == ((0.2, 0.2, 0.2, 0.2), 0.5)


def test_the_pixel_heads_norm_is_that_of_the_pixels_that_are_meant():
    torch.manual_seed(0)
    head, rows = module.PixelHead(6).double(), torch.randn(9, 6, dtype=torch.float64)
    meant = torch.arange(9) < 7
    plain = torch.nn.BatchNorm1d(6).double()
    expected = head.second(F.relu(plain(head.first(rows[:7]))))
    torch.testing.assert_close(head(rows, meant)[:7], expected, rtol=0, atol=1e-12)
    assert head(rows, ~meant & meant).isfinite().all()


class Levels(ThreeConvolutions):
    """A toy backbone with two levels."""

    widths = (16, 5)

    def __init__(self, norm):
        super().__init__(norm)
        self.down = torch.nn.Conv2d(16, 5, 3, 2, 1)
        self.feature_dimension = 5

    def forward(self, image):
        fine = super().forward(image)
        return fine, self.down(fine)


class Coarsest(torch.nn.Conv2d):
    def forward(self, levels):
        return super().forward(levels[-1])


def test_all_levels_are_contrasted_on_the_finest_grid(steps):
    torch.manual_seed(0)
    network = Segmentor(Levels("frozen"), Coarsest(5, CLASSES, 1), CLASSES)
    made = Taught.__new__(Taught)
    Method.__init__(made, network, configured().of("source_only"))
    settings = dataclasses.replace(configured().extra("pipa"), multiple=8)
    made.attach("pipa", PiPa(network, settings))
    config = configured("pipa.multiple=8")
    batch = networks.random_batch(config, "source_only", 2, CLASSES)
    terms = made.train()(batch, Step(0))
    assert made.pipa.pixel_head.first.in_features == 21
    for level in (network.backbone.layers, network.backbone.down):
        assert some(gradients(terms, ("pixel",), level))


def test_nothing_of_it_is_read_on_the_host():
    # Fake tensors have no values: reading one raises.
    counted = training(configured("train.dtype=bfloat16"), "source_only", 4, CLASSES)
    assert counted.peak > counted.weights > 0


def test_it_runs_on_spcl():
    config = configured(stage="spcl")
    made = made_by(config, "spcl")
    made.prototypes.seen.fill_(True)
    terms = made(networks.random_batch(config, "spcl", 4, CLASSES), Step(0))
    assert terms["pipa/pixel"].sum > 0 and terms["pipa/patch_second"].sum > 0


def test_four_steps_of_the_recipe_log_terms_and_activities(mini_data, tmp_path):
    config = load("streets", "pipa", None, [*MINI, *SMALL, "daformer.steps=4"])
    made, read = made_by(config, "daformer"), steps_of(config, mini_data, tmp_path / "run")
    lines = train(made, tmp_path, name="daformer", data=read)
    for line in lines:
        assert all(line["losses"][f"pipa/{name}"] > 0 for name in ("pixel", *PATCHES))
        assert all(line["activity"][f"pipa/{name}"] > 0 for part in ACTIVE for name in part)


def test_a_term_that_never_starts_is_told_with_its_settings(mini_data, tmp_path):
    config = configured("pipa.patch_start=9", "source_only.steps=2")
    read = steps_of(config, mini_data, tmp_path / "run")
    train(made_by(config), tmp_path, name="source_only", data=read)
    said = (tmp_path / "metrics.jsonl").read_text()
    assert "pipa/patch_anchors was 0 throughout" in said
    assert "look at pipa.patch_start and pipa.confidence" in said
    assert "pixel_anchors was 0" not in said


def test_where_the_method_saw_no_source_it_is_seen_for_this():
    config = configured(stage="self_training")
    made = made_by(config, "self_training")
    terms = made(networks.random_batch(config, "self_training", 4, CLASSES), Step(0))
    assert some(gradients(terms, ("pixel",), made.segmentor.backbone))


# Training: one rank and two, stopped and not, at once and in parts.


class Doubled(Steps):
    """In float64, in which one rank and two differ by rounding alone."""

    def __getitem__(self, step):
        batch = super().__getitem__(step)

        def double(part: torch.Tensor) -> torch.Tensor:
            return part.double() if part.is_floating_point() else part

        streams = {name: content.each(double) for name, content in batch.streams.items()}
        return dataclasses.replace(batch, streams=streams)


FROZEN = ("model.norm=frozen", "source_only.learning_rate=0.01")


def trained(
    rank: int, data: str, folder: str, stop: int = 0, parts: int = 0, more: tuple = ()
) -> dict:
    """The state after four steps; `stop`: as many, the rest by a new method."""
    for steps in (stop, 4) if stop else (4,):
        config = configured(*more, f"source_only.steps={steps}")
        made = made_by(config).double()
        read = steps_of(config, Path(data), Path(folder) / "run")
        doubled = Doubled(
            read.streams, batch=read.batch, rank=read.rank, world_size=read.world_size
        )
        lines = train(made, Path(folder), data=doubled, micro_batch=parts)
        assert all(line["losses"]["pipa/patch_first"] > 0 for line in lines)
    return copy.deepcopy(made.state_dict())


@pytest.fixture(scope="module")
def straight(mini_data, tmp_path_factory):
    return trained(0, str(mini_data), str(tmp_path_factory.mktemp("straight")))


def test_a_run_that_stopped_ends_in_the_same_bits(straight, mini_data, tmp_path):
    again = trained(0, str(mini_data), str(tmp_path), stop=2)
    assert "pipa.bank.rows" in straight and straight["pipa.bank.rows"].any()
    assert all(torch.equal(value, again[name]) for name, value in straight.items())


def test_parts_of_a_batch_train_as_the_whole(mini_data, tmp_path):
    whole, parts = (
        trained(0, str(mini_data), str(tmp_path / str(size)), parts=size, more=FROZEN)
        for size in (0, 3)
    )
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_two_ranks_train_as_one_and_hold_the_same_bank(straight, mini_data, tmp_path):
    states = run_ranks(trained, 2, str(mini_data), str(tmp_path))
    for state in states:
        for name, value in straight.items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-9)
    for name in ("pipa.bank.rows", "pipa.bank.labels"):
        assert torch.equal(states[0][name], states[1][name])


def test_the_defaults_are_the_papers():
    config = PiPaConfig()
    assert (config.denominators, config.base_temperature) == ("all", 0.0)
    assert config.patch_features == "student"
