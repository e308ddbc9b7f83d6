"""Class ids, names, colours and subsets: the one table of the project.

Facts are those of Cityscapes (cityscapesScripts, helpers/labels.py), of the GTA5 label files,
whose palette differs in `static` only and which store licence plates as id 34, and of
SYNTHIA-RAND-CITYSCAPES, whose ids are its own.
Not here: where files lie (`spcl.data.datasets`).
"""

from typing import NamedTuple

import numpy as np

IGNORE_INDEX = 255


class Label(NamedTuple):
    """One row of the Cityscapes table."""

    id: int
    name: str
    train_id: int
    color: tuple[int, int, int]


# fmt: off
LABELS: tuple[Label, ...] = (
    Label(0, "unlabeled", 255, (0, 0, 0)),
    Label(1, "ego vehicle", 255, (0, 0, 0)),
    Label(2, "rectification border", 255, (0, 0, 0)),
    Label(3, "out of roi", 255, (0, 0, 0)),
    Label(4, "static", 255, (0, 0, 0)),
    Label(5, "dynamic", 255, (111, 74, 0)),
    Label(6, "ground", 255, (81, 0, 81)),
    Label(7, "road", 0, (128, 64, 128)),
    Label(8, "sidewalk", 1, (244, 35, 232)),
    Label(9, "parking", 255, (250, 170, 160)),
    Label(10, "rail track", 255, (230, 150, 140)),
    Label(11, "building", 2, (70, 70, 70)),
    Label(12, "wall", 3, (102, 102, 156)),
    Label(13, "fence", 4, (190, 153, 153)),
    Label(14, "guard rail", 255, (180, 165, 180)),
    Label(15, "bridge", 255, (150, 100, 100)),
    Label(16, "tunnel", 255, (150, 120, 90)),
    Label(17, "pole", 5, (153, 153, 153)),
    Label(18, "polegroup", 255, (153, 153, 153)),
    Label(19, "traffic light", 6, (250, 170, 30)),
    Label(20, "traffic sign", 7, (220, 220, 0)),
    Label(21, "vegetation", 8, (107, 142, 35)),
    Label(22, "terrain", 9, (152, 251, 152)),
    Label(23, "sky", 10, (70, 130, 180)),
    Label(24, "person", 11, (220, 20, 60)),
    Label(25, "rider", 12, (255, 0, 0)),
    Label(26, "car", 13, (0, 0, 142)),
    Label(27, "truck", 14, (0, 0, 70)),
    Label(28, "bus", 15, (0, 60, 100)),
    Label(29, "caravan", 255, (0, 0, 90)),
    Label(30, "trailer", 255, (0, 0, 110)),
    Label(31, "train", 16, (0, 80, 100)),
    Label(32, "motorcycle", 17, (0, 0, 230)),
    Label(33, "bicycle", 18, (119, 11, 32)),
)
# fmt: on

_TRAIN = sorted(
    (label for label in LABELS if label.train_id != IGNORE_INDEX), key=lambda one: one.train_id
)
CLASS_NAMES: tuple[str, ...] = tuple(label.name for label in _TRAIN)
TRAIN_ID_COLORS = np.array([label.color for label in _TRAIN], np.uint8)  # (19, 3)
NUM_CLASSES = len(CLASS_NAMES)

#: The eleven classes whose mean the SPCL paper reports as mIoU-tail.
TAIL_CLASSES: tuple[int, ...] = (3, 4, 6, 7, 9, 12, 14, 15, 16, 17, 18)

# Ids a file may hold, and what each becomes.  GTA5: 34 is the licence plate, ignored; ids 1, 2, 3,
# 9, 10, 18 and 29 are in its table but were never drawn.
CITYSCAPES_IDS: dict[int, int] = {label.id: label.train_id for label in LABELS}
GTA5_IDS: dict[int, int] = {**CITYSCAPES_IDS, 34: IGNORE_INDEX}

TRAIN_IDS: dict[int, int] = {k: k for k in (*range(NUM_CLASSES), IGNORE_INDEX)}

# SYNTHIA-RAND-CITYSCAPES.  Terrain 16, truck 18 and train 20 are in its table and in no image; a
# lane marking (22) is not road.
# fmt: off
_SYNTHIA = (
    "void", "sky", "building", "road", "sidewalk", "fence", "vegetation", "pole", "car",
    "traffic sign", "person", "bicycle", "motorcycle", "parking slot", "road-work",
    "traffic light", "terrain", "rider", "truck", "bus", "train", "wall", "lane marking",
)
# fmt: on
SYNTHIA_IDS: dict[int, int] = {
    raw: CLASS_NAMES.index(name) if name in CLASS_NAMES else IGNORE_INDEX
    for raw, name in enumerate(_SYNTHIA)
}
SYNTHIA_ABSENT: tuple[int, ...] = tuple(
    CLASS_NAMES.index(name) for name in ("terrain", "truck", "train")
)

#: GTA5's 35-entry palette, (35, 3) uint8: Cityscapes' colours but for `static` and the plate.
GTA5_PALETTE = np.array(
    [(20, 20, 20) if label.name == "static" else label.color for label in LABELS] + [(0, 0, 142)],
    np.uint8,
)


def lookup_table(ids: dict[int, int], size: int = 256) -> np.ndarray:
    """(size,) uint8 table from raw id to trainId; ids that are not in the map become 255."""
    table = np.full(size, IGNORE_INDEX, np.uint8)
    for raw, train_id in ids.items():
        table[raw] = train_id
    return table


#: trainId -> labelId, as label files are written and as the Cityscapes server wants them; 255 -> 0.
TRAIN_TO_LABEL_ID = np.zeros(256, np.uint8)
for _label in _TRAIN:
    TRAIN_TO_LABEL_ID[_label.train_id] = _label.id


def colorize(train_ids: np.ndarray, palette: np.ndarray = TRAIN_ID_COLORS) -> np.ndarray:
    """(H, W) trainIds -> (H, W, 3) uint8 picture; ignored pixels are black.

    palette  (K, 3) uint8 colours of the classes
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    return colors[train_ids]
