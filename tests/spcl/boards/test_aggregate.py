import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from spcl.boards import aggregate
from spcl.boards.aggregate import read_runs
from spcl.boards.ranking import make_boards
from spcl.boards.runs import load_confusions
from spcl.scoring.protocols import score
from spcl.store.run_folder import write_confusions

ROOT = Path(__file__).resolve().parents[3]
CLASSES = ["road", "sky", "car"]


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": 1} | value))


def some_matrices(seed):
    return np.random.default_rng(seed).integers(1, 99, (7, 3, 3))


def write_run(folder, seed=0, stages=("warm", "spcl"), started=1795260282.6):
    """A finished run as the recipe leaves it, with the keys that older ones lack."""
    table = []
    for number, stage in enumerate(stages):
        matrices = some_matrices(10 * seed + number)
        ids = [f"image{k}" for k in range(7)]
        write_confusions(folder / "evaluations" / f"{stage}.parquet", ids, matrices)
        table.append({"stage": stage, "title": stage} | score(matrices.sum(0), "all"))
    kinds = [(s, "train") for s in stages] + [(f"evaluation of {s}", "evaluation") for s in stages]
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"seed": seed, "model": {"name": "tiny"}, "evaluation": {"size": [32, 64]}})
    )
    manifest = {
        "benchmark": "streets",
        "method": "spcl",
        "backbone": "tiny",
        "evaluation_size": [32, 64],
        "seed": seed,
        "stages": [{"title": t, "kind": k, "settings": f"of {t}"} for t, k in kinds],
        "data": {"evaluation": {"name": "streets/real/val", "fingerprint": "f", "samples": 7}},
        "selection": "last",
        "label_budget": 0,
        "code": "c0",
        "started": started,
    }
    write_json(folder / "manifest.json", manifest)
    done = {"classes": CLASSES, "protocol": "all", "seed": seed, "table": table}
    write_json(folder / "DONE.json", done | {"device_seconds": {s: 60.0 for s in stages}})
    return folder


def edit(path, **changes):
    write_json(path, json.loads(path.read_text()) | changes)


def write_report(run, name, stage="spcl", seed=99, dataset="other/val"):
    """What ray_jobs/evaluate.py leaves of a stage's network."""
    folder = run / "reports" / name
    matrices = some_matrices(seed)
    write_confusions(folder / "confusions.parquet", [f"o{k}" for k in range(7)], matrices)
    row = {"stage": stage, "title": stage} | score(matrices.sum(0), "all")
    said = {"stage": stage, "classes": CLASSES, "protocol": "all", "table": [row]}
    data = {"name": dataset, "fingerprint": dataset}
    write_json(folder / "evaluation.json", said | {"data": data, "settings": {"size": [32, 64]}})


def write_search(storage, objective="label_free", label_budget=0):
    """A search of two rungs: 0 and 1 reached the last one, 2 failed there, 3 did not."""
    folder = storage / "searches" / "s"
    config = {"seed": 4, "model": {"name": "tiny"}, "evaluation": {"size": [32, 64]}}
    request = {
        "schema": 1,
        "benchmark": "streets",
        "method": "spcl",
        "objective": objective,
        "label_budget": label_budget,
        "rungs": [{"name": "half"}, {"name": "whole"}],
        "config": config,
    }
    folder.mkdir(parents=True)
    (folder / "search.yaml").write_text(yaml.safe_dump(request))
    jobs = [(0, 0, "done"), (0, 1, "done"), (1, 0, "done"), (1, 1, "done")]
    for number, rung, status in [*jobs, (2, 1, "failed"), (3, 0, "done")]:
        record = {
            "configuration": number,
            "rung": rung,
            "status": status,
            "artefact": f"net-{number}-{rung}",
            "label_budget": label_budget,
            "settings": {"a": number},
            "device_seconds": 30.0,
            "finished": "2026-11-21T11:17:42+0000",
        }
        write_json(folder / "jobs" / f"{number:04d}-{rung}.json", record)
        matrices = some_matrices(100 + number)
        path = folder / "audit" / "split" / f"net-{number}-{rung}.parquet"
        write_confusions(path, [f"image{k}" for k in range(7)], matrices)
        about = {"code": "c0", "stages": [{"title": "spcl", "kind": "train"}]}
        write_json(folder / "configurations" / f"{number:04d}" / "manifest.json", about)
    write_json(
        folder / "audit.json",
        {
            "split": "streets/real/val",
            "fingerprint": "f",
            "confusions": "split",
            "classes": CLASSES,
            "protocol": "all",
        },
    )
    return folder


@pytest.fixture
def opened(monkeypatch):
    """Folders that are opened and read, not merely looked at."""
    seen = []
    read = aggregate._read

    def spy(found):
        seen.append(found.folder.name)
        return read(found)

    monkeypatch.setattr(aggregate, "_read", spy)
    return seen


# Runs.


def test_a_run_gives_a_row_for_each_stage_scored_from_its_matrices(tmp_path):
    folder = write_run(tmp_path / "a", seed=3)
    (warm, spcl), problems = read_runs([tmp_path])
    assert problems == [] and [warm.stage, spcl.stage] == ["warm", "spcl"]
    expected = score(some_matrices(31).sum(0), "all")
    assert spcl.means == {"mIoU": expected["means"]["mIoU"]["value"]}
    assert spcl.iou == tuple(expected["iou"]) and spcl.classes == tuple(CLASSES)
    assert (spcl.benchmark, spcl.method, spcl.backbone) == ("streets", "spcl", "tiny")
    assert (spcl.seed, spcl.eval_size, spcl.target) == (3, (32, 64), "streets/real/val")
    assert (spcl.folder, spcl.source) == (str(folder), "run")
    assert spcl.date == "2026-11-21T11:24:42+00:00"  # date -u -d @1795260282
    assert (spcl.settings, spcl.device_seconds) == ("of evaluation of spcl", 60.0)
    assert (warm.final, spcl.final, spcl.images) == (False, True, 7)


def test_matrices_are_loaded_in_the_order_of_their_samples(tmp_path):
    write_run(tmp_path / "a", stages=("spcl",))
    matrices, order = some_matrices(0), [4, 2, 0, 6, 5, 3, 1]
    path = tmp_path / "a/evaluations/spcl.parquet"
    write_confusions(path, [f"image{k}" for k in order], matrices[order])
    (run,), _ = read_runs([tmp_path])
    ids, loaded = load_confusions(run)
    assert ids == [f"image{k}" for k in range(7)] and (loaded == matrices).all()


def test_a_run_is_read_by_its_own_folder_too(tmp_path):
    write_run(tmp_path / "a")
    assert read_runs([tmp_path / "a"]) == read_runs([tmp_path])


def test_a_folder_given_twice_counts_once(tmp_path):
    write_run(tmp_path / "a")
    assert len(read_runs([tmp_path, tmp_path / "a", str(tmp_path)])[0]) == 2


def test_a_uri_of_a_filesystem_gives_the_same_runs(tmp_path):
    write_run(tmp_path / "a")
    (local, _), _ = read_runs([tmp_path])
    (remote, _), problems = read_runs([tmp_path.as_uri()])
    assert problems == [] and remote.means == local.means
    assert remote.folder == f"{tmp_path.as_uri()}/a"
    assert (load_confusions(remote)[1] == load_confusions(local)[1]).all()


def test_records_older_than_the_keys_for_boards_are_read(tmp_path):
    for seed in (0, 1):
        folder = write_run(tmp_path / f"s{seed}", seed)
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["backbone"], manifest["evaluation_size"]
        for stage in manifest["stages"]:
            del stage["settings"]
        write_json(folder / "manifest.json", manifest)
        done = json.loads((folder / "DONE.json").read_text())
        del done["device_seconds"]
        write_json(folder / "DONE.json", done)
    (warm, spcl, _, other), problems = read_runs([tmp_path])
    assert problems == [] and (spcl.backbone, spcl.eval_size) == ("tiny", (32, 64))
    assert spcl.device_seconds is None
    assert spcl.settings == other.settings != warm.settings


# What is not read, and why.


def damage(folder, how):
    matrices = folder / "evaluations" / "spcl.parquet"
    done = json.loads((folder / "DONE.json").read_text())
    match how:
        case "no json":
            (folder / "DONE.json").write_text("{")
        case "a list":
            (folder / "DONE.json").write_text("[]")
        case "newer":
            edit(folder / "DONE.json", schema=99)
        case "foreign":
            (folder / "DONE.json").write_text('{"schema": 1, "accuracy": 1}')
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "no matrices":
            matrices.unlink()
        case "torn matrices":
            matrices.write_bytes(matrices.read_bytes()[:-40])
        case "other matrices":
            write_confusions(matrices, list("ab"), some_matrices(99)[:2])
        case "protocol":
            edit(folder / "DONE.json", protocol="new19")
        case "unscored":
            edit(folder / "DONE.json", table=[])
        case "more classes":
            edit(folder / "DONE.json", classes=[*CLASSES, "bus"])
        case "foreign classes":
            edit(folder / "DONE.json", protocol="cityscapes19")
        case "wrong types":
            edit(folder / "DONE.json", table=[done["table"][0] | {"means": 3}])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no json", "DONE.json is not valid JSON"),
        ("a list", "DONE.json is no record"),
        ("newer", "has schema 99, this version of spcl reads 1"),
        ("foreign", "a record lacks 'table'"),
        ("no manifest", "manifest.json"),
        ("no matrices", "spcl.parquet"),
        ("torn matrices", "spcl.parquet cannot be read"),
        ("other matrices", "spcl.parquet gives"),
        ("protocol", "protocol 'new19' is unknown"),
        ("unscored", "not evaluated"),
        ("more classes", "has 3 classes, not 4"),
        ("foreign classes", "is made for the 19 Cityscapes classes"),
        ("wrong types", ""),
    ],
)
def test_a_damaged_or_foreign_folder_is_told_and_the_others_are_read(tmp_path, how, said):
    write_run(tmp_path / "good")
    damage(write_run(tmp_path / "bad"), how)
    runs, (problem,) = read_runs([tmp_path])
    assert {Path(run.folder).name for run in runs} == {"good"}
    assert problem.startswith(f"{tmp_path}/bad: ") and said in problem and "\n" not in problem


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("manifest.json", {"benchmark": None}),
        ("manifest.json", {"method": {"name": "spcl"}}),
        ("manifest.json", {"backbone": 3}),
        ("manifest.json", {"selection": ["last"]}),
        ("manifest.json", {"label_budget": "8"}),
        ("manifest.json", {"seed": "0"}),
        ("manifest.json", {"code": None}),
        ("manifest.json", {"evaluation_size": ["32", "64"]}),
        ("DONE.json", {"classes": [1, 2, 3]}),
        ("DONE.json", {"classes": "abc"}),
        ("DONE.json", {"device_seconds": {"warm": "60", "spcl": "60"}}),
    ],
)
def test_a_record_of_other_kinds_of_values_stops_no_board(tmp_path, file, values):
    write_run(tmp_path / "good")
    edit(write_run(tmp_path / "bad", 1) / file, **values)
    runs, (problem,) = read_runs([tmp_path])
    assert problem.startswith(f"{tmp_path}/bad: ") and "cannot be" in problem
    (board,) = make_boards(runs)
    assert len(board.rows) == 2


def test_what_is_no_finished_run_is_told(tmp_path):
    write_run(tmp_path / "half")
    (tmp_path / "half/DONE.json").unlink()
    write_json(tmp_path / "lost/FAILED.json", {"error": "out of memory", "kind": "x"})
    for name in ("holiday", "artefacts/x", "sweeps/tiny/x", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    write_json(tmp_path / "boards/leaderboard.json", {})  # ours, and no run
    runs, problems = read_runs([tmp_path, tmp_path / "nowhere", "nosuch://x"])
    assert runs == []
    assert [p.replace(f"{tmp_path}/", "") for p in problems[:4]] == [
        "half: not finished",
        "holiday: neither a run nor a search",
        "lost: failed: out of memory",
        "nowhere: there is no such folder",
    ]
    assert len(problems) == 5 and problems[4].startswith("nosuch://x: ")


# Searches.


def test_search_jobs_count_where_they_finished_the_last_rung_and_are_audited(tmp_path):
    write_search(tmp_path)
    (zero, one), problems = read_runs([tmp_path])
    assert problems == []
    assert [Path(run.folder).name for run in (zero, one)] == ["0000", "0001"]
    assert (zero.source, zero.selection, zero.seed) == ("search", "label_free", 4)
    assert zero.device_seconds == 60.0 and zero.settings != one.settings
    assert zero.iou == tuple(score(some_matrices(100).sum(0), "all")["iou"])


def test_a_search_without_an_audit_or_with_an_older_one_is_told(tmp_path):
    folder = write_search(tmp_path)
    audit = json.loads((folder / "audit.json").read_text())
    del audit["confusions"]
    write_json(folder / "audit.json", audit)
    assert "older version" in read_runs([tmp_path])[1][0]
    (folder / "audit.json").unlink()
    assert "--audit s" in read_runs([tmp_path])[1][0]


def test_a_configuration_that_was_not_audited_is_told_and_the_others_are_read(tmp_path):
    folder = write_search(tmp_path)
    (folder / "audit/split/net-1-1.parquet").unlink()
    runs, problems = read_runs([tmp_path])
    assert len(runs) == 1 and problems == [f"{folder}: configuration 0001 is not audited"]


def test_a_run_of_a_searchs_pick_was_selected_as_the_search_did(tmp_path):
    write_search(tmp_path, "few_label:8", 8)
    write_run(tmp_path / "s-c0-s1", seed=1)
    write_run(tmp_path / "other-c0-s1", seed=1)
    runs = {Path(run.folder).name: run for run in read_runs([tmp_path])[0]}
    pick, other = runs["s-c0-s1"], runs["other-c0-s1"]
    assert (pick.selection, pick.label_budget) == ("few_label:8", 8)
    assert (other.selection, other.label_budget) == ("last", 0)


# Incremental reading.


def test_a_second_call_opens_only_what_is_new_or_changed(tmp_path, opened):
    storage, cache = tmp_path / "runs", tmp_path / "cache.parquet"
    for seed in range(3):
        write_run(storage / f"s{seed}", seed)
    write_search(storage)
    first, _ = read_runs([storage], cache)
    assert sorted(opened) == ["s", "s0", "s1", "s2"]
    opened.clear()
    again, _ = read_runs([storage], cache)
    assert opened == [] and again == first
    for one, other in zip(first, again, strict=True):
        assert (one.replicates == other.replicates).all()
    write_run(storage / "s3", 3)
    write_run(storage / "s1", 9, started=0.0)
    changed, _ = read_runs([storage], cache)
    assert sorted(opened) == ["s1", "s3"] and len(changed) == len(first) + 2
    assert {run.seed for run in changed if run.source == "run"} == {0, 2, 3, 9}


def test_a_new_job_or_audit_makes_a_search_read_again(tmp_path, opened):
    folder, cache = write_search(tmp_path / "runs"), tmp_path / "cache.parquet"
    read_runs([tmp_path / "runs"], cache)
    edit(folder / "jobs/0002-1.json", status="done", artefact="net-2-1")
    runs, _ = read_runs([tmp_path / "runs"], cache)
    assert opened == ["s", "s"] and len(runs) == 3


def test_a_removed_run_is_gone_and_a_mended_one_is_read(tmp_path):
    storage, cache = tmp_path / "runs", tmp_path / "cache.parquet"
    write_run(storage / "a")
    path = write_run(storage / "b", 1) / "evaluations" / "spcl.parquet"
    whole = path.read_bytes()
    path.write_bytes(b"x")
    assert len(read_runs([storage], cache)[0]) == 2
    path.write_bytes(whole)  # DONE.json did not change
    assert len(read_runs([storage], cache)[0]) == 4
    shutil.rmtree(storage / "a")
    assert {Path(run.folder).name for run in read_runs([storage], cache)[0]} == {"b"}


def test_a_record_of_the_same_size_but_another_time_is_read_again(tmp_path, opened):
    folder, cache = write_run(tmp_path / "runs/a"), tmp_path / "cache.parquet"
    read_runs([tmp_path / "runs"], cache)
    os.utime(folder / "DONE.json", (0, 0))
    read_runs([tmp_path / "runs"], cache)
    assert opened == ["a", "a"]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path):
    write_run(tmp_path / "runs/a")
    (tmp_path / "file").touch()
    assert len(read_runs([tmp_path / "runs"], tmp_path / "file" / "cache.parquet")[0]) == 2


@pytest.mark.parametrize("damaged", [b"", b"PAR1 no"])
def test_a_damaged_cache_is_made_anew(tmp_path, opened, damaged):
    storage, cache = tmp_path / "runs", tmp_path / "cache.parquet"
    write_run(storage / "a")
    first, _ = read_runs([storage], cache)
    cache.write_bytes(damaged)
    assert read_runs([storage], cache)[0] == first
    assert read_runs([storage], cache)[0] == first and opened == ["a", "a"]


def test_a_cache_of_other_resamples_is_not_used(tmp_path, opened, monkeypatch):
    storage, cache = tmp_path / "runs", tmp_path / "cache.parquet"
    write_run(storage / "a")
    read_runs([storage], cache)
    monkeypatch.setattr("spcl.boards.cache.RESAMPLES", 7)
    read_runs([storage], cache)
    assert opened == ["a", "a"]


# The whole.


def test_the_boards_code_loads_neither_torch_nor_ray():
    code = (
        "import sys, spcl.boards.ranking, spcl.boards.published\n"
        "assert not {'torch', 'ray', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_runs_of_the_recipe_are_rows_by_seed(mini_data, tmp_path):
    from conftest import MINI

    from spcl.train import main

    line = ["--method", "source_only", "--seeds", "0,1", "--data", str(mini_data)]
    assert main([*line, "--storage", str(tmp_path), *MINI]) == 0
    (one, other), problems = read_runs([tmp_path])
    assert problems == [] and {one.seed, other.seed} == {0, 1}
    assert one.settings == other.settings and one.target == "streets/real/val"
    assert (one.backbone, one.eval_size, one.images) == ("tiny", (32, 64), 6)
    assert one.device_seconds > 0 and one.final


def test_whose_switches_a_run_has_is_read_and_kept(tmp_path):
    write_run(tmp_path / "ours")
    edit(write_run(tmp_path / "theirs") / "manifest.json", compat="official")
    cache = tmp_path / "cache"
    for _ in range(2):  # read, then from the cache
        runs, _ = read_runs([tmp_path / "ours", tmp_path / "theirs"], cache)
        assert [run.compat for run in runs] == ["ours"] * 2 + ["official"] * 2


# Who has chosen a run's settings.

FEW = {"search": "s", "selection": "few_label:8", "label_budget": 8}


def chosen(*folders, cache=None):
    found, problems = read_runs(folders, cache)
    assert problems == []
    return {Path(run.folder).name: (run.selection, run.label_budget) for run in found}


def test_a_manifest_says_who_chose_a_runs_settings_whatever_its_folder_is_called(tmp_path):
    edit(write_run(tmp_path / "any", 0) / "manifest.json", **FEW)
    edit(write_run(tmp_path / "other-c0-s1", 1) / "manifest.json", **FEW)
    assert set(chosen(tmp_path).values()) == {("few_label:8", 8)}
    rows = {row.badges for board in make_boards(read_runs([tmp_path])[0]) for row in board.rows}
    assert rows == {("few_label:8", "target labels")}


def test_a_manifest_and_a_name_that_tell_of_two_searches_are_united(tmp_path):
    """A run may be called after one search and have been started from the file of another."""
    write_search(tmp_path, "few_label:20", 20)
    write_search(tmp_path / "other")
    free = {"search": "t", "selection": "label_free", "label_budget": 0}
    edit(write_run(tmp_path / "s-c0-s1", 1) / "manifest.json", **free)
    write_run(tmp_path / "s-c1-s1", 2)  # of older code, which names no search
    edit(write_run(tmp_path / "other/s-c0", 3) / "manifest.json", **FEW)
    told = chosen(*(tmp_path / name for name in ("s-c0-s1", "s-c1-s1", "other/s-c0")))
    assert told == {
        "s-c0-s1": ("few_label:20", 20),
        "s-c1-s1": ("few_label:20", 20),
        "s-c0": ("few_label:8", 8),
    }


def test_a_manifest_that_changes_is_read_again(tmp_path):
    path, cache = write_run(tmp_path / "runs/a") / "manifest.json", tmp_path / "cache"
    assert chosen(tmp_path / "runs", cache=cache) == {"a": ("last", 0)}
    edit(path, **FEW)
    assert chosen(tmp_path / "runs", cache=cache) == {"a": ("few_label:8", 8)}


def test_a_search_that_began_from_chosen_settings_says_so(tmp_path):
    path = write_search(tmp_path) / "search.yaml"
    values = yaml.safe_load(path.read_text())
    by = {"search": "t", "objective": "few_label:8", "label_budget": 8}
    values["config"]["chosen_by"] = by
    path.write_text(yaml.safe_dump(values))
    assert set(chosen(tmp_path).values()) == {("few_label:8", 8)}


def test_who_chose_is_no_setting_that_tells_rows_apart(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\nchosen_by: {search: s}\nspcl: {steps: 3}\n")
    assert aggregate.settings_of(str(tmp_path)) == {"spcl.steps": 3}


# Targets that a network never saw.


def test_a_network_on_data_it_never_saw_is_a_row_of_the_generalisation_board(tmp_path):
    for seed in (0, 1, 2):
        folder = write_run(tmp_path / f"r{seed}", seed=seed)
        write_report(folder, "rain", seed=50 + seed, dataset="rain/val")
        write_report(folder, "snow", seed=60 + seed, dataset="snow/val")
        write_report(folder, "own", dataset="streets/real/train")  # of the target itself
        write_report(folder, "unlabelled", dataset="fog/val")
        edit(folder / "reports/unlabelled/evaluation.json", table=[])
    runs, problems = read_runs([tmp_path])
    assert problems == []
    boards = {board.benchmark: board for board in make_boards(runs)}
    assert list(boards) == ["generalisation from streets", "streets"]
    rows = {row.method: row for row in boards["generalisation from streets"].rows}
    assert rows.keys() == {"spcl on rain/val", "spcl on snow/val"}
    each = [score(some_matrices(50 + seed).sum(0), "all")["means"]["mIoU"] for seed in range(3)]
    mean = sum(one["value"] for one in each) / 3
    assert rows["spcl on rain/val"].mean == pytest.approx(mean)
    # Each target is a group of its own: what is easier to see is no better method.
    assert len({row.group for row in rows.values()}) == 2


def test_a_report_that_comes_later_or_is_damaged_is_read_or_told(tmp_path):
    folder = write_run(tmp_path / "storage/a")
    cache = tmp_path / "cache"
    assert len(read_runs([tmp_path / "storage"], cache)[0]) == 2
    write_report(folder, "rain")
    runs, problems = read_runs([tmp_path / "storage"], cache)
    assert [run.unseen for run in runs] == [False, False, True] and problems == []
    (folder / "reports/rain/confusions.parquet").unlink()
    edit(folder / "reports/rain/evaluation.json", seed=1)
    runs, (problem,) = read_runs([tmp_path / "storage"], cache)
    assert len(runs) == 2 and "reports/rain" in problem


# What was recalled and not read.


def test_a_method_that_is_a_specification_says_so_and_which_defaults_were_recalled(tmp_path):
    folder = write_run(tmp_path / "a")
    edit(folder / "manifest.json", spec=True, recalled=["spcl.temperature"])
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        runs, problems = read_runs([tmp_path / "a"], cache)
        (board,) = make_boards(runs)
        assert problems == [] and {row.method for row in board.rows} == {
            "spcl (spec)",
            "spcl (spec): warm",
        }
        assert all("recalled, not read: spcl.temperature" in row.note for row in board.rows)
