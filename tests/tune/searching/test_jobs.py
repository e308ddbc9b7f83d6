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
from spcl.configuration.config import load
from spcl.data.convert import convert
from spcl.data.request import Options
from spcl.data.shards import ShardSet
from spcl.engine.artefacts import verify
from spcl.engine.inputs import split_source
from spcl.engine.networks import load_segmentor
from spcl.engine.recipe import Recipe
from spcl.engine.trainer import Context
from spcl.errors import ConfigError
from spcl.inference.validation import validate
from spcl.store.run_folder import RunFolder
from tune.searching import jobs
from tune.searching.driver import Driver
from tune.searching.experiment import REFERENCE, score_of
from tune.searching.jobs import run
from tune.searching.request import check_objective, with_holdout


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


@pytest.fixture(scope="module")
def alone(mini_data, tmp_path_factory):
    """A search of a recipe of one stage, whose reference is made."""
    asked = searches.search(
        mini_data,
        tmp_path_factory.mktemp("runs"),
        "source_only.steps=8",
        method="adversarial",
        lines=searches.WEIGHT,
        objective="label_free",
    )
    return asked, run(asked.reference_job({}))


def ordinary(asked, method, *settings):
    """The network of a method's ordinary run with the search's holdout, made elsewhere."""
    held = f"source.holdout={asked.config.source.holdout}"
    config = load("streets", method, None, [*MINI, held, "evaluation.dataset=none", *settings])
    storage = asked.storage / "elsewhere"
    recipe = Recipe(config, asked.data, RunFolder(storage / method), Context())
    recipe()
    (stage,) = recipe.stages
    return stage.folder, recipe.store.open(stage)


def test_without_shared_stages_the_reference_is_an_ordinary_run_measured_for_every_rung(alone):
    asked, record = alone
    assert record["shared_steps"] == {"source_only": 8} and record["steps"] == 0
    name, folder = ordinary(asked, "source_only", "source_only.steps=8")
    assert record["artefact"] == name
    theirs = torch.load(folder / "checkpoint.pt", weights_only=True)["method"]
    assert all(torch.equal(theirs[key], value) for key, value in network(asked, record).items())
    # Rungs of 2, 3 and 6 steps: each is what a run of as many steps gives.
    assert asked.reference_steps == (2, 3, 6) and len(record["rungs"]) == 3
    _, folder = ordinary(asked, "source_only", "source_only.steps=3")
    held = split_source(asked.config, ShardSet(asked.data / "streets/sim/train"))[1]
    target = ShardSet(asked.data / "streets/real/train")
    segmentor = load_segmentor(asked.config, 19, folder)
    found = validate(
        segmentor, held, target, asked.config, torch.device("cpu"), bootstrap=jobs.BOOTSTRAP
    )
    assert record["rungs"][1] == found != record["validators"]


def test_a_first_stage_that_climbs_is_one_that_never_stopped(alone):
    asked, reference = alone
    records = [run(job(asked, 0, rung)) for rung in range(3)]
    assert [record["steps"] for record in records] == [2, 1, 3]
    assert all(record["shared_steps"] == {} for record in records)
    name, folder = ordinary(asked, "adversarial")
    assert records[2]["artefact"] == name
    theirs = torch.load(folder / "checkpoint.pt", weights_only=True)["method"]
    assert all(torch.equal(theirs[key], value) for key, value in network(asked, records[2]).items())
    metrics = (job(asked).run.folder / "metrics.jsonl").read_text()
    assert metrics.count("resumed at step") == 2
    trained = [r for r in RunFolder(job(asked).run.folder).metrics() if r["stage"] == "adversarial"]
    assert len(trained) == 6


def test_a_rung_is_scored_against_the_reference_after_as_many_steps(alone):
    asked, reference = alone
    record = {"status": "done", "rung": 1, "validators": reference["rungs"][1]}
    assert score_of(record, reference, "label_free") == 0
    whole = record | {"rung": REFERENCE, "validators": reference["validators"]}
    assert score_of(whole, reference, "label_free") == 0
    assert score_of(record | {"rung": 0}, reference, "density") != 0


def test_the_default_of_a_source_only_search_is_the_reference_and_trains_nothing(
    mini_data, tmp_path
):
    asked = searches.search(mini_data, tmp_path, method="source_only", lines=searches.RATE)
    reference = run(asked.reference_job({}))
    record = run(job(asked, 0, 2))
    assert record["artefact"] == reference["artefact"] and record["steps"] == 0
    assert not list(RunFolder(job(asked).run.folder).metrics())
    assert asked.job(1, 2, {"source_only.learning_rate": 0.05}, {}).steps == 3


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
    convert("cityscapes", raw, out, split="train_labelled", options=Options(name="streets/real"))
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
