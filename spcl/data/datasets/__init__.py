"""The datasets that can be converted; a new one is one small file and one line here."""

from spcl.data.datasets.base import Dataset, LabelFiles, Split
from spcl.data.datasets.cityscapes import CITYSCAPES
from spcl.data.datasets.gta5 import GTA5

DATASETS: dict[str, Dataset] = {"gta5": GTA5, "cityscapes": CITYSCAPES}

__all__ = ["DATASETS", "Dataset", "LabelFiles", "Split"]
