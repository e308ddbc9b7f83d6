"""What a run says while it works: metrics.jsonl, TensorBoard and one live line.  Rank 0 only.

metrics.jsonl is the record; whoever watches (the plain trainer, or Ray's driver) reads it and
prints with `LiveLine`.  After a resume some steps stand twice: the last line of a step counts.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from spcl import lease

SCHEMA = 1


class Telemetry:
    """Appends records; a no-op when made with folder None (every rank but 0)."""

    def __init__(self, folder: Path | None, live: "LiveLine | None" = None):
        self.folder, self.live = folder, live
        self._board = None

    def write(self, stage: str, step: int, steps: int, **values: Any) -> None:
        if self.folder is None:
            return
        record = {"schema": SCHEMA, "time": time.time(), "stage": stage, "step": step}
        record |= {"steps": steps} | values
        self._append(record)
        for name, value in values.get("losses", {}).items():
            self.board.add_scalar(f"{stage}/loss/{name}", value, step)
        for name in ("learning_rate", "images_per_second", "source_miou"):
            if name in values:
                self.board.add_scalar(f"{stage}/{name}", values[name], step)
        if self.live:
            self.live.show(record)

    def panel(self, stage: str, step: int, picture: np.ndarray) -> None:
        """picture (H, W, 3) uint8"""
        if self.folder is not None:
            self.board.add_image(f"{stage}/panel", picture, step, dataformats="HWC")

    def message(self, text: str) -> None:
        """A line for people; stays in the record as {"message": text}."""
        if self.folder is None:
            return
        self._append({"schema": SCHEMA, "time": time.time(), "message": text})
        if self.live:
            self.live.show({"message": text})

    def _append(self, record: dict[str, Any]) -> None:
        lease.check(self.folder)
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    @property
    def board(self) -> Any:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._board = SummaryWriter(str(self.folder / "tensorboard"))
        return self._board

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


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
