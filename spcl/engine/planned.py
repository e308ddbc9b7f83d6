"""Splits that are not there yet: what is known of them beforehand, and how they are made.

A dry run plans with these facts; a start that lacks data lists all of it at once.  The facts are
those of the releases in `spcl.data.datasets`; of a user's own set nothing is known.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spcl.configuration.sections import Streets
from spcl.data.datasets import DATASETS
from spcl.data.manifest import MANIFEST
from spcl.data.shards import ShardSet
from spcl.data.views import parse_view
from spcl.errors import DataError
from spcl.settings import choose

NOT_CONVERTED = "not converted yet"
LATER = (
    "checked once they are there: damage, class ids, that all sets have the same classes, labels "
    "of classes without an output, held-out and labelled target images"
)
STREETS = "streets/"
FORMATS = {"streets/sim": "gta5", "streets/real": "cityscapes"}  # as which it is rendered
#: What is rendered on first use, and the setting that says how many images.
RENDERED = {
    ("streets/sim", "train"): "source_images",
    ("streets/real", "train"): "target_images",
    ("streets/real", "val"): "val_images",
}
_VIEW = re.compile(r"(?P<of>.+)-(?P<size>\d+x\d+)-(?P<codec>png|webp|jpeg\d+)")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Stands for a split that is not there yet, wherever no sample is read.

    folder       where it will lie
    dataset      as in the config: "gta5", "gta5-1280x720-jpeg95"
    files        the set whose files it is made of: "gta5" for its views, too
    view         of a view: its size and codec
    rendered     it is made on first use; all else must be converted before
    images       how many; None: unknown, as with all that follows
    sizes        (width, height) of the images
    class_names  in the order of the trainIds
    labelled     whether it will hold labels
    has_previous  whether it will hold the frame before each image
    absent       trainIds that no image shows
    held_out     how many of the images are kept from training
    fingerprint  of data that nobody has seen
    """

    folder: Path
    dataset: str
    split: str
    files: str
    view: tuple[str, str] | None = None
    rendered: bool = False
    images: int | None = None
    sizes: frozenset[tuple[int, int]] = frozenset()
    class_names: Sequence[str] | None = None
    labelled: bool | None = None
    has_previous: bool | None = None
    absent: tuple[int, ...] = ()
    held_out: int = 0
    fingerprint: None = None

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.split}"

    def __str__(self) -> str:
        """In one line: "synscapes/train, 25000 images of 1440x720, not converted yet"."""
        facts = [self.name]
        if self.images is not None:
            sizes = " or ".join(f"{width}x{height}" for width, height in sorted(self.sizes))
            facts.append(f"{self.images} images of {sizes}")
        if self.held_out:
            facts.append(f"{self.held_out} held out")
        if self.absent and self.class_names is not None:
            facts.append(f"none with {' or '.join(self.class_names[k] for k in self.absent)}")
        return ", ".join([*facts, "rendered on first use" if self.rendered else NOT_CONVERTED])


Split = ShardSet | Planned


def is_there(folder: Path) -> bool:
    """Whether a split was converted into a folder; that it is whole is for ShardSet to check."""
    return (folder / MANIFEST).exists()


def find_split(root: Path, dataset: str, split: str, streets: Streets) -> Split:
    """The converted split <root>/<dataset>/<split>, or what is known of it."""
    folder = root / dataset / split
    return ShardSet(folder) if is_there(folder) else plan_split(root, dataset, split, streets)


def plan_split(root: Path, dataset: str, split: str, streets: Streets) -> Planned:
    """What is known of a split before it is converted; ConfigError where it can never be."""
    folder = (root / dataset / split).absolute()
    found = _VIEW.fullmatch(dataset)
    files = found["of"] if found else dataset
    view = (found["size"], found["codec"]) if found else None
    if dataset.startswith(STREETS):
        choose(dataset, FORMATS, "dataset")
    known = DATASETS.get(FORMATS.get(dataset, files))
    if known is None:
        return Planned(folder=folder, dataset=dataset, split=split, files=files, view=view)
    release = known.releases[choose(split, known.splits, f"split of {dataset}")]
    images, sizes, absent = release.images, release.sizes, known.absent
    if view:
        sizes = frozenset({parse_view(view[0])})
    if dataset in FORMATS:
        count = RENDERED.get((dataset, split), RENDERED[dataset, "train"])
        images, sizes, absent = getattr(streets, count), frozenset({streets.size[::-1]}), ()
    return Planned(
        folder=folder,
        dataset=dataset,
        split=split,
        files=files,
        view=view,
        rendered=(dataset, split) in RENDERED,
        images=images,
        sizes=sizes,
        class_names=known.class_names,
        labelled=known.splits[split].labels is not None,
        has_previous=known.splits[split].previous is not None,
        absent=absent,
    )


def count_images(split: Split) -> int | None:
    """None: unknown."""
    return split.images if isinstance(split, Planned) else len(split)


def count_classes(splits: Iterable[Split]) -> int | None:
    """How many classes the splits of a run have, which is the same for all; None: unknown."""
    return next((len(s.class_names) for s in splits if s.class_names is not None), None)


def refuse(missing: Iterable[Planned], root: Path) -> None:
    """DataError that lists every data set of these splits, with how to get it, if there is any."""
    lines = how_to_get(missing, root)
    if len(lines) == 1:
        raise DataError(f"no shards in {root} of {lines[0]}")
    if lines:
        raise DataError("\n  ".join([f"no shards in {root} of {len(lines)} data sets:", *lines]))


def last_lines(missing: Iterable[Planned], root: Path) -> list[str]:
    """The end of a dry run: what must be converted before a start; no line if nothing."""
    lines = how_to_get((split for split in missing if not split.rendered), root)
    if not lines:
        return []
    sets = "1 data set" if len(lines) == 1 else f"{len(lines)} data sets"
    listed = [f"  {line}" for line in lines]
    return [f"no shards in {root} of", *listed, LATER, f"can't start yet: {sets} missing"]


def how_to_get(missing: Iterable[Planned], root: Path) -> list[str]:
    """A line per data set: its missing splits, where to download it, and how to convert it."""
    sets: dict[str, dict[str, Planned]] = {}
    for split in missing:
        sets.setdefault(split.files, {})[split.name] = split
    return [f"{', '.join(named)}: {_way(list(named.values()), root)}" for named in sets.values()]


def _way(splits: list[Planned], root: Path) -> str:
    """How the missing splits of one data set are made."""
    if splits[0].rendered:
        return f"rendered where a run is started; {root} must be the same folder there and here"
    write = f"write them with: {' && '.join(_commands(splits, root))}"
    if splits[0].dataset in FORMATS:
        return f"once a run has rendered streets, {write}"
    known = DATASETS.get(splits[0].files)
    if known is None:
        file = f"{splits[0].files}.yaml"
        return f"{write} ({file} describes a set of your own; known are {', '.join(DATASETS)})"
    return f"{known.download}, then {write}"


def _commands(splits: list[Planned], root: Path) -> list[str]:
    known = DATASETS.get(splits[0].files)
    plain = [s for s in splits if known and not s.view and not known.splits[s.split].on_request]
    if known and len(plain) > 1:  # which a line without --split writes
        others = [split for split in splits if split not in plain]
        line = f"python ray_jobs/ingest.py --dataset {known.name} --root DIR --out {root}"
        return [line, *(_command(split, root) for split in others)]
    return [_command(split, root) for split in splits]


def _command(split: Planned, root: Path) -> str:
    dataset = split.files if split.files in DATASETS else f"{split.files}.yaml"
    raw, more = "DIR", ""
    if split.dataset in FORMATS:
        dataset, more = FORMATS[split.dataset], f" --name {split.dataset}"
        raw = f"{root / STREETS / 'raw' / dataset}"
    if split.view:
        more = " --view {} --codec {}".format(*split.view)
    return (
        f"python ray_jobs/ingest.py --dataset {dataset} --split {split.split} --root {raw} "
        f"--out {root}{more}"
    )
