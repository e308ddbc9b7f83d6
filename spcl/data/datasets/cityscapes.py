"""Cityscapes with fine labels: leftImg8bit and gtFine.

The training split is the target domain and is written without labels; `train_labelled` holds the
same images with them, for oracles and few-label studies.  The test labels are dummies, not read.
"""

import re

from spcl.data.datasets.base import Dataset, LabelFiles, Split
from spcl.data.labels import CITYSCAPES_IDS, IGNORE_INDEX, NUM_CLASSES

_KEY = r"(?P<key>(?P<city>[a-z][a-z0-9-]*)/(?P<sequence>(?P=city)_\d{6})_(?P<frame>\d{6}))"
_LABEL_IDS = re.compile(_KEY + r"_gtFine_labelIds\.png")
_LABEL_TRAIN_IDS = re.compile(_KEY + r"_gtFine_labelTrainIds\.png")
_TRAIN_IDS = {train_id: train_id for train_id in (*range(NUM_CLASSES), IGNORE_INDEX)}

CITYSCAPES = Dataset(
    name="cityscapes",
    image=re.compile(_KEY + r"_leftImg8bit\.png"),
    labels=(
        LabelFiles(_LABEL_IDS, encoding="png8:L", space="labelIds", ids=CITYSCAPES_IDS),
        # Not shipped: users derive them.  Accepted where the original files are gone.
        LabelFiles(_LABEL_TRAIN_IDS, encoding="png8:L", space="trainIds", ids=_TRAIN_IDS),
    ),
    splits={
        "train": Split("target", "cityscapes/train", "leftImg8bit/train", None),
        "val": Split("eval", "cityscapes/val", "leftImg8bit/val", "gtFine/val"),
        "test": Split("eval", "cityscapes/test", "leftImg8bit/test", None),
        # The same names: these are the same images.
        "train_labelled": Split("target", "cityscapes/train", "leftImg8bit/train", "gtFine/train"),
    },
    layout=(
        "ROOT/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png and "
        "ROOT/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    ),
    licence="Cityscapes terms of use: non-commercial, after registration",
    redistribution="none",
    companions=re.compile(_KEY + r"_gtFine_(color\.png|instanceIds\.png|polygons\.json)"),
)
