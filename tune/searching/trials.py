"""Where a search meets Ray Tune: jobs become trials, Tune runs them first in, first out.

Promotion is an ordinary trial, and everything that must survive is in records and journal; what
Tune writes is disposable, under a fresh name per launch.
"""

import json
import os
import shutil
import time
import uuid
from dataclasses import asdict

from ray_jobs import slots
from spcl.errors import StorageError, UserError
from spcl.store import atomic
from tune.searching.driver import Driver
from tune.searching.jobs import STOPPED, Job, trial

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files per trial that nobody reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would save a state that we don't restore
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # records say why
    "RAY_AIR_NEW_OUTPUT": "0",  # whose first lines nothing turns off
}
HEAD = {"CPU": 0, "node:__internal_head__": 0.001}  # a trial that only waits for its workers


def connect(address: str | None) -> None:
    """Join or start Ray, with Tune as a search needs it.  UserError if nothing answers."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    slots.connect(address)


def climb(driver: Driver, devices: int, max_failures: int) -> None:
    """Run jobs until the search is over.  UserError where it can't go on."""
    from ray import tune
    from ray.tune.search import Searcher

    class Jobs(Searcher):
        """Adapter: the Driver as a Ray Tune Searcher."""

        def __init__(self) -> None:
            super().__init__()
            self.trials: dict[str, Job] = {}
            self.error: UserError | None = None

        # FINISHED, which the base class documents, is a str that its annotation forgets.
        def suggest(self, trial_id: str) -> dict | str | None:  # type: ignore[override]
            try:
                if self.error or driver.is_over:
                    return Searcher.FINISHED
                job = driver.next()
            except UserError as error:  # Tune would go on asking
                self.error = error
                return Searcher.FINISHED
            if job is None:
                return None
            self.trials[trial_id] = job
            return {"job": json.dumps(asdict(job))}

        def on_trial_complete(
            self, trial_id: str, result: dict | None = None, error: bool = False
        ) -> None:
            job = self.trials.pop(trial_id)
            if result and STOPPED in result:
                self.error = StorageError(result[STOPPED])
                return
            try:
                driver.finished(job, failed=error)
            except UserError as problem:
                self.error = problem

        def save(self, checkpoint_path: str) -> None:
            """Nothing: records and journal are the state."""

        def restore(self, checkpoint_path: str) -> None:
            raise NotImplementedError

        def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
            """Nothing, again."""

    jobs = Jobs()
    launch = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    folder = driver.search.folder / "ray"
    resources = HEAD if devices > 1 else driver.worker
    tuner = tune.Tuner(
        tune.with_resources(trial, resources),
        tune_config=tune.TuneConfig(
            search_alg=jobs,
            num_samples=-1,  # until the searcher says that it has finished
            reuse_actors=True,
            trial_name_creator=lambda one: one.trial_id,
            trial_dirname_creator=lambda one: one.trial_id,
        ),
        run_config=tune.RunConfig(
            name=launch,
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            verbose=0,
        ),
    )
    try:
        with atomic.writing(folder):
            tuner.fit()
    except Exception:  # what Tune makes of an error of ours
        if jobs.error is None:
            raise
    if jobs.error:
        raise jobs.error
    if not driver.is_over:
        raise UserError("Ray Tune ended before the search; the same command continues it")
    for old in folder.iterdir():
        shutil.rmtree(old, ignore_errors=True)
