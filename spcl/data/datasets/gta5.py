"""GTA5 ("Playing for Data"): 24966 frames of a game, sizes vary.

Labels are palette PNGs whose index is a Cityscapes labelId, 34 the licence plate; read as colours,
plates would become cars.  Papers train on all frames, so there is one split.
"""

import re

from spcl.data.datasets.base import Dataset, LabelFiles, Release, Split
from spcl.data.labels import GTA5_IDS, GTA5_PALETTE

# Some copies are sorted into sub-folders, so only the file's own name counts.
_NAME = re.compile(r"(?:.*/)?(?P<key>\d{5})\.png")

# fmt: off
_CLASS_IMAGES = (  # counted by the authors of SDCA over all labels
    24795, 24288, 24918, 23869, 21022, 24764, 18556, 15078, 24802, 24434,
    24762, 23433, 3260, 22904, 16712, 5079, 1128, 4184, 440,
)
# fmt: on

GTA5 = Dataset(
    name="gta5",
    image=_NAME,
    labels=(LabelFiles(_NAME, encodings=("png8:P",), space="labelIds", ids=GTA5_IDS),),
    splits={"train": Split("source", "gta5", "images", "labels")},
    layout="ROOT/images/00001.png and ROOT/labels/00001.png",
    download="download images and labels at https://download.visinf.tu-darmstadt.de/data/from_games",
    licence="research and educational use only; the images derive from a commercial game",
    redistribution="none",
    hints={
        "size_mismatch": "the release has 62 such pairs: 15188, 17705, 20801-20860",
        "blank_image": "the release has 17 such frames, among them 12160, 12195, 19993",
        "single_class": "the release has 4 such labels: 00608, 07401, 13965, 15617",
    },
    # The number of images is the set's page's; sizes are what users found, not a promise.
    releases={
        "train": Release(24966, frozenset({(1914, 1052), (1914, 1046)}), _CLASS_IMAGES),
    },
    palette=GTA5_PALETTE,
)
