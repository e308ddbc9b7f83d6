"""The command, and its page in a real browser."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from boards import board
from PIL import Image

from spcl import cli
from spcl.boards.formats import FILES, write_boards
from spcl.data.labels import CLASS_NAMES
from spcl.scoring.protocols import score
from spcl.store.run_folder import RunFolder, write_confusions
from tune.leaderboard import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs Debian's chromium, not installed")
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60  # for a browser on a busy machine

#: Runs after the page's own script; what it finds becomes text of the page.
CHECK = """<script>
const rows = () => [...document.querySelectorAll("table.rows tbody tr")];
const order = () => rows().map(row => row.dataset.row).join("");
const shown = () =>
  rows().filter(row => row.checkVisibility()).map(row => row.dataset.row).join("");
const button = name =>
  [...document.querySelectorAll("th button")].find(one => one.textContent === name);
const form = document.querySelector("form");
const fill = (name, value) => {
  form[name].value = value;
  form[name].dispatchEvent(new Event("input", {bubbles: true}));
};
const found = {before: order(), sorted: {}, shown: {}};
for (const name of ["mIoU", "Rank", "Method", "mIoU-tail"]) {
  for (const time of [1, 2]) {
    button(name).focus();
    document.activeElement.click();
    const way = button(name).closest("th").getAttribute("aria-sort");
    found.sorted[`${name} ${way}`] = order();
  }
}
button("mIoU").click();
found.marked = document.querySelectorAll('[aria-sort$="cending"]').length;
for (const [name, value] of [["words", "fada vgg"], ["words", ""], ["kind", "ours"], ["kind", ""],
    ["rule", "target_oracle, 100 target labels"]]) {
  fill(name, value);
  found.shown[`${name}=${value}`] = shown();
}
found.status = form.querySelector("[role=status]").textContent;
found.heat = [...document.querySelectorAll("table.heat tbody tr")]
  .filter(row => row.checkVisibility()).length;
fill("rule", "");
found.reachable = [...document.querySelectorAll("button, input, select, a")]
  .every(one => one.tabIndex === 0);
found.labelled = [...document.querySelectorAll("input, select")].every(one => one.labels.length);
found.title = document.title;
found.image = document.querySelector("img").naturalWidth;
found.background = getComputedStyle(document.body).backgroundColor;
document.body.prepend(Object.assign(document.createElement("pre"),
  {id: "found", textContent: JSON.stringify(found)}));
</script>"""


def chromium(tmp_path, address, *options):
    """What the browser writes out; fails where one of our pages has written to the console."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1600,1200", *options, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    # The browser's own list of a folder writes there too.
    lines = [line for line in done.stderr.splitlines() if ":CONSOLE" in line and ".html" in line]
    assert lines == []
    return done.stdout


def write_run(folder, seed=0, method="spcl"):
    """A finished run of one stage on two images of 19 classes, each half right."""
    confusion = np.full((2, 19, 19), 0) + np.eye(19, dtype=int) * 5
    confusion[:, :, 0] += 5
    write_confusions(folder / "evaluations" / "spcl.parquet", ["a", "b"], confusion)
    run = RunFolder(folder)
    (folder / "config.yaml").write_text("seed: 0")
    data = {"name": "streets/val", "fingerprint": "f" * 64, "samples": 2}
    stages = [
        {"title": "spcl", "kind": "train", "key": "1" * 64},
        {"title": "evaluation of spcl", "kind": "evaluation", "key": "2" * 64, "settings": "s"},
    ]
    run.write(
        "manifest.json",
        {"name": folder.name, "benchmark": "streets", "method": method, "seed": seed}
        | {"stages": stages, "data": {"evaluation": data}, "selection": "last", "label_budget": 0}
        | {"protocol": "cityscapes19", "code": "c" * 16, "started": 1.8e9}
        | {"backbone": "tiny", "evaluation_size": [64, 128]},
    )
    row = {"stage": "spcl", "title": "adapted"} | score(confusion.sum(0), "cityscapes19")
    run.finish(
        {"classes": list(CLASS_NAMES), "protocol": "cityscapes19", "images": 2, "seed": seed}
        | {"selection": "last", "table": [row], "artefacts": {}}
        | {"device_seconds": {"spcl": 3600.0}}
    )


def call(*arguments):
    return cli.guarded(main, [str(argument) for argument in arguments])


def test_the_command_shows_runs_and_published_rows_on_their_boards(tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path / f"run-s{seed}", seed)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "DONE.json").write_text("{")
    for _ in range(2):  # the second call finds the first one's files in the storage
        assert call("--storage", tmp_path) == 0
        captured = capsys.readouterr()
        titles = re.findall("^(.*), protocol (.*)$", captured.out, re.MULTILINE)
        assert titles == [
            ("gta5", "cityscapes19"),
            ("streets", "cityscapes19"),
            ("synscapes", "cityscapes19"),
            ("synthia", "syn16_masked"),
        ]
        assert re.search(r"spcl, tiny \(last\) +50\.0 ", captured.out) is None
        assert "2 results of 2 runs" in captured.out
        (problem,) = [line for line in captured.err.splitlines() if line.startswith("not read")]
        assert "broken" in problem
    boards = json.loads((tmp_path / "leaderboard/leaderboard.json").read_text())["boards"]
    (row,) = next(board for board in boards if board["benchmark"] == "streets")["rows"]
    # Every class but the first: 5 right, 5 missed; the first: 10 right, 18 times 5 too many.
    assert row["mean"] == pytest.approx((18 * 0.5 + 10 / 100) / 19)
    assert row["seeds"] == [0, 1] and row["device_hours"] == 2
    assert all(Path(folder).is_dir() for folder in row["runs"])
    assert sum(len(board["rows"]) for board in boards if board["benchmark"] != "streets") == 63


def test_runs_of_elsewhere_and_files_elsewhere(tmp_path, capsys):
    write_run(tmp_path / "mine" / "run")
    assert call("--runs", tmp_path / "mine", "--out", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= set(FILES)
    assert "streets, protocol" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["run"]


def test_a_folder_that_is_not_there_is_a_mistake(tmp_path, capsys):
    assert call("--runs", tmp_path / "none", "--out", tmp_path) == 2
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert call("--runs", tmp_path, "--out", tmp_path / "file") == 2
    assert "is not writable" in capsys.readouterr().err


def test_the_command_needs_neither_torch_nor_ray(tmp_path):
    code = "import sys, tune.leaderboard; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.fixture
def page(tmp_path):
    """leaderboard.html of hand-written boards."""
    rows = board(tmp_path / "runs")
    write_boards([rows], ["a: damaged"], tmp_path / "out")
    return tmp_path / "out" / "leaderboard.html"


def checked(tmp_path, page, script, *options):
    copy = page.with_name("checked.html")
    copy.write_text(page.read_text().replace("</body>", script + "</body>"))
    return chromium(tmp_path, copy.as_uri(), "--dump-dom", *options)


@needs_chromium
def test_the_page_sorts_and_filters_by_keyboard_in_both_colour_schemes(page, tmp_path):
    found = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        option = f"--blink-settings=preferredColorScheme={number}"
        dom = checked(tmp_path, page, CHECK, option)
        text = re.search('<pre id="found">(.*?)</pre>', dom)[1]
        found[scheme] = json.loads(text.replace("&lt;", "<").replace("&amp;", "&"))
    light = found["light"]
    assert light["before"] == "0123"
    assert light["sorted"] == {
        "mIoU descending": "0123",
        "mIoU ascending": "3210",
        # A published row has no rank, so it is last either way; equal ranks stay as they were.
        "Rank ascending": "1032",
        "Rank descending": "3102",
        "Method ascending": "3201",
        "Method descending": "1023",
        "mIoU-tail descending": "1032",
        "mIoU-tail ascending": "3012",
    }
    assert light["marked"] == 1
    assert light["shown"] == {
        "words=fada vgg": "2",
        "words=": "0123",
        "kind=ours": "013",
        "kind=": "0123",
        "rule=target_oracle, 100 target labels": "0",
    }
    assert light["status"] == "1 of 4 rows" and light["heat"] == 1
    assert light["reachable"] and light["labelled"]
    assert light["title"] == "Leaderboard"  # no name of a run has run as a script
    assert light["image"] == 64
    assert light["background"] == "rgb(255, 255, 255)" != found["dark"]["background"]


@needs_chromium
def test_a_link_opens_its_run(page, tmp_path):
    follow = "<script>document.querySelector('a.run').click()</script>"
    assert "DONE.json" in checked(tmp_path, page, follow)


@needs_chromium
def test_a_script_that_fails_would_be_noticed(page, tmp_path):
    with pytest.raises(AssertionError, match="CONSOLE"):
        checked(tmp_path, page, "<script>throw new Error('as a test')</script>")


@needs_chromium
def test_a_screenshot_shows_the_board(page, tmp_path):
    picture = tmp_path / "page.png"
    chromium(tmp_path, page.as_uri(), f"--screenshot={picture}")
    with Image.open(picture) as image:
        assert image.size[0] == 1600 and len(image.convert("RGB").getcolors(1 << 20)) > 20
