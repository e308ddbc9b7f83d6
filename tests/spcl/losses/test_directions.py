import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spcl.losses import directions
from spcl.losses.contrast import pixel_contrast
from spcl.losses.directions import lengths, products
from spcl.losses.gaussian import gaussian_contrast
from spcl.memory.moments import class_sums as moment_sums
from spcl.memory.prototypes import class_sums

LAYOUTS = [torch.contiguous_format, torch.channels_last]
CLASSES = 3


def example(layout=torch.contiguous_format, dtype=torch.float64, size=(2, 5, 3, 4)):
    """Features with gradient, keys and weights of 3 classes."""
    torch.manual_seed(0)
    features = torch.randn(size, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    keys, weights = torch.randn(2, CLASSES, size[1], dtype=dtype)
    return features, keys, weights.abs()


def formula(features, keys, weights):
    """The definition, with everything built, for autograd to differentiate."""
    flat = features.flatten(2)
    unit = flat / flat.norm(dim=1, keepdim=True).clamp(min=directions.EPSILON)
    return keys @ unit, weights @ unit.square()


def with_gradient(features, *values):
    """The values, and the gradient of a sum of them with random signs and sizes."""
    generator = torch.Generator().manual_seed(1)
    factors = [torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in values]
    total = sum((f * v).sum() for f, v in zip(factors, values, strict=True))
    return [*values, torch.autograd.grad(total, features)[0]]


@pytest.fixture(params=[1, 7, 40, 2**19])
def chunk(request, monkeypatch):
    """Elements taken together: of the example's 120 one, some, uneven parts, all."""
    monkeypatch.setitem(directions.CHUNK, "cpu", request.param)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_cover_all_once_in_the_order_of_memory(layout, monkeypatch):
    monkeypatch.setitem(directions.CHUNK, "cpu", 40)
    flat = example(layout, size=(1, 5, 3, 4))[0].detach().flatten(2)
    times = torch.zeros_like(flat)
    for channels, pixels in directions.chunks(flat):
        times[:, channels, pixels] += 1
        piece = flat[:, channels, pixels]
        rows = piece if layout == torch.contiguous_format else piece.mT
        assert 20 < piece.numel() <= 40 or pixels.stop == 16 or channels.stop == 6
        assert rows.is_contiguous()
    assert torch.equal(times, torch.ones_like(times))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients_are_those_of_the_formula(layout, chunk):
    features, keys, weights = example(layout)
    found = with_gradient(features, *products(features, keys, weights))
    expected = with_gradient(features, *formula(features, keys, weights))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)
    alone = with_gradient(features, *products(features, keys))
    expected = with_gradient(features, formula(features, keys, weights)[0])
    for one, other in zip(alone, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)
    assert torch.allclose(lengths(features.flatten(2)), features.flatten(2).norm(dim=1)[:, None])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_is_that_of_the_values(layout, chunk):
    features, keys, weights = example(layout)
    assert torch.autograd.gradcheck(lambda f: products(f, keys, weights), features)
    assert torch.autograd.gradcheck(lambda f: products(f, keys), features)


@pytest.mark.parametrize("length", [0.0, 1e-14, 1e-11])
def test_a_feature_that_is_too_short_is_divided_by_a_constant(length):
    features, keys, weights = example()
    with torch.no_grad():
        features[0, :, 1, 2] = length * F.normalize(features[0, :, 1, 2], dim=0)
    found = with_gradient(features, *products(features, keys, weights))
    expected = with_gradient(features, *formula(features, keys, weights))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-9)
    along = (found[2] * features)[0, :, 1, 2].sum()  # what would make it longer
    assert bool(along.abs() > 1e-6) == (length == 1e-14)


@pytest.mark.parametrize("change", [lambda f: f.mT, lambda f: f[:, 1:4], lambda f: f[..., ::2]])
def test_any_other_layout_gives_the_same(change):
    features, keys, weights = example(size=(2, 5, 4, 4))
    odd = change(features)
    keys, weights = keys[:, : odd.shape[1]], weights[:, : odd.shape[1]]
    found = with_gradient(features, *products(odd, keys, weights))
    expected = with_gradient(features, *formula(odd, keys, weights))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(layout, dtype):
    features, keys, weights = example(layout, torch.float32, (2, 64, 8, 8))
    half = features.detach().to(dtype).requires_grad_()
    found = with_gradient(half, *products(half, keys, weights))
    exact = half.detach().double().requires_grad_()
    expected = with_gradient(exact, *formula(exact, keys.double(), weights.double()))
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one.double(), other, rtol=0, atol=1e-5)
    assert found[2].dtype == dtype
    close = torch.finfo(dtype).eps * expected[2].abs().max()  # rounded once, at the end
    assert torch.allclose(found[2].double(), expected[2], rtol=0, atol=close.item())


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Built(TorchDispatchMode):
    """How much memory each operation takes for its results, views of what it was given apart."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tensors([args, kwargs])}
        made = [x.untyped_storage() for x in tensors(result)]
        self.bytes += [memory.nbytes() for memory in made if memory.data_ptr() not in given]
        return result

    def large(self, features):
        """How many results are at least half as large as the features."""
        return sum(size >= features.nbytes / 2 for size in self.bytes)


def contrast(features, labels, keys, variance, seen):
    return pixel_contrast(features, labels, keys, seen, 0.1)[0]


def bound(features, labels, keys, variance, seen):
    return gaussian_contrast(features, labels, keys, variance, seen, 0.1)[0]


@pytest.mark.parametrize("loss", [contrast, bound])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_the_features_size_there_is_the_gradient_alone(loss, layout, dtype, monkeypatch):
    features, keys, weights = example(layout, dtype, (2, 256, 8, 8))
    monkeypatch.setitem(directions.CHUNK, "cpu", features.numel() // 8)
    labels, seen = torch.randint(0, CLASSES, (2, 8, 8)), torch.ones(CLASSES, dtype=torch.bool)
    with Built() as forward:
        value = loss(features, labels, keys, weights, seen)
    with Built() as backward:
        value.backward()
    assert forward.large(features) == 0
    assert backward.large(features) == 1 and features.grad.stride() == features.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_class_sums_build_nothing_of_the_features_size(layout, dtype, monkeypatch):
    features = example(layout, dtype, (2, 256, 8, 8))[0].detach()
    monkeypatch.setitem(directions.CHUNK, "cpu", features.numel() // 16)
    labels, shift = torch.randint(0, CLASSES, (2, 8, 8)), torch.zeros(CLASSES, 256).double()
    with Built() as built:
        class_sums(features, labels, CLASSES)
        moment_sums(features, labels, shift, unit=True)
    assert built.bytes and built.large(features) == 0


@pytest.mark.parametrize("loss", [contrast, bound])
def test_nothing_of_the_features_size_is_kept_for_the_backward(loss):
    features, keys, weights = example(size=(2, 256, 8, 8))
    labels, seen = torch.randint(0, CLASSES, (2, 8, 8)), torch.ones(CLASSES, dtype=torch.bool)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(features, labels, keys, weights, seen)
    assert kept.pop(features.untyped_storage().data_ptr())
    assert 0 < sum(kept.values()) < features.nbytes / 2


@pytest.mark.slow
@pytest.mark.parametrize("loss", [contrast, bound])
def test_compiled_it_is_the_same_and_one_graph(loss):
    features, keys, weights = example()
    labels, seen = torch.randint(0, CLASSES, (2, 3, 4)), torch.ones(CLASSES, dtype=torch.bool)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found, expected = (f(features, labels, keys, weights, seen) for f in (compiled, loss))
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(x, features)[0] for x in (found, expected)))
