"""The page of a search: report.html, made of the experiment's files.

It is one file: plotly.js is in it once, and it asks nothing of the network.
"""

import html
from collections.abc import Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState, create_trial
from plotly.offline import get_plotlyjs

from spcl.store.records import read
from tune.searching.experiment import ORACLE, Experiment
from tune.searching.space import RELATIVE
from tune.searching.trust import HEAD, gain_lines, table_rows, warning

FEWEST_FOR_CONTOUR = 3  # trials; fewer span no plane
FEWEST_FOR_IMPORTANCE = 5  # trials; PED-ANOVA compares the best tenth with the rest
HEIGHT = 420  # pixels of a figure
AUDIT = "audit.json"
#: Of each figure: without the logo's link, and without the button that uploads it.
OFFLINE = {"displaylogo": False, "showSendToCloud": False}


def report(experiment: Experiment) -> str:
    """The whole page.  A section without enough trials says what it waits for."""
    path = experiment.folder / AUDIT
    audited = read(path, "remove it and audit again") if path.exists() else None
    sections: list[tuple[str, str]] = [
        ("Summary", _summary(experiment, audited)),
        ("History", _history(experiment)),
        ("Importance", _importance(experiment)),
        ("Parallel coordinates", _parallel(experiment)),
        ("λ–τ contour", _contour(experiment)),
        ("Score against cost", _costs(experiment)),
        ("Rung ladder", _ladder(experiment)),
        ("Validators", _validators(audited)),
    ]
    body = "\n".join(
        f'<section id="{title.lower().replace(" ", "-")}"><h2>{title}</h2>\n{content}</section>'
        for title, content in sections
    )
    return PAGE.format(
        title=html.escape(f"search {experiment.name}"), plotly=get_plotlyjs(), body=body
    )


def _summary(experiment: Experiment, audited: dict[str, Any] | None) -> str:
    request, chosen, records = experiment.request, experiment.chosen, experiment.records
    failed = [record for record in records if record["status"] == "failed"]
    seconds = sum(r["device_seconds"] or 0 for r in [*records, experiment.reference or {}] if r)
    facts = [
        ("benchmark", f"{request['benchmark']}, method {request['method']}"),
        ("objective", request["objective"]),
        ("labelled target images used", request["label_budget"]),
        ("sampler", f"{request['sampler']}, seed {request['seed']}"),
        ("configurations", len({record["configuration"] for record in records})),
        ("jobs", f"{len(records)}, {len(failed)} failed"),
        ("device time", f"{seconds / 3600:.2f} h"),
    ]
    if chosen is None:
        facts.append(("best", "no configuration has a score yet"))
    else:
        settings = ", ".join(
            f"{key} = {_shown(value)}"
            for key, value in experiment.settings(chosen["configuration"]).items()
        )
        facts += [
            ("best", f"configuration {chosen['configuration']}: {settings}"),
            (
                "its score",
                f"{experiment.score(chosen):.4f} after {experiment.rung_names[chosen['rung']]}",
            ),
        ]
    if experiment.agreement is not None:
        facts.append(("ensemble's pick (EnsV)", f"configuration {experiment.agreement}"))
    lines = gain_lines(audited) if audited else ["no audit yet"]
    facts.append(("audit", "; ".join(lines)))
    known = warning(request["objective"])
    facts += [("how far to trust it", known)] if known else []
    badge = ""
    if request["label_budget"] or request["objective"] == ORACLE:
        badge = f'<p class="badge">target labels were used: {_text(request["objective"])}</p>'
    return badge + _table([], [[name, value] for name, value in facts])


def _history(experiment: Experiment) -> str:
    study = _study(experiment)
    if not _scored(study):
        return _empty("no configuration has a score yet")
    figure = optuna.visualization.plot_optimization_history(study, target_name="last score")
    return _figure(figure) + _note("Every configuration's score at the last rung it has reached.")


def _importance(experiment: Experiment) -> str:
    study = _study(experiment, rung=0)
    count = len(_scored(study))
    if count < FEWEST_FOR_IMPORTANCE:
        return _empty(
            f"PED-ANOVA needs at least {FEWEST_FOR_IMPORTANCE} scored configurations, here: {count}"
        )
    figure = optuna.visualization.plot_param_importances(
        study, evaluator=PedAnovaImportanceEvaluator(), target_name="score"
    )
    return _figure(figure) + _note(_at_first_rung(experiment, count))


def _parallel(experiment: Experiment) -> str:
    study = _study(experiment, rung=0)
    count = len(_scored(study))
    if not count:
        return _empty("no configuration has a score yet")
    figure = optuna.visualization.plot_parallel_coordinate(study, target_name="score")
    return _figure(figure) + _note(_at_first_rung(experiment, count))


def _contour(experiment: Experiment) -> str:
    pair = _ridge(experiment.request["space"])
    if pair is None:
        return _empty("the space holds no weight relative to a temperature")
    study = _study(experiment, rung=0, of="settings", keys=pair)
    count = len(_scored(study))
    if count < FEWEST_FOR_CONTOUR:
        return _empty(f"a contour needs {FEWEST_FOR_CONTOUR} scored configurations, here: {count}")
    figure = optuna.visualization.plot_contour(study, params=list(pair), target_name="score")
    return _figure(figure) + _note(_at_first_rung(experiment, count))


def _costs(experiment: Experiment) -> str:
    figure = go.Figure()
    spent: dict[int, float] = {}
    points: dict[int, list[tuple[float, float, str]]] = {}
    for record in experiment.done:
        number, value = record["configuration"], experiment.score(record)
        spent[number] = spent.get(number, 0.0) + record["device_seconds"]
        if value is not None:
            name = experiment.rung_names[record["rung"]]
            points.setdefault(number, []).append((spent[number], value, name))
    if not points:
        return _empty("no configuration has a score yet")
    for number, line in points.items():
        x, y, names = zip(*line, strict=True)
        figure.add_scatter(
            x=x, y=y, text=[_text(n) for n in names], name=f"{number}", mode="lines+markers"
        )
    figure.update_layout(xaxis_title="device-seconds of the configuration", yaxis_title="score")
    return _figure(figure)


def _ladder(experiment: Experiment) -> str:
    lines: dict[int, list[tuple[int, float]]] = {}
    for record in experiment.done:
        value = experiment.score(record)
        if value is not None:
            lines.setdefault(record["configuration"], []).append((record["rung"], value))
    if not lines:
        return _empty("no configuration has a score yet")
    figure = go.Figure()
    for number, points in lines.items():
        rungs, values = zip(*points, strict=True)
        figure.add_scatter(x=rungs, y=values, name=f"{number}", mode="lines+markers")
    names = experiment.rung_names
    ticks = {"tickvals": list(range(len(names))), "ticktext": [_text(n) for n in names]}
    figure.update_layout(xaxis=ticks, yaxis_title="score")
    reached = [
        len({r["configuration"] for r in experiment.done if r["rung"] == rung})
        for rung in range(len(names))
    ]
    table = _table(["rung", "configurations"], list(zip(names, reached, strict=True)))
    return _figure(figure) + table


def _validators(audited: dict[str, Any] | None) -> str:
    if audited is None:
        return _empty("no audit yet: python tune/search.py --audit EXPERIMENT")
    table = _table(HEAD, table_rows(audited))
    note = (
        f"Against mIoU on {audited['split']} ({audited['images']} images, {audited['protocol']}), "
        "computed after the search; 95 % bootstrap intervals over configurations."
    )
    return table + _note(note)


# An in-memory study of the records, for Optuna's plots.


def _study(
    experiment: Experiment,
    *,
    rung: int | None = None,
    of: str = "parameters",
    keys: Sequence[str] | None = None,
) -> optuna.Study:
    """Trial n is configuration n with its score at a rung (None: the last it has reached).

    Without a score there it is a failed trial, which no plot draws.
    of, keys: what the axes are: "parameters" as suggested or "settings", all or some
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    records = [r for r in experiment.done if rung in (None, r["rung"])]
    latest = {record["configuration"]: record for record in records}
    axes = _axes(experiment, records, of)
    for number in range(max(latest, default=-1) + 1):
        record = latest.get(number)
        value = experiment.score(record) if record else None
        if record is None or value is None:
            study.add_trial(create_trial(state=TrialState.FAIL))
            continue
        values = {k: v for k, v in record[of].items() if keys is None or k in keys}
        kinds = {key: axes[key] for key in values}
        study.add_trial(create_trial(value=value, params=values, distributions=kinds))
    return study


def _axes(
    experiment: Experiment, records: Sequence[dict[str, Any]], of: str
) -> dict[str, optuna.distributions.BaseDistribution]:
    """Name -> range: the space's for parameters, at least what the records hold."""
    seen: dict[str, list[Any]] = {}
    for record in records:
        for key, value in record[of].items():
            seen.setdefault(key, []).append(value)
    return {key: _distribution(experiment, key, values, of) for key, values in seen.items()}


def _distribution(
    experiment: Experiment, key: str, values: list[Any], of: str
) -> optuna.distributions.BaseDistribution:
    entry = experiment.request["space"].get(key.removesuffix(RELATIVE)) or {}
    if not all(isinstance(value, (int, float)) for value in values) or "choices" in entry:
        choices = dict.fromkeys([*entry.get("choices", []), *values])
        return optuna.distributions.CategoricalDistribution(list(choices))
    bounds = [entry["low"], entry["high"]] if of == "parameters" and "low" in entry else []
    low, high = min([*values, *bounds]), max([*values, *bounds])  # defaults may lie outside
    log = bool(entry.get("log")) and low > 0
    return optuna.distributions.FloatDistribution(low, high, log=log)


def _scored(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _ridge(space: dict[str, Any]) -> tuple[str, str] | None:
    """The first pair of settings that are searched relative to each other."""
    for key, entry in space.items():
        if isinstance(entry, dict) and entry.get("relative_to"):
            return key, entry["relative_to"]
    return None


# Pieces of HTML.


def _figure(figure: go.Figure) -> str:
    figure.update_layout(height=HEIGHT, title=None, template="plotly_white", margin={"t": 30})
    return figure.to_html(full_html=False, include_plotlyjs=False, config=OFFLINE)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(_shown(cell))}</td>" for cell in row) + "</tr>\n"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table>"


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def _empty(reason: str) -> str:
    return _note(f"Nothing to show: {reason}.")


def _text(value: Any) -> str:
    return html.escape(str(value))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _at_first_rung(experiment: Experiment, count: int) -> str:
    return (
        f"{count} configurations at equal cost: their scores after {experiment.rung_names[0]}, "
        "the one rung that all of them reach."
    )


# The policy makes a browser refuse whatever would load from elsewhere; plotly compiles its shaders'
# callers at run time, hence unsafe-eval.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; \
base-uri 'none'; form-action 'none'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; }}
td, th {{ text-align: left; padding: 2px 14px 2px 0; border-bottom: 1px solid #ddd; }}
.badge {{ background: #b00; color: white; padding: 6px 12px; font-weight: bold; }}
.note {{ color: #555; }}
</style>
<script>{plotly}</script>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
