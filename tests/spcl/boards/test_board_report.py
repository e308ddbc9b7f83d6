import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from boards import NASTY, OURS, PUBLISHED, board

from spcl.boards.formats import FILES, board_text, write_boards
from spcl.boards.page import scale
from spcl.boards.ranking import Board


@pytest.fixture
def streets(tmp_path):
    return board(tmp_path / "runs")


@pytest.fixture
def out(tmp_path, streets):
    write_boards([streets], [f"runs/{NASTY}: damaged"], tmp_path / "out")
    return tmp_path / "out"


class Reader(HTMLParser):
    """Elements with their attributes, and the text of each table cell."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self.cell = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, text):
        if self.cell:
            self.rows[-1][-1] += text

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def html(out):
    return Reader((out / "leaderboard.html").read_text())


def test_three_whole_files_and_nothing_else_are_written(out):
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


def test_rows_keep_the_order_of_the_board(html, streets):
    rows = [row for row in html.rows if row[0] in ("–", "1", "2")]
    assert [row[1].removesuffix(" published mean disagrees") for row in rows] == [
        r.method for r in streets.rows
    ]


def test_published_rows_are_marked_and_have_a_source_and_no_rank(html, out):
    row = next(row for row in html.rows if "FADA" in row[1])
    assert row[0] == "–" and row[1] == "FADA published mean disagrees"
    assert "arXiv:2111.12358 Table 1" in row
    line = next(t for t in (out / "leaderboard.md").read_text().splitlines() if "FADA" in t)
    assert line.startswith("| – | FADA (published) |") and "arXiv:2111.12358 Table 1" in line


def test_a_table_shows_all_that_a_row_holds(html):
    head = next(row for row in html.rows if row[0] == "Rank")
    cells = dict(zip(head, next(row for row in html.rows if "45.0 to 55.0" in row), strict=True))
    expected = {
        "Backbone": "tiny",
        "mIoU": "50.0",
        "95 % interval": "45.0 to 55.0",
        "over seeds": "46.0 to 54.0",
        "over images": "47.0 to 53.0",
        "mIoU-tail": "25.0",
        "Selection": "last",
        "Device-hours": "1.50",
        "Runs": "spcl #1 of 'x' spcl-s1",
        "Seeds": "3",
        "road": "75.0",
        "rider": "25.0",
        NASTY: "–",
        "Date": "2026-11-21",
        "Code": "01234567",
    }
    assert {title: cells[title] for title in expected} == expected


def test_one_seed_has_no_interval_and_says_so(html, out, streets):
    assert any("none: one seed" in row for row in html.rows)
    assert "none: one seed" in (out / "leaderboard.md").read_text()
    assert "none: one seed" in board_text(streets)


def test_names_are_text_and_never_markup(html):
    assert len(html.all("script")) == 1
    everything = [value for _, attributes in html.elements for value in attributes.values()]
    assert not any((value or "").startswith("javascript:") for value in everything)
    known = {"class", "data-value", "data-rule", "data-row", "data-kind", "data-first", "href"}
    for tag in ("tr", "td", "th", "a"):
        for attributes in html.all(tag):
            assert set(attributes) <= known | {"title", "style", "scope", "aria-sort"}
    assert any(row[1] == NASTY for row in html.rows if len(row) > 1)


def test_names_are_text_in_markdown_too(out):
    """Every line of the table has as many cells as the head; no tag, no link but to a run."""
    text = (out / "leaderboard.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 6
    assert len({line.count("|") for line in lines}) == 1
    assert not re.search(r"[<`]|\]\((?!\.\./runs/)", text)


def test_target_labels_are_visible_in_the_badge_of_the_selection_rule(html, out):
    badges = [a["class"] for a in html.all("span") if a.get("class", "").startswith("badge")]
    assert badges.count("badge labels") == 3  # the legend's, and two of one row
    assert "target&#95;oracle, 100 target labels" in (out / "leaderboard.md").read_text()


def test_the_page_asks_nothing_of_the_network(html, out):
    policy = next(a["content"] for a in html.all("meta") if "content" in a)
    assert policy.startswith("default-src 'none'")
    addresses = [a[k] for _, a in html.elements for k in ("src", "href") if a.get(k)]
    assert addresses and not any(re.match(r"(https?:)?//", address) for address in addresses)


def test_a_link_leads_to_the_run_from_where_the_page_lies(html, out, streets):
    links = [unquote(a["href"]) for a in html.all("a") if a.get("class") == "run"]
    in_markdown = re.findall(r"\]\((.*?)\)", (out / "leaderboard.md").read_text())
    for addresses in (links, map(unquote, in_markdown)):
        assert [(out / address).resolve() for address in addresses] == [
            (out / run).resolve() for run in streets.rows[1].runs
        ]


def test_the_panel_is_in_the_page_and_a_large_one_is_linked(html, streets, tmp_path, monkeypatch):
    (image,) = html.all("img")
    assert image["src"].startswith("data:image/png;base64,")
    monkeypatch.setattr("spcl.boards.page.PANEL_BYTES", 10)
    write_boards([streets], [], tmp_path / "out")
    page = Reader((tmp_path / "out/leaderboard.html").read_text())
    assert not page.all("img")
    (link,) = [a["href"] for a in page.all("a") if a.get("href", "").endswith("panel.png")]
    assert (tmp_path / "out" / unquote(link)).is_file()


def test_a_panel_that_cannot_be_read_is_left_out(streets, tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    write_boards([streets], [], tmp_path / "out")
    assert "Panels" not in (tmp_path / "out/leaderboard.html").read_text()


def test_what_is_kept_apart_and_what_was_not_read_is_said(html, out, streets):
    for name in ("leaderboard.html", "leaderboard.md"):
        text = (out / name).read_text()
        assert "other size" in text and "damaged" in text and "2.1 points" in text
    assert "other size" in board_text(streets) and "2.1 points" in board_text(streets)


def test_json_holds_the_boards_and_knows_no_nan(tmp_path, streets):
    unknown = replace(PUBLISHED, mean=float("nan"))
    write_boards([replace(streets, rows=[*streets.rows, unknown])], ["why"], tmp_path)
    found = json.loads((tmp_path / "leaderboard.json").read_text(), parse_constant=pytest.fail)
    assert found["schema"] == 1 and found["not_read"] == ["why"]
    rows = found["boards"][0]["rows"]
    assert rows[1]["mean"] == 0.5 and rows[1]["seeds"] == [0, 1, 2] and rows[4]["mean"] is None


def test_a_row_without_a_mean_is_shown_without_one(tmp_path):
    unknown = replace(PUBLISHED, mean=float("nan"), means={"mIoU-13": 0.25}, iou=(None,))
    write_boards([Board("synthia", "syn16_masked", ("road",), [unknown], [], None)], [], tmp_path)
    text = (tmp_path / "leaderboard.html").read_text()
    assert "nan" not in re.sub("<script>.*</script>", "", text, flags=re.DOTALL).lower()


def test_a_terminal_shows_all_of_ours_and_few_published_rows(streets):
    many = [replace(PUBLISHED, method=f"P{n}", mean=0.9) for n in range(9)]
    text = board_text(replace(streets, rows=[*many, OURS]))
    assert "P4" in text and "P5" not in text and "4 more published rows" in text
    assert "spcl, tiny (last)" in text and "45.0 to 55.0" in text


def test_rows_that_would_read_the_same_are_told_apart_in_a_terminal(streets):
    twins = [
        replace(OURS, key="1234567890", settings="a.b=1\x1b"),
        replace(OURS, key="abcdefghij"),
    ]
    text = board_text(replace(streets, rows=twins))
    assert "\n12345678: a.b=1?\n" in text
    assert "(last) 12345678 " in text and "(last) abcdefgh " in text
    assert "abcdefgh" not in board_text(replace(streets, rows=twins[1:]))


def test_a_folder_whose_name_is_no_text_still_has_its_link(streets, tmp_path):
    folder = tmp_path / "bad-\udcff"
    write_boards([replace(streets, rows=[replace(OURS, runs=(str(folder),))])], [], tmp_path)
    page = Reader((tmp_path / "leaderboard.html").read_text())
    assert [a["href"] for a in page.all("a") if a.get("class") == "run"] == ["bad-%FF/"]


def test_a_terminal_cannot_be_steered_by_a_name(streets):
    text = board_text(replace(streets, rows=[replace(OURS, method="a\x1b[31mb\n")]))
    assert "\x1b" not in text and "a?[31mb?" in text


@pytest.mark.parametrize(
    ("ends", "expected"), [((31.4, 57.1), (30, 60, 5)), ((50, 50), (50, 50.2, 0.2))]
)
def test_the_scale_has_round_steps_around_all_values(ends, expected):
    assert scale(*ends) == pytest.approx(expected)
