import pytest
import torch
from torchvision.transforms.v2 import functional as F

from spcl.data import strong
from spcl.data.strong import DRAWS, Strong, strong_view, to_input, to_picture

HOW = Strong((0.2, 0.2, 0.2, 0.2), 0.8, (0.15, 1.15), 0.5)


@pytest.fixture
def picture():
    return torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(0), dtype=torch.double)


@pytest.mark.parametrize(
    ("ours", "theirs", "amounts"),
    [
        (strong.brightness, F.adjust_brightness, (0.5, 1.0, 1.2, 1.8)),
        (strong.contrast, F.adjust_contrast, (0.5, 1.0, 1.2, 1.8)),
        (strong.saturation, F.adjust_saturation, (0.5, 1.0, 1.2, 1.8)),
        (strong.shift_hue, F.adjust_hue, (-0.5, 0.0, 0.1, 0.37)),
    ],
)
def test_each_change_is_torchvisions_for_each_image(picture, ours, theirs, amounts):
    picture[0, :, 0, 0] = 0.5  # a grey, which has no hue
    found = ours(picture, torch.tensor(amounts, dtype=torch.double))
    for image, one, amount in zip(found, picture, amounts, strict=True):
        torch.testing.assert_close(image, theirs(one, amount), rtol=1e-6, atol=1e-6)


def test_blur_is_torchvisions_and_none_leaves_the_image(picture):
    sigmas = torch.tensor([0.0, 0.15, 0.7, 1.15], dtype=torch.double)
    found = strong.blur(picture, sigmas, 1.15)
    assert torch.equal(found[0], picture[0])
    side = [2 * strong.kernel_radius(size, 1.15) + 1 for size in (48, 32)]
    for image, one, sigma in zip(found[1:], picture[1:], sigmas[1:].tolist(), strict=True):
        torch.testing.assert_close(image, F.gaussian_blur(one, side, [sigma, sigma]))


def test_the_kernel_is_the_authors_but_for_what_float32_does_not_show():
    """51 at 512, 63 at 640 and 103 at 1024 pixels."""
    assert [2 * strong.kernel_radius(size, 99.0) + 1 for size in (512, 640, 1024)] == [51, 63, 103]
    picture = torch.rand(1, 3, 16, 512)
    wide = F.gaussian_blur(picture, [51, 1], [1.15, 1.15])
    narrow = F.gaussian_blur(picture, [2 * strong.kernel_radius(512, 1.15) + 1, 1], [1.15, 1.15])
    torch.testing.assert_close(narrow, wide, rtol=1e-6, atol=1e-6)


def test_an_image_is_changed_by_its_own_draws_alone():
    image = to_input(torch.rand(3, 3, 16, 24))
    draws = torch.rand(3, DRAWS)
    draws[:, :2] = torch.tensor([[0.1, 0.1], [0.9, 0.9], [0.1, 0.9]])
    view = strong_view(image, draws, HOW)
    torch.testing.assert_close(view[1], image[1], rtol=1e-5, atol=1e-5)  # neither is drawn
    assert (view[0] - image[0]).abs().max() > 0.01 and (view[2] - image[2]).abs().max() > 0.01
    alone = strong_view(image[2:], draws[2:], HOW)
    torch.testing.assert_close(view[2:], alone, rtol=1e-6, atol=1e-6)
    again = to_input(to_picture(image))
    torch.testing.assert_close(again, image, rtol=1e-5, atol=1e-5)


def test_changes_happen_as_often_as_asked():
    draws = torch.rand(400, DRAWS, generator=torch.Generator().manual_seed(0))
    image = to_input(torch.rand(1, 3, 4, 4)).expand(400, 3, 4, 4)
    plain = Strong(HOW.jitter, 0.8, HOW.blur, 0.0)
    moved = (strong_view(image, draws, plain) - image).abs().amax((1, 2, 3)) > 1e-5
    assert float(moved.float().mean()) == pytest.approx(0.8, abs=0.06)
