"""Ctrl-C while modules load: one line and exit code 130, of every command, whatever a module does.

A module written in C may swallow an exception that is raised in its import, turn it into another,
or abort.  The quick tests replace a module by one that interrupts itself and then does such a
thing; the slow one interrupts the real ones, at moments drawn by a seed.  A command ends with 130
only if the interrupt came, so every fault counts.
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from spcl.cli import INTERRUPTED

ROOT = Path(__file__).resolve().parents[2]
SEED = 130
SEARCH = "{schema: 1, objective: label_free, rungs: [], space: {}, config: {}}\n"  # a search.yaml
#: Command line -> the first module it needs that takes long to load.
COMMANDS = {
    "ray_jobs/train.py": "torch",
    "ray_jobs/train.py --workers 0": "torch",
    "ray_jobs/ingest.py --dataset gta5 --root RAW": "numpy",
    "ray_jobs/evaluate.py RUN": "torch",
    "tune/search.py": "torch",
    "tune/sweep.py components": "torch",
    "tune/leaderboard.py --storage STORE": "pyarrow",
    "-m spcl.train": "torch",
    "-m spcl.runs ls --storage STORE": "pyarrow",
    "-m spcl.data.inspect STORE": "numpy",
    "-m spcl.data.streets --preview STORE/sheet.png": "numpy",
    "-m spcl.configuration.table": "torch",
    "-m tune.searching.audit SEARCH": "torch",
    "benchmarks/streets.py --storage STORE": "pyarrow",
}
INTERRUPT = """
import os, signal
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
"""
BEHAVIOURS = {
    "lets it pass": "interrupt()",
    "swallows it": "try:\n    interrupt()\nexcept BaseException:\n    pass",
    "says something else": (
        "try:\n    interrupt()\nexcept BaseException:\n    raise ImportError('half made') from None"
    ),
    "is made of text": "exec('interrupt()')",
}
#: Interrupts at the k-th module that is looked for from the first of a name on.
HOOK = """
import os, signal, sys
name, count = os.environ["INTERRUPT"].split(":")
class Hook:
    left = int(count)
    def find_spec(self, module, path=None, target=None):
        if self.left == int(count) and module != name:
            return
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Hook())
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A storage with a run and a search, as far as they are read before torch is."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "store/mine").mkdir(parents=True)
    (folder / "store/mine/config.yaml").write_text("stages: [spcl]\n")
    (folder / "store/searches/mine").mkdir(parents=True)
    (folder / "store/searches/mine/search.yaml").write_text(SEARCH)
    (folder / "raw").mkdir()
    (folder / "connect.py").write_text(CONNECT)
    names = {"RUN": "store/mine", "SEARCH": "store/searches/mine", "STORE": "store", "RAW": "raw"}
    names["CONNECT"] = "connect.py"
    return {word: str(folder / name) for word, name in names.items()}


def finish(
    command: str, places: dict[str, str], path: Path, **variables: str
) -> subprocess.CompletedProcess:
    """A command whose modules are looked for in `path` first."""
    for word, place in places.items():
        command = command.replace(word, place)
    kept = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": f"{path}:{ROOT}"}
    return subprocess.run(
        [sys.executable, *command.split()],
        cwd=ROOT,
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=100,
    )


def write_module(folder: Path, name: str, behaviour: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(INTERRUPT + BEHAVIOURS[behaviour])
    return folder


def drawn() -> list[tuple[str, str]]:
    """Every command with a behaviour, and one command with all of them."""
    rng = random.Random(SEED)
    pairs = [(command, rng.choice(list(BEHAVIOURS))) for command in COMMANDS]
    return pairs + [(c, b) for c in ["-m spcl.train"] for b in BEHAVIOURS if (c, b) not in pairs]


@pytest.mark.parametrize(("command", "behaviour"), drawn())
def test_ctrl_c_while_modules_load_is_one_line(command, behaviour, places, tmp_path):
    path = write_module(tmp_path, COMMANDS[command], behaviour)
    done = finish(command, places, path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{INTERRUPTED}\n")


def test_of_the_ranks_of_torchrun_the_first_says_it(places, tmp_path):
    path = write_module(tmp_path, "torch", "lets it pass")
    for rank, line in enumerate((f"{INTERRUPTED}\n", "")):
        done = finish("-m spcl.train", places, path, RANK=str(rank), WORLD_SIZE="2")
        assert (done.returncode, done.stderr) == (130, line)


#: Command line -> a module, and how many are looked for after it at least.
LOADING = {
    "-m spcl.train --benchmark gta5": ("torch", 900),
    "tune/search.py --benchmark gta5": ("optuna", 150),
    "ray_jobs/train.py --benchmark gta5": ("torchvision", 60),
    "-m tune.searching.audit SEARCH": ("plotly", 60),
    "tune/leaderboard.py --storage STORE": ("numpy", 90),
    "CONNECT": ("ray", 300),
}
CONNECT = """
import sys
from ray_jobs import cluster
from spcl import cli
sys.exit(cli.guarded(lambda argv: cluster.connect("local")))
"""
FAULTS = 12


@pytest.mark.slow
def test_real_modules_are_interrupted_anywhere(places, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    rng, told = random.Random(SEED), []
    for number in range(FAULTS):
        command = list(LOADING)[number % len(LOADING)]
        name, most = LOADING[command]
        moment = f"{name}:{rng.randint(1, most)}"
        done = finish(command, places, tmp_path, INTERRUPT=moment)
        told.append((command, moment, done.returncode, done.stderr))
    wrong = [one for one in told if one[2:] != (130, f"{INTERRUPTED}\n")]
    assert len(told) == FAULTS and wrong == []
