"""The counted memory against the allocator's own books, kept by torch's profiler on real steps."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from spcl import plan
from spcl.cli import guarded
from spcl.configuration.config import load
from spcl.engine.footprint import prediction, training
from spcl.engine.gradients import runner
from spcl.engine.networks import new_method, new_segmentor, random_batch
from spcl.engine.trainer import total
from spcl.errors import ConfigError
from spcl.losses.segmentation import upsample
from spcl.methods import METHODS
from spcl.methods.source_only import SourceOnly
from spcl.models.segmentor import build_segmentor
from spcl.randomness import Step

CLASSES = 19
SMALL = ("source.size=[64,128]", "target.size=[64,128]")
RESNET = ("model.name=deeplabv2_resnet50", "model.norm=frozen", "model.weights=none")
TOLERANCE = 0.15  # what the plan promises
GIB = 2**30


def allocated(run):
    """Most bytes that the CPU's allocator had handed out at once while `run` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def train(config, stage, batch):
    method = new_method(config, stage, new_segmentor(config, CLASSES, weights="none")).train()
    running = runner(method, batch, config.train)
    optimizers = method.all_optimizers()
    data = random_batch(config, stage, batch, CLASSES)
    for number in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss, _ = total(running.terms(data, Step(number)))
        running.backward(loss)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize(
    ("method", "stage", "settings"),
    [
        ("spcl", "adversarial", SMALL),
        ("spcl", "spcl", SMALL),
        ("sdca", "sdca", SMALL),
        ("asanet", "asanet", SMALL),
        ("spcl", "spcl", (*SMALL, "train.dtype=bfloat16")),
        ("source_only", "source_only", (*SMALL, *RESNET, "source_only.optimizer=adamw")),
        ("spcl", "spcl", (*SMALL, "model.norm=frozen", "train.micro_batch=1")),
    ],
)
def test_a_step_needs_what_is_counted(method, stage, settings):
    config = load("streets", method, None, settings)
    counted = training(config, stage, 2, CLASSES).peak
    assert counted == pytest.approx(allocated(lambda: train(config, stage, 2)), rel=TOLERANCE)


def test_a_prediction_needs_what_is_counted():
    config = load("streets", "spcl", None, RESNET)

    @torch.no_grad()
    def predict():
        logits = new_segmentor(config, CLASSES, weights="none").eval()(
            torch.randn(1, 3, 256, 512), "target"
        )
        upsample(logits.logits, (256, 512)).softmax(1).max(1)

    counted = prediction(config, (256, 512), CLASSES)
    assert counted == pytest.approx(allocated(predict), rel=TOLERANCE)


class WithReference(SourceOnly):
    """A toy: a second network that is fixed, as a teacher or a reference is."""

    def __init__(self, segmentor, config):
        super().__init__(segmentor, config)
        self.reference = segmentor.new("none").requires_grad_(False).eval()


def test_each_part_in_closed_form(monkeypatch):
    """Frozen weights count once; momentum is one copy, AdamW's moments are two."""
    n = sum(p.numel() * 4 for p in build_segmentor("tiny", CLASSES, norm="frozen").parameters())

    def parts(*settings, workers=1):
        config = load("streets", "source_only", None, [*SMALL, "model.norm=frozen", *settings])
        return training(config, "source_only", 2, CLASSES, workers=workers)

    usual, adamw = parts(), parts("source_only.optimizer=adamw")
    assert (usual.weights, usual.gradients, usual.optimizers) == (n, n, n)
    assert parts("source_only.momentum=0").optimizers == 0
    steps = adamw.optimizers - 2 * n  # a float32 per parameter
    assert 0 < steps < 1000
    assert usual.batch == 2 * 64 * 128 * (3 * 4 + 1) + 2 * 8
    assert usual.peak > n * 3 + usual.batch and usual.activations > 0
    assert parts(workers=2).gradients == n
    monkeypatch.setitem(METHODS, "source_only", WithReference)
    frozen = parts()
    assert (frozen.weights, frozen.gradients, frozen.optimizers) == (2 * n, n, n)


def test_the_largest_number_that_fits():
    tried = []

    def need(batch):
        tried.append(batch)
        return max(100 + 7 * batch, 40 + 9 * batch)

    for limit in (105, 107, 113, 114, 115, 500, 1234, 99_999):
        tried.clear()
        slow = sum(1 for b in range(1, 12_000) if need(b) <= limit)
        tried.clear()
        assert plan.largest(need, limit) == slow
        assert len(tried) < 15
        assert plan.largest(need, limit, 16) == min(slow, 16)


def test_the_largest_part_that_fits(monkeypatch):
    """The outputs of all images stay; a part's activations come on top."""
    monkeypatch.setattr(plan, "need", lambda c, _, __, images: images + 10 * c.train.micro_batch)
    frozen = ["model.norm=frozen", "train.batch=8"]
    config = load("streets", "source_only", None, frozen)
    for limit, size in ((17, 0), (18, 1), (37, 2), (38, 3), (10_000, 7)):
        assert plan.largest_part(config, "source_only", CLASSES, limit) == size
    assert plan.in_parts(config, 1).train.micro_batch == 1
    assert plan.in_parts(load("streets", "source_only", None, ["model.norm=domain"]), 1) is None


def test_sizes_of_gpus():
    assert plan.parse_sizes("24GB,1.5GiB") == {"24GB": 24 * GIB, "1.5GiB": 3 * GIB // 2}
    assert plan.parse_sizes("") == {}
    for wrong in ("24", "x", "0GB", "24GB;8GB"):
        with pytest.raises(ConfigError, match="--gpu must be sizes like 24GB"):
            plan.parse_sizes(wrong)


def test_the_command_says_what_fits(tmp_path, capsys):
    argv = ["--method", "source_only", "--data", str(tmp_path), "--gpu", "2GB,1.51GB", *SMALL]
    assert guarded(plan.main, [*argv, "train.batch=32"]) == 0
    text = capsys.readouterr().out
    head, row, scored = text.splitlines()[:3]
    assert head.split()[-2:] == ["activations", "peak"]
    assert row.split()[:2] == ["source_only", "32"] and scored.startswith("evaluation of")
    peak = float(row.split()[-1])
    config = load("streets", "source_only", None, SMALL)
    assert peak == pytest.approx(training(config, "source_only", 32, 19).peak / 2**20, abs=0.1)
    assert "2GB: fits; " in text and "1.51GB: does not fit: source_only; " in text
    most = int(text.split("train.batch=")[-1])
    sizes = [training(config, "source_only", b, 19).peak for b in (most, most + 1)]
    free = plan.parse_sizes("1.51GB")["1.51GB"] - plan.RESERVED
    assert sizes[0] <= free < sizes[1]
    assert not list(tmp_path.iterdir())
