import pytest
import torch
import torch.nn.functional as F
from processes import run_ranks

from spcl.memory.prototypes import PrototypeAccumulator, PrototypeBank, class_sums

CLASSES, DIMENSION = 4, 5


def pixels(*rows, labels):
    """Features (1, D, 1, N) and labels (1, 1, N) of N pixels."""
    features = torch.tensor(rows, dtype=torch.float32).T[None, :, None]
    return features, torch.tensor([[labels]])


def images():
    """Four images 3x4 with ignored pixels; class 3 never occurs, class 2 in the last only."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, DIMENSION, 3, 4, generator=generator)
    labels = torch.randint(0, 2, (4, 3, 4), generator=generator)
    labels[:, 0, 0] = 255
    labels[3, 1, :3] = 2
    return features, labels


def bank(dimension=2, classes=2, **options):
    return PrototypeBank(classes, dimension, **options)


def loaded(*rows, **options):
    """A bank with these means, all seen."""
    result = bank(len(rows[0]), len(rows), **options)
    result.load(torch.tensor(rows), torch.ones(len(rows), dtype=torch.bool))
    return result


def test_sums_equal_a_loop_over_pixels():
    features, labels = images()
    sums, counts = torch.zeros(CLASSES, DIMENSION), torch.zeros(CLASSES, dtype=torch.int64)
    for f, y in zip(features.movedim(1, -1).reshape(-1, DIMENSION), labels.flatten(), strict=True):
        if y != 255:
            sums[y] += F.normalize(f, dim=0)
            counts[y] += 1
    found, number = class_sums(features, labels, CLASSES)
    assert torch.allclose(found, sums, atol=1e-5)
    assert torch.equal(number, counts) and number.dtype == torch.int64


def test_half_precision_features_are_summed_in_float32():
    features, labels = images()
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = class_sums(features, labels, CLASSES)
        half, _ = class_sums(features.bfloat16(), labels, CLASSES)
    assert half.dtype == torch.float32
    assert torch.equal(inside, class_sums(features, labels, CLASSES)[0])
    assert torch.allclose(half, inside, atol=5e-2)


@pytest.mark.parametrize(
    ("momentum", "expected"), [(0.1, (0.64, 0.72)), (1.0, (1.0, 0.0)), (0.0, (0.6, 0.8))]
)
def test_momentum_weighs_the_past(momentum, expected):
    prototypes = loaded((1.0, 0.0), momentum=momentum)
    prototypes.update(*pixels((3, 4), labels=[0]))
    assert prototypes.mean[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_mean_keeps_its_length_and_keys_have_length_one():
    prototypes = loaded((1.0, 0.0))
    prototypes.update(*pixels((3, 4), labels=[0]))
    assert prototypes.mean.norm().item() == pytest.approx(0.96332757, abs=1e-6)
    assert prototypes.keys().norm().item() == pytest.approx(1, abs=1e-6)
    prototypes.normalize_keys = False
    assert torch.equal(prototypes.keys(), prototypes.mean)


def test_absent_class_keeps_its_prototype():
    prototypes = loaded((1.0, 0.0), (0.0, 1.0))
    for _ in range(3):
        prototypes.update(*pixels((3, 4), labels=[0]))
    assert prototypes.mean[1].tolist() == [0, 1]


def test_absent_class_decays_as_in_the_authors_code():
    prototypes = loaded((1.0, 0.0), (0.0, 1.0), absent="decay")
    norms = []
    for _ in range(3):
        prototypes.update(*pixels((3, 4), labels=[0]))
        norms.append(prototypes.mean[1].norm().item())
    assert norms == pytest.approx([0.1, 0.01, 0.001], abs=1e-7)


def test_class_seen_for_the_first_time_becomes_its_batch_mean():
    prototypes = bank(momentum=0.9)
    prototypes.update(*pixels((3, 4), (4, 3), labels=[1, 1]))
    assert prototypes.mean[1].tolist() == pytest.approx([0.7, 0.7])
    assert prototypes.seen.tolist() == [False, True]


def test_batch_without_labels_changes_nothing():
    prototypes = loaded((1.0, 0.0), (0.0, 1.0))
    prototypes.update(*pixels((3, 4), labels=[255]))
    assert torch.equal(prototypes.mean, torch.eye(2))


def test_state_survives_saving():
    prototypes, other = bank(), bank()
    prototypes.update(*pixels((3, 4), labels=[1]))
    other.load_state_dict(prototypes.state_dict())
    assert torch.equal(other.mean, prototypes.mean) and torch.equal(other.seen, prototypes.seen)


def test_wrong_choices_and_shapes_are_refused():
    with pytest.raises(ValueError, match="forget"):
        bank(absent="forget")
    with pytest.raises(ValueError, match=r"\(2, 2\), not \(3, 2\)"):
        bank().load(torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="median"):
        PrototypeAccumulator(2, 2, init="median")


@pytest.mark.parametrize(
    ("init", "expected"), [("per_pixel", (0.25, 0.75)), ("per_image", (0.5, 0.5))]
)
def test_first_mean_over_pixels_or_over_images(init, expected):
    accumulator = PrototypeAccumulator(2, 2, init=init)
    accumulator.add(*pixels((1, 0), labels=[0]))
    accumulator.add(*pixels((0, 1), (0, 2), (0, 3), labels=[0, 0, 0]))
    mean, seen = accumulator.result()
    assert mean[0].tolist() == pytest.approx(expected)
    assert mean.dtype == torch.float32 and mean[1].tolist() == [0, 0]
    assert seen.tolist() == [True, False]


@pytest.mark.parametrize("init", ["per_pixel", "per_image"])
def test_order_and_batches_of_images_do_not_matter(init):
    features, labels = images()
    one, other = (PrototypeAccumulator(CLASSES, DIMENSION, init=init) for _ in range(2))
    one.add(features, labels)
    for i in (2, 0, 3, 1):
        other.add(features[i : i + 1], labels[i : i + 1])
    assert torch.allclose(one.result()[0], other.result()[0], atol=1e-7)
    assert torch.equal(one.counts, other.counts)


def test_counts_do_not_stop_at_2_to_the_24():
    accumulator = PrototypeAccumulator(1, 2)
    accumulator.counts += 2**24
    accumulator.add(*pixels((1, 0), labels=[0]))
    assert accumulator.counts.item() == 2**24 + 1


# Several ranks.

SPLITS = ([0, 1], [2, 3]), ([3], [0, 1, 2]), ([2, 0, 3, 1], [])


def followed(features, labels, **options):
    """Mean and flags after two updates."""
    prototypes = PrototypeBank(CLASSES, DIMENSION, momentum=0.3, **options)
    prototypes.update(features, labels)
    prototypes.update(features.flip(1), labels)
    return prototypes.mean, prototypes.seen


def accumulated(features, labels, init):
    accumulator = PrototypeAccumulator(CLASSES, DIMENSION, init=init)
    accumulator.add(features, labels)
    accumulator.reduce()
    return accumulator.result()


def on_rank(rank):
    features, labels = images()
    results = []
    for split in SPLITS:
        mine = features[split[rank]], labels[split[rank]]
        results.append(
            {
                "bank": followed(*mine),
                "local": followed(*mine, sync=False),
                "per_pixel": accumulated(*mine, "per_pixel"),
                "per_image": accumulated(*mine, "per_image"),
            }
        )
    return results


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(on_rank, 2)


@pytest.mark.parametrize("split", range(len(SPLITS)))
def test_two_ranks_follow_the_prototypes_of_one_in_any_split(ranks, split):
    mean, seen = followed(*images())
    first, second = (rank[split]["bank"] for rank in ranks)
    assert torch.equal(first[0], second[0])
    assert torch.allclose(first[0], mean, atol=1e-6)
    assert torch.equal(first[1], seen) and seen.tolist() == [True, True, True, False]


def test_ranks_differ_without_synchronisation(ranks):
    first, second = (rank[0]["local"][0] for rank in ranks)
    assert (first - second).abs().max() > 1e-2


@pytest.mark.parametrize("init", ["per_pixel", "per_image"])
def test_two_ranks_accumulate_what_one_does(ranks, init):
    features, labels = images()
    mean, seen = accumulated(features, labels, init)
    for rank in ranks:
        for result in rank:
            assert torch.allclose(result[init][0], mean, atol=1e-7)
            assert torch.equal(result[init][1], seen)
