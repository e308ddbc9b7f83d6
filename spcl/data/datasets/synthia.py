"""SYNTHIA-RAND-CITYSCAPES: 9400 frames of 1280x760.

Labels are 16-bit RGB PNGs: the class in R, the instance in G.  Some repositories keep extracted
class maps of the same ids beside or instead of them.
"""

import re

from spcl.data.datasets.base import Dataset, LabelFiles, Release, Split
from spcl.data.labels import SYNTHIA_ABSENT, SYNTHIA_IDS

SPACE = "SYNTHIA ids"
_NAME = re.compile(r"(?P<key>\d{7})\.png")


def _labels(folder: str, *encodings: str) -> LabelFiles:
    return LabelFiles(_NAME, encodings, SPACE, SYNTHIA_IDS, folder)


# fmt: off
_CLASS_IMAGES = (  # counted by the authors of SDCA over all labels
    9396, 9400, 9397, 3952, 7497, 9394, 6383, 8863, 9167, 0,
    8841, 9398, 9354, 9008, 0, 7204, 0, 7881, 9360,
)
# fmt: on

SYNTHIA = Dataset(
    name="synthia",
    image=_NAME,
    labels=(
        _labels("GT/LABELS", "png16:RGB"),
        _labels("GT/CLASSES", "png16:RGB", "png8:L"),
        _labels("synthia_mapped_to_cityscapes", "png16:RGB", "png8:L"),
    ),
    splits={"train": Split("source", "synthia", "RGB", "GT/LABELS")},
    roots=("", "RAND_CITYSCAPES"),
    layout="ROOT/RGB/0000000.png and ROOT/GT/LABELS/0000000.png, ROOT being RAND_CITYSCAPES",
    download="download SYNTHIA-RAND-CITYSCAPES at https://synthia-dataset.net",
    licence="CC BY-NC-SA 3.0: non-commercial",
    redistribution="sharealike",
    hints={"single_class": "0006372 and 0006382 of the release show four classes or fewer"},
    # Number and size are the set's page's; which classes never occur is by the counts above.
    releases={"train": Release(9400, frozenset({(1280, 760)}), _CLASS_IMAGES)},
    absent=SYNTHIA_ABSENT,
)
