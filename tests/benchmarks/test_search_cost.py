"""The cost benchmark with four configurations of a few steps: its counts, picks and its claim."""

import dataclasses
import json

import pytest
from conftest import MINI

from benchmarks import search_cost
from spcl.inference import validation
from tune.searching import jobs
from tune.searching.driver import Driver
from tune.searching.experiment import Experiment
from tune.searching.rungs import Result, last_resort, next_job

pytestmark = pytest.mark.slow
CONFIGURATIONS, RUNGS, ETA = 4, 4, 2
WARM_UP, STEPS = 6, [2, 1, 3, 4]  # a quarter, half and all of 6; then self-training


@pytest.fixture(scope="module")
def lenient():
    """Networks of a few steps predict few classes, and all would be forbidden."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "CLASS_FLOOR", 0.0)
        patch.setattr(validation, "SOURCE_FLOOR", 0.0)
        yield


@pytest.fixture(scope="module")
def command(mini_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cost")
    options = ["--configurations", f"{CONFIGURATIONS}", "--seeds", "0", "--eta", f"{ETA}"]
    places = ["--data", str(mini_data), "--storage", str(folder / "runs")]
    return [*options, *places, "--out", str(folder / "result.json"), *MINI]


@pytest.fixture(scope="module")
def result(command, lenient):
    assert search_cost.main(command) == 0
    return json.loads(open(command[command.index("--out") + 1]).read())


@pytest.fixture(scope="module")
def whole(command, result):
    """(a)'s search."""
    parsed = {"configurations": CONFIGURATIONS, "scale": 1.0, "eta": ETA, "settings": list(MINI)}
    parsed |= {name: command[command.index(f"--{name}") + 1] for name in ("data", "storage")}
    return search_cost.make_search(search_cost.argparse.Namespace(**parsed), 0)


def test_whole_runs_count_every_step_and_the_warm_up_once(result):
    cost = result["seeds"][0]["whole"]
    assert cost["jobs"] == [CONFIGURATIONS] * RUNGS
    assert cost["steps"] == WARM_UP + CONFIGURATIONS * sum(STEPS)


def test_rungs_run_the_jobs_that_successive_halving_asks_for(result, whole):
    experiment = Experiment(whole.folder)
    scores = {(r["configuration"], r["rung"]): experiment.score(r) for r in experiment.records}
    results, order = [], []
    while True:
        job = next_job(results, RUNGS, ETA)
        fresh = sum(rung == 0 for _, rung in order)
        job = job or ((fresh, 0) if fresh < CONFIGURATIONS else last_resort(results, RUNGS))
        if job is None:
            break
        order.append(job)
        results.append(Result(*job, scores[job]))
    cost = result["seeds"][0]["rungs"]
    assert [tuple(job) for job in cost["order"]] == order
    assert cost["steps"] == WARM_UP + sum(STEPS[rung] for _, rung in order)
    assert cost["steps"] < result["seeds"][0]["whole"]["steps"]


def test_regrets_are_against_the_best_whole_run_by_the_oracle(result, whole):
    rows = search_cost.pq.read_table(whole.folder / "audit.parquet").to_pylist()
    oracle = {(row["configuration"], row["rung"]): row["oracle"] for row in rows}
    best = max(oracle[number, RUNGS - 1] for number in range(CONFIGURATIONS))
    (seed,) = result["seeds"]
    assert seed["best"]["oracle"] == best
    for way in ("whole", "rungs"):
        pick = seed[way]["pick"]
        assert pick["regret"] == best - oracle[pick["configuration"], pick["rung"]]
    assert (
        seed["whole"]["pick"]["configuration"] == Experiment(whole.folder).chosen["configuration"]
    )


def test_second_run_trains_nothing_and_finds_the_same(result, command, monkeypatch, capsys):
    def never(*_):
        raise AssertionError("a job ran twice")

    monkeypatch.setattr(jobs, "perform", never)
    assert search_cost.main(command) == 0
    again = json.loads(open(command[command.index("--out") + 1]).read())
    assert again["seeds"] == result["seeds"]
    printed = capsys.readouterr().out
    assert "steps of (b)" in printed and ("holds" in printed or "DOES NOT HOLD" in printed)


def test_recorded_jobs_are_those_that_a_search_through_rungs_would_have_run(
    result, whole, tmp_path
):
    """What makes the replay exact: the driver really runs, in another storage, job by job."""
    search = dataclasses.replace(whole, storage=tmp_path)
    search.open()
    driver, compared = Driver(search), 0
    while compared < 5 and (job := driver.next()) is not None:
        mine = jobs.run(job)
        driver.finished(job, failed=False)
        recorded = json.loads(
            jobs.record_path(whole.folder, job.configuration, job.rung).read_text()
        )
        for key in ("configuration", "rung", "settings", "artefact", "steps", "validators"):
            assert mine[key] == recorded[key]
        compared += 1
    assert compared == 5


def test_verdicts_follow_the_limits():
    def seed(steps: int, regret: float) -> dict:
        whole = {"steps": 1000, "device_seconds": 10.0, "pick": {"regret": 0.01}}
        rungs = {"steps": steps, "device_seconds": 2.0, "pick": {"regret": regret}}
        return {"whole": whole, "rungs": rungs}

    assert search_cost.conclude([seed(250, 0.02), seed(250, 0.0)])["holds"] == {
        "steps": True,
        "regret": True,
    }
    found = search_cost.conclude([seed(260, 0.021), seed(250, 0.0209)])
    assert found["holds"] == {"steps": False, "regret": False}
    assert found["steps_share"] == pytest.approx(0.255)


def test_recorded_command_names_no_place_on_the_machine():
    given = ["--seeds", "0..2", "--data", "/a", "--storage=/b", "seed=1", "--out", "/c"]
    expected = "python benchmarks/search_cost.py --seeds 0..2 seed=1"
    assert search_cost.command(given) == expected
