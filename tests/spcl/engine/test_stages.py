import pytest

from spcl.configuration.config import load
from spcl.engine.stages import plan

DATA = {"source": "s" * 64, "target": "t" * 64, "evaluation": "e" * 64}


def stages(benchmark="gta5", method="spcl", *overrides):
    return plan(load(benchmark, method, None, overrides), DATA)


def keys(*arguments):
    return {stage.title: stage.key for stage in stages(*arguments)}


def test_the_recipe_in_order_evaluations_last():
    assert [stage.title for stage in stages()] == [
        "adversarial",
        "prototypes of adversarial",
        "predictions of adversarial",
        "spcl",
        "predictions of spcl",
        "self_training",
        "evaluation of adversarial",
        "evaluation of spcl",
        "evaluation of self_training",
    ]


@pytest.mark.parametrize(
    ("absent", "known"),
    [
        ("source", []),
        ("target", ["source_only"]),
        ("evaluation", ["source_only", "statistics of source_only"]),
    ],
)
def test_a_stage_has_a_key_once_all_that_it_is_made_of_is_there(absent, known):
    """What no stage reads itself counts too, if an input does."""
    asked = ("model.norm=domain", "model.target_statistics=estimated")
    config = load("gta5", "source_only", None, asked)
    made = plan(config, DATA | {absent: None})
    assert len(made) == 3 and [stage.title for stage in made if stage.has_key] == known
    assert all(stage.has_key for stage in plan(config, DATA))


def test_no_training_stage_sees_the_evaluation_split():
    for stage in stages():
        assert ("evaluation" in stage.data) == (stage.kind == "evaluation")


@pytest.mark.parametrize(
    "override",
    [
        "train.workers=2",
        "train.threads=7",
        "train.log_every=9",
        "train.device=cpu",
        "train.collective_timeout=9",
    ],
)
def test_operational_settings_change_no_key(override):
    assert keys("gta5", "spcl", override) == keys()


@pytest.mark.parametrize(
    ("override", "unchanged"),
    [
        ("seed=1", []),
        ("source.flip=0.0", []),
        ("spcl.temperature=1.0", ["adversarial", "predictions of adversarial"]),
        ("pseudo_label.cap=0.8", ["adversarial", "predictions of adversarial"]),
        ("self_training.steps=5", ["adversarial", "spcl", "predictions of spcl"]),
        ("spcl.init=per_image", ["adversarial", "predictions of adversarial"]),
        ("evaluation.size=[256,512]", ["adversarial", "spcl", "self_training"]),
    ],
)
def test_a_setting_changes_the_stages_that_read_it_and_what_follows(override, unchanged):
    before, after = keys(), keys("gta5", "spcl", override)
    same = {title for title in before if before[title] == after[title]}
    assert set(unchanged) <= same
    assert "evaluation of self_training" not in same


@pytest.mark.parametrize(
    "override", ["evaluation.flip=true", "evaluation.scales=[1.0,1.5]", "evaluation.window=[64,64]"]
)
def test_augmentation_at_test_time_changes_evaluations_alone(override):
    before, after = keys(), keys("gta5", "spcl", override)
    changed = {title for title in before if before[title] != after[title]}
    assert changed == {title for title in before if title.startswith("evaluation of")}


def test_without_an_evaluation_split_the_other_stages_are_the_same():
    without = keys("gta5", "spcl", "evaluation.dataset=none")
    assert without == {t: k for t, k in keys().items() if not t.startswith("evaluation of")}


def test_another_producer_changes_what_is_made_of_it():
    """Toy d: the key of an artefact holds the key of the checkpoint it was made with."""
    before, after = keys(), keys("gta5", "spcl", "adversarial.weight=0.01")
    assert all(before[title] != after[title] for title in before)


def test_a_value_as_text_has_the_key_of_the_number():
    assert keys("gta5", "spcl", "spcl.contrast_weight='5e-1'") == keys(
        "gta5", "spcl", "spcl.contrast_weight=0.5"
    )


def test_source_only_and_its_adabn_row_share_the_training():
    plain = keys("streets", "source_only")
    adabn = keys("streets", "source_only", "model.target_statistics=estimated")
    assert plain["source_only"] == adabn["source_only"]
    assert plain["evaluation of source_only"] != adabn["evaluation of source_only"]


def test_a_file_of_weights_is_what_it_holds(tmp_path):
    for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(data)
    a, b, c = (keys("gta5", "source_only", f"model.weights={tmp_path / n}") for n in "abc")
    assert a == b != c


# Keys name results on users' disks: they change only when results would.  A change here means that
# every stored artefact of that stage is made again.
PINNED = {
    ("gta5", "spcl"): "d431829a99053862",
    ("gta5", "source_only"): "45ef839435014e42",
    ("gta5", "adversarial"): "a614e1c4a34b0e3b",
    ("gta5", "spcl", "spcl.contrast_weight=0", "model=deeplabv2_resnet50"): "82574f1cca6ca060",
    (
        "gta5",
        "spcl",
        "stages=[adversarial,spcl]",
        "spcl.absent=decay",
        "seed=4",
    ): "3107186c20491457",
}


@pytest.mark.parametrize("arguments", PINNED, ids=lambda a: " ".join(a))
def test_keys_are_pinned(arguments):
    assert stages(*arguments)[-1].key[:16] == PINNED[arguments]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ((), "be1a35c6ecd4d7a1"),
        (("spcl.init=per_image", "spcl.source_mask=agree"), "9304c927aa698aae"),
    ],
)
def test_the_key_of_spcls_look_at_the_source_is_pinned(overrides, key):
    """Results on users' disks are found by it."""
    assert keys("gta5", "spcl", *overrides)["prototypes of adversarial"][:16] == key


def test_seeds_share_the_settings_key_and_nothing_else_does():
    def settings(*overrides):
        return {s.title: s.settings_key for s in stages("gta5", "spcl", *overrides)}

    assert settings("seed=7") == settings("train.workers=2") == settings()
    changed, same = settings("spcl.contrast_weight=0.5"), settings()
    assert changed["evaluation of adversarial"] == same["evaluation of adversarial"]
    assert changed["evaluation of spcl"] != same["evaluation of spcl"]
    assert changed["evaluation of self_training"] != same["evaluation of self_training"]
