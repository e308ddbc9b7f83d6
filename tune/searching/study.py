"""The Optuna study of a search: what the sampler sees, and the journal that people look at.

The records of the jobs are the truth.  The journal adds what they cannot tell: which configurations
and rungs have been started.  The driver alone writes it, under its lease.

    optuna-dashboard <storage>/searches/NAME/journal.log        live, in a browser
"""

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState, create_trial
from scipy.stats import qmc

from spcl.configuration import old_words
from spcl.configuration.config import Config
from spcl.errors import DataError, StorageError
from spcl.settings import digest
from spcl.store import atomic
from tune.searching.space import Parameter, Parameters, Space

JOURNAL = "journal.log"
JOURNAL_WAY_OUT = "remove it and search again: the jobs' records tell it anew"
LOCK = ".lock"  # of Optuna's journal backend

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Seen:
    """A configuration that has finished a job: its score at each rung; bad: its last gave none."""

    parameters: Parameters
    scores: Mapping[int, float]
    bad: bool = False


def propose(
    sampler: str, seed: int, number: int, space: Space, config: Config, seen: Iterable[Seen]
) -> Parameters:
    """Parameters of a configuration: a pure function of all its arguments.

    The first is what `config` says itself: the default configuration.
    """
    if number == 0:
        return space.defaults(config)
    dimensions = len(space.parameters)
    if sampler == "random":
        return space.at(np.random.default_rng([seed, number]).random(dimensions).tolist())
    if sampler == "qmc":
        sequence = qmc.Sobol(dimensions, scramble=True, rng=seed)
        if number > 1:  # scipy refuses to skip nothing
            sequence.fast_forward(number - 1)
        return space.at(sequence.random(1)[0].tolist())
    return _suggest(view(seed, number, space, seen).ask(), space)


def view(seed: int, number: int, space: Space, seen: Iterable[Seen]) -> optuna.Study:
    """What TPE learns from: every configuration that has a result, pruned at its last rung.

    TPE ranks pruned trials by rung, then value, so that scores of unequal rungs are not mixed; one
    without a value counts as bad.  Values outside the ranges are not shown: it can't place them.
    """
    entropy = int(digest([seed, number])[:8], 16)
    sampler = optuna.samplers.TPESampler(seed=entropy, multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for one in seen:
        inside = space.inside(one.parameters)
        if inside.keys() == one.parameters.keys():
            study.add_trial(
                create_trial(
                    state=TrialState.PRUNED,
                    params={old_words.first(name): value for name, value in inside.items()},
                    distributions={old_words.first(n): space.distributions[n] for n in inside},
                    intermediate_values={} if one.bad else dict(one.scores),
                )
            )
    return study


def _suggest(trial: Trial, space: Space) -> Parameters:
    def value(p: Parameter) -> object:
        name = old_words.first(p.name)  # Optuna draws in the order of the names
        if p.choices:
            return trial.suggest_categorical(name, p.choices)
        return trial.suggest_float(name, p.low, p.high, log=p.log)

    return space.pick(value)


def mend(folder: Path) -> list[str]:
    """Cut the journal to its last complete line and drop a dead driver's lock; says what it did."""
    path, said = folder / JOURNAL, []
    lock = Path(f"{path}{LOCK}")
    if os.path.lexists(lock):
        if lock.is_dir() and not lock.is_symlink():
            raise DataError(f"{lock} is a folder, which no search makes; remove it")
        with atomic.writing(lock):
            lock.unlink()
        said.append(f"{lock.name} was left by a driver that is gone: removed")
    if path.is_dir():
        raise DataError(f"{path} must be a file, but a folder is there; {JOURNAL_WAY_OUT}")
    if not path.is_file():
        return said
    text = path.read_bytes()
    whole = _complete(text)
    if whole < len(text):
        with atomic.opened(path, "r+b") as file:
            file.truncate(whole)
        said.append(
            f"{JOURNAL} ended in {len(text) - whole} bytes that are no complete line: cut, and "
            "told again from the jobs' records"
        )
    return said


def _complete(text: bytes) -> int:
    """Length of the leading lines that are whole."""
    length = 0
    for line in text.splitlines(keepends=True):
        try:
            operation = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not line.endswith(b"\n") or not isinstance(operation, dict):
            break
        length += len(line)
    return length


@dataclass
class Started:
    """A configuration in the journal."""

    parameters: Parameters
    rung: int  # the highest that was started


class _File(JournalFileBackend):
    """Optuna's journal file, where a full disk is a StorageError."""

    def __init__(self, path: Path):
        with atomic.writing(path):
            super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with atomic.writing(self._path):
            super().append_logs(logs)


class Journal:
    """The study on disk: trial by configuration number, scores by rung."""

    def __init__(self, folder: Path, space: Space):
        self.space = space
        try:
            self._open(folder)
        except StorageError:
            raise
        except Exception as error:  # lines that are whole, and no operations of Optuna's
            raise DataError(
                f"{folder / JOURNAL} is damaged, Optuna cannot read it ({error!r}); "
                f"{JOURNAL_WAY_OUT}"
            ) from error

    def _open(self, folder: Path) -> None:
        self.storage = JournalStorage(_File(folder / JOURNAL))
        self.study = optuna.create_study(
            study_name=folder.name,
            storage=self.storage,
            direction="maximize",
            load_if_exists=True,
        )
        self._trials = {t.user_attrs["configuration"]: t for t in self.study.get_trials()}
        self.started()

    def started(self) -> dict[int, Started]:
        """Every configuration that was ever started."""
        return {
            number: Started(
                old_words.renamed_all(trial.user_attrs["parameters"]), trial.user_attrs["rung"]
            )
            for number, trial in self._trials.items()
        }

    def start(self, number: int, rung: int, parameters: Parameters) -> None:
        """A job begins; says nothing that is said already."""
        if number not in self._trials:
            inside = self.space.inside(parameters)  # Optuna takes no value outside its range
            self.study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=inside,
                    distributions={name: self.space.distributions[name] for name in inside},
                    user_attrs={"configuration": number, "parameters": parameters, "rung": rung},
                )
            )
        elif self._trials[number].user_attrs["rung"] < rung:
            self.storage.set_trial_user_attr(self._trials[number]._trial_id, "rung", rung)
        self._read(number)

    def report(self, number: int, rung: int, score: float) -> None:
        """A job's score; says nothing that is said already, or of a trial that has ended."""
        trial = self._trials[number]
        if rung not in trial.intermediate_values and not trial.state.is_finished():
            self.storage.set_trial_intermediate_value(trial._trial_id, rung, score)
            self._read(number)

    def end(self, number: int, state: TrialState) -> None:
        """Complete (value: the last score), pruned (the same) or failed."""
        trial = self._trials[number]
        if trial.state.is_finished():
            return
        complete = state == TrialState.COMPLETE
        value = trial.intermediate_values[max(trial.intermediate_values)] if complete else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a trial without any score
            self.study.tell(trial.number, value, state=state)
        self._read(number)

    def close(self) -> None:
        """Everything that waits at a rung will not be promoted any more."""
        for number in list(self._trials):
            self.end(number, TrialState.PRUNED)

    def _read(self, number: int) -> None:
        for trial in self.study.get_trials(deepcopy=False):
            if trial.user_attrs["configuration"] == number:
                self._trials[number] = trial
