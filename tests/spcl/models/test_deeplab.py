import re

import pytest
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.models._api import WeightsEnum

from spcl.errors import UserError
from spcl.models.deeplab import DilatedClassifier
from spcl.models.normalization import DomainNorm
from spcl.models.segmentor import build_segmentor

NAME = "deeplabv2_resnet50"


def on_meta(name=NAME, **options):
    with torch.device("meta"):
        return build_segmentor(name, 19, **{"norm": "frozen", **options})


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A file as torchvision's are: with a classifier, and with statistics that are not 0 and 1."""
    torch.manual_seed(0)
    state = resnet50().state_dict()
    for name, value in state.items():
        if name.endswith(("running_mean", "running_var")):
            value.add_(torch.rand_like(value) * 0.1)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(state, path)
    return path, state


@pytest.mark.parametrize("name", [NAME, "deeplabv2_resnet101"])
@pytest.mark.parametrize(
    ("image", "grid"), [((512, 1024), (64, 128)), ((720, 1280), (90, 160)), ((64, 128), (8, 16))]
)
def test_grid_is_an_eighth_of_the_image(name, image, grid):
    output = on_meta(name)(torch.empty(1, 3, *image, device="meta"), "source")
    assert output.features.shape == (1, 2048, *grid)
    assert output.logits.shape == (1, 19, *grid)


def test_dilation_replaces_stride_and_starts_after_the_first_block():
    backbone = on_meta().backbone
    dilations = [
        [block.conv2.dilation[0] for block in layer] for layer in (backbone.layer3, backbone.layer4)
    ]
    assert dilations == [[1, 2, 2, 2, 2, 2], [2, 4, 4]]
    assert backbone.layer2[0].conv2.stride == (2, 2)
    assert backbone.layer2[0].conv1.stride == backbone.layer3[0].conv2.stride == (1, 1)


@pytest.mark.parametrize(("branches", "dilations"), [(4, [6, 12, 18, 24]), (2, [6, 12])])
def test_head_sums_its_dilated_branches(branches, dilations):
    torch.manual_seed(0)
    head, x = DilatedClassifier(8, 3, branches), torch.randn(1, 8, 30, 31)
    assert [m.dilation[0] for m in head.modules() if isinstance(m, nn.Conv2d)] == dilations
    expected = sum(
        nn.functional.conv2d(x, m.weight, m.bias, padding=d, dilation=d)
        for m, d in zip(head.branches, dilations, strict=True)
    )
    assert torch.allclose(head(x), expected, atol=1e-6)
    head(x).sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_head_starts_with_small_weights():
    torch.manual_seed(0)
    weights = torch.cat([m.weight.flatten() for m in DilatedClassifier(64, 19).branches])
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(weights.mean().item()) < 1e-3


def test_three_branches_are_refused():
    with pytest.raises(ValueError, match="3"):
        on_meta(aspp_branches=3)


@pytest.mark.parametrize("norm", ["frozen", "domain"])
def test_weights_of_a_file_give_torchvisions_features(imagenet, norm):
    path, state = imagenet
    ours = build_segmentor(NAME, 19, norm=norm, weights=str(path)).eval()
    theirs = resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    theirs.load_state_dict(state)
    image = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        for domain in ("source", "target"):
            found = ours(image, domain).features
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.std())


def test_frozen_norm_trains_no_norm_and_domain_norm_does(imagenet):
    def vectors(norm):
        return [p for p in on_meta(norm=norm).backbone.parameters() if p.dim() == 1]

    assert vectors("frozen") == []
    assert len(vectors("domain")) == 2 * 53
    assert sum(isinstance(m, DomainNorm) for m in on_meta(norm="domain").modules()) == 53


def refusal(weights):
    with pytest.raises(UserError) as error:
        build_segmentor(NAME, 19, norm="frozen", weights=str(weights))
    return str(error.value)


def test_file_of_another_network_is_refused_by_its_keys(imagenet, tmp_path):
    state = dict(imagenet[1])
    state["stem.weight"] = state.pop("conv1.weight")
    torch.save(state, tmp_path / "other.pth")
    message = refusal(tmp_path / "other.pth")
    assert "missing conv1.weight" in message and "unexpected stem.weight" in message


def test_file_with_other_shapes_is_refused(imagenet, tmp_path):
    torch.save(imagenet[1] | {"conv1.weight": torch.zeros(64, 4, 7, 7)}, tmp_path / "wide.pth")
    assert "conv1.weight" in refusal(tmp_path / "wide.pth")


def test_what_is_no_state_dict_is_refused(tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    assert "cannot read weights" in refusal(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "state dict" in refusal(tmp_path / "list.pth")
    assert str(tmp_path / "missing.pth") in refusal(tmp_path / "missing.pth")


def test_download_that_fails_says_what_to_do(monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    message = refusal("imagenet")
    assert re.search(r"resnet50-0676ba61\.pth.*no route to host.*model\.weights=", message)
