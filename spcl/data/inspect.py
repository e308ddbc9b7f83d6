"""What a converted split holds: `python -m spcl.data.inspect DIR`.

Prints counts, label encoding, id map and class histogram, and draws a contact sheet.  Reads shards
only; whether their bytes are whole says `ray_jobs/ingest.py --verify`.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spcl.cli import Parser, guarded
from spcl.errors import DataError
from spcl.store import atomic

if TYPE_CHECKING:
    from spcl.data.shards import ShardSet

BAR = 30  # characters of the longest bar
KEY = 15  # characters of a fact's name
MIB = 2**20
STREETS = "streets/"  # names of the sets that this project renders
EXAMPLE = """examples:
  python -m spcl.data.inspect data/gta5/train
  python -m spcl.data.inspect data/cityscapes/val --out sheet.png --samples 24
  python -m spcl.data.inspect data            every split below, a line each
"""


def facts(shards: ShardSet) -> dict[str, Any]:
    """What manifest and index say of a split: plain values, in the order they are shown."""
    import pyarrow.parquet as pq

    from spcl.data.manifest import INDEX, read_manifest

    manifest, metadata = read_manifest(shards.folder), shards.metadata
    columns = ["flags", "ignore_pixels"] if shards.labelled else ["flags"]
    index = pq.read_table(shards.folder / INDEX, columns=columns)
    flags = Counter(flag for row in index["flags"].to_pylist() for flag in row)
    found: dict[str, Any] = {
        "name": shards.name,
        "folder": str(shards.folder),
        "role": metadata["domain_role"],
        "images": len(shards),
        "shards": len(manifest["shards"]),
        "bytes": manifest["bytes"],
        "image_sizes": manifest["image_sizes"],
        "flags": dict(sorted(flags.items())),
        "view": metadata["view"],
        **_terms(metadata),
        "fingerprint": shards.fingerprint,
        "labelled": shards.labelled,
    }
    if shards.labelled:
        pixels = manifest["class_pixels"]
        total = sum(pixels)
        found |= {
            "label_space": metadata["label_space"],
            "label_encoding": metadata["raw_encoding"],
            "id_map": metadata["id_map"],
            "ignored_pixels": sum(index["ignore_pixels"].to_pylist()),
            "classes": [
                {
                    "train_id": train_id,
                    "name": name,
                    "images": manifest["class_images"][train_id],
                    "pixels": pixels[train_id],
                    "share": pixels[train_id] / total if total else 0.0,
                }
                for train_id, name in enumerate(shards.class_names)
            ],
            "absent": [
                name
                for name, images in zip(shards.class_names, manifest["class_images"], strict=True)
                if images == 0
            ],
            "absent_by_design": [shards.class_names[k] for k in metadata["absent_train_ids"]],
        }
    return found


def _terms(metadata: dict[str, Any]) -> dict[str, str]:
    """Licence and redistribution; old conversions state those of the format for any data in it."""
    from spcl.data.datasets import DATASETS, terms_of
    from spcl.data.streets import trees as streets

    said = {key: metadata[key] for key in ("licence", "redistribution")}
    known = DATASETS.get(metadata["format"])
    name = metadata["view"]["parent"] if metadata["view"] else metadata["name"]
    if known is None or name.rpartition("/")[0] == known.name or said != terms_of(known, False):
        return said
    return streets.TERMS if name.startswith(STREETS) else terms_of(known, only_its_format=True)


def describe(found: dict[str, Any]) -> str:
    """The facts for people."""
    sizes = sorted(found["image_sizes"].items(), key=lambda item: -item[1])
    view = found["view"]
    rows = {
        "role": found["role"],
        "images": f"{found['images']}, {'' if found['labelled'] else 'not '}labelled",
        "shards": f"{found['shards']}, {found['bytes'] / MIB:.1f} MiB",
        "image sizes": ", ".join(f"{size} ({count})" for size, count in sizes),
        "flags": _pairs(found["flags"]) or "none",
        "view": _pairs(view) if view else "no: images as found",
        "licence": found["licence"],
        "redistribution": found["redistribution"],
        "fingerprint": found["fingerprint"],
    }
    lines = [f"{found['name']}  in {found['folder']}"]
    if found["labelled"]:
        rows["label files"] = f"{found['label_encoding']}, mapped to {found['label_space']}"
    lines += [f"  {name:<{KEY}}{value}" for name, value in rows.items()]
    return "\n".join([*lines, *(_histogram(found) if found["labelled"] else [])])


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _histogram(found: dict[str, Any]) -> list[str]:
    """A line per class: trainId, name, raw ids that became it, images, share of pixels, bar."""
    from spcl.data.labels import IGNORE_INDEX

    sources: dict[int, list[int]] = {}
    for raw, train_id in found["id_map"].items():
        sources.setdefault(train_id, []).append(int(raw))
    classes = found["classes"]
    name_width = max(len(one["name"]) for one in [*classes, {"name": "ignored"}])
    raw_ids = {train_id: ranges(raw) for train_id, raw in sources.items()}
    raw_width = max(len(text) for text in [*raw_ids.values(), "raw ids"])
    top = max(one["share"] for one in classes) or 1.0

    def line(train_id: object, name: str, raw: str, images: object, share: str, bar: str) -> str:
        row = (
            f"{train_id:>4} {name:<{name_width}}  {raw:<{raw_width}}  {images:>7} {share:>9}  {bar}"
        )
        return row.rstrip()

    lines = ["", line("id", "class", "raw ids", "images", "% pixels", "")]
    for one in classes:
        bar = "#" * (round(BAR * one["share"] / top) or bool(one["pixels"]))
        raw = raw_ids.get(one["train_id"], "")
        share = f"{100 * one['share']:.3f}"
        lines.append(line(one["train_id"], one["name"], raw, one["images"], share, bar))
    every = found["ignored_pixels"] + sum(one["pixels"] for one in classes)
    ignored = f"{100 * found['ignored_pixels'] / every:.3f}"
    raw = raw_ids.get(IGNORE_INDEX, "")
    lines.append(line(IGNORE_INDEX, "ignored", raw, "", ignored, "(of all pixels)"))
    if found["absent"]:
        expected = set(found["absent"]) <= set(found["absent_by_design"])
        why = "this set is known to have none" if expected else "is the id map right?"
        lines += ["", f"warning: no image shows {', '.join(found['absent'])}; {why}"]
    return lines


def ranges(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5" """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def splits_below(folder: Path) -> list[Path]:
    """Folders of finished splits at any depth; hidden ones are conversions in progress."""
    from spcl.data.manifest import MANIFEST

    found = []
    for path in sorted(folder.rglob(MANIFEST)):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and _is_of_shards(path):
            found.append(path.parent)
    return found


def _is_of_shards(manifest: Path) -> bool:
    """Other things have manifests too: runs, and other people's folders."""
    from spcl.data.manifest import INDEX

    if (manifest.parent / INDEX).exists():
        return True  # also where the manifest cannot be read
    try:
        return "class_pixels" in json.loads(manifest.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def list_splits(folders: list[Path], root: Path) -> str:
    """One line per split; a damaged one is told and the others are listed."""
    from spcl.data.shards import ShardSet

    width = max(len(str(folder.relative_to(root))) for folder in folders)
    lines = []
    for folder in folders:
        try:
            found = facts(ShardSet(folder))
        except DataError as error:
            lines.append(f"{str(folder.relative_to(root)):<{width}}  damaged: {error}")
            continue
        labels = "not labelled"
        if found["labelled"]:
            classes = found["classes"]
            labels = f"{len(classes) - len(found['absent'])} of {len(classes)} classes"
        size = max(found["image_sizes"], key=found["image_sizes"].get)
        lines.append(
            f"{str(folder.relative_to(root)):<{width}}  {found['role']:<7}{found['images']:>7} "
            f"images  {size:>10}  {found['bytes'] / MIB:>9.1f} MiB  {labels}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    from spcl.data.manifest import MANIFEST
    from spcl.data.shards import ShardSet

    folder, out = arguments.folder.absolute(), arguments.out
    if out and out.suffix != ".png":
        raise DataError(f"--out must name a .png file, got {out}")
    if arguments.samples < 1:
        raise DataError(f"--samples must be at least 1, got {arguments.samples}")
    if not (folder / MANIFEST).exists():
        folders = splits_below(_existing(folder))
        if not folders:
            raise DataError(
                f"no converted split in {folder} or below; write one with: "
                "python ray_jobs/ingest.py --dataset NAME --root RAW --out DIR"
            )
        if out or arguments.json:
            raise DataError(f"{folder} holds {len(folders)} splits; name one: {folders[0]}")
        print(list_splits(folders, folder))
        return 0
    shards = ShardSet(folder)
    found = facts(shards)
    print(json.dumps(found, indent=2) if arguments.json else describe(found))
    if out or not arguments.json:
        out = out or Path(shards.name.replace("/", "-") + ".png")
        _draw(shards, out, arguments.samples)
    return 0


def _draw(shards: ShardSet, out: Path, count: int) -> None:
    from spcl.data.sheet import choose_samples, contact_sheet

    samples = choose_samples(shards.class_pixels, len(shards), count)
    buffer = io.BytesIO()
    contact_sheet(shards, samples).save(buffer, "PNG")
    try:
        atomic.write_bytes(out.absolute(), buffer.getvalue())
    except OSError as error:
        raise DataError(
            f"cannot write the sheet {out} ({error.strerror}); name another file with --out"
        ) from None
    print(f"contact sheet: {out} ({len(samples)} samples)", file=sys.stderr)


def _existing(folder: Path) -> Path:
    if folder.is_dir():
        return folder
    names = [path.name for path in folder.parent.glob("*") if path.is_dir()]
    close = difflib.get_close_matches(folder.name, names, 1)
    hint = "ray_jobs/ingest.py writes to --out, else $SPCL_DATA, else ./data"
    if close:
        hint = f"did you mean {folder.parent / close[0]}?"
    raise DataError(f"there is no folder {folder}; {hint}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m spcl.data.inspect",
        description="Say what a converted split holds, and draw a contact sheet of it.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="a split, or a folder of splits to list")
    add("--out", type=Path, metavar="FILE.png", help="the sheet (default: ./<name>-<split>.png)")
    add("--samples", type=int, default=12, metavar="N", help="on the sheet (default: 12)")
    add("--json", action="store_true", help="print the facts as JSON; a sheet only with --out")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
