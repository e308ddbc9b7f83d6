"""What a validator is worth, measured against the oracle: correlation, regret, rank of its pick.

Pure functions of numbers, and the same numbers as text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tune.searching.experiment import REFERENCE

VALIDATORS = ("infomax", "nuclear", "consistency", "density", "source_val", "label_free")
RESAMPLES = 1000  # of the bootstrap
TAILS = (0.025, 0.975)  # of 95 % intervals
FEWEST = 8  # ours: configurations; of three, one order in six is perfect by chance


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


def trust(values: np.ndarray, oracle: np.ndarray, resamples: int = RESAMPLES) -> dict[str, Any]:
    """`measures` of configurations (N,) with their 95 % percentile intervals over them.

    With fewer than FEWEST configurations there is no correlation and no interval; `note` says so.
    """
    found = {name: _number(value[0]) for name, value in measures(values, oracle).items()}
    count = len(values)
    counts = {"configurations": count, "forbidden": int(np.isnan(values).sum())}
    few = _too_few(counts)
    if few:
        return found | counts | {"spearman": None, "intervals": {}, "note": few}
    drawn = np.random.default_rng(0).integers(count, size=(resamples, count))
    times = (drawn[:, :, None] == np.arange(count)).sum(1)
    sampled = measures(values, oracle, times.astype(np.float64))
    intervals = {
        name: [float(bound) for bound in np.nanquantile(sampled[name], TAILS)]
        for name, value in found.items()
        if value is not None
    }
    note = "all values are equal" if found["spearman"] is None else None
    return found | counts | {"intervals": intervals, "note": note}


def _too_few(counts: Mapping[str, Any]) -> str | None:
    """Why there is no correlation and no interval over so few configurations, if they are."""
    allowed = counts["configurations"] - counts["forbidden"]
    return f"needs {FEWEST} configurations, has {allowed}" if allowed < FEWEST else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def validators(
    rows: Sequence[dict[str, Any]], rung_names: Sequence[str], names: Sequence[str] = VALIDATORS
) -> list[dict[str, Any]]:
    """`trust` of every validator at each rung that anybody has reached.

    Rungs are never pooled: networks of a later one are better and more confident, so that a
    validator which knows nothing within any rung would still correlate over all of them.

    label_free obeys the objective's constraints, `score` is the search's own; the others are as
    they were recorded, so that the table also tells what the constraints are worth.
    """
    jobs = [row for row in rows if row["configuration"] != REFERENCE]
    table = []
    for name in names:
        for rung, title in enumerate(rung_names):
            mine = [row for row in jobs if row["rung"] == rung]
            if mine:
                found = trust(_column(mine, name), _column(mine, "oracle"))
                table.append({"validator": name, "rung": title} | found)
    return table


def _column(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """(N,) floats; NaN where there is no finite value."""
    values = np.array([np.nan if row[name] is None else row[name] for row in rows], np.float64)
    return np.where(np.isfinite(values), values, np.nan)


# What people see.


def table_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The audit's table as text: columns of HEAD, a row per validator and rung.

    Audits of older code hold more, which is not shown: rungs pooled, correlations of very few.
    """
    rungs = summary["rungs"]
    return [_cells(entry) for entry in summary["validators"] if entry["rung"] in rungs]


def _cells(entry: Mapping[str, Any]) -> list[str]:
    few = _too_few(entry)
    bounds = {} if few else entry["intervals"]

    def shown(name: str, template: str, factor: float = 1.0) -> str:
        if name == "spearman" and (few or entry[name] is None):
            return f"none: {few or entry['note']}"
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
    cells = [HEAD, *table_rows(summary)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    lines = [
        f"oracle: mIoU on {summary['split']}, {summary['images']} images, {summary['protocol']}; "
        f"95 % bootstrap intervals over configurations"
    ]
    lines += [
        "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    return [*lines, *gain_lines(summary)]


def gain_lines(summary: dict[str, Any]) -> list[str]:
    lines = []
    found, over = summary["gain"], summary["optimism"]
    if found is None:
        lines.append(
            "gain over the default configuration: unknown, there is no choice at a rung that both "
            "have reached"
        )
    elif found["configuration"] == _default(found):
        lines.append("the default configuration was chosen: no gain, no loss")
    else:
        low, high = (100 * bound for bound in found["interval"])
        lines.append(
            f"configuration {found['configuration']} against the default configuration after "
            f"{found['rung']}: {100 * found['chosen_miou']:.1f} - "
            f"{100 * _default(found, '_miou'):.1f} = {100 * found['gain']:+.1f} mIoU "
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


def _default(found: Mapping[str, Any], of: str = "") -> Any:
    """What a gain says of the default configuration; older audits call it the published one."""
    return found.get(f"default{of}", found.get(f"published{of}"))


#: Of benchmarks/results/search_cost.json, training seeds 0 to 2: after self-training, the rank
#: correlations with the target's mIoU, and how far the picks were behind the default configuration.
MEASURED = (
    "label_free has not been shown to rank networks: after self-training on streets its rank "
    "correlation with target mIoU was -0.45 -0.27 -0.34 over 3 seeds, and its pick 0.5 mIoU behind "
    "the default configuration (1.1 without rungs); source_val had +0.85 +0.76 +0.70, nuclear "
    "+0.92 +0.88 +0.91 (benchmarks/results/search_cost.json)"
)


def warning(objective: str) -> str | None:
    """What whoever reads a search's end must know of its objective."""
    return MEASURED if objective == "label_free" else None
