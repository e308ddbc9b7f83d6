"""The user's own images and labels, described by a YAML file.

    name: my-sim
    class_names: [road, car, person]       # default: the 19 of Cityscapes
    palette: [[128, 64, 128], [0, 0, 142], [220, 20, 60]]   # for pictures; default: chosen here
    labels:
      encoding: png8:L                     # or png8:P, png8:RGB, png16:L, png16:RGB, color
      ids: {0: ignore, 1: road, 2: car, 7: person}   # or labelIds, trainIds: those of Cityscapes
    splits:
      train: {role: source, images: "rgb/**/*.png", labels: "semantic/**/*_class.png"}

Images and labels are joined by what the wildcards of their globs stand for: * ** ? and [0-9];
{png,jpg} is a choice and joins nothing.  With the encoding
`color` the keys of `ids` are "r,g,b".  A split without `labels` is unlabelled.
"""

import colorsys
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spcl.data.datasets.base import Dataset, LabelFiles, Split
from spcl.data.encodings import COLOR, ENCODINGS
from spcl.data.labels import (
    CITYSCAPES_IDS,
    CLASS_NAMES,
    IGNORE_INDEX,
    TAIL_CLASSES,
    TRAIN_ID_COLORS,
    TRAIN_IDS,
)
from spcl.errors import ConfigError
from spcl.settings import build, choose, digest, read_yaml, setting

IGNORE = "ignore"
NAMED_IDS = {"labelIds": CITYSCAPES_IDS, "trainIds": TRAIN_IDS}
ROLES = ("source", "target", "eval")
MAX_CLASSES = 255  # trainIds are 8 bits, 255 is ignored


@dataclass(frozen=True, kw_only=True)
class Labels:
    encoding: str = setting("png8:L", "ours", choices=tuple(ENCODINGS))
    ids: object = setting("labelIds", "ours: the ids of Cityscapes")


@dataclass(frozen=True, kw_only=True)
class Files:
    """One split: globs relative to the root."""

    role: str = setting("", "the user", choices=ROLES)
    images: str = setting("", "the user")
    labels: str | None = setting(None, "ours: unlabelled")


@dataclass(frozen=True, kw_only=True)
class Description:
    name: str = setting("", "the user")
    licence: str = setting("unknown", "ours")
    class_names: tuple[str, ...] = setting(CLASS_NAMES, "Cityscapes")
    palette: object = setting(None, "ours: colours of the classes in pictures")
    labels: Labels = setting(Labels(), "ours")
    splits: object = setting(None, "the user")


def read_description(path: Path) -> Dataset:
    """The dataset that a YAML file describes; ConfigError names the file and what is wrong."""
    values = read_yaml(path)
    try:
        return replace(_dataset(build(Description, values)), described_in=str(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _dataset(given: Description) -> Dataset:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", given.name):
        raise ConfigError(f"name must be of a-z, 0-9, _ and -, got {given.name!r}")
    names = given.class_names
    if not 2 <= len(set(names)) == len(names) <= MAX_CLASSES:
        raise ConfigError(f"class_names must be 2 to {MAX_CLASSES} different names, got {names}")
    splits = {}
    for name, files in _mapping(given.splits, "splits").items():
        if not re.fullmatch(r"\w+", str(name)):
            raise ConfigError(f"the name of a split must be a word, got {name!r}")
        files = build(Files, _mapping(files, f"splits.{name}"), f"splits.{name}.")
        splits[name] = _split(f"{given.name}/{name}", files)
    ids: dict[int, int] = {}
    colors = None
    if any(split.labels is not None for split in splits.values()):
        ids, colors = _ids(given.labels, names)
    anything = re.compile(r"(?P<key>.*)")  # every split has patterns of its own
    is_cityscapes = names == CLASS_NAMES
    return Dataset(
        name=given.name,
        image=anything,
        labels=(LabelFiles(anything, (given.labels.encoding,), f"{given.name} ids", ids),),
        splits=splits,
        layout="described by the globs in its file",
        licence=given.licence,
        redistribution="unknown",
        any_image=True,
        palette=colors,
        label_space="cityscapes19" if is_cityscapes else f"custom-{digest(names)[:8]}",
        class_names=names,
        class_colors=_class_colors(given.palette, names),
        tail=TAIL_CLASSES if is_cityscapes else (),
    )


def _mapping(value: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{what} must hold key: value pairs, got {value!r}")
    return value


def _ids(labels: Labels, names: tuple[str, ...]) -> tuple[dict[int, int], np.ndarray | None]:
    """Raw id -> trainId; for labels stored as colours also the colour of each raw id."""
    if isinstance(labels.ids, str):
        if names != CLASS_NAMES:
            raise ConfigError(f"labels.ids: {labels.ids} needs the class_names of Cityscapes")
        return NAMED_IDS[choose(labels.ids, NAMED_IDS, "labels.ids")], None
    meaning = {}
    for raw, name in _mapping(labels.ids, "labels.ids").items():
        choose(name, (*names, IGNORE), f"labels.ids: class of {raw!r}:")
        meaning[raw] = IGNORE_INDEX if name == IGNORE else names.index(name)
    if labels.encoding == COLOR:
        colors = np.array([_color(raw) for raw in meaning], np.uint8)
        return dict(enumerate(meaning.values())), colors
    top = ENCODINGS[labels.encoding].top
    wrong = [raw for raw in meaning if type(raw) is not int or not 0 <= raw <= top]
    if wrong:
        raise ConfigError(f"labels.ids of {labels.encoding} must be 0 to {top}, got {wrong[0]!r}")
    return meaning, None


def _color(value: Any) -> tuple[int, int, int]:
    parts = str(value).strip("()[]").split(",")
    try:
        color = tuple(int(part) for part in parts)
        np.array(color, np.uint8)
    except (ValueError, OverflowError):
        color = ()
    if len(color) != 3:
        raise ConfigError(f'labels.ids of encoding color must be like "128,64,128", got {value!r}')
    return color


def _class_colors(palette: Any, names: tuple[str, ...]) -> np.ndarray:
    """(K, 3) uint8: as given, else those of Cityscapes, else colours round a wheel."""
    if palette is None:
        known = dict(zip(CLASS_NAMES, TRAIN_ID_COLORS.tolist(), strict=True))
        wheel = [colorsys.hsv_to_rgb(k / len(names), 0.8, 0.9) for k in range(len(names))]
        palette = [
            known.get(name, [round(255 * part) for part in color])
            for name, color in zip(names, wheel, strict=True)
        ]
    try:
        colors: np.ndarray = np.array(palette, np.uint8)
    except (ValueError, TypeError, OverflowError):
        colors = np.empty(0)
    if colors.shape != (len(names), 3):
        raise ConfigError(f"palette must be one [r, g, b] of 0 to 255 a class ({len(names)})")
    return colors


def _split(prefix: str, files: Files) -> Split:
    if not files.role or not files.images:
        raise ConfigError(f"split {prefix} needs role ({', '.join(ROLES)}) and images (a glob)")
    if files.role == "eval" and not files.labels:
        raise ConfigError(f"split {prefix} has the role eval, so it needs labels (a glob)")
    folder, image = _glob(files.images)
    labels, label = _glob(files.labels) if files.labels else (None, None)
    if label and label.groups != image.groups:
        raise ConfigError(
            f"split {prefix}: images and labels are joined by what their wildcards stand for, so "
            f"both need as many; got {files.images} and {files.labels}"
        )
    return Split(files.role, prefix, folder, labels, image=image, label=label)


_CHOICE = r"\[[!^]?[^\]/]+\]"  # [0-9], [!a]: one character, as the shell reads it
_WILDCARDS = re.compile(rf"\*\*/|\*|\?|\{{[^{{}}]*\}}|{_CHOICE}|[^*?{{\[]+|\{{|\[")
_WILDCARD = re.compile(rf"[*?{{]|{_CHOICE}")


def _glob(glob: str) -> tuple[str, re.Pattern[str]]:
    """The folder before the first wildcard, and a pattern of what follows, a group a wildcard."""
    glob = unicodedata.normalize("NFC", glob.strip())
    if glob.startswith("/") or ".." in glob.split("/"):
        raise ConfigError(f"globs are relative to the root and stay inside it, got {glob}")
    parts = glob.split("/")
    fixed = next((n for n, part in enumerate(parts) if _WILDCARD.search(part)), len(parts))
    if fixed == len(parts):
        raise ConfigError(f"a glob needs a wildcard, such as images/*.png; got {glob}")
    pattern = ""
    for token in _WILDCARDS.findall("/".join(parts[fixed:])):
        if token == "**/":
            pattern += r"(?:(.*)/)?"
        elif token == "*":
            pattern += r"([^/]*)"
        elif token == "?":
            pattern += r"([^/])"
        elif re.fullmatch(_CHOICE, token):
            pattern += f"({_character(token, glob)})"
        elif token.startswith("{") and token.endswith("}"):
            if ".." in token:
                raise ConfigError(f"{token} in a glob is no range here; use [0-9], got {glob}")
            pattern += f"(?:{'|'.join(map(re.escape, token[1:-1].split(',')))})"
        else:
            pattern += re.escape(token)
    return "/".join(parts[:fixed]), re.compile(pattern)


def _character(token: str, glob: str) -> str:
    """The pattern of one character out of [0-9], or out of none of [!0-9]."""
    inner = token[1:-1]
    none_of = "^/" if inner[0] in "!^" else ""
    inner = re.sub(r"[\\\[^]", r"\\\g<0>", inner[1:] if none_of else inner)
    try:
        return re.compile(f"[{none_of}{inner}]").pattern
    except re.error as error:
        raise ConfigError(f"{token} in the glob {glob} is no set of characters ({error})") from None
