"""`class_balanced` and `shuffle` are read as the order they meant, in whatever layer they are."""

import dataclasses
import itertools
import json

import pytest
import yaml

from spcl.boards.aggregate import settings_of
from spcl.configuration import old_words, table
from spcl.configuration.config import Config, differences, from_dict, load, result_settings
from spcl.configuration.layers import layered
from spcl.data.loader import Stream
from spcl.data.sampling import LABEL_FREE, ORDERS, InOrder, Rarity, Uniform
from spcl.engine.run_config import find_run, run_config
from spcl.engine.stages import plan
from spcl.errors import ConfigError
from spcl.settings import dump_yaml, flatten

DATA = {"source": "a" * 64, "target": "b" * 64, "evaluation": "c" * 64}
SAID = (None, True, False)


def given(balanced, shuffle, target) -> dict:
    """A layer in the old words; None is not said."""
    source = {"class_balanced": balanced, "shuffle": shuffle}
    said = {"source": source, "target": {"shuffle": target}}
    return {
        role: {word: value for word, value in words.items() if value is not None}
        for role, words in said.items()
    }


def typed(layer: dict) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in flatten(layer).items()]


def meant(*layers: dict) -> tuple[str, str] | None:
    """What two booleans per domain said before there were orders; None where they were refused."""
    balanced = shuffle = target = True
    for layer in layers:
        balanced = layer.get("source", {}).get("class_balanced", balanced)
        shuffle = layer.get("source", {}).get("shuffle", shuffle)
        target = layer.get("target", {}).get("shuffle", target)
    if balanced and not shuffle:
        return None
    of_source = "class_balanced" if balanced else "uniform" if shuffle else "in_order"
    return of_source, "uniform" if target else "in_order"


def orders(settings: type, file, overrides, method="spcl") -> tuple[str, str] | None:
    try:
        values = layered(settings, "gta5", method, file, overrides)
    except ConfigError as error:
        assert "set source.class_balanced=false too, or say source.order=in_order" in str(error)
        return None
    assert not {"class_balanced", "shuffle"} & {k.split(".")[-1] for k in flatten(values)}
    usual = {"source": {"order": "class_balanced"}, "target": {"order": "uniform"}}
    return tuple((usual[role] | values.get(role, {}))["order"] for role in usual)


@pytest.mark.parametrize("settings", [Config, table.settings()], ids=["classes", "table"])
def test_old_words_of_a_file_and_a_command_line_mean_what_they_did(settings, tmp_path):
    path, found = tmp_path / "mine.yaml", set()
    for file in itertools.product(SAID, SAID, (None, False)):
        path.write_text(json.dumps(given(*file) | {"seed": 3}))
        for line in itertools.product(SAID, SAID, (None, True)):
            answer = orders(settings, path, typed(given(*line)))
            assert answer == meant(given(*file), given(*line)), (file, line)
            found.add(answer)
    assert len(found) == 3 * 2 + 1  # all of them


@pytest.mark.parametrize("line", list(itertools.product(SAID, SAID, (None, True))), ids=str)
def test_old_words_beside_compat_change_its_order(line):
    """compat=official of ASANet names the order itself."""
    official = given(False, False, False)
    answer = orders(Config, None, ["compat=official", *typed(given(*line))], "asanet")
    assert answer == meant(official, given(*line))


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ({"order": "in_order"}, ["source.shuffle=true"], "uniform"),
        ({"order": "uniform"}, ["source.class_balanced=true"], "class_balanced"),
        ({"order": "class_balanced"}, ["source.class_balanced=false"], "uniform"),
        ({"class_balanced": False, "shuffle": False}, ["source.order=uniform"], "uniform"),
        ({"shuffle": False}, ["source.order=class_balanced"], "class_balanced"),
        ({"order": "in_order", "shuffle": False}, [], "in_order"),  # says it twice
        ({"seed": 3}, ["source.order=uniform", "source.class_balanced=false"], "uniform"),
    ],
)
def test_the_later_layer_wins_however_it_is_spelled(file, line, expected, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        json.dumps({"source": {k: v for k, v in file.items() if k != "seed"}, "seed": 3})
    )
    assert load("gta5", "spcl", tmp_path / "mine.yaml", line).source.order == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["source.order=uniform", "source.shuffle=false"], "contradict each other; .* leave"),
        (["source.shuffle=false", "source.order=uniform"], "contradict each other; .* leave"),
        (["target.order=in_order", "target.shuffle=true"], "target.order=in_order and target.shuf"),
        (["source.shuffle=3"], "source.shuffle must be true or false, got 3"),
        (["target.class_balanced=true"], "'target.class_balanced' is unknown"),
        (["source.order=unifrom"], "did you mean 'uniform'"),
        (["source.order=[1]", "source.shuffle=true"], "source.order must be one of uniform"),
        (["source.ordr=uniform"], "did you mean 'source.order'"),
        (["target.order=class_balanced"], "known: uniform, in_order"),
        (["source=3"], "source is a section; expected key: value pairs, got 3"),
        (["source.shuffle=false"], "set source.class_balanced=false too"),
    ],
)
def test_mistakes_are_named_and_alike_in_a_file(line, message, tmp_path):
    """By the table, too; and what stands in one file may be a word of another layer."""
    nested = {}
    for text in line:
        key, _, value = text.partition("=")
        role, _, word = key.partition(".")
        part = {word: yaml.safe_load(value)} if word else yaml.safe_load(value)
        nested[role] = nested.get(role, {}) | part if word else part
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(nested))
    answers = []
    for file, overrides in ((None, line), (tmp_path / "mine.yaml", [])):
        for check in (load, table.check):
            with pytest.raises(ConfigError, match=message) as error:
                check("gta5", "spcl", file, overrides)
            answers.append(str(error.value).removeprefix(f"{file}: "))
    assert len(set(answers)) == 1


# Keys.


@pytest.mark.parametrize(
    ("settings", "source", "target"),
    [
        ([], None, None),
        (["source.order=uniform"], {"class_balanced": False}, None),
        (["source.order=in_order"], {"class_balanced": False, "shuffle": False}, None),
        (["target.order=in_order"], None, {"shuffle": False}),
        (["source.class_balanced=false"], {"class_balanced": False}, None),
        (["target.shuffle=false", "source.blur=[1,2]"], {"blur": [1.0, 2.0]}, {"shuffle": False}),
    ],
)
def test_keys_hold_the_words_they_always_held(settings, source, target):
    usual = plan(load("gta5", "adversarial"), DATA)[0].settings
    found = plan(load("gta5", "adversarial", None, settings), DATA)[0].settings
    for role, words in (("source", source), ("target", target)):
        assert found.get(role, {}) == usual.get(role, {}) | (words or {})


# What older code has written.


def old(config: Config) -> dict:
    """config.yaml as it was before there were orders."""
    values = config.as_dict()
    for role, words in old_words.WORDS.items():
        order = values[role].pop("order")
        values[role] |= {word: old_words.MEANT[order][word] for word in words}
    return values


@pytest.mark.parametrize(
    ("settings", "source", "target"),
    [([], (True, True), True), (["compat=official"], (False, False), False)],
)
def test_a_run_of_older_code_goes_on(settings, source, target, tmp_path):
    config = load("gta5", "asanet", None, settings)
    values = old(config)
    assert (values["source"]["class_balanced"], values["source"]["shuffle"]) == source
    assert values["target"]["shuffle"] == target and "order" not in values["source"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a/config.yaml").write_text(dump_yaml(values))
    assert run_config(tmp_path / "a") == config == from_dict(values)
    assert differences(from_dict(values), config) == []
    assert result_settings(from_dict(values)) == result_settings(config)
    find_run(config, tmp_path, "a")
    other = load("gta5", "asanet", None, [*settings, "source.order=uniform"])
    with pytest.raises(ConfigError, match="exists with other .*source.order: .* -> uniform"):
        find_run(other, tmp_path, "a")


def test_a_board_reads_older_folders_in_todays_words(tmp_path):
    config = load("gta5", "asanet", None, ["compat=official"])
    (tmp_path / "config.yaml").write_text(dump_yaml(old(config)))
    before = settings_of(str(tmp_path))
    (tmp_path / "config.yaml").write_text(dump_yaml(config.as_dict()))
    assert before == settings_of(str(tmp_path)) and before["source.order"] == "in_order"


# A new order is one entry.


class Shown:
    """A split of three samples whose labels nobody may look at."""

    @property
    def class_pixels(self):
        raise AssertionError("labels were looked at")

    def __len__(self):
        return 3


def test_an_order_without_labels_looks_at_none():
    for name in LABEL_FREE:
        order = ORDERS[name](Shown(), 0, "x", Rarity())
        assert sorted(order(position) for position in range(3)) == [0, 1, 2]
    with pytest.raises(AssertionError, match="labels were looked at"):
        ORDERS["class_balanced"](Shown(), 0, "x", Rarity())
    assert isinstance(ORDERS["uniform"](Shown(), 0, "x", Rarity()), Uniform)
    assert isinstance(ORDERS["in_order"](Shown(), 0, "x", Rarity()), InOrder)


def test_what_old_words_meant_are_orders():
    assert old_words.MEANT.keys() <= ORDERS.keys()
    for role in old_words.WORDS:
        assert getattr(Config(), role).order in old_words.MEANT  # what keys are told apart from


def test_a_new_order_is_one_entry(monkeypatch):
    monkeypatch.setitem(
        ORDERS, "backwards", lambda samples, seed, stream, rarity: lambda p: -p % len(samples)
    )
    stream = Stream("x/source", Shown(), None, None, 0, "backwards")
    assert [stream.index(p) for p in range(4)] == [0, 2, 1, 0]
    config = load("gta5", "source_only", None, ["source.blur=[1,2]"])
    source = dataclasses.replace(config.source, order="backwards")
    found = plan(dataclasses.replace(config, source=source), DATA)[0].settings["source"]
    assert found == plan(config, DATA)[0].settings["source"] | {"order": "backwards"}


def test_a_word_above_a_new_order_changes_it_only_where_it_means_another():
    def order(**said):
        return old_words.modern(Config, {"source": {"order": "backwards", **said}})["source"]

    assert order() == order(class_balanced=False) == order(shuffle=True) == {"order": "backwards"}
    assert order(class_balanced=True) == {"order": "class_balanced"}
    assert order(shuffle=False) == {"order": "in_order"}


# A critic is called a discriminator.

OLD = {
    "adversarial": {"critic_learning_rate": 3e-4, "critic_width": 8, "critic_temperature": "none"},
    "asanet": {"critic_learning_rate": 3e-4, "critic_width": 8},
}
NOW = {
    section: {word.replace("critic", "discriminator"): value for word, value in words.items()}
    for section, words in OLD.items()
}


@pytest.mark.parametrize("method", OLD)
def test_a_critics_settings_are_a_discriminators(method, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({method: OLD[method]}))
    now = load("gta5", method, None, typed({method: NOW[method]}))
    assert now == load("gta5", method, None, typed({method: OLD[method]}))
    assert now == load("gta5", method, path, [])
    assert now.of(method).discriminator_width == 8
    stored = now.as_dict()
    for word, today in old_words.RENAMED[method].items():
        stored[method][word] = stored[method].pop(today)
    assert from_dict(stored) == now
    (tmp_path / "config.yaml").write_text(dump_yaml(stored))
    assert run_config(tmp_path) == now
    assert settings_of(str(tmp_path))[f"{method}.discriminator_width"] == 8


@pytest.mark.parametrize("method", OLD)
def test_keys_hold_a_critics_words(method):
    config = load("gta5", method, None, typed({method: OLD[method]}))
    stage = next(s for s in plan(config, DATA) if s.method == method)
    expected = {k: v for k, v in OLD[method].items() if v != "none"}
    assert expected.items() <= stage.settings["method"].items()
    assert not any("discriminator" in name for name in stage.settings["method"])


def test_a_later_layer_wins_over_a_critics_word(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("asanet: {critic_width: 8}")
    found = load("gta5", "asanet", path, ["asanet.discriminator_width=4"])
    assert found.of("asanet").discriminator_width == 4
    path.write_text("asanet: {discriminator_width: 8}")
    found = load("gta5", "asanet", path, ["asanet.critic_width=4"])
    assert found.of("asanet").discriminator_width == 4
    path.write_text("asanet: {discriminator_width: 8, critic_width: 8}")
    with pytest.raises(ConfigError, match="asanet.critic_width is called asanet.discriminator_wid"):
        load("gta5", "asanet", path, [])


def test_a_searchs_lines_and_parameters_are_read_under_todays_names():
    lines = {
        "asanet.critic_learning_rate": {"low": 1e-5, "high": 1e-3},
        "asanet.weight": {"relative_to": "asanet.critic_learning_rate", "low": 1.0, "high": 9.0},
        "asanet.damping": {"choices": [True], "when": {"asanet.critic_width": 64}},
    }
    found = old_words.renamed_space(lines)
    assert list(found) == ["asanet.discriminator_learning_rate", "asanet.weight", "asanet.damping"]
    assert found["asanet.weight"]["relative_to"] == "asanet.discriminator_learning_rate"
    assert found["asanet.damping"]["when"] == {"asanet.discriminator_width": 64}
    assert old_words.renamed_space(found) == found
    assert lines["asanet.weight"]["relative_to"] == "asanet.critic_learning_rate"
    relative = "asanet.critic_learning_rate/relative"
    assert old_words.renamed(relative) == "asanet.discriminator_learning_rate/relative"
    assert old_words.first(old_words.renamed(relative)) == relative
