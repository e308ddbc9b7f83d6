"""Where converted splits lie: <data>/<dataset>/<split>, `streets` made there on first use."""

import os
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from spcl import protocols
from spcl.config import Config
from spcl.data.sampling import hash_chosen
from spcl.data.shards import ShardSet
from spcl.errors import ConfigError, DataError, UserError
from spcl.methods import METHODS

REPOSITORY = Path(__file__).resolve().parents[2]
STREETS = "streets/"


def data_root(given: str | None) -> Path:
    """--data, else $SPCL_DATA, else <repository>/data; absolute."""
    return Path(given or os.environ.get("SPCL_DATA") or REPOSITORY / "data").resolve()


def roles(config: Config) -> dict[str, tuple[str, str]]:
    """role -> (dataset, split) of the data that a recipe reads."""
    domains = {domain for name in config.stages for domain in METHODS[name].domains}
    if config.model.target_statistics == "estimated":
        domains.add("target")
    domains.add("evaluation" if config.evaluation.wanted else "target")  # for the panel
    sections = [name for name in ("source", "target", "evaluation") if name in domains]
    return {n: (getattr(config, n).dataset, getattr(config, n).split) for n in sections}


def open_data(config: Config, root: Path) -> dict[str, ShardSet]:
    """The splits of a recipe by role; milliseconds.  DataError says what is missing or unfit."""
    shards = {}
    for role, (dataset, split) in roles(config).items():
        if not dataset:
            raise DataError(f"{role}.dataset is empty; the benchmark's file should name it")
        shards[role] = ShardSet(root / dataset / split)
    if config.source.holdout and "source" in shards:
        shards["source"] = split_source(config, shards["source"])[0]
    for role in ("source", "evaluation"):
        if role in shards and not shards[role].labelled:
            raise DataError(f"{role} data must be labelled, but {shards[role].folder} is not")
    labelled = [split for split in shards.values() if split.labelled]
    for split in labelled[1:]:
        check_same_classes(labelled[0].name, labelled[0].class_names, split)
    if "source" in shards:
        check_absent(shards["source"], config.model.absent)
    if "evaluation" in shards:
        scored = shards["evaluation"]
        check_native(scored)
        protocols.check_classes(config.evaluation.protocol, scored.class_names, scored.name)
    return shards


def split_source(config: Config, source: ShardSet) -> tuple[ShardSet, ShardSet]:
    """The source images to train on, and the held-out ones, chosen by hash."""
    held = hash_chosen(source.sample_ids, config.source.holdout, "holdout")
    if len(held) == len(source):
        raise DataError(
            f"source.holdout must leave images to train on, but {source.name} has {len(source)} "
            f"and {config.source.holdout} are to be held out"
        )
    rest = np.setdiff1d(np.arange(len(source)), held)
    return source.subset(rest), source.subset(held)


def check_same_classes(name: str, class_names: Sequence[str], split: ShardSet) -> None:
    """DataError unless a split has these classes, in this order: those of the set `name`."""
    for number, (one, other) in enumerate(zip_longest(class_names, split.class_names)):
        if one != other:
            raise DataError(
                f"all sets of a run must have the same classes, but class {number} is "
                f"{one or 'absent'} in {name} and {other or 'absent'} in {split.name}"
            )


def check_absent(split: ShardSet, absent: tuple[int, ...]) -> None:
    """ConfigError where a split has labels of classes that the network has no output for."""
    shown = [k for k in absent if k < len(split.class_names) and split.class_pixels[:, k].any()]
    if shown:
        names = ", ".join(split.class_names[k] for k in shown)
        raise ConfigError(
            f"model.absent={list(absent)} leaves no output for {names}, but {split.name} has "
            f"labels of them; take {', '.join(map(str, shown))} out of model.absent"
        )


def check_native(split: ShardSet) -> None:
    """DataError where a split is resized: nothing may be scored at another size than its own."""
    if split.metadata["view"] is not None:
        raise DataError(
            f"evaluation is at the files' own resolution, but {split.folder} is a derived view; "
            f"use the split it was made from"
        )


def prepare_streets(config: Config, root: Path, say: Callable[[str], None]) -> None:
    """Render and convert `streets` where a recipe reads it and it is not there yet."""
    wanted = {name for name, _ in roles(config).values() if name.startswith(STREETS)}
    if not wanted:
        return
    from spcl.data.convert import convert
    from spcl.data.streets.trees import write_trees

    c = config.streets
    raw = root / "streets" / "raw"
    try:
        raw.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"streets is rendered where the data lie, but {raw.parent} cannot be made "
            f"({error.strerror}); give --data DIR"
        ) from None
    if not (raw / "streets.json").is_file():
        say(f"rendering the streets benchmark into {raw}")
    write_trees(
        raw,
        world=c.world,
        source_images=c.source_images,
        target_images=c.target_images,
        val_images=c.val_images,
        height=c.size[0],
        width=c.size[1],
    )
    for dataset, tree, name, split in (
        ("gta5", "gta5", "streets/sim", "train"),
        ("cityscapes", "cityscapes", "streets/real", "train"),
        ("cityscapes", "cityscapes", "streets/real", "val"),
    ):
        out = root / name / split
        if not (out / "manifest.json").is_file():
            say(f"converting {name}/{split}")
            convert(dataset, raw / tree, out, split=split, name=name)
