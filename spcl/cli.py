"""What the commands share: arguments, paths, and one clear line on a user's mistake."""

import argparse
import difflib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from spcl.errors import ConfigError, UserError
from spcl.store.atomic import refusal

INTERRUPTED = "interrupted; the same command continues where it stopped"
STDERR = 2  # its file descriptor
IMPORT_SYSTEM = "<frozen importlib._bootstrap>"  # file name of Python's own import code
REPOSITORY = Path(__file__).resolve().parents[1]


def guarded(
    main: Callable[[Sequence[str] | None], int],
    argv: Sequence[str] | None = None,
    *expected: type[Exception],
) -> int:
    """Exit code of `main`; Ctrl-C is 130, a UserError, or what else is expected, one line and 2.

    So is a refused write that nothing else has told.  What a command needs beyond the standard
    library is imported within `main`, so that Ctrl-C while modules load ends in the same way.
    """
    told: tuple[type[Exception], ...] = (UserError, *expected)
    try:
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if ignored
                signal.signal(signal.SIGINT, interrupt)
        return main(argv)
    except told as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        refused = refusal(error)
        if refused is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if _speaks():
            print(INTERRUPTED, file=sys.stderr)
        return 130


def _speaks() -> bool:
    """Under torchrun every rank hears Ctrl-C; the first one says so."""
    return os.environ.get("RANK", "0") == "0"


def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    """Raise KeyboardInterrupt; but end the process at once while a module loads.

    Modules in C swallow an exception that is raised in their import, turn it into another or abort.
    """
    while frame is not None:
        if frame.f_code.co_filename == IMPORT_SYSTEM:
            if _speaks():
                os.write(STDERR, f"{INTERRUPTED}\n".encode())  # print may be what was interrupted
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def treat_sigterm_as_ctrl_c() -> None:
    """From now on SIGTERM, which ends a Ray job, raises KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, interrupt)


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and exit; a typo gets the nearest flag.

    Flags are written out: an abbreviation is a typo, too, or a new flag would change its meaning.
    """

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)  # keeps lines
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    # typeshed overloads both for other kinds of namespace, which nobody here hands over.
    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        return self._all_known(*self.parse_known_args(args, namespace))

    def parse_intermixed_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        return self._all_known(*self.parse_known_intermixed_args(args, namespace))

    def _all_known(self, arguments: argparse.Namespace, rest: list[str]) -> argparse.Namespace:
        for text in rest:
            if text.startswith("-"):
                option = text.partition("=")[0]
                close = difflib.get_close_matches(option, self._flags(), 1)
                hint = f"did you mean {close[0]}?" if close else "see --help"
                raise UserError(f"option {option} is unknown; {hint}")
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return arguments

    def _flags(self) -> list[str]:
        """Of this command and its sub-commands."""
        flags: list[str] = []
        for action in self._actions:
            flags += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    flags += command._flags()
        return flags


def add_places(parser: argparse.ArgumentParser) -> None:
    """Arguments that say where data and results lie."""
    add_data(parser)
    add_storage(parser)


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help="converted data (default: $SPCL_DATA, else ./data)")


def add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--storage", help="results (default: $SPCL_STORAGE, else ./runs)")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which recipe is meant, by files and settings."""
    parser.add_argument("--benchmark", help="a file of configs/benchmarks (default: streets)")
    parser.add_argument("--method", help="a file of configs/methods (default: spcl)")
    parser.add_argument("--config", type=Path, help="a YAML file of settings, read after those two")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, e.g. seed=1")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that runs a recipe."""
    add_config_arguments(parser)
    parser.add_argument("--name", help="the run's name (default: made of its settings)")
    parser.add_argument("--seeds", help="e.g. 0..4 or 0,3: one run per seed, then their mean")
    add_places(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    parser.add_argument("--list", action="store_true", help="say what benchmarks and methods exist")
    parser.add_argument(
        "--settings",
        action="store_true",
        dest="list_settings",
        help="say every setting of the recipe, its value and where its default comes from",
    )


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
