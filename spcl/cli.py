"""What the commands share: arguments, paths, and one clear line on a user's mistake."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from spcl.atomic import refusal
from spcl.errors import ConfigError, UserError

REPOSITORY = Path(__file__).resolve().parents[1]


def guarded(
    main: Callable[[Sequence[str] | None], int],
    argv: Sequence[str] | None = None,
    *expected: type[Exception],
) -> int:
    """Exit code of `main`; Ctrl-C is 130, a UserError, or what else is expected, one line and 2.

    So is a refused write that nothing else has told.
    """
    try:
        return main(argv)
    except (UserError, *expected) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        refused = refusal(error)
        if refused is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130


def treat_sigterm_as_ctrl_c() -> None:
    """From now on SIGTERM, which ends a Ray job, raises KeyboardInterrupt."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that runs a recipe."""
    parser.add_argument("--benchmark", help="a file of configs/benchmarks (default: streets)")
    parser.add_argument("--method", help="a file of configs/methods (default: spcl)")
    parser.add_argument("--config", type=Path, help="a YAML file of settings, read after those two")
    parser.add_argument("--name", help="the run's name (default: made of its settings)")
    parser.add_argument("--seeds", help="e.g. 0..4 or 0,3: one run per seed, then their mean")
    parser.add_argument("--data", help="converted data (default: $SPCL_DATA, else ./data)")
    parser.add_argument("--storage", help="results (default: $SPCL_STORAGE, else ./runs)")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    parser.add_argument("--list", action="store_true", help="say what benchmarks and methods exist")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, e.g. seed=1")


def parse_seeds(text: str | None) -> list[int] | None:
    """ "0..4" -> [0, 1, 2, 3, 4]; "0,3" -> [0, 3]"""
    if text is None:
        return None
    span = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if span and int(span[1]) <= int(span[2]):
        return list(range(int(span[1]), int(span[2]) + 1))
    if re.fullmatch(r"\d+(,\d+)*", text):
        return [int(part) for part in text.split(",")]
    raise ConfigError(f"--seeds must look like 0..4 or 0,3,5, got {text!r}")


def storage_root(given: str | None, *, writes: bool = True) -> Path:
    """--storage, else $SPCL_STORAGE, else <repository>/runs; absolute.

    writes  it is made and must be writable; a command that only reads works on any storage
    """
    path = Path(given or os.environ.get("SPCL_STORAGE") or REPOSITORY / "runs").resolve()
    if not writes:
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"results must be writable, but {path} is not ({error.strerror}); give --storage DIR"
        ) from None
    return path
