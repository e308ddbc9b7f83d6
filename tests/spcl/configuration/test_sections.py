"""Sections of methods and extras: entering a class in its table is all that a new one needs."""

from dataclasses import dataclass

import pytest

from spcl.configuration import table
from spcl.configuration.config import Config, from_dict, load
from spcl.engine.stages import plan
from spcl.errors import ConfigError
from spcl.extras import EXTRAS
from spcl.extras.base import Extra, ExtraConfig
from spcl.methods import METHODS
from spcl.methods.base import Method
from spcl.methods.spcl import SPCL
from spcl.methods.stage import StageConfig
from spcl.settings import flatten, setting
from tune.searching.rungs import shared_stages
from tune.searching.space import build_space

DATA = {"source": "s" * 64, "target": "t" * 64, "evaluation": "e" * 64}
STAGES = "stages=[source_only,toy]"


@dataclass(frozen=True, kw_only=True)
class ToyConfig(StageConfig):
    strength: float = setting(0.5, "a toy", low=0.0)


class Toy(Method):
    Config = ToyConfig
    sections = ("pseudo_label",)


@dataclass(frozen=True, kw_only=True)
class BonusConfig(ExtraConfig):
    weight: float = setting(0.1, "a toy", low=0.0)


class Bonus(Extra):
    Config = BonusConfig


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(METHODS, "toy", Toy)
    monkeypatch.setitem(EXTRAS, "bonus", Bonus)


def recipe(*overrides):
    return load("streets", "source_only", None, [STAGES, *overrides])


def train_settings(config):
    return plan(config, DATA)[1].settings


def test_a_row_of_the_table_makes_a_section(toys, monkeypatch):
    config = recipe("toy.strength=2", "toy.extras=[bonus]", "bonus.weight=0.3")
    assert config.section(ToyConfig).strength == 2.0 and config.of("toy").steps == 40_000
    assert config.section(BonusConfig).weight == 0.3
    assert from_dict(config.as_dict()) == config
    assert [name for name in config.as_dict() if name in ("bonus", "toy")] == ["toy", "bonus"]
    assert "toy.strength" in table.rows(Config) and "bonus.weight" in table.rows(Config)
    with pytest.raises(ConfigError, match="did you mean 'toy.strength'"):
        recipe("toy.strenght=1")
    with pytest.raises(ConfigError, match="toy.strength must be at least 0"):
        recipe("toy.strength=-1")


def test_a_stage_reads_its_own_section_its_extras_and_what_its_method_declares(toys):
    config = recipe("toy.extras=[bonus]")
    assert config.sections_of("toy") == ("toy", "bonus", "pseudo_label")
    assert config.sections_of("source_only") == ("source_only",)
    assert config.unread_sections() & {"toy", "bonus", "pseudo_label", "spcl"} == {"spcl"}
    assert recipe().unread_sections() & {"toy", "bonus"} == {"bonus"}
    assert "pseudo_label" in load("streets", "source_only").unread_sections()


def test_each_section_that_a_stage_reads_is_in_its_settings_and_no_other(toys):
    usual = train_settings(recipe("toy.extras=[bonus]"))
    for key in ("toy.strength=2", "bonus.weight=0.3", "pseudo_label.cap=0.8"):
        assert train_settings(recipe("toy.extras=[bonus]", key)) != usual, key
    assert train_settings(recipe("toy.extras=[bonus]", "spcl.temperature=3")) == usual


@pytest.mark.parametrize("key", ["toy.strength", "bonus.weight", "pseudo_label.cap"])
def test_a_search_knows_which_stage_a_section_touches(key, toys):
    lines = {key: {"low": 0.1, "high": 0.9}}
    config = recipe("toy.extras=[bonus]")
    assert build_space(lines, config).keys == [key]
    assert shared_stages(config, [key]) == ("source_only",)
    with pytest.raises(ConfigError, match="unknown"):
        build_space(lines, load("streets", "source_only"))


def test_a_section_is_found_by_its_class_where_one_has_it(monkeypatch):
    config = load("streets", "spcl", None, ["spcl.temperature=3"])
    assert config.section(SPCL.Config) is config.of("spcl")
    assert config.section(SPCL.Config).temperature == 3.0
    with pytest.raises(LookupError, match="found none"):
        config.section(ToyConfig)
    monkeypatch.setitem(METHODS, "again", SPCL)
    with pytest.raises(LookupError, match="found spcl, again"):
        Config().section(SPCL.Config)


def test_a_name_serves_once(monkeypatch):
    monkeypatch.setitem(METHODS, "train", Toy)
    with pytest.raises(AssertionError, match="train: the name of a setting already"):
        table.rows(Config)
    monkeypatch.delitem(METHODS, "train")
    monkeypatch.setitem(EXTRAS, "spcl", Bonus)
    with pytest.raises(AssertionError, match="spcl: a method and an extra"):
        Config()


def test_equal_settings_have_equal_hashes():
    one, other = (load("streets", "spcl", None, ["spcl.temperature=3"]) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != load("streets", "spcl") and "sections" not in flatten(one.as_dict())
