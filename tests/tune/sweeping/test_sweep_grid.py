"""Cells of a sweep: which rows are one run, and who has chosen their settings."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from conftest import MINI
from sweeps import COMPONENTS, TWO_ROWS, call, resolved, run_folders, written

from spcl.boards.aggregate import read_runs
from spcl.boards.ranking import make_boards
from spcl.configuration.chosen_by import ChosenBy
from spcl.configuration.layers import CONFIGS
from spcl.errors import ConfigError
from spcl.settings import digest
from spcl.store.run_folder import RunFolder
from tune import sweep
from tune.sweeping.grid import resolve


def test_a_cell_is_named_by_its_stages_keys(mini_data, tmp_path):
    made = resolved(written(tmp_path, TWO_ROWS), mini_data, tmp_path, (0, 1))
    cell = made.cells["baseline", 1]
    key = digest([stage.key for stage in cell.stages])[:12]
    assert cell.name == f"streets-adversarial-{key}-s1"
    assert [stage.title for stage in cell.stages] == ["adversarial", "evaluation of adversarial"]
    assert len({cell.name for cell in made.cells.values()}) == 4


def test_sweeps_share_cells_that_are_equal(mini_data, tmp_path):
    """Alpha 0.1 is the default, so that row of table 5 is the last row of table 4."""
    components = resolved(COMPONENTS, mini_data, tmp_path)
    alpha = resolved(CONFIGS / "sweeps/alpha.yaml", mini_data, tmp_path)
    assert alpha.cells["α = 0.1", 0].name == components.cells["all", 0].name
    names = {cell.name for cell in (*components.distinct, *alpha.distinct)}
    assert len(names) == 5 + 6 - 1


def test_what_cannot_change_a_result_changes_no_cell(mini_data, tmp_path):
    path = written(tmp_path, TWO_ROWS)
    one = resolved(path, mini_data, tmp_path)
    other = resolved(path, mini_data, tmp_path, (0,), "full", "train.log_every=7")
    assert [cell.name for cell in one.distinct] == [cell.name for cell in other.distinct]
    assert one.name == other.name


def test_what_can_change_a_result_gives_the_table_a_folder_of_its_own(mini_data, tmp_path):
    path = written(tmp_path, TWO_ROWS)
    one = resolved(path, mini_data, tmp_path)
    other = resolved(path, mini_data, tmp_path, (0,), "full", "spcl.temperature=2")
    assert one.folder != other.folder
    assert one.cells["baseline", 0].name == other.cells["baseline", 0].name
    assert one.cells["adapted", 0].name != other.cells["adapted", 0].name


def test_a_files_settings_hold_for_all_rows_and_the_command_line_goes_before_them(
    mini_data, tmp_path
):
    values = {"method": "adversarial", "settings": {"train.batch": 2, "adversarial.momentum": 0.5}}
    values["rows"] = [{"name": "a"}, {"name": "b", "settings": {"adversarial.weight_decay": 0.0}}]
    path = written(tmp_path, values)
    made = resolved(path, mini_data, tmp_path, (0,), "full", "train.batch=6")
    for cell in made.distinct:
        assert (cell.config.train.batch, cell.config.of("adversarial").momentum) == (6, 0.5)
        assert (cell.config.method, cell.config.stages) == ("adversarial", ("adversarial",))
    assert len(made.distinct) == 2


def test_a_files_benchmark_is_the_default(mini_data, tmp_path):
    path = written(tmp_path, TWO_ROWS | {"benchmark": "street"})
    with pytest.raises(ConfigError, match="did you mean 'streets'"):
        resolved(path, mini_data, tmp_path)


def test_equal_rows_are_one_run(mini_data, tmp_path):
    rows = [{"name": name, "settings": {"spcl.absent": name}} for name in ("keep", "decay")]
    made = resolved(written(tmp_path, {"rows": [{"name": "a"}, *rows]}), mini_data, tmp_path)
    assert made.cells["a", 0] is made.cells["keep", 0] and len(made.distinct) == 2


def test_tiny_stages_are_a_twentieth_and_apart_from_full_results(mini_data, tmp_path):
    steps = ("adversarial.steps=50", "spcl.steps=200")
    path = written(tmp_path, TWO_ROWS)
    tiny = resolved(path, mini_data, tmp_path, (0,), "tiny", *steps)
    full = resolved(path, mini_data, tmp_path, (0,), "full", *steps)
    config = tiny.cells["adapted", 0].config
    assert (config.of("adversarial").steps, config.of("spcl").steps) == (2, 10)
    shortest = resolved(path, mini_data, tmp_path, (0,), "tiny").cells["adapted", 0]
    assert shortest.config.of("spcl").steps == 1  # of 6
    assert config.of("spcl").horizon == full.cells["adapted", 0].config.of("spcl").horizon
    assert tiny.folder != full.folder
    for row in ("baseline", "adapted"):
        one, other = tiny.cells[row, 0], full.cells[row, 0]
        assert not one.keys & other.keys
        assert one.run.folder.parent == tmp_path / "sweeps/tiny"
        assert other.run.folder.parent == tmp_path


# Who has chosen the settings of rows.

BY = ChosenBy(search="found", objective="few_label:4", label_budget=4)
SAID = "settings chosen by search found: few_label:4, 4 labelled target images"


def best_yaml(folder: Path, **values: object) -> Path:
    """What a search has left: a file of settings that says who chose them."""
    chosen = {"spcl": {"temperature": 2.5}, "chosen_by": dataclasses.asdict(BY)}
    return written(folder, {"benchmark": "streets", "method": "spcl"} | chosen | values, "b.yaml")


def badges(storage: Path) -> set[tuple[str, ...]]:
    found, _ = read_runs([storage])
    return {row.badges for board in make_boards(found) for row in board.rows}


def test_a_sweep_that_begins_from_a_searchs_file_says_so_everywhere(mini_data, tmp_path, capsys):
    path, best = written(tmp_path, TWO_ROWS), best_yaml(tmp_path)
    storage = tmp_path / "runs"
    plain = [str(part) for part in call(path, mini_data, storage)]
    assert sweep.main([*plain, "--seeds", "0", "spcl.temperature=2.5"]) == 0
    assert "chosen by" not in capsys.readouterr().out and badges(storage) == {("last",)}
    # The same cells, finished without labels, get the badge.
    assert sweep.main([*plain, "--seeds", "0", "--config", str(best)]) == 0
    captured = capsys.readouterr()
    assert "2 runs, 0 to do" in captured.err and f"{SAID}: baseline, adapted." in captured.out
    assert badges(storage) == {("few_label:4", "target labels")}
    # It stays when they are asked for without the file, and new ones have it from the start.
    assert sweep.main([*plain, "--seeds", "0", "spcl.temperature=2.5"]) == 0
    assert SAID in capsys.readouterr().out
    assert sweep.main([*plain, "--seeds", "0..1", "--config", str(best)]) == 0
    assert badges(storage) == {("few_label:4", "target labels")}
    runs = [RunFolder(storage / name) for name in run_folders(storage)]
    assert [run.manifest["label_budget"] for run in runs] == [4] * 4
    for name in ("table.md", "table.csv", "table.html"):
        assert SAID in (storage / "sweeps/s" / name).read_text()


@pytest.mark.parametrize("where", ["config", "settings", "row"])
def test_a_searchs_file_may_be_given_or_pasted(where, mini_data, tmp_path):
    best = yaml.safe_load(best_yaml(tmp_path).read_text())
    pasted = {"spcl": best["spcl"], "chosen_by": best["chosen_by"]}
    rows = [{"name": "a", "settings": pasted if where == "row" else {}}]
    rows += [{"name": "b", "settings": {"spcl.contrast_weight": 0.5}}]
    values = {"rows": rows} | ({"settings": pasted} if where == "settings" else {})
    base = tmp_path / "b.yaml" if where == "config" else None
    found = resolve(
        written(tmp_path, values), None, (0,), "full", MINI, mini_data, tmp_path, print, base=base
    )
    a, b = found.cells["a", 0].config, found.cells["b", 0].config
    assert (a.of("spcl").temperature, a.chosen_by) == (2.5, BY)
    assert b.chosen_by == (ChosenBy() if where == "row" else BY)
    assert b.of("spcl").temperature == (a.of("spcl").temperature if where != "row" else 0.1)


def test_equal_rows_share_the_badge_of_either(mini_data, tmp_path):
    settings = {"spcl.temperature": 2.5}
    labelled = settings | {"chosen_by": dataclasses.asdict(BY)}
    rows = [{"name": "plain", "settings": settings}, {"name": "picked", "settings": labelled}]
    rows.append({"name": "other"})
    for ordered in (rows, rows[::-1]):
        made = resolved(written(tmp_path, {"rows": ordered}), mini_data, tmp_path)
        assert made.cells["plain", 0] is made.cells["picked", 0]
        assert made.cells["plain", 0].config.chosen_by == BY
        assert not made.cells["other", 0].config.chosen_by


def test_the_rows_and_the_command_line_go_before_the_file_that_they_begin_from(mini_data, tmp_path):
    best = best_yaml(tmp_path, seed=7, train={"batch": 2})
    rows = [{"name": "a"}, {"name": "b", "settings": {"spcl.temperature": 9.0}}]
    path = written(tmp_path, {"rows": rows})
    given = resolve(
        path, None, (0,), "full", [*MINI, "train.batch=6"], mini_data, tmp_path, print, base=best
    )
    configs = [given.cells[name, 0].config for name in "ab"]
    assert [c.of("spcl").temperature for c in configs] == [2.5, 9.0]
    assert {(c.train.batch, c.seed) for c in configs} == {(6, 0)}
    assert given.name != resolved(path, mini_data, tmp_path, (0,), "full", "train.batch=6").name


def test_a_file_of_another_method_is_no_beginning(mini_data, tmp_path, capsys):
    best = best_yaml(tmp_path, method="sdca", spcl={})
    line = call(written(tmp_path, TWO_ROWS), mini_data, tmp_path, "--config", best)
    assert sweep.main(line) == 2
    error = capsys.readouterr().err
    assert "is of method sdca, but the sweep two of spcl" in error and error.count("\n") == 1


@pytest.mark.parametrize("where", ["grid", "dotted", "line"])
def test_no_grid_and_no_command_line_says_who_chose(where, mini_data, tmp_path, capsys):
    values = dict(TWO_ROWS)
    if where == "grid":
        values["grid"] = {"chosen_by.label_budget": [0, 1]}
    if where == "dotted":
        values["settings"] = {"chosen_by.label_budget": 0}
    line = call(written(tmp_path, values), mini_data, tmp_path)
    line += ["chosen_by={}"] if where == "line" else []
    assert sweep.main(line) == 2
    assert "only a search's own files set it" in capsys.readouterr().err
