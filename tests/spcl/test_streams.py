"""Toys of what a stream may hold: a style partner, the frame before and its flow, a pair of crops.

Each is a method or an extra in its table, run by real streams; nothing else knows of them.
"""

import dataclasses
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from conftest import MINI
from processes import run_ranks
from toys import train

from spcl.configuration.config import Config, load
from spcl.data import shards
from spcl.data.loader import Steps
from spcl.data.manifest import write_manifest
from spcl.data.pairs import PairCrops
from spcl.data.transforms import decode, normalize
from spcl.engine import networks
from spcl.engine.footprint import training
from spcl.engine.inputs import open_data
from spcl.engine.recipe import Recipe
from spcl.engine.trainer import Context
from spcl.errors import ConfigError, DataError
from spcl.extras import EXTRAS
from spcl.extras.base import Extra, ExtraConfig
from spcl.losses.segmentation import cross_entropy
from spcl.methods import METHODS
from spcl.methods.base import Method, Outputs, Seen, Term
from spcl.randomness import Step
from spcl.settings import setting
from spcl.store.run_folder import RunFolder
from spcl.store.telemetry import Telemetry


class Styled(Method):
    """Source images in the mean colours of a partner from a stream of its own."""

    reads = {
        "source": frozenset({"image", "label"}),
        "target": frozenset({"image"}),
        "target/style": frozenset({"image"}),
    }

    def losses(self, batch, step):
        source, style = batch.source, batch["target/style"].image
        shift = style.mean((2, 3), keepdim=True) - source.image.mean((2, 3), keepdim=True)
        styled = dataclasses.replace(source, image=source.image + shift)
        output = self.segment(styled, "source", step)
        total, count = cross_entropy(output.logits, source.label)
        return Outputs({"styled": Term(total, count)}, {"source": Seen(styled, output)})


class Moving(Method):
    """What the network makes of a frame agrees with what it makes of the frame before, moved."""

    reads = {
        "source": frozenset({"image", "label"}),
        "target": frozenset({"image", "previous", "flow"}),
    }

    def losses(self, batch, step):
        source, target = batch.source, batch.target
        output = self.segment(source, "source", step)
        total, count = cross_entropy(output.logits, source.label)
        now = self.segment(target, "target", step).logits.softmax(1)
        frame = dataclasses.replace(target, image=target.previous)
        before = self.segment(frame, "target", step, draws="before").logits.softmax(1)
        speed = target.flow.square().sum(1).mean((1, 2))
        apart = (now - before).square().mean((1, 2, 3)) / (1 + speed)
        images = torch.tensor(float(len(apart)))
        terms = {"source": Term(total, count), "motion": Term(apart.sum(), images)}
        return Outputs(terms, {"source": Seen(source, output)})


@dataclass(frozen=True, kw_only=True)
class PatchConfig(ExtraConfig):
    crop: tuple[int, int] = setting((16, 24), "a toy", low=8)
    overlap: tuple[float, float] = setting((0.2, 1.0), "a toy", low=0.0, high=1.0)


class Patch(Extra):
    """The mean prediction where two crops show the same is the same: no label, on any method."""

    Config = PatchConfig

    @classmethod
    def reads_of(cls, config):
        return {"target/pair": PairCrops(config.crop, config.overlap, multiple=2)}

    def forward(self, method, batch, seen, step):
        pair = batch.pair("target/pair")
        means = []
        for number, crop in enumerate((pair.first, pair.second)):
            output = method.segment(crop, "target", step, draws=f"pair/{number}")
            inside = box_masks(pair.boxes[:, number] // 2, output.logits.shape[-2:])
            share = output.logits.softmax(1) * inside
            means.append(share.sum((2, 3)) / inside.sum((2, 3)))
        apart = (means[0] - means[1]).square().sum(1)
        return {"apart": Term(apart.sum(), torch.tensor(float(len(apart))))}


def box_masks(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, 1, h, w) float, 1 inside of (B, 4) boxes."""
    top, left, height, width = (side[:, None, None, None] for side in boxes.T)
    row, column = torch.arange(size[0])[:, None], torch.arange(size[1])
    rows, columns = (row >= top) & (row < top + height), (column >= left) & (column < left + width)
    return (rows & columns).float()


@dataclass(frozen=True)
class FrameAbove:
    """In memory: the frame before shows everything `pixels` further down."""

    shards: shards.ShardSet
    pixels: int = 3

    def __call__(self, index: int) -> torch.Tensor:
        return decode(self.shards.image(index)).roll(self.pixels, 1)


@dataclass(frozen=True)
class FlowDown:
    pixels: int = 3

    def __call__(self, index: int) -> torch.Tensor:
        return torch.tensor([0.0, self.pixels]).view(2, 1, 1).expand(2, 32, 64)


TOYS = {"styled": Styled, "moving": Moving}
STAGES = {
    "styled": ["stages=[styled]", "styled.steps=4"],
    "moving": ["stages=[moving]", "moving.steps=4"],
    "patch": ["source_only.extras=[patch]", "source_only.steps=4"],
}


def register(patch: pytest.MonkeyPatch) -> None:
    """Enter the toys in their tables, and give every split frames before and flow."""
    for name, method in TOYS.items():
        patch.setitem(METHODS, name, method)
    patch.setitem(EXTRAS, "patch", Patch)
    patch.setattr(shards.ShardSet, "has_previous", True)
    patch.setattr("spcl.engine.recipe.StoredFrames", FrameAbove)
    for place in ("recipe", "inputs"):
        patch.setattr(f"spcl.engine.{place}.stored_flow", lambda split: FlowDown())


@pytest.fixture
def toys(monkeypatch):
    register(monkeypatch)


def configured(name: str, *more: str) -> Config:
    return load("streets", "source_only", None, [*MINI, *STAGES[name], *more])


def steps_of(config: Config, data: Path, folder: Path) -> Steps:
    """The streams of a recipe's first stage, as the recipe makes them; motion is in memory."""
    context = Context(telemetry=Telemetry(None))
    recipe = Recipe(config, data, RunFolder(folder), context)
    return recipe._steps(recipe.stages[0])


def tensors(batch) -> dict[str, list[torch.Tensor]]:
    """What each stream holds, in the order of the fields."""
    return {stream: list(content.tensors()) for stream, content in batch.streams.items()}


def flat(batch) -> list[torch.Tensor]:
    return [part for parts in tensors(batch).values() for part in parts]


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


CONTENT = {  # how many tensors each stream holds besides the source's image, position and label
    "styled": {"target": 2, "target/style": 2},
    "moving": {"target": 4},
    "patch": {"target/pair": 7},
}

TERMS = {
    "styled": {"styled"},
    "moving": {"source", "motion"},
    "patch": {"segmentation", "patch/apart"},
}


@pytest.mark.parametrize("name", STAGES)
def test_streams_are_the_same_for_any_ranks_and_loader_workers(name, toys, mini_data, tmp_path):
    steps = steps_of(configured(name), mini_data, tmp_path)
    counts = {stream: len(parts) for stream, parts in tensors(steps[0]).items()}
    assert counts == {"source": 3} | CONTENT[name]
    helped = list(steps.batches(0, 3, workers=2))
    assert all(same(steps[number], batch) for number, batch in enumerate(helped))
    ranks = [Steps(steps.streams, batch=steps.batch, rank=r, world_size=2)[2] for r in (0, 1)]
    for whole, *parts in zip(flat(steps[2]), *map(flat, ranks), strict=True):
        assert torch.equal(whole, torch.stack(parts, 1).flatten(0, 1))


@pytest.mark.parametrize("name", STAGES)
def test_a_batch_carries_all_of_it(name, toys, mini_data, tmp_path):
    batch = steps_of(configured(name), mini_data, tmp_path)[1]
    moved = batch.to(torch.device("meta"), channels_last=True)
    assert [part.shape for part in flat(moved)] == [part.shape for part in flat(batch)]
    assert {part.device.type for part in flat(moved)} == {"meta"}
    assert all(
        p.is_contiguous(memory_format=torch.channels_last) for p in flat(moved) if p.dim() == 4
    )


@pytest.mark.parametrize("name", STAGES)
def test_random_numbers_stand_in_for_all_of_it(name, toys, mini_data, tmp_path):
    config = configured(name)
    batch = steps_of(config, mini_data, tmp_path)[0]
    random = networks.random_batch(config, config.stages[0], len(batch.source.position), 19)
    assert tensors(random).keys() == tensors(batch).keys()
    for one, other in zip(flat(random), flat(batch), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    method = networks.new_method(config, config.stages[0], networks.new_segmentor(config, 19))
    terms = method.train()(random, Step(0))
    assert terms.keys() == TERMS[name] and all(term.sum.isfinite() for term in terms.values())
    held = sum({t.data_ptr(): t.nbytes for t in flat(batch)}.values())  # positions once
    assert training(config, config.stages[0], len(batch.source.position), 19).batch == held


def test_a_further_stream_changes_no_other_and_has_draws_of_its_own(toys, mini_data, tmp_path):
    plain, more = (
        steps_of(configured("patch", *extras), mini_data, tmp_path / str(number))
        for number, extras in enumerate((["source_only.extras=[]"], []))
    )
    one, other = tensors(plain[1]), tensors(more[1])
    assert other.keys() - one.keys() == {"target/pair"}
    assert all(torch.equal(a, b) for a, b in zip(one["source"], other["source"], strict=True))
    styled = steps_of(configured("styled"), mini_data, tmp_path / "styled")
    ids = styled.sample_ids(0)
    assert ids["target"] != ids["target/style"]
    assert {name.split("/")[1] for name in ids["target/style"]} == {"real"}


def test_an_extra_says_by_its_settings_what_it_reads(toys, mini_data, tmp_path):
    config = configured("patch", "patch.crop=[8,12]")
    pair = steps_of(config, mini_data, tmp_path)[0].pair("target/pair")
    assert pair.first.image.shape[2:] == pair.second.image.shape[2:] == (8, 12)
    assert config.domains_of("source_only") == ("source", "target")
    with pytest.raises(ConfigError, match="must fit into its images, but are 64x64"):
        open_data(configured("patch", "patch.crop=[64,64]"), mini_data)


def test_a_stream_is_read_in_one_way(toys, monkeypatch):
    monkeypatch.setattr(METHODS["source_only"], "reads", {"target/pair": PairCrops((8, 8))})
    with pytest.raises(ConfigError, match="target/pair as PairCrops.*another name"):
        configured("patch").reads_of("source_only")


def test_a_batch_says_what_a_stream_holds(toys, mini_data, tmp_path):
    batch = steps_of(configured("patch"), mini_data, tmp_path)[0]
    with pytest.raises(TypeError, match="'target/pair' holds Pair"):
        batch["target/pair"]
    with pytest.raises(TypeError, match="'source' holds Images"):
        batch.pair("source")
    with pytest.raises(KeyError, match="declares, source, target/pair; it asked for 'target'"):
        _ = batch.target


# Data that hold no motion, or some.


def test_data_without_motion_are_refused_before_training(monkeypatch, mini_data, tmp_path):
    from spcl.train import main

    monkeypatch.setattr(METHODS["source_only"], "reads", Moving.reads)
    settings = [*MINI, "target.dataset=streets/real"]
    arguments = ["--benchmark", "streets", "--method", "source_only", *settings]
    arguments += ["--storage", str(tmp_path / "runs")]
    wanted = "target of stage source_only needs the frame before .* streets/real/train holds none"
    for data in (mini_data, tmp_path / "none"):  # the second would be rendered on first use
        with pytest.raises(DataError, match=wanted):
            main([*arguments, "--data", str(data), "--dry-run"])
    with pytest.raises(DataError, match=wanted):
        main([*arguments, "--data", str(mini_data)])
    assert not list((tmp_path / "runs").iterdir())
    monkeypatch.setattr(shards.ShardSet, "has_previous", True)
    with pytest.raises(DataError, match="needs the flow to the frame before, but none is stored"):
        main([*arguments, "--data", str(mini_data), "--dry-run"])


def add_frames_before(split: shards.ShardSet) -> None:
    """Write a split of one shard again: before each frame, the next of the file."""
    path = split.folder / "shard-00000.arrow"
    with pa.ipc.open_file(str(path)) as reader:
        rows = reader.read_all().to_pylist()
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        before = other["image"]
        row |= {"prev_sample_id": "x", "prev_image": before, "prev_image_crc32": zlib.crc32(before)}
    written = shards.write_shard(path, split.metadata, rows)
    write_manifest(split.folder, split.metadata, {}, [written])


def test_frames_before_come_from_the_shards(monkeypatch, mini_data, tmp_path):
    monkeypatch.setitem(METHODS, "moving", Moving)
    reads = Moving.reads | {"target": frozenset({"image", "previous"})}
    monkeypatch.setattr(Moving, "reads", reads)
    data = Path(shutil.copytree(mini_data, tmp_path / "data"))
    folder = data / "streets/real/train"
    add_frames_before(shards.ShardSet(folder))
    config = configured("moving", "target.flip=0", "target.jitter=[0,0,0,0]")
    steps = steps_of(config, data, tmp_path / "run")
    split, target = shards.ShardSet(folder), steps[0].target
    for number, position in enumerate(target.position.tolist()):
        index = split.sample_ids.index(steps.streams["target"].sample_id(position))
        following = normalize(decode(split.image((index + 1) % len(split))))
        assert torch.equal(target.previous[number], following)
    assert target.flow is None and not torch.equal(target.previous, target.image)


# Training: one rank and two, stopped and not.


class Doubled(Steps):
    """In float64, in which one rank and two differ by rounding alone."""

    def __getitem__(self, step):
        def double(part: torch.Tensor) -> torch.Tensor:
            return part.double() if part.is_floating_point() else part

        batch = super().__getitem__(step)
        return dataclasses.replace(
            batch, streams={k: v.each(double) for k, v in batch.streams.items()}
        )


def trained(rank: int, data: str, folder: str, stop: int | None = None) -> dict:
    """Toy -> its state after four steps; `stop`: as many, the rest by a new method."""
    states = {}
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        for name in STAGES:
            run = Path(folder) / name
            for steps in (stop, 4) if stop else (4,):
                states[name] = _train(name, steps, Path(data), run)
    return states


def _train(name: str, steps: int, data: Path, run: Path) -> dict:
    config = configured(name)
    stage = config.stages[0]
    short = load("streets", "source_only", None, [*MINI, *STAGES[name], f"{stage}.steps={steps}"])
    torch.manual_seed(0)
    method = networks.new_method(short, stage, networks.new_segmentor(config, 19)).double()
    read = steps_of(config, data, run)
    doubled = Doubled(read.streams, batch=read.batch, rank=read.rank, world_size=read.world_size)
    train(method, run, name=name, data=doubled)
    return method.state_dict()


@pytest.fixture(scope="module")
def straight(mini_data, tmp_path_factory):
    return trained(0, str(mini_data), str(tmp_path_factory.mktemp("straight")))


def test_a_run_that_stopped_ends_in_the_same_bits(straight, mini_data, tmp_path):
    again = trained(0, str(mini_data), str(tmp_path), stop=2)
    for name, state in straight.items():
        assert all(torch.equal(value, again[name][key]) for key, value in state.items()), name


@pytest.mark.slow
def test_two_ranks_train_as_one(straight, mini_data, tmp_path):
    for states in run_ranks(trained, 2, str(mini_data), str(tmp_path)):
        for name, state in straight.items():
            for key, value in state.items():
                torch.testing.assert_close(states[name][key], value, rtol=0, atol=1e-9)
