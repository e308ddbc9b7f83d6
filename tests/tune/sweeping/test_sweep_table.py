"""Tables of a sweep, from records made by hand."""

import csv
import dataclasses

import pytest
from sweeps import handmade_sweep, resolved, written

from spcl.boards.tables import interval
from tune.sweeping.grid import Sweep
from tune.sweeping.table import as_csv, as_html, as_markdown, as_text, make_table

#: Student's t for 95 % and 2 degrees of freedom, from printed tables.
T_TWO = 4.302653


@pytest.fixture
def handmade(mini_data, tmp_path) -> Sweep:
    return handmade_sweep(mini_data, tmp_path)


def as_if_on_gta5(made: Sweep, model: str = "deeplabv2_resnet101") -> Sweep:
    """The same records as of another benchmark and network."""
    cells = {}
    for place, cell in made.cells.items():
        network = dataclasses.replace(cell.config.model, name=model)
        config = dataclasses.replace(cell.config, benchmark="gta5", model=network)
        other = dataclasses.replace(cell, config=config)
        if cell.run.done:
            other.run.finish(cell.run.done)
        cells[place] = other
    return dataclasses.replace(made, benchmark="gta5", cells=cells)


def test_a_row_is_mean_and_t_interval_over_seeds_and_its_gain_is_paired(handmade):
    lines = {line.row.name: line for line in make_table(handmade, {}).lines}
    assert lines["baseline"].scores["mIoU"] == pytest.approx([40, 42, 44])
    assert lines["baseline"].scores["mIoU-tail"] == pytest.approx([20, 21, 22])
    assert lines["baseline"].gain is None
    # Differences 1, 1, 4: mean 2, standard deviation sqrt(3), of the mean 1.
    mean, half = interval(lines["source contrast"].gain)
    assert mean == pytest.approx(2) and half == pytest.approx(T_TWO, rel=1e-5)
    # One common seed gives no interval.
    assert lines["all"].gain == [pytest.approx(10.1)]
    assert lines["self-training"].seeds == () and lines["self-training"].gain is None
    shown = dict(
        line.split("  ", 1) for line in as_text(make_table(handmade, {})).splitlines()[3:8]
    )
    # Values 40, 42, 44: standard deviation 2, half width 4.3027 * 2 / sqrt(3) = 4.97.
    assert "42.0 ± 5.0" in shown["baseline"] and "21.0 ± 2.5" in shown["baseline"]
    for value in ("52.1", "+10.1"):
        assert f"{value} (no interval: one seed)" in shown["all"]
    # Of three seeds that are all alike none is known either.
    assert "50.0 (no interval: equal seeds)" in shown["both contrasts"]


def test_on_another_benchmark_published_values_stand_there_without_a_difference(handmade):
    table = make_table(handmade, {})
    assert table.against == "gta5" and all(not line.difference for line in table.lines)
    text = as_text(table)
    assert "With adversarial.steps=6 " in text and "train.threads" not in text
    assert "published (gta5)" in text and "44.5 (inferred)" in text and "41.4 " in text
    assert "No difference to it" in text


def test_on_its_benchmark_the_difference_is_ours_minus_published(handmade):
    table = make_table(as_if_on_gta5(handmade), {})
    difference = {line.row.name: line.difference for line in table.lines}
    assert difference["baseline"] == {"mIoU": pytest.approx(42.0 - 41.4)}
    assert difference["source contrast"] == {"mIoU": pytest.approx(44.0 - 44.5)}
    assert difference["self-training"] == {}
    assert "+0.6" in as_text(table) and "-0.5" in as_text(table)


def test_on_synthia_the_values_are_synthias_over_both_class_sets(handmade):
    table = make_table(dataclasses.replace(handmade, benchmark="synthia"), {})
    assert table.against == "synthia"
    assert table.lines[0].published == {"mIoU": 39.5, "mIoU-13": 45.9}


def test_a_gain_is_over_the_seeds_that_the_reference_has(handmade):
    file = dataclasses.replace(handmade.file, reference="all")
    lines = {r.row.name: r for r in make_table(dataclasses.replace(handmade, file=file), {}).lines}
    assert lines["baseline"].gain == [pytest.approx(42 - 52.1)]


def test_a_row_of_another_network_is_not_compared_and_its_neighbours_are(handmade):
    made = as_if_on_gta5(handmade)
    cells = {
        (row, seed): as_if_on_gta5(handmade, "deeplabv2_vgg16").cells[row, seed]
        if row == "baseline"
        else cell
        for (row, seed), cell in made.cells.items()
    }
    lines = make_table(dataclasses.replace(made, cells=cells), {}).lines
    assert {line.row.name for line in lines if line.difference} == {
        "source contrast",
        "both contrasts",
        "all",
    }


def test_published_values_of_another_network_are_compared_with_that(handmade):
    made = as_if_on_gta5(handmade, "deeplabv2_vgg16")
    file = dataclasses.replace(made.file, backbone="deeplabv2_vgg16")
    table = make_table(dataclasses.replace(made, file=file), {})
    assert table.lines[0].difference == {"mIoU": pytest.approx(42.0 - 41.4)}
    assert "its backbone is deeplabv2_vgg16" in as_text(table)


def test_another_network_or_a_tiny_budget_is_not_compared(handmade):
    other = as_if_on_gta5(handmade, "deeplabv2_vgg16")
    tiny = dataclasses.replace(as_if_on_gta5(handmade), scale="tiny")
    for made in (other, tiny):
        assert all(not line.difference for line in make_table(made, {}).lines)
    assert "TINY" in as_text(make_table(tiny, {}))


def test_marks_stand_under_the_papers_columns(handmade):
    lines = as_markdown(make_table(handmade, {})).splitlines()
    head = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert head[1:5] == ["source contrast", "target contrast", "self-training", "seeds"]
    marks = {}
    for line in lines[4:9]:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        marks[cells[0]] = "".join("x" if cell else "." for cell in cells[1:4])
    assert marks == {
        "baseline": "...",
        "source contrast": "x..",
        "self-training": "..x",
        "both contrasts": "xx.",
        "all": "xxx",
    }


def test_the_csv_holds_every_number_in_full(handmade):
    rows = list(csv.DictReader(as_csv(make_table(as_if_on_gta5(handmade), {})).splitlines()))
    by = {(row["row"], row["mean"]): row for row in rows}
    baseline = by["baseline", "mIoU"]
    assert float(baseline["value"]) == pytest.approx(42)
    assert float(baseline["half_width"]) == pytest.approx(T_TWO * 2 / 3**0.5, rel=1e-5)
    assert [float(v) for v in baseline["each_seed"].split()] == pytest.approx([40, 42, 44])
    assert (baseline["published"], baseline["inferred"]) == ("41.4", "False")
    assert float(baseline["difference"]) == pytest.approx(0.6)
    contrast = by["source contrast", "mIoU"]
    assert (contrast["inferred"], contrast["published_benchmark"]) == ("True", "gta5")
    assert by["source contrast", "mIoU-tail"]["published"] == ""
    assert (by["all", "mIoU"]["seeds"], by["all", "mIoU"]["half_width"]) == ("1", "")
    assert by["self-training", "mIoU"]["value"] == ""


def test_names_are_escaped(mini_data, tmp_path):
    name = '<script>alert("1")</script> | x'
    values = {"title": "<b>", "rows": [{"name": name, "settings": {"stages": ["adversarial"]}}]}
    made = resolved(written(tmp_path, values), mini_data, tmp_path)
    table = make_table(made, {made.cells[name, 0].name: "<i>"})
    page = as_html(table)
    assert "<script" not in page and "<b>" not in page and "<i>" not in page
    assert "&lt;script&gt;" in page and "http" not in page
    row = next(line for line in as_markdown(table).splitlines() if "alert" in line)
    assert row.replace("\\|", "").count("|") == len(row_header(table)) + 1


def row_header(table) -> list[str]:
    from tune.sweeping.table import header

    return header(table)
