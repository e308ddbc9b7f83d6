"""Cityscapes with fine labels: leftImg8bit and gtFine, and the frame before each of the images.

The training split is the target domain and is written without labels; `train_labelled` holds the
same images with them, for oracles and few-label studies.  The test labels are dummies, not read.
"""

import re
from typing import Any

from spcl.data.datasets.base import Dataset, LabelFiles, Release, Split
from spcl.data.labels import CITYSCAPES_IDS, TRAIN_IDS

_KEY = r"(?P<key>(?P<city>[a-z][a-z0-9-]*)/(?P<sequence>(?P=city)_\d{6})_(?P<frame>\d{6}))"
_LABEL_IDS = re.compile(_KEY + r"_gtFine_labelIds\.png")
_LABEL_TRAIN_IDS = re.compile(_KEY + r"_gtFine_labelTrainIds\.png")
_SIZE = frozenset({(2048, 1024)})  # the set's page, as the numbers of images below


def _split(role: str, split: str, labels: bool, **more: Any) -> Split:
    images, ground_truth = f"leftImg8bit/{split}", f"gtFine/{split}" if labels else None
    return Split(role, f"cityscapes/{split}", images, ground_truth, **more)


def _sequence(role: str, split: str, labels: bool) -> Split:
    previous = f"leftImg8bit_sequence/{split}"
    return _split(role, split, labels, previous=previous, on_request=True)


CITYSCAPES = Dataset(
    name="cityscapes",
    image=re.compile(_KEY + r"_leftImg8bit\.png"),
    labels=(
        LabelFiles(_LABEL_IDS, encodings=("png8:L",), space="labelIds", ids=CITYSCAPES_IDS),
        # Not shipped: users derive them.  Accepted where the original files are gone.
        LabelFiles(_LABEL_TRAIN_IDS, encodings=("png8:L",), space="trainIds", ids=TRAIN_IDS),
    ),
    splits={
        "train": _split("target", "train", labels=False),
        "val": _split("eval", "val", labels=True),
        "test": _split("eval", "test", labels=False),
        # The same names: these are the same images.
        "train_labelled": _split("target", "train", labels=True, on_request=True),
        "train_sequence": _sequence("target", "train", labels=False),
        "val_sequence": _sequence("eval", "val", labels=True),
    },
    layout=(
        "ROOT/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png and "
        "ROOT/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    ),
    download=(
        "register and download at https://www.cityscapes-dataset.com leftImg8bit_trainvaltest.zip "
        "and gtFine_trainvaltest.zip (for pairs of frames leftImg8bit_sequence_trainvaltest.zip)"
    ),
    licence="Cityscapes terms of use: non-commercial, after registration",
    redistribution="none",
    companions=re.compile(_KEY + r"_gtFine_(color\.png|instanceIds\.png|polygons\.json)"),
    hints={
        "missing_previous": "the 11 GB leftImg8bit package has no neighbour frames; the 324 GB "
        "sequence package is needed"
    },
    releases={
        name: Release(images, _SIZE)
        for images, names in (
            (2975, ("train", "train_labelled", "train_sequence")),
            (500, ("val", "val_sequence")),
            (1525, ("test",)),
        )
        for name in names
    },
)
