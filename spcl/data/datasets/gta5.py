"""GTA5 ("Playing for Data"): 24966 frames of a game, sizes vary.

Labels are palette PNGs whose index is a Cityscapes labelId, 34 the licence plate; read as colours,
plates would become cars.  Papers train on all frames, so there is one split.
"""

import re

from spcl.data.datasets.base import Dataset, LabelFiles, Split
from spcl.data.labels import GTA5_IDS

# Some copies are sorted into sub-folders, so only the file's own name counts.
_NAME = re.compile(r"(?:.*/)?(?P<key>\d{5})\.png")

GTA5 = Dataset(
    name="gta5",
    image=_NAME,
    labels=(LabelFiles(_NAME, encoding="png8:P", space="labelIds", ids=GTA5_IDS),),
    splits={"train": Split("source", "gta5", "images", "labels")},
    layout="ROOT/images/00001.png and ROOT/labels/00001.png",
    licence="research and educational use only; the images derive from a commercial game",
    redistribution="none",
    hints={"size_mismatch": "the release has 62 such pairs: 15188, 17705, 20801-20860"},
)
