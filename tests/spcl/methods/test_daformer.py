"""DAFormer's self-training: hand-checked weights, what counts, forwards, the authors' switches."""

import json

import pytest
import torch
from toys import CLASSES, Stripes, batch_of, changed, method, train

from spcl.configuration.config import load
from spcl.configuration.elastic import choices
from spcl.engine.footprint import training
from spcl.errors import ConfigError
from spcl.methods.taught import TaughtConfig
from spcl.methods.teacher import Lesson
from spcl.randomness import Step


def lesson(confidence) -> Lesson:
    confidence = torch.tensor(confidence)
    return Lesson(None, torch.zeros(confidence.shape, dtype=torch.uint8), confidence)


def test_the_weight_of_pseudo_labels_is_the_share_of_confident_pixels():
    made = method("daformer", confidence=0.968, ignored_rows=(0, 0))
    found = made.trust(lesson([[[0.99, 0.5, 0.97, 0.9]], [[0.99, 0.99, 0.99, 0.968]]]))
    assert found.tolist() == [[[0.5] * 4], [[1.0] * 4]]
    made = method("daformer", confidence=0.968, ignored_rows=(0, 0), trust="batch")
    found = made.trust(lesson([[[0.99, 0.5, 0.97, 0.9]], [[0.99, 0.99, 0.99, 0.968]]]))
    assert found.tolist() == [[[0.75] * 4]] * 2


def test_rows_at_the_top_and_bottom_have_no_weight_but_count_for_the_share():
    made = method("daformer", confidence=0.9, ignored_rows=(1, 2))
    found = made.trust(lesson([[[0.95], [0.0], [0.95], [0.95], [0.95]]]))
    assert found[0, :, 0].tolist() == pytest.approx([0, 0.8, 0.8, 0, 0])


def test_terms_are_those_of_a_slow_version():
    """Cross-entropy pixel by pixel, from the method's own mixed image and the teacher's labels."""
    made = method("daformer", norm="frozen").train()
    batch, step = Stripes()[0], Step(3, 1, "s")
    outputs = made.losses(batch, step)
    mixed, taught = outputs.seen["mixed"], outputs.seen["taught"]
    logits = torch.nn.functional.interpolate(
        mixed.output.logits, (32, 64), mode="bilinear", align_corners=True
    )
    chances = logits.detach().log_softmax(1)
    total = 0.0
    for b, y, x in torch.cartesian_prod(torch.arange(4), torch.arange(32), torch.arange(64)):
        total -= float(mixed.weights[b, y, x] * chances[b, int(mixed.label[b, y, x]), y, x])
    term = outputs.terms["mixed"]
    assert (
        float(term.sum.detach()) == pytest.approx(total, rel=1e-4)
        and int(term.count) == 4 * 32 * 64
    )
    pasted = mixed.weights == 1
    assert torch.equal(mixed.label[pasted], batch.source.label[pasted])
    assert torch.equal(mixed.label[~pasted], taught.label[~pasted])
    assert int(outputs.activity["pasted"].sum) == int(pasted.sum())


def test_what_is_pasted_and_what_is_not_shows_in_the_image():
    made = method("daformer", jitter_probability=0.0, blur_probability=0.0).train()
    batch = Stripes()[0]
    # Of pictures, which have values that can be shown: a strong view cuts the others off.
    for domain in ("source", "target"):
        batch = changed(batch, domain, image=batch[domain].image.clamp(-1, 1))
    mixed = made.losses(batch, Step(0)).seen["mixed"]
    pasted = (mixed.weights == 1)[:, None]
    want = torch.where(pasted, batch.source.image, batch.target.image)
    torch.testing.assert_close(mixed.images.image, want, rtol=1e-4, atol=1e-4)


def test_void_counts_in_the_authors_denominator_alone():
    """Two pixels, one of them void, a loss of 0.5: 0.5, and 0.25 in the authors' code."""
    logits = torch.zeros(1, CLASSES, 1, 2)
    label = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    weights = torch.full((1, 1, 2), 0.5 / torch.log(torch.tensor(float(CLASSES))))
    for denominator, want in (("labelled", 0.5), ("all", 0.25)):
        term = method("daformer", denominator=denominator).term(logits, label, weights)
        assert float(term.sum / term.count) == pytest.approx(want)


def test_one_forward_of_the_teacher_and_two_of_the_student_a_step():
    made = method("daformer").train()
    seen = []
    for name in ("segmentor", "teacher"):
        made.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.append((name, args[1]))
        )
    made(Stripes()[0], Step(0))
    assert sorted(seen) == [("segmentor", "mixed"), ("segmentor", "source"), ("teacher", "target")]


def test_the_teacher_follows_after_each_step(tmp_path):
    made = method("daformer", steps=1)
    before = {k: v.clone() for k, v in made.teacher.named_parameters()}
    train(made, tmp_path)
    for name, value in made.teacher.named_parameters():
        student = made.segmentor.get_parameter(name)
        torch.testing.assert_close(value, (before[name] + student) / 2)


def test_the_network_that_is_scored_is_a_setting():
    assert method("daformer").scored == "segmentor"
    assert method("daformer", scored="teacher").scored == "teacher"


OFFICIAL = {
    "trust": "batch",
    "mix_classes": "batch",
    "strong_draws": "batch",
    "denominator": "all",
    "teacher_statistics": "own",
}


def test_the_authors_teacher_has_statistics_of_its_own(tmp_path):
    made = method("daformer", norm="running", steps=3, **OFFICIAL)
    train(made, tmp_path)
    norms = [m for m in made.train().teacher.modules() if hasattr(m, "running_mean")]
    assert norms and all(m.training for m in norms) and not made.teacher.training
    assert not made.eval().teacher.backbone.layers[1].training
    start = method("daformer", norm="running").teacher.state_dict()
    for name, mine in made.teacher.named_buffers():
        if name.endswith("running_mean"):  # moved, and not towards the student's
            apart = mine - start[name], mine - made.segmentor.get_buffer(name)
            assert all(one.abs().max() > 1e-3 for one in apart)


def test_what_depends_on_workers_says_so_and_compat_sets_every_switch():
    assert TaughtConfig(trust="batch").by_rank == ("trust",)
    config = load("gta5", "daformer", None, ["compat=official"])
    section = config.of("daformer")
    assert {name: getattr(section, name) for name in OFFICIAL} == OFFICIAL
    found = choices({"daformer": section}, "global")
    assert found.keys() == {"daformer.trust", "daformer.mix_classes"}


def test_images_of_two_sizes_cannot_be_mixed():
    small = torch.zeros(1, 3, 16, 16), torch.zeros(1, 16, 16).byte()
    large = torch.zeros(1, 3, 32, 32), None
    with pytest.raises(ConfigError, match=r"set source.crop and target.crop"):
        method("daformer").losses(batch_of(source=small, target=large), Step(0))


def test_an_activity_that_is_never_there_is_a_warning_that_names_the_setting(tmp_path):
    folder = tmp_path / "a"
    lines = train(method("daformer", steps=3, confidence=1.0), folder)
    activities = [line["activity"] for line in lines if "activity" in line]
    assert [one["confident"] for one in activities] == [0.0] * 3
    assert 0.2 < activities[0]["pasted"] < 0.8
    assert "confident" not in lines[0]["losses"]
    written = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    (warning,) = (line["message"] for line in written if "message" in line)
    assert "confident was 0 throughout" in warning and "toy.confidence" in warning


def test_papers_sizes_and_schedule():
    config = load("gta5", "daformer")
    c = config.of("daformer")
    assert (config.source.size, config.target.size) == ((720, 1280), (512, 1024))
    assert config.source.shown == config.target.shown == (512, 512)
    assert (config.source.order, config.source.rare_class_pixels) == ("rare_class", 3000)
    assert (config.source.crop_shows, config.source.crop_most) == (1500, 0.75)
    assert (c.steps, c.horizon, c.warm_up_steps, config.batch_of("daformer")) == (
        40_000,
        40_000,
        1500,
        2,
    )
    assert (c.optimizer, c.learning_rate, c.head_multiplier, c.weight_decay) == (
        "adamw",
        6e-5,
        10.0,
        0.01,
    )
    assert (c.teacher_momentum, c.confidence, c.ignored_rows) == (0.999, 0.968, (15, 120))


def test_the_memory_that_is_foretold_has_the_teacher():
    config = load("streets", "daformer", None, ["daformer.scored=teacher"])
    found = training(config, "daformer", 2, CLASSES)
    assert found.weights == 2 * found.gradients > 0
