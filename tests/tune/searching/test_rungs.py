import itertools

import pytest

from spcl.configuration.config import load
from spcl.engine.stages import plan
from spcl.errors import ConfigError
from tune.searching.experiment import REFERENCE
from tune.searching.rungs import (
    Result,
    added_steps,
    at_rung,
    cost_aware,
    expected_jobs,
    ladder,
    last_resort,
    next_job,
    reference_stages,
    reference_steps,
    references,
    shared_stages,
)

KEYS = ("spcl.temperature", "pseudo_label.cap")
DATA = {"source": "s", "target": "t", "evaluation": "e"}  # fingerprints


def results(*rows):
    return [Result(*row) for row in rows]


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([], None),
        ([(0, 0, 1.0), (1, 0, 2.0)], None),  # floor(2 / 3) of two
        ([(0, 0, 1.0), (1, 0, 3.0), (2, 0, 2.0)], (1, 1)),
        ([(0, 0, 1.0), (1, 0, 3.0), (2, 0, 2.0), (1, 1, 0.0)], None),  # has climbed already
        ([(0, 0, 5.0), (1, 0, 5.0), (2, 0, 5.0)], (0, 1)),  # equal: the lower number
        ([(2, 0, 5.0), (1, 0, 5.0), (0, 0, 4.0)], (1, 1)),
        ([(0, 0, None), (1, 0, None), (2, 0, 0.1)], (2, 1)),  # failures count, but don't climb
        ([(0, 0, None), (1, 0, None), (2, 0, None)], None),
        # Two of six may climb: the second best too, once the best has.
        ([(n, 0, float(n)) for n in range(6)], (5, 1)),
        ([*((n, 0, float(n)) for n in range(6)), (5, 1, 0.0)], (4, 1)),
        ([*((n, 0, float(n)) for n in range(6)), (5, 1, None)], (4, 1)),  # failed higher up
        # The highest rung first.
        ([*((n, 0, float(n)) for n in range(9)), *((n, 1, float(n)) for n in (6, 7, 8))], (8, 2)),
        # Nothing above the last rung.
        ([(n, r, float(n)) for n in range(3) for r in range(4)], None),
        # The shared network's result is no candidate.
        ([(REFERENCE, REFERENCE, 9.0), (0, 0, 1.0), (1, 0, 1.0)], None),
    ],
)
def test_the_best_third_of_a_rung_climbs(known, expected):
    assert next_job(results(*known), rungs=4, eta=3) == expected


def test_a_job_under_way_counts_as_climbed_and_not_as_finished():
    known = results((0, 0, 1.0), (1, 0, 3.0), (2, 0, 2.0))
    assert next_job(known, 4, 3, running=[(1, 1)]) is None
    assert next_job(known[:2], 4, 3, running=[(2, 0)]) is None


def test_an_asynchronous_sequence_worked_by_hand():
    """eta 2, three rungs; one job at a time.  Scores never change with the rung."""
    score = dict(enumerate([0.5, 0.1, 0.9, 0.3, 0.8, 0.7]))
    expected = [
        (0, 0),
        (1, 0),
        (0, 1),  # best of two
        (2, 0),  # three at rung 0, one may climb: 2, but then nobody else
        (2, 1),
        (2, 2),  # best of two at rung 1
        (3, 0),  # four at rung 0: 2 and 0 may, and both have
        (4, 0),
        (4, 1),  # of five two may climb: 2 has, so 4
        (5, 0),
        (5, 1),
    ]
    known, order, fresh = [], [], itertools.count()
    for _ in range(len(expected)):
        job = next_job(known, 3, 2) or (next(fresh), 0)
        order.append(job)
        known.append(Result(*job, score[job[0]]))
    assert order == expected


def test_cost_aware_prefers_what_gained_most_per_second():
    shared = (REFERENCE, REFERENCE, 1.0)
    known = results(
        shared,
        (0, 0, 4.0, 10.0),  # 0.3 a second over the shared network
        (1, 0, 3.0, 2.0),  # 1 a second
        *((n, 0, 0.0, 1.0) for n in range(2, 6)),
    )
    assert next_job(known, 4, 3) == (0, 1)
    assert cost_aware(known, 4, 3) == (1, 1)
    # One that has climbed is measured against its own score below.
    known += results((1, 1, 3.1, 1.0), (2, 1, 3.0, 1.0), (3, 1, 3.0, 1.0))
    assert cost_aware(known, 4, 3) == (0, 1)
    assert cost_aware([], 4, 3) is None


def test_at_the_end_the_best_climbs_until_one_is_on_top():
    known = results((0, 0, 1.0), (1, 0, 3.0), (2, 0, 2.0), (1, 1, 1.0))
    assert last_resort(known, 3) == (1, 2)
    assert last_resort([*known, Result(1, 2, 0.0)], 3) is None
    assert last_resort([*known, Result(1, 2, None)], 3) == (2, 1)  # it failed: the next best
    assert last_resort(results((0, 0, None)), 3) is None
    assert last_resort([], 3) is None


def test_the_ladder_is_a_quarter_half_and_all_of_the_first_touched_stage_then_each_later_one():
    config = load("streets", "spcl")
    rungs = ladder(config, KEYS)
    assert [(rung.name, rung.steps) for rung in rungs] == [
        ("spcl 1/4", {"adversarial": 1200, "spcl": 300}),
        ("spcl 1/2", {"adversarial": 1200, "spcl": 600}),
        ("spcl", {"adversarial": 1200, "spcl": 1200}),
        ("self_training", {"adversarial": 1200, "spcl": 1200, "self_training": 1200}),
    ]
    assert shared_stages(config, KEYS) == ("adversarial",)
    added = [added_steps(rungs, r, ("adversarial",)) for r in range(4)]
    assert [sum(a.values()) for a in added] == [300, 300, 600, 1200]
    assert added[3] == {"spcl": 0, "self_training": 1200}


def test_thresholds_touch_the_first_stage_that_reads_predictions():
    config = load("streets", "spcl")
    assert shared_stages(config, ["pseudo_label.cap"]) == ("adversarial",)
    assert shared_stages(config, ["self_training.learning_rate"]) == ("adversarial", "spcl")
    rungs = ladder(config, ["self_training.learning_rate"])
    assert [rung.name for rung in rungs] == [
        "self_training 1/4",
        "self_training 1/2",
        "self_training",
    ]


@pytest.mark.parametrize("key", ["adversarial.learning_rate", "train.clip_norm", "source.flip"])
def test_where_the_first_stage_is_touched_its_steps_are_what_rungs_cut(key):
    config = load("streets", "spcl")
    rungs = ladder(config, [key])
    assert shared_stages(config, [key]) == ()
    assert [(rung.name, sum(rung.steps.values())) for rung in rungs] == [
        ("adversarial 1/4", 300),
        ("adversarial 1/2", 600),
        ("adversarial", 1200),
        ("spcl", 2400),
        ("self_training", 3600),
    ]
    assert rungs[0].stages == ("adversarial",)
    added = [sum(added_steps(rungs, rung, ()).values()) for rung in range(5)]
    assert added == [300, 300, 600, 1200, 1200]


def test_the_reference_of_a_recipe_without_shared_stages_is_an_ordinary_source_only_stage():
    """Its key is that of a source-only run which holds out as many images."""
    ordinary = load("streets", "source_only")
    for method, keys in (
        ("adversarial", ["adversarial.weight"]),
        ("source_only", ["source_only.learning_rate"]),
        ("spcl", ["spcl.temperature", "adversarial.weight"]),
    ):
        config = load("streets", method)
        assert reference_stages(config, keys) == ("source_only",)
        whole = references(config, keys)[-1]
        assert not whole.evaluation.wanted
        (mine,) = plan(whole, DATA)
        assert mine.key == plan(ordinary, DATA)[0].key
        assert mine.progress == plan(references(config, keys)[0], DATA)[0].progress


def test_a_rung_is_measured_against_as_many_steps_of_source_only_training():
    keys = ["adversarial.weight"]
    config = load("streets", "spcl", None, ["source_only.steps=2000"])
    steps = reference_steps(config, ladder(config, keys))
    assert steps == (300, 600, 1200, 2000, 2000)  # at most its own
    made = [recipe.of("source_only").steps for recipe in references(config, keys)]
    assert made == [300, 600, 1200, 2000]
    short = load("streets", "adversarial")
    made = [recipe.of("source_only").steps for recipe in references(short, keys)]
    assert made == [300, 600, 1200, 3600]  # the whole one is an ordinary stage


def test_a_shared_reference_is_what_comes_before_the_first_touched_stage():
    config = load("streets", "spcl")
    assert reference_stages(config, KEYS) == ("adversarial",)
    assert references(config, KEYS) == (at_rung(config, ladder(config, KEYS)[0]),)


def test_a_reference_whose_settings_do_not_go_together_is_refused():
    config = load("streets", "adversarial", None, ["source_only.steps=5000"])
    with pytest.raises(ConfigError, match=r"source_only\.horizon must be at least"):
        references(config, ["adversarial.weight"])


@pytest.mark.parametrize("key", ["model.norm", "source.holdout", "target.size"])
def test_what_one_audit_must_find_alike_in_all_networks_is_not_searched(key):
    with pytest.raises(ConfigError, match=f"space can't hold {key}; .* given as {key}=VALUE"):
        ladder(load("streets", "spcl"), [key])


def test_a_stage_too_short_for_quarters_has_fewer_rungs():
    config = load("streets", "spcl", None, ["spcl.steps=1"])
    assert [rung.name for rung in ladder(config, KEYS)] == ["spcl", "self_training"]


def test_a_rung_stops_the_schedule_without_rescaling_it_and_shuts_the_targets_labels():
    config = load("streets", "spcl")
    here = at_rung(config, ladder(config, KEYS)[0])
    assert here.stages == ("adversarial", "spcl")
    assert (here.of("spcl").steps, here.of("spcl").horizon) == (300, config.of("spcl").horizon)
    assert not here.evaluation.wanted
    here.check()


def test_expected_jobs_are_those_of_halving():
    assert expected_jobs(16, 4, 3) == [16, 5, 1, 1]
    assert expected_jobs(27, 4, 3) == [27, 9, 3, 1]
