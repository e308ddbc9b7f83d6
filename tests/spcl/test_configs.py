"""The shipped configurations, against numbers copied by hand from the papers."""

import itertools
import re

import pytest

from spcl.configuration.config import load
from spcl.configuration.layers import CONFIGS, known
from spcl.data.labels import CLASS_NAMES
from spcl.models.segmentor import MODELS

PAPER = ("gta5", "synscapes", "synthia")  # the benchmarks of arXiv:2111.12358

# mIoU in % on Cityscapes val; for SYNTHIA over 16 and 13 classes.  Tables 1 to 4 of that paper.
PUBLISHED = {
    "spcl": {
        "resnet101": {"gta5": (52.1,), "synscapes": (57.1,), "synthia": (47.2, 54.4)},
        "vgg16": {"gta5": (44.8,), "synthia": (40.5, 48.3)},
    },
    "sdca": {  # the authors' README
        "resnet101": {"gta5": (52.9,), "synthia": (50.2, 56.8)},
        "vgg16": {"gta5": (47.3,), "synthia": (43.5, 50.3)},
    },
    "asanet": {  # the authors' README
        "resnet101": {"gta5": (45.1,), "synthia": (41.7, 49.3)},
        "resnet101, source-only": {"gta5": (38.1,), "synthia": (33.9, 39.1)},
        "vgg16": {"gta5": (35.6,), "synthia": (33.3, 38.7)},
        "vgg16, source-only": {"gta5": (27.1,), "synthia": (25.1, 28.7)},
    },
    "asanet_asc": {  # the authors' README
        "resnet101": {"gta5": (43.8,), "synthia": (38.7, 45.3)},
        "resnet101, source-only": {"gta5": (38.1,), "synthia": (33.9, 39.1)},
        "vgg16": {"gta5": (32.4,), "synthia": (28.5, 33.3)},
        "vgg16, source-only": {"gta5": (27.1,), "synthia": (25.1, 28.7)},
    },
    "adversarial": {
        "resnet101, warm-up": {"gta5": (41.4,), "synthia": (39.5, 45.9)},
        "resnet101, AdaptSegNet": {
            "gta5": (42.4,),
            "synscapes": (52.7,),
            "synthia": (39.5, 45.9),
        },
        "vgg16, AdaptSegNet": {"gta5": (35.0,), "synthia": (37.6,)},
    },
    "source_only": {
        "resnet101": {"gta5": (36.8,), "synscapes": (45.3,), "synthia": (35.3, 41.0)},
    },
}


def header(kind, name):
    """The comment lines above the first setting."""
    lines = (CONFIGS / kind / f"{name}.yaml").read_text().splitlines()
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


@pytest.mark.parametrize("method", known("methods"))
@pytest.mark.parametrize("benchmark", known("benchmarks"))
def test_every_method_runs_on_every_benchmark(benchmark, method):
    config = load(benchmark, method)
    assert (config.benchmark, config.method) == (benchmark, method)
    assert config.stages


@pytest.mark.parametrize("benchmark", PAPER)
def test_both_backbones_of_the_paper_are_a_word_away(benchmark):
    assert load(benchmark, "spcl").model.name == "deeplabv2_resnet101"
    vgg = load(benchmark, "spcl", None, ["model=deeplabv2_vgg16"])
    assert vgg.model.name == "deeplabv2_vgg16"
    assert vgg.model.absent == load(benchmark, "spcl").model.absent


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=deeplabv2_vgg16", "model.input=imagenet", "model.weights=none"],
        ["model.input=imagenet", "model.weights=none", "model=deeplabv2_vgg16"],
    ],
)
def test_a_models_name_and_its_settings_do_not_replace_each_other(overrides):
    model = load("gta5", "spcl", None, overrides).model
    assert (model.name, model.input, model.weights) == ("deeplabv2_vgg16", "imagenet", "none")


@pytest.mark.parametrize("benchmark", PAPER)
def test_data_and_sizes_are_the_papers(benchmark):
    config = load(benchmark, "spcl")
    assert (config.source.dataset, config.source.split) == (benchmark, "train")
    assert (config.target.dataset, config.target.split) == ("cityscapes", "train")
    assert (config.evaluation.dataset, config.evaluation.split) == ("cityscapes", "val")
    assert config.source.size == (720, 1280)
    assert config.target.size == config.evaluation.size == (512, 1024)
    assert config.evaluation.scales == (1.0,) and not config.evaluation.flip


@pytest.mark.parametrize("benchmark", PAPER)
def test_the_schedule_is_the_papers(benchmark):
    config = load(benchmark, "spcl")
    assert config.stages == ("adversarial", "spcl", "self_training")
    found = {
        name: (
            config.of(name).steps,
            config.of(name).horizon,
            config.batch_of(name),
            config.of(name).learning_rate,
            config.of(name).head_multiplier,
        )
        for name in config.stages
    }
    assert found == {
        "adversarial": (40_000, 62_500, 4, 0.00025, 10.0),
        "spcl": (40_000, 62_500, 4, 0.00025, 10.0),
        "self_training": (20_000, 31_250, 8, 0.0005, 10.0),
    }
    assert config.of("adversarial").weight == 0.001
    assert config.of("adversarial").discriminator_learning_rate == 0.0001
    assert config.of("spcl").prototype_momentum == 0.1
    assert config.of("spcl").contrast_weight == 1.0
    assert config.of("spcl").temperature == 100.0
    assert config.pseudo_label.cap == 0.9
    assert config.of("self_training").scale == (1.0, 3.0)


@pytest.mark.parametrize("benchmark", PAPER)
def test_the_schedule_of_sdca_is_that_of_its_code(benchmark):
    config = load(benchmark, "sdca")
    assert config.stages == ("source_only", "sdca", "self_training")
    found = {
        name: (c.steps, c.horizon, config.batch_of(name), c.learning_rate, c.head_multiplier)
        for name in config.stages
        for c in [config.of(name)]
    }
    assert found == {
        "source_only": (20_000, 31_250, 8, 0.0005, 10.0),
        "sdca": (40_000, 62_500, 4, 0.00025, 10.0),
        "self_training": (20_000, 31_250, 8, 0.0005, 10.0),
    }
    c = config.of("sdca")
    assert (c.temperature, c.feature_weight, c.output_weight, c.delta) == (100.0, 1.0, 1.0, 0.9)
    assert c.lovasz_weight == config.of("source_only").lovasz_weight == 0.75
    assert (config.of("source_only").augment, c.augment) == ("none", "source")
    for stream in (config.source, config.target):
        assert (stream.grayscale, stream.blur) == (0.2, (0.1, 2.0))
    assert load(benchmark, "source_only").of("source_only").lovasz_weight == 0.0


@pytest.mark.parametrize("benchmark", PAPER)
@pytest.mark.parametrize("method", ["asanet", "asanet_asc"])
def test_the_schedule_of_asanet_is_that_of_its_code(method, benchmark):
    config = load(benchmark, method)
    assert config.stages == ("source_only", method)
    c = config.of(method)
    assert (c.steps, c.horizon, config.batch_of(method)) == (80_000, 100_000, 1)
    assert (c.learning_rate, c.head_multiplier, c.momentum) == (0.00025, 10.0, 0.9)
    assert (c.weight_decay, c.poly_power, c.augment) == (0.0005, 0.9, "none")
    assert (c.neighbours, c.border, c.affinity_stride) == (8, "replicate", 1)
    if method == "asanet":
        assert (c.weight, c.discriminator_learning_rate, c.discriminator_width) == (
            0.001,
            0.0001,
            64,
        )
        assert (c.eps, c.damping) == (0.0001, True)


def test_synthia_has_sixteen_outputs_and_is_scored_on_those():
    config = load("synthia", "spcl")
    assert [CLASS_NAMES[k] for k in config.model.absent] == ["terrain", "truck", "train"]
    assert config.evaluation.protocol == "syn16_masked"
    for benchmark in ("gta5", "synscapes"):
        config = load(benchmark, "spcl")
        assert (config.model.absent, config.evaluation.protocol) == ((), "cityscapes19")


def test_synthia_with_nineteen_outputs_is_what_its_header_says():
    text = next(line for line in header("benchmarks", "synthia") if "model.absent=[]" in line)
    config = load("synthia", "spcl", None, text.removeprefix("#").split())
    assert (config.model.absent, config.evaluation.protocol) == ((), "syn16_full")


@pytest.mark.parametrize("benchmark", PAPER)
def test_a_benchmarks_header_says_how_to_make_its_data_and_train_on_it(benchmark):
    text = "\n".join(header("benchmarks", benchmark))
    for dataset in (benchmark, "cityscapes"):
        assert f"python ray_jobs/ingest.py --dataset {dataset} --root DIR" in text
    assert f"python ray_jobs/train.py --benchmark {benchmark} --method spcl" in text


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in ("benchmarks", "methods") for n in known(k)]
)
def test_the_commands_of_a_header_load(kind, name):
    commands = [line.split()[3:] for line in header(kind, name) if "ray_jobs/train.py" in line]
    assert commands
    for words in commands:
        options = {words[i][2:]: words[i + 1] for i, w in enumerate(words) if w.startswith("--")}
        settings = [w for w in words if "=" in w]
        config = load(options.get("benchmark"), options.get("method"), None, settings)
        assert name in (config.benchmark, config.method)


def published(method):
    """The table in a method's header: {row: {benchmark: numbers}}."""
    lines = header("methods", method)
    top = next(i for i, line in enumerate(lines) if line.split()[1:] == [*PAPER])
    starts = [lines[top].index(benchmark) for benchmark in PAPER]
    rows = {}
    for line in itertools.takewhile(lambda line: line.startswith("#   "), lines[top + 1 :]):
        cells = [line[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
        numbers = [tuple(float(n) for n in re.findall(r"\d+\.\d", cell)) for cell in cells]
        name = line[1 : starts[0]].strip()
        rows[name] = {b: n for b, n in zip(PAPER, numbers, strict=True) if n}
    return rows


@pytest.mark.parametrize("method", PUBLISHED)
def test_figures_of_a_header_are_those_published(method):
    assert published(method) == PUBLISHED[method]


def test_figures_after_each_stage_are_those_published():
    line = next(line for line in header("methods", "spcl") if "After its stages" in line)
    assert re.findall(r"\w+ (\d+\.\d)", line) == ["41.4", "49.2", "52.1"]


def test_the_models_that_headers_name_exist():
    names = {
        word.strip("(),").removeprefix("model=")
        for kind in ("benchmarks", "methods")
        for name in known(kind)
        for word in " ".join(header(kind, name)).split()
        if word.strip("(),").startswith("model=")
    }
    assert names == {"deeplabv2_vgg16"} <= set(MODELS)
