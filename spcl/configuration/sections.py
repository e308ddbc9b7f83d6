"""The settings that all methods share, by section.  `config` puts them together."""

from dataclasses import dataclass

from spcl.data.sampling import LABEL_FREE, ORDERS, Rarity
from spcl.errors import ConfigError
from spcl.models.normalization import NORMS
from spcl.models.segmentor import MEAN_ORDERS, MODELS, ModelSpec
from spcl.models.vgg import INPUTS
from spcl.models.weights import check_fits
from spcl.scoring import protocols
from spcl.settings import setting

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

    crop: tuple[int, int] = setting(
        (0, 0),
        "paper: none; [512, 512] in DAFormer's code: what training cuts out of the image of `size`",
        low=0,
    )

    @property
    def shown(self) -> tuple[int, int]:
        """Size of the images that training reads."""
        return self.crop if any(self.crop) else self.size

    @property
    def rarity(self) -> Rarity:
        """What rare-class sampling is told; of a target it is never read."""
        return Rarity()

    @property
    def crop_shows(self) -> float:
        """Pixels of the class that rare-class sampling has drawn, of which a crop shows more."""
        return 0.0

    @property
    def crop_most(self) -> float:
        """Share of a crop's labelled pixels that one class stays below; 1 is any."""
        return 1.0

    def check(self, role: str) -> None:
        """What no single setting can tell.  Raises ConfigError."""
        if (self.crop[0] == 0) != (self.crop[1] == 0):
            raise ConfigError(
                f"{role}.crop must be [height, width], or [0, 0] for all: got {list(self.crop)}"
            )
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
        "authors' code: sub-epochs of 3000 draws; in_order is ASANet's: the list as it stands; "
        "rare_class is DAFormer's",
        choices=tuple(ORDERS),
    )
    rare_class_temperature: float = setting(
        0.01, "DAFormer's code, read with order=rare_class; 0.1 in PiPa's", low=1e-6
    )
    rare_class_pixels: int = setting(
        3000, "DAFormer's code, read with order=rare_class: more of a class than that", low=0
    )
    rare_class_crop: float = setting(
        0.5,
        "DAFormer's code, read with order=rare_class and a crop, of which up to 10 are tried: the "
        "share of rare_class_pixels that it shows; 2 in HRDA's",
        low=0.0,
    )
    crop_most_class: float = setting(
        1.0,
        "paper: any; 0.75 in DAFormer's code: the share of one class below which a crop stays, of "
        "which up to 10 are tried",
        low=0.0,
        high=1.0,
    )
    holdout: int = setting(0, "ours: images kept from training, to select by; 0 in papers", low=0)

    @property
    def rarity(self) -> Rarity:
        return Rarity(self.rare_class_temperature, self.rare_class_pixels)

    @property
    def crop_shows(self) -> float:
        return self.rare_class_crop * self.rare_class_pixels

    @property
    def crop_most(self) -> float:
        return self.crop_most_class


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

    @property
    def spec(self) -> ModelSpec:
        return MODELS[self.name]

    @property
    def used_norm(self) -> str:
        """What `norm` means: of NORMS."""
        if not self.spec.norms:  # nothing is normalised by it, so that keys must not tell apart
            return "frozen"
        # Frozen statistics are those that pre-trained weights bring; without any they'd be nothing.
        default = "domain" if self.used_weights == "none" else "frozen"
        return default if self.norm == "auto" else self.norm

    @property
    def used_weights(self) -> str:
        """What `weights` means: none, imagenet or a file's path."""
        default = "imagenet" if self.spec.pretrained else "none"
        return default if self.weights == "auto" else self.weights

    @property
    def used_input(self) -> str:
        """What the network's weights expect, of `spcl.models.vgg.INPUTS`."""
        if self.input != "auto":
            return self.input
        known = self.spec.pretrained
        return known.input if known and self.used_weights == "imagenet" else self.spec.inputs[0]

    def check(self) -> None:
        """What no single setting can tell.  Raises ConfigError."""
        name, given, spec = self.name, self.input, self.spec
        check_fits(name, spec.pretrained, self.used_weights)
        if spec.norms and self.used_norm not in spec.norms:
            raise ConfigError(
                f"model.norm of {name} must be one of {', '.join(spec.norms)}, got {self.used_norm}"
            )
        if self.used_input not in spec.inputs:
            raise ConfigError(
                f"model.input must be auto, or what the network can make of an image: {name} reads "
                f"{', '.join(spec.inputs)}, got {given}"
            )
        known = spec.pretrained
        if known and self.used_weights == "imagenet" and self.used_input != known.input:
            raise ConfigError(
                f"model.weights=imagenet is torchvision's {known.imagenet}, which expects "
                f"model.input={known.input}, got {given}"
            )
        if (
            self.used_weights not in ("none", "imagenet")
            and given == "auto"
            and len(spec.inputs) > 1
        ):
            kinds = "; ".join(f"{kind} ({INPUTS[kind]})" for kind in spec.inputs)
            raise ConfigError(
                f"model.weights is a file, so model.input must say what it expects: {kinds}"
            )
        if self.target_statistics == "estimated" and not spec.norms:
            raise ConfigError(
                f"model.target_statistics=estimated re-estimates normalisation, but {name} has "
                "none; leave it at trained"
            )
        if self.target_statistics == "estimated" and self.used_norm != "domain":
            raise ConfigError(
                "model.target_statistics=estimated needs statistics per domain: model.norm=domain"
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
    micro_batch: int = setting(
        0,
        "ours: images in one forward of a worker, 0 is all of its share; the same result in less "
        "memory, for one more forward; not with statistics of the batch",
        low=0,
    )
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
