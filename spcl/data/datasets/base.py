"""The words in which a dataset says where its files are; its neighbours are one `Dataset` each.

Paths are matched relative to a split's folder, with POSIX slashes.  A pattern's group `key` names
the sample and is what joins an image with its label; `sequence` and `frame` are optional.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from spcl.data.labels import CLASS_NAMES, TAIL_CLASSES, TRAIN_ID_COLORS


@dataclass(frozen=True)
class LabelFiles:
    """One way in which labels are stored.

    encodings  how ids may be packed into the file: keys of `encodings.ENCODINGS`
    space      what an id means: "labelIds", "trainIds", ...
    ids        raw id -> trainId; any other id is an error
    folder     where these files are, if not in the split's folder of labels
    """

    pattern: re.Pattern[str]
    encodings: tuple[str, ...]
    space: str
    ids: dict[int, int]
    folder: str | None = None


@dataclass(frozen=True)
class Split:
    """What one converted split is made of.

    role        source, target or eval
    prefix      begins every sample_id
    labels      folder of the label files; None writes no labels
    previous    folder of the frames before: each sample gets the one before its own
    any_size    image and label may differ in size, as long as both show the same picture
    on_request  converted only where it is asked for by name
    image       pattern of the image files, if not the dataset's
    label       pattern of the label files, if not the dataset's
    """

    role: str
    prefix: str
    images: str
    labels: str | None
    previous: str | None = None
    any_size: bool = False
    on_request: bool = False
    image: re.Pattern[str] | None = None
    label: re.Pattern[str] | None = None


def terms_of(dataset: "Dataset", only_its_format: bool) -> dict[str, str]:
    """Licence and redistribution of a dataset's files, or of others that come in its format."""
    if not only_its_format:
        return {"licence": dataset.licence, "redistribution": dataset.redistribution}
    licence = f"unknown: other data than {dataset.name}, in its format"
    return {"licence": licence, "redistribution": "unknown"}


@dataclass(frozen=True)
class Release:
    """What a whole download holds, to compare with, and to plan with before it is there.

    sizes         (width, height) of its images
    class_images  number of label files that show each trainId
    """

    images: int
    sizes: frozenset[tuple[int, int]] = frozenset()
    class_images: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Dataset:
    """Where the files of a dataset are and what their ids mean.

    image       pattern of the image files
    labels      accepted kinds of label files; the first that a split has is used
    roots       folders below the user's root where the tree may begin
    companions  pattern of files that belong to the dataset and aren't needed
    extra       a JSON file of facts about each sample, with {key}
    layout      one line for who gave the wrong folder
    download    where the files are to be had, for who has none
    hints       check -> what is known about it in the official release
    releases    split -> what a whole download holds
    absent      trainIds that no image shows
    any_image   also grey, transparent and 16-bit images, where nothing is lost
    palette     (N, 3) uint8 colours of the raw ids, for labels that are stored as colours

    described_in  the user's YAML file that says all this; empty of a dataset of this folder
    """

    name: str
    image: re.Pattern[str]
    labels: tuple[LabelFiles, ...]
    splits: dict[str, Split]
    layout: str
    licence: str
    redistribution: str
    roots: tuple[str, ...] = ("",)
    companions: re.Pattern[str] | None = None
    extra: str | None = None
    hints: dict[str, str] = field(default_factory=dict)
    releases: dict[str, Release] = field(default_factory=dict)
    absent: tuple[int, ...] = ()
    any_image: bool = False
    download: str = ""
    palette: np.ndarray | None = None
    label_space: str = "cityscapes19"
    class_names: tuple[str, ...] = CLASS_NAMES
    class_colors: np.ndarray = field(default_factory=TRAIN_ID_COLORS.copy)
    tail: tuple[int, ...] = TAIL_CLASSES
    described_in: str = ""
