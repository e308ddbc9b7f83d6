from dataclasses import dataclass, field

import pytest

from spcl.errors import ConfigError
from spcl.settings import (
    RECALLED,
    build,
    canonical,
    digest,
    flatten,
    merge,
    recalled,
    scientific,
    setting,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    name: str = setting("a", "test", choices=("a", "b"))
    rate: float = setting(0.1, "test", low=0.0, below=1.0)
    size: tuple[int, int] = setting((2, 3), "test", low=1)
    workers: int = setting(1, "test", operational=True)
    batch: int | None = setting(None, "test", low=1)
    on: bool = setting(True, "test")
    median: str = setting("true", "test", choices=("true", "lower"))


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    steps: int = setting(5, "test", high=10)


def test_values_become_their_declared_type():
    made = build(Outer, {"inner": {"rate": "1e-3", "size": [4, 5], "batch": 2}, "steps": "7"})
    assert made.inner.rate == 1e-3 and made.inner.size == (4, 5)
    assert made.steps == 7 and made.inner.batch == 2


def test_a_choice_that_yaml_reads_as_a_truth_value_is_the_word():
    assert build(Outer, {"inner": {"median": True}}).inner.median == "true"
    with pytest.raises(ConfigError, match="inner.median must be one of true, lower, got False"):
        build(Outer, {"inner": {"median": False}})


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'inner.rates' is unknown; did you mean 'inner.rate'"):
        build(Outer, {"inner": {"rates": 1}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 1.0}, "inner.rate must be below 1.0, got 1.0"),
        ({"rate": -1}, "at least 0.0, got -1"),
        ({"rate": "fast"}, "inner.rate must be a number, got 'fast'"),
        ({"rate": float("nan")}, "inner.rate must be a number"),
        ({"rate": True}, "inner.rate must be a number"),
        ({"size": [1]}, "inner.size"),
        ({"size": [0, 4]}, "at least 1, got 0"),
        ({"name": "c"}, "'c' is unknown"),
        ({"on": "yes"}, "inner.on must be true or false"),
        ({"workers": 1.5}, "inner.workers must be a whole number"),
    ],
)
def test_unusable_values_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build(Outer, {"inner": values})


def test_a_string_for_a_section_is_its_name():
    assert build(Outer, {"inner": "b"}).inner.name == "b"


def test_only_scientific_changes_are_kept():
    assert scientific(build(Outer, {"inner": {"workers": 4}})) == {}
    assert scientific(build(Outer, {"inner": {"rate": 0.2}, "steps": 5})) == {
        "inner": {"rate": 0.2}
    }


def test_digests_ignore_order_and_nothing_else():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
    with pytest.raises(ValueError):
        canonical({"a": float("nan")})


def test_merge_and_flatten():
    merged = merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4})
    assert flatten(merged) == {"a.b": 3, "a.c": 2, "d": 4}


@dataclass(frozen=True, kw_only=True)
class Remembered:
    tau: float = setting(0.2, "no source could be read", provenance=RECALLED)
    steps: int = setting(5, "paper")


def test_a_recalled_default_counts_while_it_is_in_force():
    assert recalled(Remembered()) == ["tau"] == recalled(Remembered(steps=6))
    assert recalled(Remembered(tau=0.1)) == []
