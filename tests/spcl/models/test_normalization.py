import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import run_ranks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spcl.models import normalization
from spcl.models.normalization import (
    DomainNorm,
    FrozenBatchNorm2d,
    RunningBatchNorm2d,
    fill_unseen_statistics,
    set_domain,
)

CHANNELS = 3


@pytest.fixture(params=["fused", "ours"])
def kernel(request, monkeypatch):
    """On one process torch's kernel does the work; ours, for several, must do the same there."""
    if request.param == "ours":
        monkeypatch.setattr(normalization, "_alone", normalization._together)


def maps(batch=4, dtype=torch.float32):
    """Maps with other means and deviations in each channel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, CHANNELS, 5, 6, dtype=dtype, generator=generator)
    return x * torch.tensor([1.0, 0.1, 7.0])[:, None, None] + torch.arange(3.0)[:, None, None]


def affine(layer):
    """The layer with a weight and bias that matter."""
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.5, -2.0]))
        layer.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return layer


def trained_batch_norm():
    layer = affine(nn.BatchNorm2d(CHANNELS))
    for _ in range(3):
        layer(maps())
    return layer


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def step(layer, x, weights):
    """Output, gradients of x, weight and bias, of an uneven sum of the output."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    (y * weights).sum().backward()
    return y.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()


def uneven(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def test_training_equals_batch_norm(kernel):
    ours, theirs = affine(DomainNorm(CHANNELS)), affine(nn.BatchNorm2d(CHANNELS))
    for scale in (1.0, 3.0):
        x = maps() * scale
        for a, b in zip(step(ours, x, uneven(x)), step(theirs, x, uneven(x)), strict=True):
            assert_close(a, b)
    assert torch.allclose(ours.running_mean[0], theirs.running_mean, atol=1e-6)
    assert torch.allclose(ours.running_var[0], theirs.running_var, rtol=1e-5)


def test_gradient_is_that_of_the_value(kernel):
    layer = affine(DomainNorm(CHANNELS).double())
    x = maps(2, torch.float64)[..., :2, :2].requires_grad_()

    def forward(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(forward, (x, layer.weight, layer.bias))


def test_evaluation_equals_batch_norm_with_its_state():
    theirs, ours = trained_batch_norm(), DomainNorm(CHANNELS)
    ours.load_state_dict(theirs.state_dict())
    for domain in ("source", "target"):
        set_domain(ours, domain)
        assert torch.allclose(ours.eval()(maps()), theirs.eval()(maps()), atol=1e-6)
    assert ours.updates.tolist() == [0, 0]


def test_domains_have_their_own_statistics(kernel):
    layer = DomainNorm(CHANNELS)
    set_domain(layer, "target")
    layer(maps())
    assert layer.updates.tolist() == [0, 1]
    assert layer.running_mean[0].tolist() == [0, 0, 0]
    assert layer.running_mean[1].abs().min() > 1e-3


def test_mean_that_is_large_against_the_deviation_does_not_cancel(kernel):
    x = maps() + 1000
    expected = F.batch_norm(x.double(), None, None, training=True)
    assert torch.allclose(DomainNorm(CHANNELS)(x).double(), expected, atol=1e-2)


def test_momentum_none_is_the_mean_over_batches(kernel):
    layer = DomainNorm(CHANNELS, momentum=None)
    batches = maps().split(1)
    for x in batches:
        layer(x)
    means = torch.stack([x.mean((0, 2, 3)) for x in batches])
    assert torch.allclose(layer.running_mean[0], means.mean(0), atol=1e-6)


def test_forgotten_domain_starts_afresh():
    layer = DomainNorm(CHANNELS)
    layer(maps())
    layer.forget("source")
    assert all(torch.equal(b, DomainNorm(CHANNELS).get_buffer(n)) for n, b in layer.named_buffers())


def test_unseen_domain_is_given_the_others_statistics():
    network = nn.Sequential(DomainNorm(CHANNELS), nn.ReLU())
    set_domain(network, "target")
    network(maps())
    fill_unseen_statistics(network)
    assert torch.equal(network[0].running_mean[0], network[0].running_mean[1])
    assert torch.equal(network[0].running_var[0], network[0].running_var[1])
    assert network[0].updates.tolist() == [0, 1]


def test_domains_that_were_both_seen_stay_apart():
    layer = DomainNorm(CHANNELS)
    for domain, x in (("source", maps()), ("target", maps() + 1)):
        set_domain(layer, domain)
        layer(x)
    before = layer.running_mean.clone()
    fill_unseen_statistics(layer)
    assert torch.equal(layer.running_mean, before)


def test_half_precision_has_float32_statistics(kernel):
    layer, single = DomainNorm(CHANNELS), DomainNorm(CHANNELS)
    y, x = layer(maps().bfloat16()), maps().bfloat16().float()
    assert y.dtype == torch.bfloat16 and layer.running_mean.dtype == torch.float32
    assert torch.allclose(y.float(), single(x), atol=2e-2)
    assert_close(layer.running_var, single.running_var)


def test_unknown_domain_is_refused():
    with pytest.raises(ValueError, match="sim"):
        set_domain(DomainNorm(CHANNELS), "sim")


def test_state_survives_saving():
    layer, other = affine(DomainNorm(CHANNELS)), DomainNorm(CHANNELS)
    layer(maps())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(maps()), layer.eval()(maps()))


def test_frozen_equals_batch_norm_in_evaluation_and_has_no_parameter():
    theirs, frozen = trained_batch_norm().eval(), FrozenBatchNorm2d(CHANNELS)
    frozen.load_state_dict(theirs.state_dict())
    x = maps().requires_grad_()
    expected = torch.autograd.grad(theirs(x).square().sum(), x)[0]
    assert torch.allclose(frozen(x), theirs(x), atol=1e-5)
    found = torch.autograd.grad(frozen(x).square().sum(), x)[0]
    assert torch.allclose(found, expected, atol=1e-4)
    assert list(frozen.parameters()) == []


def test_frozen_is_the_identity_at_first():
    x = maps()
    assert torch.allclose(FrozenBatchNorm2d(CHANNELS)(x), x, rtol=1e-5)


def frozen_map(layer):
    """The layer with a weight and bias that matter and are not trained."""
    return affine(layer).requires_grad_(False)


def source_then_target(layer, x, weights):
    """Outputs for x as source and 3x as target, and the gradient of x, from one graph."""
    x = x.clone().requires_grad_()
    outputs = []
    for domain, scale in (("source", 1.0), ("target", 3.0)):
        set_domain(layer, domain)
        outputs.append(layer(x * scale))
    sum((y * weights).sum() for y in outputs).backward()
    return *(y.detach() for y in outputs), x.grad


def test_running_equals_a_batch_norm_whose_map_is_frozen(kernel):
    """AdaptSegNet's and ASANet's: nn.BatchNorm2d with requires_grad off, one for both domains."""
    ours = frozen_map(RunningBatchNorm2d(CHANNELS))
    theirs = frozen_map(nn.BatchNorm2d(CHANNELS))
    x = maps()
    for _ in range(2):
        found = source_then_target(ours, x, uneven(x))
        expected = source_then_target(theirs, x, uneven(x))
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b)
    assert_close(ours.running_mean, theirs.running_mean)
    assert_close(ours.running_var, theirs.running_var)
    assert (ours.running_var - 1).abs().min() > 0.05  # they did move
    assert_close(ours.eval()(x), theirs.eval()(x))


def test_running_has_the_state_of_a_batch_norm_and_no_parameter():
    theirs, ours = trained_batch_norm().eval(), RunningBatchNorm2d(CHANNELS)
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours.eval()(maps()), theirs(maps()))
    assert list(ours.parameters()) == []
    assert ours.state_dict().keys() == theirs.state_dict().keys() - {"num_batches_tracked"}


# Several ranks: four images on one rank, or split between two.

SPLITS = {
    "even": (slice(0, 2), slice(2, 4)),
    "uneven": (slice(0, 1), slice(1, 4)),
    "all on one": (slice(0, 4), slice(4, 4)),
    "none on the first": (slice(0, 0), slice(0, 4)),
}


def two_steps(mine):
    """Output and gradients of the second of two steps, and the buffers after it, in float64."""
    layer, x = affine(DomainNorm(CHANNELS).double()), maps(dtype=torch.float64)
    weights = uneven(x)
    step(layer, x[mine] * 2, weights[mine])
    results = step(layer, x[mine], weights[mine])
    return *results, *(buffer.clone() for buffer in layer.buffers())


def two_domains(mine):
    layer, x = frozen_map(RunningBatchNorm2d(CHANNELS).double()), maps(dtype=torch.float64)
    results = source_then_target(layer, x[mine], uneven(x)[mine])
    return *results, layer.running_mean, layer.running_var


def far_from_zero(mine):
    """Output, gradient of x and moments in float32 where a mean is 1000 deviations, two steps."""
    x = (torch.randn(4, CHANNELS, 20, 20, generator=torch.Generator().manual_seed(2)) + 1000)[mine]
    layer = DomainNorm(CHANNELS)
    for _ in range(2):  # by the second the running mean is 100: no shift to sum about
        y, d_x, *_ = step(layer, x, x - 1000)
    return y, d_x, *_moments(layer, x)


def _moments(layer, x):
    """Moments over ranks of one more batch."""
    mean, var, _ = normalization._over_ranks(
        *normalization._moments(x, layer.weight.detach()), x.numel() // CHANNELS
    )
    return mean, var


def collectives(mine):
    """The sizes, in bytes, of what a rank sends in the forward and backward of one layer."""
    sizes, layer, x = [], DomainNorm(CHANNELS), maps()[mine].requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_reduce", "all_gather_into_tensor", "broadcast"):
            real = getattr(dist, name)

            def counted(*tensors, real=real):
                sizes.append(tensors[-1].nbytes)
                return real(*tensors)

            patch.setattr(dist, name, counted)
        layer(x).square().sum().backward()
    return sizes


def on_rank(rank):
    half = SPLITS["even"][rank]
    return {
        name: (two_steps(split[rank]), two_domains(split[rank])) for name, split in SPLITS.items()
    } | {"far": far_from_zero(half), "collectives": collectives(half)}


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(on_rank, 2)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("split", SPLITS)
def test_two_ranks_equal_one(ranks, split):
    y, d_x, d_weight, d_bias, *buffers = two_steps(slice(0, 4))
    first, second = (rank[split][0] for rank in ranks)
    assert_same(torch.cat([first[0], second[0]]), y)
    assert_same(torch.cat([first[1], second[1]]), d_x)
    assert_same(first[2] + second[2], d_weight)
    assert_same(first[3] + second[3], d_bias)
    for a, b, c in zip(first[4:], second[4:], buffers, strict=True):
        assert torch.equal(a, b)
        assert_same(a, c)


@pytest.mark.parametrize("split", SPLITS)
def test_two_ranks_equal_one_with_running_statistics(ranks, split):
    *maps_alone, mean, var = two_domains(slice(0, 4))
    first, second = (rank[split][1] for rank in ranks)
    for a, b, c in zip(first, second, maps_alone, strict=False):  # outputs, and x's gradient
        assert_same(torch.cat([a, b]), c)
    for a, b, c in zip(first[3:], second[3:], (mean, var), strict=True):
        assert torch.equal(a, b)
        assert_same(a, c)


def test_a_layer_has_one_small_collective_in_each_direction(ranks):
    float32 = 4  # bytes
    for rank in ranks:  # mean, variance and a count in two parts; two sums
        assert rank["collectives"] == [(2 * CHANNELS + 2) * float32, 2 * CHANNELS * float32]


def test_ranks_do_not_cancel_where_a_mean_is_1000_deviations(ranks):
    x = torch.randn(4, CHANNELS, 20, 20, generator=torch.Generator().manual_seed(2)) + 1000
    truth = x.double()  # of the float32 values themselves
    y, d_x, _, _ = step(DomainNorm(CHANNELS).double(), truth, truth - 1000)
    first, second = (rank["far"] for rank in ranks)
    assert (torch.cat([first[0], second[0]]) - y).abs().max() < 1e-3
    assert (torch.cat([first[1], second[1]]) - d_x).abs().max() < 1e-3
    for mean, var in (first[2:], second[2:]):
        assert (mean - truth.mean((0, 2, 3))).abs().max() < 1e-4
        assert (var / truth.var((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-4


def test_count_beyond_what_float32_holds_is_exact():
    odd = 2**24 + 1
    mean = torch.zeros(CHANNELS)
    assert normalization._over_ranks(mean, mean + 1, odd)[2].item() == odd


# What is kept and what is made, in bytes of the input.


class FullSize(TorchDispatchMode):
    """Counts the results of operations that are new and as large as the input, by type."""

    def __init__(self, size):
        super().__init__()
        self.size, self.made = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.numel() == self.size:
                if tensor.untyped_storage().data_ptr() not in given:
                    self.made.append(tensor.dtype)
        return result


def kept(layer, x):
    """Output, and the sizes of what autograd keeps for the backward pass."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x)
    return y, [t.untyped_storage().data_ptr() for t in saved if t.numel() == x.numel()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_makes_its_output_and_its_gradient_and_keeps_its_input(dtype, monkeypatch):
    monkeypatch.setattr(normalization, "_alone", normalization._together)
    for layer, inputs in ((DomainNorm(CHANNELS), 1), (FrozenBatchNorm2d(CHANNELS), 0)):
        x = maps().to(dtype).requires_grad_()
        with FullSize(x.numel()) as forward:
            y, saved = kept(layer, x)
        assert saved == inputs * [x.untyped_storage().data_ptr()]
        gradient = torch.ones_like(y)
        with FullSize(x.numel()) as backward:
            y.backward(gradient)
        assert forward.made == [dtype] and backward.made == [dtype]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_frozen_in_bfloat16_rounds_once(layout):
    layer = affine(FrozenBatchNorm2d(CHANNELS))
    layer.running_mean.copy_(torch.tensor([5.0, -3.0, 2.0]))
    layer.running_var.copy_(torch.tensor([2.0, 0.3, 9.0]))
    x = maps().bfloat16().to(memory_format=layout).requires_grad_()
    weights = uneven(x).bfloat16().to(memory_format=layout)
    y = layer(x)
    (d_x,) = torch.autograd.grad(y, x, weights)
    truth = x.detach().double().requires_grad_()
    wide = affine(FrozenBatchNorm2d(CHANNELS)).double()
    wide.load_state_dict(layer.state_dict())
    expected = wide(truth)
    (d_truth,) = torch.autograd.grad(expected, truth, weights.double())
    assert y.dtype == d_x.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=layout) and d_x.is_contiguous(memory_format=layout)
    for found, true in ((y, expected), (d_x, d_truth)):
        # Half a last place, and float32's rounding where the two terms cancel.
        assert ((found - true).abs() <= 2**-8 * true.abs() + 1e-5).all()


def test_gradient_of_another_layout_gives_the_same(kernel):
    x = maps().bfloat16().requires_grad_()
    layer, given = affine(DomainNorm(CHANNELS)), uneven(x).bfloat16()
    results = [
        torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], g)
        for g in (given, given.to(memory_format=torch.channels_last))
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)


def test_half_precision_has_the_gradient_of_float32(kernel):
    x = maps().bfloat16()
    weights = uneven(x)
    found = step(affine(DomainNorm(CHANNELS)), x, weights)
    expected = step(affine(DomainNorm(CHANNELS).double()), x.double(), weights.bfloat16().double())
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 2**-6 * b.abs().max()
