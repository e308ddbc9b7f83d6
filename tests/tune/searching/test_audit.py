"""The oracle after the search: right, once for each artefact; no job reads its labels unasked."""

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import MINI
from experiments import (
    REFERENCE_ARTEFACT,
    failure,
    make,
    make_artefacts,
    record,
    validators,
)
from scipy.stats import spearmanr

from spcl.configuration.config import load
from spcl.data.shards import ShardSet
from spcl.data.transforms import decode, decode_label, normalize
from spcl.engine.networks import load_segmentor
from spcl.errors import DataError, UserError
from spcl.inference import predict as evaluate_file
from spcl.scoring.metrics import confusion_matrix, mean_iou
from spcl.store.run_folder import read_confusions
from tune.searching.audit import audit, main
from tune.searching.experiment import halves

ROOT = Path(__file__).resolve().parents[3]
JOBS = [(n, 0) for n in range(8)] + [(n, 1) for n in range(3)]


def records() -> list[dict]:
    values = {(n, rung): validators(0.3 * n + rung) for n, rung in JOBS}
    values[1, 0] = validators(5.0, source_val=0.1)  # forbidden
    return [record(*job, values[job]) for job in JOBS] + [failure(3, 1, "NaN")]


def experiment(storage: Path, data: Path, **request) -> Path:
    return make(storage, records(), data=str(data), **request)


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    storage = tmp_path_factory.mktemp("storage")
    make_artefacts(storage, [REFERENCE_ARTEFACT, *(f"spcl-{n}-{rung}" for n, rung in JOBS)])
    return storage


@pytest.fixture(scope="module")
def audited(storage, mini_data):
    folder = experiment(storage, mini_data)
    return folder, *audit(folder)


def slow_miou(data: Path, storage: Path, artefact: str) -> float:
    """mIoU of one network, image by image, without spcl.inference.predict."""
    config = load("streets", "spcl", None, MINI)
    shards = ShardSet(data / "streets/real/val")
    network = load_segmentor(config, 19, storage / "artefacts" / artefact).eval()
    total = np.zeros((19, 19), np.int64)
    for index in range(len(shards)):
        label = decode_label(shards.label(index)).numpy()
        with torch.no_grad():
            logits = network(normalize(decode(shards.image(index)))[None], "target").logits
        full = torch.nn.functional.interpolate(
            logits, label.shape, mode="bilinear", align_corners=False
        )
        total += confusion_matrix(label, full.argmax(1)[0].numpy(), 19)
    return mean_iou(total)[0]


def test_oracle_is_the_miou_on_the_evaluation_split(audited, storage, mini_data):
    _, rows, _ = audited
    oracle = {row["artefact"]: row["oracle"] for row in rows}
    assert len(set(oracle.values())) > 4
    for artefact in (REFERENCE_ARTEFACT, "spcl-2-1"):
        assert oracle[artefact] == pytest.approx(slow_miou(mini_data, storage, artefact), abs=1e-3)


def test_parquet_holds_a_row_for_each_finished_job_and_the_reference(audited):
    folder, rows, _ = audited
    stored = pq.read_table(folder / "audit.parquet").to_pylist()
    assert stored == rows
    assert [(row["configuration"], row["rung"]) for row in stored] == [(-1, -1), *sorted(JOBS)]
    by_job = {(row["configuration"], row["rung"]): row for row in stored}
    assert by_job[2, 1]["infomax"] == pytest.approx(1.6) == by_job[2, 1]["label_free"]
    assert by_job[1, 0]["score"] is None and by_job[1, 0]["infomax"] == 5.0
    assert len(by_job[0, 0]["iou"]) == 19


def test_summary_measures_validators_against_the_oracle(audited):
    _, rows, summary = audited
    table = {(entry["validator"], entry["rung"]): entry for entry in summary["validators"]}
    first = [row for row in rows if row["rung"] == 0]
    infomax, oracle = ([row[name] for row in first] for name in ("infomax", "oracle"))
    entry = table["infomax", "spcl 1/4"]
    assert entry["spearman"] == pytest.approx(spearmanr(infomax, oracle).statistic)
    assert entry["regret"] == pytest.approx(max(oracle) - oracle[1])
    assert entry["forbidden"] == 0 and table["label_free", "spcl 1/4"]["forbidden"] == 1
    assert table["density", "spcl 1/2"]["configurations"] == 3
    assert ("infomax", "spcl") not in table  # nobody has reached it


def test_gain_is_against_the_default_configuration_at_the_last_rung_of_both(audited):
    _, rows, summary = audited
    oracle = {row["artefact"]: row["oracle"] for row in rows}
    gain = summary["gain"]
    assert (gain["configuration"], gain["default"], gain["rung"]) == (2, 0, "spcl 1/2")
    assert gain["gain"] == pytest.approx(oracle["spcl-2-1"] - oracle["spcl-0-1"])
    assert gain["interval"][0] <= gain["gain"] <= gain["interval"][1]


def test_gain_falls_back_to_a_rung_that_both_have_reached(tmp_path, storage, mini_data):
    some = [r for r in records() if (r["configuration"], r["rung"]) != (0, 1)]
    shutil.copytree(storage / "artefacts", tmp_path / "artefacts")
    _, summary = audit(make(tmp_path, some, data=str(mini_data)))
    assert summary["gain"]["rung"] == "spcl 1/4"


def test_resumed_audit_evaluates_nothing_twice(storage, mini_data, monkeypatch, tmp_path):
    folder = make(storage, records(), data=str(mini_data), name="resumed")
    seen, real = [], evaluate_file.evaluate

    def stops_at_the_third(*arguments):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*arguments)

    monkeypatch.setattr(evaluate_file, "evaluate", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        audit(folder)
    assert not (folder / "audit.parquet").exists()
    monkeypatch.setattr(evaluate_file, "evaluate", lambda *a: (seen.append(1), real(*a))[1])
    rows, _ = audit(folder)
    assert len(seen) == len(JOBS) + 1
    again, _ = audit(folder)
    assert len(seen) == len(JOBS) + 1 and again == rows


def test_jobs_that_share_an_artefact_are_evaluated_once(storage, mini_data, monkeypatch):
    same = [record(n, 0, validators(n), artefact="spcl-0-0") for n in range(8)]
    folder = make(storage, same, data=str(mini_data), name="shared")
    seen, real = [], evaluate_file.evaluate
    monkeypatch.setattr(evaluate_file, "evaluate", lambda *a: (seen.append(1), real(*a))[1])
    rows, summary = audit(folder)
    assert len(seen) == 2 and len(rows) == 9
    assert "all values are equal" in next(
        e["note"] for e in summary["validators"] if e["validator"] == "infomax"
    )


def test_damaged_artefact_is_named(storage, mini_data, tmp_path):
    make_artefacts(tmp_path, [REFERENCE_ARTEFACT, "spcl-0-0"])
    folder = make(tmp_path, [record(0, 0, validators(1.0))], data=str(mini_data))
    path = tmp_path / "artefacts/spcl-0-0/checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="spcl-0-0/checkpoint.pt is damaged"):
        audit(folder)
    shutil.rmtree(path.parent)
    with pytest.raises(DataError, match="spcl-0-0 is missing"):
        audit(folder)


def test_search_without_labels_of_the_target_cannot_be_audited(tmp_path, mini_data):
    folder = make(tmp_path, records(), "evaluation.dataset=none", data=str(mini_data))
    with pytest.raises(UserError, match="an audit needs labels"):
        audit(folder)


def test_choice_by_target_labels_is_reported_on_the_other_half(storage, mini_data):
    for job in (values := records()):
        job["validators"] |= {"target_oracle": job["validators"].get("infomax")}
    folder = make(storage, values, data=str(mini_data), name="oracle", objective="target_oracle")
    _, summary = audit(folder)
    shards = ShardSet(mini_data / "streets/real/val")
    own, other = halves(shards.sample_ids)
    assert sorted([*own, *other]) == list(range(6)) and len(own) == 3
    cached = next(folder.glob("audit/*/spcl-2-1.parquet"))
    matrices = read_confusions(cached)[1]
    over = summary["optimism"]
    assert over["chosen_on"] == pytest.approx(mean_iou(matrices[own].sum(0))[0])
    assert over["reported"] == pytest.approx(mean_iou(matrices[other].sum(0))[0])
    assert summary["gain"]["images"] == 3
    assert summary["gain"]["chosen_miou"] == over["reported"]


def test_command_prints_the_table_and_writes_every_output(storage, mini_data, capsys):
    folder = make(storage, records(), data=str(mini_data), name="command")
    assert main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "label_free" in printed and "default configuration after spcl 1/2" in printed
    assert json.loads((folder / "audit.json").read_text())["images"] == 6
    page = (folder / "report.html").read_text()
    assert "computed after the search" in page and "no audit yet" not in page


def test_only_the_audit_scores_against_labels_of_the_target():
    """A job does under the objective target_oracle alone, in a function of its own."""
    callers = {
        f"{path.stem}.{function.name}"
        for path in (ROOT / "tune").rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and node.id == "evaluate"
    }
    assert callers == {"audit._evaluate", "jobs._oracle"}
