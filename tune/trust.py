"""What a validator is worth, measured against the oracle: correlation, regret, rank of its pick.

Pure functions of numbers, and the same numbers as text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from tune.experiment import REFERENCE

VALIDATORS = ("infomax", "nuclear", "consistency", "density", "source_val", "label_free")
ALL_RUNGS = "all"
RESAMPLES = 1000  # of the bootstrap
CONFIDENCE = 0.95
FEWEST = 3  # configurations; a correlation of two is +1 or -1 whatever they are


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one of them is constant."""
    one, other = rankdata(one), rankdata(other)
    one, other = one - one.mean(), other - other.mean()
    size = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / size) if size > 0 else None


def pick(values: np.ndarray, oracle: np.ndarray) -> int | None:
    """Index of the best value; None without any.  Of equal ones the worst by the oracle.

    values (N,), NaN where a candidate can't be picked; oracle (N,)
    """
    if np.isnan(values).all():
        return None
    tied = np.flatnonzero(values == np.nanmax(values))
    return int(tied[np.argmin(oracle[tied])])


def measures(values: np.ndarray, oracle: np.ndarray) -> dict[str, float | None]:
    """How well values (N,) stand for the oracle (N,); NaN: a constraint forbids the candidate.

    spearman  over the candidates that have a value
    regret    best oracle of all candidates, forbidden ones too, minus that of the pick
    rank      of the pick among all candidates by oracle, 1 is best; worst case under ties
    """
    picked, known = pick(values, oracle), ~np.isnan(values)
    if picked is None:
        return {"spearman": None, "regret": None, "rank": None}
    return {
        "spearman": spearman(values[known], oracle[known]),
        "regret": float(oracle.max() - oracle[picked]),
        "rank": 1 + int((oracle > oracle[picked]).sum()),
    }


def trust(values: np.ndarray, oracle: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """`measures` with their 95 % percentile intervals, configurations (groups) resampled whole.

    With fewer than three configurations there is no correlation and no interval; `note` says so.
    """
    found: dict[str, Any] = measures(values, oracle)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    forbidden = int(np.isnan(values).sum())
    found |= {"configurations": len(members), "candidates": len(values), "forbidden": forbidden}
    allowed = len(np.unique(groups[~np.isnan(values)]))
    if allowed < FEWEST:
        text = f"a correlation needs {FEWEST} configurations with a value, here: {allowed}"
        return found | {"spearman": None, "intervals": {}, "note": text}
    rng = np.random.default_rng(0)
    samples: dict[str, list[float]] = {"spearman": [], "regret": [], "rank": []}
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(members), size=len(members))
        rows = np.concatenate([members[index] for index in drawn])
        for name, value in measures(values[rows], oracle[rows]).items():
            if value is not None:  # a resample of one configuration only has no correlation
                samples[name].append(value)
    tail = (1 - CONFIDENCE) / 2
    intervals = {
        name: [float(q) for q in np.quantile(drawn, [tail, 1 - tail])]
        for name, drawn in samples.items()
        if drawn and found[name] is not None
    }
    note = None if found["spearman"] is not None else "no correlation: all values are equal"
    return found | {"intervals": intervals, "note": note}


def validators(rows: Sequence[dict[str, Any]], rung_names: Sequence[str]) -> list[dict[str, Any]]:
    """`trust` of every validator at each rung, and over all jobs of the search."""
    jobs = [row for row in rows if row["configuration"] != REFERENCE]
    table = []
    for name in VALIDATORS:
        for rung, title in [*enumerate(rung_names), (None, ALL_RUNGS)]:
            mine = [row for row in jobs if rung in (None, row["rung"])]
            if mine:
                values, oracle = _column(mine, name), _column(mine, "oracle")
                groups = np.array([row["configuration"] for row in mine])
                found = trust(values, oracle, groups)
                table.append({"validator": name, "rung": title} | found)
    return table


def _column(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """(N,) floats; NaN where there is no finite value."""
    values = np.array([np.nan if row[name] is None else row[name] for row in rows], np.float64)
    return np.where(np.isfinite(values), values, np.nan)


# What people see.


def table_cells(entry: dict[str, Any]) -> list[str]:
    """validator, rung, configurations, Spearman, regret, rank of one entry, as text."""
    bounds = entry["intervals"]

    def shown(name: str, template: str, factor: float = 1.0) -> str:
        if entry[name] is None:
            return "-"
        text = template.format(factor * entry[name])
        if name not in bounds:
            return text
        low, high = (template.format(factor * bound) for bound in bounds[name])
        return f"{text} [{low}, {high}]"

    count = f"{entry['configurations']}"
    if entry["forbidden"]:
        count += f" ({entry['forbidden']} forbidden)"
    return [
        entry["validator"],
        entry["rung"],
        count,
        shown("spearman", "{:+.2f}"),
        shown("regret", "{:.1f}", 100),
        shown("rank", "{:.0f}"),
    ]


HEAD = ["validator", "rung", "configurations", "Spearman", "regret, mIoU", "rank of its pick"]


def report_lines(summary: dict[str, Any]) -> list[str]:
    """The audit as text; mIoU in %, 95 % intervals in brackets."""
    cells = [HEAD, *(table_cells(entry) for entry in summary["validators"])]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    lines = [
        f"oracle: mIoU on {summary['split']}, {summary['images']} images, {summary['protocol']}; "
        f"95 % bootstrap intervals over configurations"
    ]
    lines += ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in cells]
    notes = sorted({entry["note"] for entry in summary["validators"] if entry["note"]})
    return [*lines, *notes, *gain_lines(summary)]


def gain_lines(summary: dict[str, Any]) -> list[str]:
    lines = []
    found, over = summary["gain"], summary["optimism"]
    if found is None:
        lines.append("gain over the published defaults: unknown, no rung was reached by both")
    elif found["configuration"] == found["published"]:
        lines.append("the published defaults were chosen: no gain, no loss")
    else:
        low, high = (100 * bound for bound in found["interval"])
        lines.append(
            f"configuration {found['configuration']} against the published defaults after "
            f"{found['rung']}: {100 * found['chosen_miou']:.1f} - "
            f"{100 * found['published_miou']:.1f} = {100 * found['gain']:+.1f} mIoU "
            f"[{low:+.1f}, {high:+.1f}] over {found['images']} images"
        )
    if over:
        lines.append(
            f"chosen by target labels: configuration {over['configuration']} has "
            f"{100 * over['chosen_on']:.1f} mIoU on the {over['images'][0]} images chosen on, "
            f"{100 * over['reported']:.1f} on the other {over['images'][1]}; "
            f"optimism {100 * over['optimism']:+.1f}"
        )
    return lines
