from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_ranks
from toys import load_image, result_of, segmentor

from spcl import distributed
from spcl.configuration.sections import Evaluation
from spcl.data.kept_labels import keep_labels
from spcl.data.predictions import PredictionSet
from spcl.data.pseudo_label import apply_thresholds, class_thresholds, quantize
from spcl.data.shards import ShardSet
from spcl.data.transforms import decode_label
from spcl.inference import passes, reader
from spcl.inference.predict import batch_confusion, evaluate
from spcl.losses.segmentation import upsample
from spcl.methods.passes import PseudoLabelPass, PseudoLabels
from spcl.methods.spcl import SPCL, PrototypePass
from spcl.scoring import metrics

SIZE = (32, 64)
SETTINGS = Evaluation(size=SIZE)
CPU = torch.device("cpu")
CUT = np.full(19, 4400.5)  # thresholds on both sides of which the toy network is


@pytest.fixture(scope="module")
def splits(mini_data):
    folder = mini_data / "streets"
    names = {"source": "sim/train", "target": "real/train", "evaluation": "real/val"}
    return {role: ShardSet(folder / name) for role, name in names.items()}


@pytest.fixture(scope="module", autouse=True)
def pairs():
    """Images in groups of two, so that every rank has some."""
    usual, reader.BATCH_IMAGES = reader.BATCH_IMAGES, 2
    yield
    reader.BATCH_IMAGES = usual


def prototypes_on_rank(rank, shards):
    network = segmentor()
    look = PrototypePass(network, SPCL.Config(), CPU, Path())
    return result_of(look, network, shards, SIZE)


def statistics_on_rank(rank, shards):
    network = segmentor()
    passes.statistics_pass(network, shards, SIZE, CPU)
    return network.state_dict()


def evaluation_on_rank(rank, shards):
    network = segmentor().eval()
    return evaluate(network.predict, shards, SETTINGS, CPU)


def predictions_on_rank(rank, shards, folder, threads=0):
    network = segmentor()
    look = PseudoLabelPass(network, None, CPU, folder)
    passes.run_pass(look, network, shards, SIZE, CPU, threads=threads)


def labels_on_rank(names, folder):
    """How many labels this rank has made, and all of them as read."""
    distributed.barrier()
    labels = PseudoLabels(names, PredictionSet(folder / "predictions"), CUT)
    made = []
    kept = keep_labels(lambda n: (made.append(n), labels(n))[1], names, folder / "labels")
    return len(made), [kept(n) for n in range(len(names))]


def all_on_rank(rank, splits, folder):
    reader.BATCH_IMAGES = 2
    predictions_on_rank(rank, splits["target"], folder / "predictions")
    return {
        "labels": labels_on_rank(splits["target"].sample_ids, folder),
        "prototypes": prototypes_on_rank(rank, splits["source"]),
        "statistics": statistics_on_rank(rank, splits["target"]),
        "evaluation": evaluation_on_rank(rank, splits["evaluation"]),
    }


@pytest.fixture(scope="module")
def three(splits, tmp_path_factory):
    """Every pass on three ranks, which split no data set evenly: results, and predictions."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "predictions").mkdir()
    results = run_ranks(all_on_rank, 3, splits, folder)
    return results, PredictionSet(folder / "predictions")


def test_prototypes_are_the_plain_mean_of_unit_features(splits):
    got = prototypes_on_rank(0, splits["source"])
    network, rows, classes = segmentor().eval(), [], []
    for index in range(len(splits["source"])):
        features = network(load_image(splits["source"], index, SIZE), "source").features[0]
        label = decode_label(splits["source"].label(index)).numpy()
        for y in range(features.shape[1]):  # the slow way: every second pixel, as the grid halves
            for x in range(features.shape[2]):
                vector = features[:, y, x].detach().double().numpy()
                rows.append(vector / np.linalg.norm(vector))
                classes.append(label[2 * y, 2 * x])
    rows, classes = np.array(rows), np.array(classes)
    for k in range(19):
        assert bool(got["seen"][k]) == bool((classes == k).any())
        if got["seen"][k]:
            want = rows[classes == k].mean(0)
            assert np.allclose(got["mean"][k], want, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "role", "work"),
    [
        ("prototypes", "source", prototypes_on_rank),
        ("statistics", "target", statistics_on_rank),
    ],
)
def test_a_pass_on_three_ranks_gives_what_one_gives(splits, three, name, role, work):
    alone = work(0, splits[role])
    for result in three[0]:
        for key, value in alone.items():
            assert torch.allclose(value.double(), result[name][key].double(), atol=1e-5), key


def test_evaluation_is_exact_on_three_ranks(splits, three):
    ids, matrices = evaluation_on_rank(0, splits["evaluation"])
    for result in three[0]:
        assert result["evaluation"][0] == ids and (result["evaluation"][1] == matrices).all()


def test_evaluation_agrees_with_numpy(splits):
    _, matrices = evaluation_on_rank(0, splits["evaluation"])
    network = segmentor().eval()
    for index, matrix in enumerate(matrices):
        logits = network(load_image(splits["evaluation"], index, SIZE), "target").logits
        truth = decode_label(splits["evaluation"].label(index)).numpy()
        guess = upsample(logits, truth.shape).argmax(1)[0].numpy()
        assert (metrics.confusion_matrix(truth, guess, 19) == matrix).all()


def test_labels_decide_the_resolution_that_is_scored():
    labels = torch.randint(0, 3, (2, 8, 12))
    labels[0, :4] = 255
    counted = batch_confusion(torch.randn(2, 3, 4, 6), labels)
    assert counted.sum((1, 2)).tolist() == [48, 96]


@pytest.fixture(scope="module")
def stored(splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictions")
    predictions_on_rank(0, splits["target"], folder)
    return PredictionSet(folder)


def test_a_stored_prediction_is_the_networks(splits, stored):
    network = segmentor().eval()
    for index, sample_id in enumerate(splits["target"].sample_ids):
        label, confidence = stored[sample_id]
        logits = network(load_image(splits["target"], index, SIZE), "target").logits
        best, argmax = upsample(logits, SIZE).softmax(1).max(1)
        assert (argmax[0].numpy() == label).all()
        # One level, where rounding tips it.
        assert abs(quantize(best[0].detach().numpy()).astype(int) - confidence).max() <= 1


def test_threads_that_read_ahead_and_write_behind_change_no_byte(splits, stored, tmp_path):
    predictions_on_rank(0, splits["target"], tmp_path, threads=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in stored.folder.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (stored.folder / name).read_bytes()
    network = segmentor().eval()
    ids, matrices = evaluate(network.predict, splits["evaluation"], SETTINGS, CPU, threads=2)
    alone = evaluation_on_rank(0, splits["evaluation"])
    assert ids == alone[0] and (matrices == alone[1]).all()


def test_thresholds_of_the_histogram_are_those_of_sorting(splits, stored):
    pairs = [stored[name] for name in splits["target"].sample_ids]
    labels = np.concatenate([label.ravel() for label, _ in pairs])
    levels = np.concatenate([level.ravel() for _, level in pairs])
    got = class_thresholds(stored.histogram(), cap=0.9, quantile=0.3)
    for k in range(19):
        own = levels[labels == k]
        want = min(np.quantile(own, 0.3), np.floor(0.9 * 65535)) if len(own) else 0
        assert got[k] == pytest.approx(want, abs=1e-6)


def test_three_ranks_cut_each_label_once_and_each_reads_all(splits, stored, three):
    names = splits["target"].sample_ids
    made, labels = zip(*(result["labels"] for result in three[0]), strict=True)
    assert sum(made) == len(names) and max(made) - min(made) <= 1
    void = []
    for index, name in enumerate(names):
        want = apply_thresholds(*stored[name], CUT)
        void.append((want == 255).mean())
        assert all(np.array_equal(one[index], want) for one in labels)
    assert 0 < np.mean(void) < 1


def test_three_ranks_store_what_one_stores(splits, stored, three):
    assert (three[1].histogram() == stored.histogram()).all()
    for name in splits["target"].sample_ids:
        for one, other in zip(stored[name], three[1][name], strict=True):
            assert (one == other).all()
