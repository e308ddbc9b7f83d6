"""Boards of finished runs beside the published numbers: one per benchmark and protocol.

    python tune/leaderboard.py
    python tune/leaderboard.py --runs runs /mnt/shared/runs --out boards

Prints each board in short and writes leaderboard.html, leaderboard.md and leaderboard.json.  Runs
on one machine, without Ray; opens no data set and no network.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from spcl import cli
from spcl.errors import UserError

FOLDER = "leaderboard"  # in the storage
CACHE = ".read.parquet"  # what was read, so that a second call reads only what is new


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python tune/leaderboard.py",
        description=__doc__,
    )
    parser.add_argument(
        "--runs", nargs="+", metavar="DIR", help="storage folders to read (default: the storage)"
    )
    parser.add_argument("--out", metavar="DIR", help=f"default: <storage>/{FOLDER}")
    cli.add_storage(parser)
    arguments = parser.parse_args(argv)
    from spcl.boards.aggregate import read_runs
    from spcl.boards.columns import plain
    from spcl.boards.formats import board_text, write_boards
    from spcl.boards.published import published_results
    from spcl.boards.ranking import make_boards

    folders = arguments.runs
    if folders is None or arguments.out is None:
        storage = cli.storage_root(arguments.storage, writes=arguments.out is None)
    folders = [str(storage)] if folders is None else [_existing(folder) for folder in folders]
    out = Path(arguments.out or storage / FOLDER).resolve()
    runs, unread = read_runs(folders, cache=out / CACHE)
    boards = make_boards(runs, published_results())
    try:
        paths = write_boards(boards, unread, out)
    except OSError as error:
        raise UserError(
            f"boards must be written somewhere, but {out} is not writable ({error.strerror}); "
            "give --out DIR"
        ) from None
    print("\n\n".join(board_text(board) for board in boards))
    for reason in unread:
        print(f"not read: {plain(reason)}", file=sys.stderr)
    print(f"\n{len(runs)} results of {len({run.folder for run in runs})} runs")
    print("\n".join(str(path) for path in paths))
    return 0


def _existing(folder: str) -> str:
    """Absolute, if it is a local folder.  UserError where there is none."""
    if "://" in folder:
        return folder
    if not Path(folder).is_dir():
        raise UserError(f"--runs must name folders of runs, but there is no folder {folder}")
    return str(Path(folder).resolve())


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
