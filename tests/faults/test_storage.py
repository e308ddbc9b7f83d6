"""Disks fill up, limits and permissions refuse: one line says so, and the same command goes on."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import searches
from conftest import MINI
from mini import TRAIN, assert_same_bits
from processes import largest_file

from spcl import cli
from spcl.data.convert import convert
from spcl.data.request import Options
from spcl.data.verify import verify
from spcl.errors import StorageError, UserError
from spcl.store import atomic
from spcl.store.run_folder import RunFolder
from spcl.train import main as train
from tune import sweep
from tune.searching.driver import Driver
from tune.searching.study import mend

ROOT_ONLY = "mounting a small disk needs root, and a kernel that lets it"
PAGE = 4096  # bytes; a tmpfs gives no less
LINE = re.compile(
    r"error: (?P<path>/.+): (no space left on device|file-size limit exceeded), "
    r"[\d.]+ [KMGT]?i?B free of [\d.]+ [KMGT]iB; .+, then the same command continues\n"
)


class Disk:
    """A tmpfs that can grow."""

    def __init__(self, folder: Path):
        self.folder = folder

    def mount(self, size: int, *more: str) -> None:
        options = ",".join((f"size={size}", *more))
        line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        if subprocess.run(line, capture_output=True).returncode:
            pytest.skip(ROOT_ONLY)

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip(ROOT_ONLY)
    folder = tmp_path / "disk"
    folder.mkdir()
    made = Disk(folder)
    try:
        yield made
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


@pytest.fixture(scope="module")
def undisturbed(mini_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    storage = tmp_path_factory.mktemp("undisturbed")
    assert cli.guarded(train, line_of(mini_data, storage)) == 0
    return RunFolder(storage / "r")


def line_of(data: Path, storage: Path) -> list[str]:
    return ["--data", str(data), "--storage", str(storage), "--name", "r", *MINI]


def files(folder: Path) -> dict[str, bytes]:
    """What stands: finished artefacts and results, which no refused write may touch."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in ("artefacts/[!.]*/*", "r/evaluations/*", "r/config.yaml")
        for path in folder.glob(pattern)
        if not path.name.startswith(".")
    }


def climb(
    run: Callable[[], int], grow: Callable[[], None], storage: Path, capsys: pytest.CaptureFixture
) -> list[str]:
    """Run until it succeeds, with more room each time; what was hit, by path in the storage."""
    hit = []
    while True:
        before = files(storage)
        code = run()
        err = capsys.readouterr().err
        assert before.items() <= files(storage).items()
        assert not list(storage.rglob("lease*"))
        if code == 0:
            assert err == ""
            return hit
        told = LINE.fullmatch(err)
        assert code == 2 and told, err
        assert told["path"].startswith(str(storage)) and ".tmp" not in told["path"]
        hit.append(str(Path(told["path"]).relative_to(storage)))
        assert len(hit) < 500, "more room does not help"
        grow()


def kinds(hit: list[str]) -> set[str]:
    """ "r/checkpoints/adversarial-0123" -> "checkpoints", "artefacts/spcl-0123" -> "artefacts" """
    parts = [Path(path).parts for path in hit]
    return {part[1] if part[0] == "r" and len(part) > 1 else part[0] for part in parts}


@pytest.mark.slow
def test_a_disk_that_fills_up_again_and_again_costs_no_bit(disk, undisturbed, mini_data, capsys):
    """Seeded room for somewhat more each time, until the run is through."""
    rng, size = random.Random(2), [3 * PAGE]
    disk.mount(size[0])
    storage = disk.folder / "runs"
    storage.mkdir()

    def grow() -> None:
        size[0] = int(size[0] * rng.uniform(1.02, 1.4)) + PAGE
        disk.resize(size[0])

    hit = climb(lambda: cli.guarded(train, line_of(mini_data, storage)), grow, storage, capsys)
    assert_same_bits(RunFolder(storage / "r"), undisturbed)
    assert len(hit) >= 30, hit
    assert {"checkpoints", "artefacts", "tensorboard"} <= kinds(hit), hit


@pytest.mark.parametrize("factor", [8.0, pytest.param(1.3, marks=pytest.mark.slow)])
def test_a_limit_on_the_size_of_files_costs_no_bit(
    factor, undisturbed, mini_data, tmp_path, capsys
):
    limit = [64]

    def run() -> int:
        with largest_file(int(limit[0])):
            return cli.guarded(train, line_of(mini_data, tmp_path))

    def grow() -> None:
        limit[0] *= factor

    hit = climb(run, grow, tmp_path, capsys)
    assert_same_bits(RunFolder(tmp_path / "r"), undisturbed)
    assert len(hit) >= (25 if factor < 2 else 5), hit
    wanted = {"config.yaml", "checkpoints"} | ({"artefacts"} if factor < 2 else set())
    assert wanted <= kinds(hit), hit


PLACES = ("r/checkpoints", "r/tensorboard", "r/evaluations", "artefacts")


@pytest.mark.parametrize(
    "how",
    ["full", *(pytest.param(h, marks=pytest.mark.slow) for h in ("no more files", "read-only"))],
)
def test_whatever_is_refused_is_named_and_its_room_is_enough(
    how, disk, undisturbed, mini_data, capsys
):
    """A small disk of its own for each folder that a run writes to; once for every reason."""
    storage = disk.folder / "runs"
    disk.mount(2**26)
    hit = []
    for place in PLACES:
        small = Disk(storage / place)
        small.folder.mkdir(parents=True, exist_ok=True)
        small.mount(PAGE, *({"read-only": ["ro"], "no more files": ["nr_inodes=1"]}.get(how, [])))
        if how == "full":
            (small.folder / "filler").write_bytes(bytes(PAGE))
        code = cli.guarded(train, line_of(mini_data, storage))
        err = capsys.readouterr().err
        assert code == 2 and err.startswith(f"error: {small.folder}") and err.count("\n") == 1, err
        reason = "read-only file system;" if how == "read-only" else "no space left on device, "
        assert f": {reason}" in err and ("(inodes)" in err) == (how == "no more files"), err
        hit.append(place)
        failed = RunFolder(storage / "r").failed
        assert failed["kind"] == "StorageError" and f"error: {failed['error']}\n" == err
        subprocess.run(["umount", str(small.folder)], check=True)
    assert cli.guarded(train, line_of(mini_data, storage)) == 0
    assert_same_bits(RunFolder(storage / "r"), undisturbed)
    assert not RunFolder(storage / "r").failed and len(hit) == len(PLACES)


def test_a_limit_during_a_conversion_costs_no_byte(mini_data, tmp_path):
    """Shards, index, manifest and report: one line each time, and in the end the same bytes."""
    raw, hits = mini_data / "streets/raw/gta5", 0
    usual, out, limit = tmp_path / "usual", tmp_path / "out", 64
    convert("gta5", raw, usual, split="train", options=Options(name="streets/sim"))
    while True:
        try:
            with largest_file(limit):
                convert("gta5", raw, out, split="train", options=Options(name="streets/sim"))
            break
        except StorageError as error:
            place = rf"{tmp_path}/(out|\.out\.part).*: file-size limit exceeded"
            assert re.match(place, str(error))
            assert not out.exists()
            hits, limit = hits + 1, int(limit * 1.5)
    verify(out)
    shards = sorted(path.name for path in usual.iterdir() if path.suffix != ".json")
    assert all((out / name).read_bytes() == (usual / name).read_bytes() for name in shards)
    assert hits >= 8 and len(shards) >= 9


@pytest.mark.parametrize("number", sorted(atomic.REFUSALS), ids=errno.errorcode.get)
def test_every_refusal_is_one_line_wherever_it_hides(number, tmp_path, capsys):
    """Raised as it is, below another error as torch.save has it, and where nobody expects it."""
    refused = OSError(number, os.strerror(number), str(tmp_path / "x"))

    def hidden() -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(fail, RuntimeError("unexpected pos 64 vs 0"))
            fail(refused)

    def fail(error: Exception) -> None:
        raise error

    for raising in (lambda: fail(refused), hidden):
        with pytest.raises(StorageError, match=f"^{tmp_path}/x: .*, then the same command") as told:
            with atomic.writing(tmp_path):
                raising()
        assert "\n" not in str(told.value)

    def command(argv: object) -> int:
        raise refused

    assert cli.guarded(command) == 2
    assert capsys.readouterr().err == f"error: {told.value}\n"


def test_what_is_no_refusal_stays_what_it_is(tmp_path):
    for other in (OSError("disk full"), OSError(errno.ENOTDIR, "x"), RuntimeError("x"), KeyError()):
        with pytest.raises(type(other)) as raised:
            with atomic.writing(tmp_path):
                raise other
        assert raised.value is other
    assert atomic.refusal(PermissionError(errno.EACCES, "a socket")) is None


@pytest.mark.slow
def test_a_job_of_a_search_that_finds_no_room_is_no_failed_configuration(
    disk, mini_data, monkeypatch
):
    """Nothing is recorded; with room the same job ends in the record of one never disturbed."""
    from ray import tune

    from tune.searching import jobs

    disk.mount(40 * PAGE)
    asked = searches.search(mini_data, disk.folder / "runs")
    told: list[dict] = []
    monkeypatch.setattr(tune, "report", told.append)
    reference = asked.reference_job({})
    config = {"job": json.dumps(dataclasses.asdict(reference))}
    sizes = (40, 100, 500)  # pages: the first checkpoint, a later one, an artefact
    for size in sizes:
        disk.resize(size * PAGE)
        jobs.trial(config)
        assert list(told[-1]) == [jobs.STOPPED] and "no space left on device" in told[-1]["stopped"]
        assert not reference.record.exists() and not reference.run.failed
    disk.resize(2**26)
    jobs.trial(config)
    assert told[-1] == {"status": "done"} and len(told) == len(sizes) + 1
    record = json.loads(reference.record.read_text())
    assert record["attempts"] == len(told) and record["shared_steps"] == {"adversarial": 6}
    whole = searches.search(mini_data, disk.folder / "whole")
    assert record["validators"] == jobs.run(whole.reference_job({}))["validators"]


@pytest.mark.parametrize("place", ["jobs", "journal.log"])
def test_a_driver_of_a_search_that_finds_no_room_stops_and_goes_on(place, disk, mini_data):
    """A lost job's record or the journal has no room: one line, and no configuration is lost."""
    disk.mount(2**22)
    asked = searches.search(mini_data, disk.folder, trials=4)
    driver = Driver(asked)
    searches.work(driver, list(range(50)), stop_after=2)
    before = searches.records(asked.folder)
    (under_way,) = driver.running.values()
    filler = disk.folder / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(PAGE)):
            pass
    with pytest.raises(StorageError, match=f"^{asked.folder}/.*{place}.*: no space left"):
        if place == "jobs":
            driver.finished(under_way, failed=True)
        else:
            with open(asked.folder / "journal.log", "r+b") as journal:  # up to its page's end
                journal.seek(0, os.SEEK_END)
                journal.write(b" " * (-journal.tell() % PAGE))
            driver.journal.start(99, 0, under_way.parameters)
    assert searches.records(asked.folder) == before
    filler.unlink()
    mend(asked.folder)
    again = Driver(asked)
    assert again.unfinished == [(under_way.configuration, under_way.rung)]
    searches.work(again, list(range(50)))
    assert len(searches.records(asked.folder)) >= 5


def test_a_sweep_that_finds_no_room_stops_and_goes_on(disk, mini_data, tmp_path, capsys):
    """One line and exit code 2: no cell has failed, none after it is tried."""
    disk.mount(100 * PAGE)
    file = tmp_path / "two.yaml"
    rows = [{"name": n, "settings": {"stages": [n]}} for n in ("adversarial", "source_only")]
    file.write_text(json.dumps({"title": "t", "rows": rows}))
    line = [str(file), "--data", str(mini_data), "--storage", str(disk.folder), "--name", "s"]
    line += ["--seeds", "0", "--workers", "0", *MINI]
    for size in (100, 300):
        disk.resize(size * PAGE)
        assert cli.guarded(sweep.run, line) == 2
        err = capsys.readouterr().err.splitlines()
        assert LINE.fullmatch(err[-1] + "\n") and "\n".join(err).count("error") == 1
        assert not list(disk.folder.rglob("FAILED.json"))
        assert not list(disk.folder.glob("sweeps/s/table*"))
    disk.resize(2**26)
    assert cli.guarded(sweep.run, line) == 0
    assert (disk.folder / "sweeps/s/table.md").is_file()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_under_ray_a_full_disk_is_told_once_and_the_group_is_not_trained_again(
    cluster, commands, disk, undisturbed, mini_data
):
    """Where not even FAILED.json can be written, with a rank that waits for another; then alone."""
    run = RunFolder(disk.folder / "runs/r")
    line = [*TRAIN, *line_of(mini_data, run.folder.parent), "--workers"]
    disk.mount(5 * PAGE)  # config.yaml has two, each rank's log needs one
    for workers, size in ((2, 5), (1, 300)):
        disk.resize(size * PAGE)
        command = commands.run([*line, workers], cluster.environment)
        joined, *told = command.err.splitlines()
        assert command.code == 2 and joined.startswith("joining Ray") and len(told) == 1, told
        assert LINE.fullmatch(told[0] + "\n") and told[0].startswith(f"error: {run.folder}/")
        assert bool(run.failed) == (workers == 1)
        for log in (run.folder / "logs").glob("*.log"):
            assert log.read_text().count(": process ") == 1  # trained once
    disk.resize(2**26)
    command = commands.run([*line, 1], cluster.environment)
    assert command.code == 0, command.err
    assert_same_bits(run, undisturbed)


@pytest.mark.parametrize("size", [2**16, 2**22])
def test_ray_that_finds_no_room_for_its_own_files_is_told_alike(size, disk, monkeypatch):
    """Ray says only that its node did not start; with room that is another reason."""
    import ray

    from ray_jobs import cluster

    def no_node(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nmore")

    disk.mount(size)
    monkeypatch.setattr(cluster, "_usual", lambda: ("TMPDIR", disk.folder))
    monkeypatch.setattr(cluster, "temporary_folder", lambda: {})  # as if its name were short
    monkeypatch.setattr(ray, "init", no_node)
    with pytest.raises(UserError) as told:
        cluster.connect("local")
    full = str(told.value).startswith(f"{disk.folder}: no space left on device, ")
    assert full == (size < 2**19) == isinstance(told.value, StorageError)
    assert full or "(The current node timed out during startup.)" in str(told.value)
