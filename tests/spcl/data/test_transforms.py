import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from spcl.data import transforms
from spcl.data.batch import Sample
from spcl.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    decode,
    decode_label,
    draw_jitter,
    normalize,
    resize_image,
    resize_label,
    shift_hue,
)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


def png(array):
    buffer = io.BytesIO()
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_decoding_agrees_with_pillow(image):
    label = np.arange(60 * 90, dtype=np.uint8).reshape(60, 90)
    assert (decode(png(image)).permute(1, 2, 0).numpy() == image).all()
    assert (decode_label(png(label)).numpy() == label).all()


def test_any_picture_is_decoded_to_rgb(image):
    for mode in ("L", "P", "RGBA"):
        picture = Image.fromarray(image).convert(mode)
        got = decode(png(picture)).permute(1, 2, 0).numpy()
        assert (got == np.array(picture.convert("RGB"))).all()


def test_resizing_is_pillows(image):
    want = np.array(Image.fromarray(image).resize((64, 40), Image.Resampling.BICUBIC))
    got = resize_image(torch.from_numpy(image).permute(2, 0, 1), (40, 64)).permute(1, 2, 0).numpy()
    assert np.abs(want.astype(int) - got.astype(int)).max() <= 1
    label = image[:, :, 0]
    want = np.array(Image.fromarray(label).resize((64, 40), Image.Resampling.NEAREST))
    assert (resize_label(torch.from_numpy(label), (40, 64)).numpy() == want).all()


def test_normalization_is_imagenets():
    grey = torch.full((3, 2, 2), 128, dtype=torch.uint8)
    want = [(128 / 255 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    assert normalize(grey)[:, 0, 0].tolist() == pytest.approx(want, abs=1e-6)


COLOURS = np.random.default_rng(1).integers(0, 256, (3, 40, 50), np.uint8)
COLOURS[:, :2], COLOURS[:2, 2:4], COLOURS[1:, 4:6] = 128, 200, 7  # grey, and two channels equal


@pytest.mark.parametrize("turn", [-0.5, -0.2, -1e-9, 0.0, 0.07, 1 / 6, 0.5])
def test_hue_turns_on_the_colour_circle_and_keeps_value_and_saturation(turn):
    got = shift_hue(torch.from_numpy(COLOURS), turn).numpy()
    for before, after in zip(COLOURS.reshape(3, -1).T, got.reshape(3, -1).T, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        want = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        assert np.abs(np.array(want) * 255 - after).max() < 0.51  # rounded
    theirs = F.adjust_hue(torch.from_numpy(COLOURS), turn).numpy()
    assert np.abs(theirs.astype(int) - got).max() <= 1


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("strength", [(0.4, 0.4, 0.4, 0.0), (0.5, 0.0, 0.5, 0.0)])
def test_jitter_without_hue_is_torchvisions_to_the_bit(image, seed, strength, monkeypatch):
    monkeypatch.setattr(transforms, "STRIP_PIXELS", 7 * 90)  # seven rows, and four at the end
    planes = torch.from_numpy(image).permute(2, 0, 1)
    torch.manual_seed(seed)
    want = v2.ColorJitter(*strength)(planes)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    assert torch.equal(draw_jitter(strength)(planes), want)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("seed", range(8))
def test_jitter_of_hue_draws_what_torchvision_draws(image, seed):
    planes = torch.from_numpy(image).permute(2, 0, 1)
    torch.manual_seed(seed)
    want = v2.ColorJitter(0, 0, 0, 0.2)(planes)
    torch.manual_seed(seed)
    got = draw_jitter((0.0, 0.0, 0.0, 0.2))(planes)
    assert (got.int() - want.int()).abs().max() <= 1 and not torch.equal(got, planes)


@pytest.mark.parametrize("position", range(6))
def test_how_pixels_lie_in_memory_changes_nothing(image, position):
    """Decoded pixels lie interleaved; other readers give planes."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    label = torch.from_numpy(image[:, :, 0])
    entropy = [0, 7, position]
    one = FULL(Sample(torch.from_numpy(image).permute(2, 0, 1), label), entropy)
    two = FULL(Sample(torch.from_numpy(planes), label), entropy)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def _call(augment, image, label, position):
    picture = torch.from_numpy(image).permute(2, 0, 1)
    return augment(Sample(picture, torch.from_numpy(label)), [0, 7, position])[:2]


FULL = Augment((30, 45), jitter=(0.5, 0.5, 0.5, 0.2), flip=0.5, scale=(0.5, 1.5))


def test_a_draw_depends_on_its_position_only(image):
    label = image[:, :, 0]
    torch.manual_seed(1)
    one = _call(FULL, image, label, 4)
    torch.rand(10)
    two = _call(FULL, image, label, 4)
    other = _call(FULL, image, label, 5)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])


def test_the_callers_random_stream_is_untouched(image):
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    _call(FULL, image, image[:, :, 0], 4)
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("position", range(12))
def test_image_and_label_move_together(position):
    """The label is a copy of the red channel of blocks: after any geometry they still agree."""
    blocks = np.kron(np.random.default_rng(3).integers(1, 250, (4, 6)), np.ones((16, 16)))
    blocks = blocks.astype(np.uint8)
    augment = Augment((40, 60), flip=0.5, scale=(0.5, 1.5))
    image, label = _call(augment, np.stack([blocks] * 3, -1), blocks, position)
    assert image.shape == (3, 40, 60) and label.shape == (40, 60)
    red = (image[0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255
    inside = label != 255
    close = ((red - label.float()).abs() < 3) & inside
    assert close.sum() / inside.sum() > 0.6  # block borders are interpolated in the image only


def test_a_smaller_scene_is_padded_with_ignored_pixels(image):
    augment = Augment((60, 90), scale=(0.5, 0.5))
    picture, label = _call(augment, image, np.zeros((60, 90), np.uint8), 0)
    assert (label == 255).sum() == 60 * 90 - 30 * 45
    assert (picture[:, label == 255] == 0).all()


def test_a_crop_is_cut_out_of_the_size_and_shows_the_class_it_was_drawn_for():
    label = torch.zeros(40, 60, dtype=torch.uint8)
    label[:8, :8], label[30:, 30:] = 5, 1
    sample = Sample(label[None].repeat(3, 1, 1), label)
    plain = Augment((40, 60), crop=(16, 16))
    found = [plain(sample, [0, i], 5) for i in range(60)]
    assert {tuple(one.image.shape) for one in found} == {(3, 16, 16)}
    wanted = [Augment((40, 60), crop=(16, 16), shows=20)(sample, [0, i], 5) for i in range(60)]
    shown, without = (
        sum(int((one.label == 5).sum()) > 20 for one in each) for each in (wanted, found)
    )
    # Of ten crops one shows it with a chance of 1 - (1 - p)^10.
    chance = without / 60
    assert shown / 60 == pytest.approx(1 - (1 - chance) ** 10, abs=0.2) and shown > 2 * without
    again = Augment((40, 60), crop=(16, 16), shows=20)(sample, [0, 7], 5)
    assert torch.equal(again.label, wanted[7].label)
    varied = [Augment((40, 60), crop=(16, 16), most=0.9)(sample, [0, i]) for i in range(60)]
    lonely, usual = (
        sum(int(one.label.flatten().bincount().max()) >= 0.9 * 256 for one in each)
        for each in (varied, found)
    )
    assert lonely < usual / 3


def test_grayscale_has_equal_channels_and_the_luma_of_the_image(image):
    """BT.601's luma, as in Pillow's convert("L")."""
    got, _ = _call(Augment((60, 90), grayscale=1.0), image, image[:, :, 0], 0)
    grey = got * torch.tensor(IMAGENET_STD)[:, None, None]
    grey = (grey + torch.tensor(IMAGENET_MEAN)[:, None, None]) * 255
    luma = np.array(Image.fromarray(image).convert("L"), np.float32)
    assert np.abs(grey.numpy() - luma).max() < 1.01


def test_grayscale_happens_as_often_as_asked(image):
    small = image[:4, :4]
    augment = Augment((4, 4), grayscale=0.2)
    spread = [_call(augment, small, small[:, :, 0], p)[0] for p in range(300)]
    std, mean = (torch.tensor(v)[:, None, None] for v in (IMAGENET_STD, IMAGENET_MEAN))
    grey = [bool(((x := s * std + mean)[0] - x[2]).abs().max() < 1e-3) for s in spread]
    assert 35 < sum(grey) < 85


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_blur_is_a_gaussian_of_three_by_three(image, sigma):
    got, _ = _call(Augment((60, 90), blur=(sigma, sigma)), image, image[:, :, 0], 0)
    side = np.exp(-1 / (2 * sigma**2))
    line = np.array([side, 1.0, side]) / (1 + 2 * side)
    padded = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)), mode="reflect")
    rows = sum(w * padded[i : i + 60] for i, w in enumerate(line))
    want = sum(w * rows[:, i : i + 90] for i, w in enumerate(line))
    want = (want / 255 - IMAGENET_MEAN) / IMAGENET_STD
    assert np.abs(got.permute(1, 2, 0).numpy() - want).max() < 0.51 / 255 / min(IMAGENET_STD)


def test_blur_draws_its_deviation_from_the_whole_range():
    dot = np.zeros((9, 9, 3), np.uint8)
    dot[4, 4] = 255
    augment = Augment((9, 9), blur=(0.1, 2.0))
    middles = [float(_call(augment, dot, dot[:, :, 0], p)[0][0, 4, 4]) for p in range(50)]
    full, flat = float(normalize(torch.full((3, 1, 1), 255, dtype=torch.uint8))[0]), -1.5
    assert max(middles) == pytest.approx(full) and min(middles) < flat + 0.6


@pytest.mark.parametrize(
    ("on", "draws"), [({}, 0), ({"grayscale": 1e-9}, 1), ({"blur": (1.0, 1.5)}, 1)]
)
def test_what_is_off_draws_nothing(on, draws):
    """A flip is drawn after both: it shows how many numbers they took."""
    ramp = np.tile(np.arange(20, dtype=np.uint8), (10, 1))
    augment = Augment((10, 20), flip=0.5, **on)
    for position in range(20):
        _, label = _call(augment, np.stack([ramp] * 3, -1), ramp, position)
        seed = np.random.SeedSequence([0, 7, position]).generate_state(1, np.uint64)[0] >> 1
        uniform = torch.rand(draws + 1, generator=torch.Generator().manual_seed(int(seed)))
        assert bool(label[0, 0] == 19) == bool(uniform[draws] < 0.5)


def test_flip_happens_about_half_the_time():
    ramp = np.tile(np.arange(20, dtype=np.uint8), (10, 1))
    augment = Augment((10, 20), flip=0.5)
    flipped = [
        bool(_call(augment, np.stack([ramp] * 3, -1), ramp, p)[1][0, 0] == 19) for p in range(200)
    ]
    assert 70 < sum(flipped) < 130
