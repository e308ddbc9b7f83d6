"""The keys of every recipe, as they are since "The hot arithmetic, once": results under them stay.

A key moves only where a version is raised on purpose; then its line in pinned_keys.json moves too.
"""

import json
from pathlib import Path

import pytest

from spcl.configuration.config import load
from spcl.configuration.layers import known
from spcl.engine.stages import plan

PINNED = json.loads(Path(__file__).with_name("pinned_keys.json").read_text())
DATA = {"source": "a" * 64, "target": "b" * 64, "evaluation": "c" * 64}
LETTERS = 16  # of each key


@pytest.mark.parametrize("recipe", PINNED)
def test_a_recipe_has_the_keys_it_always_had(recipe):
    benchmark, method, compat = recipe.split()
    config = load(benchmark, method, None, [] if compat == "ours" else [f"compat={compat}"])
    found = {stage.title: stage.key[:LETTERS] for stage in plan(config, DATA)}
    assert found == PINNED[recipe]


def test_every_recipe_is_pinned():
    recipes = {f"{b} {m} ours" for b in known("benchmarks") for m in known("methods")}
    recipes |= {f"{b} {m} official" for b in known("benchmarks") for m in known("compat")}
    assert recipes == PINNED.keys()
