import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from spcl.cli import REPOSITORY
from spcl.losses.adversarial import players
from spcl.losses.affinity import (
    BORDERS,
    NEIGHBOURS,
    affinity_cleaning,
    affinity_convolution,
    affinity_convolution_apart,
    probabilities,
)
from spcl.models.discriminator import Discriminator

BOTH = [(n, border) for n in NEIGHBOURS for border in BORDERS]
EPS = 1e-4


def one_hot(labels, classes):
    """Labels as nested lists of rows -> probabilities (1, K, H, W)."""
    return F.one_hot(torch.tensor(labels), classes).permute(2, 0, 1)[None].double()


def random_logits(shape=(2, 3, 4, 5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(shape, dtype=dtype, generator=generator)).requires_grad_()


def cleaning(p, neighbours=8, border="replicate"):
    total, count = affinity_cleaning(p, neighbours, border)
    return (total / count).item()


def pairs(height, width, neighbours, border):
    """Every pixel (y, x), the number of a neighbour, and where that lies; None: nowhere."""
    for y in range(height):
        for x in range(width):
            for index, (down, right) in enumerate(NEIGHBOURS[neighbours]):
                there = y + down, x + right
                near = min(max(there[0], 0), height - 1), min(max(there[1], 0), width - 1)
                yield y, x, index, near if border == "replicate" or near == there else None


def naive_cleaning(p, neighbours, border):
    """The definition, pair by pair: (sum, count)."""
    total, count = 0.0, 0
    for y, x, _, there in pairs(*p.shape[-2:], neighbours, border):
        if there:
            total = total + (1 - (p[:, :, y, x] * p[:, :, there[0], there[1]]).sum(1)).sum()
            count += len(p)
    return total, count


def affinity(a, b, eps=EPS):
    """One class, probabilities of a pixel and its neighbour: the definition."""
    q = a * b

    def c(x):
        return x.clamp(eps, 1)

    return c(q) * (c(q) / c(a)).log() + c(1 - q) * (c(1 - q) / c(1 - a)).log()


def naive_maps(p, neighbours, border):
    """All maps (B, N*K, H, W), pair by pair."""
    height, width = p.shape[-2:]
    zero = torch.zeros_like(p[:, :, 0, 0])
    found = [
        affinity(p[:, :, y, x], p[:, :, there[0], there[1]]) if there else zero
        for y, x, _, there in pairs(height, width, neighbours, border)
    ]
    stacked = torch.stack(found, -1).unflatten(-1, (height, width, neighbours))  # (B, K, H, W, N)
    return stacked.movedim(-1, 1).flatten(1, 2)


def maps(p, neighbours=8, border="replicate"):
    """Ours, through a layer that passes each channel on."""
    channels = neighbours * p.shape[1]
    layer = nn.Conv2d(channels, channels, 1).to(p.dtype).requires_grad_(False)
    layer.weight.copy_(torch.eye(channels, dtype=p.dtype)[..., None, None])
    layer.bias.zero_()
    return affinity_convolution(p, layer, neighbours=neighbours, border=border)


def first_layer(neighbours, classes=3, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Conv2d(neighbours * classes, 2, kernel_size=4, stride=2, padding=1, dtype=dtype)


def test_neighbours_are_in_the_order_of_the_authors_channels():
    assert NEIGHBOURS[8][:4] == ((-1, -1), (-1, 0), (-1, 1), (0, -1))
    assert NEIGHBOURS[8] == tuple(sorted(set(NEIGHBOURS[8]) - {(0, 0)})) and len(NEIGHBOURS[8]) == 8
    assert NEIGHBOURS[4] == tuple(o for o in NEIGHBOURS[8] if 0 in o)


# Cleaning.

CHECKERBOARD = [[(x + y) % 2 for x in range(4)] for y in range(4)]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (torch.full((1, 4, 3, 3), 0.25), (0.75, 0.75, 0.75, 0.75)),
        (one_hot([[1, 1], [1, 1]], 3), (0, 0, 0, 0)),
        (one_hot([[0, 1]], 2), (0.375, 0.25, 1, 1)),
        (one_hot(CHECKERBOARD, 2), (0.5625, 0.75, 0.57142857, 1)),
    ],
    ids=["uniform", "constant", "1x2", "checkerboard"],
)
def test_cleaning_in_closed_form(p, expected):
    cases = [(8, "replicate"), (4, "replicate"), (8, "valid"), (4, "valid")]
    found = [cleaning(p.double(), *case) for case in cases]
    assert found == pytest.approx(expected, abs=1e-8)


def test_cleaning_of_a_single_pair_and_its_gradient():
    p = torch.tensor([[0.6, 0.3], [0.4, 0.7]], dtype=torch.float64).view(1, 2, 1, 2)
    logits = torch.tensor([[math.log(1.5), math.log(3 / 7)], [0, 0]], dtype=torch.float64)
    assert torch.allclose(logits.view(1, 2, 1, 2).softmax(1), p)
    p.requires_grad_()
    total, count = affinity_cleaning(p, 4, "valid")  # each of the two is the other's neighbour
    (total / count).backward()
    assert (total / count).item() == pytest.approx(0.54, abs=1e-12) and count == 2
    assert p.grad.flatten().tolist() == pytest.approx([-0.3, -0.6, -0.7, -0.4], abs=1e-12)


@pytest.mark.parametrize(("neighbours", "border"), BOTH)
def test_cleaning_equals_the_definition_pair_by_pair(neighbours, border):
    logits = random_logits()
    total, count = affinity_cleaning(logits.softmax(1), neighbours, border)
    expected, pairs = naive_cleaning(logits.softmax(1), neighbours, border)
    assert total.item() == pytest.approx(expected.item(), abs=1e-10) and count == pairs
    (gradient,) = torch.autograd.grad(total, logits)
    (wanted,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(gradient, wanted, atol=1e-12) and wanted.abs().max() > 0.1


@pytest.mark.parametrize(("neighbours", "border"), BOTH)
def test_gradient_of_the_cleaning_is_that_of_its_value(neighbours, border):
    p = random_logits((2, 2, 3, 4)).softmax(1).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: affinity_cleaning(p, neighbours, border)[0], p)


@pytest.mark.parametrize(("neighbours", "border"), BOTH)
def test_cleaning_does_not_depend_on_classes_order_flips_or_transposition(neighbours, border):
    p = random_logits().softmax(1).detach()
    before = cleaning(p, neighbours, border)
    assert 0 <= before <= 1
    for same in (p[:, [2, 0, 1]], p.flip(0), p.flip(2), p.flip(3), p.mT):
        assert cleaning(same, neighbours, border) == pytest.approx(before, abs=1e-12)


def test_cleaning_counts_an_image_of_one_pixel_and_of_none():
    pixel = torch.tensor([0.6, 0.4], dtype=torch.float64).view(1, 2, 1, 1).requires_grad_()
    assert cleaning(pixel) == pytest.approx(1 - 0.52)
    total, count = affinity_cleaning(pixel, border="valid")
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert torch.equal(pixel.grad, torch.zeros_like(pixel))


def test_nearly_clean_probabilities_keep_their_digits_in_float32():
    logits = 8 * one_hot([[0] * 256] * 256, 19)
    exact = cleaning(logits.softmax(1))
    assert cleaning(logits.float().softmax(1)) == pytest.approx(exact, rel=1e-4) and exact < 0.02


# Maps.


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ((0.5, 0.5), 0.13081204),
        ((1, 1), 0),
        ((1, 0), 9.20941934),
        ((0, 1), 0),
        ((0, 0), 0),
        ((0.9, 0.9), 0.03661022),
        ((0.9, 0.1), 1.80229706),
        ((0.1, 0.9), 0.00057290),
        ((0.05, 0.05), 0.04117886),
        ((0.6, 0.3), 0.37191353),
        ((0.3, 0.6), 0.03779507),
        ((0.6, 0.6), 0.11690510),
        ((0.4, 0.7), 0.03140253),
        ((0.4, 0.4), 0.13603016),
    ],
)
def test_map_of_a_pair_in_closed_form(pair, expected):
    a, b = pair
    found = maps(torch.tensor(pair, dtype=torch.float64).view(1, 1, 1, 2))[0]
    right = NEIGHBOURS[8].index((0, 1))
    assert found[right, 0, 0].item() == pytest.approx(expected, abs=1e-8)
    # Above lies a copy of the pixel itself, and the map is that of (p, p).
    itself = affinity(*torch.tensor([[a], [a]], dtype=torch.float64)).item()
    assert found[NEIGHBOURS[8].index((-1, 0)), 0, 0].item() == pytest.approx(itself, abs=1e-12)


@pytest.mark.parametrize(("neighbours", "border"), BOTH)
def test_a_certain_image_of_one_class_has_exactly_zero_in_all_channels(neighbours, border):
    found = maps(one_hot([[1] * 4] * 3, 3), neighbours, border)
    assert found.shape == (1, neighbours * 3, 3, 4) and not found.any()


@pytest.mark.parametrize(("neighbours", "border"), BOTH)
def test_maps_equal_the_definition_pair_by_pair_and_are_not_negative(neighbours, border):
    logits = random_logits()
    found = maps(logits.softmax(1), neighbours, border)
    expected = naive_maps(logits.softmax(1), neighbours, border)
    assert torch.allclose(found, expected, atol=1e-12) and found.min() >= 0
    weights = torch.randn(found.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(found, logits, weights)
    (wanted,) = torch.autograd.grad(expected, logits, weights)
    assert torch.allclose(gradient, wanted, atol=1e-10) and wanted.abs().max() > 0.1


def test_a_pixel_without_a_neighbour_passes_no_gradient():
    pixel = torch.tensor([0.6, 0.4], dtype=torch.float64).view(1, 2, 1, 1).requires_grad_()
    found = maps(pixel, border="valid")
    found.sum().backward()
    assert not found.any() and pixel.grad.abs().max() < 1e-14


# The discriminator's first convolution.


@pytest.mark.parametrize(("neighbours", "border"), BOTH)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_equals_that_of_all_maps_in_value_and_gradients(neighbours, border, layout):
    logits, layer = random_logits(), first_layer(neighbours)
    p = logits.contiguous(memory_format=layout).softmax(1)
    layer.to(memory_format=layout)
    ours = affinity_convolution(p, layer, neighbours=neighbours, border=border)
    naive = layer(naive_maps(p, neighbours, border))
    assert torch.allclose(ours, naive, atol=1e-12)
    to = logits, layer.weight, layer.bias
    for mine, wanted in zip(
        torch.autograd.grad(ours.square().sum(), to, retain_graph=True),
        torch.autograd.grad(naive.square().sum(), to),
        strict=True,
    ):
        assert torch.allclose(mine, wanted, rtol=1e-10, atol=1e-10) and wanted.abs().max() > 0.1


def test_convolution_in_float32_equals_that_of_all_maps_to_rounding():
    logits, layer = random_logits((1, 3, 8, 8), torch.float32), first_layer(8, dtype=torch.float32)
    results = []
    for way in (affinity_convolution, lambda p, layer: layer(naive_maps(p, 8, "replicate"))):
        y = way(logits.softmax(1), layer)
        gradients = torch.autograd.grad(y.square().sum(), (logits, layer.weight, layer.bias))
        results.append((y, *gradients))
    for mine, wanted in zip(*results, strict=True):
        assert torch.allclose(mine, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


class Convolution(nn.Module):
    def __init__(self, layer, **options):
        super().__init__()
        self.layer, self.options = layer, options

    def forward(self, p):
        return affinity_convolution(p, self.layer, (1, 2), **self.options)


@pytest.mark.parametrize(("neighbours", "border"), BOTH)
def test_gradients_of_the_convolution_are_those_of_its_value(neighbours, border):
    p = random_logits((1, 2, 3, 4)).softmax(1).detach().requires_grad_()
    layer = first_layer(neighbours, classes=2)
    module = Convolution(layer, neighbours=neighbours, border=border)

    def convolved(p, weight, bias):
        replaced = {"weight": weight, "bias": bias}
        return torch.func.functional_call(module, {f"layer.{k}": v for k, v in replaced.items()}, p)

    assert torch.autograd.gradcheck(convolved, (p, layer.weight, layer.bias))


def test_zeros_below_and_to_the_right_are_seen_as_maps_of_zero():
    logits, layer = random_logits(), first_layer(8)
    ours = affinity_convolution(logits.softmax(1), layer, (3, 2))
    naive = layer(F.pad(naive_maps(logits.softmax(1), 8, "replicate"), (0, 2, 0, 3)))
    assert ours.shape == naive.shape and torch.allclose(ours, naive, atol=1e-12)
    for mine, wanted in zip(
        torch.autograd.grad(ours.square().sum(), (logits, layer.weight)),
        torch.autograd.grad(naive.square().sum(), (logits, layer.weight)),
        strict=True,
    ):
        assert torch.allclose(mine, wanted, rtol=1e-10, atol=1e-10)


def test_only_what_is_wanted_gets_a_gradient():
    logits, layer = random_logits(), first_layer(8)
    affinity_convolution(logits.softmax(1).detach(), layer).sum().backward()
    assert logits.grad is None and layer.weight.grad.any() and layer.bias.grad.any()
    layer.requires_grad_(False).zero_grad()
    affinity_convolution(logits.softmax(1), layer).sum().backward()
    assert logits.grad.any() and layer.weight.grad is None and layer.bias.grad is None


def test_certain_and_impossible_classes_have_finite_gradients():
    p = one_hot([[0, 0, 1], [0, 1, 1]], 3).requires_grad_()
    affinity_convolution(p, first_layer(8)).square().sum().backward()
    assert torch.isfinite(p.grad).all()


def test_eps_sets_the_value_of_an_edge():
    right = NEIGHBOURS[4].index((0, 1))
    edge = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    layer = nn.Conv2d(4, 4, 1, bias=True, dtype=torch.float64).requires_grad_(False)
    layer.weight.copy_(torch.eye(4)[..., None, None])
    layer.bias.zero_()
    found = affinity_convolution(edge, layer, neighbours=4, eps=0.01)[0, right, 0, 0]
    assert found.item() == pytest.approx(0.01 * math.log(0.01) - math.log(0.01))


def test_autocast_stays_in_float32():
    logits = random_logits((1, 3, 8, 8), torch.float32)
    layer = first_layer(8, dtype=torch.float32)
    p = logits.softmax(1)
    full = affinity_convolution(p, layer), affinity_cleaning(p)[0]
    wanted = torch.autograd.grad(full[0].sum() + full[1], (logits, layer.weight), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = affinity_convolution(p, layer), affinity_cleaning(p)[0]
        half = affinity_cleaning(p.bfloat16())[0]
    found = torch.autograd.grad(inside[0].sum() + inside[1], (logits, layer.weight))
    assert all(
        torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(inside, full, strict=True)
    )
    assert half.item() == pytest.approx(full[1].item(), rel=1e-2) and half.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# Apart: one computation, two gradients.


@pytest.mark.parametrize(("neighbours", "border"), BOTH)
def test_apart_is_the_convolution_twice_and_each_copy_has_its_own_gradient(neighbours, border):
    logits, layer = random_logits(), first_layer(neighbours)
    p, options = logits.softmax(1), {"neighbours": neighbours, "border": border}
    for_p, for_layer = affinity_convolution_apart(p, layer, (1, 2), **options)
    plain = affinity_convolution(p, layer, (1, 2), **options)
    assert torch.equal(for_p, plain) and torch.equal(for_layer, plain)
    to = logits, layer.weight, layer.bias
    one, *none = torch.autograd.grad(for_p.square().sum(), to, retain_graph=True, allow_unused=True)
    assert none == [None, None]
    none, *others = torch.autograd.grad(
        for_layer.pow(3).sum(), to, retain_graph=True, allow_unused=True
    )
    assert none is None
    larger = F.pad(naive_maps(p, neighbours, border), (0, 2, 0, 1))
    wanted = torch.autograd.grad(layer(larger).square().sum(), logits, retain_graph=True)
    wanted += torch.autograd.grad(layer(larger).pow(3).sum(), to[1:])
    together = torch.autograd.grad(for_p.square().sum() + for_layer.pow(3).sum(), to)
    for mine, both, right in zip((one, *others), together, wanted, strict=True):
        assert torch.allclose(mine, right, rtol=1e-9, atol=1e-9) and right.abs().max() > 0.1
        assert torch.equal(mine, both)


@pytest.mark.parametrize(("neighbours", "border"), BOTH)
@pytest.mark.parametrize("strip", [1, 2 * 3 * 5 * 3])
def test_strips_change_no_bit(neighbours, border, strip, monkeypatch):
    logits, layer = random_logits((2, 3, 7, 5)), first_layer(neighbours)
    results = []
    for elements in (2**17, strip):
        monkeypatch.setattr("spcl.losses.affinity.STRIP", elements)
        y = affinity_convolution(logits.softmax(1), layer, neighbours=neighbours, border=border)
        results.append((y, *torch.autograd.grad(y.square().sum(), (logits, layer.weight))))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][2], results[1][2])
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-12, atol=1e-13)


class Logarithms(TorchDispatchMode):
    """Elements of which a logarithm is taken."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.log1p, torch.ops.aten.log1p_):
            self.elements += args[0].numel()
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("neighbours", NEIGHBOURS)
def test_two_pixels_share_the_logarithms_of_their_product(neighbours):
    p = random_logits((1, 3, 40, 50)).softmax(1)
    with Logarithms() as taken:
        for_p, for_layer = affinity_convolution_apart(
            p, first_layer(neighbours), neighbours=neighbours
        )
        forward = taken.elements
        (for_p + for_layer).sum().backward()
    # One for each two neighbours, one of P itself; the border's margin has a few more.
    assert p.numel() * (neighbours // 2 + 1) <= forward < 1.2 * p.numel() * (neighbours // 2 + 1)
    assert taken.elements == 2 * forward  # both players' gradients in one pass


def test_a_game_sees_the_target_once_for_both_players():
    source, target = random_logits((2, 1, 3, 32, 32)).softmax(2)
    discriminator = Discriminator(24, 2, affinity_convolution, affinity_convolution_apart).double()
    with Logarithms() as taken:
        discriminator(source)
        alone = taken.elements
        losses = players(discriminator, source, target)
        assert taken.elements == 3 * alone
        sum(total for total, _ in losses).backward()
    assert taken.elements == 5 * alone


# Probabilities.


def test_a_stride_takes_every_nth_pixel_of_the_image():
    logits = random_logits((2, 3, 4, 8))
    every = probabilities(logits, (32, 64))
    assert every.shape == (2, 3, 32, 64)
    assert torch.equal(probabilities(logits, (32, 64), 8), every[..., ::8, ::8])
    assert torch.allclose(every.sum(1), torch.ones(2, 32, 64, dtype=torch.float64))
    assert probabilities(logits.bfloat16(), (32, 64)).dtype == torch.float32


# Memory.


class Peak(TorchDispatchMode):
    """The most bytes that results of operations hold at a time."""

    def __init__(self):
        super().__init__()
        self.living, self.bytes = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.living[StorageWeakRef(storage)] = storage.nbytes()
        self.living = {ref: size for ref, size in self.living.items() if not ref.expired()}
        self.bytes = max(self.bytes, sum(self.living.values()))
        return result


def peak_bytes(run):
    with Peak() as counter:
        run()
    return counter.bytes


def test_the_counter_sees_what_lives_together():
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x + 1 + 1) == 8000  # the first sum dies after the second is made
    assert peak_bytes(lambda: [x + 1 for _ in range(5)]) == 20_000
    y = torch.zeros(1000, requires_grad=True)
    assert peak_bytes(lambda: (y.exp().exp().exp().sum()).backward()) >= 16_000  # kept for later


@pytest.mark.parametrize("what", ["discriminator", "cleaning"])
def test_forward_and_backward_need_less_than_a_quarter_of_the_naive_memory(what, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")  # as `python benchmarks/affinity.py`
    benchmark = importlib.import_module("benchmarks.affinity")
    p = benchmark.inputs(what, (64, 128), "cpu")[0]
    made = benchmark.steps(what, (64, 128), "cpu")
    ours, naive = (peak_bytes(made[name]) for name in ("ours", "naive"))
    assert naive > 8 * p.nbytes  # it holds all the maps
    assert ours < naive / 4
