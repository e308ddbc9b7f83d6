"""What a search does next, and what it makes of what came back.  No Ray in here.

State is on disk alone: the jobs' records, and the journal for what has been started.  A driver that
is killed and started again goes on with the jobs that were under way.
"""

import time
from collections.abc import Callable
from pathlib import Path

from optuna.trial import TrialState

from spcl.errors import UserError
from tune.searching.experiment import REFERENCE, read_job, score_of
from tune.searching.jobs import Job, record_path, write_failure
from tune.searching.request import Search
from tune.searching.rungs import PROMOTIONS, JobKey, Result, expected_jobs, last_resort
from tune.searching.study import Journal, Seen, propose

Say = Callable[[str], None]


class Driver:
    """Hands out jobs, at most `slots` at a time, and takes in their records.

    worker  what each worker of a job reserves
    """

    def __init__(self, search: Search, say: Say = lambda text: None):
        self.search, self.say = search, say
        self.worker: dict[str, float] = {}
        self.slots = 1
        self.journal = Journal(search.folder, search.space)
        self.records: dict[JobKey, dict] = {}
        self.running: dict[JobKey, Job] = {}
        found = [read_job(path) for path in (search.folder / "jobs").glob("*.json")]
        for record in sorted(found, key=lambda r: (r["configuration"], r["rung"])):
            self._take_in(record)  # the reference first
        self.unfinished = [
            (number, started.rung)
            for number, started in sorted(self.journal.started().items())
            if not any(n == number and r >= started.rung for n, r in self.records)
        ]
        self.known_before = len(self.records)
        self.started = time.monotonic()

    @property
    def reference(self) -> dict | None:
        """The reference's record.  UserError where it failed: nothing can be scored without it."""
        record = self.records.get((REFERENCE, REFERENCE))
        if record and record["status"] == "failed":
            raise UserError(f"{self._reference_name} failed: {record['reason']}")
        return record

    @property
    def is_over(self) -> bool:
        """Is there nothing left to do?"""
        return not self.running and self.reference is not None and self._choose() is None

    def next(self) -> Job | None:
        """A job to start now; None while one must wait, and at the end."""
        if len(self.running) >= self.slots:
            return None
        if self.reference is None:  # everything else starts from it, or is scored against it
            chosen = None if self.running else (REFERENCE, REFERENCE)
        else:
            chosen = self._choose()
        if chosen is None:
            return None
        job = self._job(*chosen)
        if not job.is_reference:
            self.journal.start(job.configuration, job.rung, job.parameters)
            self.unfinished = [one for one in self.unfinished if one != chosen]
        self.running[chosen] = job
        return job

    def _choose(self) -> JobKey | None:
        if self.unfinished:
            return self.unfinished[0]
        search, results = self.search, self.results()
        promoted = PROMOTIONS[search.promotion](
            results, len(search.rungs), search.eta, self.running.keys()
        )
        if promoted:
            return promoted
        number = self._free_number()
        if number < search.trials:
            return number, 0
        return None if self.running else last_resort(results, len(search.rungs))

    def _free_number(self) -> int:
        used = {number for number, _ in self.records} | self.journal.started().keys()
        return next(number for number in range(len(used) + 1) if number not in used)

    def _job(self, number: int, rung: int) -> Job:
        if number == REFERENCE:
            return self.search.reference_job(self.worker)
        started = self.journal.started().get(number)
        if started:
            parameters = started.parameters
        else:
            s = self.search
            parameters = propose(s.sampler, s.seed, number, s.space, s.config, self.seen())
        return self.search.job(number, rung, parameters, self.worker)

    def finished(self, job: Job, failed: bool) -> None:
        """A job has ended; `failed`: all retries are used up and no record was written."""
        self.running.pop((job.configuration, job.rung))
        path = record_path(self.search.folder, job.configuration, job.rung)
        if not path.is_file():
            reason = "its process was killed or lost, in every attempt" if failed else "no record"
            write_failure(job, reason, self.search.max_failures + 1)
        record = read_job(path)
        self._take_in(record)
        self.say(self._line(record))

    def _take_in(self, record: dict) -> None:
        """A record becomes known, and the journal says so."""
        number, rung = record["configuration"], record["rung"]
        self.records[number, rung] = record
        if number == REFERENCE:
            return
        self.journal.start(number, rung, record["parameters"])
        score = self.score(record)
        if score is not None:
            self.journal.report(number, rung, score)
        if record["status"] == "failed":
            self.journal.end(number, TrialState.FAIL)
        elif rung == len(self.search.rungs) - 1:
            complete = score is not None
            self.journal.end(number, TrialState.COMPLETE if complete else TrialState.PRUNED)

    def score(self, record: dict) -> float | None:
        """By the search's objective; None for a failure or a violated constraint."""
        reference = self.records[REFERENCE, REFERENCE]
        if record["status"] != "done":
            return None
        return score_of(record, reference, self.search.objective)

    def results(self) -> list[Result]:
        """Every record as the promotion rules read them; the reference's if all start from it."""
        return [
            Result(number, rung, self.score(record), record["device_seconds"])
            for (number, rung), record in sorted(self.records.items())
            if number != REFERENCE or self.search.shared
        ]

    def seen(self) -> list[Seen]:
        """Every configuration with a record, as the sampler reads them."""
        numbers = sorted({number for number, _ in self.records} - {REFERENCE})
        found = []
        for number in numbers:
            mine = {r: record for (n, r), record in self.records.items() if n == number}
            scores = {rung: self.score(record) for rung, record in sorted(mine.items())}
            last = max(mine)
            known = {rung: value for rung, value in scores.items() if value is not None}
            found.append(Seen(mine[last]["parameters"], known, bad=scores[last] is None))
        return found

    def close(self) -> None:
        """Nobody climbs any more: tell the journal."""
        self.journal.close()

    @property
    def _reference_name(self) -> str:
        """What the reference job makes, for people."""
        if self.search.shared:
            return "the stages that all configurations share"
        return f"the reference network ({', '.join(self.search.reference_stages)})"

    def _line(self, record: dict) -> str:
        """One finished job, for people."""
        jobs = [job for job in self.records if job != (REFERENCE, REFERENCE)]
        expected = sum(expected_jobs(self.search.trials, len(self.search.rungs), self.search.eta))
        minutes = (time.monotonic() - self.started) / 60
        done_here = len(self.records) - self.known_before
        left = max(expected - len(jobs), 0) * minutes / done_here
        count = f"[{len(jobs)}/~{max(expected, len(jobs))}]"
        if record["configuration"] == REFERENCE:
            return f"{count} {self._reference_name}: ready"
        where = f"configuration {record['configuration']}, {self.search.rungs[record['rung']].name}"
        if record["status"] == "failed":
            return f"{count} {where}: failed: {record['reason']}"
        score = self.score(record)
        text = "violates a constraint" if score is None else f"{score:.4f}"
        here = [r.score for r in self.results() if r.rung == record["rung"] and r.score is not None]
        best = f", best of this rung {max(here):.4f}" if here else ""
        return f"{count} {where}: {text}{best}; about {left:.0f} min left"


def forget_failed_reference(folder: Path) -> None:
    """A search whose reference failed may be tried again."""
    path = record_path(folder, REFERENCE, REFERENCE)
    if path.is_file() and read_job(path)["status"] == "failed":
        path.unlink()
