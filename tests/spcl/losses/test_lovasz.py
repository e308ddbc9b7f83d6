import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from spcl.data.labels import IGNORE_INDEX
from spcl.losses.lovasz import descending, lovasz_softmax


def pixels(*probabilities):
    """Logits (1, K, 1, N) of N pixels with these probabilities."""
    rows = torch.tensor(probabilities, dtype=torch.float64)
    return rows.log().T[None, :, None]


def labels(*classes):
    return torch.tensor([[classes]])


def example(size=(6, 8), classes=5):
    """Two images, of whose five classes the first has three, with ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, classes, 3, 4, dtype=torch.float64, generator=generator)
    truth = torch.randint(0, classes, (2, *size), generator=generator)
    truth[0] %= 3
    truth[:, :2] = 255
    return logits.requires_grad_(), truth


def jaccard_loss(wrong, members):
    """1 - IoU of a class with `members`, where the pixels `wrong` are labelled wrongly."""
    predicted = members ^ wrong
    union = len(predicted | members)
    return 1 - len(predicted & members) / union if union else 0.0


def slow(probabilities, truth):
    """The Lovász extension by its definition on sets, of an image (K, N) and its labels (N,)."""
    kept = [i for i, y in enumerate(truth.tolist()) if y != 255]
    losses = []
    for c, row in enumerate(probabilities):
        members = {i for i in kept if truth[i] == c}
        if not members:
            continue
        errors = {i: 1 - row[i] if i in members else row[i] for i in kept}
        loss, wrong = 0.0, set()
        for i in sorted(kept, key=lambda i: -errors[i].item()):
            before = jaccard_loss(wrong, members)
            wrong = wrong | {i}
            loss = loss + errors[i] * (jaccard_loss(wrong, members) - before)
        losses.append(loss)
    return torch.stack(losses).mean()


def test_three_pixels_in_closed_form():
    total, count = lovasz_softmax(pixels((0.8, 0.2), (0.4, 0.6), (0.7, 0.3)), labels(0, 1, 1))
    assert total.item() == pytest.approx(0.51666667, abs=1e-8) and count == 1


@pytest.mark.parametrize(("truth", "expected"), [((0, 1), 0.0), ((1, 0), 1.0)])
def test_perfect_costs_nothing_and_all_wrong_one(truth, expected):
    sure = torch.tensor([[100.0, -100.0], [-100.0, 100.0]])[None, :, None]
    assert lovasz_softmax(sure, labels(*truth))[0].item() == pytest.approx(expected, abs=1e-12)


def test_a_class_that_is_absent_has_no_part():
    three = pixels((0.8, 0.2, 1e-9), (0.4, 0.6, 1e-9), (0.7, 0.3, 1e-9))
    found = lovasz_softmax(three, labels(0, 1, 1))[0].item()
    assert found == pytest.approx(0.51666667, abs=1e-8)


@pytest.mark.parametrize("over", ["image", "batch"])
def test_value_and_gradient_are_those_of_the_definition(over):
    logits, truth = example()
    large = F.interpolate(logits, (6, 8), mode="bilinear", align_corners=True)
    sets = zip(large.softmax(1).flatten(2), truth.flatten(1), strict=True)
    if over == "batch":
        both = large.softmax(1).transpose(0, 1).flatten(1)
        expected, images = slow(both, truth.flatten()), 1
    else:
        expected, images = sum(slow(*one) for one in sets), 2
    total, count = lovasz_softmax(logits, truth, over)
    assert total.item() == pytest.approx(expected.item(), abs=1e-12) and count == images
    gradients = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (total, expected)]
    assert torch.allclose(*gradients, atol=1e-12) and gradients[0].abs().max() > 1e-3


def test_gradient_is_that_of_the_value():
    logits, truth = example()
    assert torch.autograd.gradcheck(lambda z: lovasz_softmax(z, truth)[0], logits)


def test_ignored_pixels_are_as_if_they_were_not_there():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 1, 30, dtype=torch.float64, generator=generator)
    truth = torch.randint(0, 4, (1, 1, 30), generator=generator)
    truth[..., ::3] = 255
    kept = truth[0, 0] != 255
    expected = lovasz_softmax(logits[..., kept], truth[..., kept])[0]
    assert lovasz_softmax(logits, truth)[0].item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("over", ["image", "batch"])
def test_without_a_label_it_is_zero_with_an_exact_zero_gradient(over):
    logits, truth = example()
    total, count = lovasz_softmax(logits, torch.full_like(truth, 255), over)
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("over", ["image", "batch"])
def test_void_image_changes_nothing(over):
    logits, truth = example()
    more = torch.cat([logits, torch.randn(1, 5, 3, 4)])
    void = torch.cat([truth, torch.full((1, 6, 8), 255)])
    before, after = lovasz_softmax(logits, truth, over), lovasz_softmax(more, void, over)
    assert after[0].item() == pytest.approx(before[0].item(), abs=1e-12) and after[1] == before[1]


def test_images_add_up_and_a_batch_does_not():
    """What lets two ranks equal one, which the batch as one set does not."""
    logits, truth = example()
    parts = [lovasz_softmax(logits[i : i + 1], truth[i : i + 1])[0].item() for i in (0, 1)]
    assert lovasz_softmax(logits, truth)[0].item() == pytest.approx(sum(parts), abs=1e-12)
    assert lovasz_softmax(logits, truth, "batch")[0].item() != pytest.approx(
        sum(parts) / 2, abs=1e-3
    )


def test_order_of_pixels_and_classes_does_not_matter():
    logits, truth = example(size=(3, 4))
    move, classes = torch.randperm(12), torch.randperm(5)
    shuffled = logits[:, classes].flatten(2)[:, :, move].view_as(logits)
    renamed = torch.full((256,), 255)
    renamed[classes] = torch.arange(5)
    new = renamed[truth].flatten(1)[:, move].view_as(truth)
    before, after = lovasz_softmax(logits, truth)[0], lovasz_softmax(shuffled, new)[0]
    assert after.item() == pytest.approx(before.item(), abs=1e-12)


def test_autocast_and_half_precision_are_raised_to_float32():
    logits, truth = example()
    full = lovasz_softmax(logits.float(), truth)[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        inside = lovasz_softmax(logits.float(), truth)[0]
        half = lovasz_softmax(logits.bfloat16(), truth)[0]
    assert inside.dtype == half.dtype == torch.float32
    assert inside.item() == full
    assert half.item() == pytest.approx(full, rel=1e-2)


def test_the_weights_of_a_large_image_add_up_to_one_in_float32():
    """Steps of 1e-6, where a difference of two float32 near 1 would keep one digit."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 512, 1024, generator=generator, requires_grad=True)
    truth = torch.randint(0, 2, (1, 512, 1024), generator=generator)
    lovasz_softmax(logits, truth)[0].backward()
    double = logits.detach().double().requires_grad_()
    lovasz_softmax(double, truth)[0].backward()
    error = (logits.grad - double.grad).abs() / double.grad.abs().clamp(min=1e-12)
    assert error.median() < 1e-5


def published(logits, truth):
    """As published: class by class, with the differences of 1 - IoU along the sorted errors."""
    total = 0.0
    for p, y in zip(logits.softmax(1).flatten(2), truth.flatten(1), strict=True):
        p, y = p[:, y != IGNORE_INDEX], y[y != IGNORE_INDEX]
        losses = []
        for c in y.unique():
            foreground = (y == c).to(p.dtype)
            errors, order = (foreground - p[c]).abs().sort(descending=True, stable=True)
            hit = foreground[order]
            jaccard = 1 - (hit.sum() - hit.cumsum(0)) / (hit.sum() + (1 - hit).cumsum(0))
            losses.append(errors @ jaccard.diff(prepend=jaccard.new_zeros(1)))
        total = total + torch.stack(losses).mean()
    return total


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_value_and_gradient_are_those_of_the_published_loop_in_double_precision(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(2, 7, 20, 30, dtype=torch.float64, generator=generator)
    truth = torch.randint(0, classes, (2, 20, 30), generator=generator)
    truth[1, :5] = IGNORE_INDEX
    logits.requires_grad_()
    results = []
    for loss in (lovasz_softmax(logits, truth)[0], published(logits, truth)):
        results.append((loss, torch.autograd.grad(loss, logits)[0]))
    for mine, wanted in zip(*results, strict=True):
        assert torch.allclose(mine, wanted, rtol=1e-9, atol=1e-12) and wanted.abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_errors_descend_with_ties_in_the_order_of_pixels_and_ignored_pixels_last(dtype):
    generator = torch.Generator().manual_seed(0)
    fine = torch.rand(3, 5000, generator=generator, dtype=dtype) ** 8  # many exponents
    few = torch.tensor([0.0, 1e-40, 1e-9, 0.5, 0.5 + 2**-24, 1 - 2**-24, 1.0], dtype=dtype)
    errors = torch.cat([fine, few[torch.randint(0, 7, (3, 5000), generator=generator)]])
    valid = torch.rand(5000, generator=generator) < 0.7
    found = descending(errors, valid)
    for row, order in zip(errors.tolist(), found.tolist(), strict=True):
        keys = [(0, -row[i], i) if kept else (1, 0, i) for i, kept in enumerate(valid.tolist())]
        assert order == sorted(range(5000), key=keys.__getitem__)


def test_equal_errors_have_the_weights_of_their_order_on_any_number_of_threads():
    logits = torch.zeros(1, 3, 40, 50, requires_grad=True)  # all ties
    truth = torch.randint(0, 3, (1, 40, 50), generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(torch.autograd.grad(lovasz_softmax(logits, truth)[0], logits)[0])
    torch.set_num_threads(before)
    assert found[0].any() and all(torch.equal(found[0], other) for other in found[1:])
    wanted = torch.autograd.grad(published(logits.double(), truth), logits)[0]
    assert torch.allclose(found[0], wanted, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("over", ["image", "batch"])
def test_sorting_by_bits_gives_the_bits_of_a_stable_sort_of_all_classes(over, monkeypatch):
    """As a GPU has it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, 5, 6, generator=generator, requires_grad=True)
    truth = torch.randint(0, 6, (2, 40, 50), generator=generator)
    truth[:, :3] = IGNORE_INDEX
    results = []
    for here in (True, False):
        monkeypatch.setattr("spcl.losses.lovasz._can_be_read", lambda x, here=here: here)
        loss = lovasz_softmax(logits, truth, over)[0]
        results.append(torch.autograd.grad(loss, logits)[0])
    assert results[0].any() and torch.equal(*results)


class Rows(TorchDispatchMode):
    """How many rows are put into order."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.scatter_.src:
            self.count += len(args[0])
        return function(*args, **(kwargs or {}))


def test_only_classes_that_are_present_are_sorted():
    logits, truth = example()
    with Rows() as rows:
        lovasz_softmax(logits, truth)[0].backward()
    assert rows.count == sum(len(y[y != IGNORE_INDEX].unique()) for y in truth) == 3 + 5
