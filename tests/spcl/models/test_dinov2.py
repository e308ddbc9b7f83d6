from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from spcl.configuration.config import load
from spcl.errors import ConfigError, UserError
from spcl.losses.contrast import downsample_labels
from spcl.losses.segmentation import upsample
from spcl.methods import optimization
from spcl.methods.stage import StageConfig
from spcl.models.dinov2 import LEVELS
from spcl.models.light import LightHead
from spcl.models.segmentor import MODELS, build_segmentor
from spcl.models.stochastic import SampleDropout

NAME = "dinov2_vits14"
WIDTH = 384


@cache
def on_meta():
    with torch.device("meta"):
        return build_segmentor(NAME, 19, norm="frozen")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = build_segmentor(NAME, 19, norm="frozen").eval()
    for scale in (p for n, p in made.named_parameters() if n.endswith("gamma")):
        torch.nn.init.ones_(scale)  # 1e-5 without weights: nothing would reach the levels
    return made


@pytest.mark.parametrize("size", [(70, 42), (64, 50)])
@torch.no_grad()
def test_levels_are_timms_of_the_padded_image(network, size):
    image = torch.randn(2, 3, *size)
    below, beside = (-side % 14 for side in size)
    expected = network.backbone.vit.forward_intermediates(
        F.pad(image, (0, beside, 0, below)),
        indices=list(LEVELS),
        norm=True,
        output_fmt="NCHW",
        intermediates_only=True,
    )
    levels = network(image, "target").levels
    assert [level.shape for level in levels] == [(2, WIDTH, 5, -(-size[1] // 14))] * 4
    for level, other in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, other, rtol=1e-4, atol=1e-4)


def test_without_padding_and_resizing_positions_are_added_as_they_are(network):
    backbone = network.backbone
    positions = backbone.vit.pos_embed[:, 1:]
    assert torch.allclose(backbone._resized(positions, (37, 37)).flatten(0, 1), positions[0])


@pytest.mark.parametrize(("size", "grid"), [(512, 147), (720, 206), (1024, 293), (518, 148)])
def test_the_grid_covers_the_image_and_no_more(size, grid):
    output = on_meta().eval()(torch.empty(1, 3, size, 1024, device="meta"), "target")
    assert output.features.shape == (1, 256, grid, 293)
    assert output.logits.shape == (1, 19, grid, 293)
    assert 3.5 * (grid - 1) < size <= 3.5 * grid


@torch.no_grad()
def test_what_a_patch_says_lands_where_it_lies():
    """One patch differs: the centre of what changes in the image, against that of the patch."""
    torch.manual_seed(0)
    head = LightHead((8,), 3, width=8, stride=3.5, doublings=2)
    size = (120, 250)  # 9 x 18 patches, 126 x 252 pixels
    level = torch.randn(1, 8, 9, 18)
    for row, column in ((1, 1), (4, 9), (7, 16)):
        other = level.clone()
        other[:, :, row, column] += 5
        maps = [upsample(head((x,), size)[1], size) for x in (level, other)]
        change = (maps[1] - maps[0]).abs().sum((0, 1))
        for axis, patch in enumerate((row, column)):
            mass = change.sum(1 - axis)
            centre = float((mass * torch.arange(len(mass))).sum() / mass.sum())
            assert abs(centre - (14 * patch + 6.5)) < 2


def test_labels_on_the_grid_are_those_of_the_patch():
    label = torch.full((1, 512, 1024), 255, dtype=torch.uint8)
    for row, column in ((0, 0), (18, 40), (35, 72)):
        label[:, 14 * row : 14 * (row + 1), 14 * column : 14 * (column + 1)] = 1
        rows, columns = (downsample_labels(label, (147, 293))[0] == 1).nonzero().unbind(1)
        for cells, patch in ((rows, row), (columns, column)):
            assert abs(cells.double().mean() - (4 * patch + 1.5)) <= 1
        label.fill_(255)


def test_drop_path_grows_to_a_tenth_and_draws_by_sample():
    drops = [m for m in on_meta().modules() if isinstance(m, SampleDropout) and m.p > 0]
    rates = torch.linspace(0, 0.1, 12)[1:]  # the first block has none; two in each other
    assert [m.p for m in drops] == pytest.approx(rates.repeat_interleave(2).tolist(), abs=1e-6)
    assert {m.covers for m in drops} == {"sample"}


# Weights, in files with Meta's names.


def official(grid: int = 37) -> dict[str, torch.Tensor]:
    """Names and shapes as in dinov2_vits14_pretrain.pth, each entry of one number."""
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + grid**2, WIDTH)}
    shapes |= {"mask_token": (1, WIDTH), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, 14, 14), "patch_embed.proj.bias": (WIDTH,)}
    for block in (f"blocks.{number}." for number in range(12)):
        layers = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
        layers |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
        layers |= {"norm1": (WIDTH,), "norm2": (WIDTH,)}
        for layer, shape in layers.items():
            shapes |= {f"{block}{layer}.weight": shape, f"{block}{layer}.bias": shape[:1]}
        shapes |= {f"{block}ls{n}.gamma": (WIDTH,) for n in (1, 2)}
    return {name: torch.full(shape, 0.01 * n) for n, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize(("suffix", "grid"), [("pth", 37), ("safetensors", 16)])
def test_official_files_load(tmp_path, suffix, grid):
    """The second has positions for 224 pixels, as weights of other trainings have."""
    state = official(grid)
    path = tmp_path / f"dinov2_vits14_pretrain.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    loaded = build_segmentor(NAME, 19, norm="frozen", weights=str(path)).backbone.vit.state_dict()
    assert loaded.keys() == state.keys() - {"mask_token"}
    for name, value in loaded.items():
        assert torch.allclose(value, state[name].flatten()[0]), name
    assert loaded["pos_embed"].shape == (1, 1 + 37**2, WIDTH)


def test_files_of_other_networks_are_refused_by_their_names(tmp_path):
    with torch.device("meta"):
        names = timm.create_model("vit_tiny_patch16_224").state_dict()
    other = {name: torch.zeros(1).expand(value.shape) for name, value in names.items()}
    torch.save(other, tmp_path / "vit.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    for file, message in (
        ("vit.pth", "do not fit dinov2_vits14"),
        ("resnet.pth", r"missing cls_token, pos_embed, .*; unexpected conv1\.weight"),
        ("cut.safetensors", "it is damaged, or no state dict that torch.save or safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            build_segmentor(NAME, 19, norm="frozen", weights=str(tmp_path / file))


def test_published_weights_are_fetched_once_and_a_failure_names_the_file(tmp_path, monkeypatch):
    asked = []

    def fetch(url, path, **_):
        asked.append(url)
        if len(asked) == 1:
            raise OSError("no route to host")
        torch.save(official(), path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    url = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"
    with pytest.raises(UserError, match=rf"{url} .*weights=/path/to/dinov2_vits14_pretrain.pth"):
        build_segmentor(NAME, 19, norm="frozen", weights="imagenet")
    for _ in range(2):
        build_segmentor(NAME, 19, norm="frozen", weights="imagenet")
    assert asked == [url, url]


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vitb14"])
def test_the_url_is_the_one_that_timm_knows(name):
    kind = {"s": "small", "b": "base"}[name[-3]]
    known = timm.get_pretrained_cfg(f"vit_{kind}_patch14_dinov2.lvd142m")
    assert MODELS[name].pretrained.imagenet == known.url
    assert known.license == "apache-2.0" and "Apache-2.0" in MODELS[name].licence


# Rates by layer.


def rates(**settings):
    made = on_meta()
    stage = StageConfig(learning_rate=1.0, optimizer="adamw", weight_decay=0.5, **settings)
    groups = optimization.build(made, stage).param_groups
    names = {id(p): name for name, p in made.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(names)
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }


def test_a_layer_has_a_share_of_the_rate_of_the_one_behind_it():
    found = rates(layer_decay=0.9, head_multiplier=10.0)
    for name, depth in (
        ("norm.weight", 0),
        ("blocks.11.mlp.fc2.weight", 1),
        ("blocks.0.ls1.gamma", 12),
        ("patch_embed.proj.weight", 13),
        ("pos_embed", 13),
    ):
        assert found[f"backbone.vit.{name}"][0] == pytest.approx(0.9**depth), name
    assert {rate for name, (rate, _) in found.items() if name.startswith("head.")} == {10.0}


def test_vectors_are_trained_without_decay():
    made = on_meta()
    flat = {n: max(p.shape) == p.numel() for n, p in made.named_parameters()}
    flat["backbone.vit.pos_embed"] = True
    assert {n: decay == 0 for n, (_, decay) in rates(norm_decay=False).items()} == flat


def test_layer_decay_needs_a_network_that_says_its_layers():
    assert load("gta5", "spcl", None, ["model=dinov2_vitb14", "spcl.layer_decay=0.9"])
    with pytest.raises(ConfigError, match="spcl.layer_decay needs .*deeplabv2_resnet101 does not"):
        load("gta5", "spcl", None, ["spcl.layer_decay=0.9"])
