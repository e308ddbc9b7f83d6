"""Workers that come and go: a stage is exact with any number of them, or refuses by name."""

from pathlib import Path

import pytest
import torch
from conftest import MINI
from processes import run_ranks
from toys import method, train, train_all_on_rank, train_on_rank

from spcl.configuration import elastic
from spcl.configuration.config import load
from spcl.engine.recipe import Recipe
from spcl.engine.run_config import open_run
from spcl.engine.trainer import Context
from spcl.errors import ConfigError
from spcl.methods import METHODS
from spcl.store.run_folder import RunFolder
from spcl.train import main

#: In float64, so that only a wrong state or position would show, and no rounding.
EXACT = {"model": "tiny", "double": True, "learning_rate": 2.5e-4}


def of_workers(number: int, *settings: str):
    return load("streets", "spcl", None, [*MINI, *settings, f"train.workers={number}"])


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """Runs that two ranks had at work last: "exact" after steps of one alone, and "local"."""
    folder = tmp_path_factory.mktemp("begun")
    train_on_rank(0, f"{folder}/exact", "spcl", EXACT | {"steps": 5})
    cases = {"exact": ("spcl", EXACT | {"steps": 10})}
    cases["local"] = ("spcl", {"sync": False, "steps": 2})
    run_ranks(train_all_on_rank, 2, str(folder), cases)
    return folder


@pytest.mark.timeout(200)
def test_one_then_two_then_one_worker_end_as_one_that_never_stopped(begun, tmp_path):
    straight = train_on_rank(0, str(tmp_path), "spcl", EXACT | {"steps": 15})["state"]
    last = train_on_rank(0, f"{begun}/exact", "spcl", EXACT | {"steps": 15})
    assert len(last["losses"]) == 15  # each step was made once
    for name, value in straight.items():
        torch.testing.assert_close(last["state"][name], value, rtol=0, atol=1e-9, msg=name)


@pytest.mark.timeout(200)
def test_a_checkpoint_of_other_ranks_is_refused_by_name(begun):
    with pytest.raises(ConfigError, match=r"'toy' .* since toy.sync=false: .*workers=2, got 1; "):
        train(method("spcl", sync=False, steps=4), begun / "local")


@pytest.mark.parametrize("switch", ["spcl.sync=false", "train.reduction=per_rank"])
def test_a_stage_of_another_number_is_refused_before_anything_is_trained(
    switch, mini_data, tmp_path
):
    run = RunFolder(tmp_path / "r")
    recipe = Recipe(of_workers(2, switch), mini_data, run, Context())
    stage = "spcl" if "spcl" in switch else "adversarial"
    with pytest.raises(ConfigError) as told:
        recipe()
    setting = switch.partition("=")[0]
    usual = {"spcl.sync": "true", "train.reduction": "global"}[setting]
    assert str(told.value) == (
        f"the result of stage {stage!r} depends on the number of workers, since {switch}: it is "
        "one of train.workers=2, got 1; run it with 2, or begin another with train.workers=1, or "
        f"take {setting}={usual}, which any number may train"
    )
    assert not (tmp_path / "artefacts").exists()


def test_a_run_of_another_number_says_why_it_may_not_go_on(tmp_path):
    open_run(of_workers(1, "spcl.sync=false"), tmp_path, "a")
    with pytest.raises(ConfigError, match="stage 'spcl' depends .* since spcl.sync=false") as told:
        open_run(of_workers(2, "spcl.sync=false"), tmp_path, "a")
    assert "train.workers: 1 -> 2" in str(told.value) and "another --name" in str(told.value)
    open_run(of_workers(1), tmp_path, "b")
    open_run(of_workers(2), tmp_path, "b")


def test_a_file_of_another_number_is_refused_where_it_matters(mini_data, tmp_path, capsys):
    from spcl import cli

    line = ["--data", str(mini_data), "--storage", str(tmp_path / "runs"), "--dry-run"]
    for switch, code in (("sync: false", 2), ("sync: true", 0)):
        path = tmp_path / "two.yaml"
        path.write_text(f"train: {{workers: 2}}\nspcl: {{{switch}}}\n")
        assert cli.guarded(main, [*line, "--config", str(path), *MINI]) == code
        assert ("since spcl.sync=false" in capsys.readouterr().err) == bool(code)
        assert cli.guarded(main, [*line, "--config", str(path), *MINI, "train.workers=1"]) == 0


@pytest.mark.parametrize("name", METHODS)
def test_at_its_defaults_a_method_is_the_same_with_any_number(name):
    assert elastic.choices({name: METHODS[name].Config()}, "global") == {}
