import pytest
import torch
from torch import nn
from torchvision.models import VGG16_Weights, vgg16
from torchvision.models._api import WeightsEnum

from spcl.configuration.config import load
from spcl.data.transforms import normalize
from spcl.engine.footprint import memory
from spcl.errors import ConfigError, UserError
from spcl.models.segmentor import build_segmentor
from spcl.models.vgg import VGG16, InputConversion

NAME = "deeplabv2_vgg16"
WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def on_meta(**options):
    with torch.device("meta"):
        return build_segmentor(NAME, 19, **{"norm": "frozen", **options})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A file as torchvision's are; its classifier is a stub, since the real one has 500 MB."""
    torch.manual_seed(0)
    with torch.device("meta"):
        names = vgg16().state_dict()
    state = {k: torch.randn(v.shape) * 0.05 for k, v in names.items() if k.startswith("features.")}
    state |= {k: torch.zeros(1) for k in names if k.startswith("classifier.")}
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(state, path)
    return path, state


@pytest.mark.parametrize(
    ("image", "grid"), [((512, 1024), (64, 128)), ((720, 1280), (90, 160)), ((65, 127), (8, 15))]
)
def test_grid_is_an_eighth_of_the_image(image, grid):
    output = on_meta()(torch.empty(1, 3, *image, device="meta"), "source")
    assert output.features.shape == (1, 1024, *grid)
    assert output.logits.shape == (1, 19, *grid)


def test_poolings_after_the_third_are_gone_and_what_follows_is_dilated():
    backbone = on_meta().backbone
    layers = [m for m in backbone.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d))]
    kinds = ["pool" if isinstance(m, nn.MaxPool2d) else m.dilation[0] for m in layers]
    assert kinds == [1, 1, "pool", 1, 1, "pool", 1, 1, 1, "pool", 1, 1, 1, 2, 2, 2, 4, 4]
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [*WIDTHS, 1024, 1024]
    assert all(m.kernel_size == (3, 3) and m.padding == m.dilation for m in convolutions)


def test_a_feature_sees_as_far_as_its_layers_say():
    """By hand: 1, 2 * dilation * stride for each convolution, and the stride for each pooling."""
    with torch.no_grad():
        backbone = VGG16()
        for layer in backbone.modules():
            if isinstance(layer, nn.Conv2d):  # positive everywhere: nothing a relu could hide
                layer.weight.fill_(1 / layer.weight[0].numel())
                layer.bias.zero_()
    image = torch.ones(1, 3, 8, 480, requires_grad=True)
    backbone(image)[0, :, 0, 30].sum().backward()
    seen = (image.grad.abs().sum((0, 1, 2)) > 0).nonzero().flatten()
    convolutions = 2 * 2 * 1 + 2 * 2 * 2 + 3 * 2 * 4 + 3 * 2 * 8 + 3 * 2 * 2 * 8 + 2 * 2 * 4 * 8
    pools = 1 + 2 + 4
    # A maximum over equal values hands its gradient to one of them, so up to `pools` are not seen.
    reach = int(seen.max() - seen.min()) + 1
    assert 1 + convolutions <= reach <= 1 + convolutions + pools


def test_weights_of_a_file_give_torchvisions_features(pretrained):
    path, state = pretrained
    ours = build_segmentor(NAME, 19, norm="frozen", weights=str(path)).backbone
    x = image = torch.randn(1, 3, 24, 40)
    for place in (0, 2, "pool", 5, 7, "pool", 10, 12, 14, "pool", 17, 19, 21, 24, 26, 28):
        if place == "pool":
            x = nn.functional.max_pool2d(x, 2)
        else:
            d = 2 if place >= 24 else 1
            w, b = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
            x = nn.functional.conv2d(x, w, b, padding=d, dilation=d).relu()
    for layer in (ours.fc6, ours.fc7):
        x = nn.functional.conv2d(x, layer.weight, layer.bias, padding=4, dilation=4).relu()
    with torch.no_grad():
        assert torch.allclose(ours(image), x, rtol=1e-4, atol=1e-4 * float(x.std()))


def test_new_layers_follow_the_seed_and_no_file_fills_them(pretrained):
    def fc6(seed):
        torch.manual_seed(seed)
        built = build_segmentor(NAME, 19, norm="frozen", weights=str(pretrained[0]))
        return built.backbone.fc6.weight

    assert torch.equal(fc6(0), fc6(0))
    assert not torch.equal(fc6(0), fc6(1))


def test_file_of_another_network_is_refused_by_its_keys(pretrained, tmp_path):
    state = dict(pretrained[1])
    state["stem.weight"] = state.pop("features.0.weight")
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"missing features\.0\.weight; unexpected stem\.weight"):
        build_segmentor(NAME, 19, norm="frozen", weights=str(tmp_path / "other.pth"))


def test_imagenet_is_the_file_of_the_papers_weights(monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    with pytest.raises(UserError, match=VGG16_Weights.IMAGENET1K_FEATURES.url):
        build_segmentor(NAME, 19, norm="frozen", weights="imagenet")


# The conversion of inputs, against the definition of each.

PIXELS = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5) * 4  # RGB, 0..236


def converted(kind):
    return InputConversion(kind)(normalize(PIXELS)[None])[0]


def test_caffe_bgr_is_the_pixels_in_reverse_order_less_the_mean():
    blue, green, red = 103.939, 116.779, 123.68
    expected = PIXELS.float().flip(0) - torch.tensor([blue, green, red])[:, None, None]
    assert torch.allclose(converted("caffe_bgr"), expected, atol=1e-4)


def test_caffe_rgb_is_the_pixels_less_the_mean():
    expected = PIXELS.float() - torch.tensor([123.68, 116.779, 103.939])[:, None, None]
    assert torch.allclose(converted("caffe_rgb"), expected, atol=1e-4)


def test_imagenet_is_left_as_it_comes():
    assert torch.equal(converted("imagenet"), normalize(PIXELS))


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("caffe_rgb", VGG16_Weights.IMAGENET1K_FEATURES),
        ("imagenet", VGG16_Weights.IMAGENET1K_V1),
    ],
)
def test_conversions_are_what_torchvision_says_of_its_weights(kind, weights):
    preset = weights.transforms()
    mean, deviation = torch.tensor(preset.mean), torch.tensor(preset.std)
    expected = (PIXELS / 255 - mean[:, None, None]) / deviation[:, None, None]
    rounding = 1.0 if kind == "caffe_rgb" else 1e-5  # torchvision rounds the mean to whole pixels
    assert torch.allclose(converted(kind), expected, rtol=0, atol=rounding)


def test_a_network_fed_bgr_equals_one_with_reversed_filters_fed_rgb():
    torch.manual_seed(0)
    bgr = VGG16("caffe_bgr").eval()
    rgb = VGG16("caffe_rgb").eval()
    state = bgr.state_dict()
    assert set(state) == set(rgb.state_dict()) and not any("convert" in name for name in state)
    state["features.0.weight"] = state["features.0.weight"].flip(1)
    rgb.load_state_dict(state)
    image = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        expected = rgb(image)
        assert expected.std() > 0
        assert torch.allclose(bgr(image), expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


# Settings.


def model(*overrides):
    return load("gta5", "spcl", None, [f"model.name={NAME}", *overrides])


def test_input_follows_torchvisions_weights_and_a_files_must_be_named(pretrained):
    path = pretrained[0]
    assert model().input == "caffe_rgb"
    assert model("model.weights=none").input == "imagenet"
    assert model(f"model.weights={path}", "model.input=caffe_bgr").input == "caffe_bgr"
    with pytest.raises(ConfigError, match="model.weights is a file, so model.input must say"):
        model(f"model.weights={path}")
    with pytest.raises(ConfigError, match="IMAGENET1K_FEATURES, which expects .*=caffe_rgb"):
        model("model.input=caffe_bgr")


def test_other_networks_have_no_input_to_choose():
    with pytest.raises(ConfigError, match="deeplabv2_resnet101 reads imagenet, got caffe_bgr"):
        load("gta5", "spcl", None, ["model.input=caffe_bgr"])


def test_norm_has_nothing_to_choose_and_its_statistics_cannot_be_estimated():
    assert model("model.norm=domain").norm == model().norm
    with pytest.raises(ConfigError, match=f"{NAME} has none"):
        model("model.target_statistics=estimated")


@pytest.mark.parametrize("method", ["adversarial", "spcl", "self_training"])
def test_dry_run_counts_its_memory(method):
    sizes = ("source.size=[64,128]", "target.size=[64,128]")
    one, two = (memory(model(*sizes), method, batch, 19) for batch in (1, 2))
    weights = sum(p.numel() * 4 for p in on_meta().parameters())
    assert 3 * weights < one < two
