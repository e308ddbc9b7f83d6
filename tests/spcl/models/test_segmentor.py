import pytest
import torch

from spcl.errors import ConfigError
from spcl.models.normalization import NORMS
from spcl.models.segmentor import MODELS, build_segmentor


def tiny(norm="domain", seed=0):
    torch.manual_seed(seed)
    return build_segmentor("tiny", 5, norm=norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_output_has_features_and_logits_on_one_grid(name, norm):
    with torch.device("meta"):
        segmentor = build_segmentor(name, 5, norm=norm).train()
        output = segmentor(torch.empty(2, 3, 64, 128), "target")
    assert output.features.shape[:2] == (2, segmentor.feature_dimension)
    assert output.logits.shape[:2] == (2, segmentor.num_classes) == (2, 5)
    assert output.features.shape[2:] == output.logits.shape[2:]


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


@pytest.mark.parametrize("norm", NORMS)
def test_every_parameter_is_in_one_group_and_gets_a_gradient(norm):
    segmentor = tiny(norm)
    groups = segmentor.parameter_groups()
    assert sorted(map(id, groups["backbone"] + groups["head"])) == sorted(
        map(id, segmentor.parameters())
    )
    segmentor(torch.randn(2, 3, 32, 48), "source").logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in segmentor.parameters())


def test_tiny_takes_odd_sizes_and_small_pictures():
    for height, width in ((33, 47), (8, 8)):
        logits = tiny().eval()(torch.randn(1, 3, height, width), "source").logits
        assert logits.shape[2:] == ((height + 1) // 2, (width + 1) // 2)


def test_pixels_far_away_reach_the_middle():
    image = torch.randn(1, 3, 64, 128, requires_grad=True)
    tiny().eval()(image, "source").logits[0, :, 16, 32].sum().backward()
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
