"""Each validator's formula against closed forms and slow, obvious versions."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spcl.inference.validators.consistency import agreement, disturbed
from spcl.inference.validators.density import density_pixels, soft_neighborhood_density
from spcl.inference.validators.ensemble import ensemble_agreement
from spcl.inference.validators.infomax import class_prior, infomax, infomax_statistics
from spcl.inference.validators.nuclear import class_grams, nuclear_norm
from spcl.inference.validators.temperature import HIGHEST, LOWEST, fit_temperature, fitting_pixels

CLASSES = 5


def random_probabilities(pixels, images=1, seed=0, sharpness=2.0):
    """(B, K, P), of which some classes are rare."""
    rng = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn((images, CLASSES, pixels), generator=rng)
    return (logits + torch.tensor([1.0, 0.5, 0.0, -0.5, -2.0])[:, None]).softmax(1)


def infomax_of(probabilities, prior):
    sums = infomax_statistics(probabilities.log(), probabilities.argmax(1))
    sums = {name: values.sum(0).numpy() for name, values in sums.items()}
    return infomax(sums["entropy"], sums["probability"], sums["pixels"], np.asarray(prior))


def one_hot(labels):
    """(1, K, P); its logarithm is as a network's would be, large but finite."""
    return F.one_hot(torch.as_tensor(labels), CLASSES).float().T[None].clamp_min(1e-30)


UNIFORM = np.full(CLASSES, 1 / CLASSES)


def test_infomax_is_zero_for_certain_predictions_as_frequent_as_in_the_source():
    labels = [0, 0, 0, 1, 2, 3, 4, 4]
    assert infomax_of(one_hot(labels), np.bincount(labels) / 8) == pytest.approx(0, abs=1e-6)
    assert infomax_of(one_hot(labels), UNIFORM) < -0.05


def test_infomax_of_uniform_predictions_is_the_entropy_and_the_divergence():
    prior = np.array([0.5, 0.2, 0.1, 0.1, 0.1])
    divergence = sum(0.2 * math.log(0.2 / p) for p in prior)
    got = infomax_of(torch.full((1, CLASSES, 7), 0.2), prior)
    assert got == pytest.approx(-math.log(CLASSES) - divergence, rel=1e-6)


def test_infomax_of_one_class_everywhere_is_what_the_prior_says_of_it():
    assert infomax_of(one_hot([2] * 9), [0.4, 0.3, 0.1, 0.1, 0.1]) == pytest.approx(math.log(0.1))


def test_infomax_equals_a_loop_over_pixels():
    probabilities = random_probabilities(200, images=3)
    prior = np.array([0.5, 0.2, 0.1, 0.15, 0.05])
    entropies, total = [[] for _ in range(CLASSES)], np.zeros(CLASSES)
    for image in probabilities.double().numpy():
        for p in image.T:
            entropies[p.argmax()].append(-sum(x * math.log(x) for x in p))
            total += p
    marginal = total / total.sum()
    conditional = np.mean([np.mean(values) for values in entropies if values])
    expected = -conditional - sum(q * math.log(q / r) for q, r in zip(marginal, prior, strict=True))
    assert infomax_of(probabilities, prior) == pytest.approx(expected, rel=1e-5)


def test_a_frequent_class_does_not_drown_a_doubtful_rare_one():
    sure, doubtful = one_hot([0]), torch.tensor([0.0, 0.6, 0.4, 0.0, 0.0])[None, :, None]
    doubtful = doubtful.clamp_min(1e-30)
    for copies in (1, 1000):
        both = torch.cat([sure.repeat(1, 1, copies), doubtful], 2)
        marginal = both.double().mean((0, 2)).numpy()
        conditional = -0.5 * (0.6 * math.log(0.6) + 0.4 * math.log(0.4))
        assert infomax_of(both, marginal) == pytest.approx(-conditional, rel=1e-5)


def test_prior_is_the_share_of_labelled_pixels_and_nowhere_zero():
    source = SimpleNamespace(class_pixels=np.array([[2**31 - 1, 5, 0], [2**31 - 1, 4, 0]]))
    pixels = np.array([2.0**32 - 1, 10, 1])
    assert class_prior(source) == pytest.approx(pixels / pixels.sum(), rel=1e-12)


def nuclear_of(probabilities):
    """Of (B, K, P), image by image."""
    labels = probabilities.argmax(1)
    grams = sum(class_grams(p, l).numpy() for p, l in zip(probabilities, labels, strict=True))
    return nuclear_norm(grams, labels.flatten().bincount(minlength=CLASSES).numpy())


def test_nuclear_norm_equals_that_of_a_singular_value_decomposition():
    probabilities = random_probabilities(300, images=3)
    rows = probabilities.permute(0, 2, 1).reshape(-1, CLASSES).double().numpy()
    expected = np.linalg.svd(rows, compute_uv=False).sum() / math.sqrt(len(rows) * CLASSES)
    assert nuclear_of(probabilities) == pytest.approx(expected, rel=1e-6)


def test_nuclear_norm_is_one_for_certain_and_balanced_and_lowest_for_uniform_predictions():
    assert nuclear_of(one_hot([0, 1, 2, 3, 4] * 3)) == pytest.approx(1)
    assert nuclear_of(torch.full((1, CLASSES, 8), 1 / CLASSES)) == pytest.approx(1 / CLASSES)
    assert nuclear_of(one_hot([3] * 8)) == pytest.approx(1 / math.sqrt(CLASSES))


def test_a_class_counts_as_a_thousand_pixels_in_the_nuclear_norm():
    many = nuclear_of(torch.cat([one_hot([0] * 70_000), one_hot([1] * 100 + [2] * 50)], 2))
    thousand = nuclear_of(torch.cat([one_hot([0] * 1000), one_hot([1] * 100 + [2] * 50)], 2))
    assert many == pytest.approx(thousand, rel=1e-9)
    assert many == pytest.approx(
        (math.sqrt(1000) + math.sqrt(100) + math.sqrt(50)) / math.sqrt(1150 * CLASSES)
    )


def test_scaling_a_class_down_is_the_mean_of_drawing_from_it():
    probabilities = random_probabilities(20_000, seed=3)
    rows, labels = probabilities[0].T.double().numpy(), probabilities[0].argmax(0).numpy()
    rng, drawn = np.random.default_rng(0), []
    for _ in range(20):
        places = [np.flatnonzero(labels == k) for k in range(CLASSES)]
        chosen = np.concatenate([rng.permutation(p)[:1000] for p in places])
        norm = np.linalg.svd(rows[chosen], compute_uv=False).sum()
        drawn.append(norm / math.sqrt(len(chosen) * CLASSES))
    assert nuclear_of(probabilities) == pytest.approx(np.mean(drawn), rel=1e-3)


def test_copies_of_all_pixels_leave_the_nuclear_norm():
    probabilities = random_probabilities(50)
    assert nuclear_of(probabilities.repeat(3, 1, 2)) == pytest.approx(nuclear_of(probabilities))


def test_density_equals_a_double_loop():
    probabilities = random_probabilities(12, images=2, sharpness=0.5).mT  # (B, n, K)
    for image, got in zip(probabilities, soft_neighborhood_density(probabilities), strict=True):
        entropies = []
        for i, p in enumerate(image):
            similar = [
                math.exp(float(p @ q / (p.norm() * q.norm())) / 0.05)
                for j, q in enumerate(image)
                if j != i
            ]
            weights = [s / sum(similar) for s in similar]
            entropies.append(-sum(w * math.log(w) for w in weights))
        assert float(got) == pytest.approx(np.mean(entropies), rel=1e-5)


def test_density_counts_the_others_in_a_cluster():
    alike = torch.full((1, 30, CLASSES), 1 / CLASSES)
    assert float(soft_neighborhood_density(alike)) == pytest.approx(math.log(29))
    two_clusters = F.one_hot(torch.tensor([[0] * 10 + [1] * 10])).float()
    assert float(soft_neighborhood_density(two_clusters)) == pytest.approx(math.log(9), abs=1e-6)
    strangers = torch.eye(CLASSES)[None]  # nobody is their own neighbour
    assert float(soft_neighborhood_density(strangers)) == pytest.approx(math.log(CLASSES - 1))


def test_density_pixels_depend_on_the_image_alone():
    assert len(set(density_pixels("a", 5000))) == 100
    assert (density_pixels("a", 5000) == density_pixels("a", 5000)).all()
    assert set(density_pixels("a", 5000)) != set(density_pixels("b", 5000))
    assert sorted(density_pixels("a", 7)) == list(range(7))


SIZE = (32, 64)


def above_mean(images):
    """Two classes by whether a pixel is brighter than its image; looks at nothing else."""
    bright = images.mean(1, keepdim=True)
    bright = bright - bright.mean((2, 3), keepdim=True)
    return torch.cat([bright, -bright], 1)


def on_the_left(images):
    """Two classes by the column, whatever the image shows."""
    column = torch.linspace(-1, 1, images.shape[-1]).expand(len(images), 1, *images.shape[-2:])
    return torch.cat([column, -column], 1)


def consistency_of(network):
    image = torch.zeros((3, *SIZE), dtype=torch.uint8)
    image[:, : SIZE[0] // 2] = 100
    images = [image, image // 2]
    plain = torch.stack([i.float() for i in images])
    matrices = agreement(network, network(plain).argmax(1), disturbed(plain, images, ["a", "b"]), 2)
    assert matrices.sum((1, 2)).tolist() == [4 * SIZE[0] * SIZE[1]] * 2  # four views of each
    matrix = matrices.sum(0).double()
    union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
    return float((matrix.diag() / union).mean())


def test_what_follows_the_image_is_consistent():
    assert consistency_of(above_mean) == 1


def test_what_stays_in_place_disagrees_with_its_mirror_image():
    # Of four views one disagrees everywhere: 3 / (4 + 4 - 3) of each class.
    assert consistency_of(on_the_left) == pytest.approx(0.6)


def test_jitter_is_a_function_of_the_image_and_changes_it():
    image = torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(0)).byte()
    plain = image[None].float()
    views = disturbed(plain, [image], ["a"])
    torch.rand(3)  # whatever else is drawn
    again, other = disturbed(plain, [image], ["a"]), disturbed(plain, [image], ["b"])
    assert [tuple(v.shape[-2:]) for v, _ in views] == [SIZE, SIZE, (24, 48), (40, 80)]
    assert all(torch.equal(v, w) for (v, _), (w, _) in zip(views, again, strict=True))
    assert not torch.equal(views[1][0], other[1][0])
    assert torch.equal(views[2][0], other[2][0])


def calibrated(temperature, pixels=40_000, seed=0):
    """Logits, and labels drawn from the softmax of logits / temperature."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((pixels, CLASSES), generator=rng)
    labels = (logits / temperature).softmax(1).multinomial(1, generator=rng)[:, 0]
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(temperature):
    assert fit_temperature(*calibrated(temperature)) == pytest.approx(temperature, rel=0.03)


def test_logits_times_c_have_c_times_the_temperature():
    logits, labels = calibrated(1.0, 2000)
    once = fit_temperature(logits, labels)
    assert fit_temperature(4 * logits, labels) == pytest.approx(4 * once, rel=1e-6)


def test_no_temperature_nearby_is_more_likely():
    logits, labels = calibrated(1.7, 500)
    best = fit_temperature(logits, labels)

    def loss(temperature):
        return float(F.cross_entropy(logits.double() / temperature, labels))

    assert loss(best) < min(loss(0.99 * best), loss(1.01 * best))
    assert all(loss(best) <= loss(t) for t in np.geomspace(LOWEST, HIGHEST, 100))


def test_temperature_of_perfect_and_of_hopeless_predictions_is_a_bound():
    logits = 5 * torch.eye(CLASSES)
    assert fit_temperature(logits, torch.arange(CLASSES)) == LOWEST
    assert fit_temperature(-logits, torch.arange(CLASSES)) == HIGHEST


def test_ignored_pixels_take_no_part_in_the_temperature():
    label = torch.tensor([255, 3, 255, 1, 2, 255], dtype=torch.uint8)
    rng = np.random.default_rng(0)
    assert sorted(fitting_pixels(label, 10, 255, rng).tolist()) == [1, 3, 4]
    assert len(fitting_pixels(label, 2, 255, rng)) == 2


def test_agreement_with_the_ensemble_equals_counting():
    images = [random_probabilities(24, images=3, seed=s).unflatten(2, (4, 6)) for s in (1, 2)]
    expected = []
    for model in range(3):
        pairs = []
        for probabilities in images:
            mean = probabilities.mean(0)
            for y in range(4):
                for x in range(6):
                    together, own = mean[:, y, x], probabilities[model, :, y, x]
                    pairs.append((int(together.argmax()), int(own.argmax())))
        ious = []
        for k in range(CLASSES):
            either = sum(k in pair for pair in pairs)
            if either:
                ious.append(sum(pair == (k, k) for pair in pairs) / either)
        expected.append(np.mean(ious))
    assert ensemble_agreement(iter(images)) == pytest.approx(expected)
    assert len({round(value, 6) for value in expected}) == 3


def test_the_odd_one_out_agrees_least_with_the_ensemble():
    one, other = random_probabilities(400, seed=1), random_probabilities(400, seed=9)
    images = [torch.cat([one, one, other]).unflatten(2, (20, 20))]
    agreements = ensemble_agreement(images)
    assert agreements[0] == agreements[1] > agreements[2]
    assert ensemble_agreement([image[:1] for image in images]) == [1.0]
