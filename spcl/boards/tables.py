"""Tables of finished runs, for people.  Needs no torch."""

import math
from collections.abc import Sequence
from typing import Any

from spcl.configuration.chosen_by import ChosenBy
from spcl.scoring.statistics import CONFIDENCE, seed_estimate, why_seeds_are_silent

NOT_EVALUATED = "not evaluated: no labelled evaluation split"


def run_table(summary: dict[str, Any], chosen_by: ChosenBy | None = None) -> str:
    """Per-class IoU and means of each stage of one run; percent.

    Ends with the run's notes, and with the search that has chosen its settings, if one has.
    """
    said = [str(chosen_by)] if chosen_by else []
    rows = summary["table"]
    if not rows:
        return "\n".join([NOT_EVALUATED, *said])
    means = list(rows[0]["means"])
    width = max(len(name) for name in [*summary["classes"], *means]) + 2
    head = " " * width + "".join(f"{row['title']:>14}" for row in rows)
    lines = [head, "-" * len(head)]
    for index, name in enumerate(summary["classes"]):
        lines.append(f"{name:<{width}}" + "".join(_cell(row["iou"][index]) for row in rows))
    lines.append("-" * len(head))
    for name in means:
        lines.append(f"{name:<{width}}" + "".join(_cell(r["means"][name]["value"]) for r in rows))
    counts = ", ".join(f"{name} over {rows[0]['means'][name]['classes']} classes" for name in means)
    lines.append(
        f"IoU in %, {summary['images']} images, protocol {summary['protocol']} ({counts}); "
        f"checkpoint: {summary['selection']}"
    )
    return "\n".join([*lines, *summary.get("notes", []), *said])


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else f'{100 * value:.1f}':>14}"


def ccd_table(distances: dict[str, float | None]) -> str:
    """Class centre distance per class and their mean; smaller is tighter."""
    width = max(map(len, distances)) + 2
    lines = [f"{'':<{width}}{'CCD':>14}"]
    lines += [
        f"{name:<{width}}{'-' if value is None else f'{value:.3f}':>14}"
        for name, value in distances.items()
    ]
    found = [value for value in distances.values() if value is not None]
    if found:
        lines.append(f"{'mean':<{width}}{math.fsum(found) / len(found):>14.3f}")
    return "\n".join(lines)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95 % t interval over seeds; None where they say nothing of it."""
    found = seed_estimate(values)
    return found.value, None if found.error is None else found.margin((1 + CONFIDENCE) / 2)


def with_spread(values: Sequence[float], spec: str = "", places: int = 1) -> str:
    """Mean and interval as text, or why there is no interval.

    spec    of the mean's format, before its decimal places: a sign, a width
    """
    mean, half = interval(values)
    why = f"(no interval: {why_seeds_are_silent(values)})"
    return f"{mean:{spec}.{places}f} " + (why if half is None else f"± {half:.{places}f}")


def seeds_table(summaries: Sequence[dict[str, Any]]) -> str:
    """Each stage's means over seeds, with 95 % t intervals."""
    if not summaries[0]["table"]:
        return NOT_EVALUATED
    lines = []
    for index, row in enumerate(summaries[0]["table"]):
        for name in row["means"]:
            values = [100 * s["table"][index]["means"][name]["value"] for s in summaries]
            each = " ".join(f"{v:.1f}" for v in values)
            shown = with_spread(values, "6")
            lines.append(f"{row['title']:<14}{name:<11}{shown:<15}  seeds: {each}")
    return "\n".join(lines)
