"""What a validator is worth, against scipy and tables worked by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from tune.searching import trust
from tune.searching.trust import measures, report_lines, spearman, validators

NONE = float("nan")


@pytest.mark.parametrize("seed", range(5))
def test_spearman_equals_scipys_also_under_ties(seed):
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, 5, 12).astype(float), rng.integers(0, 5, 12).astype(float)
    assert spearman(one, other)[0] == pytest.approx(spearmanr(one, other).statistic)


def test_spearman_of_constant_values_is_none():
    assert np.isnan(spearman(np.ones(4), np.arange(4.0))[0])


def test_samples_with_repetitions_equal_the_measures_of_the_repeated_rows():
    rng = np.random.default_rng(0)
    values, oracle = rng.integers(0, 6, 10).astype(float), rng.integers(0, 9, 10) / 10
    values[3] = np.nan
    drawn = rng.integers(10, size=(50, 10))
    times = (drawn[:, :, None] == np.arange(10)).sum(1).astype(float)
    together = measures(values, oracle, times)
    for number, rows in enumerate(drawn):
        alone = measures(values[rows], oracle[rows])
        for name in alone:
            assert together[name][number] == pytest.approx(alone[name][0], nan_ok=True)


@pytest.mark.parametrize(
    ("values", "oracle", "regret", "rank"),
    [
        ([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], 0.0, 1),  # picks the best
        ([4, 3, 2, 1], [0.1, 0.2, 0.3, 0.4], 0.3, 4),  # picks the worst
        ([1, 4, 4, 2], [0.1, 0.2, 0.3, 0.4], 0.2, 3),  # of two equal ones the worse counts
        ([1, 2, 3, 4], [0.1, 0.4, 0.4, 0.4], 0.0, 1),  # equal oracles share the best rank
        ([1, 2, NONE, 4], [0.1, 0.2, 0.9, 0.4], 0.5, 2),  # the forbidden one was the best
    ],
)
def test_regret_and_rank_of_the_pick_as_worked_by_hand(values, oracle, regret, rank):
    found = measures(np.array(values, float), np.array(oracle))
    assert found["regret"][0] == pytest.approx(regret) and found["rank"][0] == rank


def test_correlation_leaves_out_who_is_forbidden():
    values, oracle = np.array([1, 2, NONE, 4]), np.array([0.1, 0.2, 0.0, 0.4])
    assert measures(values, oracle)["spearman"][0] == pytest.approx(1.0)


def row(configuration: int, rung: int, oracle: float, value: float | None) -> dict:
    names = dict.fromkeys(trust.VALIDATORS, value)
    return {"configuration": configuration, "rung": rung, "oracle": oracle} | names


def entry(rows: list[dict], rung: str) -> dict:
    table = validators(rows, ["half", "whole"])
    return next(e for e in table if (e["validator"], e["rung"]) == ("infomax", rung))


def summary_of(rows: list[dict]) -> dict:
    """What the audit of these jobs would find, without a gain."""
    summary = {"split": "s", "images": 7, "protocol": "p", "gain": None, "optimism": None}
    rungs = ["half", "whole"]
    return summary | {"rungs": rungs, "validators": validators(rows, rungs)}


@pytest.mark.parametrize("forbidden", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_fewer_than_eight_configurations_have_no_correlation_and_it_is_said(count, forbidden):
    """Three in one order gave "+1.00 [+1.00, +1.00]"."""
    rows = [row(n, 0, 0.1 * n, n) for n in range(count)]
    rows += [row(99, 0, 0.0, None)] * forbidden
    found = entry(rows, "half")
    assert found["spearman"] is None and found["intervals"] == {}
    assert found["regret"] == 0.0
    assert found["note"] == f"needs 8 configurations, has {count}"
    text = "\n".join(report_lines(summary_of(rows)))
    assert f"none: needs 8 configurations, has {count}" in text and "1.00" not in text


def test_eight_configurations_have_a_correlation():
    rows = [row(n, 0, 0.1 * n, n) for n in range(8)]
    assert entry(rows, "half")["spearman"] == pytest.approx(1.0)
    assert "+1.00 [+1.00, +1.00]" in "\n".join(report_lines(summary_of(rows)))


def test_audits_of_older_code_do_not_show_what_is_no_longer_told():
    summary = summary_of([row(n, 0, 0.1 * n, n) for n in range(3)])
    old = {
        "spearman": 1.0,
        "note": None,
        "intervals": {"spearman": [1.0, 1.0], "regret": [0.777, 0.888]},
    }
    summary["validators"] = [entry | old for entry in summary["validators"]]
    summary["validators"].append(summary["validators"][0] | {"rung": "all", "configurations": 64})
    gain = {"configuration": 2, "published": 0, "rung": "half", "interval": [0.0, 0.1], "images": 7}
    gain |= {"chosen_miou": 0.5, "published_miou": 0.4, "gain": 0.1}
    text = "\n".join(report_lines(summary | {"gain": gain}))
    assert "1.00" not in text and "77.7" not in text and " all " not in text and "has 3" in text
    assert "against the default configuration after half: 50.0 - 40.0 = +10.0 mIoU" in text


def test_forbidden_everywhere_means_nothing_is_picked():
    found = entry([row(n, 0, 0.1 * n, None) for n in range(5)], "half")
    assert (found["spearman"], found["regret"], found["rank"]) == (None, None, None)
    assert found["forbidden"] == found["configurations"] == 5


def test_reference_is_no_candidate():
    rows = [row(-1, -1, 0.9, 9.0), *(row(n, 0, 0.1 * n, n) for n in range(4))]
    assert entry(rows, "half")["regret"] == 0.0 and entry(rows, "half")["configurations"] == 4


def test_figures_of_different_rungs_are_never_pooled():
    """A validator that only tells the rung would correlate over both, and knows nothing."""
    rows = [row(n, rung, 0.1 * rung + 0.01 * n, rung) for n in range(8) for rung in (0, 1)]
    table = validators(rows, ["half", "whole"])
    assert {e["rung"] for e in table} == {"half", "whole"}
    assert {(e["configurations"], e["spearman"], e["note"]) for e in table} == {
        (8, None, "all values are equal")
    }


def test_a_search_ends_with_the_committed_figures_of_its_default_objective():
    """Both computed again from the benchmark's own result."""
    path = Path(__file__).parents[3] / "benchmarks/results/search_cost.json"
    seeds = json.loads(path.read_text())["seeds"]
    text = trust.warning("label_free")
    for name in ("label_free", "source_val", "nuclear"):
        found = [
            f"{entry['spearman']:+.2f}"
            for one in seeds
            for entry in one["validators"]
            if (entry["validator"], entry["rung"]) == (name, "self_training")
        ]
        assert len(found) == 3 and " ".join(found) in text, name
    for way, said in (("rungs", "{} mIoU behind"), ("whole", "({} without rungs)")):
        behind = [one["default_oracle"] - one[way]["pick"]["oracle"] for one in seeds]
        assert said.format(f"{100 * sum(behind) / len(behind):.1f}") in text
    assert trust.warning("source_val") is None


def test_interval_covers_the_population_correlation():
    """Of 95 % intervals of samples with a known correlation, at least 85 % hold it."""
    true, covered, runs = 0.6, 0, 60
    pearson = 2 * np.sin(np.pi * true / 6)  # of a normal pair whose Spearman correlation is `true`
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        x, noise = rng.normal(size=(2, 40))
        y = pearson * x + np.sqrt(1 - pearson**2) * noise
        low, high = trust.trust(x, y, resamples=200)["intervals"]["spearman"]
        covered += low <= true <= high
    assert 0.85 * runs <= covered < runs


def test_interval_of_a_perfect_validator_is_a_point():
    values = np.arange(8.0)
    found = trust.trust(values, values)
    assert found["intervals"]["spearman"] == pytest.approx([1, 1])
    assert found["intervals"]["regret"] == [0, 0] and found["intervals"]["rank"] == [1, 1]


def test_table_says_percent_interval_and_what_is_missing():
    rows = [row(n, 0, 0.1 * n, 9 - n if n else None) for n in range(9)]
    text = "\n".join(report_lines(summary_of(rows)))
    assert "infomax" in text and "9 (1 forbidden)" in text and "-1.00 [" in text
    assert "70.0 [" in text and "s, 7 images, p" in text and "there is no choice at a rung" in text
