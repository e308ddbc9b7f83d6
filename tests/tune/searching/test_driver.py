"""The driver without Ray: jobs that only pretend to train."""

import random

import pytest
import searches
from optuna.trial import TrialState

from spcl.errors import ConfigError, UserError
from tune.searching.driver import Driver, forget_failed_reference
from tune.searching.experiment import REFERENCE
from tune.searching.jobs import record_path, write_failure
from tune.searching.rungs import Result, cost_aware
from tune.searching.study import mend


def trials(driver):
    """The study, without clocks."""
    return [
        (t.state, t.params, t.intermediate_values, t.values) for t in driver.journal.study.trials
    ]


def undisturbed(data, storage, slots=1, **asked):
    driver = Driver(searches.search(data, storage, **asked))
    driver.slots = slots
    searches.work(driver, [0] * 99)
    return driver


def test_a_search_climbs_by_thirds_and_ends_on_top(mini_data, tmp_path):
    driver = undisturbed(mini_data, tmp_path)
    rungs = [rung for number, rung in driver.records if number != REFERENCE]
    assert rungs.count(0) == 9 and 3 <= rungs.count(1) <= 5 and rungs.count(3) >= 1
    states = [trial[0] for trial in trials(driver)]
    assert states.count(TrialState.COMPLETE) == rungs.count(3)
    assert states.count(TrialState.PRUNED) == 9 - rungs.count(3)
    first = driver.records[0, 0]
    assert first["settings"] == {
        key: value for key, value in first["settings"].items() if key in driver.search.space.keys
    }
    assert first["parameters"] == driver.search.space.defaults(driver.search.config)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_the_same_seed_gives_the_same_study_twice(sampler, mini_data, tmp_path):
    one, other = (
        undisturbed(mini_data, tmp_path / name, sampler=sampler) for name in ("one", "other")
    )
    assert trials(one) == trials(other)
    another = undisturbed(mini_data, tmp_path / "another", sampler=sampler, seed=1)
    assert trials(another) != trials(one)


@pytest.mark.parametrize("seed", range(10))
def test_a_driver_killed_at_any_moment_finds_the_same_study(seed, mini_data, tmp_path):
    """One slot; every life of the driver ends with a job under way, or with a torn journal."""
    rng = random.Random(seed)
    expected = undisturbed(mini_data, tmp_path / "a", trials=6)
    asked = searches.search(mini_data, tmp_path / "b", trials=6)
    for _ in range(5):
        mend(asked.folder)
        searches.work(Driver(asked), [0] * 99, stop_after=rng.randrange(4))
        journal = asked.folder / "journal.log"
        if rng.random() < 0.5:  # the last lines never reached the disk, one of them only half
            text = journal.read_bytes()
            journal.write_bytes(text[: len(text) - rng.randrange(600)])
        if rng.random() < 0.5:  # the job went on by itself and finished
            mend(asked.folder)
            driver = Driver(asked)
            if not driver.is_over and (job := driver.next()):
                searches.pretend(job)
    mend(asked.folder)
    driver = Driver(asked)
    searches.work(driver, [0] * 99)
    assert searches.records(asked.folder) == searches.records(expected.search.folder)
    assert [trial[1:] for trial in trials(driver)] == [trial[1:] for trial in trials(expected)]


@pytest.mark.parametrize("seed", range(5))
def test_no_job_is_lost_or_done_twice_with_several_slots(seed, mini_data, tmp_path):
    rng = random.Random(seed)
    asked = searches.search(mini_data, tmp_path, trials=12)
    order = [rng.randrange(99) for _ in range(99)]
    under_way = {}
    for _ in range(4):
        driver = Driver(asked)
        driver.slots = 3
        again = {job: driver.journal.started()[job[0]].parameters for job in driver.unfinished}
        assert again == under_way  # what was under way is what goes on, with its parameters
        searches.work(driver, order, stop_after=rng.randrange(2, 6))
        under_way = {key: job.parameters for key, job in driver.running.items()}
        under_way.pop((REFERENCE, REFERENCE), None)
        if driver.is_over:
            break
    searches.work(Driver(asked), order)
    found = searches.records(asked.folder)
    assert sum(name.endswith("-0.json") for name in found) == 12
    assert any(name.endswith("-3.json") for name in found)
    for name in found:  # every rung below was climbed first
        number, _, rung = name.removesuffix(".json").partition("-")
        assert not rung or all(f"{number}-{r}.json" in found for r in range(int(rung)))


def test_at_most_as_many_jobs_run_as_there_are_slots(mini_data, tmp_path):
    driver = Driver(searches.search(mini_data, tmp_path))
    driver.slots = 3
    job = driver.next()
    assert job.is_reference and driver.next() is None  # nothing else can start
    searches.pretend(job)
    driver.finished(job, failed=False)
    started = [driver.next() for _ in range(4)]
    assert [(job.configuration, job.rung) for job in started[:3]] == [(0, 0), (1, 0), (2, 0)]
    assert started[3] is None and not driver.is_over


def test_a_failure_is_recorded_and_the_search_goes_on(mini_data, tmp_path):
    said = []
    driver = Driver(searches.search(mini_data, tmp_path, trials=3), said.append)
    while not driver.is_over:
        job = driver.next()
        if job.configuration == 1:
            write_failure(job, "the loss must stay finite", 1)
        elif job.configuration != 2:  # 2 is killed as often as it may be
            searches.pretend(job)
        driver.finished(job, failed=job.configuration == 2)
    driver.close()
    found = searches.records(driver.search.folder)
    assert {f"000{n}-0.json": found[f"000{n}-0.json"]["reason"] for n in range(3)} == {
        "0000-0.json": None,
        "0001-0.json": "the loss must stay finite",
        "0002-0.json": "its process was killed or lost, in every attempt",
    }
    assert found["0002-0.json"]["attempts"] == 2
    states = [trial[0] for trial in trials(driver)]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    assert any("failed: the loss must stay finite" in line for line in said)
    assert not Driver(driver.search).unfinished  # and are not tried again


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({}, "the stages that all configurations share"),
        (
            {"method": "adversarial", "lines": searches.WEIGHT},
            r"the reference network \(source_only\)",
        ),
    ],
)
def test_without_its_reference_there_is_no_search_until_it_is_tried_again(
    asked, what, mini_data, tmp_path
):
    driver = Driver(searches.search(mini_data, tmp_path, **asked))
    write_failure(driver.next(), "no space left on device", 1)
    with pytest.raises(UserError, match=f"{what} failed: no space left"):
        driver.finished(driver.running[REFERENCE, REFERENCE], failed=False)
        driver.next()
    forget_failed_reference(driver.search.folder)
    assert Driver(driver.search).next().is_reference


def test_a_reference_that_nobody_starts_from_is_no_result(mini_data, tmp_path):
    """By gain over it per second, of two that are below it the slower one would climb."""
    asked = searches.search(mini_data, tmp_path, method="adversarial", lines=searches.WEIGHT)
    said = []
    driver = Driver(asked, said.append)
    driver.slots = 4
    job = driver.next()
    validators = {"finite": True, "source_val": 0.9}
    found = {"validators": validators, "device_seconds": 1.0, "rungs": [validators] * 3}
    searches.write(job, found)
    driver.finished(job, failed=False)
    assert said == ["[0/~13] the reference network (source_only): ready"]
    started = [driver.next() for _ in range(4)]
    for job, score, seconds in zip(
        started, (0.5, 0.5, 0.1, 0.1), (1.0, 9.0, 1.0, 1.0), strict=True
    ):
        validators = {"finite": True, "source_val": score}
        searches.write(job, {"validators": validators, "device_seconds": seconds})
        driver.finished(job, failed=False)
    assert [result.configuration for result in driver.results()] == [0, 1, 2, 3]
    below = [Result(REFERENCE, REFERENCE, 0.9), *driver.results()]
    assert cost_aware(below, 3, 2) == (1, 1) and cost_aware(driver.results(), 3, 2) == (0, 1)


def test_a_violated_constraint_is_told_to_the_sampler_and_never_climbs(mini_data, tmp_path):
    driver = Driver(searches.search(mini_data, tmp_path, trials=1))
    reference = driver.next()
    searches.pretend(reference)
    driver.finished(reference, failed=False)
    job = driver.next()
    searches.pretend(job)
    text = job.record.read_text().replace('"finite": true', '"finite": false')
    job.record.write_text(text)
    driver.finished(job, failed=False)
    (seen,) = driver.seen()
    assert seen.bad and seen.scores == {} and driver.is_over


def test_another_request_under_the_same_name_is_refused_with_the_difference(mini_data, tmp_path):
    searches.search(mini_data, tmp_path).open()
    searches.search(mini_data, tmp_path).open()
    with pytest.raises(ConfigError, match=r"'s' exists .* \(trials: 9 -> 12\); choose another"):
        searches.search(mini_data, tmp_path, trials=12).open()
    shallow = searches.search(mini_data, tmp_path)
    space = type(shallow.space)(shallow.space.parameters[1:])
    with pytest.raises(ConfigError, match=r"space\.spcl\.prototype_momentum\.high: 0\.999 -> None"):
        searches.search(mini_data, tmp_path, space=space).open()


def test_a_jobs_config_opens_no_label_of_the_target_unless_the_objective_is_made_of_them(
    mini_data, tmp_path
):
    for objective, budget in (("label_free", 0), ("target_oracle", 3), ("few_label:5", 5)):
        asked = searches.search(mini_data, tmp_path, objective=objective)
        job = asked.job(1, 0, asked.space.defaults(asked.config), {})
        assert job.config["evaluation"]["dataset"] == "none"
        assert (job.oracle is not None) == (objective == "target_oracle")
        assert job.label_budget == asked.as_dict()["label_budget"] == budget


def test_records_are_numbered_by_configuration_and_rung(tmp_path):
    assert record_path(tmp_path, 3, 1).name == "0003-1.json"
    assert record_path(tmp_path, REFERENCE, REFERENCE).name == "reference.json"
