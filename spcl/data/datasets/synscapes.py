"""Synscapes: 25000 rendered frames, images at 1440x720 and 2048x1024, class maps at 1440x720 only.

`train` takes the images that fit the class maps; `train_2k` the larger ones, with the same labels.
"""

import re

from spcl.data.datasets.base import Dataset, LabelFiles, Release, Split
from spcl.data.labels import CITYSCAPES_IDS

_NAME = re.compile(r"(?P<key>[1-9]\d*)\.png")  # counted from 1, without zeros in front
_IMAGES = 25000  # the set's page, "Features", as the sizes below

SYNSCAPES = Dataset(
    name="synscapes",
    image=_NAME,
    labels=(LabelFiles(_NAME, encodings=("png8:L",), space="labelIds", ids=CITYSCAPES_IDS),),
    splits={
        "train": Split("source", "synscapes", "img/rgb", "img/class"),
        "train_2k": Split(
            "source", "synscapes/2k", "img/rgb-2k", "img/class", any_size=True, on_request=True
        ),
    },
    roots=("", "Synscapes"),
    layout="ROOT/img/rgb/1.png and ROOT/img/class/1.png",
    download="register and download at https://synscapes.on.liu.se (was 7dlabs.com/synscapes)",
    licence="Synscapes terms: non-commercial research, after registration",
    redistribution="none",
    extra="meta/{key}.json",
    releases={
        "train": Release(_IMAGES, frozenset({(1440, 720)})),
        "train_2k": Release(_IMAGES, frozenset({(2048, 1024)})),
    },
)
