import pytest
import torch

from spcl.data.fourier import Window, exchanged, fda
from spcl.data.transforms import IMAGENET_MEAN, IMAGENET_STD

RAMP = torch.arange(16, dtype=torch.float64).reshape(1, 1, 4, 4)


def pictures(*size: int, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, *size, generator=draws, dtype=torch.float64)


@pytest.mark.parametrize("window", ["symmetric", "corners"])
def test_an_image_in_its_own_style_is_itself(window):
    image = pictures(12, 17)
    assert (fda(image, image, 0.3, window) - image).abs().max() < 1e-15


def test_a_constant_takes_the_constant_of_its_style():
    source, style = torch.full((1, 1, 6, 8), 0.2), torch.full((1, 1, 6, 8), 0.7)
    torch.testing.assert_close(fda(source, style, 0.1), style)


def test_at_beta_0_the_symmetric_window_exchanges_the_mean_and_corners_nothing():
    style = 2 * RAMP + 5
    torch.testing.assert_close(fda(RAMP, style, 0.0), RAMP + 12.5)
    assert float(fda(RAMP, style, 0.0).mean()) == pytest.approx(20)
    torch.testing.assert_close(fda(RAMP, style, 0.0, "corners"), RAMP)


@pytest.mark.parametrize(("side", "beta"), [(5, 0.4), (4, 0.5)])
def test_a_window_of_all_frequencies_takes_over_every_amplitude(side, beta):
    source = pictures(side, side)
    assert (fda(source, 2 * source, beta) - 2 * source).abs().max() < 1e-13


def test_bins_of_the_two_windows():
    assert Window.of((512, 1024), 0.01).bins == 121
    assert Window.of((512, 1024), 0.01, "corners").bins == 100
    assert Window.of((64, 128), 0.01, "corners").bins == 0


def test_the_symmetric_window_gives_a_real_image_and_corners_lose_some_of_it():
    source, style = pictures(8, 8), pictures(8, 8, seed=1)
    for kind, least, most in (("symmetric", 0.0, 1e-16), ("corners", 0.01, 1.0)):
        image = exchanged(source, style, Window.of((8, 8), 0.25, kind))
        assert least <= image.imag.abs().max() < most


def test_phases_stay_and_amplitudes_in_the_window_alone_are_the_styles():
    source, style = pictures(12, 16), pictures(12, 16, seed=1)
    made, own, other = (torch.fft.fft2(x) for x in (fda(source, style, 0.1), source, style))
    low = [(torch.fft.fftfreq(n, 1 / n, dtype=torch.float64).abs() <= 1) for n in source.shape[-2:]]
    inside = low[0][:, None] & low[1]
    torch.testing.assert_close(made.abs(), torch.where(inside, other.abs(), own.abs()))
    torch.testing.assert_close(made.angle().sin(), own.angle().sin(), atol=1e-8, rtol=0)


def test_normalising_before_is_as_normalising_after():
    def normal(image):
        mean, deviation = (torch.tensor(v).double() for v in (IMAGENET_MEAN, IMAGENET_STD))
        return (image - mean[:, None, None]) / deviation[:, None, None]

    source, style = pictures(16, 24), 0.3 * pictures(16, 24, seed=1)  # dark: negative means
    for window in ("symmetric", "corners"):
        after = normal(fda(source, style, 0.1, window))
        torch.testing.assert_close(fda(normal(source), normal(style), 0.1, window), after)


def test_a_style_of_another_size_gives_its_mean():
    source, style = pictures(16, 24), pictures(8, 40, seed=1)
    made = fda(source, style, 0.1)
    assert made.shape == source.shape
    torch.testing.assert_close(made.mean((2, 3)), style.mean((2, 3)))
