"""A stage of fewer steps is the beginning of a longer one, to the bit."""

import numpy as np
import pytest
import torch
from conftest import MINI

from spcl.configuration.config import load
from spcl.data.shards import ShardSet
from spcl.engine.inputs import open_data, split_source
from spcl.engine.recipe import Recipe
from spcl.engine.trainer import Context
from spcl.errors import DataError
from spcl.store.run_folder import RunFolder
from spcl.store.telemetry import Telemetry


def advance(data, storage, name: str, *settings: str) -> Recipe:
    """Run a recipe without labels of the target; its checkpoints stay."""
    short = ["stages=[adversarial,spcl]", "evaluation.dataset=none", *settings]
    config = load("streets", "spcl", None, [*MINI, *short])
    run = RunFolder(storage / "jobs" / name)
    context = Context(telemetry=Telemetry(run.folder))
    recipe = Recipe(config, data, run, context, storage=storage, continued=True)
    recipe()
    return recipe


def adapted(recipe: Recipe) -> dict[str, torch.Tensor]:
    stage = next(stage for stage in recipe.stages if stage.method == "spcl")
    return torch.load(recipe.store.open(stage) / "checkpoint.pt", weights_only=True)["method"]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def straight(mini_data, tmp_path_factory):
    return adapted(advance(mini_data, tmp_path_factory.mktemp("a"), "0", "spcl.steps=6"))


def test_continued_stage_equals_one_that_never_stopped(mini_data, tmp_path, straight):
    storage = tmp_path / "runs"
    for steps in (2, 3, 6):
        recipe = advance(mini_data, storage, "0", f"spcl.steps={steps}")
    assert same(adapted(recipe), straight)
    text = (storage / "jobs/0/metrics.jsonl").read_text()
    assert "spcl: resumed at step 2" in text and "spcl: resumed at step 3" in text
    assert len(list(storage.glob("artefacts/adversarial-*"))) == 1


def test_shorter_stage_never_takes_the_state_of_a_longer_one(mini_data, tmp_path):
    short = adapted(advance(mini_data, tmp_path / "one", "0", "spcl.steps=2"))
    advance(mini_data, tmp_path / "two", "0", "spcl.steps=6")
    assert same(adapted(advance(mini_data, tmp_path / "two", "0", "spcl.steps=2")), short)


def test_other_settings_never_continue_a_stage(mini_data, tmp_path, straight):
    advance(mini_data, tmp_path, "0", "spcl.steps=2", "spcl.temperature=5.0")
    assert same(adapted(advance(mini_data, tmp_path, "0", "spcl.steps=6")), straight)


def test_held_out_source_images_are_not_trained_on(mini_data):
    config = load("streets", "spcl", None, [*MINI, "source.holdout=5"])
    whole = ShardSet(mini_data / "streets/sim/train")
    rest, held = split_source(config, whole)
    assert (len(rest), len(held)) == (19, 5)
    assert {*rest.sample_ids, *held.sample_ids} == {*whole.sample_ids}
    assert len({whole.fingerprint, rest.fingerprint, held.fingerprint}) == 3
    assert open_data(config, mini_data)["source"].sample_ids == rest.sample_ids
    index = whole.sample_ids.index(held.sample_ids[3])
    assert held.image(3) == whole.image(index) and held.label(3) == whole.label(index)
    assert np.array_equal(held.class_pixels[3], whole.class_pixels[index])


def test_holding_out_everything_is_refused(mini_data):
    config = load("streets", "spcl", None, [*MINI, "source.holdout=24"])
    with pytest.raises(DataError, match="must leave images to train on, but streets/sim/train has"):
        open_data(config, mini_data)
