"""Single flipped bits in every kind of record: refused by name, or harmless.

A flip is harmless where what the file says is the same.  The fast tests draw flips with a seed, the
slow ones do every bit of a file.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from ray_jobs import ingest
from spcl.boards.aggregate import read_runs
from spcl.data.manifest import INDEX, MANIFEST
from spcl.data.shards import ShardSet
from spcl.data.verify import verify as verify_split
from spcl.engine.artefacts import ArtefactStore, verify
from spcl.engine.stages import Stage
from spcl.errors import DataError, UserError
from spcl.scoring.protocols import score
from spcl.settings import dump_yaml
from spcl.store import atomic, records
from spcl.store.garbage import find_garbage
from spcl.store.run_folder import RunFolder, write_confusions
from tune.searching.experiment import Experiment, read_job, read_request

FEW = 150  # flips of a fast test
SOME = 400  # of a slow one, where every bit would take minutes
CLASSES = ["road", "sky", "car"]


def flips(path: Path, count: int | None) -> Iterator[int]:
    """Write the file with one bit flipped, `count` times or for every bit; then as it was."""
    whole = path.read_bytes()
    every = np.arange(8 * len(whole))
    chosen = every if count is None else np.random.default_rng(0).permutation(every)[:count]
    for bit in chosen.tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        yield bit
    path.write_bytes(whole)


def same(one: bytes, other: bytes) -> bool:
    """Do two JSON texts say the same?"""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def flip_all(path: Path, use: Callable[[], object], count: int | None) -> Counter:
    """What came of every flip: refused (by a UserError that names the file) or the same."""
    whole, came = path.read_bytes(), Counter()
    for bit in flips(path, count):
        try:
            use()
        except UserError as error:
            assert path.name in str(error) and "\n" not in str(error), bit
            came["refused"] += 1
        else:
            assert same(path.read_bytes(), whole), bit
            came["the same"] += 1
    assert came.total() == (8 * len(whole) if count is None else count)
    use()
    return came


# Splits.


@pytest.fixture
def split(mini_data, tmp_path) -> Path:
    return Path(shutil.copytree(mini_data / "streets/sim/train", tmp_path / "own/train"))


def test_flips_in_a_splits_manifest_are_refused(split):
    assert flip_all(split / MANIFEST, lambda: ShardSet(split), FEW)["refused"] > 0.9 * FEW


def test_flips_in_a_splits_manifest_are_refused_by_verify(split, capsys):
    for _ in flips(split / MANIFEST, FEW // 5):
        assert ingest.main(["--verify", str(split)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and MANIFEST in line
    assert ingest.main(["--verify", str(split)]) == 0
    assert "note" not in capsys.readouterr().out


@pytest.mark.slow
def test_every_flip_in_a_splits_manifest_is_refused(split):
    came = flip_all(split / MANIFEST, lambda: ShardSet(split), None)
    assert came["refused"] > 20_000


def test_flips_in_a_splits_index_are_refused(split):
    assert flip_all(split / INDEX, lambda: ShardSet(split), FEW)["refused"] == FEW


@pytest.fixture
def old_split(split) -> Path:
    """A split as it was written before there were checksums."""
    manifest = json.loads((split / MANIFEST).read_text())
    del manifest["checksum"]
    atomic.write_json(split / MANIFEST, manifest | {"schema": 1})
    return split


def test_an_old_manifest_is_read_and_verify_says_that_it_has_no_checksum(old_split, capsys):
    assert len(ShardSet(old_split)) == 24
    assert ingest.main(["--verify", str(old_split)]) == 0
    out = capsys.readouterr().out
    assert "as they were written" in out and "older than checksums and has none" in out


def test_flips_in_an_old_manifest_are_no_tracebacks_and_verify_finds_those_that_matter(old_split):
    """Without a checksum opening can't see all; verify compares with index and shards."""
    path, came = old_split / MANIFEST, Counter()
    whole = json.loads(path.read_bytes())
    for bit in flips(path, FEW):
        try:
            ShardSet(old_split)
            came["opened"] += 1
        except DataError:
            came["refused"] += 1
        try:
            verify_split(old_split)
        except DataError as error:
            assert str(old_split) in str(error)
        else:
            # "inputs" says what was converted, which nothing else does; the shards were hashed.
            free = {"inputs": None, "shards": None}
            assert json.loads(path.read_bytes()) | free == whole | free, bit
    assert came.total() == FEW and came["opened"] and came["refused"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fingerprint", "0" * 64),
        ("rows", 23),
        ("image_sizes", {"64x32": 23}),
        ("class_pixels", [1] * 19),
        ("class_names", ["sky"] * 19),
        ("palette", [[0, 0, 0]] * 19),
        ("id_map", {"0": 1}),
    ],
)
def test_verify_compares_a_manifest_with_its_index_and_its_shards(split, capsys, key, value):
    manifest = json.loads((split / MANIFEST).read_text())
    within = manifest if key in manifest else manifest["metadata"]
    within[key] = value
    records.write(split / MANIFEST, manifest)  # with a checksum that fits
    assert ingest.main(["--verify", str(split)]) == 2
    assert f"manifest.json says another {key} than the shards" in capsys.readouterr().err


# Artefacts.


@pytest.fixture
def artefact(tmp_path) -> Path:
    stage = Stage("prototypes", "some pass", None, 1, 0, {"size": [2, 3]}, {"source": "s"})
    store = ArtefactStore(tmp_path)
    with store.write(stage) as folder:
        (folder / "a.txt").write_text("a")
    return store.path(stage)


def test_flips_in_an_artefacts_manifest_are_refused(artefact):
    came = flip_all(artefact / "manifest.json", lambda: verify(artefact), FEW)
    assert came["refused"] > 0.9 * FEW


@pytest.mark.slow
def test_every_flip_in_an_artefacts_manifest_is_refused(artefact):
    came = flip_all(artefact / "manifest.json", lambda: verify(artefact), None)
    assert came["refused"] > 3000


def test_an_artefact_of_before_checksums_is_read(artefact):
    manifest = json.loads((artefact / "manifest.json").read_text())
    del manifest["checksum"]
    atomic.write_json(artefact / "manifest.json", manifest | {"schema": 1})
    assert verify(artefact)["key"] == manifest["key"]


def test_no_flip_of_a_record_makes_garbage_of_what_it_refers_to(artefact):
    storage = artefact.parent.parent
    run = RunFolder(storage / "run")
    run.finish({"table": [], "artefacts": {"some pass": artefact.name}})
    run.write("manifest.json", {"stages": []})
    (run.folder / "config.yaml").write_text("seed: 1")
    count = 0
    for _ in flips(run.folder / "DONE.json", FEW):
        assert find_garbage(storage).folders == []
        count += 1
    assert count == FEW


# Boards.


def write_run(folder: Path, seed: int) -> Path:
    """A finished run as the recipe leaves it."""
    matrices = np.random.default_rng(seed).integers(1, 99, (4, 3, 3))
    path = folder / "evaluations" / "spcl.parquet"
    write_confusions(path, [f"image{k}" for k in range(4)], matrices)
    (folder / "config.yaml").write_text("seed: 0")
    run = RunFolder(folder)
    kinds = [("spcl", "train"), ("evaluation of spcl", "evaluation")]
    run.write(
        "manifest.json",
        {
            "benchmark": "streets",
            "method": "spcl",
            "backbone": "tiny",
            "evaluation_size": [32, 64],
            "seed": seed,
            "stages": [{"title": t, "kind": k, "settings": f"of {t}"} for t, k in kinds],
            "data": {"evaluation": {"name": "streets/real/val", "fingerprint": "f"}},
            "selection": "last",
            "label_budget": 0,
            "code": "c0",
            "started": 1795260282.6,
        },
    )
    row = {"stage": "spcl", "title": "spcl"} | score(matrices.sum(0), "all")
    run.finish(
        {
            "classes": CLASSES,
            "protocol": "all",
            "table": [row],
            "device_seconds": {"spcl": 60.0},
            "matrices": {"spcl": atomic.sha256(path)},
        }
    )
    return folder


def flip_run(storage: Path, file: str, count: int | None) -> Counter:
    """Flips in a file of the run `bad`, read for boards: it is told, or its row is the same."""
    path, came = storage / "bad" / file, Counter()
    whole, _ = read_runs([storage])
    assert [Path(run.folder).name for run in whole] == ["bad", "good"]
    for bit in flips(path, count):
        found, problems = read_runs([storage])
        if found == whole:
            came["the same"] += 1
            continue
        assert found == whole[1:], bit  # the other is read
        (problem,) = problems
        assert problem.startswith(f"{storage}/bad: ") and path.name in problem, bit
        came["refused"] += 1
    return came


@pytest.fixture
def two_runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("spcl.boards.cache.RESAMPLES", 2)
    monkeypatch.setattr("spcl.boards.runs.headline_replicates", lambda m, p: np.zeros(2))
    write_run(tmp_path / "good", 0)
    write_run(tmp_path / "bad", 1)
    return tmp_path


RECORDS = ("manifest.json", "DONE.json", "evaluations/spcl.parquet")


@pytest.mark.parametrize("file", RECORDS)
def test_flips_in_a_runs_records_regroup_no_row(two_runs, file):
    came = flip_run(two_runs, file, FEW // 2)
    assert came.total() == FEW // 2 and came["refused"] > 0.9 * came.total()


@pytest.mark.slow
@pytest.mark.parametrize("file", RECORDS)
def test_more_flips_in_a_runs_records_regroup_no_row(two_runs, file):
    came = flip_run(two_runs, file, SOME)
    assert came.total() == SOME and came["refused"] > 0.9 * SOME


# Searches.


@pytest.fixture
def experiment(tmp_path) -> Path:
    folder = tmp_path / "searches" / "s"
    request = {
        "benchmark": "streets",
        "method": "spcl",
        "objective": "label_free",
        "label_budget": 0,
        "rungs": [{"name": "whole"}],
        "space": {},
        "config": {"seed": 4, "model": {"name": "tiny"}, "evaluation": {"size": [32, 64]}},
    }
    atomic.write_bytes(folder / "search.yaml", dump_yaml(records.seal(request)).encode())
    job = {
        "configuration": 0,
        "rung": 0,
        "status": "done",
        "artefact": "net",
        "label_budget": 0,
        "settings": {"a": 0.5},
        "device_seconds": 30.0,
        "finished": "2026-11-21T11:17:42+0000",
    }
    records.write(folder / "jobs/0000-0.json", job)
    path = folder / "audit/split/net.parquet"
    matrices = np.random.default_rng(0).integers(1, 99, (4, 3, 3))
    write_confusions(path, [f"image{k}" for k in range(4)], matrices)
    about = {"code": "c0", "stages": [{"title": "spcl", "kind": "train"}]}
    records.write(folder / "configurations/0000/manifest.json", about)
    audit = {"split": "streets/real/val", "fingerprint": "f", "confusions": "split"}
    audit |= {"classes": CLASSES, "protocol": "all", "matrices": {"net": atomic.sha256(path)}}
    records.write(folder / "audit.json", audit)
    return folder


FILES = ("search.yaml", "jobs/0000-0.json", "audit.json", "audit/split/net.parquet")


@pytest.mark.parametrize("file", [*FILES, "configurations/0000/manifest.json"])
def test_flips_in_a_searchs_records_change_no_row_without_a_word(experiment, file, monkeypatch):
    monkeypatch.setattr("spcl.boards.runs.headline_replicates", lambda m, p: np.zeros(2))
    whole, problems = read_runs([experiment])
    assert len(whole) == 1 and not problems
    count = 0
    for bit in flips(experiment / file, FEW // 2):
        found, problems = read_runs([experiment])
        assert found == whole or (not found and problems), bit
        count += 1
    assert count == FEW // 2


def test_flips_in_what_a_search_continues_from_are_refused(experiment):
    request = experiment / "search.yaml"
    whole = yaml.safe_load(request.read_text())
    refused = 0
    for bit in flips(request, FEW):
        try:
            found = Experiment(experiment).request
        except DataError as error:
            assert str(request) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert found == whole, bit
    assert refused > 0.8 * FEW and read_request(request) == whole
    job = experiment / "jobs/0000-0.json"
    assert flip_all(job, lambda: read_job(job), FEW)["refused"] > 0.9 * FEW
