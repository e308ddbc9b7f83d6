import copy
import json

import numpy as np
import pytest
import torch
from conftest import MINI
from torch import nn
from torch.nn import functional as F

from spcl.configuration.config import load
from spcl.configuration.sections import Evaluation
from spcl.data.sampling import hash_chosen
from spcl.data.shards import ShardSet
from spcl.data.transforms import decode, decode_label, normalize
from spcl.errors import ConfigError, UserError
from spcl.inference import reader, validation
from spcl.inference.predict import evaluate
from spcl.inference.validation import (
    LABEL_FREE,
    ensemble_predictions,
    few_label,
    miou_interval,
    objective,
    resampled,
    validate,
)
from spcl.inference.validators.ensemble import ensemble_agreement
from spcl.models.normalization import DomainNorm
from spcl.models.segmentor import Segmentor, build_segmentor
from spcl.scoring.metrics import mean_iou

CPU = torch.device("cpu")
CLASSES = 19


class Sealed(ShardSet):
    """A split whose labels nobody may open."""

    def label(self, index: int) -> bytes:
        raise AssertionError(f"label {index} of {self.name} was opened")


class Local(nn.Module):
    """Features of 3 x 3 pixels at half the resolution."""

    feature_dimension = 32

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, self.feature_dimension, 3, 2, 1)

    def forward(self, image):
        return F.relu(self.layer(image))


def local_network(absent=(), seed=0):
    torch.manual_seed(seed)
    head = nn.Conv2d(Local.feature_dimension, CLASSES, 1)
    nn.init.normal_(head.weight, std=0.5)
    return Segmentor(Local(), head, CLASSES, absent)


@pytest.fixture(scope="module")
def config():
    return load("streets", "spcl", None, [*MINI, "evaluation.dataset=none"])


@pytest.fixture(scope="module")
def source(mini_data):
    return ShardSet(mini_data / "streets/sim/train")


@pytest.fixture(scope="module")
def source_val(source):
    return source.subset(np.arange(20, 24))


@pytest.fixture(scope="module")
def target(mini_data):
    """The labelled images, but sealed: an unlabelled split could not tell a look at its labels."""
    return Sealed(mini_data / "streets/real/val")


@pytest.fixture(scope="module")
def trained(source):
    """Some steps of cross-entropy on source images."""
    network = local_network()
    images = torch.stack([normalize(decode(source.image(i))) for i in range(20)])
    labels = torch.stack([decode_label(source.label(i)) for i in range(20)]).long()[:, ::2, ::2]
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(images, "source").logits, labels, ignore_index=255).backward()
        optimizer.step()
    return network


@pytest.fixture(scope="module")
def reference(source_val, target, config):
    return validate(local_network(), source_val, target, config, CPU, bootstrap=30)


def test_validators_are_plain_finite_numbers_and_open_no_target_label(reference):
    assert json.loads(json.dumps(reference, allow_nan=False)) == reference
    assert reference["finite"] and set(LABEL_FREE) == set(reference["sd"])
    assert all(reference["sd"][name] > 0 for name in LABEL_FREE)


def test_a_trained_network_beats_random_weights(trained, source_val, target, config, reference):
    found = validate(trained, source_val, target, config, CPU)
    assert found["source_val"] > 2 * reference["source_val"]
    for name in ("infomax", "nuclear", "consistency"):
        assert found[name] > reference[name] + 3 * reference["sd"][name], name
    # What the source floor is for: pixels of predictions that tell nothing are all neighbours.
    assert found["density"] < reference["density"]
    assert objective(reference, found | {"sd": reference["sd"]}, "density") is None


def test_the_same_network_gets_the_same_bits(trained, source_val, target, config):
    once = validate(trained, source_val, target, config, CPU, bootstrap=5)
    torch.rand(7)
    assert validate(copy.deepcopy(trained), source_val, target, config, CPU, bootstrap=5) == once


def test_batches_do_not_matter(trained, source_val, target, config, monkeypatch):
    together = validate(trained, source_val, target, config, CPU)
    monkeypatch.setattr(reader, "BATCH_PIXELS", 1)
    alone = validate(trained, source_val, target, config, CPU)
    assert alone == pytest.approx(together, rel=1e-5)


def test_source_val_is_what_evaluation_finds_over_the_classes_shown(source_val, target, config):
    network, settings = local_network(), Evaluation(size=config.source.size)
    _, matrices = evaluate(lambda i: network(i, "source").logits, source_val, settings, CPU)
    confusion = matrices.sum(0)
    shown = np.flatnonzero(confusion.sum(1))
    assert set(np.flatnonzero(confusion.sum(0))) - set(shown)  # or the test shows nothing
    found = validate(network, source_val, target, config, CPU)["source_val"]
    assert found == mean_iou(confusion, shown)[0]


def test_source_statistics_that_were_left_behind_do_not_matter(source_val, target, config):
    torch.manual_seed(0)
    network = build_segmentor("tiny", CLASSES, norm="domain")
    stale = copy.deepcopy(network)
    for layer in stale.modules():
        if isinstance(layer, DomainNorm):
            layer.running_mean[0] += 5
    state = {name: value.clone() for name, value in stale.state_dict().items()}
    found = validate(stale, source_val, target, config, CPU)
    assert found == validate(network, source_val, target, config, CPU)
    assert all(torch.equal(value, state[name]) for name, value in stale.state_dict().items())


def test_logits_times_c_change_the_temperature_and_nothing_else(
    trained, source_val, target, config
):
    louder = copy.deepcopy(trained)
    with torch.no_grad():
        louder.head.weight.mul_(3)
        louder.head.bias.mul_(3)
    once = validate(trained, source_val, target, config, CPU)
    got = validate(louder, source_val, target, config, CPU)
    assert got == pytest.approx(once | {"temperature": 3 * once["temperature"]}, rel=1e-3)


def test_only_256_hash_chosen_images_are_read(trained, source_val, target, config, monkeypatch):
    monkeypatch.setattr(validation, "TARGET_IMAGES", 3)
    chosen = target.subset(hash_chosen(target.sample_ids, 3, "validation"))
    whole = validate(trained, source_val, target, config, CPU)
    assert whole == validate(trained, source_val, chosen, config, CPU)
    others = target.subset(np.setdiff1d(np.arange(6), hash_chosen(target.sample_ids, 3, "other")))
    assert whole != validate(trained, source_val, others, config, CPU)


def test_deviation_equals_validating_every_resample(trained, source_val, target, config):
    draws = [np.repeat(np.arange(6), times.astype(int)) for times in resampled(6, 8)]
    found = [validate(trained, source_val, target.subset(d), config, CPU) for d in draws]
    sd = validate(trained, source_val, target, config, CPU, bootstrap=8)["sd"]
    for name in LABEL_FREE:
        assert sd[name] == pytest.approx(np.std([f[name] for f in found], ddof=1), rel=1e-4), name


def test_resamples_are_uniform_draws_with_replacement():
    weights = resampled(10, 4000)
    assert (weights.sum(1) == 10).all()
    assert weights.mean(0) == pytest.approx(np.ones(10), abs=0.1)
    assert weights.var() == pytest.approx(0.9, abs=0.03)  # of a binomial, 10 draws of 1/10


def test_absent_classes_do_not_count(source_val, target, config):
    absent = (9, 14, 16)
    network = local_network(absent)
    found = validate(network, source_val, target, config, CPU)
    image = torch.stack([normalize(decode(target.image(i))) for i in range(6)])
    with torch.no_grad():
        logits = network(image, "target").logits
    logits = F.interpolate(logits, (32, 64), mode="bilinear", align_corners=True)
    labels = logits.argmax(1)
    assert found["classes_predicted"] == len(labels.unique()) / 16
    rows = (logits / found["temperature"]).softmax(1).permute(0, 2, 3, 1).reshape(-1, CLASSES)
    weight = (1000 / labels.flatten().bincount(minlength=CLASSES)).clamp(max=1)[labels.flatten()]
    scaled = (rows * weight.sqrt()[:, None]).double().numpy()
    norm = np.linalg.svd(scaled, compute_uv=False).sum()
    assert found["nuclear"] == pytest.approx(norm / np.sqrt(float(weight.sum()) * 16), rel=1e-5)


def test_a_network_that_is_not_finite_has_no_score(source_val, target, config, reference):
    broken = local_network()
    with torch.no_grad():
        broken.head.bias[3] = torch.nan
    found = validate(broken, source_val, target, config, CPU, bootstrap=3)
    assert found.pop("finite") is False and set(found.values()) == {None}
    for name in ("label_free", "source_val", "density"):
        assert objective(found | {"finite": False}, reference, name) is None


# The objective, on numbers by hand.

WARM = {
    "source_val": 0.5,
    "infomax": -1.0,
    "nuclear": 0.5,
    "consistency": 0.4,
    "density": 3.0,
    "classes_predicted": 1.0,
    "finite": True,
    "sd": {"infomax": 0.1, "nuclear": 0.05, "consistency": 0.02, "density": 0.5},
}
BETTER = WARM | {"infomax": -0.8, "nuclear": 0.55, "consistency": 0.36, "density": 4.5}


def test_label_free_is_the_mean_of_distances_in_standard_deviations():
    each = [objective(BETTER, WARM, name) for name in LABEL_FREE]
    assert each == pytest.approx([2, 1, -2, 3])
    assert objective(BETTER, WARM, "label_free") == pytest.approx(1.0)
    assert objective(WARM, WARM, "label_free") == 0


@pytest.mark.parametrize("name", ["label_free", *LABEL_FREE])
def test_label_free_scores_need_the_source_and_most_classes(name):
    assert objective(BETTER | {"source_val": 0.449}, WARM, name) is None
    assert objective(BETTER | {"source_val": 0.451}, WARM, name) is not None
    assert objective(BETTER | {"classes_predicted": 15 / 19}, WARM, name) is None
    assert objective(BETTER | {"classes_predicted": 0.8}, WARM, name) is not None


def test_objectives_with_labels_are_what_was_measured():
    measured = BETTER | {"source_val": 0.1, "target_oracle": 0.3, "few_label": {"value": 0.25}}
    assert objective(measured, WARM, "source_val") == 0.1
    assert objective(measured, WARM, "target_oracle") == 0.3
    assert objective(measured, WARM, "few_label:8") == objective(measured, WARM, "few_label")
    assert objective(measured, WARM, "few_label") == 0.25
    assert objective(measured | {"target_oracle": float("nan")}, WARM, "target_oracle") is None


def test_a_deviation_of_zero_gives_no_infinity():
    certain = WARM | {"sd": WARM["sd"] | {"density": 0.0}}
    assert objective(WARM, certain, "density") == 0
    assert np.isfinite(objective(BETTER, certain, "label_free"))


def test_an_unknown_objective_and_a_broken_warm_up_are_said():
    with pytest.raises(ConfigError, match="did you mean 'label_free'"):
        objective(BETTER, WARM, "label_fre")
    with pytest.raises(UserError, match="reference network"):
        objective(BETTER, WARM | {"finite": False}, "label_free")


def test_a_reference_that_knows_few_classes_yet_asks_for_no_more():
    young = WARM | {"classes_predicted": 0.5}
    for share, ordinary, relative in ((0.41, False, True), (0.39, False, False)):
        found = BETTER | {"classes_predicted": share}
        assert (objective(found, young, "label_free") is not None) == ordinary
        score = objective(found, young, "label_free", relative_classes=True)
        assert (score is not None) == relative


# Few labels.


def test_few_labels_are_those_of_hash_chosen_images(trained, mini_data, config):
    labelled = ShardSet(mini_data / "streets/real/val")
    found = few_label(trained, labelled, 4, config, CPU)
    chosen = labelled.subset(hash_chosen(labelled.sample_ids, 4, "few_label"))
    settings = Evaluation(size=config.target.size)
    _, matrices = evaluate(trained.predict, chosen, settings, CPU)
    assert found["images"] == 4 and found["value"] == mean_iou(matrices.sum(0))[0]
    assert found["low"] <= found["value"] <= found["high"]
    assert few_label(trained, labelled, 99, config, CPU)["images"] == 6


def test_the_few_label_interval_covers_the_truth():
    """60 samples of 30 images from a population whose mIoU is known: 95 % are meant to cover it."""
    rng = np.random.default_rng(0)
    correct = rng.beta(6, 3, (4000, 1))  # images differ in how hard they are
    diagonal = rng.binomial(500, correct, (4000, 3))
    population = np.zeros((4000, 3, 3), np.int64)
    for k in range(3):
        population[:, k, k] = diagonal[:, k]
        population[:, k, (k + 1) % 3] = 500 - diagonal[:, k]
    truth, _ = mean_iou(population.sum(0))
    intervals = [miou_interval(population[rng.integers(0, 4000, 30)], "all") for _ in range(60)]
    covered = sum(low <= truth <= high for _, low, high in intervals)
    assert 52 <= covered < 60
    assert np.mean([high - low for _, low, high in intervals]) < 0.2


# The final pick.


def test_the_ensemble_sees_the_validation_images_calibrated(trained, target, config):
    networks = [trained, trained, local_network(seed=1)]
    images = list(ensemble_predictions(networks, [1.0, 2.0, 1.0], target, config, CPU))
    assert [tuple(image.shape) for image in images] == [(3, CLASSES, 32, 64)] * 6
    assert all(image.sum(1).allclose(torch.ones(3, 32, 64)) for image in images)
    flat = images[0][0].sqrt() / images[0][0].sqrt().sum(0)  # a temperature of 2
    assert images[0][1].allclose(flat, atol=1e-6)
    agreements = ensemble_agreement(images)
    assert max(agreements[:2]) <= 1 and min(agreements[:2]) > agreements[2]
