import json

import optuna
import pytest
from optuna.trial import TrialState

from spcl.configuration.config import load
from tune.searching.experiment import SAMPLERS
from tune.searching.space import load_space
from tune.searching.study import Journal, Seen, mend, propose, view


@pytest.fixture(scope="module")
def config():
    return load("streets", "spcl")


@pytest.fixture(scope="module")
def space(config):
    return load_space("spcl", config)


def history(space, count, seed=3):
    """Configurations on made-up rungs: the more, the higher the cap."""
    seen = []
    for n in range(count):
        parameters = propose("random", seed, n + 1, space, None, ())
        cap = parameters["pseudo_label.cap"]
        scores = {rung: cap + rung for rung in range(1 + n % 3)}
        seen.append(Seen(parameters, scores, bad=n % 5 == 4))
    return seen


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_default_configuration_comes_first(sampler, space, config):
    assert propose(sampler, 7, 0, space, config, ()) == space.defaults(config)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_proposal_is_a_pure_function_of_seed_number_and_what_is_known(sampler, space, config):
    seen = history(space, 15)

    def proposed(seed, number):
        found = propose(sampler, seed, number, space, config, seen)
        assert space.inside(found) == found and found.keys() == space.distributions.keys()
        return tuple(found.values())

    assert proposed(1, 4) == proposed(1, 4)
    assert len({proposed(1, 4), proposed(2, 4), proposed(1, 5)}) == 3


def test_qmc_is_one_scrambled_sobol_sequence(space, config):
    from scipy.stats import qmc

    points = qmc.Sobol(len(space.parameters), scramble=True, rng=5).random(8)
    for number, point in enumerate(points, 1):
        assert propose("qmc", 5, number, space, config, ()) == space.at(point.tolist())


def test_tpe_goes_where_scores_were_good(space, config):
    """Scores rise with the cap alone; proposals follow, and random ones don't."""
    seen = history(space, 40)
    found = [propose("tpe", 0, n, space, config, seen)["pseudo_label.cap"] for n in range(41, 61)]
    assert sum(cap > 0.835 for cap in found) >= 15  # the middle of the range


def test_the_view_shows_waiting_configurations_as_pruned_with_their_last_value(space):
    seen = history(space, 6)
    trials = view(0, 6, space, seen).get_trials()
    assert {trial.state for trial in trials} == {TrialState.PRUNED}
    for one, trial in zip(seen, trials, strict=True):
        assert trial.params == one.parameters
        assert trial.intermediate_values == ({} if one.bad else one.scores)


def test_the_view_leaves_out_what_lies_outside_the_ranges(space, config):
    defaults = space.defaults(config) | {"pseudo_label.cap": 0.99}
    assert view(0, 1, space, [Seen(defaults, {0: 1.0})]).get_trials() == []


def parameters(space, config, number=1):
    return propose("random", 0, number, space, config, ())


def test_the_journal_remembers_what_was_started_and_says_nothing_twice(tmp_path, space, config):
    for _ in range(2):
        journal = Journal(tmp_path, space)
        journal.start(0, 0, space.defaults(config))
        journal.start(1, 0, parameters(space, config))
        journal.report(1, 0, 0.5)
        journal.start(1, 1, parameters(space, config))
    started = Journal(tmp_path, space).started()
    assert {n: (s.parameters, s.rung) for n, s in started.items()} == {
        0: (space.defaults(config), 0),
        1: (parameters(space, config), 1),
    }
    lines = (tmp_path / "journal.log").read_text().splitlines()
    operations = [json.loads(line)["op_code"] for line in lines]
    # Two trials, a score, a rung; asking for the study (0) is said each time.
    assert [code for code in operations if code] == [4, 4, 7, 8]


def test_only_what_reached_the_top_is_complete(tmp_path, space, config):
    journal = Journal(tmp_path, space)
    for number in range(4):
        journal.start(number, 0, parameters(space, config, number))
        journal.report(number, 0, float(number))
    journal.start(4, 0, parameters(space, config, 4))  # never got a score
    journal.start(2, 1, parameters(space, config, 2))
    journal.report(2, 1, 7.0)
    journal.end(2, TrialState.COMPLETE)
    journal.end(3, TrialState.FAIL)
    journal.close()
    journal.report(2, 2, 9.0)  # too late
    journal.end(2, TrialState.FAIL)
    trials = Journal(tmp_path, space).study.get_trials()
    found = [(trial.state, trial.value) for trial in trials]
    assert found == [
        (TrialState.PRUNED, 0.0),
        (TrialState.PRUNED, 1.0),
        (TrialState.COMPLETE, 7.0),
        (TrialState.FAIL, None),
        (TrialState.PRUNED, None),
    ]


def test_defaults_out_of_range_do_not_stop_the_journal(tmp_path, space, config):
    outside = space.defaults(config) | {"pseudo_label.cap": 0.99}
    Journal(tmp_path, space).start(0, 0, outside)
    assert Journal(tmp_path, space).started()[0].parameters == outside


@pytest.mark.parametrize("torn", [b'{"op_code": 7, "wor', b"\x00\x00\n", b'{"op_code": 7}'])
def test_a_torn_journal_is_cut_to_its_last_whole_line(torn, tmp_path, space, config):
    Journal(tmp_path, space).start(0, 0, space.defaults(config))
    path = tmp_path / "journal.log"
    whole = path.read_bytes()
    assert mend(tmp_path) == []
    path.write_bytes(whole + torn)
    (tmp_path / "journal.log.lock").symlink_to("nowhere")
    said = mend(tmp_path)
    assert len(said) == 2 and f"{len(torn)} bytes" in said[1] and "lock" in said[0]
    assert path.read_bytes() == whole
    assert list(Journal(tmp_path, space).started()) == [0]


def test_other_optuna_tools_read_the_journal(tmp_path, space, config):
    Journal(tmp_path, space).start(0, 0, space.defaults(config))
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    storage = optuna.storages.JournalStorage(backend)
    (study,) = optuna.get_all_study_summaries(storage)
    assert study.study_name == tmp_path.name and study.n_trials == 1
