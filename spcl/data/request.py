"""What a conversion is asked for, and what is known before the first file is opened.

Not here: the work (`convert`).
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spcl.data.checks import Job
from spcl.data.columns import SCHEMA_VERSION
from spcl.data.datasets import Dataset, LabelFiles, terms_of
from spcl.data.encodings import COLOR, ENCODINGS
from spcl.data.labels import IGNORE_INDEX
from spcl.data.listing import Listed, Sample
from spcl.data.pictures import MAX_PIXELS
from spcl.data.shard_task import CONVERTER_VERSION, SHARD_BYTES
from spcl.data.streets import trees as streets
from spcl.errors import DataError
from spcl.settings import choose
from spcl.store import atomic


@dataclass(frozen=True)
class Options:
    """How a split is converted.

    name            stands for the dataset's name in the result, as for a set in its format
    on_mismatch     "skip" leaves out pairs of unequal size and images or labels without partner;
                    "error" makes them errors
    drop_blank      leave out images of one colour
    label_encoding  how labels are stored, if not as in the release
    only            a file that names the images to take
    golden          an error unless counts, sizes and classes are those of the published release
    overwrite       replace what an earlier conversion wrote
    shard_bytes     about the size of a shard
    max_pixels      an image or label file of more is an error
    licence         of the files, where the dataset's is not theirs
    """

    name: str | None = None
    on_mismatch: str = "skip"
    drop_blank: bool = False
    label_encoding: str | None = None
    only: Path | None = None
    golden: bool = False
    overwrite: bool = False
    shard_bytes: int = SHARD_BYTES
    max_pixels: int = MAX_PIXELS
    licence: str | None = None


def checked_name(source: Dataset, split: str, options: Options) -> str:
    """The dataset's name in the result; DataError where the request cannot be met."""
    if split not in source.splits:
        raise DataError(f"{source.name} has no split {split!r}; it has {', '.join(source.splits)}")
    name = options.name or source.name
    if not re.fullmatch(r"[a-z0-9_-]+(/[a-z0-9_-]+)*", name):
        raise DataError(f"a name is of lower-case letters, digits, _, - and /; got {name!r}")
    if options.golden and release_of(source, split, name, options) is None:
        raise DataError(f"the release of {name}/{split} is not known; leave --verify-golden away")
    return name


def release_of(source: Dataset, split: str, name: str, options: Options) -> Any:
    """What is published of the split; None where that is unknown, or is not what is converted."""
    return source.releases.get(split) if name == source.name and not options.only else None


def job_of(
    source: Dataset, split: str, name: str, root: Path, listed: Listed, options: Options
) -> Job:
    """What every task needs to know.

    root  as the user named it; the tree may begin deeper, at `listed.root`
    """
    labels = _with_encoding(source, listed.labels, options.label_encoding)
    terms = _terms(source, name, root)
    if options.licence:
        terms = terms | {"licence": options.licence}
    return Job(
        dataset=source,
        split=source.splits[split],
        labels=labels,
        root=str(listed.root),
        prefix=name + source.splits[split].prefix.removeprefix(source.name),
        metadata=_metadata(source, split, name, labels, options.only, terms),
        on_mismatch=options.on_mismatch,
        drop_blank=options.drop_blank,
        max_pixels=options.max_pixels,
    )


def inputs_of(job: Job, samples: Sequence[Sample], options: Options) -> dict[str, Any]:
    """What the result is made from, and how: by it the same request is recognised later."""
    return {
        "converter_version": CONVERTER_VERSION,
        "name": job.metadata["name"],
        "files": len(samples),
        "names_and_sizes": hashlib.sha256(json.dumps(samples).encode()).hexdigest(),
        "on_mismatch": options.on_mismatch,
        "drop_blank": options.drop_blank,
        "label_encoding": options.label_encoding,
        "id_map": job.metadata["id_map"],
        "shard_bytes": options.shard_bytes,
    }


def _with_encoding(
    source: Dataset, label_files: LabelFiles | None, encoding: str | None
) -> LabelFiles | None:
    """The kind of label files, stored otherwise than in the release."""
    if encoding is None or label_files is None:
        return label_files
    choose(encoding, ENCODINGS, "label encoding")
    if encoding == COLOR and source.palette is None:
        raise DataError(f"the colours of {source.name}'s labels are not known; use its id files")
    if encoding != COLOR and COLOR in label_files.encodings:
        raise DataError(
            f"--label-encoding {encoding} can't be: the ids in {source.described_in} are colours; "
            f"change labels.encoding and labels.ids there"
        )
    return dataclasses.replace(label_files, encodings=(encoding,))


def _metadata(
    source: Dataset,
    split: str,
    name: str,
    label_files: LabelFiles | None,
    only: Path | None,
    terms: dict[str, str],
) -> dict[str, Any]:
    """What is known before the first file is opened; goes into every shard."""
    where = source.splits[split]
    chosen = None
    if only:
        chosen = {"name": only.name, "sha256": atomic.sha256(only)}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": f"{name}/{split}",
        "dataset": name,
        "split": split,
        "domain_role": where.role,
        "labelled": label_files is not None,
        "format": source.name,
        "converter": "spcl.data.convert",
        "converter_version": CONVERTER_VERSION,
        "label_space": source.label_space,
        "class_names": list(source.class_names),
        "palette": source.class_colors.tolist(),
        "ignore_index": IGNORE_INDEX,
        "tail_classes": list(source.tail),
        "absent_train_ids": list(source.absent),
        "id_map": {str(raw): to for raw, to in label_files.ids.items()} if label_files else None,
        "raw_encoding": (
            f"{' or '.join(label_files.encodings)} {label_files.space}" if label_files else None
        ),
        "label_size": "its own" if where.any_size else "the image's",
        "split_source": {"images": where.images, "labels": where.labels, "list": chosen},
        **terms,
        "view": None,  # not resized, not re-encoded
    }


def _terms(source: Dataset, name: str, root: Path) -> dict[str, str]:
    """Licence and redistribution of the files."""
    if streets.are_rendered(root):
        return streets.TERMS
    return terms_of(source, only_its_format=name != source.name and not source.described_in)
