"""The table of settings says what the classes say: the same keys, values and errors."""

import random

import pytest
import yaml

from spcl.configuration import table
from spcl.configuration.config import Config, load
from spcl.configuration.layers import parse_overrides
from spcl.errors import ConfigError
from spcl.settings import as_dict, build, flatten

WRITE = "the table is old; write it with: python -m spcl.configuration.table"
VALUES = (
    "-1",
    "0",
    "1",
    "7",
    "1.5",
    "1e9",
    "nan",
    "word",
    "true",
    "null",
    "[1,2]",
    "[8,8,8,8]",
    "{}",
)
SEED = 12


def test_the_table_is_what_the_classes_say():
    assert table.TABLE.read_text(encoding="utf-8") == table.text(), WRITE


def test_defaults_of_the_table_are_those_of_the_classes():
    assert as_dict(table.settings()()) == as_dict(Config())


def answer(settings: type, override: str) -> str | dict:
    """The settings that differ from their default, or the error."""
    try:
        given = parse_overrides([override])
        values = flatten(as_dict(build(settings, given)))
    except ConfigError as error:
        return str(error)
    usual = flatten(as_dict(Config()))
    return {key: value for key, value in values.items() if value != usual[key]}


def misspelt(rng: random.Random, word: str) -> str:
    """A letter left out, doubled, or two of them exchanged."""
    at = rng.randrange(len(word) - 1)
    return rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[: at + 1] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        )
    )


def test_table_and_classes_answer_every_value_alike():
    keys = list(table.read()["settings"])
    rng, answers = random.Random(SEED), []
    for key in keys:
        for value in (*VALUES, *table.read()["settings"][key].get("choices", ())):
            answers.append((f"{key}={value}", answer(table.settings(), f"{key}={value}")))
            assert answers[-1][1] == answer(Config, answers[-1][0]), answers[-1][0]
        typo = f"{misspelt(rng, key)}=1"
        answers.append((typo, answer(table.settings(), typo)))
        assert answers[-1][1] == answer(Config, typo), typo
    refused = [text for _, text in answers if isinstance(text, str)]
    assert len(answers) >= len(keys) * (len(VALUES) + 1) and len(keys) > 150
    assert 0.3 < len(refused) / len(answers) < 0.9  # neither is answered by chance


FILES = {
    "unknown key": ({"spcl": {"temprature": 1}}, "did you mean 'spcl.temperature'"),
    "out of range": ({"train": {"batch": 0}}, "train.batch must be at least 1, got 0"),
    "section": ({"train": 3}, "train is a section; expected key: value pairs, got 3"),
    "benchmark": ({"benchmark": "gta"}, "benchmark 'gta' is unknown; did you mean 'gta5'?"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_a_file_is_answered_as_the_classes_do(name, tmp_path):
    values, message = FILES[name]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    told = []
    for check in (table.check, load):
        with pytest.raises(ConfigError) as error:
            check(None, None, tmp_path / "mine.yaml", [])
        told.append(str(error.value))
    assert told[0] == told[1] and message in told[0]


@pytest.mark.parametrize(
    "asked",
    [
        ("gta", None, []),
        (None, "spc", []),
        ("streets", "sdca", ["sdca.confidnce=0.5"]),
        (None, "source_only", ["compat=official"]),
        (None, None, ["stages=[spl]"]),
        (None, None, ["spcl.steps"]),
        (None, None, ["spcl.steps={"]),
        ("synthia", "asanet", ["model=tinny"]),
    ],
)
def test_a_mistake_on_the_command_line_is_answered_as_the_classes_do(asked):
    benchmark, method, settings = asked
    told = []
    for check in (table.check, load):
        with pytest.raises(ConfigError) as error:
            check(benchmark, method, None, settings)
        told.append(str(error.value))
    assert told[0] == told[1]


def test_what_the_classes_take_the_table_takes():
    for benchmark, method in (("gta5", "spcl"), ("streets", "asanet"), ("synscapes", "sdca")):
        load(benchmark, method, None, ["compat=official", "seed=3"])
        table.check(benchmark, method, None, ["compat=official", "seed=3"])
