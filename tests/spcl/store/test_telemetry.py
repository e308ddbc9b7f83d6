import io
import json

import numpy as np
import pytest
from PIL import Image
from processes import largest_file

from spcl.errors import StorageError
from spcl.store import atomic
from spcl.store.run_folder import RunFolder
from spcl.store.telemetry import LiveLine, Telemetry

RECORD = {
    "stage": "adversarial",
    "step": 3,
    "steps": 20,
    "losses": {"segmentation": 1.234, "adversarial": 0.7, "discriminator_source": 0.6},
    "source_miou": 0.2,
    "images_per_second": 30.0,
    "eta_seconds": 61.0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_never_wraps_and_keeps_what_matters(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()
    live = LiveLine(terminal)
    live.show(RECORD)
    live.show({"message": "spcl: started"})
    line, message, _ = terminal.getvalue().split("\n")
    assert line.startswith("\r\x1b[Kadversarial 3/20  ETA 1:01  30 images/s  source mIoU 20.0")
    assert len(line.removeprefix("\r\x1b[K")) < 60
    assert message == "spcl: started"


def test_elsewhere_plain_lines_come_now_and_then_and_at_a_stage_s_end():
    stream = io.StringIO()
    live = LiveLine(stream)
    for step in range(1, 21):
        live.show(RECORD | {"step": step})
    shown = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert shown == ["1/20", "20/20"]


def test_tensorboard_reads_what_was_written(tmp_path):
    """By TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    telemetry = Telemetry(tmp_path)
    for step in (1, 2):
        telemetry.write("spcl", step, 2, losses={"contrast": 0.5 / step}, learning_rate=0.25)
    picture = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    telemetry.panel("spcl", 2, picture)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == ["spcl/learning_rate", "spcl/loss/contrast"]
    found = [(event.step, event.value) for event in read.Scalars("spcl/loss/contrast")]
    assert found == [(1, 0.5), (2, 0.25)]
    (image,) = read.Images("spcl/panel")
    with Image.open(io.BytesIO(image.encoded_image_string)) as stored:
        assert np.array_equal(np.asarray(stored), picture)
    assert (image.height, image.width, image.step) == (8, 16, 2)


def test_a_line_cut_short_spoils_no_other(tmp_path):
    """Neither the one a killed writer has left nor one that found no room."""
    run = RunFolder(tmp_path)
    path = tmp_path / "metrics.jsonl"
    first = {"stage": "a", "step": 1}
    atomic.append(path, json.dumps(first))
    with open(path, "a") as file:
        file.write('{"stage": "a", "st')
    second = {"stage": "a", "step": 2}
    atomic.append(path, json.dumps(second))
    assert list(run.metrics()) == [first, second]
    before = path.read_bytes()
    with pytest.raises(StorageError), largest_file(len(before) + 5):
        atomic.append(path, json.dumps({"stage": "a", "step": 3}))
    assert path.read_bytes() == before
