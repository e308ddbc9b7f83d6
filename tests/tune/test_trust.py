"""What a validator is worth, against scipy and tables worked by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from tune import trust
from tune.trust import measures, report_lines, spearman, validators

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


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_configurations_have_no_correlation_and_it_is_said(count):
    found = entry([row(n, 0, 0.1 * n, n) for n in range(count)], "half")
    assert found["spearman"] is None and found["intervals"] == {}
    assert found["regret"] == 0.0 and found["note"].endswith(f"here: {count}")


def test_forbidden_everywhere_means_nothing_is_picked():
    found = entry([row(n, 0, 0.1 * n, None) for n in range(5)], "half")
    assert (found["spearman"], found["regret"], found["rank"]) == (None, None, None)
    assert found["forbidden"] == found["configurations"] == 5


def test_reference_is_no_candidate():
    rows = [row(-1, -1, 0.9, 9.0), *(row(n, 0, 0.1 * n, n) for n in range(4))]
    assert entry(rows, "half")["regret"] == 0.0 and entry(rows, "all")["configurations"] == 4


def test_all_rungs_together_resample_whole_configurations():
    rows = [row(n, rung, 0.1 * n + 0.05 * rung, n) for n in range(6) for rung in (0, 1)]
    found = entry(rows, "all")
    assert (found["configurations"], found["candidates"]) == (6, 12)


def test_interval_covers_the_population_correlation():
    """Of 95 % intervals of samples with a known correlation, at least 85 % hold it."""
    true, covered, runs = 0.6, 0, 60
    pearson = 2 * np.sin(np.pi * true / 6)  # of a normal pair whose Spearman correlation is `true`
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        x, noise = rng.normal(size=(2, 40))
        y = pearson * x + np.sqrt(1 - pearson**2) * noise
        low, high = trust.trust(x, y, np.arange(40), resamples=200)["intervals"]["spearman"]
        covered += low <= true <= high
    assert 0.85 * runs <= covered < runs


def test_interval_of_a_perfect_validator_is_a_point():
    values = np.arange(8.0)
    found = trust.trust(values, values, np.arange(8))
    assert found["intervals"]["spearman"] == pytest.approx([1, 1])
    assert found["intervals"]["regret"] == [0, 0] and found["intervals"]["rank"] == [1, 1]


def test_table_says_percent_interval_and_what_is_missing():
    rows = [row(n, 0, 0.1 * n, 3 - n if n else None) for n in range(4)]
    summary = {"split": "s", "images": 7, "protocol": "p", "gain": None, "optimism": None}
    summary["validators"] = validators(rows, ["half", "whole"])
    text = "\n".join(report_lines(summary))
    assert "infomax" in text and "4 (1 forbidden)" in text and "-1.00 [" in text
    assert "20.0 [" in text and "s, 7 images, p" in text and "there is no choice at a rung" in text
