import ast
import dataclasses
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from toys import ThreeConvolutions

import spcl
from spcl.configuration import table
from spcl.configuration.config import load
from spcl.configuration.sections import Model
from spcl.engine.footprint import memory
from spcl.engine.networks import new_segmentor
from spcl.engine.stages import plan
from spcl.errors import ConfigError
from spcl.methods import METHODS
from spcl.models.backbone import FusingHead
from spcl.models.normalization import NORMS
from spcl.models.segmentor import MODELS, NO_DECAY, ModelSpec, build_segmentor
from spcl.models.weights import Pretrained


def tiny(norm="domain", seed=0, name="tiny"):
    torch.manual_seed(seed)
    return build_segmentor(name, 5, norm=norm)


TINY = ("tiny", "tiny_transformer")


@cache
def on_meta(name, norm):
    """Without data; built once, since the largest take a second."""
    with torch.device("meta"):
        return build_segmentor(name, 5, norm=norm)


def norms(name):
    return MODELS[name].norms or ("frozen",)


@pytest.mark.parametrize(("name", "norm"), [(m, n) for m in MODELS for n in norms(m)])
def test_output_has_features_and_logits_on_one_grid(name, norm):
    segmentor = on_meta(name, norm).train()
    with torch.device("meta"):
        output = segmentor(torch.empty(2, 3, 64, 128), "target", torch.arange(2))
    assert output.features.shape[:2] == (2, segmentor.feature_dimension)
    assert output.logits.shape[:2] == (2, segmentor.num_classes) == (2, 5)
    assert output.features.shape[2:] == output.logits.shape[2:]
    own = isinstance(segmentor.head, FusingHead)
    assert (output.levels[-1] is output.features) != own
    assert output.levels[-1].shape[1] == segmentor.backbone.feature_dimension
    stride = MODELS[name].stride
    assert output.features.shape[2:] == (math.ceil(64 / stride), math.ceil(128 / stride))


def test_initialisation_follows_the_global_seed():
    first, again, other = tiny().state_dict(), tiny().state_dict(), tiny(seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_state_survives_saving(tmp_path):
    segmentor, image = tiny(), torch.randn(2, 3, 32, 48)
    segmentor(image, "target")
    torch.save(segmentor.state_dict(), tmp_path / "state.pt")
    other = tiny(seed=1)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected = segmentor.eval()(image, "target").logits
    assert torch.equal(other.eval()(image, "target").logits, expected)


def test_domain_chooses_the_statistics():
    segmentor, image = tiny(), torch.randn(2, 3, 32, 48)
    segmentor(image, "target")
    segmentor.eval()
    source, target = (segmentor(image, domain).logits for domain in ("source", "target"))
    assert not torch.allclose(source, target)
    with pytest.raises(ValueError, match="sim"):
        segmentor(image, "sim")


@pytest.mark.parametrize(("name", "norm"), [(m, n) for m in TINY for n in norms(m)])
def test_every_parameter_is_in_one_group_and_gets_a_gradient(name, norm):
    segmentor = tiny(norm, name=name)
    groups = segmentor.parameter_groups()
    assert sorted(map(id, groups["backbone"] + groups["head"])) == sorted(
        map(id, segmentor.parameters())
    )
    output = segmentor(torch.randn(2, 3, 32, 48), "source", torch.arange(2))
    output.logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in segmentor.parameters())


@pytest.mark.parametrize("name", TINY)
def test_tiny_takes_odd_sizes_and_small_pictures(name):
    for height, width in ((33, 47), (8, 8)):
        logits = tiny(name=name).eval()(torch.randn(1, 3, height, width), "source").logits
        assert logits.shape[2:] == ((height + 1) // 2, (width + 1) // 2)


def test_the_small_transformer_drops_both_parts_of_a_block():
    block = tiny(name="tiny_transformer").backbone.blocks[2]
    assert block.drop1.p == block.drop2.p == pytest.approx(0.1 * 2 / 3)
    x = torch.randn(2, 6, 96)
    for drop in (block.drop1, block.drop2):
        drop.p, drop.keys = 1 - 1e-9, torch.arange(2)
    assert torch.equal(block.train()(x, (2, 3)), x)
    assert not torch.allclose(block.eval()(x, (2, 3)), x)


@pytest.mark.parametrize("name", TINY)
def test_pixels_far_away_reach_the_middle(name):
    image = torch.randn(1, 3, 64, 128, requires_grad=True)
    tiny(name=name).eval()(image, "source").logits[0, :, 16, 32].sum().backward()
    seen = image.grad.abs().sum((0, 1)) > 0
    assert seen[:, 8].any() and seen[:, 120].any() and seen[0].any() and seen[63].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "tinny"}, "did you mean 'tiny'"),
        ({"norm": "group"}, "norm 'group'"),
        ({"weights": "imagenet"}, "tiny"),
    ],
)
def test_unknown_names_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build_segmentor(**{"name": "tiny", "num_classes": 5, "norm": "domain", **change})


# A new network is one row of MODELS.


class Pyramid(nn.Module):
    """Two levels, the coarse one half as wide."""

    feature_dimension = 16

    def __init__(self, norm, input):
        super().__init__()
        self.fine, self.input = ThreeConvolutions("frozen"), input
        self.bn = norm(16)
        self.position = nn.Parameter(torch.ones(16, 1, 1))

    def forward(self, image):
        fine = self.fine(image)
        return fine, self.bn(nn.functional.avg_pool2d(fine, 2)) * self.position


class Fused(nn.Module):
    """Logits from both levels, on the grid of the coarse one."""

    def __init__(self, backbone, classes, branches, norm):
        super().__init__()
        dimension = backbone.feature_dimension
        self.layers = nn.ModuleList(nn.Conv2d(dimension, classes, 1) for _ in range(2))

    def forward(self, levels):
        fine, coarse = (layer(x) for layer, x in zip(self.layers, levels, strict=True))
        return nn.functional.avg_pool2d(fine, 2) + coarse


DATA = {"source": "a" * 64, "target": "b" * 64, "evaluation": "c" * 64}


@pytest.fixture
def pyramid(monkeypatch):
    """The row, as the file of a new network would add it."""
    row = ModelSpec(
        backbone=Pyramid,
        head=Fused,
        stride=4,
        pretrained=Pretrained("ResNet50_Weights.IMAGENET1K_V1", "caffe_bgr", "fc."),
        inputs=("imagenet", "caffe_bgr"),
        norms=("frozen", "running"),
        no_decay=("position", "bias"),
    )
    monkeypatch.setitem(MODELS, "pyramid", row)


def configured(**model):
    """A configuration whose `model.name` may be a row that is younger than the list of choices."""
    config = dataclasses.replace(load("gta5", "source_only"), model=Model(name="pyramid", **model))
    config.check()
    return config


def test_a_row_is_a_network(pyramid):
    config = configured(weights="none", norm="running")
    network = new_segmentor(config, 5)
    output = network(torch.randn(2, 3, 32, 48), "source")
    assert [x.shape for x in output.levels] == [(2, 16, 16, 24), (2, 16, 8, 12)]
    assert output.features is output.levels[1] and output.logits.shape == (2, 5, 8, 12)
    assert '"pyramid"' in table.text().splitlines()[2]
    assert memory(config, "source_only", 1, 5) > 0
    settings = plan(config, DATA)[0].settings["network"]
    assert settings == {"name": "pyramid", "norm": "running", "weights": "none"}


def test_a_row_says_what_may_be_set(pyramid):
    assert (configured().weights, configured().norm) == ("imagenet", "frozen")
    assert configured().input == "caffe_bgr"
    assert new_segmentor(configured(weights="none", norm="frozen"), 5).backbone.input == "imagenet"
    for model, message in (
        ({"norm": "domain"}, "model.norm of pyramid must be one of frozen, running, got domain"),
        ({"input": "caffe_rgb"}, "pyramid reads imagenet, caffe_bgr, got caffe_rgb"),
        ({"input": "imagenet"}, "ResNet50_Weights.IMAGENET1K_V1, which expects model.input=caffe"),
        ({"weights": "/a/file"}, r"model.input must say .* imagenet \(.*; caffe_bgr \("),
    ):
        with pytest.raises(ConfigError, match=message):
            configured(**model)


def test_what_a_row_names_is_trained_without_decay(pyramid):
    config = configured(weights="none", norm="frozen")
    method = METHODS["source_only"](new_segmentor(config, 5), config.of("source_only"))
    (optimizer,) = method.optimizers()
    names = {id(p): name for name, p in method.segmentor.named_parameters()}
    free = {
        names[id(p)]: group["lr"]
        for group in optimizer.param_groups
        for p in group["params"]
        if group["weight_decay"] == 0.0
    }
    rate = config.of("source_only").learning_rate
    assert free == {
        "backbone.position": rate,
        "head.layers.0.bias": rate * config.of("source_only").head_multiplier,
        "head.layers.1.bias": rate * config.of("source_only").head_multiplier,
    }
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)


@pytest.mark.parametrize("name", MODELS)
def test_a_network_decays_alike_unless_its_row_says_more(name):
    groups = list(on_meta(name, norms(name)[0]).parameter_groups())
    assert groups[:2] == ["backbone", "head"]
    assert (NO_DECAY in "".join(groups)) == bool(MODELS[name].no_decay)


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].layers])
def test_the_layers_of_a_row_are_there_and_share_nothing(name):
    """All of them, whose depths count up from the head; the rest lies before."""
    segmentor = on_meta(name, norms(name)[0])
    layers = [segmentor.backbone.get_submodule(layer) for layer in MODELS[name].layers]
    found = [id(p) for layer in layers for p in layer.parameters()]
    assert len(set(found)) == len(found)
    depths = segmentor.depths()
    assert depths.keys() == {id(p) for p in segmentor.backbone.parameters()}
    assert [depths[id(next(layer.parameters()))] for layer in layers] == [*range(len(layers))]
    assert {depths[key] for key in depths.keys() - set(found)} == {len(layers)}


@pytest.mark.parametrize("name", MODELS)
def test_a_row_without_norms_builds_none(name):
    """And one with norms builds those it is asked for."""
    norm = norms(name)[0]
    layers = list(on_meta(name, norm).modules())
    assert any(isinstance(m, NORMS[norm]) for m in layers) == bool(MODELS[name].norms)
    assert not any(isinstance(m, _BatchNorm) for m in layers)


def names_asked(source: str) -> list[str]:
    """Names of networks that code compares something with."""
    return [
        part.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare | ast.MatchValue)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and part.value in (*MODELS, "resnet50", "vgg16")
    ]


def test_no_code_asks_for_a_networks_name():
    files = list(Path(spcl.__file__).parent.rglob("*.py"))
    assert len(files) > 50 and names_asked("if model.name == 'tiny': pass") == ["tiny"]
    assert {str(f): found for f in files if (found := names_asked(f.read_text()))} == {}
