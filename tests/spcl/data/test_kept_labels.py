import pickle

import numpy as np
import pytest
import torch

from spcl.data.kept_labels import FILE, keep_labels
from spcl.data.predictions import PredictionSet, PredictionWriter
from spcl.data.pseudo_label import apply_thresholds
from spcl.errors import StorageError
from spcl.methods.passes import PseudoLabels
from spcl.store import atomic

COUNT, CLASSES = 7, 19
NAMES = [f"sample-{n}" for n in range(COUNT)]
THRESHOLDS = np.linspace(10_000.5, 50_000, CLASSES)


class Counted:
    """Labels, and how often each was asked for."""

    def __init__(self, folder):
        self.labels = PseudoLabels(NAMES, PredictionSet(folder), THRESHOLDS)
        self.asked = []

    def __call__(self, index):
        self.asked.append(index)
        return self.labels(index)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """A folder of predictions, and the labels that thresholds leave of them."""
    folder, rng = tmp_path_factory.mktemp("predictions"), np.random.default_rng(0)
    truth = []
    with PredictionWriter(folder, 0) as writer:
        for n, name in enumerate(NAMES):
            size = (6 + n, 8)
            label = rng.integers(0, CLASSES, size, np.uint8)
            confidence = rng.integers(0, 65536, size, np.uint16)
            writer.add(name, label, confidence)
            truth.append(apply_thresholds(label, confidence, THRESHOLDS))
    return folder, truth


@pytest.mark.parametrize("threads", [0, 2])
def test_what_is_kept_is_what_the_thresholds_leave(predicted, tmp_path, threads):
    folder, truth = predicted
    labels = Counted(folder)
    kept = keep_labels(labels, NAMES, tmp_path / "labels", threads=threads)
    assert sorted(labels.asked) == list(range(COUNT))
    for reader in (kept, pickle.loads(pickle.dumps(kept))):
        for n, want in enumerate(truth):
            assert reader(n).dtype == torch.uint8 and np.array_equal(reader(n), want)
    assert sorted(labels.asked) == list(range(COUNT))


def test_a_share_that_is_there_is_used_and_a_damaged_one_made_again(predicted, tmp_path):
    folder, truth = predicted
    keep_labels(Counted(folder), NAMES, tmp_path)
    again = Counted(folder)
    keep_labels(again, NAMES, tmp_path)
    assert again.asked == []
    (path,) = tmp_path.glob(f"*/{FILE}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    kept = keep_labels(again, NAMES, tmp_path)
    assert again.asked == list(range(COUNT)) and np.array_equal(kept(3), truth[3])


def test_what_is_stopped_midway_leaves_nothing_that_would_be_used(predicted, tmp_path, monkeypatch):
    folder, truth = predicted

    class Stopped(Counted):
        def __call__(self, index):
            if index == 3:
                raise KeyboardInterrupt
            return super().__call__(index)

    with pytest.raises(KeyboardInterrupt):
        keep_labels(Stopped(folder), NAMES, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as full:

        def refuse(path):
            raise StorageError("full")

        full.setattr(atomic, "guards", [refuse])
        with pytest.raises(StorageError, match="full"):
            keep_labels(Counted(folder), NAMES, tmp_path)
    assert np.array_equal(keep_labels(Counted(folder), NAMES, tmp_path)(5), truth[5])
