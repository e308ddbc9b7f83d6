"""What ran, is it done, what does it cost on disk: `python -m spcl.runs ls|show|rm|gc`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spcl import cli
from spcl.errors import DataError, UserError
from spcl.store.lease import Lease

if TYPE_CHECKING:
    from spcl.store.garbage import Garbage
    from spcl.store.run_folder import RunFolder

EXAMPLE = """examples:
  python -m spcl.runs ls
  python -m spcl.runs show demo
  python -m spcl.runs rm demo
  python -m spcl.runs gc           # shows artefacts that nothing refers to, asks, removes
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m spcl.runs",
        description=__doc__,
        epilog=EXAMPLE,
    )
    cli.add_storage(parser)
    after = cli.Parser(add_help=False)
    after.add_argument("--storage", default=argparse.SUPPRESS, help="the same, after the command")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", parents=[after], help="every run, a line each")
    for name, text in (("show", "one run's table and provenance"), ("rm", "remove a run's folder")):
        commands.add_parser(name, parents=[after], help=text).add_argument("run")
    collector = commands.add_parser(
        "gc", parents=[after], help="remove artefacts that no run or search refers to"
    )
    collector.add_argument("--yes", action="store_true", help="remove without asking")
    arguments = parser.parse_args(argv)
    reads_only = arguments.command in ("ls", "show")
    storage = cli.storage_root(arguments.storage, writes=not reads_only)
    if arguments.command == "ls":
        print(list_runs(storage))
        return 0
    if arguments.command == "gc":
        collect(storage, arguments.yes)
        return 0
    run = find(storage, arguments.run)
    if arguments.command == "show":
        print(show(run))
    else:
        with Lease(run.folder):
            size = run.bytes
            run.remove()
        print(f"removed {run.folder} ({_size(size)}); shared artefacts stay in {storage}/artefacts")
    return 0


def find(storage: Path, name: str) -> RunFolder:
    from spcl.settings import choose
    from spcl.store.run_folder import runs

    found = {run.name: run for run in runs(storage)}
    if not found:
        raise UserError(f"there are no runs in {storage}; give --storage DIR, or train one first")
    return found[choose(name, found, "run")]


def state(run: RunFolder) -> str:
    if run.done:
        return "done"
    return "failed" if run.failed else "unfinished"


def list_runs(storage: Path) -> str:
    """A line for each run, and a note for each whose record is damaged."""
    from spcl.scoring.protocols import headline
    from spcl.store.run_folder import DONE, RunFolder, runs

    lines, notes = [f"{'run':<40}{'state':<12}{'mIoU':>7}{'disk':>10}"], []
    for run in runs(storage):
        score = "-"
        try:
            done, found = run.done, state(run)
            if done and done["table"]:
                score = f"{100 * headline(done['table'][-1]['means'])['value']:.1f}"
        except DataError as error:
            found = "damaged"
            notes.append(f"note: {error}")
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # an old record's
            found = "damaged"
            notes.append(f"note: {run.folder / DONE} lacks what a table needs ({error!r})")
        lines.append(f"{run.name:<40}{found:<12}{score:>7}{_size(run.bytes):>10}")
    shared = RunFolder(storage / "artefacts")
    if shared.folder.is_dir():
        lines.append(f"{'(shared artefacts)':<59}{_size(shared.bytes):>10}")
    return "\n".join([*lines, *notes])


def show(run: RunFolder) -> str:
    from spcl.store.run_folder import DONE

    try:
        return _show(run)
    except (LookupError, TypeError, AttributeError) as error:  # of a record without a checksum
        raise DataError(
            f"a record of {run.folder} lacks what is shown of it ({error!r}); remove {DONE} and "
            "manifest.json there and run its command again"
        ) from None


def _show(run: RunFolder) -> str:
    from spcl.boards.tables import run_table
    from spcl.configuration.chosen_by import stored

    lines = [f"{run.name}: {state(run)}, {run.folder}"]
    manifest = run.manifest
    if manifest:
        for key in ("benchmark", "method", "seed", "selection", "label_budget", "code", "commit"):
            lines.append(f"  {key}: {manifest[key]}")
        if manifest.get("licence"):
            lines.append(f"  licence: {manifest['licence']}")
        if manifest.get("search"):
            lines.append(f"  search: {manifest['search']}")
        if manifest.get("compat") == "official":
            lines.append("  compat: official")
        for role, data in manifest["data"].items():
            lines.append(
                f"  {role}: {data['name']}, {data['samples']} images, {data['fingerprint'][:16]}"
            )
        hardware = ", ".join(f"{k} {v}" for k, v in manifest["hardware"].items())
        lines.append(f"  hardware: {hardware}")
    if run.failed:
        lines.append(f"  failed: {run.failed['error']}")
    if run.done:
        lines.append(run_table(run.done, stored(run)))
    return "\n".join(lines)


def collect(storage: Path, yes: bool) -> None:
    """Show what nothing refers to; remove it if `yes`, or if the terminal's user says so."""
    from spcl.store.garbage import find_garbage, remove

    garbage = find_garbage(storage)
    for reason in garbage.because:
        print(f"note: {reason}")
    if not garbage.folders:
        print(f"nothing to remove in {storage / 'artefacts'}")
        return
    print(garbage_table(garbage))
    if not yes and not sys.stdin.isatty():
        print("nothing was removed; add --yes to remove these")
        return
    if not yes and input("remove them? [y/N] ").strip().lower() not in ("y", "yes"):
        print("nothing was removed")
        return
    size = dict(zip(garbage.folders, garbage.sizes, strict=True))
    gone = remove(storage, garbage)
    print(f"removed {len(gone)} artefacts ({_size(sum(size[folder] for folder in gone))})")
    if len(gone) < len(garbage.folders):
        print(f"{len(garbage.folders) - len(gone)} have come into use meanwhile and were kept")


def garbage_table(garbage: Garbage) -> str:
    lines = [
        f"{folder.name:<59}{_size(size):>10}"
        for folder, size in zip(garbage.folders, garbage.sizes, strict=True)
    ]
    total = f"{len(lines)} artefacts that nothing refers to"
    return "\n".join([*lines, f"{total:<59}{_size(sum(garbage.sizes)):>10}"])


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
