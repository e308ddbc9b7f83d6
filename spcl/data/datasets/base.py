"""The words in which a dataset says where its files are; its neighbours are one `Dataset` each.

Paths are matched relative to a split's folder, with POSIX slashes.  A pattern's group `key` names
the sample and is what joins an image with its label; `sequence` and `frame` are optional.
"""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LabelFiles:
    """One way in which labels are stored.

    encoding  how ids are packed into the file: a key of `convert.ENCODINGS`
    space     "labelIds" or "trainIds": what an id means
    ids       raw id -> trainId; any other id is an error
    """

    pattern: re.Pattern[str]
    encoding: str
    space: str
    ids: dict[int, int]


@dataclass(frozen=True)
class Split:
    """What one converted split is made of.

    role    source, target or eval
    prefix  begins every sample_id
    labels  folder of the label files; None writes no labels
    """

    role: str
    prefix: str
    images: str
    labels: str | None


@dataclass(frozen=True)
class Dataset:
    """Where the files of a dataset are and what their ids mean.

    image       pattern of the image files
    labels      accepted kinds of label files; the first that a split has is used
    companions  pattern of files that belong to the dataset and aren't needed
    layout      one line for who gave the wrong folder
    hints       check -> what is known about it in the official release
    """

    name: str
    image: re.Pattern[str]
    labels: tuple[LabelFiles, ...]
    splits: dict[str, Split]
    layout: str
    licence: str
    redistribution: str
    companions: re.Pattern[str] | None = None
    hints: dict[str, str] = field(default_factory=dict)
