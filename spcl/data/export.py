"""Predictions as files: for people, for other tools, and for the Cityscapes server."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from spcl.data.labels import CLASS_NAMES, TRAIN_TO_LABEL_ID, colorize
from spcl.errors import DataError
from spcl.store import atomic

_CITYSCAPES_FRAME = re.compile(r"[a-z][a-z0-9-]*_\d{6}_\d{6}")


def write_png(path: Path, pixels: np.ndarray) -> None:
    """(H, W) uint8 as grey or (H, W, 3) uint8 as RGB."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    atomic.write_bytes(path, buffer.getvalue())


def write_prediction(folder: Path, name: str, prediction: np.ndarray, palette: np.ndarray) -> None:
    """color/NAME.png for people and train_ids/NAME.png for tools, of (H, W) uint8 trainIds."""
    write_png(folder / "color" / f"{name}.png", colorize(prediction, palette))
    write_png(folder / "train_ids" / f"{name}.png", prediction)


def write_for_server(folder: Path, sample_id: str, prediction: np.ndarray) -> None:
    """<city>_<seq>_<frame>_labelIds.png: 8-bit labelIds at the image's size, one file per image.

    Source: cityscapesScripts, evalPixelLevelSemanticLabeling: <city>_123456_123456*.png.
    """
    name = sample_id.rpartition("/")[2]
    write_png(folder / f"{name}_labelIds.png", TRAIN_TO_LABEL_ID[prediction])


def check_server_can_read(name: str, sample_ids: Sequence[str], classes: Sequence[str]) -> None:
    """DataError unless a set, `name`, has Cityscapes' classes and each sample a frame's name."""
    if tuple(classes) != CLASS_NAMES:
        raise DataError(
            f"the server scores Cityscapes' {len(CLASS_NAMES)} classes; {name} has others"
        )
    for sample_id in sample_ids:
        if not _CITYSCAPES_FRAME.fullmatch(sample_id.rpartition("/")[2]):
            raise DataError(
                f"the server wants names like berlin_000000_000019, but {name} holds {sample_id}"
            )
