"""Switches to what the authors' code does: each alone, and all at once by compat=official."""

import math

import pytest
import torch
from conftest import MINI, MINI_OF
from torch import nn
from toys import Stripes, batch_of, method, train

from spcl import cli
from spcl.configuration import layers
from spcl.configuration.config import differences, load
from spcl.configuration.layers import CONFIGS, known
from spcl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from spcl.engine import trainer
from spcl.engine.networks import new_segmentor
from spcl.engine.recipe import Recipe, augmentation
from spcl.engine.stages import plan
from spcl.errors import ConfigError
from spcl.methods.adversarial import Adversarial
from spcl.methods.spcl import SPCL
from spcl.models.normalization import RunningBatchNorm2d
from spcl.models.segmentor import Output, build_segmentor
from spcl.randomness import Step
from spcl.runs import show
from spcl.settings import flatten, read_yaml
from spcl.store.run_folder import RunFolder
from spcl.train import main

DATA = {"source": "s" * 64, "target": "t" * 64, "evaluation": "e" * 64}

#: What ASANet's code does otherwise, for both of its strategies.
ASANET = {
    "model.aspp_branches": 2,
    "model.norm": "running",
    "model.mean_order": "mixed",
    "source.order": "in_order",
    "target.order": "in_order",
    "source_only.augment": "none",
    "train.reduction": "per_rank",
}
#: What the authors' code does, from a reading of it; by hand, key by key.
OFFICIAL = {
    "asanet": ASANET,
    "asanet_asc": ASANET,
    "spcl": {
        "spcl.absent": "decay",
        "spcl.sync": False,
        "spcl.init": "per_image",
        "spcl.source_mask": "agree",
        "spcl.normalize_keys": False,
        "spcl.seg_temperature": 1.8,
        "spcl.augment": "source",
        "adversarial.seg_temperature": 1.8,
        "adversarial.discriminator_temperature": "source_only",
        "adversarial.augment": "source",
        "pseudo_label.median": "ref_index",
        "train.reduction": "per_rank",
    },
}
SWITCHES = [
    (name, key, value)
    for name in known("compat")
    for key, value in flatten(read_yaml(CONFIGS / "compat" / f"{name}.yaml")).items()
]


def values(*arguments):
    return flatten(load(*arguments).as_dict())


def plain(value):
    """As the command line writes it."""
    return str(list(value) if isinstance(value, tuple) else value).replace("'", "")


def keys(name, *overrides, benchmark="gta5"):
    stages = plan(load(benchmark, name, None, overrides), DATA)
    return {stage.title: stage.key for stage in stages}


# All at once.


@pytest.mark.parametrize("name", known("compat"))
@pytest.mark.parametrize("benchmark", known("benchmarks"))
def test_official_sets_its_switches_and_nothing_else(benchmark, name):
    usual, official = values(benchmark, name), values(benchmark, name, None, ["compat=official"])
    switches = {key: value for method, key, value in SWITCHES if method == name}
    assert official == usual | switches | {"compat": "official"}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_is_what_the_authors_code_does(name):
    usual, official = values("gta5", name), values("gta5", name, None, ["compat=official"])
    changed = {key for key in usual if usual[key] != official[key]} - {"compat"}
    assert {key: official[key] for key in changed} == OFFICIAL[name]


def test_official_in_a_file_is_the_same(tmp_path):
    path = tmp_path / "official.yaml"
    path.write_text("compat: official\n")
    assert load("gta5", "spcl", path) == load("gta5", "spcl", None, ["compat=official"])
    assert load("gta5", "spcl", path, ["compat=ours"]) == load("gta5", "spcl")


def test_official_in_a_benchmarks_file_is_not_a_mere_name(tmp_path, monkeypatch):
    benchmark(tmp_path, monkeypatch, "{spcl: {compat: official}}")
    assert load("streets", "spcl").of("spcl").absent == "decay"
    assert load("streets", "spcl", None, ["compat=ours"]).of("spcl").absent == "keep"
    assert load("streets", "adversarial").compat == "ours"


def test_a_setting_beside_official_wins(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("spcl: {absent: keep}\n")
    both = load("gta5", "spcl", path, ["spcl.seg_temperature=1.0", "compat=official"])
    assert (both.of("spcl").absent, both.of("spcl").seg_temperature) == ("keep", 1.0)
    assert both.of("adversarial").seg_temperature == 1.8


def test_official_where_nothing_is_known_of_the_code_is_refused():
    with pytest.raises(
        ConfigError, match="compat=official is known for .*spcl.*not for 'source_on"
    ):
        load("gta5", "source_only", None, ["compat=official"])


def test_compat_is_a_name_for_settings_and_no_setting():
    """The switches one by one are the same run."""
    official = load("gta5", "spcl", None, ["compat=official"])
    one_by_one = [f"{key}={plain(value)}" for key, value in OFFICIAL["spcl"].items()]
    assert differences(official, load("gta5", "spcl", None, one_by_one)) == []
    assert keys("spcl", "compat=official") == keys("spcl", *one_by_one)


# Each alone.


@pytest.mark.parametrize(("name", "key", "value"), SWITCHES, ids=lambda v: str(v))
def test_each_switch_alone_changes_the_key_of_a_stage(name, key, value):
    usual = values("gta5", name)
    same = keys(name, f"{key}={plain(usual[key])}")
    assert same == keys(name)  # the default, said or not
    if value != usual[key]:
        assert keys(name, f"{key}={plain(value)}") != same


@pytest.mark.parametrize(
    "override",
    ["source.grayscale=0.2", "source.blur=[0.1,2]", "target.order=in_order"],
)
def test_settings_of_a_stream_change_the_stages_that_read_it(override):
    before, after = keys("spcl"), keys("spcl", override)
    assert before["spcl"] != after["spcl"]
    assert override.startswith("source") or keys("source_only", override) == keys("source_only")


def test_a_mean_per_worker_is_of_their_number():
    two = ("train.reduction=per_rank", "train.workers=2")
    assert keys("spcl", *two)["adversarial"] != keys("spcl", two[0])["adversarial"]
    assert keys("spcl", two[1]) == keys("spcl")


@pytest.mark.parametrize(
    ("recipe", "switches", "stage"),
    [
        ("spcl", ["spcl.sync=false"], "spcl"),
        ("sdca", ["sdca.sync=false"], "sdca"),
        ("sdca", ["sdca.lovasz=batch"], "sdca"),
        ("sdca", ["source_only.lovasz=batch"], "source_only"),
    ],
)
def test_what_ranks_have_of_their_own_is_of_their_number(recipe, switches, stage):
    one, two = (keys(recipe, *switches, f"train.workers={n}") for n in (1, 2))
    differing = [title for title in one if one[title] != two[title]]
    assert differing[0] == stage  # and what is made of it
    off = [f"{stage}.lovasz_weight=0"] if "lovasz" in switches[0] else [f"{stage}.sync=true"]
    assert keys(recipe, *switches, *off) == keys(recipe, *switches, *off, "train.workers=2")


def test_the_loop_reduces_as_asked(tmp_path, monkeypatch):
    """What that means on two ranks: tests/spcl/losses/test_reduction.py."""
    asked = []

    def total(terms, reduction):
        asked.append(reduction)
        return trainer_total(terms, reduction)

    trainer_total = trainer.total
    monkeypatch.setattr(trainer, "total", total)
    train(method("source_only", steps=1), tmp_path, reduction="per_rank")
    assert asked == ["per_rank"]


def test_a_stage_reads_the_list_in_order(mini_data, tmp_path):
    settings = ["source.order=in_order", "target.order=in_order"]
    official = load("streets", "adversarial", None, [*MINI, *settings])
    recipe = Recipe(official, mini_data, RunFolder(tmp_path / "a"), trainer.Context())
    steps = recipe._steps(recipe.stages[0])
    for role in ("source", "target"):
        ids = recipe.shards[role].sample_ids
        read = [name for step in range(len(ids) // 2) for name in steps.sample_ids(step)[role]]
        assert read == ids * 2  # four a step: twice through


class ThreeLogits(nn.Module):
    """Logits (4, 1, 0) everywhere, whatever the image."""

    num_classes, feature_dimension = 3, 2

    def forward(self, image, domain, keys=None):
        logits = torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)[None, :, None, None]
        return Output(torch.ones(1, 2, 4, 4).double(), logits.expand(1, 3, 4, 4))


class Recorder(nn.Module):
    """A discriminator that keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.shown = []

    def forward(self, probabilities):
        self.shown.append(round(float(probabilities.max()), 8))
        return self.weight * probabilities

    def apart(self, probabilities):
        return self(probabilities), self(probabilities.detach())


def one_class():
    image, label = torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)
    return batch_of(source=(image, label), target=(image, label))


#: Largest probability of logits (4, 1, 0), and of these divided by 1.8.
SHARP, SOFT = 0.93623955, 0.77086523


@pytest.mark.parametrize(("temperature", "top"), [(1.0, SHARP), (1.8, SOFT)])
@pytest.mark.parametrize("kind", [Adversarial, SPCL])
def test_the_temperature_divides_the_logits_before_cross_entropy(kind, temperature, top):
    made = kind(ThreeLogits(), kind.Config(seg_temperature=temperature)).double()
    loss = made(one_class(), Step(0))["segmentation"]
    assert float(loss.sum / loss.count) == pytest.approx(-math.log(top), abs=1e-7)


@pytest.mark.parametrize(("rule", "source"), [("none", SHARP), ("source_only", SOFT)])
def test_the_discriminator_sees_the_source_divided_and_never_the_target(rule, source):
    settings = Adversarial.Config(seg_temperature=1.8, discriminator_temperature=rule)
    made = Adversarial(ThreeLogits(), settings).double()
    made.critic = Recorder()
    made(one_class(), Step(0))
    judged, on_target, on_source = made.discriminator.shown
    assert (judged, on_source, on_target) == pytest.approx((SHARP, source, SHARP), abs=1e-7)


def test_a_mixed_mean_is_that_of_the_channel_at_the_other_end():
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    networks = []
    for order in ("right", "mixed"):
        torch.manual_seed(0)
        made = build_segmentor("tiny", 5, norm="frozen", mean_order=order)
        networks.append(made.double())
    right, mixed = networks
    assert right.state_dict().keys() == mixed.state_dict().keys()
    usual, reversed_ = (((pixels - m) / deviation).double() for m in (mean, mean.flip(0)))
    found, wanted = mixed(usual, "source").logits, right(reversed_, "source").logits
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, right(usual, "source").logits, atol=1e-2)


def test_a_run_has_the_network_that_its_settings_name():
    official = ["model.norm=running", "model.mean_order=mixed"]
    network = new_segmentor(load("streets", "source_only", None, official), 19)
    assert network.mean_order == "mixed"
    assert any(isinstance(layer, RunningBatchNorm2d) for layer in network.modules())
    vgg = load("gta5", "source_only", None, ["model=deeplabv2_vgg16", *official])
    assert vgg.norm == "frozen"  # has nothing to normalise


def test_running_statistics_follow_training_and_its_map_does_not(tmp_path):
    made = method("adversarial", norm="running", steps=5)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    data = Stripes()
    lines = train(made, tmp_path, data=data)
    assert len(lines) == 5
    layers = [n for n, m in made.named_modules() if isinstance(m, RunningBatchNorm2d)]
    after = made.state_dict()
    for layer in layers:
        for name in ("weight", "bias"):
            assert torch.equal(after[f"{layer}.{name}"], before[f"{layer}.{name}"])
        assert not torch.equal(after[f"{layer}.running_mean"], before[f"{layer}.running_mean"])
    optimized = {id(p) for o in made.optimizers() for g in o.param_groups for p in g["params"]}
    assert layers and optimized == {id(p) for p in made.parameters()}
    assert all(p.requires_grad for p in made.parameters())


@pytest.mark.parametrize(
    ("rule", "role", "colours", "flip"),
    [
        ("both", "source", True, 0.5),
        ("both", "target", True, 0.5),
        ("source", "source", True, 0.0),
        ("source", "target", False, 0.0),
        ("none", "source", False, 0.0),
        ("none", "target", False, 0.0),
    ],
)
def test_what_a_stage_does_to_the_images_of_a_domain(rule, role, colours, flip):
    changes = ["jitter=[0.1,0.2,0.3,0.4]", "grayscale=0.2", "blur=[0.1,2]"]
    settings = [f"{domain}.{change}" for domain in ("source", "target") for change in changes]
    made = load("gta5", "spcl", None, [*settings, f"spcl.augment={rule}", "spcl.scale=[0.5,1.5]"])
    augment = augmentation(getattr(made, role), role, made.of("spcl"))
    assert augment.flip == flip and augment.scale == (0.5, 1.5)
    assert augment.size == getattr(made, role).size
    found = augment.jitter, augment.grayscale, augment.blur
    off = (0.0, 0.0, 0.0, 0.0), 0.0, (0.0, 0.0)
    assert found == (((0.1, 0.2, 0.3, 0.4), 0.2, (0.1, 2.0)) if colours else off)


# Where a stage starts from.


def by_title(*overrides):
    return {s.title: s for s in plan(load("gta5", "spcl", None, overrides), DATA)}


def test_a_stage_that_starts_afresh_reads_no_checkpoint_but_its_predictions():
    usual, afresh = by_title(), by_title("self_training.start=pretrained")
    assert set(usual["self_training"].inputs) == {"checkpoint", "predictions"}
    assert set(afresh["self_training"].inputs) == {"predictions"}
    same = {title for title in usual if usual[title].key == afresh[title].key}
    assert set(usual) - same == {"self_training", "evaluation of self_training"}


def test_the_first_stage_starts_afresh_either_way():
    assert keys("spcl", "adversarial.start=pretrained") == keys("spcl")


def test_a_stage_with_a_look_at_the_source_cannot_start_afresh():
    with pytest.raises(ConfigError, match="spcl.start must be trained"):
        load("gta5", "spcl", None, ["spcl.start=pretrained"])


# What cannot be.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source.blur=[2,0.1]"], r"source.blur must be .* 0 < low <= high.* got \[2.0, 0.1\]"),
        (["target.blur=[0,1]"], r"target.blur must be .* got \[0.0, 1.0\]"),
        (["target.grayscale=1.5"], "target.grayscale must be at most 1.0, got 1.5"),
        (["source.shuffle=false"], "set source.class_balanced=false too"),
        (["spcl.seg_temperature=0"], "spcl.seg_temperature must be at least 0.001"),
        (["adversarial.discriminator_temperature=both"], "'both' is unknown"),
        (["model.mean_order=mixd"], "did you mean 'mixed'"),
        (["train.reduction=local"], "'local' is unknown"),
        (["compat=oficial"], "did you mean 'official'"),
    ],
)
def test_unusable_switches_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load("gta5", "spcl", None, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{sppcl: {train: {batch: 2}}}", "method 'sppcl' is unknown; did you mean 'spcl'"),
        ("{spcl: {trian: {batch: 2}}}", "'trian' is unknown; did you mean 'train'"),
        ("{source_only: {source_only: {step: 2}}}", "did you mean 'source_only.steps'"),
        ("{spcl: }", "a section must hold key: value pairs, got None"),
        ("[spcl]", "methods must hold a section per method"),
    ],
)
def test_a_mistake_in_what_a_benchmark_sets_for_a_method_is_told(
    text, message, tmp_path, monkeypatch
):
    """Whichever method is run."""
    benchmark(tmp_path, monkeypatch, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load("streets", "adversarial")
    assert "streets.yaml" in str(caught.value)


def test_what_a_benchmark_sets_for_a_method_is_for_that_recipe_alone(tmp_path, monkeypatch):
    benchmark(tmp_path, monkeypatch, "{spcl: {adversarial: {steps: 7}, model: tiny}}")
    assert load("streets", "spcl").of("adversarial").steps == 7
    assert load("streets", "adversarial").of("adversarial").steps == 5
    assert load("streets", "spcl", None, ["adversarial.steps=9"]).of("adversarial").steps == 9


def benchmark(folder, monkeypatch, methods):
    """A benchmark file streets.yaml with this below `methods:`."""
    for kind in ("methods", "compat"):
        (folder / kind).symlink_to(CONFIGS / kind)
    (folder / "benchmarks").mkdir()
    text = f"model: {{name: tiny}}\nadversarial: {{steps: 5}}\nmethods: {methods}\n"
    (folder / "benchmarks" / "streets.yaml").write_text(text)
    monkeypatch.setattr(layers, "CONFIGS", folder)


# A whole run.


@pytest.mark.parametrize("name", known("compat"))
def test_the_official_recipe_runs_and_says_so(name, mini_data, tmp_path, capsys):
    stages = load("streets", name).stages
    few = [*MINI, *MINI_OF.get(name, ()), "compat=official"]
    few += [f"{stage}.steps=3" for stage in stages]
    places = ["--data", str(mini_data), "--storage", str(tmp_path)]
    arguments = [*places, "--name", "a", "--method", name, *few]
    assert cli.guarded(main, [*arguments, "--dry-run"]) == 0
    assert f"configs/compat/{name}.yaml" in capsys.readouterr().out
    assert cli.guarded(main, arguments) == 0
    run = RunFolder(tmp_path / "a")
    assert [row["stage"] for row in run.done["table"]] == list(stages)
    saved = read_yaml(run.folder / "config.yaml")
    assert run.manifest["compat"] == saved["compat"] == "official"
    assert saved["train"]["reduction"] == "per_rank"
    assert "compat: official" in show(run)


def test_list_says_which_methods_have_an_official_side(capsys):
    assert cli.guarded(main, ["--list"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "compat=official" in x]
    assert all(name in line for name in ("spcl", "sdca", "asanet", "asanet_asc"))
