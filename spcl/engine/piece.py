"""One way to run a recipe on a rank: in plain Python, under torchrun, in a Ray group alike.

A training run, a job of a search and a cell of a sweep are pieces; they differ in what they do with
the recipe.
"""

import contextlib
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spcl import distributed
from spcl.configuration.config import from_dict
from spcl.engine.commit import VARIABLE
from spcl.engine.devices import choose_device
from spcl.engine.recipe import Recipe
from spcl.engine.trainer import Context, Report
from spcl.errors import StorageError, UserError, reason
from spcl.store import atomic
from spcl.store.lease import LeaseLost
from spcl.store.run_folder import RunFolder
from spcl.store.telemetry import LiveLine, Telemetry

Work = Callable[[Recipe], Any]


@dataclass(frozen=True)
class Piece:
    """Work on one run.  Plain values only, so that it travels to other processes."""

    config: dict[str, Any]
    data: str
    run: str  # folder
    storage: str
    continued: bool = False  # see `Recipe`
    #: Whatever goes wrong is this one's result, and the others go on.
    one_of_many: bool = False
    commit: str = ""  # the driver's: Ray leaves .git and the driver's environment behind

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.run))

    def is_failed_by(self, error: Exception) -> bool:
        """Whether no other attempt mends it, so that the run has failed and FAILED.json says so."""
        if self.one_of_many:  # a full disk is no fault of its own, and a lost run is another's
            return not isinstance(error, StorageError | LeaseLost)
        return isinstance(error, UserError)


def on_rank(
    piece: Piece,
    work: Work,
    local_rank: int = 0,
    *,
    report: Report = lambda metrics: None,
    live: LiveLine | None = None,
) -> Any:
    """Do the work on this rank, alone or in a process group that exists already.

    Every rank calls it, under the lease of the run's folder.  Returns what `work` does; what that
    raises goes on, after FAILED.json where the piece has failed by it.
    """
    if piece.commit:
        os.environ[VARIABLE] = piece.commit
    run = piece.folder
    try:
        config = from_dict(piece.config)
        telemetry = Telemetry(run.folder if distributed.rank() == 0 else None, live)
        context = Context(choose_device(config.train, local_rank), telemetry, report)
        data, storage = Path(piece.data), Path(piece.storage)
        recipe = Recipe(config, data, run, context, storage=storage, continued=piece.continued)
        return work(recipe)
    except Exception as error:
        if piece.is_failed_by(error):
            _note(piece, error)
        raise


def _note(piece: Piece, error: Exception) -> None:
    """Say why the run has failed in its folder."""
    with contextlib.suppress(LeaseLost):  # then what the folder says is another's
        piece.folder.fail(reason(error), type(error).__name__)
    if piece.one_of_many:  # nobody sees what it prints
        path = piece.folder.folder / "traceback.txt"
        atomic.write_bytes(path, traceback.format_exc().encode())
