import dataclasses

from spcl.configuration.config import Config, load
from spcl.launch import default_name
from spcl.settings import setting


def test_a_default_name_tells_settings_apart_but_not_seeds_and_machines():
    one = default_name(load("streets", "spcl"))
    assert default_name(load("streets", "spcl", None, ["seed=1", "train.threads=7"])) == one
    assert default_name(load("streets", "spcl", None, ["spcl.temperature=0.2"])) != one
    # What a file says and what is the default anyway is the same run.
    momentum = f"spcl.momentum={Config().of('spcl').momentum}"
    assert default_name(load("streets", "spcl", None, [momentum])) == one


def test_a_new_setting_moves_no_default_name(monkeypatch):
    from spcl import launch

    newer = dataclasses.make_dataclass(
        "Newer", [("later", int, setting(3, "ours"))], bases=(Config,), frozen=True, kw_only=True
    )
    config = load("streets", "spcl")
    before = default_name(config)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    monkeypatch.setattr(launch, "Config", newer)
    assert default_name(newer(**values)) == before
    assert default_name(newer(**values | {"later": 4})) != before
