"""What needs no torch is answered without it: --help, --list, typing errors of every command.

All command lines run in one process, which says after each what it has loaded.  No test looks at
a clock.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

RUNNER = """
import contextlib, importlib, io, json, sys
from spcl import cli
HEAVY = {"torch", "torchvision", "ray", "optuna"}
loaded = HEAVY & set(sys.modules)
for line in json.load(sys.stdin):
    name, *argv = line
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.guarded(importlib.import_module(name).main, argv)
        except SystemExit as exit:
            code = exit.code
    now = HEAVY & set(sys.modules)
    print(json.dumps([code, out.getvalue(), err.getvalue(), sorted(now - loaded)]))
    loaded = now
"""
COMMANDS = (
    "spcl.train",
    "spcl.runs",
    "spcl.configuration.table",
    "spcl.data.inspect",
    "spcl.data.streets.__main__",
    "ray_jobs.train",
    "ray_jobs.ingest",
    "ray_jobs.evaluate",
    "tune.search",
    "tune.sweep",
    "tune.leaderboard",
    "tune.searching.audit",
)
WEIGHT = "setting 'spcl.contrast_wieght' is unknown; did you mean 'spcl.contrast_weight'?"
RUN = {
    "--benchmrk gta5": "option --benchmrk is unknown; did you mean --benchmark?",
    "--benchmark gta": "benchmark 'gta' is unknown; did you mean 'gta5'?",
    "--method spc": "method 'spc' is unknown; did you mean 'spcl'?",
    "spcl.contrast_wieght=1": WEIGHT,
    "--config FILE": f"FILE: {WEIGHT}",
    "spcl.source_mask=gtt": "spcl.source_mask 'gtt' is unknown; did you mean 'gt'?",
    "spcl.momentum=1": "spcl.momentum must be below 1.0, got 1.0",
    "train.threads=many": "train.threads must be a whole number, got 'many'",
    "model=tinny": "model.name 'tinny' is unknown; did you mean 'tiny'?",
    "stages=[spl]": "stage 'spl' is unknown; did you mean 'spcl'?",
    "--name a/b": "--name must be letters, digits, '.', '_' and '-', got 'a/b'",
    "--seeds 3..1": "--seeds must look like 0..4 or 0,3,5, got '3..1'",
}
MISTAKES = {
    "spcl.train": RUN,
    "ray_jobs.train": RUN | {"--workers=x": "--workers: invalid int value: 'x'"},
    "tune.search": {
        "--trails 3": "option --trails is unknown; did you mean --trials?",
        "--benchmark gta": "benchmark 'gta' is unknown; did you mean 'gta5'?",
        "--method sdc": "method 'sdc' is unknown; did you mean 'sdca'?",
        "spcl.contrast_wieght=1": WEIGHT,
        "--objective lable_free": "objective 'lable_free' is unknown; did you mean 'label_free'?",
        "--space spc": "space 'spc' is unknown; did you mean 'spcl'?",
        "--sampler tpee": "invalid choice: 'tpee' (choose from 'tpe',",
        "--name a/b": "--name must be letters, digits,",
        "--audit mien --storage STORE": "search 'mien' is unknown; did you mean 'mine'?",
    },
    "tune.sweep": {
        "components --sclae tiny": "option --sclae is unknown; did you mean --scale?",
        "componets": "sweep 'componets' is unknown; did you mean 'components'?",
        "components --benchmark gta": "benchmark 'gta' is unknown; did you mean 'gta5'?",
        "components spcl.contrast_wieght=1": WEIGHT,
        "components --name a/b": "--name must be letters, digits,",
        "SWEEP": f"row 'mine': {WEIGHT}",
    },
    "tune.searching.audit": {
        "STORE/searches/mine --storag x": "option --storag is unknown; did you mean --storage?",
        "STORE/searches/mien": "an experiment is a folder that tune/search.py has made, but",
    },
    "tune.leaderboard": {"--rnus x": "option --rnus is unknown; did you mean --runs?"},
    "ray_jobs.ingest": {
        "--datset gta5": "option --datset is unknown; did you mean --dataset?",
        "--dataset gta --root x": "dataset 'gta' is unknown; did you mean 'gta5'?",
        "--dataset gta5 --root STORE --split trian": "split of gta5 'trian' is unknown; did you",
    },
    "ray_jobs.evaluate": {
        "mine --stroage x": "option --stroage is unknown; did you mean --storage?",
        "mien --storage STORE": "run 'mien' is unknown; did you mean 'mine'?",
        "mine --storage STORE --stage spl": "stage 'spl' is unknown; did you mean 'spcl'?",
        "mine --storage STORE --protocol syn31": "evaluation.protocol 'syn31' is unknown; did you",
    },
    "spcl.runs": {
        "gc --yse": "option --yse is unknown; did you mean --yes?",
        "lst": "invalid choice: 'lst' (choose from 'ls',",
        "show mien --storage STORE": "run 'mien' is unknown; did you mean 'mine'?",
    },
    "spcl.data.inspect": {"x --jsn": "option --jsn is unknown; did you mean --json?"},
    "spcl.data.streets.__main__": {"--siez 3x3": "option --siez is unknown; did you mean --size?"},
    "spcl.configuration.table": {"more": "unrecognized arguments: more; see --help"},
}
SEARCH = "{schema: 1, objective: label_free, rungs: [], space: {}, config: {}}\n"  # a search.yaml
SETTINGS = "--settings --benchmark gta5 --method t2s_da t2s_da.queries=64"
LINES = [
    *((command, "--help") for command in COMMANDS),
    ("spcl.train", "--list"),
    ("ray_jobs.train", "--list"),
    ("spcl.train", SETTINGS),
    ("ray_jobs.train", SETTINGS),
    *((command, line) for command, lines in MISTAKES.items() for line in lines),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A config file and a sweep with a typo; a storage with a run and a search called `mine`."""
    folder = tmp_path_factory.mktemp("early")
    (folder / "mine.yaml").write_text("spcl: {contrast_wieght: 1}\n")
    rows = "rows: [{name: mine, settings: {spcl.contrast_wieght: 1}}]\n"
    (folder / "sweep.yaml").write_text(rows)
    (folder / "store/mine").mkdir(parents=True)
    (folder / "store/mine/config.yaml").write_text("stages: [adversarial, spcl]\n")
    (folder / "store/searches/mine").mkdir(parents=True)
    (folder / "store/searches/mine/search.yaml").write_text(SEARCH)
    names = {"FILE": "mine.yaml", "SWEEP": "sweep.yaml", "STORE": "store"}
    return {word: str(folder / name) for word, name in names.items()}


def put(places: dict[str, str], text: str) -> str:
    for word, path in places.items():
        text = text.replace(word, path)
    return text


@pytest.fixture(scope="module")
def answers(places) -> dict[tuple[str, str], tuple[int, str, str, list[str]]]:
    """Command line -> exit code, stdout, stderr, which of the four it has loaded."""
    lines = [[command, *put(places, line).split()] for command, line in LINES]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(lines),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(LINES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("command", "line"), LINES)
def test_it_is_answered_without_torch_ray_and_optuna(command, line, answers, places):
    code, out, err, loaded = answers[command, line]
    assert loaded == []
    if line in ("--help", "--list", SETTINGS):
        assert code == 0 and out and not err
        return
    message = put(places, MISTAKES[command][line])
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_settings_say_their_values_where_they_are_from_and_what_was_recalled(answers):
    out = answers["spcl.train", SETTINGS][1]
    assert out == answers["ray_jobs.train", SETTINGS][1]
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert lines["t2s_da.temperature"] == "0.2  (tau, of the contrast; provenance: recalled)"
    assert lines["t2s_da.queries"].startswith("64  (n: ")
    assert lines["t2s_da.queries"].endswith("provenance: recalled; default 128)")
    assert "recalled" not in lines["source.size"] and "spcl.temperature" not in lines


def test_list_names_what_there_is(answers):
    out = answers["spcl.train", "--list"][1]
    assert out == answers["ray_jobs.train", "--list"][1]
    for name in ("synscapes", "asanet_asc", "self_training", "deeplabv2_vgg16"):
        assert name in out
