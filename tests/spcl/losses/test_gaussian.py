import math

import pytest
import torch
import torch.nn.functional as F

from spcl.losses.contrast import pixel_contrast
from spcl.losses.gaussian import gaussian_contrast

SEEN = torch.ones(2, dtype=torch.bool)
IDENTITY = torch.eye(2, dtype=torch.float64)
VARIANCE = torch.tensor([[0.5, 0.1], [0.2, 0.3]], dtype=torch.float64)


def one_pixel(*values):
    """Features (1, D, 1, 1) of one pixel."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1).requires_grad_()


def label(y):
    return torch.full((1, 1, 1), y)


def value(features, labels, mean=IDENTITY, variance=VARIANCE, seen=SEEN, temperature=1.0):
    total, count = gaussian_contrast(features, labels, mean, variance, seen, temperature)
    return (total / count).item()


def example(dtype=torch.float64, classes=4):
    """A 2x3x4 grid with 5 channels, some pixels ignored, and one class that was never seen."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 3, 4, dtype=dtype, generator=generator, requires_grad=True)
    labels = torch.randint(0, classes, (2, 3, 4), generator=generator)
    labels[0, 0] = 255
    mean = F.normalize(torch.randn(classes, 5, dtype=dtype, generator=generator))
    variance = 0.2 * torch.rand(classes, 5, dtype=dtype, generator=generator)
    seen = torch.tensor([True, True, False, True])
    return features, labels, mean, variance, seen


def slow(features, labels, mean, variance, seen, temperature):
    """Cross-entropy plus the own quadratic term, pixel by pixel, with full matrices."""
    total, count = 0.0, 0
    for f, y in zip(features.permute(0, 2, 3, 1).reshape(-1, 5), labels.flatten(), strict=True):
        if y != 255 and seen[y]:
            n = f / f.norm()
            quadratic = torch.stack([n @ torch.diag(v) @ n for v in variance]) / 2 / temperature**2
            logits = mean @ n / temperature + quadratic
            total += torch.logsumexp(logits[seen], 0) - logits[y] + quadratic[y]
            count += 1
    return total, count


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, 0.72564958), (0.5, 1.02515445), (100.0, 0.69216038)]
)
def test_two_orthogonal_means_in_closed_form(temperature, expected):
    found = value(one_pixel(3.0, 4.0), label(1), temperature=temperature)
    assert found == pytest.approx(expected, abs=1e-8)


def test_gradient_of_two_orthogonal_means_in_closed_form():
    features = one_pixel(3.0, 4.0)
    gaussian_contrast(features, label(1), IDENTITY, VARIANCE, SEEN, 1.0)[0].backward()
    assert features.grad.flatten().tolist() == pytest.approx([0.10979440, -0.08234580], abs=1e-8)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.90912316), (100.0, 0.69217796)])
def test_variance_rows_of_unit_length_in_closed_form(temperature, expected):
    rows = F.normalize(VARIANCE)
    assert rows.flatten().tolist() == pytest.approx([0.98058068, 0.19611614, 0.5547002, 0.83205029])
    found = value(one_pixel(3.0, 4.0), label(1), variance=rows, temperature=temperature)
    assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("row", "temperature", "expected"),
    [(0, 1.0, 0.122), (1, 1.0, 0.132), (0, 0.5, 0.488), (1, 0.5, 0.528)],
)
def test_of_a_single_class_the_quadratic_term_is_left(row, temperature, expected):
    """-f mean / t + (f mean / t + quadratic): the diagonal's, of whatever matrix it is."""
    one = IDENTITY[:1], VARIANCE[row : row + 1], SEEN[:1], temperature
    assert value(one_pixel(3.0, 4.0), label(0), *one) == pytest.approx(expected, abs=1e-9)


def test_without_variance_it_is_the_contrast_with_prototypes():
    assert value(one_pixel(3.0, 4.0), label(1), variance=0 * VARIANCE) == pytest.approx(
        0.59813887, abs=1e-8
    )


@pytest.mark.parametrize("temperature", [0.07, 1.0, 100.0])
def test_without_variance_it_is_the_contrast_with_prototypes_of_19_classes(temperature):
    torch.manual_seed(0)
    features = torch.randn(3, 32, 8, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 20, (3, 8, 8))
    labels[labels == 19] = 255
    mean = F.normalize(torch.randn(19, 32, dtype=torch.float64))
    seen = torch.arange(19) != 11
    both = (
        gaussian_contrast(features, labels, mean, torch.zeros_like(mean), seen, temperature),
        pixel_contrast(features, labels, mean, seen, temperature),
    )
    assert both[0][1] == both[1][1]
    assert both[0][0].item() == pytest.approx(both[1][0].item(), rel=1e-14)
    one, other = (torch.autograd.grad(total, features)[0] for total, _ in both)
    assert torch.allclose(one, other, rtol=1e-12, atol=1e-18)


def test_sampled_keys_lie_under_the_bound():
    """400 000 keys of each class: the mean loss is .6579 and the bound .72564958."""
    generator = torch.Generator().manual_seed(0)
    f = torch.tensor([0.6, 0.8], dtype=torch.float64)
    noise = torch.randn(400_000, 2, 2, dtype=torch.float64, generator=generator)
    dots = (IDENTITY + VARIANCE.sqrt() * noise) @ f  # (draws, K)
    sampled = (dots.logsumexp(1) - dots[:, 1]).mean().item()
    assert sampled == pytest.approx(0.6579, abs=3e-3)
    assert sampled < value(one_pixel(3.0, 4.0), label(1)) - 0.05
    assert dots[:, 0].exp().mean().item() == pytest.approx(math.exp(0.6 + 0.122), rel=5e-3)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_sampled_keys_of_many_classes_lie_under_the_bound(temperature):
    generator = torch.Generator().manual_seed(1)
    features, labels, mean, variance, _ = example()
    seen = torch.ones(4, dtype=torch.bool)
    flat = F.normalize(features.detach(), dim=1).permute(0, 2, 3, 1).reshape(-1, 5)
    sampled, valid = 0.0, labels.flatten() != 255
    for _ in range(20):  # chunks of draws
        noise = torch.randn(5_000, 4, 5, dtype=torch.float64, generator=generator)
        logits = (mean + variance.sqrt() * noise) @ flat[valid].T / temperature  # (draws, K, P)
        own = logits.gather(1, labels.flatten()[valid].expand(5_000, 1, -1))
        sampled += (logits.logsumexp(1) - own[:, 0]).mean(0).sum().item() / 20
    bound, count = gaussian_contrast(features, labels, mean, variance, seen, temperature)
    assert 0 < bound.item() - sampled < 0.5 * bound.item()
    assert count == valid.sum()


def test_the_loss_rises_with_every_variance_by_its_probability():
    """d loss / d quadratic_k = softmax_k, also of the own class."""
    features, step = one_pixel(3.0, 4.0), 1e-6
    logits = torch.tensor([0.722, 0.932], dtype=torch.float64)
    for k, share in enumerate(logits.softmax(0).tolist()):
        for d, square in enumerate((0.36, 0.64)):
            more = VARIANCE.clone()
            more[k, d] += step
            slope = (value(features, label(1), variance=more) - value(features, label(1))) / step
            assert slope == pytest.approx(share * square / 2, rel=1e-4)


def test_value_and_gradient_equal_the_definition_pixel_by_pixel():
    arguments = example()
    expected, valid = slow(*arguments, 0.3)
    total, count = gaussian_contrast(*arguments, 0.3)
    assert count == valid and 0 < valid < (arguments[1] != 255).sum()
    assert total.item() == pytest.approx(expected.item(), abs=1e-9)
    (found,), (true,) = (torch.autograd.grad(x, arguments[0]) for x in (total, expected))
    assert torch.allclose(found, true, rtol=0, atol=1e-9)


def test_gradient_is_that_of_the_value():
    features, *rest = example()
    assert torch.autograd.gradcheck(lambda f: gaussian_contrast(f, *rest, 0.3)[0], features)


@pytest.mark.parametrize("seen", [[True] * 4, [False] * 4])
def test_no_valid_pixel_gives_zero_with_an_exact_zero_gradient(seen):
    features, labels, mean, variance, _ = example()
    if all(seen):
        labels = torch.full_like(labels, 255)
    total, count = gaussian_contrast(features, labels, mean, variance, torch.tensor(seen), 0.3)
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_order_of_images_pixels_and_classes_does_not_matter():
    features, labels, mean, variance, seen = example()
    pixels, classes = torch.randperm(12), torch.randperm(4)
    renamed = torch.full((256,), 255)
    renamed[classes] = torch.arange(4)
    shuffled = features.flip(0).flatten(2)[:, :, pixels].view_as(features)
    new = renamed[labels.flip(0)].flatten(1)[:, pixels].view_as(labels)
    keys = mean[classes], variance[classes], seen[classes]
    before = value(features, labels, mean, variance, seen)
    assert value(shuffled, new, *keys) == pytest.approx(before, abs=1e-9)


def test_only_directions_count():
    """A rotation may only turn round distributions: the diagonal is that of these axes."""
    features, labels, mean, variance, seen = example()
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    rotated = torch.einsum("de,behw->bdhw", rotation, features)
    before = value(features, labels, mean, variance, seen)
    assert value(features * 7, labels, mean, variance, seen) == pytest.approx(before, abs=1e-9)
    round_ = variance[:, :1].expand(-1, 5)
    before = value(features, labels, mean, round_, seen)
    after = value(rotated, labels, mean @ rotation.T, round_, seen)
    assert after == pytest.approx(before, abs=1e-9)


def test_gradient_is_orthogonal_to_the_feature():
    features, *rest = example()
    gaussian_contrast(features, *rest, 0.3)[0].backward()
    assert features.grad.abs().max() > 0.1
    assert (features.grad * features).sum(1).abs().max() < 1e-12


def test_distributions_receive_no_gradient():
    features, labels, mean, variance, seen = example()
    mean.requires_grad_(), variance.requires_grad_()
    gaussian_contrast(features, labels, mean, variance, seen, 0.3)[0].backward()
    assert mean.grad is None and variance.grad is None and features.grad is not None


def test_void_image_changes_nothing():
    features, labels, *keys = example()
    more = torch.cat([features, torch.randn(1, 5, 3, 4)])
    void = torch.cat([labels, torch.full((1, 3, 4), 255)])
    before = gaussian_contrast(features, labels, *keys, 0.3)
    after = gaussian_contrast(more, void, *keys, 0.3)
    assert after[0].item() == pytest.approx(before[0].item()) and after[1] == before[1]


def test_autocast_stays_in_float32():
    features, labels, *keys = example(torch.float32)
    full = value(features, labels, *keys, temperature=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gaussian_contrast(features, labels, *keys, 0.3)
        half = value(features.bfloat16(), labels, *keys, temperature=0.3)
    assert inside[0].dtype == torch.float32
    assert (inside[0] / inside[1]).item() == full
    assert half == pytest.approx(full, rel=1e-2)
