"""Feature distance and masked consistency: by hand, on methods, refused where they mean nothing."""

import copy

import pytest
import torch
from toys import CLASSES, Stripes, method, train

from spcl.configuration.config import load
from spcl.engine.trainer import total
from spcl.errors import ConfigError
from spcl.extras import EXTRAS
from spcl.extras.feature_distance import cells_of, distance
from spcl.extras.masked_consistency import kept_pixels
from spcl.randomness import Step


def with_extra(name: str, on: str = "daformer", options: dict | None = None, **settings):
    made = method(on, **(options or {}))
    made.attach(name, EXTRAS[name](made.segmentor, EXTRAS[name].Config(**settings)))
    return made


def test_a_cell_is_of_the_class_that_has_three_quarters_of_it():
    label = torch.zeros(1, 4, 8, dtype=torch.uint8)
    label[0, :3, :4] = 6  # 12 of 16 pixels
    label[0, :, 4:6] = 7  # half, the rest another thing: no class has the majority
    label[0, :, 6:] = 11
    assert cells_of(label, (1, 2), (6, 7, 11), 0.75).tolist() == [[[True, False]]]
    label[0, 0, 0] = label[0, 2, 0] = 255  # void is counted: 11 of 16 are left
    assert not cells_of(label, (1, 2), (6, 7, 11), 0.75).any()


def test_the_distance_is_a_norm_over_channels_and_has_a_gradient_where_it_is_not_0():
    features = torch.tensor([[3.0, 1.0, 5.0], [4.0, 1.0, 5.0]]).view(1, 2, 1, 3).requires_grad_()
    before = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]).view(1, 2, 1, 3)
    value, count = distance(features, before, torch.tensor([[[True, True, False]]]))
    assert (float(value.detach()), int(count)) == (5.0, 2)
    value.backward()
    want = torch.tensor([[0.6, 0.0, 0.0], [0.8, 0.0, 0.0]])
    torch.testing.assert_close(features.grad[0, :, 0], want)
    none, count = distance(features, before, torch.zeros(1, 1, 3, dtype=torch.bool))
    assert (float(none.detach()), int(count)) == (0.0, 0) and none.requires_grad


def test_feature_distance_is_0_at_first_grows_and_leaves_the_reference(tmp_path):
    made = with_extra(
        "feature_distance", options={"norm": "frozen", "steps": 4}, classes=range(CLASSES)
    )
    start = copy.deepcopy(made.feature_distance.reference.state_dict())
    lines = train(made, tmp_path)
    found = [line["losses"]["feature_distance/distance"] for line in lines]
    assert found[0] == pytest.approx(0, abs=1e-6) and found[-1] > found[1] > 1e-4
    for name, value in made.feature_distance.reference.state_dict().items():
        assert torch.equal(value, start[name])
    strong = with_extra(
        "feature_distance",
        options={"norm": "frozen", "steps": 4},
        classes=range(CLASSES),
        weight=1.0,
    )
    held = train(strong, tmp_path / "strong")[-1]["losses"]["feature_distance/distance"]
    assert held < found[-1]  # it does what it is for


def test_a_network_from_scratch_has_no_features_to_keep():
    with pytest.raises(ConfigError, match="needs a network with pre-trained weights, but tiny"):
        load("streets", "daformer", None, ["daformer.extras=[feature_distance]"])
    assert load("streets", "daformer").of("daformer").extras == ()
    assert load("gta5", "daformer").of("daformer").extras == ("feature_distance",)


def test_blocks_are_masked_whole_also_at_the_border():
    draws = torch.tensor([[[0.1, 0.8], [0.7, 0.69]]])
    kept = kept_pixels(draws, 2, 0.7, (3, 4))[0, 0].int().tolist()
    assert kept == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]]


def test_the_student_learns_what_the_teacher_said_of_the_whole_image():
    made = with_extra("masked_consistency", block=8, ratio=0.0).train()
    batch, step = Stripes()[0], Step(0)
    seen = []
    made.teacher.register_forward_hook(lambda *_: seen.append("teacher"))
    taught = made.losses(batch, step).seen["taught"]
    seen.clear()
    term = made(batch, step)["masked_consistency/masked"]
    assert seen == ["teacher"]  # whose one forward serves both
    with torch.no_grad():
        output = made.segment(taught.images, "target", step)
    want = made.term(output.logits, taught.label, taught.weights)
    torch.testing.assert_close(term.sum, want.sum)
    holes = with_extra("masked_consistency", block=8, ratio=0.7).train()
    shown = []
    holes.segmentor.register_forward_pre_hook(lambda module, args: shown.append(args))
    total(holes(batch, step))[0].backward()
    (image,) = (args[0] for args in shown if args[1] == "target")
    assert float((image == 0).float().mean()) == pytest.approx(0.7, abs=0.15)


def test_masked_consistency_needs_a_teacher():
    with pytest.raises(ConfigError, match="needs a method with a teacher: daformer, .*got source"):
        load("streets", "source_only", None, ["source_only.extras=[masked_consistency]"])


@pytest.mark.parametrize("name", [n for n in EXTRAS if n != "pipa"])  # reads pairs: its own file
def test_an_extra_resumes_with_the_same_bits(name, tmp_path):
    straight = with_extra(name, options={"steps": 4})
    train(straight, tmp_path / "a", checkpoint_every=2)
    train(with_extra(name, options={"steps": 2}), tmp_path / "b", checkpoint_every=2)
    again = with_extra(name, options={"steps": 4})
    train(again, tmp_path / "b", checkpoint_every=2)
    for key, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
