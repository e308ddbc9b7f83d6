"""Jobs in this process, without Ray: what they make, and what their records say."""

import dataclasses
import json
import shutil

import pytest
import searches
import torch
from conftest import MINI
from optuna.trial import TrialState

from ray_jobs import piece
from spcl.artefacts import verify
from spcl.config import load
from spcl.data.convert import convert
from spcl.errors import ConfigError
from spcl.recipe import Recipe
from tune import jobs
from tune.driver import Driver
from tune.jobs import run
from tune.request import check_objective, with_holdout


@pytest.fixture(scope="module")
def started(mini_data, tmp_path_factory):
    """A search whose shared stages are made."""
    asked = searches.search(mini_data, tmp_path_factory.mktemp("runs"))
    return asked, run(asked.reference_job({}))


def job(asked, number=0, rung=0, **parameters):
    return asked.job(number, rung, asked.space.defaults(asked.config) | parameters, {})


def network(asked, record):
    folder = asked.storage / "artefacts" / record["artefact"]
    verify(folder)
    return torch.load(folder / "checkpoint.pt", weights_only=True)["method"]


def test_the_reference_makes_what_is_shared_and_nothing_else(started):
    asked, record = started
    assert record["status"] == "done" and record["shared_steps"] == {"adversarial": 6}
    assert record["steps"] == 0 and record["artefact"].startswith("adversarial-")
    assert record["validators"]["sd"].keys() == {"infomax", "nuclear", "consistency", "density"}
    made = sorted(path.name.rsplit("-", 1)[0] for path in (asked.storage / "artefacts").iterdir())
    shared = ["adversarial", "predictions-of-adversarial", "prototypes-of-adversarial"]
    assert [name for name in made if name in shared] == shared
    assert not list((asked.folder / "configurations/reference").glob("checkpoints/spcl*"))


def test_a_configuration_that_climbs_is_one_that_never_stopped(started, mini_data, tmp_path):
    asked, _ = started
    records = [run(job(asked, 0, rung)) for rung in range(4)]
    assert [record["steps"] for record in records] == [2, 1, 3, 4]
    assert all(record["shared_steps"] == {} for record in records)
    whole = searches.search(mini_data, tmp_path)
    run(whole.reference_job({}))
    straight = run(job(whole, 0, 3))
    climbed, at_once = network(asked, records[3]), network(whole, straight)
    assert climbed.keys() == at_once.keys()
    assert all(torch.equal(climbed[name], at_once[name]) for name in climbed)
    assert records[3]["validators"] == straight["validators"]
    assert [r["attempts"] for r in records] == [1, 1, 1, 1]


def test_a_finished_job_is_not_done_again(started, monkeypatch):
    asked, record = started
    monkeypatch.setattr(jobs, "perform", None)
    assert run(asked.reference_job({})) == record


def test_thresholds_need_no_inference_of_their_own(started):
    asked, _ = started
    run(job(asked, 1, 0, **{"pseudo_label.cap": 0.7}))
    run(job(asked, 2, 0, **{"pseudo_label.quantile": 0.2}))
    artefacts = [path.name for path in (asked.storage / "artefacts").iterdir()]
    assert sum(name.startswith("predictions-of-adversarial") for name in artefacts) == 1
    assert sum(name.startswith("adversarial") for name in artefacts) == 1


def test_a_loss_that_is_not_finite_is_a_record_with_its_reason(started):
    asked, _ = started
    ruined = job(asked, 5, 0)
    ruined.config["spcl"]["learning_rate"] = 1e30
    record = run(ruined)
    assert record["status"] == "failed" and record["artefact"] is None
    assert "the loss of stage 'spcl' must stay finite" in record["reason"]
    assert "TrainingError" in (ruined.run.folder / "traceback.txt").read_text()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("no room"), "MemoryError: no room"),
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
        (ZeroDivisionError(), "ZeroDivisionError: "),
    ],
)
def test_any_other_failure_is_one_too(error, reason, started, monkeypatch):
    asked, _ = started

    def fail(self):
        raise error

    monkeypatch.setattr(Recipe, "__call__", fail)
    failing = job(asked, 6, 0)
    failing.record.unlink(missing_ok=True)
    assert run(failing)["reason"] == reason


def test_attempts_are_counted_by_rung(started, monkeypatch):
    asked, _ = started

    def die(*_):
        raise KeyboardInterrupt  # as good as killed: no record

    with monkeypatch.context() as patched:
        patched.setattr(jobs, "perform", die)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run(job(asked, 7, 0))
    assert run(job(asked, 7, 0))["attempts"] == 3
    assert run(job(asked, 7, 1))["attempts"] == 1


def test_a_job_that_was_killed_counts_its_seconds_and_its_shared_steps(mini_data, tmp_path):
    """Shared stages that a killed attempt has stored are this job's still."""
    asked = searches.search(mini_data, tmp_path)
    reference = asked.reference_job({})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jobs, "_validators", lambda *_: fail())

        def fail():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(reference)
    spent = jobs.spent_before(reference)
    assert spent == 0.0  # of attempts before the only one
    record = run(reference)
    assert record["shared_steps"] == {"adversarial": 6} and record["attempts"] == 2
    assert 0 < jobs.spent_before(reference) < record["device_seconds"]


def test_seconds_of_killed_attempts_end_with_their_last_log_line(started):
    asked, _ = started
    one = job(asked, 11, 1)
    one.run.folder.mkdir(parents=True)
    starts = [{"time": t, "rung": r} for t, r in ((0, 0), (100, 1), (200, 1), (300, 1))]
    (one.run.folder / "attempts.jsonl").write_text("".join(json.dumps(s) + "\n" for s in starts))
    logged = [{"time": t} for t in (50, 120, 130, 199, 310)]
    text = "".join(json.dumps(line) + "\n" for line in logged)
    (one.run.folder / "metrics.jsonl").write_text(text + '{"ti')
    assert jobs.spent_before(one) == 99  # 100 to 199; the next has logged nothing


def test_a_job_waits_for_the_process_that_still_writes_its_configuration(started, monkeypatch):
    """A killed driver's workers live on for a while; the record they leave is the result."""
    asked, record = started
    waiting = job(asked, 8, 0)
    waiting.run.folder.mkdir(parents=True)
    lease = waiting.run.folder / "lease.json"
    lease.write_text(json.dumps({"host": "elsewhere", "pid": 1}))

    def finish(seconds):
        waiting.record.write_text(json.dumps(record))
        lease.unlink()

    monkeypatch.setattr(piece.time, "sleep", finish)
    assert run(waiting) == record


@pytest.fixture(scope="module")
def labelled(mini_data):
    """The target's training images, with their labels, for those who ask."""
    raw, out = mini_data / "streets/raw/cityscapes", mini_data / "streets/real/train_labelled"
    convert("cityscapes", raw, out, split="train_labelled", name="streets/real")
    yield
    shutil.rmtree(out)  # other tests share this data, and have no such labels


@pytest.mark.parametrize(("objective", "budget"), [("target_oracle", 3), ("few_label:5", 5)])
def test_objectives_of_labels_read_as_many_as_they_say(
    objective, budget, labelled, mini_data, tmp_path
):
    asked = searches.search(mini_data, tmp_path, objective=objective, trials=1)
    check_objective(objective, asked.config, mini_data)
    driver = Driver(asked)
    while not driver.is_over:
        one = driver.next()
        record = run(one)
        assert record["label_budget"] == budget
        driver.finished(one, failed=False)
    driver.close()
    (trial,) = driver.journal.study.trials
    assert trial.state == TrialState.COMPLETE and 0 <= trial.value <= 1
    found = record["validators"][objective.partition(":")[0]]
    assert trial.value == (found["value"] if budget == 5 else found)
    if budget == 5:
        assert found["images"] == 5 and found["low"] <= found["value"] <= found["high"]


def test_a_search_goes_on_with_other_devices_unless_they_change_its_results(mini_data, tmp_path):
    for name, switches in (("exact", []), ("local", ["spcl.sync=false"])):
        config = with_holdout(load("streets", "spcl", None, [*MINI, *switches]), mini_data)
        asked = searches.search(mini_data, tmp_path, name=name, config=config, devices=2)
        asked.open()
        asked.open()
        other = dataclasses.replace(asked, devices=1)
        if name == "exact":
            other.open()
            continue
        with pytest.raises(ConfigError, match=r"since spcl.sync=false: .* train.workers=2, got 1;"):
            other.open()
