import importlib.util
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from spcl import train
from spcl.cli import guarded
from spcl.configuration.config import load
from spcl.engine.provenance import describe
from spcl.errors import ConfigError, UserError
from spcl.models.daformer import DAFormerHead
from spcl.models.normalization import DomainNorm, set_domain
from spcl.models.segmentor import MODELS, build_segmentor
from spcl.models.stochastic import SampleDropout

B0, B5 = "mit_b0", "mit_b5"
WIDTHS = (32, 64, 160, 256)  # of B0


@cache
def on_meta(name=B5):
    with torch.device("meta"):
        return build_segmentor(name, 19, norm="domain")


def test_the_largest_is_the_one_that_daformer_has():
    """Numbers counted in the authors' code; those of the head by hand."""
    network = on_meta()
    mit = network.backbone.mit
    assert sum(p.numel() for p in mit.parameters()) == 81_443_008
    norms = {name: m.eps for name, m in mit.named_modules() if isinstance(m, nn.LayerNorm)}
    coarse = {n for n, eps in norms.items() if eps == 1e-5}
    assert (len(coarse), len(norms)) == (53, 53 + 108)
    assert all(n.endswith("attn.norm") or n.startswith("patch_embed") for n in coarse)
    assert {eps for n, eps in norms.items() if n not in coarse} == {1e-6}
    drops = [m for m in mit.modules() if isinstance(m, SampleDropout) and m.covers == "sample"]
    rates = torch.linspace(0, 0.1, 52)[1:]  # the first block has none
    assert [m.p for m in drops] == pytest.approx(rates.tolist(), abs=1e-6)
    embed = sum((width + 1) * 256 for width in (64, 128, 320, 512))
    separable = 1024 * 9 + 2 * 1024 + 1024 * 256 + 2 * 256
    branches = 1024 * 256 + 2 * 256 + 3 * separable
    fuse = 1024 * 256 * 9 + 2 * 256
    head = embed + branches + fuse + 257 * 19
    assert sum(p.numel() for p in network.head.parameters()) == head


def test_features_are_the_heads_and_levels_the_backbones():
    output = on_meta().eval()(torch.empty(1, 3, 130, 256, device="meta"), "target")
    assert output.features.shape == (1, 256, 33, 64) and output.logits.shape == (1, 19, 33, 64)
    grids = [(33, 64), (17, 32), (9, 16), (5, 8)]
    assert [tuple(x.shape[2:]) for x in output.levels] == grids
    assert [x.shape[1] for x in output.levels] == [64, 128, 320, 512]


def test_weights_start_as_the_packages_own(monkeypatch):
    """They are started once here, and several times there."""
    from segmentation_models_pytorch.encoders import get_encoder

    ours = build_segmentor(B0, 19, norm="domain").backbone.mit.state_dict()
    theirs = get_encoder(B0, weights=None, depth=5).state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape
        spread = float(value.std()) if value.numel() > 1 else 0.0
        assert float(ours[name].mean()) == pytest.approx(float(value.mean()), abs=spread / 2), name
        if value.numel() > 500:
            assert float(ours[name].std()) == pytest.approx(spread, rel=0.25), name


@torch.no_grad()
def test_the_head_is_what_is_written_of_it():
    torch.manual_seed(0)
    head = DAFormerHead(WIDTHS, 5, DomainNorm).double().eval()
    for norm in (m for m in head.modules() if isinstance(m, DomainNorm)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    set_domain(head, "target")
    levels = [torch.randn(2, w, 16 >> n, 32 >> n).double() for n, w in enumerate(WIDTHS)]

    def convolved(x, part, dilation=1, groups=1):
        layer, norm, _ = part
        kernel = layer.weight.shape[-1]
        x = F.conv2d(x, layer.weight, None, 1, dilation * (kernel // 2), dilation, groups)
        mean, variance = (m[1][:, None, None] for m in (norm.running_mean, norm.running_var))
        x = (x - mean) / (variance + 1e-5).sqrt()
        return (x * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)

    stacked = []
    for level, layer in zip(levels, head.embed, strict=True):
        x = torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], level)
        x = x + layer.bias[:, None, None]
        stacked.append(F.interpolate(x, (16, 32), mode="bilinear", align_corners=False))
    x = torch.cat(stacked, 1)
    seen = [convolved(x, head.branches[0])]
    for dilation, (depthwise, pointwise) in zip((6, 12, 18), head.branches[1:], strict=True):
        seen.append(convolved(convolved(x, depthwise, dilation, 1024), pointwise))
    features = convolved(torch.cat(seen, 1), head.fuse)
    logits = F.conv2d(features, head.classify.weight, head.classify.bias)
    for mine, expected in zip(head(tuple(levels), (64, 128)), (features, logits), strict=True):
        torch.testing.assert_close(mine, expected)


def test_norms_of_the_head_are_trained_with_any_weights(tmp_path):
    path = tmp_path / "mit_b5.pth"
    path.write_bytes(b"")
    for weights in ("imagenet", "none", path):
        config = load("gta5", "source_only", None, [f"model={B5}", f"model.weights={weights}"])
        assert config.norm == "domain"
    with pytest.raises(ConfigError, match="model.norm of mit_b5 must be one of domain, got frozen"):
        load("gta5", "source_only", None, [f"model={B5}", "model.norm=frozen"])
    with pytest.raises(ConfigError, match="train.micro_batch needs"):
        load("gta5", "source_only", None, [f"model={B5}", "train.micro_batch=1"])


# Weights, in files with the authors' names.


def official() -> dict[str, torch.Tensor]:
    """Names and shapes as in mit_b0.pth of SegFormer, each entry of one number."""
    layers: dict[str, tuple[int, ...]] = {"head": (1000, 256)}
    norms: dict[str, int] = {}
    before = 3
    for stage, (width, reduction) in enumerate(zip(WIDTHS, (8, 4, 2, 1), strict=True), 1):
        kernel = 7 if stage == 1 else 3
        layers[f"patch_embed{stage}.proj"] = (width, before, kernel, kernel)
        norms |= {f"patch_embed{stage}.norm": width, f"norm{stage}": width}
        for block in (f"block{stage}.{number}." for number in range(2)):
            layers |= {f"{block}attn.{part}": (width, width) for part in ("q", "proj")}
            layers |= {f"{block}attn.kv": (2 * width, width)}
            layers |= {f"{block}mlp.fc1": (4 * width, width), f"{block}mlp.fc2": (width, 4 * width)}
            layers |= {f"{block}mlp.dwconv.dwconv": (4 * width, 1, 3, 3)}
            norms |= {f"{block}norm1": width, f"{block}norm2": width}
            if reduction > 1:
                layers |= {f"{block}attn.sr": (width, width, reduction, reduction)}
                norms |= {f"{block}attn.norm": width}
        before = width
    shapes = layers | {name: (width,) for name, width in norms.items()}
    state = {}
    for number, (name, shape) in enumerate(shapes.items()):
        state[f"{name}.weight"] = torch.full(shape, 0.01 * number)
        state[f"{name}.bias"] = torch.full(shape[:1], -0.01 * number)
    return state


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_official_files_load(tmp_path, suffix):
    state, path = official(), tmp_path / f"mit_b0.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    loaded = build_segmentor(B0, 19, norm="domain", weights=str(path)).backbone.mit.state_dict()
    assert loaded.keys() == state.keys() - {"head.weight", "head.bias"}
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_the_file_of_another_size_is_refused(tmp_path):
    wider = {name: torch.cat([value, value]) for name, value in official().items()}
    torch.save(wider, tmp_path / "mit.pth")
    first = "size mismatch for patch_embed1.proj.weight: "
    with pytest.raises(UserError, match=rf"do not fit mit_b0: {first}.* and \d+ more$"):
        build_segmentor(B0, 19, norm="domain", weights=str(tmp_path / "mit.pth"))


@pytest.mark.parametrize("name", [B0, B5])
def test_the_url_is_the_one_that_the_package_knows(name):
    from segmentation_models_pytorch.encoders import encoders

    known = encoders[name]["pretrained_settings"]["imagenet"]
    url = MODELS[name].pretrained.imagenet
    assert url == f"https://huggingface.co/{known['repo_id']}/resolve/{known['revision']}" + (
        "/model.safetensors"
    )


# The package is optional, and its licence is said.


def test_without_the_package_it_is_told_how_to_have_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"pip install '\.\[mit\]'"
    with pytest.raises(ConfigError, match=f"non-commercial|no commercial use.*{message}"):
        build_segmentor(B0, 19, norm="domain")
    argv = ["--dry-run", "--storage", str(tmp_path), "--data", str(tmp_path), "--method"]
    assert guarded(train.main, [*argv, "source_only", f"model={B0}"]) == 2
    assert "mit_b0 needs the package segmentation_models_pytorch" in capsys.readouterr().err


def test_a_manifest_names_the_licence():
    for model in (B0, "tiny"):
        config = load("gta5", "source_only", None, [f"model={model}"])
        licence = describe(config, [], {}, "x")["licence"]
        assert licence == MODELS[model].licence and ("NVIDIA" in licence) == (model == B0)


def test_the_list_names_the_licence(capsys):
    assert guarded(train.main, ["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if "NVIDIA" in line)
    assert line.strip().startswith("mit_b0, mit_b5: ") and "no commercial use" in line
