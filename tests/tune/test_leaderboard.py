"""The command, and its page in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from boards import board
from PIL import Image

from spcl.results.report import write_boards

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
