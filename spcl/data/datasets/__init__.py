"""The datasets that can be converted; a new one is one small file and one line here."""

from spcl.data.datasets.base import Dataset, LabelFiles, Release, Split, terms_of
from spcl.data.datasets.cityscapes import CITYSCAPES
from spcl.data.datasets.gta5 import GTA5
from spcl.data.datasets.synscapes import SYNSCAPES
from spcl.data.datasets.synthia import SYNTHIA

DATASETS: dict[str, Dataset] = {
    "gta5": GTA5,
    "synthia": SYNTHIA,
    "synscapes": SYNSCAPES,
    "cityscapes": CITYSCAPES,
}

__all__ = ["DATASETS", "Dataset", "LabelFiles", "Release", "Split", "terms_of"]
