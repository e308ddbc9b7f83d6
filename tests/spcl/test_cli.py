"""Flags of every command: a typo gets the nearest, an abbreviation is none, Ctrl-C is told once."""

import importlib
import random
import re
import signal

import pytest

from spcl import cli
from spcl.errors import UserError

COMMANDS = {
    "spcl.train": [],
    "spcl.plan": [],
    "spcl.runs": ["ls"],
    "spcl.data.inspect": ["x"],
    "spcl.data.streets.__main__": [],
    "ray_jobs.train": [],
    "ray_jobs.ingest": [],
    "ray_jobs.evaluate": ["x"],
    "tune.search": [],
    "tune.sweep": ["x"],
    "tune.leaderboard": [],
    "tune.searching.audit": ["x"],
}
SEED = 13


def run(command: str, argv: list[str], capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    code = cli.guarded(importlib.import_module(command).main, argv)
    return code, *capsys.readouterr()


def flags(command: str, capsys: pytest.CaptureFixture) -> list[str]:
    """What --help shows."""
    argv = [*COMMANDS[command], "--help"] if command == "spcl.runs" else ["--help"]
    with pytest.raises(SystemExit):
        run(command, argv, capsys)
    shown = capsys.readouterr().out.partition("options:")[2]
    return sorted(set(re.findall(r"^ +(?:-h, )?(--[a-z-]+)", shown, re.MULTILINE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_with_two_letters_exchanged_is_named(command, capsys):
    rng, known = random.Random(SEED), flags(command, capsys)
    assert "--help" in known
    for flag in known:
        swaps = [at for at in range(2, len(flag) - 1) if flag[at] != flag[at + 1]]
        at = rng.choice(swaps)
        typo = flag[:at] + flag[at + 1] + flag[at] + flag[at + 2 :]
        for given in ([typo], [f"{typo}=1"]):
            code, out, err = run(command, [*COMMANDS[command], *given], capsys)
            assert (code, out) == (2, "")
            assert err == f"error: option {typo} is unknown; did you mean {flag}?\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_abbreviated_flag_is_not_guessed(command, capsys):
    """`--seed 3` of train.py would be --seeds, and mean another thing after a new flag."""
    for flag in flags(command, capsys):
        if len(flag) > len("--xyz"):
            code, _, err = run(command, [*COMMANDS[command], flag[:-1], "1"], capsys)
            assert code == 2 and f"did you mean {flag}?" in err


def test_a_flag_like_no_other_points_to_the_help():
    with pytest.raises(UserError, match="^option --zzz is unknown; see --help$"):
        cli.Parser().parse_args(["--zzz"])


def test_what_is_left_over_is_told():
    with pytest.raises(UserError, match="^unrecognized arguments: a b; see --help$"):
        cli.Parser().parse_args(["a", "b"])


def test_settings_may_stand_anywhere():
    parser = cli.Parser()
    cli.add_run_arguments(parser)
    found = parser.parse_intermixed_args(["a=1", "--seeds", "0..1", "b=2", "--data", "x"])
    assert found.settings == ["a=1", "b=2"] and found.seeds == "0..1" and found.data == "x"


@pytest.fixture
def own_handlers():
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    yield
    for sign, handler in before.items():
        signal.signal(sign, handler)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_the_end_of_a_job_are_one_line(sign, own_handlers, capsys):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.treat_sigterm_as_ctrl_c()

    def main(argv):
        signal.raise_signal(sign)

    assert cli.guarded(main) == 130
    assert capsys.readouterr().err == f"{cli.INTERRUPTED}\n"


def test_an_ignored_ctrl_c_stays_ignored(own_handlers):
    """As the shell starts what runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert cli.guarded(lambda argv: signal.raise_signal(signal.SIGINT) or 0) == 0


def test_ranks_but_the_first_say_nothing(own_handlers, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")

    def main(argv):
        raise KeyboardInterrupt

    assert cli.guarded(main) == 130
    assert capsys.readouterr().err == ""
