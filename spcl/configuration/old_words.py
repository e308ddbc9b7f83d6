"""Settings that were spelled otherwise once: how they are read, and what keys still call them.

Files, command lines and the config.yaml of old runs may still say so; keys still do, so that what
old runs made stays valid.

A discriminator was called a critic (RENAMED): another name for the same values.

`source.order` and `target.order` were `class_balanced` and `shuffle`.  Either may come from another
layer of settings, so both are kept until all layers are one: a layer that names the order forgets
the words below it, a word above an order changes that order.
Imports no torch and no numpy, as `spcl.configuration.layers` and `spcl.configuration.table` do not.
"""

from collections.abc import Mapping
from typing import Any

from spcl.errors import ConfigError
from spcl.settings import merge

ORDER, BALANCED, SHUFFLE = "order", "class_balanced", "shuffle"
#: Section -> a setting's old name -> its name today.
RENAMED = {
    "adversarial": {
        "critic_learning_rate": "discriminator_learning_rate",
        "critic_width": "discriminator_width",
        "critic_temperature": "discriminator_temperature",
    },
    "asanet": {
        "critic_learning_rate": "discriminator_learning_rate",
        "critic_width": "discriminator_width",
    },
}
#: Section -> the words that it had.
WORDS = {"source": (BALANCED, SHUFFLE), "target": (SHUFFLE,)}
#: Order -> what the words were.  A later order has none, and its own name in keys.
MEANT: dict[str, dict[str, bool]] = {
    "uniform": {BALANCED: False, SHUFFLE: True},
    "in_order": {BALANCED: False, SHUFFLE: False},
    "class_balanced": {BALANCED: True, SHUFFLE: True},
}


def checked(layer: Mapping[str, Any]) -> dict[str, Any]:
    """One layer of settings, with old words only where it does not name the order itself.

    Raises ConfigError where a word is no truth value, or contradicts the order beside it, and where
    a setting has both its old name and today's.
    """
    layer = _renamed(layer)
    for role in WORDS:
        said = _said(layer, role)
        for word, value in said.items():
            if not isinstance(value, bool):
                raise ConfigError(f"{role}.{word} must be true or false, got {value!r}")
        if not said or ORDER not in _section(layer, role):
            continue
        order = _section(layer, role)[ORDER]
        for word, value in said.items():
            if isinstance(order, str) and MEANT.get(order, MEANT["uniform"])[word] != value:
                raise ConfigError(
                    f"{role}.order={order} and {role}.{word}={str(value).lower()} contradict each "
                    f"other; the order says all, so leave {role}.{word} out"
                )
        layer[role] = _without_words(layer, role)
    return layer


def overlay(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`spcl.settings.merge` of two layers that are `checked`."""
    base = dict(base)
    for role in WORDS:
        if ORDER in _section(other, role) and _said(base, role):
            base[role] = _without_words(base, role)
    return merge(base, other)


def without(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer as if it had no old words."""
    return {**layer, **{r: _without_words(layer, r) for r in WORDS if _said(layer, r)}}


def modern(settings: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """What all layers say together, in today's words.

    settings  the dataclass of all settings, for the order where none is named

    Raises ConfigError where the words contradict each other.
    """
    values = _renamed(values)
    made = without(values)
    for role in WORDS:
        said = _said(values, role)
        if said:
            usual = getattr(settings(), role).order
            made[role][ORDER] = _order(role, made[role].get(ORDER, usual), said)
    return made


def in_key(chosen: Mapping[str, Any], usual: str) -> dict[str, Any]:
    """The scientific settings of a stream as stage keys have always spelled them.

    usual  the order that is the section's default
    """
    order = chosen.get(ORDER)
    if order not in MEANT:
        return dict(chosen)
    words = {w: v for w, v in MEANT[order].items() if v != MEANT[usual][w]}
    return {key: value for key, value in chosen.items() if key != ORDER} | words


def renamed_in_key(section: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The scientific settings of a method as stage keys have always spelled them."""
    old = {now: word for word, now in RENAMED.get(section, {}).items()}
    return {old.get(name, name): value for name, value in chosen.items()}


def renamed(key: str) -> str:
    """The name that the same values have now: of a dotted setting, or of a search's parameter."""
    section, _, rest = key.partition(".")
    word, slash, kind = rest.partition("/")  # "a.b/relative" is a parameter
    now = RENAMED.get(section, {}).get(word)
    return f"{section}.{now}{slash}{kind}" if now else key


def first(key: str) -> str:
    """The name that `renamed` values had first."""
    section, _, rest = key.partition(".")
    name, slash, kind = rest.partition("/")
    old = {now: word for word, now in RENAMED.get(section, {}).items()}
    return f"{section}.{old[name]}{slash}{kind}" if name in old else key


def renamed_all(values: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted setting or parameter: value} under today's names."""
    return {renamed(key): value for key, value in values.items()}


def renamed_space(lines: Mapping[str, Any]) -> dict[str, Any]:
    """The lines of a search's space, which may name each other, under today's names."""
    found = renamed_all(lines)
    for key, line in found.items():
        if isinstance(line, Mapping):
            line = dict(line)
            if isinstance(line.get("relative_to"), str):
                line["relative_to"] = renamed(line["relative_to"])
            if isinstance(line.get("when"), Mapping):
                line["when"] = renamed_all(line["when"])
            found[key] = line
    return found


def today(key: str) -> str:
    """The dotted name that a setting has now."""
    key = renamed(key)
    role, _, word = key.partition(".")
    return f"{role}.{ORDER}" if word in WORDS.get(role, ()) else key


def _order(role: str, order: str, said: Mapping[str, bool]) -> str:
    """An order, changed by the words that are said above it."""
    before = MEANT.get(order, MEANT["uniform"])
    after = {**before, **said}
    if after == before:
        return order
    for name, words in MEANT.items():
        if words == after:
            return name
    raise ConfigError(
        f"{role}.shuffle=false reads images in the list's order, and class-balanced sampling in "
        f"another; set {role}.class_balanced=false too, or say {role}.order=in_order in their place"
    )


def _renamed(layer: Mapping[str, Any]) -> dict[str, Any]:
    layer = dict(layer)
    for name, words in RENAMED.items():
        section = _section(layer, name)
        for word, now in words.items():
            if word in section and now in section:
                raise ConfigError(
                    f"{name}.{word} is called {name}.{now} today; give one of them, not both"
                )
        if words.keys() & section.keys():
            layer[name] = {words.get(key, key): value for key, value in section.items()}
    return layer


def _section(values: Mapping[str, Any], role: str) -> Mapping[str, Any]:
    section = values.get(role)
    return section if isinstance(section, Mapping) else {}


def _said(values: Mapping[str, Any], role: str) -> dict[str, Any]:
    return {word: v for word, v in _section(values, role).items() if word in WORDS[role]}


def _without_words(values: Mapping[str, Any], role: str) -> dict[str, Any]:
    return {word: v for word, v in _section(values, role).items() if word not in WORDS[role]}
