"""The files that a search leaves: settings that load, tables that equal the records, one page."""

import csv
import dataclasses
import warnings
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest
from conftest import MINI
from experiments import failure, make, record, validators

from spcl.configuration.chosen_by import ChosenBy
from spcl.configuration.config import load
from tune.searching.experiment import Experiment
from tune.searching.outputs import write_outputs

SECTIONS = [
    "Summary",
    "History",
    "Importance",
    "Parallel coordinates",
    "λ–τ contour",
    "Score against cost",
    "Rung ladder",
    "Validators",
]


def eight_configurations() -> list[dict]:
    """Eight at the first rung, four, then two; the fifth violates a constraint, one has failed."""
    first = [record(n, 0, validators(0.1 * n)) for n in range(8)]
    first[5] = record(5, 0, validators(0.9, source_val=0.1))
    second = [record(n, 1, validators(0.2 * n)) for n in (3, 4, 6)]
    last = [record(n, 2, validators(value)) for n, value in ((4, 1.5), (6, 1.2))]
    return [*first, *second, failure(7, 1, "killed by the system"), *last]


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.loads, self.headings, self.scripts, self.text, self.open = [], [], 0, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open = tag
        self.scripts += tag == "script"
        self.loads += [v for k, v in attributes if k in ("src", "href", "data", "action")]
        if tag == "link":
            self.loads.append("link")

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open == "h2":
            self.headings.append(data.strip())
        if self.open not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("storage"), eight_configurations())
    write_outputs(folder)
    return folder


def test_best_yaml_gives_exactly_the_settings_of_the_chosen_configuration(written):
    best = load(file=written / "best.yaml")
    chosen = [f"{k}={v}" for k, v in record(4, 2, {})["settings"].items()]
    wanted = load("streets", "spcl", None, [*MINI, *chosen, "source.holdout=2"])
    by = ChosenBy(search="made", objective="label_free")
    assert best == dataclasses.replace(wanted, chosen_by=by)
    assert best.evaluation.dataset == "streets/real"


def test_best_yaml_says_how_it_was_chosen(written):
    text = (written / "best.yaml").read_text()
    comment = [line for line in text.splitlines() if line.startswith("#")]
    said = " ".join(comment)
    for part in ("label_free", "images used: 0", "score 1.5000 after spcl", "ray_jobs/train.py"):
        assert part in said
    assert "source.holdout" in said and str(written / "best.yaml") in said


def test_without_any_score_best_yaml_holds_the_default_configuration(tmp_path):
    bad = [record(n, 0, validators(1.0, source_val=0.0)) for n in range(2)]
    folder = make(tmp_path, bad)
    write_outputs(folder)
    assert "No configuration has a score" in (folder / "best.yaml").read_text()
    wanted = load("streets", "spcl", None, [*MINI, "source.holdout=2"])
    assert load(file=folder / "best.yaml") == wanted  # which nobody has chosen
    assert list(folder.glob("pick-*.yaml")) == []


def test_best_yaml_of_a_search_with_the_authors_switches_keeps_those_turned_back(tmp_path):
    asked = ("compat=official", "spcl.sync=true")
    folder = make(tmp_path, eight_configurations(), *asked)
    write_outputs(folder)
    chosen = [f"{k}={v}" for k, v in record(4, 2, {})["settings"].items()]
    wanted = load("streets", "spcl", None, [*MINI, *asked, *chosen, "source.holdout=2"])
    best = load(file=folder / "best.yaml")
    assert dataclasses.replace(best, chosen_by=ChosenBy()) == wanted and best.chosen_by
    assert wanted.compat == "official" and wanted.of("spcl").sync


def test_choice_is_the_best_score_of_the_highest_rung_and_the_first_of_equal_ones(tmp_path):
    records = [record(n, 0, validators(9.0)) for n in range(4)]
    records += [record(n, 1, validators(value)) for n, value in ((1, 2.0), (2, 2.0), (3, 1.0))]
    chosen = Experiment(make(tmp_path, records)).chosen
    assert (chosen["configuration"], chosen["rung"]) == (1, 1)


def test_tables_equal_the_records(written):
    with open(written / "trials.csv", newline="") as file:
        from_csv = list(csv.DictReader(file))
    from_parquet = pq.read_table(written / "trials.parquet").to_pylist()
    records = sorted(eight_configurations(), key=lambda r: (r["configuration"], r["rung"]))
    assert len(from_csv) == len(from_parquet) == len(records)
    for one, other, made in zip(from_csv, from_parquet, records, strict=True):
        for key in ("configuration", "rung", "status", "reason", "artefact", "device_seconds"):
            assert other[key] == made[key]
            assert one[key] == ("" if made[key] is None else str(made[key]))
        for kind in ("parameter", "setting"):
            for key, value in made[f"{kind}s"].items():
                assert other[f"{kind}.{key}"] == value and one[f"{kind}.{key}"] == str(value)
        assert other["validator.infomax"] == made["validators"].get("infomax")
    scores = {(row["configuration"], row["rung"]): row["score"] for row in from_parquet}
    assert scores[4, 2] == pytest.approx(1.5) and scores[5, 0] is None and scores[7, 1] is None


def test_report_is_one_file_that_loads_nothing(written):
    text = (written / "report.html").read_text()
    assert Page(text).loads == []
    assert "default-src 'none'" in text
    figures = text.count('class="plotly-graph-div"')
    assert text.count('"showSendToCloud": false') == figures  # a button that uploads the data


def test_report_contains_every_section_and_every_plot(written):
    text = (written / "report.html").read_text()
    assert Page(text).headings == SECTIONS
    assert text.count('class="plotly-graph-div"') == 6
    assert "Nothing to show: no audit yet" in text and text.count("Nothing to show") == 1


def test_names_are_escaped(tmp_path):
    nasty = "<script>alert(1)</script>"
    rungs = [{"name": nasty}] * 3
    request = {"objective": "label_free", "sampler": nasty, "rungs": rungs}
    folder = make(tmp_path, eight_configurations(), **request)
    write_outputs(folder)
    text = (folder / "report.html").read_text()
    assert nasty not in text and "&lt;script&gt;alert(1)" in text
    plain = make(tmp_path / "plain", eight_configurations())
    write_outputs(plain)
    assert Page(text).scripts == Page((plain / "report.html").read_text()).scripts


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_configurations_leave_sections_that_say_why_they_are_empty(tmp_path, count):
    folder = make(tmp_path, [record(n, 0, validators(0.5)) for n in range(count)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_outputs(folder)
    text = (folder / "report.html").read_text()
    assert Page(text).headings == SECTIONS
    assert f"PED-ANOVA needs at least 5 scored configurations, here: {count}" in text


def test_use_of_target_labels_is_written_on_the_page(tmp_path):
    records = [
        record(n, 0, validators(0.1, few_label={"value": 0.3, "images": 4})) for n in range(2)
    ]
    folder = make(tmp_path, records, objective="few_label:4", label_budget=4)
    write_outputs(folder)
    page = " ".join(Page((folder / "report.html").read_text()).text)
    assert "target labels were used: few_label:4" in page
    plain = make(tmp_path / "plain", records)
    write_outputs(plain)
    assert "target labels were used" not in (plain / "report.html").read_text()
