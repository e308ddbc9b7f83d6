import json

import numpy as np
import pytest

from spcl.errors import DataError
from spcl.store.run_folder import RunFolder, read_confusions, runs, write_confusions

DONE_V1 = {"schema": 1, "table": [], "seed": 0}  # a frozen example of schema 1


def test_confusions_survive_the_disk_exactly(tmp_path):
    matrices = np.random.default_rng(0).integers(0, 2**40, (5, 19, 19))
    write_confusions(tmp_path / "a.parquet", list("abcde"), matrices)
    ids, read = read_confusions(tmp_path / "a.parquet")
    assert ids == list("abcde") and read.dtype == np.int64 and (read == matrices).all()


def test_the_frozen_example_of_schema_1_is_read(tmp_path):
    (tmp_path / "DONE.json").write_text(json.dumps(DONE_V1))
    assert RunFolder(tmp_path).done == DONE_V1 | {"schema": 2}


def test_another_schema_is_refused_by_name(tmp_path):
    (tmp_path / "DONE.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(DataError, match=r"DONE.json has schema 99, this version of spcl reads 1"):
        _ = RunFolder(tmp_path).done


def test_finishing_clears_an_earlier_failure(tmp_path):
    run = RunFolder(tmp_path)
    run.fail("boom", "TrainingError")
    assert run.failed["error"] == "boom" and run.done is None
    run.finish({"table": []})
    assert run.failed is None and run.done["table"] == []


def test_metrics_keep_the_last_line_of_a_step_and_pass_over_a_torn_one(tmp_path):
    lines = [
        {"stage": "a", "step": 1, "losses": {"x": 1.0}},
        {"message": "resumed"},
        {"stage": "a", "step": 1, "losses": {"x": 2.0}},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"stage": "a", "st'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert [r["losses"]["x"] for r in RunFolder(tmp_path).metrics()] == [2.0]


def test_only_run_folders_are_listed(tmp_path):
    for name in ("b", "a", "artefacts"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "config.yaml").touch()
    (tmp_path / "b" / "config.yaml").touch()
    assert [run.name for run in runs(tmp_path)] == ["a", "b"]
    assert runs(tmp_path / "nowhere") == []
