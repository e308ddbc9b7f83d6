"""What a run says while it works: metrics.jsonl, TensorBoard and one live line.  Rank 0 only.

metrics.jsonl is the record; whoever watches (the plain trainer, or Ray's driver) reads it and
prints with `LiveLine`.  After a resume some steps stand twice: the last line of a step counts.
"""

import io
import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from spcl.store import atomic

SCHEMA = 1
EVENTS = "brain.Event:2"  # the format of TensorBoard's files


class Telemetry:
    """Appends records; a no-op when made with folder None (every rank but 0)."""

    def __init__(self, folder: Path | None, live: "LiveLine | None" = None):
        self.folder, self.live = folder, live
        self._board: Board | None = None

    def write(self, stage: str, step: int, steps: int, **values: Any) -> None:
        if self.folder is None:
            return
        record = {"schema": SCHEMA, "time": time.time(), "stage": stage, "step": step}
        record |= {"steps": steps} | values
        atomic.append(self.folder / "metrics.jsonl", json.dumps(record))
        scalars = {f"loss/{name}": value for name, value in values.get("losses", {}).items()}
        scalars |= {f"activity/{k}": value for k, value in values.get("activity", {}).items()}
        for name in ("learning_rate", "images_per_second", "source_miou"):
            if name in values:
                scalars[name] = values[name]
        self.board.scalars({f"{stage}/{name}": value for name, value in scalars.items()}, step)
        if self.live:
            self.live.show(record)

    def panel(self, stage: str, step: int, picture: np.ndarray) -> None:
        """picture (H, W, 3) uint8"""
        if self.folder is not None:
            self.board.image(f"{stage}/panel", picture, step)

    def message(self, text: str) -> None:
        """A line for people; stays in the record as {"message": text}."""
        if self.folder is None:
            return
        record = {"schema": SCHEMA, "time": time.time(), "message": text}
        atomic.append(self.folder / "metrics.jsonl", json.dumps(record))
        if self.live:
            self.live.show({"message": text})

    @property
    def board(self) -> "Board":
        if self._board is None:
            assert self.folder is not None, "only rank 0 has a board"
            self._board = Board(self.folder / "tensorboard")
        return self._board


class Board:
    """An event file of TensorBoard, each record written before the call returns.

    torch's SummaryWriter writes in a thread, whose error nobody hears of in time.
    """

    def __init__(self, folder: Path):
        # slow to import
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        atomic.mkdir(folder)
        self._write(file_version=EVENTS)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Numbers by name, of one step."""
        value = self._summary.Value
        each = [value(tag=tag, simple_value=number) for tag, number in values.items()]
        self._write(step=step, summary=self._summary(value=each))

    def image(self, tag: str, picture: np.ndarray, step: int) -> None:
        """picture (H, W, 3) uint8"""
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        height, width, colors = picture.shape
        image = self._summary.Image(
            height=height,
            width=width,
            colorspace=colors,
            encoded_image_string=buffer.getvalue(),
        )
        each = [self._summary.Value(tag=tag, image=image)]
        self._write(step=step, summary=self._summary(value=each))

    def _write(self, **fields: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = self._event(wall_time=time.time(), **fields)
        with atomic.opened(self.path, "ab") as file:
            RecordWriter(file).write(event.SerializeToString())


class LiveLine:
    """One line that is rewritten on a terminal; a plain line every few seconds elsewhere."""

    PLAIN_EVERY = 10.0  # seconds

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self._last = 0.0
        self._open = False

    def show(self, record: dict[str, Any]) -> None:
        if "message" in record:
            self.end()
            print(record["message"], file=self.stream, flush=True)
            return
        text = format_record(record)
        if self.terminal:
            # A line that wraps could not be rewritten.
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r\x1b[K" + text[:width])
            self.stream.flush()
            self._open = True
        elif time.monotonic() - self._last > self.PLAIN_EVERY or record["step"] == record["steps"]:
            print(text, file=self.stream, flush=True)
            self._last = time.monotonic()

    def end(self) -> None:
        if self._open:
            self.stream.write("\n")
            self._open = False


def format_record(record: dict[str, Any]) -> str:
    """ "spcl 400/1000  ETA 0:31  210 images/s  source mIoU 61.2  segmentation 0.512 ..."

    What a narrow terminal may cut off stands last.
    """
    parts = [f"{record['stage']} {record['step']}/{record['steps']}"]
    if "eta_seconds" in record:
        minutes, seconds = divmod(round(record["eta_seconds"]), 60)
        parts.append(f"ETA {minutes}:{seconds:02d}")
    if "images_per_second" in record:
        parts.append(f"{record['images_per_second']:.0f} images/s")
    if record.get("source_miou") is not None:
        parts.append(f"source mIoU {100 * record['source_miou']:.1f}")
    parts += [f"{name} {value:.3f}" for name, value in record.get("losses", {}).items()]
    return "  ".join(parts)
