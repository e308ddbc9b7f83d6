"""Where converted splits lie: <data>/<dataset>/<split>, `streets` made there on first use."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from spcl.configuration.config import Config
from spcl.data.loader import stored_flow
from spcl.data.pairs import PairCrops
from spcl.data.reads import domain_of
from spcl.data.sampling import class_pixels, hash_chosen
from spcl.data.shards import ShardSet
from spcl.engine.planned import (
    FORMATS,
    RENDERED,
    STREETS,
    Planned,
    Split,
    count_images,
    find_split,
    is_there,
    plan_split,
    refuse,
)
from spcl.errors import ConfigError, DataError, UserError
from spcl.scoring import protocols

REPOSITORY = Path(__file__).resolve().parents[2]


def data_root(given: str | None) -> Path:
    """--data, else $SPCL_DATA, else <repository>/data; absolute."""
    return Path(given or os.environ.get("SPCL_DATA") or REPOSITORY / "data").resolve()


def roles(config: Config) -> dict[str, tuple[str, str]]:
    """role -> (dataset, split) of the data that a recipe reads."""
    domains = {domain for name in config.stages for domain in config.domains_of(name)}
    if config.model.target_statistics == "estimated":
        domains.add("target")
    domains.add("evaluation" if config.evaluation.wanted else "target")  # for the panel
    sections = [name for name in ("source", "target", "evaluation") if name in domains]
    return {n: (getattr(config, n).dataset, getattr(config, n).split) for n in sections}


def open_data(config: Config, root: Path) -> dict[str, ShardSet]:
    """The splits of a recipe by role; milliseconds.  DataError says what is missing or unfit."""
    refuse(missing_data(config, root), root)
    expected = expect_data(config, root)
    return {role: split for role, split in expected.items() if isinstance(split, ShardSet)}


def missing_data(config: Config, root: Path, more: Iterable[tuple[str, str]] = ()) -> list[Planned]:
    """The splits of a recipe that are not there, and those of `more`, (dataset, split), likewise.

    `streets` is among them until `prepare_streets` has rendered it.
    """
    wanted = dict.fromkeys([*_named(config).values(), *more])
    return [
        plan_split(root, dataset, split, config.streets)
        for dataset, split in wanted
        if not is_there(root / dataset / split)
    ]


def _named(config: Config) -> dict[str, tuple[str, str]]:
    """`roles`; DataError where one names no dataset."""
    for role, (dataset, _) in roles(config).items():
        if not dataset:
            raise DataError(f"{role}.dataset is empty; the benchmark's file should name it")
    return roles(config)


def expect_data(config: Config, root: Path) -> dict[str, Split]:
    """`open_data` for a dry run: what is not there yet is stood for by what is known of it.

    DataError where the data could not be used as far as that can be told already.
    """
    splits = {role: find_split(root, *at, config.streets) for role, at in _named(config).items()}
    if config.source.holdout and "source" in splits:
        splits["source"] = _without_holdout(config, splits["source"])
    _check(config, splits)
    return splits


def _without_holdout(config: Config, source: Split) -> Split:
    if not isinstance(source, Planned):
        return split_source(config, source)[0]
    check_holdout(config, source)
    return dataclasses.replace(source, held_out=config.source.holdout)


def _check(config: Config, splits: Mapping[str, Split]) -> None:
    """Whether the splits of a recipe go together."""
    for role in ("source", "evaluation"):
        if role in splits and splits[role].labelled is False:
            raise DataError(f"{role} data must be labelled, but {splits[role].folder} is not")
    labelled = [split for split in splits.values() if split.labelled]
    for split in labelled[1:]:
        check_same_classes(labelled[0].name, labelled[0].class_names or (), split)
    source = splits.get("source")
    if isinstance(source, ShardSet):  # the labels of others are not known
        check_absent(source, config.model.absent)
    check_streams(config, splits)
    if "evaluation" in splits:
        scored = splits["evaluation"]
        check_native(scored)
        if scored.class_names is not None:
            protocols.check_classes(config.evaluation.protocol, scored.class_names, scored.name)


def split_source(config: Config, source: ShardSet) -> tuple[ShardSet, ShardSet]:
    """The source images to train on, and the held-out ones, chosen by hash."""
    check_holdout(config, source)
    held = hash_chosen(source.sample_ids, config.source.holdout, "holdout")
    rest = np.setdiff1d(np.arange(len(source)), held)
    return source.subset(rest), source.subset(held)


def check_holdout(config: Config, source: Split) -> None:
    """DataError where nothing would be left to train on."""
    images = count_images(source)
    if images is not None and config.source.holdout >= images:
        raise DataError(
            f"source.holdout must leave images to train on, but {source.name} has {images} "
            f"and {config.source.holdout} are to be held out"
        )


def check_same_classes(name: str, class_names: Sequence[str], split: Split) -> None:
    """DataError unless a split has these classes, in this order: those of the set `name`."""
    for number, (one, other) in enumerate(zip_longest(class_names, split.class_names or ())):
        if one != other:
            raise DataError(
                f"all sets of a run must have the same classes, but class {number} is "
                f"{one or 'absent'} in {name} and {other or 'absent'} in {split.name}"
            )


def check_absent(split: ShardSet, absent: tuple[int, ...]) -> None:
    """ConfigError where a split has labels of classes that the network has no output for."""
    pixels = class_pixels(split)
    shown = [k for k in absent if k < len(split.class_names) and pixels[:, k].any()]
    if shown:
        names = ", ".join(split.class_names[k] for k in shown)
        raise ConfigError(
            f"model.absent={list(absent)} leaves no output for {names}, but {split.name} has "
            f"labels of them; take {', '.join(map(str, shown))} out of model.absent"
        )


def check_streams(config: Config, splits: Mapping[str, Split]) -> None:
    """Whether the splits hold what the stages' streams read: DataError, or ConfigError of pairs."""
    for stage in config.stages:
        for stream, read in config.reads_of(stage).items():
            domain, where = domain_of(stream), f"stream {stream} of stage {stage}"
            if isinstance(read, PairCrops):
                read.check(where, getattr(config, domain).size)
            else:
                _check_motion(where, domain, read, splits[domain])


def _check_motion(where: str, domain: str, read: frozenset[str], split: Split) -> None:
    if "previous" in read and split.has_previous is False:
        raise DataError(
            f"{where} needs the frame before each image, but {split.name} holds none; set "
            f"{domain}.split to one with neighbour frames, as cityscapes' train_sequence has"
        )
    if "flow" in read and (isinstance(split, Planned) or stored_flow(split) is None):
        raise DataError(
            f"{where} needs the flow to the frame before, but none is stored beside {split.name}, "
            "and this version cannot make it; take the stage out of stages"
        )


def check_native(split: Split) -> None:
    """DataError where a split is resized: nothing may be scored at another size than its own."""
    view = split.view if isinstance(split, Planned) else split.metadata["view"]
    if view is not None:
        raise DataError(
            f"evaluation is at the files' own resolution, but {split.folder} is a derived view; "
            f"use the split it was made from"
        )


def prepare_streets(config: Config, root: Path, say: Callable[[str], None]) -> None:
    """Render and convert `streets` where a recipe reads it and it is not there yet."""
    if not _reads_streets(config):
        return
    from spcl.data.convert import convert
    from spcl.data.request import Options

    raw = root / STREETS / "raw"
    try:
        raw.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"streets is rendered where the data lie, but {raw.parent} cannot be made "
            f"({error.strerror}); give --data DIR"
        ) from None
    if not (raw / "streets.json").is_file():
        say(f"rendering the streets benchmark into {raw}")
    _render(config, raw)
    for name, split in RENDERED:
        out = root / name / split
        if not is_there(out):
            say(f"converting {name}/{split}")
            convert(
                FORMATS[name], raw / FORMATS[name], out, split=split, options=Options(name=name)
            )


def check_streets(config: Config, root: Path) -> None:
    """DataError where `streets` is there and is another than a recipe asks for; writes nothing."""
    raw = root / STREETS / "raw"
    if _reads_streets(config) and raw.exists():
        _render(config, raw)


def _reads_streets(config: Config) -> bool:
    return any(dataset.startswith(STREETS) for dataset, _ in roles(config).values())


def _render(config: Config, raw: Path) -> None:
    """Write the raw files of `streets`, or see that those there are the same."""
    from spcl.data.streets.trees import write_trees

    c = config.streets
    write_trees(
        raw,
        world=c.world,
        source_images=c.source_images,
        target_images=c.target_images,
        val_images=c.val_images,
        height=c.size[0],
        width=c.size[1],
    )
