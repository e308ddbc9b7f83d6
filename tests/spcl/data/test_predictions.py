import threading

import numpy as np
import pytest

from spcl.data import predictions
from spcl.data.predictions import PredictionSet, PredictionWriter
from spcl.errors import StorageError
from spcl.store import atomic


def images(count):
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, 19, (6, 8), np.uint8), rng.integers(0, 65536, (6, 8), np.uint16))
        for _ in range(count)
    ]


def test_rows_are_written_in_order_however_long_each_takes(tmp_path, monkeypatch):
    encode = predictions.png
    late = threading.Event()

    def slow_first(array, *strategy):
        if np.array_equal(array, pairs[0][0]):
            late.wait(10)
        return encode(array, *strategy)

    pairs = images(3 + predictions.PENDING)
    monkeypatch.setattr(predictions, "png", slow_first)
    with PredictionWriter(tmp_path, 0) as writer:
        for n, pair in enumerate(pairs[: predictions.PENDING]):
            writer.add(f"sample-{n}", *pair)
        late.set()
        for n, pair in enumerate(pairs[predictions.PENDING :], predictions.PENDING):
            writer.add(f"sample-{n}", *pair)
            assert len(writer._pending) <= predictions.PENDING
    stored = PredictionSet(tmp_path)
    for n, pair in enumerate(pairs):
        for one, other in zip(stored[f"sample-{n}"], pair, strict=True):
            assert one.dtype == other.dtype and np.array_equal(one, other)
    assert list(stored._rows) == [f"sample-{n}" for n in range(len(pairs))]


def test_a_refused_write_is_told_by_who_adds(tmp_path, monkeypatch):
    writer = PredictionWriter(tmp_path, 0)

    def refuse(path):
        raise StorageError("full")

    monkeypatch.setattr(atomic, "guards", [refuse])
    with pytest.raises(StorageError, match="full"):
        for n, pair in enumerate(images(predictions.PENDING + 1)):
            writer.add(f"sample-{n}", *pair)
