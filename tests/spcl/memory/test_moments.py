import pytest
import torch
import torch.nn.functional as F
from processes import run_ranks

from spcl import distributed
from spcl.memory.moments import ClassMoments, MomentsAccumulator, class_sums, update_moments

CLASSES, DIMENSION = 4, 5


def scalars(*values, k=0):
    """One-channel features (1, 1, 1, N) and their labels (1, 1, N), all of class k."""
    features = torch.tensor(values, dtype=torch.float64)[None, None, None]
    return features, torch.full((1, 1, len(values)), k)


def images(dtype=torch.float32):
    """Six images 3x4 with ignored pixels; class 3 never occurs, class 2 in the last only."""
    generator = torch.Generator().manual_seed(0)
    features = 3 * torch.randn(6, DIMENSION, 3, 4, dtype=dtype, generator=generator) + 5
    labels = torch.randint(0, 2, (6, 3, 4), generator=generator)
    labels[:, 0, 0] = 255
    labels[5, 1, :3] = 2
    return features, labels


def plain(features, labels, unit):
    """mean, variance and count of each class, the obvious way."""
    rows = features.double().movedim(1, -1).reshape(-1, DIMENSION)
    rows = F.normalize(rows) if unit else rows
    mean, variance = torch.zeros(2, CLASSES, DIMENSION, dtype=torch.float64)
    count = torch.zeros(CLASSES, dtype=torch.int64)
    for k in range(CLASSES):
        mine = rows[labels.flatten() == k]
        count[k] = len(mine)
        if len(mine):
            mean[k], variance[k] = mine.mean(0), mine.var(0, correction=0)
    return mean, variance, count


def assert_same(found, expected, tolerance=1e-12):
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert torch.allclose(one, other, rtol=0, atol=tolerance)
    assert torch.equal(found[2], expected[2])


def state(moments):
    return moments.mean, moments.variance, moments.count


def followed(*batches, unit=True, momentum=None, sync=True):
    moments = ClassMoments(CLASSES, DIMENSION, unit=unit, momentum=momentum)
    for batch in batches:
        update_moments([moments], [batch[0]], batch[1], sync=sync)
    return state(moments)


def accumulated(*batches, unit=True):
    accumulator = MomentsAccumulator(CLASSES, DIMENSION, unit=unit)
    for batch in batches:
        accumulator.add(*batch)
    accumulator.reduce()
    return accumulator.result()


# One process.


@pytest.mark.parametrize("batches", [[(1, 2, 3), (10, 20)], [(20,), (3, 10), (2, 1)]])
def test_five_numbers_in_closed_form(batches):
    moments = ClassMoments(2, 1, unit=False)
    for values in batches:
        moments.merge(moments.sums(*scalars(*values)))
    assert moments.count.tolist() == [5, 0]
    assert moments.mean[0].item() == pytest.approx(7.2, abs=1e-12)
    assert moments.variance[0].item() == pytest.approx(50.96, abs=1e-12)
    assert moments.seen.tolist() == [True, False]


def test_a_batch_without_a_class_leaves_it():
    moments = ClassMoments(2, 1, unit=False)
    moments.merge(moments.sums(*scalars(1, 2, 3)))
    before = [x.clone() for x in state(moments)]
    moments.merge(moments.sums(*scalars(5, k=1)))
    moments.merge(moments.sums(*scalars(7, 8, k=255)))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(state(moments), before, strict=True))
    assert moments.count.tolist() == [3, 1]


@pytest.mark.parametrize("old", [2**24, 300_000_000])
def test_counts_beyond_float32_are_exact(old):
    """A float32 counter stays at 2**24, and at 3e8 does not notice ten more."""
    accumulator, moments = MomentsAccumulator(1, 1), ClassMoments(1, 1, unit=False)
    accumulator.counts += old
    moments.load(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([old]))
    new = [1] if old == 2**24 else [1] * 10
    accumulator.add(*scalars(*new))
    moments.merge(moments.sums(*scalars(*new)))
    assert accumulator.counts.item() == moments.count.item() == old + len(new)
    assert moments.mean.item() == pytest.approx(len(new) / (old + len(new)), rel=1e-12)


@pytest.mark.parametrize("unit", [True, False])
def test_moments_are_those_of_all_pixels_in_any_order_and_batches(unit):
    features, labels = images()
    expected = plain(features, labels, unit)
    tolerance = 1e-6 if unit else 1e-12  # of a length in float32
    for batches in ([range(6)], [[4, 1], [5], [0, 2, 3]], [[i] for i in (3, 5, 1, 0, 4, 2)]):
        parts = [(features[list(b)], labels[list(b)]) for b in batches]
        assert_same(followed(*parts, unit=unit), expected, tolerance)
        assert_same(accumulated(*parts, unit=unit), expected, tolerance)
    assert expected[2].tolist()[2:] == [3, 0]


def test_variance_survives_a_mean_that_dwarfs_it():
    """Sums of squares about zero would leave no digit of it; about the mean they leave all."""
    moments = ClassMoments(1, 1, unit=False)
    moments.load(torch.tensor([[1e9]]), torch.zeros(1, 1), torch.tensor([1]))
    moments.merge(moments.sums(*scalars(1e9 + 0.25, 1e9 - 0.25)))
    assert moments.variance.item() == pytest.approx(0.125 / 3, rel=1e-9)


def test_momentum_mixes_old_and_new_distribution():
    moments = ClassMoments(2, 1, momentum=0.9, unit=False)
    moments.merge(moments.sums(*scalars(1, 2, 3)))
    assert moments.mean[0].item() == 2 and moments.variance[0].item() == pytest.approx(2 / 3)
    moments.merge(moments.sums(*scalars(10, 20)))
    # Of the mixture: E x = .9 * 2 + .1 * 15, E x**2 = .9 * (4 + 2 / 3) + .1 * (225 + 25).
    assert moments.mean[0].item() == pytest.approx(3.3, abs=1e-12)
    assert moments.variance[0].item() == pytest.approx(29.2 - 3.3**2, abs=1e-12)
    moments.merge(moments.sums(*scalars(4, k=1)))
    assert moments.mean.flatten().tolist() == pytest.approx([3.3, 4.0], abs=1e-12)
    assert moments.count.tolist() == [5, 1]


def test_what_is_loaded_from_a_pass_goes_on_as_if_it_had_been_followed():
    features, labels = images()
    moments = ClassMoments(CLASSES, DIMENSION)
    moments.load(*accumulated((features[:4], labels[:4])))
    update_moments([moments], [features[4:]], labels[4:])
    assert_same(state(moments), plain(features, labels, True), 1e-6)


def test_several_levels_follow_what_each_would_alone(monkeypatch):
    features, labels = images()
    other = features[:, :2].square()
    levels = [ClassMoments(CLASSES, DIMENSION), ClassMoments(CLASSES, 2, unit=False)]
    reduced = []
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: reduced.append(tensor.shape))
    update_moments(levels, [features, other], labels)
    assert reduced == [(CLASSES, 1 + 2 * DIMENSION + 1 + 2 * 2)]  # one collective
    alone = ClassMoments(CLASSES, 2, unit=False)
    alone.merge(alone.sums(other, labels))
    assert_same(state(levels[0]), followed((features, labels)), 0)
    assert_same(state(levels[1]), state(alone), 0)


def test_keys_are_unit_means_and_variances_as_they_are_or_of_unit_rows():
    moments = ClassMoments(3, 2)
    rows = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]])
    variance = torch.tensor([[0.5, 0.1], [0.2, 0.3], [0.0, 0.0]])
    moments.load(rows, variance, torch.tensor([7, 7, 0]))
    mean, plain_ = moments.keys()
    assert mean.flatten().tolist() == pytest.approx([0.6, 0.8, 0.6, 0.8, 0, 0])
    assert torch.equal(plain_, variance.double())
    expected = [0.98058068, 0.19611614, 0.5547002, 0.83205029, 0, 0]
    assert moments.keys(unit_rows=True)[1].flatten().tolist() == pytest.approx(expected, abs=1e-7)


def test_features_are_summed_in_float64_whatever_they_are():
    features, labels = images()
    shift = torch.zeros(CLASSES, DIMENSION, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = class_sums(features, labels, shift, unit=True)
        half = class_sums(features.bfloat16(), labels, shift, unit=True)
    assert inside.dtype == half.dtype == torch.float64
    assert torch.equal(inside, class_sums(features, labels, shift, unit=True))
    assert torch.equal(half, class_sums(features.bfloat16().float(), labels, shift, unit=True))


def test_state_survives_saving_and_stays_wide():
    moments, other = ClassMoments(CLASSES, DIMENSION), ClassMoments(CLASSES, DIMENSION)
    update_moments([moments], [images()[0]], images()[1])
    other.load_state_dict(moments.state_dict())
    assert_same(state(other), state(moments), 0)
    assert [x.dtype for x in state(other)] == [torch.float64, torch.float64, torch.int64]


def test_wrong_shapes_are_refused():
    good = torch.zeros(CLASSES, DIMENSION), torch.zeros(CLASSES, DIMENSION), torch.zeros(CLASSES)
    for place, name in enumerate(("mean", "variance", "count")):
        bad = [*good]
        bad[place] = torch.zeros(3, 2)
        with pytest.raises(ValueError, match=rf"{name} must have shape .*, not \(3, 2\)"):
            ClassMoments(CLASSES, DIMENSION).load(*bad)


# Several ranks.

SPLITS = [[0, 1], [2, 3], [4, 5]], [[5, 0], [], [1, 2, 3, 4]], [[4], [2, 0, 5, 3, 1], []]


def on_rank(rank):
    features, labels = images()
    results = []
    for split in SPLITS:
        mine = features[split[rank]], labels[split[rank]]
        twice = mine[0].flip(1), mine[1]
        results.append(
            {
                "pass": accumulated(mine, twice),
                "cumulative": followed(mine, twice),
                "ema": followed(mine, twice, momentum=0.7),
                "raw": followed(mine, twice, unit=False),
                "local": followed(mine, twice, sync=False),
            }
        )
    return results


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(on_rank, 3)


@pytest.mark.parametrize("kind", ["pass", "cumulative", "ema", "raw"])
def test_ranks_hold_the_moments_of_one_in_any_split(ranks, kind):
    features, labels = images()
    batches = (features, labels), (features.flip(1), labels)
    if kind == "pass":
        expected = accumulated(*batches)
    else:
        options = {"cumulative": {}, "ema": {"momentum": 0.7}, "raw": {"unit": False}}[kind]
        expected = followed(*batches, **options)
    for split in zip(*ranks, strict=True):
        for rank in split:
            assert_same(rank[kind], expected)
            assert_same(rank[kind], split[0][kind], 0)  # equal bits on all ranks


def test_ranks_differ_without_synchronisation(ranks):
    first, second, _ = (rank[0]["local"] for rank in ranks)
    assert (first[0] - second[0]).abs().max() > 1e-2
    features, labels = images()
    mine = features[SPLITS[0][1]], labels[SPLITS[0][1]]
    assert_same(second, followed(mine, (mine[0].flip(1), mine[1])))
