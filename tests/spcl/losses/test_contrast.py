import math

import pytest
import torch
import torch.nn.functional as F

from spcl.losses.contrast import downsample_labels, pixel_contrast

SEEN = torch.ones(2, dtype=torch.bool)
IDENTITY = torch.eye(2, dtype=torch.float64)


def one_pixel(*values):
    """Features (1, D, 1, 1) of one pixel."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1).requires_grad_()


def label(y):
    return torch.full((1, 1, 1), y)


def value(features, labels, keys=IDENTITY, seen=SEEN, temperature=1.0):
    total, count = pixel_contrast(features, labels, keys, seen, temperature)
    return (total / count).item()


def example(dtype=torch.float64, classes=4):
    """A 2x3x4 grid with 5 channels, some pixels ignored, and one class that was never seen."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 3, 4, dtype=dtype, generator=generator, requires_grad=True)
    labels = torch.randint(0, classes, (2, 3, 4), generator=generator)
    labels[0, 0] = 255
    keys = F.normalize(torch.randn(classes, 5, dtype=dtype, generator=generator))
    seen = torch.tensor([True, True, False, True])
    return features, labels, keys, seen


def slow(features, labels, keys, seen, temperature):
    """The definition, pixel by pixel over the classes that were seen."""
    total, count = 0.0, 0
    for f, y in zip(features.permute(0, 2, 3, 1).reshape(-1, 5), labels.flatten(), strict=True):
        if y != 255 and seen[y]:
            logits = keys @ F.normalize(f, dim=0) / temperature
            total += torch.logsumexp(logits[seen], 0) - logits[y]
            count += 1
    return total, count


@pytest.mark.parametrize(
    ("temperature", "y0", "y1"),
    [
        (1.0, 0.79813887, 0.59813887),
        (0.5, 0.91301525, 0.51301525),
        (0.1, 2.12692801, 0.12692801),
        (0.07, 2.91298677, 0.05584391),
        (100.0, 0.69414768, 0.69214768),
    ],
)
def test_two_orthogonal_keys_in_closed_form(temperature, y0, y1):
    found = [value(one_pixel(3.0, 4.0), label(y), temperature=temperature) for y in (0, 1)]
    assert found == pytest.approx([y0, y1], abs=1e-6)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, (0.10083718, -0.07562789)), (100.0, (0.00111888, -0.00083916))],
)
def test_gradient_of_two_orthogonal_keys_in_closed_form(temperature, expected):
    features = one_pixel(3.0, 4.0)
    pixel_contrast(features, label(1), IDENTITY, SEEN, temperature)[0].backward()
    assert features.grad.flatten().tolist() == pytest.approx(expected, abs=1e-8)


def test_high_temperature_is_nearly_linear_in_the_cosine():
    line = math.log(2) - (0.8 - 0.7) / 100
    assert line == pytest.approx(0.69214718, abs=1e-8)
    assert value(one_pixel(3.0, 4.0), label(1), temperature=100.0) == pytest.approx(line, abs=1e-6)


def test_temperature_100_keeps_the_loss_near_ln_19():
    torch.manual_seed(0)
    features = torch.randn(20, 32, 4, 4, dtype=torch.float64)
    labels = torch.randint(0, 19, (20, 4, 4))
    seen = torch.ones(19, dtype=torch.bool)
    keys = F.normalize(torch.randn(19, 32, dtype=torch.float64))
    for f, y in zip(features.split(1), labels.split(1), strict=True):
        assert 2.92550164 <= value(f, y, keys, seen, 100.0) <= 2.96339626
    one = torch.zeros(32, dtype=torch.float64)
    one[0] = 1
    opposed = torch.stack([one, *[-one] * 18])  # both ends are reached
    ends = [value(s * one.view(1, 32, 1, 1), label(0), opposed, seen, 100.0) for s in (1, -1)]
    assert ends == pytest.approx([2.92550164, 2.96339626], abs=1e-6)


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 0.00081687), (0.07, 1.12477e-5)])
def test_feature_on_its_key_among_19_orthonormal_keys(temperature, expected):
    keys, seen = torch.eye(19, dtype=torch.float64), torch.ones(19, dtype=torch.bool)
    features = keys[7].view(1, 19, 1, 1)
    assert value(features, label(7), keys, seen, temperature) == pytest.approx(expected, rel=1e-5)


def test_a_single_class_costs_nothing():
    assert value(one_pixel(3.0, 4.0), label(0), IDENTITY[:1], SEEN[:1]) == 0


def test_a_zero_key_still_counts_where_keys_decay():
    keys = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert value(one_pixel(3.0, 4.0), label(1), keys) == pytest.approx(1.03748795, abs=1e-6)


def test_value_and_gradient_equal_the_definition_pixel_by_pixel():
    features, labels, keys, seen = example()
    expected, valid = slow(features, labels, keys, seen, 0.3)
    total, count = pixel_contrast(features, labels, keys, seen, 0.3)
    assert count == valid and 0 < valid < (labels != 255).sum()
    assert total.item() == pytest.approx(expected.item(), abs=1e-9)
    (found,), (true,) = (torch.autograd.grad(x, features) for x in (total, expected))
    assert torch.allclose(found, true, rtol=0, atol=1e-9)


def test_gradient_is_that_of_the_value():
    features, labels, keys, seen = example()
    assert torch.autograd.gradcheck(
        lambda f: pixel_contrast(f, labels, keys, seen, 0.3)[0], features
    )


@pytest.mark.parametrize("seen", [[True] * 4, [False] * 4])
def test_no_valid_pixel_gives_zero_with_an_exact_zero_gradient(seen):
    features, labels, keys, _ = example()
    if all(seen):
        labels = torch.full_like(labels, 255)
    total, count = pixel_contrast(features, labels, keys, torch.tensor(seen), 0.3)
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_order_of_images_pixels_and_classes_does_not_matter():
    features, labels, keys, seen = example()
    pixels, classes = torch.randperm(12), torch.randperm(4)
    renamed = torch.full((256,), 255)
    renamed[classes] = torch.arange(4)
    shuffled = features.flip(0).flatten(2)[:, :, pixels].view_as(features)
    new = renamed[labels.flip(0)].flatten(1)[:, pixels].view_as(labels)
    before = value(features, labels, keys, seen)
    assert value(shuffled, new, keys[classes], seen[classes]) == pytest.approx(before, abs=1e-9)


def test_only_directions_count():
    features, labels, keys, seen = example()
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    rotated = torch.einsum("de,behw->bdhw", rotation, features)
    before = value(features, labels, keys, seen)
    assert value(features * 7, labels, keys, seen) == pytest.approx(before, abs=1e-9)
    assert value(rotated, labels, keys @ rotation.T, seen) == pytest.approx(before, abs=1e-9)


def test_gradient_is_orthogonal_to_the_feature():
    features, labels, keys, seen = example()
    pixel_contrast(features, labels, keys, seen, 0.1)[0].backward()
    along = (features.grad * features).sum(1)
    assert features.grad.abs().max() > 0.1
    assert along.abs().max() < 1e-12


def test_keys_receive_no_gradient():
    features, labels, keys, seen = example()
    keys.requires_grad_()
    pixel_contrast(features, labels, keys, seen, 0.1)[0].backward()
    assert keys.grad is None and features.grad is not None


def test_void_image_changes_nothing():
    features, labels, keys, seen = example()
    more = torch.cat([features, torch.randn(1, 5, 3, 4)])
    void = torch.cat([labels, torch.full((1, 3, 4), 255)])
    before = pixel_contrast(features, labels, keys, seen, 0.1)
    after = pixel_contrast(more, void, keys, seen, 0.1)
    assert after[0].item() == pytest.approx(before[0].item()) and after[1] == before[1]


def test_autocast_stays_in_float32():
    features, labels, keys, seen = example(torch.float32)
    full = value(features, labels, keys, seen, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = pixel_contrast(features, labels, keys, seen, 0.1)
        half = value(features.bfloat16(), labels, keys, seen, 0.1)
    assert inside[0].dtype == torch.float32
    assert (inside[0] / inside[1]).item() == full
    assert half == pytest.approx(full, rel=1e-2)


def test_labels_are_taken_from_the_first_pixel_of_each_cell():
    def picked(length, cells):
        return downsample_labels(torch.arange(length)[None, None], (1, cells))[0, 0].tolist()

    assert picked(16, 2) == [0, 8]
    assert picked(720, 90)[:4] == [0, 8, 16, 24]
    assert picked(5, 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("image", "grid"), [((720, 1280), (90, 160)), ((64, 128), (32, 64))])
def test_labels_are_those_of_legacy_nearest(image, grid):
    labels = torch.randint(0, 256, (2, *image), dtype=torch.uint8)
    expected = F.interpolate(labels[None].float(), grid, mode="nearest")[0].byte()
    assert torch.equal(downsample_labels(labels, grid), expected)
