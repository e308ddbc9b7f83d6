"""What a user can do wrong with ray_jobs/train.py: one clear line, exit code 2, no second attempt.

Most of it is found before Ray is started or joined; `tests/spcl/test_recipe.py` has more of it.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trees
from clusters import Commands, environment, free_ports
from mini import RECIPE, TRAIN, arguments, messages

from ray_jobs import train
from spcl import cli
from spcl.configuration.config import load
from spcl.data.shards import ShardSet
from spcl.engine.run_config import open_run
from spcl.store.run_folder import RunFolder


def one_line(err: str) -> str:
    """The text of the only line on stderr, which must be an error's."""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


def refused(data: Path, storage: Path, *more: str, capsys: pytest.CaptureFixture) -> str:
    """What `ray_jobs/train.py` says of a mistake that it finds without Ray."""
    assert cli.guarded(train.main, arguments(data, storage, "bad", *more)) == 2
    return one_line(capsys.readouterr().err)


MISTAKES = {
    "--benchmark street": "benchmark 'street' is unknown; did you mean 'streets'?",
    "--method spcll": "method 'spcll' is unknown; did you mean 'spcl'?",
    "spcl.temprature=1": "'spcl.temprature' is unknown; did you mean 'spcl.temperature'?",
    "spcl.momentum=1.5": "spcl.momentum must be below 1.0, got 1.5",
    "spcl.steps=many": "spcl.steps must be a whole number, got 'many'",
    "--seeds 4..1": "--seeds must look like 0..4 or 0,3,5, got '4..1'",
    "--workers 3": "must be divisible by the workers, got batch 4 and 3 workers",
    "--workers -1": "train.workers must be at least 1, got -1",
    "source.dataset=gta5": "write them with: python ray_jobs/ingest.py --dataset gta5",
    "--address 127.0.0.1:9": "no Ray cluster answers at 127.0.0.1:9",
    "--name ../elsewhere": "--name must be letters, digits, '.', '_' and '-', got '../elsewhere'",
    "--name artefacts": "--name must not be 'artefacts', the folder where runs share",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, mini_data, tmp_path, capsys):
    message = MISTAKES[mistake]
    assert message in refused(mini_data, tmp_path, *mistake.split(), capsys=capsys)
    assert not list(tmp_path.iterdir())  # no folder, whose name would be used up


def test_a_run_keeps_its_settings(mini_data, tmp_path, capsys):
    open_run(load("streets", "spcl", None, RECIPE), tmp_path, "bad")
    message = refused(mini_data, tmp_path, "spcl.steps=7", capsys=capsys)
    assert "run 'bad' exists with other settings (spcl.steps: 60 -> 7); choose another" in message


def test_results_must_be_writable(mini_data, tmp_path, capsys):
    (tmp_path / "file").touch()
    message = refused(mini_data, tmp_path / "file/runs", capsys=capsys)
    assert f"results must be writable, but {tmp_path}/file/runs is not" in message


def test_a_run_has_one_writer(mini_data, tmp_path, capsys):
    code = (
        "import pathlib, sys\nfrom spcl.store.lease import Lease\n"
        "with Lease(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "bad")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        message = refused(mini_data, tmp_path, capsys=capsys)
        holder.stdin.close()
    assert f"the run 'bad' is being written by process {holder.pid} on " in message


@pytest.fixture
def own_data(mini_data: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may damage."""
    return Path(shutil.copytree(mini_data, tmp_path / "data"))


def test_shards_of_another_schema_are_refused(own_data, tmp_path, capsys):
    path = own_data / "streets/sim/train/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    message = refused(own_data, tmp_path / "runs", capsys=capsys)
    assert "sim/train/manifest.json has schema 99, this version of spcl reads 1 and 2" in message


@pytest.mark.parametrize("given", ["runs", None])
def test_inside_a_job_results_need_an_absolute_place(given, mini_data, capsys, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("SPCL_STORAGE", raising=False)
    place = ["--storage", given] if given else []
    assert cli.guarded(train.main, ["--data", str(mini_data), *place]) == 2
    message = one_line(capsys.readouterr().err)
    assert "inside a Ray job --storage must be absolute and exist on every node" in message
    assert "use: python ray_jobs/train.py --data /shared/data --storage" in message


# What only the cluster or the training can find.


def failed(commands: Commands, cluster, line: list[str]) -> str:
    """The error of a command that had to join the cluster."""
    command = commands.run([*TRAIN, *line], cluster.environment)
    assert command.code == 2, command.out + command.err
    joining, error = command.err.split("\n", 1)
    assert joining.startswith("joining Ray at ")
    return one_line(error)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_more_workers_than_cpus_are_refused_and_not_waited_for(
    commands, cluster, mini_data, tmp_path
):
    message = failed(commands, cluster, [*arguments(mini_data, tmp_path, "r"), "--workers", "4"])
    assert "4 workers need 4 CPU, but the cluster has 2; lower --workers or add nodes" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_loss_that_is_not_finite_is_named_and_not_tried_again(
    commands, cluster, mini_data, tmp_path
):
    run = RunFolder(tmp_path / "r")
    line = arguments(mini_data, tmp_path, "r", "adversarial.learning_rate=1e30")
    message = failed(commands, cluster, line)
    found = re.search(r"stage 'adversarial' must stay finite, .* at step (\d+) \(samples", message)
    assert 0 < int(found[1]) < 10
    assert len(re.findall(r"streets/sim/\d+", message)) == 4  # the batch of that step
    assert run.failed["error"] == message.removeprefix("error: ")
    assert run.failed["kind"] == "TrainingError" and not run.done
    assert messages(run) == ["adversarial: started"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_damaged_shard_stops_both_workers_at_once(commands, cluster, own_data, tmp_path):
    """One rank reads the damaged sample while the other waits for it in a reduction."""
    folder = own_data / "streets/sim/train"
    shards = ShardSet(folder)
    payload = shards.image(13)
    (damaged,) = (path for path in folder.glob("*.arrow") if payload in path.read_bytes())
    trees.flip_byte(damaged, damaged.read_bytes().index(payload) + len(payload) // 2)
    run = RunFolder(tmp_path / "runs/r")
    line = arguments(own_data, tmp_path / "runs", "r", "train.loader_workers=1")
    message = failed(commands, cluster, [*line, "--workers", "2"])
    assert f"sample {shards.sample_ids[13]}: image checksum mismatch in {damaged} " in message
    assert run.failed["kind"] == "DataError" and not run.done
    assert messages(run) == ["adversarial: started"]


# Ranks that were not started alike.


@pytest.mark.timeout(200)
def test_processes_started_with_other_settings_end_with_one_line(commands, mini_data, tmp_path):
    port, started = free_ports(1)[0], []
    for rank in range(2):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        variables = {name: str(value) for name, value in variables.items()}
        line = arguments(mini_data, tmp_path, "r", f"spcl.temperature={0.1 + rank}")
        started.append(
            commands.start(
                ["python", "-m", "spcl.train", *line],
                environment(variables | {"MASTER_ADDR": "127.0.0.1"}),
            )
        )
    assert [command.finish() for command in started] == [2, 2]
    for command in started:
        assert "rank 1 has another config (" in one_line(command.err)
    assert RunFolder(tmp_path / "r").failed["kind"] == "UserError"
    assert not list(tmp_path.glob("artefacts/*"))
