"""Where the commit of a manifest comes from."""

import shutil
import subprocess

import pytest

from spcl.engine import commit as module
from spcl.engine.commit import SUBMITTED, VARIABLE, Commit, commit, note_unknown, parse

HASH = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repository folder of the test's own, and nothing remembered."""
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    commit.cache_clear()
    yield tmp_path
    commit.cache_clear()


def git(folder, *line: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(["git", *who, *line], cwd=folder, check=True, capture_output=True)
    return done.stdout.decode().strip()


@pytest.mark.parametrize("tagged", [False, True])
def test_a_checkout_is_asked_and_an_edited_file_makes_it_dirty(tagged, place, monkeypatch):
    monkeypatch.setenv(VARIABLE, HASH)  # of another tree: the checkout knows better
    git(place, "init", "-q")
    (place / "a").write_text("1")
    git(place, "add", "a")
    git(place, "commit", "-qm", "one")
    if tagged:
        git(place, "tag", "-am", "t", "v1")
    head = git(place, "rev-parse", "HEAD")
    (place / "untracked").touch()
    assert commit() == Commit(head, False)
    commit.cache_clear()
    (place / "a").write_text("2")
    assert commit() == Commit(head, True) and parse(str(commit())) == commit()
    # The line for the submitting shell gives what the checkout says itself.
    line = SUBMITTED.removeprefix("env ").removesuffix(" python")
    said = subprocess.run(
        ["sh", "-c", f"{line}; echo ${VARIABLE}"], cwd=place, capture_output=True, text=True
    )
    assert said.stdout.strip() == f"{head}-dirty"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HASH, Commit(HASH, False)),
        (f"{HASH}-dirty", Commit(HASH, True)),
        ("", Commit(None, None)),
        ("main", Commit(None, None)),
        (HASH[:7], Commit(None, None)),
    ],
)
def test_without_a_checkout_the_environment_says_it(text, expected, place, monkeypatch):
    monkeypatch.setenv(VARIABLE, text)
    assert commit() == expected
    note = note_unknown("ray_jobs/train.py")
    assert (note is None) == (expected.hash is not None)
    assert note is None or f"{SUBMITTED} ray_jobs/train.py ..." in note


def test_an_installed_package_does_not_take_the_repository_around_it(place, monkeypatch):
    git(place, "init", "-q")
    inside = place / "lib"
    inside.mkdir()
    monkeypatch.setattr(module, "REPOSITORY", inside)
    assert commit() == Commit(None, None)
    assert shutil.which("git")
