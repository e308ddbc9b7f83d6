"""What a validator is worth, measured against the oracle: correlation, regret, rank of its pick.

Pure functions of numbers, and the same numbers as text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tune.experiment import REFERENCE

VALIDATORS = ("infomax", "nuclear", "consistency", "density", "source_val", "label_free")
ALL_RUNGS = "all"
RESAMPLES = 1000  # of the bootstrap
TAILS = (0.025, 0.975)  # of 95 % intervals
FEWEST = 3  # configurations; a correlation of two is +1 or -1 whatever they are


def midranks(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(B, N) ranks of values (N,), ties at their mean; sample b holds value n times[b, n] times."""
    below, equal = values[None] < values[:, None], values[None] == values[:, None]
    return times @ below.T + (times @ equal.T + 1) / 2


def spearman(one: np.ndarray, other: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
    """(B,) Spearman's rank correlations of pairs (N,); NaN where one side is constant.

    times  (B, N) how often each pair is in each of B samples; once, in one sample, by default
    """
    times = np.ones((1, len(one))) if times is None else times
    total = times.sum(1, keepdims=True).clip(1)  # a sample may hold none of the allowed
    ranks = [midranks(side, times) for side in (one, other)]
    x, y = (rank - (times * rank).sum(1, keepdims=True) / total for rank in ranks)
    size = np.sqrt((times * x * x).sum(1) * (times * y * y).sum(1))
    nothing = np.full(len(times), np.nan)
    return np.divide((times * x * y).sum(1), size, out=nothing, where=size > 0)


def measures(
    values: np.ndarray, oracle: np.ndarray, times: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """How well values (N,) stand for the oracle (N,), in each of B samples; see `spearman`.

    A value of NaN: a constraint forbids the candidate.  (B,) each, NaN where there is none:
    spearman  over the candidates that have a value
    regret    best oracle of all candidates, forbidden ones too, minus that of the pick
    rank      of the pick among all candidates by oracle, 1 is best
    The pick has the best value; of equal ones it is the worst by the oracle.
    """
    times = np.ones((1, len(values))) if times is None else times
    known = ~np.isnan(values)
    there = times > 0
    allowed = np.where(there & known, np.where(known, values, 0), -np.inf)
    tied = (allowed == allowed.max(1, keepdims=True)) & np.isfinite(allowed)
    picked = np.where(tied, oracle, np.inf).min(1)
    picked = np.where(np.isfinite(picked), picked, np.nan)
    better = (times * (oracle > picked[:, None])).sum(1)
    return {
        "spearman": spearman(values[known], oracle[known], times[:, known]),
        "regret": np.where(there, oracle, -np.inf).max(1) - picked,
        "rank": np.where(np.isnan(picked), np.nan, 1 + better),
    }


def trust(
    values: np.ndarray, oracle: np.ndarray, groups: np.ndarray, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """`measures` with their 95 % percentile intervals, configurations (groups) resampled whole.

    With fewer than three configurations there is no correlation and no interval; `note` says so.
    """
    found = {name: _number(value[0]) for name, value in measures(values, oracle).items()}
    names, members = np.unique(groups, return_inverse=True)
    counts = {
        "configurations": len(names),
        "candidates": len(values),
        "forbidden": int(np.isnan(values).sum()),
    }
    allowed = len(np.unique(groups[~np.isnan(values)]))
    if allowed < FEWEST:
        note = f"a correlation needs {FEWEST} configurations with a value, here: {allowed}"
        return found | counts | {"spearman": None, "intervals": {}, "note": note}
    drawn = np.random.default_rng(0).integers(len(names), size=(resamples, len(names)))
    times = (drawn[:, :, None] == np.arange(len(names))).sum(1)[:, members]
    sampled = measures(values, oracle, times.astype(np.float64))
    intervals = {
        name: [float(bound) for bound in np.nanquantile(sampled[name], TAILS)]
        for name, value in found.items()
        if value is not None
    }
    note = "no correlation: all values are equal" if found["spearman"] is None else None
    return found | counts | {"intervals": intervals, "note": note}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def validators(
    rows: Sequence[dict[str, Any]], rung_names: Sequence[str], names: Sequence[str] = VALIDATORS
) -> list[dict[str, Any]]:
    """`trust` of every validator at each rung, and over all jobs of the search.

    label_free obeys the objective's constraints, `score` is the search's own; the others are as
    they were recorded, so that the table also tells what the constraints are worth.
    """
    jobs = [row for row in rows if row["configuration"] != REFERENCE]
    table = []
    for name in names:
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
    lines += [
        "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    notes = sorted({entry["note"] for entry in summary["validators"] if entry["note"]})
    return [*lines, *notes, *gain_lines(summary)]


def gain_lines(summary: dict[str, Any]) -> list[str]:
    lines = []
    found, over = summary["gain"], summary["optimism"]
    if found is None:
        lines.append(
            "gain over the published defaults: unknown, there is no choice at a rung that both "
            "have reached"
        )
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
