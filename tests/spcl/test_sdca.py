"""SDCA: what its stage does with its moments, masks and terms, and its recipe to the end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MINI
from processes import run_ranks
from toys import (
    CLASSES,
    Stripes,
    batch_of,
    changed,
    load_image,
    method,
    result_of,
    segmentor,
    train,
)

from spcl import cli
from spcl.configuration.config import load
from spcl.data.labels import IGNORE_INDEX
from spcl.data.shards import ShardSet
from spcl.data.transforms import decode_label
from spcl.engine.stages import plan
from spcl.engine.trainer import total
from spcl.losses.contrast import downsample_labels
from spcl.losses.segmentation import cross_entropy
from spcl.memory.moments import ClassMoments, update_moments
from spcl.methods.sdca import SDCA, MomentsPass, confident_labels, levels
from spcl.models.segmentor import Output, build_segmentor
from spcl.randomness import Step
from spcl.settings import flatten
from spcl.store.run_folder import RunFolder, read_confusions
from spcl.train import main

SIZE = (32, 64)
CPU = torch.device("cpu")
TERMS = ["source_feature", "target_feature", "source_output", "target_output"]


def one_step(made, batch=None):
    return made.train()(batch or Stripes()[0], Step(0))


# Masks.


@pytest.mark.parametrize(
    ("delta_on", "delta", "expected"),
    [
        ("prob", 0.9, [0, 255, 255]),
        ("prob", 0.5, [0, 0, 255]),
        ("prob", 0.0, [0, 0, 1]),
        ("logits", 0.9, [0, 0, 255]),  # nearly everything, once a network is trained
        ("logits", 4.0, [0, 255, 255]),
    ],
)
def test_target_pixels_count_from_a_confidence_on(delta_on, delta, expected):
    rows = torch.tensor([[4.0, 1.0, 0.0], [2.0, 1.0, 1.0], [-0.1, 0.1, 0.1 - 1e-3]])
    logits = rows.T[None, :, None]  # top probabilities .936, .576, .355
    assert confident_labels(logits, delta, delta_on).flatten().tolist() == expected


def test_a_confidence_of_exactly_delta_counts_and_masks_have_no_gradient():
    logits = torch.zeros(1, 2, 1, 1, requires_grad=True)
    labels = confident_labels(logits, 0.5, "prob")
    assert labels.item() == 0 and not labels.requires_grad


@pytest.mark.parametrize(("delta_on", "delta"), [("prob", 0.4), ("logits", 0.4)])
def test_target_pixels_of_a_step_are_chosen_as_asked(delta_on, delta):
    made = method("sdca", delta=delta, delta_on=delta_on)
    count = one_step(made)["target_feature"].count
    logits = made.segmentor(Stripes()[0].target.image, "target").logits
    chosen, otherwise = (
        (confident_labels(logits, delta, kind) != IGNORE_INDEX).sum()
        for kind in (delta_on, {"prob": "logits", "logits": "prob"}[delta_on])
    )
    assert count == chosen != otherwise


def test_without_a_confident_target_pixel_only_the_source_is_left():
    plain = one_step(method("sdca", delta=0.0))
    none = one_step(method("sdca", delta=1.1))
    for name, term in none.items():
        if name.startswith("target"):
            assert (term.sum.item(), term.count.item()) == (0, 0) and plain[name].count > 0
            assert term.sum.requires_grad
        else:
            assert torch.equal(term.sum, plain[name].sum)


# Terms.


def test_features_reach_the_backbone_and_outputs_the_head_too():
    made = method("sdca")
    terms = one_step(made)
    (terms["source_feature"].sum + terms["target_feature"].sum).backward(retain_graph=True)
    assert all(p.grad.abs().sum() > 0 for p in made.segmentor.backbone.parameters())
    assert all(p.grad is None for p in made.segmentor.head.parameters())
    for domain in ("source", "target"):
        made.zero_grad(set_to_none=True)
        terms[f"{domain}_output"].sum.backward(retain_graph=True)
        assert all(p.grad.abs().sum() > 0 for p in made.segmentor.parameters())


def test_the_target_gets_no_cross_entropy():
    """Its head learns of the target through the output level alone."""
    made = method("sdca", output_weight=0.0, feature_weight=0.0, lovasz_weight=0.0)
    loss, _ = total(one_step(made))
    found = torch.autograd.grad(loss, list(made.segmentor.parameters()))
    batch = Stripes()[0]
    logits = made.segmentor(batch.source.image, "source").logits
    total_, count = cross_entropy(logits, batch.source.label)
    expected = torch.autograd.grad(total_ / count, list(made.segmentor.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_weights_are_those_of_the_settings():
    made = method("sdca", feature_weight=2.0, output_weight=3.0, lovasz_weight=0.5)
    weights = {name: term.weight for name, term in one_step(made).items()}
    assert [weights[name] for name in TERMS] == [2.0, 2.0, 3.0, 3.0]
    assert (weights["segmentation"], weights["lovasz"]) == (1.0, 0.5)
    assert "lovasz" not in one_step(method("sdca", lovasz_weight=0.0))
    counts = [one_step(method("sdca", lovasz=over))["lovasz"].count for over in ("image", "batch")]
    assert counts == [4, 1]


def test_variances_are_compared_with_as_they_are_or_in_rows_of_unit_length():
    plain, rows = method("sdca"), method("sdca", cov_normalize="l2_rows")
    for moments in rows.moments.values():
        moments.variance *= 5  # of no meaning where rows have unit length
    same = method("sdca", cov_normalize="l2_rows")
    losses = [made.eval()(Stripes()[0], Step(0)) for made in (plain, rows, same)]
    for level in ("source_feature", "source_output"):
        found = [terms[level].sum for terms in losses]
        assert torch.allclose(found[1], found[2], rtol=1e-5)
        assert not torch.allclose(found[0], found[1], rtol=1e-3)


def test_source_only_has_lovasz_as_an_option():
    assert list(one_step(method("source_only"))) == ["segmentation"]
    one, other = (
        one_step(method("source_only", lovasz_weight=0.75, lovasz=lovasz))["lovasz"]
        for lovasz in ("image", "batch")
    )
    assert (one.weight, one.count.item(), other.count.item()) == (0.75, 4, 1)


def test_without_variance_it_is_spcl_with_these_prototypes():
    """Both in evaluation mode, where memories stay as they are."""
    sdca, spcl = method("sdca").eval(), method("spcl").eval()
    moments = sdca.moments["feature"]
    moments.load(spcl.prototypes.mean, 0 * moments.variance, moments.count)
    spcl.segmentor.load_state_dict(sdca.segmentor.state_dict())
    batch = Stripes()[0]
    found, expected = (
        sdca(batch, Step(0))["source_feature"],
        spcl(batch, Step(0))["source_contrast"],
    )
    assert found.sum.item() == pytest.approx(expected.sum.item(), rel=1e-6)
    assert found.count == expected.count


# Moments.


def expected_moments(made, batch, level, **options):
    """Of the source pixels that were loaded and of this batch."""
    moments = ClassMoments(CLASSES, made.moments[level].mean.shape[1], **options)
    before = made.moments[level]
    moments.load(before.mean, before.variance, before.count)
    output = made.segmentor(batch.source.image, "source")
    labels = downsample_labels(batch.source.label, output.features.shape[-2:])
    update_moments([moments], [levels(output)[level].detach()], labels)
    return moments.state_dict()


@pytest.mark.parametrize("level", ["feature", "output"])
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"moments_on": "raw"}, {"unit": False}),
        ({"moments": "ema", "moments_momentum": 0.7}, {"momentum": 0.7}),
        ({"moments_momentum": 0.7}, {}),  # is of no meaning there
    ],
)
def test_moments_take_the_source_pixels_of_a_step_and_nothing_of_the_target(
    level, settings, options
):
    made, batch = method("sdca", **settings), Stripes()[0]
    expected = expected_moments(made.train(), batch, level, **options)
    other = changed(batch, "target", image=batch.target.image + 1, label=None)
    one_step(made, other)
    for name, value in made.moments[level].state_dict().items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-12)
    assert made.moments[level].count.sum() > CLASSES * 1000


def test_moments_are_updated_before_the_loss_and_only_while_training():
    made, batch = method("sdca"), Stripes()[0]
    before = {k: v.clone() for k, v in made.moments.state_dict().items()}
    made.eval()(batch, Step(0))
    assert all(torch.equal(v, before[k]) for k, v in made.moments.state_dict().items())
    loss = one_step(made, batch)["source_feature"].sum
    after = made.moments.state_dict()
    frozen = method("sdca").train()
    frozen.training = False  # of the method alone: its network goes on normalising by the batch
    for moments, same in ((after, True), (before, False)):
        frozen.moments.load_state_dict(moments)
        again = frozen(batch, Step(0))["source_feature"].sum
        assert torch.allclose(again, loss, rtol=1e-5) == same


def test_a_class_without_a_distribution_has_no_part():
    made = method("sdca", delta=0.0)
    for moments in made.moments.values():
        moments.count.zero_(), moments.mean.zero_(), moments.variance.zero_()
    batch = Stripes()[0]
    terms = one_step(made, batch)  # the first: classes of its source, and no others, are seen
    present = torch.bincount(batch.source.label.flatten().long(), minlength=CLASSES) > 0
    assert torch.equal(made.moments["feature"].seen, present) and not present.all()
    assert all(torch.isfinite(term.sum) for term in terms.values())


def test_bfloat16_stays_close_to_float32(tmp_path):
    single = train(method("sdca", steps=2), tmp_path / "a")
    half = train(method("sdca", steps=2), tmp_path / "b", dtype="bfloat16")
    for one, other in zip(single, half, strict=True):
        for name in ("segmentation", "lovasz", "source_feature", "source_output"):
            assert other["losses"][name] == pytest.approx(one["losses"][name], rel=3e-2)
        assert all(np.isfinite(value) for value in other["losses"].values())


# Classes without an output.

ABSENT = (9, 14, 16)
KEPT = [k for k in range(19) if k not in ABSENT]


def without_outputs():
    """The method with three absent classes of 19, and on the 16 others, in the same state."""
    torch.manual_seed(0)
    wide = build_segmentor("tiny", 19, norm="frozen", absent=ABSENT)
    narrow = build_segmentor("tiny", 16, norm="frozen")
    state = wide.state_dict()
    for name in ("head.weight", "head.bias"):
        state[name] = state[name][KEPT]
    narrow.load_state_dict(state)
    settings = SDCA.Config(temperature=0.1, delta=0.05)
    return [SDCA(network, settings).double().train() for network in (wide, narrow)]


def test_losses_moments_and_gradients_are_those_of_sixteen_outputs():
    wide, narrow = without_outputs()
    torch.manual_seed(1)
    labels = torch.tensor([*KEPT, 255], dtype=torch.uint8)[torch.randint(17, (2, 32, 48))]
    to_16 = torch.full((256,), 255, dtype=torch.uint8)
    to_16[KEPT] = torch.arange(16, dtype=torch.uint8)
    images = torch.randn(2, 2, 3, 32, 48).double()
    for made, truth in ((wide, labels), (narrow, to_16[labels.long()])):
        batch = batch_of(source=(images[0], truth), target=(images[1], None))
        made.found = made(batch, Step(0))
        total(made.found)[0].backward()
    for name, term in narrow.found.items():
        assert wide.found[name].sum.item() == pytest.approx(term.sum.item(), rel=1e-12)
        assert wide.found[name].count == term.count > 0
    for kind in ("mean", "variance"):
        outputs = getattr(wide.moments["output"], kind)
        expected = getattr(narrow.moments["output"], kind)
        assert torch.allclose(outputs[KEPT][:, KEPT], expected, rtol=1e-12, atol=1e-15)
        assert outputs[:, list(ABSENT)].abs().max() == outputs[list(ABSENT)].abs().max() == 0
    for (name, one), (_, other) in zip(
        wide.named_parameters(), narrow.named_parameters(), strict=True
    ):
        gradient = one.grad[KEPT] if "head" in name else one.grad
        assert torch.allclose(gradient, other.grad, rtol=1e-9, atol=1e-15), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_nothing_of_an_absent_class(dtype):
    network = build_segmentor("tiny", 19, norm="frozen", absent=ABSENT)
    with torch.autocast("cpu", dtype):
        logits = network(torch.randn(1, 3, 32, 48), "source").logits
    level = levels(Output(logits, logits))["output"]
    assert level.dtype == dtype and (level[:, list(ABSENT)] == 0).all()
    assert torch.equal(level[:, KEPT], logits[:, KEPT])


# The pass over the source.


def moments_on_rank(rank, folder, settings):
    network, shards = segmentor(), ShardSet(folder)
    look = MomentsPass(network, SDCA.Config(**settings), CPU, Path())
    return result_of(look, network, shards, SIZE)


def test_the_pass_is_one_look_at_every_pixel_on_any_number_of_ranks(mini_data):
    folder = mini_data / "streets/sim/train"
    alone = moments_on_rank(0, folder, {})
    assert sorted(alone) == [
        "count",
        "feature_mean",
        "feature_variance",
        "output_mean",
        "output_variance",
    ]
    for result in run_ranks(moments_on_rank, 2, folder, {}):
        for name, value in alone.items():
            assert torch.allclose(result[name].double(), value.double(), rtol=0, atol=1e-9), name
            assert value.abs().sum() > 0
    shards, network = ShardSet(folder), segmentor().eval()
    followed = ClassMoments(CLASSES, network.feature_dimension)
    for index in range(len(shards)):
        with torch.no_grad():
            features = network(load_image(shards, index, SIZE), "source").features
        truth = decode_label(shards.label(index))[None]
        update_moments([followed], [features], truth[:, ::2, ::2])  # the grid halves
    assert torch.equal(alone["count"], followed.count)
    # The float32 network rounds otherwise where images are predicted together.
    assert torch.allclose(alone["feature_mean"], followed.mean, rtol=0, atol=1e-6)
    assert torch.allclose(alone["feature_variance"], followed.variance, rtol=0, atol=1e-6)


def test_the_stage_starts_from_what_the_pass_gives(mini_data):
    folder = mini_data / "streets/sim/train"
    made, raw = method("sdca"), moments_on_rank(0, folder, {"moments_on": "raw"})
    made.start_from(raw)
    for name, moments in made.moments.items():
        assert torch.equal(moments.mean, raw[f"{name}_mean"])
        assert torch.equal(moments.variance, raw[f"{name}_variance"])
        assert torch.equal(moments.count, raw["count"])
    unit = moments_on_rank(0, folder, {})
    seen = unit["count"] > 0
    assert unit["feature_mean"].norm(dim=1).max() <= 1 + 1e-6
    share = unit["feature_mean"].square().sum(1) + unit["feature_variance"].sum(1)
    assert torch.allclose(share[seen], torch.ones(()).double(), atol=1e-6)  # E |n|**2
    for level in ("feature", "output"):
        assert not torch.allclose(raw[f"{level}_mean"], unit[f"{level}_mean"], atol=1e-3)


# The recipe.

DATA = {"source": "s" * 64, "target": "t" * 64, "evaluation": "e" * 64}


def keys(*overrides):
    return {s.title: s.key for s in plan(load("gta5", "sdca", None, overrides), DATA)}


def test_the_recipe_in_order_needs_no_stored_labels_before_self_training():
    assert list(keys())[:5] == [
        "source_only",
        "moments of source_only",
        "sdca",
        "predictions of sdca",
        "self_training",
    ]


@pytest.mark.parametrize(
    ("override", "unchanged"),
    [
        ("source_only.lovasz_weight=0", 0),
        ("sdca.moments_on=raw", 1),
        ("sdca.temperature=1.0", 2),
        ("sdca.moments=ema", 2),
        ("pseudo_label.cap=0.8", 4),
        ("self_training.start=pretrained", 4),
    ],
)
def test_a_setting_changes_the_stages_that_read_it_and_what_follows(override, unchanged):
    before, after = keys(), keys(override)
    stages = list(before)[: list(before).index("self_training") + 1]
    assert [title for title in stages if before[title] == after[title]] == stages[:unchanged]


def test_official_is_what_the_authors_code_does():
    usual = flatten(load("gta5", "sdca").as_dict())
    official = flatten(load("gta5", "sdca", None, ["compat=official"]).as_dict())
    changed = {k: v for k, v in official.items() if v != usual[k] and k != "compat"}
    assert changed == {
        "sdca.moments_on": "raw",
        "sdca.cov_normalize": "l2_rows",
        "sdca.sync": False,
        "sdca.delta_on": "logits",
        "sdca.lovasz": "batch",
        "source_only.lovasz": "batch",
        "self_training.start": "pretrained",
        "pseudo_label.median": "ref_index",
        "train.reduction": "per_rank",
    }
    assert official["sdca.augment"] == "source"


def test_on_streets_it_has_the_budget_and_the_images_of_spcl():
    ours, spcl = load("streets", "sdca"), load("streets", "spcl")
    stages = {
        config.method: [
            (c.steps, c.horizon, c.learning_rate, c.head_multiplier, config.batch_of(name), c.scale)
            for name in config.stages
            for c in [config.of(name)]
        ]
        for config in (ours, spcl)
    }
    assert stages["sdca"] == stages["spcl"]
    assert (ours.source, ours.target, ours.model) == (spcl.source, spcl.target, spcl.model)
    assert {ours.of(name).augment for name in ours.stages} == {"both"}


def run(data, storage, *arguments):
    line = ["--data", str(data), "--storage", str(storage), "--method", "sdca", *MINI]
    return cli.guarded(main, [*line, "sdca.steps=6", *arguments])


@pytest.fixture(scope="module")
def finished(mini_data, tmp_path_factory):
    """The recipe, run once: its storage."""
    storage = tmp_path_factory.mktemp("runs")
    assert run(mini_data, storage, "--name", "full") == 0
    return storage


def test_a_run_makes_every_stage_and_scores_each_network(finished):
    folder = RunFolder(finished / "full")
    titles = [row["title"] for row in folder.done["table"]]
    assert titles == ["source-only", "adapted", "self-trained"]
    lines = list(folder.metrics())
    stages = [line["stage"] for line in lines]
    assert stages == ["source_only"] * 6 + ["sdca"] * 6 + ["self_training"] * 4
    assert list(lines[0]["losses"]) == ["segmentation", "lovasz"]
    assert list(lines[6]["losses"]) == ["segmentation", "lovasz", *TERMS]
    for line in lines:
        assert all(np.isfinite(value) for value in line["losses"].values())
    for name in ("source_only", "sdca", "self_training"):
        _, matrices = read_confusions(folder.folder / "evaluations" / f"{name}.parquet")
        assert 0 < matrices.sum() <= 6 * 32 * 64


def test_the_stored_moments_went_on_from_the_pass(finished):
    (path,) = finished.glob("artefacts/moments-of-source_only-*/moments.pt")
    before = torch.load(path, weights_only=True)["count"]
    (path,) = finished.glob("artefacts/sdca-*/checkpoint.pt")
    state = torch.load(path, weights_only=True)["method"]
    added = state["moments.feature.count"] - before
    assert torch.equal(state["moments.feature.count"], state["moments.output.count"])
    assert (added >= 0).all() and 0 < added.sum() <= 6 * 4 * 16 * 32  # steps, images, grid


def test_as_the_authors_code_it_self_trains_from_pretrained_weights(finished, mini_data, capsys):
    assert run(mini_data, finished, "--name", "official", "compat=official") == 0
    assert run(mini_data, finished, "--name", "start", "self_training.start=pretrained") == 0
    said = capsys.readouterr().out.split("official", 1)[1]
    assert "sdca: done before, reused" in said
    folders = [
        RunFolder(finished / name).done["artefacts"]["self_training"] for name in ("full", "start")
    ]
    inputs = [
        json.loads((finished / "artefacts" / folder / "manifest.json").read_text())["inputs"]
        for folder in folders
    ]
    assert [sorted(i) for i in inputs] == [["checkpoint", "predictions"], ["predictions"]]


@pytest.mark.parametrize(
    "overrides",
    [
        ["sdca.output_weight=0"],
        ["sdca.moments=ema", "sdca.moments_momentum=0.9"],
        ["sdca.lovasz_weight=0", "sdca.cov_normalize=l2_rows"],
        ["stages=[adversarial,sdca]"],
        ["stages=[source_only,sdca,spcl]", "sdca.delta=1.0"],
    ],
    ids=" ".join,
)
def test_variants_of_the_recipe_run(finished, mini_data, overrides):
    name = "-".join("".join(c if c.isalnum() else "-" for c in text) for text in overrides)
    assert run(mini_data, finished, "--name", name, *overrides) == 0
