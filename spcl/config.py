"""Which settings exist, and which of them fit together.

`spcl.layers` says how files and the command line become one `Config`.  After a change of a setting,
here or in a method's file, `python -m spcl.table` writes the table of settings anew.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spcl import elastic, old_words, protocols
from spcl.chosen_by import ChosenBy
from spcl.data.sampling import LABEL_FREE, ORDERS
from spcl.errors import ConfigError
from spcl.extras import EXTRAS
from spcl.extras.base import ExtraConfig
from spcl.layers import CONFIGS, layered
from spcl.methods import METHODS
from spcl.methods.base import Method, StageConfig
from spcl.methods.passes import StatePass
from spcl.models.normalization import NORMS
from spcl.models.segmentor import MEAN_ORDERS, MODELS, ModelSpec
from spcl.models.vgg import INPUTS
from spcl.models.weights import check_fits
from spcl.settings import build, choose, flatten, read_yaml, setting

NO_DATASET = "none"  # evaluation.dataset of who has no labels to score with


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One stream of training images.  Sizes are (height, width) in pixels."""

    dataset: str = setting("", "benchmark file")
    split: str = setting("train", "benchmark file")
    size: tuple[int, int] = setting((512, 1024), "paper: target", low=8)
    jitter: tuple[float, float, float, float] = setting(
        (0.5, 0.5, 0.5, 0.2), "authors' code: brightness, contrast, saturation, hue", low=0.0
    )
    flip: float = setting(0.5, "paper: horizontal flip on both domains", low=0.0, high=1.0)
    grayscale: float = setting(
        0.0, "paper: none; 0.2 in SDCA's code, on the source: probability", low=0.0, high=1.0
    )
    blur: tuple[float, float] = setting(
        (0.0, 0.0),
        "paper: none; [0.1, 2] in SDCA's code, on the source: pixels, of a 3x3 Gaussian",
        low=0.0,
    )
    order: str = setting(
        "uniform", "paper; in_order is ASANet's code: the list as it stands", choices=LABEL_FREE
    )

    def check(self, role: str) -> None:
        """What no single setting can tell.  Raises ConfigError."""
        low, high = self.blur
        if low > high or (high > 0.0 and low == 0.0):
            raise ConfigError(
                f"{role}.blur must be [low, high] with 0 < low <= high, or [0, 0] for none; "
                f"got {list(self.blur)}"
            )


@dataclass(frozen=True, kw_only=True)
class Source(Domain):
    size: tuple[int, int] = setting((720, 1280), "paper: source", low=8)
    order: str = setting(
        "class_balanced",
        "authors' code: sub-epochs of 3000 draws; in_order is ASANet's: the list as it stands",
        choices=tuple(ORDERS),
    )
    holdout: int = setting(0, "ours: images kept from training, to select by; 0 in papers", low=0)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is scored.  Its labels are opened after the last training stage and nowhere else.

    Test-time augmentation is off, as in every comparison; probabilities are averaged after softmax,
    as in SPCL's code.
    """

    dataset: str = setting("", "benchmark file; none: the target has no labelled split")
    split: str = setting("val", "benchmark file")
    size: tuple[int, int] = setting((512, 1024), "paper: network input", low=8)
    protocol: str = setting("cityscapes19", "benchmark file", choices=tuple(protocols.PROTOCOLS))
    flip: bool = setting(False, "authors' code: also the mirrored image")
    scales: tuple[float, ...] = setting((1.0,), "ours: input sizes, as factors of size", low=0.1)
    window: tuple[int, int] = setting((0, 0), "ours: of the network input; 0 is off", low=0)
    stride: tuple[int, int] = setting((0, 0), "ours: of the window; 0 is half of it", low=0)

    @property
    def wanted(self) -> bool:
        """Is there anything to score?"""
        return self.dataset != NO_DATASET

    def check(self) -> None:
        """What no single setting can tell.  Raises ConfigError."""
        if not self.scales:
            raise ConfigError("evaluation.scales must name at least one factor, e.g. [1.0]")
        if (self.window[0] == 0) != (self.window[1] == 0):
            raise ConfigError(
                f"evaluation.window must be [height, width], or [0, 0]: got {list(self.window)}"
            )
        if any(s > w for s, w in zip(self.stride, self.window, strict=True)):
            raise ConfigError(
                f"evaluation.stride must not pass the window, or pixels would be left out; "
                f"got stride {list(self.stride)} and window {list(self.window)}"
            )


@dataclass(frozen=True, kw_only=True)
class Model:
    name: str = setting("deeplabv2_resnet101", "paper", choices=tuple(MODELS))
    norm: str = setting(
        "auto",
        "paper: frozen with pre-trained weights; ours: domain without; running is ASANet's code",
        choices=("auto", *NORMS),
    )
    weights: str = setting(
        "auto", "ours: imagenet where the network has any, else none; or a file's path"
    )
    input: str = setting(
        "auto",
        "ours: what the weights expect, see spcl/models/vgg.py; a file's must be named where "
        "the network reads several",
        choices=("auto", *INPUTS),
    )
    aspp_branches: int = setting(4, "SPCL's code; 2 is the AdaptSegNet lineage", choices=(2, 4))
    mean_order: str = setting(
        "right", "ours; mixed is ASANet's code: BGR pixels minus an RGB mean", choices=MEAN_ORDERS
    )
    target_statistics: str = setting(
        "trained",
        "ours; estimated = AdaBN over the target's training images before evaluation",
        choices=("trained", "estimated"),
    )
    mixed_norm: str = setting(
        "target",
        "ours: the domain whose running statistics images get that are of both: mixed, stylised",
        choices=("target", "source"),
    )
    mixed_statistics: str = setting(
        "keep", "ours: whether such images move these statistics", choices=("keep", "move")
    )
    absent: tuple[int, ...] = setting(
        (), "benchmark file: trainIds the network has no output for", low=0
    )


@dataclass(frozen=True, kw_only=True)
class PseudoLabel:
    cap: float = setting(0.9, "paper", low=0.0, high=1.0)
    quantile: float = setting(0.5, "paper: median", low=0.0, high=1.0)
    median: str = setting(
        "true", "ours; ref_index is the authors' code", choices=("true", "lower", "ref_index")
    )


@dataclass(frozen=True, kw_only=True)
class Train:
    batch: int = setting(4, "authors' code: images per domain and step, over all workers", low=1)
    dtype: str = setting("float32", "ours", choices=("float32", "bfloat16"))
    deterministic: bool = setting(False, "ours: bit for bit on CUDA, slower")
    clip_norm: float = setting(0.0, "ours: 0 is off, as in the paper", low=0.0)
    reduction: str = setting(
        "global",
        "ours: a mean over the pixels of all workers, so that their number changes nothing; "
        "per_rank is the authors' code: the mean of each worker's own",
        choices=("global", "per_rank"),
    )
    threads: int = setting(2, "ours: torch threads per worker", low=1, operational=True)
    workers: int = setting(1, "ours: processes, one per GPU", low=1, operational=True)
    loader_workers: int = setting(2, "ours: 0 loads in process", low=0, operational=True)
    device: str = setting(
        "auto", "ours: cuda where there is one", choices=("auto", "cpu", "cuda"), operational=True
    )
    collective_timeout: int = setting(
        600,
        "ours: seconds that a worker waits for the others until it gives up; torch has 1800 for "
        "gloo and 600 for NCCL",
        low=1,
        operational=True,
    )
    channels_last: bool = setting(False, "ours", operational=True)
    compile: bool = setting(False, "ours: torch.compile of the segmentor", operational=True)
    log_every: int = setting(50, "ours: steps", low=1, operational=True)
    checkpoint_every: int = setting(1000, "ours: steps", low=1, operational=True)
    panel_every: int = setting(1000, "ours: steps between image panels", low=1, operational=True)


@dataclass(frozen=True, kw_only=True)
class Streets:
    """The embedded benchmark, rendered on first use; read only where a dataset is `streets/...`."""

    world: int = setting(0, "ours: 1 is the calibration world", low=0)
    source_images: int = setting(600, "ours", low=1)
    target_images: int = setting(600, "ours", low=1)
    val_images: int = setting(200, "ours", low=1)
    size: tuple[int, int] = setting((64, 128), "ours", low=16)


@dataclass(frozen=True, kw_only=True)
class _Config:
    benchmark: str = setting("", "command line")
    method: str = setting("spcl", "command line")
    stages: tuple[str, ...] = setting((), "the method's file")
    compat: str = setting(
        "ours",
        "ours; official sets the switches of configs/compat to what the authors' code does",
        choices=("ours", "official"),
        operational=True,  # a name for settings, which are in the keys themselves
    )
    seed: int = setting(0, "command line", low=0)
    selection: str = setting("last", "ours: the last checkpoint, no label", choices=("last",))
    source: Source = field(default_factory=Source)
    target: Domain = field(default_factory=Domain)
    evaluation: Evaluation = field(default_factory=Evaluation)
    model: Model = field(default_factory=Model)
    pseudo_label: PseudoLabel = field(default_factory=PseudoLabel)
    train: Train = field(default_factory=Train)
    streets: Streets = field(default_factory=Streets)
    chosen_by: ChosenBy = field(default_factory=ChosenBy)  # united over layers, never overridden

    def of(self, method: str) -> StageConfig:
        """The section of a method."""
        return getattr(self, method)

    def batch_of(self, method: str) -> int:
        """Images per domain and step of a method's stage, over all workers."""
        return self.of(method).batch or self.train.batch

    @property
    def _spec(self) -> ModelSpec:
        return MODELS[self.model.name]

    @property
    def norm(self) -> str:
        if not self._spec.norms:  # nothing is normalised by it, so that keys must not tell apart
            return "frozen"
        # Frozen statistics are those that pre-trained weights bring; without any they'd be nothing.
        default = "domain" if self.weights == "none" else "frozen"
        return default if self.model.norm == "auto" else self.model.norm

    @property
    def weights(self) -> str:
        default = "imagenet" if self._spec.pretrained else "none"
        return default if self.model.weights == "auto" else self.model.weights

    @property
    def input(self) -> str:
        """What the network's weights expect, of `spcl.models.vgg.INPUTS`."""
        if self.model.input != "auto":
            return self.model.input
        known = self._spec.pretrained
        return known.input if known and self.weights == "imagenet" else self._spec.inputs[0]

    def by_rank(self, stage: str) -> elastic.Choices:
        """The settings by which the number of workers changes the result of a training stage."""
        extras = {name: self.extra(name) for name in self.of(stage).extras}
        return elastic.choices({stage: self.of(stage)} | extras, self.train.reduction)

    def extra(self, name: str) -> ExtraConfig:
        """The section of an extra."""
        return getattr(self, name)

    def reads_of(self, stage: str) -> dict[str, frozenset[str]]:
        """Stream -> what a stage's method and its extras read of it, the domains' own first."""
        readers = [METHODS[stage], *(EXTRAS[name] for name in self.of(stage).extras)]
        reads: dict[str, frozenset[str]] = {}
        for reader in readers:
            for stream, what in reader.reads.items():
                reads[stream] = reads.get(stream, frozenset()) | what
        return dict(sorted(reads.items(), key=lambda item: ("/" in item[0], item[0])))

    def domains_of(self, stage: str) -> tuple[str, ...]:
        """The domains whose training images a stage reads, "source" before "target"."""
        return tuple(sorted({stream.split("/")[0] for stream in self.reads_of(stage)}))

    def check(self) -> None:
        """What no single setting can tell.  Raises ConfigError."""
        if not self.stages:
            raise ConfigError("stages must name at least one method, e.g. stages=[source_only]")
        for index, name in enumerate(self.stages):
            choose(name, METHODS, "stage")
            if index == 0 and METHODS[name].starts_trained:
                raise ConfigError(
                    f"stage {name!r} starts from a trained network, so it can't be the first; "
                    f"try stages=[{_first_stage(self.method)},{','.join(self.stages)}]"
                )
            section = self.of(name)
            for extra in section.extras:
                choose(extra, EXTRAS, f"{name}.extras")
            if section.steps > section.horizon:
                raise ConfigError(
                    f"{name}.horizon must be at least {name}.steps, since the poly schedule is 0 "
                    f"there; got horizon {section.horizon} and steps {section.steps}"
                )
            if section.start == "pretrained" and _learns_state(METHODS[name]):
                raise ConfigError(
                    f"{name}.start must be trained: what it learns in its look at the source is of "
                    "the network of the stage before"
                )
            if section.scale[0] > section.scale[1]:
                raise ConfigError(f"{name}.scale must be [low, high], got {list(section.scale)}")
        if len(set(self.stages)) != len(self.stages):
            raise ConfigError(f"each stage may run once, got {list(self.stages)}")
        self.source.check("source")
        self.target.check("target")
        self.evaluation.check()
        self._check_model()

    def _check_model(self) -> None:
        name, given, spec = self.model.name, self.model.input, self._spec
        check_fits(name, spec.pretrained, self.weights)
        if spec.norms and self.norm not in spec.norms:
            raise ConfigError(
                f"model.norm of {name} must be one of {', '.join(spec.norms)}, got {self.norm}"
            )
        if self.input not in spec.inputs:
            raise ConfigError(
                f"model.input must be auto, or what the network can make of an image: {name} reads "
                f"{', '.join(spec.inputs)}, got {given}"
            )
        known = spec.pretrained
        if known and self.weights == "imagenet" and self.input != known.input:
            raise ConfigError(
                f"model.weights=imagenet is torchvision's {known.imagenet}, which expects "
                f"model.input={known.input}, got {given}"
            )
        if self.weights not in ("none", "imagenet") and given == "auto" and len(spec.inputs) > 1:
            kinds = "; ".join(f"{kind} ({INPUTS[kind]})" for kind in spec.inputs)
            raise ConfigError(
                f"model.weights is a file, so model.input must say what it expects: {kinds}"
            )
        if self.model.target_statistics == "estimated" and not spec.norms:
            raise ConfigError(
                f"model.target_statistics=estimated re-estimates normalisation, but {name} has "
                "none; leave it at trained"
            )
        if self.model.target_statistics == "estimated" and self.norm != "domain":
            raise ConfigError(
                "model.target_statistics=estimated needs statistics per domain: model.norm=domain"
            )

    def as_dict(self) -> dict[str, Any]:
        """Nested, plain values: what is saved as config.yaml."""
        return _plain(dataclasses.asdict(self))


Config = dataclasses.make_dataclass(
    "Config",
    [
        (name, part.Config, field(default_factory=part.Config))
        for name, part in [*METHODS.items(), *EXTRAS.items()]
    ],
    bases=(_Config,),
    frozen=True,
    kw_only=True,
    namespace={"__doc__": "Every setting of a run: `_Config` and one section per method."},
)


def _learns_state(method: type[Method]) -> bool:
    return any(issubclass(look, StatePass) for look in method.passes)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def load(
    benchmark: str | None = None,
    method: str | None = None,
    file: Path | None = None,
    overrides: Iterable[str] = (),
) -> Config:
    """The resolved, checked configuration.  Raises ConfigError."""
    config = build(Config, layered(Config, benchmark, method, file, overrides))
    config.check()
    return config


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `Config.as_dict`, of older code's too."""
    config = build(Config, old_words.modern(Config, old_words.checked(values)))
    config.check()
    return config


def _first_stage(method: str) -> str:
    """Of the recipe in a method's file."""
    return read_yaml(CONFIGS / "methods" / f"{method}.yaml")["stages"][0]


def told(config: Config) -> dict[str, Any]:
    """The settings that can change a result, by dotted name; the seed among them."""
    skip = operational_keys()
    if any(map(config.by_rank, config.stages)):
        skip.remove("train.workers")
    return {key: value for key, value in flatten(config.as_dict()).items() if key not in skip}


def differences(one: Config, other: Config) -> list[str]:
    """Lines "key: a -> b" of what is `told` of the two and differs."""
    left, right = told(one), told(other)
    return [
        f"{key}: {left.get(key)} -> {right.get(key)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def operational_keys() -> set[str]:
    """Dotted names of the settings that cannot change a result."""
    keys = set()
    for section in dataclasses.fields(Config):
        if section.metadata.get("operational"):
            keys.add(section.name)
        if dataclasses.is_dataclass(section.type):
            for inner in dataclasses.fields(section.type):
                if inner.metadata.get("operational"):
                    keys.add(f"{section.name}.{inner.name}")
    return keys
