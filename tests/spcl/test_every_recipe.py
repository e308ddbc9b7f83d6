"""Every shipped benchmark with every method on every network: what `--dry-run` does for each.

Memory is counted apart: it's of a stage and a network, and takes seconds for the largest.
"""

from collections.abc import Iterator

import pytest

from spcl import dry_run
from spcl.configuration.config import load
from spcl.configuration.layers import known
from spcl.engine import footprint
from spcl.launch import Request
from spcl.methods import METHODS
from spcl.models.segmentor import MODELS

SMALL = ("source.size=[64,128]", "target.size=[64,128]", "train.batch=1")
#: Networks that are another one with more or wider blocks: they are counted in one stage.
LARGER = {"deeplabv2_resnet101", "dinov2_vitb14", "mit_b5"}


@pytest.mark.parametrize("benchmark", known("benchmarks"))
def test_every_method_on_every_network_is_planned(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "memory", lambda *_: 2**20)
    for method in known("methods"):
        for model, spec in MODELS.items():
            config = load(
                benchmark, method, None, [f"model={model}", *without_reference(model, method)]
            )
            request = Request(config, tmp_path / "data", tmp_path / "runs", "x")
            text = dry_run.describe(request, 1)
            assert all(f"\n{stage} " in text for stage in config.stages)
            assert (f"{model}: {spec.licence}" in text) == bool(spec.licence)


#: Recipes with a feature distance -> what they are without.
OTHER_EXTRAS = {
    "daformer": "daformer.extras=[]",
    "t2s_da": "t2s_da.extras=[]",
    "pipa": "daformer.extras=[pipa]",
}


def without_reference(model: str, method: str) -> list[str]:
    """What the error of a network from scratch says: it has no features to stay close to."""
    if MODELS[model].pretrained or method not in OTHER_EXTRAS:
        return []
    return [OTHER_EXTRAS[method]]


def steps() -> Iterator[tuple[str, str]]:
    """Stages and networks, all pairs but of the larger ones."""
    for model in MODELS:
        yield from ((stage, model) for stage in METHODS if model not in LARGER)
    yield from (("source_only", model) for model in sorted(LARGER))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "model"), list(steps()))
def test_every_stage_takes_a_step_on_every_network(stage, model, monkeypatch):
    """On tensors without data, as a dry run counts its memory."""
    monkeypatch.setattr(footprint, "COUNTED_STEPS", 1)
    config = load("gta5", "source_only", None, [f"model={model}", *SMALL])
    found = footprint.training(config, stage, 1, 19)
    assert 0 < found.gradients <= found.weights < found.peak
