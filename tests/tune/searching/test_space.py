import pytest

from spcl.configuration.config import Config, load
from spcl.configuration.layers import CONFIGS, known
from spcl.errors import ConfigError
from spcl.settings import flatten, read_yaml
from tune.searching.space import build_space, load_space

FILES = sorted((CONFIGS / "search").glob("*.yaml"))
RIDGE = {
    "spcl.temperature": {"low": 0.05, "high": 200, "log": True},
    "spcl.contrast_weight": {
        "relative_to": "spcl.temperature",
        "low": 0.01,
        "high": 10,
        "log": True,
    },
}


@pytest.fixture(scope="module")
def config():
    return load("streets", "spcl")


def method_of(path):
    """A space is named by its method, and perhaps by what it is besides: spcl, spcl_rates."""
    return max((m for m in known("methods") if path.stem.startswith(m)), key=len)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_of_every_space_names_a_setting(path):
    keys = read_yaml(path).keys()
    assert keys and keys <= flatten(Config().as_dict()).keys()
    assert load_space(path.stem, load("streets", method_of(path))).keys == list(keys)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("benchmark", ["streets", "gta5", "synthia", "synscapes"])
def test_defaults_lie_in_every_space(path, benchmark):
    config = load(benchmark, method_of(path))
    space = load_space(path.stem, config)
    defaults = space.defaults(config)
    assert space.inside(defaults) == defaults
    values = flatten(config.as_dict())
    assert space.settings(defaults, config) == pytest.approx({k: values[k] for k in space.keys})


def test_a_space_reads_back_as_it_was_written(config):
    space = load_space("spcl", config)
    assert build_space(space.as_dict(), config) == space


def test_the_quotient_is_suggested_and_the_product_is_trained_with(config):
    space = build_space(RIDGE, config)
    assert list(space.distributions) == ["spcl.temperature", "spcl.contrast_weight/relative"]
    parameters = {"spcl.temperature": 4.0, "spcl.contrast_weight/relative": 0.5}
    settings = space.settings(parameters, config)
    assert settings == {"spcl.temperature": 4.0, "spcl.contrast_weight": 2.0}
    applied = space.apply(settings, config).of("spcl")
    assert (applied.temperature, applied.contrast_weight) == (4.0, 2.0)


def test_a_point_of_the_unit_cube_is_linear_or_logarithmic_in_the_range(config):
    line = {"pseudo_label.cap": {"low": 0.7, "high": 0.9}}
    space = build_space({**RIDGE, **line, "spcl.source_mask": {"choices": ["gt", "agree"]}}, config)
    middle = space.at([0.5, 0.0, 0.25, 0.99])
    assert middle == pytest.approx(
        {
            "spcl.temperature": (0.05 * 200) ** 0.5,
            "spcl.contrast_weight/relative": 0.01,
            "pseudo_label.cap": 0.75,
            "spcl.source_mask": "agree",
        }
    )


def test_a_condition_switches_a_parameter_off(config):
    space = build_space(
        {
            "spcl.source_mask": {"choices": ["gt", "agree"]},
            "spcl.temperature": {"low": 1, "high": 2, "when": {"spcl.source_mask": "agree"}},
        },
        config,
    )
    assert space.at([0.0, 0.5]) == {"spcl.source_mask": "gt"}
    assert space.at([0.9, 0.5]) == {"spcl.source_mask": "agree", "spcl.temperature": 1.5}
    off = space.settings(space.at([0.0, 0.5]), config)
    assert off == {"spcl.source_mask": "gt", "spcl.temperature": config.of("spcl").temperature}
    assert space.defaults(config) == {"spcl.source_mask": "gt"}


def test_defaults_out_of_range_are_kept_and_known_to_be(config):
    space = build_space({"spcl.temperature": {"low": 5, "high": 9}}, config)
    defaults = space.defaults(config)
    assert defaults == {"spcl.temperature": 0.1} and space.inside(defaults) == {}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"spcl.temprature": {"low": 1, "high": 2}}, "did you mean 'spcl.temperature'"),
        ({"train.threads": {"choices": [1, 2]}}, "setting 'train.threads' is unknown"),
        ({"source_only.steps": {"choices": [1, 2]}}, "is unknown"),  # no stage of the recipe
        ({"source.shuffle": {"choices": [True, False]}}, "search source.order instead"),
        ({"evaluation.size": {"choices": [1]}}, "is unknown"),
        ({"spcl.temperature": {"low": 1, "hihg": 2}}, "did you mean 'high'"),
        ({"spcl.temperature": {"low": 2, "high": 1}}, "low < high must hold"),
        ({"spcl.temperature": {"low": 0, "high": 1, "log": True}}, "0 < low on a log scale"),
        ({"spcl.temperature": {"low": 1}}, "must have numbers low and high"),
        ({"spcl.temperature": 3}, "must be {low"),
        ({"spcl.temperature": {"choices": []}}, "must have choices"),
        ({"spcl.steps": {"low": 1, "high": 9}}, "is no real number"),
        ({"pseudo_label.cap": {"low": 0.5, "high": 1.5}}, "pseudo_label.cap must be at most 1"),
        ({"spcl.source_mask": {"choices": ["gt", "agre"]}}, "did you mean 'agree'"),
        ({"spcl.contrast_weight": RIDGE["spcl.contrast_weight"]}, "relative_to must name"),
        (
            {"spcl.temperature": {"low": 1, "high": 2, "when": {"spcl.init": "per_pixel"}}},
            "when must name an earlier parameter",
        ),
        ({}, "at least one setting"),
    ],
)
def test_mistakes_in_a_space_are_named(lines, message, config):
    with pytest.raises(ConfigError, match=message):
        build_space(lines, config)


def test_a_file_is_named_in_its_mistakes(tmp_path, config):
    path = tmp_path / "mine.yaml"
    path.write_text("spcl.temprature: {low: 1, high: 2}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: setting"):
        load_space(str(path), config)
    with pytest.raises(ConfigError, match="space 'spcll' is unknown; did you mean 'spcl'"):
        load_space("spcll", config)
