"""Records: JSON that a result depends on, with a checksum of its own content.

    {"schema": 2, ..., "checksum": "sha256 of everything else"}

Every kind of record has the same versions.  1 has no checksum and is still read; from 2 on a record
without the right one is refused.  A later version's digits must differ from 1 in more than one bit,
or a single flip would make a checked record look like one that needs no checksum: after 2 comes 4.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spcl.errors import DataError
from spcl.store import atomic

SCHEMA = 2
CHECKSUM = "checksum"
UNCHECKED = 1  # the version before there were checksums
KINDS = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}


class MissingRecord(DataError):
    """There is no such file."""


def _from_1(record: dict[str, Any]) -> dict[str, Any]:
    """The same, without a checksum, which only a file can have."""
    return record | {"schema": 2}


#: From each older version to the next; pure.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {UNCHECKED: _from_1}


def checksum(record: Mapping[str, Any]) -> str:
    """sha256 of canonical JSON, in hex; as `spcl.settings.digest`, but a validator may be NaN."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as a record of the present version, as it will be read again."""
    plain = {key: item for key, item in value.items() if key != CHECKSUM} | {"schema": SCHEMA}
    record = json.loads(json.dumps(plain))  # keys become text and tuples lists before the sum
    return record | {CHECKSUM: checksum(record)}


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Replace `path` by a record, in one step."""
    try:
        atomic.write_json(path, seal(value))
    except IsADirectoryError:
        raise DataError(
            f"{path} must be a file, but a folder is there; remove it and run again"
        ) from None


def read(path: Path, way_out: str) -> dict[str, Any]:
    """The record as one of the present version; its checksum is in it, if it has one.

    way_out  what to do about a damaged one: the end of a sentence

    DataError names the path, what is wrong and the way out; MissingRecord where there is no file.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingRecord(f"{path} is missing; {way_out}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {way_out}") from None
    return parse(data, path, way_out)


def parse(data: bytes, path: Path | str, way_out: str) -> dict[str, Any]:
    """As `read`, of a file's bytes."""

    def damaged(what: str) -> DataError:
        return DataError(f"{path} {what}; {way_out}")

    if not data.strip():
        raise damaged("is empty")
    try:
        text = data.decode()
        record = json.loads(text, object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise damaged("is not UTF-8") from None
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        raise damaged(f"is not valid JSON{', it is cut' if cut else ''} ({error})") from None
    except (ValueError, RecursionError) as error:  # a key that stands twice, 5000 digits or [[[[[
        raise damaged(f"is not valid JSON ({error})") from None
    return check(record, path, way_out)


def check(record: Any, path: Path | str, way_out: str) -> dict[str, Any]:
    """As `read`, of what a file holds, JSON or YAML."""
    if not isinstance(record, dict):
        kind = KINDS.get(type(record), "a number")
        raise DataError(f"{path} is no record: it holds {kind}, not key: value pairs; {way_out}")
    version = record.get("schema")
    known = (*UPGRADES, SCHEMA)
    if type(version) is not int or version not in known:
        raise DataError(
            f"{path} has schema {version!r}, this version of spcl reads "
            f"{' and '.join(map(str, known))}; use the version that wrote it, or, if it was "
            f"damaged: {way_out}"
        )
    if not _is_intact(record):
        raise DataError(
            f"{path} was altered after it was written: its content does not match its checksum; "
            f"{way_out}"
        )
    while version in UPGRADES:
        record = UPGRADES[version](record)
        version = record["schema"]
    return record


def is_sound(data: bytes) -> bool:
    """Is this any JSON object that is not known to be damaged?  Of records, ours or not."""
    try:
        record = json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and _is_intact(record)


def _is_intact(record: dict[str, Any]) -> bool:
    if record.get("schema") in (None, UNCHECKED) and CHECKSUM not in record:
        return True
    content = {key: value for key, value in record.items() if key != CHECKSUM}
    try:
        return record.get(CHECKSUM) == checksum(content)
    except (TypeError, ValueError):  # YAML knows dates
        return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return record
