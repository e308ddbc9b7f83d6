"""Small problems for tests of the loop: data in memory, a three-convolution network."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from spcl import distributed
from spcl.configuration.sections import Train
from spcl.data.batch import Batch, Images
from spcl.data.loader import Steps
from spcl.data.sampling import positions
from spcl.data.shards import ShardSet
from spcl.engine.trainer import Context, fit
from spcl.extras.base import Extra, ExtraConfig
from spcl.inference.passes import run_pass
from spcl.losses.segmentation import cross_entropy
from spcl.methods import METHODS
from spcl.methods.base import Method, Outputs, Seen, Term
from spcl.methods.passes import StatePass
from spcl.methods.stage import StageConfig
from spcl.models.normalization import NORMS
from spcl.models.segmentor import Segmentor, build_segmentor
from spcl.settings import setting
from spcl.store.checkpoint import Checkpoints
from spcl.store.run_folder import RunFolder
from spcl.store.telemetry import Telemetry

CLASSES = 19
HEIGHT, WIDTH = 32, 64
#: Weights of the demo; a confidence that a network reaches within the few steps of a test.
SDCA = {"temperature": 0.1, "feature_weight": 0.1, "output_weight": 0.1, "delta": 0.12}
#: A few steps from scratch: no warm-up, and a confidence that a third of the pixels reach.
DAFORMER = {"optimizer": "sgd", "warm_up_steps": 0, "ignored_rows": (2, 3), "confidence": 0.08}
TRAIN = Train(threads=1, loader_workers=0, log_every=1, checkpoint_every=10, panel_every=10_000)


def striped(seed: int, domain: int, position: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A 32x64 image of 4 stripes whose colours tell their class; domain 1 has shifted colours."""
    rng = np.random.default_rng([seed, domain, position])
    classes = rng.permutation(CLASSES)[:4]
    label = np.repeat(classes, WIDTH // 4)[None].repeat(HEIGHT, 0)
    colors = np.random.default_rng(7).normal(size=(CLASSES, 3)) + 0.5 * domain
    image = colors[label] + 0.1 * rng.normal(size=(HEIGHT, WIDTH, 3))
    return torch.from_numpy(image).permute(2, 0, 1).float(), torch.from_numpy(label).byte()


class Stripes(Steps):
    """The interface of Steps over `striped` images; `spoil` may change a batch of a step."""

    def __init__(self, batch: int = 4, seed: int = 0, spoil=None):
        self.batch, self.seed, self.spoil = batch, seed, spoil

    def __getitem__(self, step: int) -> Batch:
        where = positions(step, self.batch, distributed.rank(), distributed.world_size())
        streams = {}
        for number, domain in enumerate(("source", "target")):
            images, labels = zip(*(striped(self.seed, number, p) for p in where), strict=True)
            streams[domain] = Images(torch.stack(images), torch.tensor(where), torch.stack(labels))
        batch = Batch(streams)
        return self.spoil(batch, step) if self.spoil else batch

    def batches(self, start: int, stop: int, workers: int, pin: bool = False) -> Iterator[Batch]:
        return (self[step] for step in range(start, stop))

    def sample_ids(self, step: int) -> dict[str, list[str]]:
        return {
            "source": [f"stripe-{p}" for p in range(step * self.batch, (step + 1) * self.batch)]
        }


def batch_of(**streams: tuple[torch.Tensor, torch.Tensor | None]) -> Batch:
    """Stream=(image, label), at the first positions."""
    return Batch(
        {k: Images(image, torch.arange(len(image)), y) for k, (image, y) in streams.items()}
    )


def changed(batch: Batch, stream: str, **fields: torch.Tensor | None) -> Batch:
    """The batch with other images or labels in one stream."""
    return Batch({**batch.streams, stream: dataclasses.replace(batch[stream], **fields)})


def result_of(one: StatePass, segmentor: Segmentor, shards: ShardSet, size: tuple[int, int]):
    """What a pass over the shards has learnt, on this rank, without a file."""
    one.finish = lambda: None
    run_pass(one, segmentor, shards, size, torch.device("cpu"))
    return one.result()


class ThreeConvolutions(nn.Module):
    feature_dimension = 16

    def __init__(self, norm: str):
        super().__init__()
        layers, inputs = [], 3
        for outputs in (8, 16, self.feature_dimension):
            layers += [nn.Conv2d(inputs, outputs, 3, 2 if inputs == 3 else 1, 1, bias=False)]
            layers += [NORMS[norm](outputs), nn.ReLU()]
            inputs = outputs
        self.layers = nn.Sequential(*layers)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


def segmentor(norm: str = "domain", model: str = "toy", seed: int = 0) -> Segmentor:
    torch.manual_seed(seed)
    if model != "toy":
        return build_segmentor(model, CLASSES, norm=norm)
    backbone = ThreeConvolutions(norm)
    return Segmentor(backbone, nn.Conv2d(backbone.feature_dimension, CLASSES, 1), CLASSES)


def method(name: str, *, norm: str = "domain", model: str = "toy", steps: int = 20, **config):
    """A method ready to train.

    SPCL and SDCA start from prototypes and means of random directions, all seen.
    """
    made = METHODS[name](
        segmentor(norm, model),
        METHODS[name].Config(
            **{"steps": steps, "horizon": 100, "learning_rate": 0.01, "head_multiplier": 1.0}
            | ({"discriminator_width": 4} if name in ("adversarial", "asanet") else {})
            | ({"temperature": 0.1, "contrast_weight": 0.1} if name == "spcl" else {})
            | (SDCA if name == "sdca" else {})
            | (DAFORMER if name == "daformer" else {})
            | config
        ),
    )
    if name == "spcl":
        bank = made.prototypes
        rng = torch.Generator().manual_seed(3)
        mean = nn.functional.normalize(torch.randn(bank.mean.shape, generator=rng), dim=1)
        bank.load(mean, torch.ones(CLASSES, dtype=torch.bool))
    if name == "sdca":
        rng = torch.Generator().manual_seed(3)
        for moments in made.moments.values():
            mean = nn.functional.normalize(torch.randn(moments.mean.shape, generator=rng), dim=1)
            variance = 0.1 * torch.rand(mean.shape, generator=rng)
            moments.load(mean, variance, torch.full((CLASSES,), 1000))
    return made


def train(
    made: Method, folder: Path, *, name: str = "toy", data: Steps | None = None, **options
) -> list[dict]:
    """Fit on this rank; returns the log lines (rank 0: one per step)."""
    folder.mkdir(parents=True, exist_ok=True)
    telemetry = Telemetry(folder if distributed.rank() == 0 else None)
    telemetry._board = _NoBoard()
    context = Context(telemetry=telemetry)
    options = dataclasses.replace(TRAIN, **options)
    fit(name, made, data or Stripes(), options, Checkpoints(folder / "checkpoints"), context)
    return list(RunFolder(folder).metrics())


class _NoBoard:
    """TensorBoard takes seconds to import; these tests read metrics.jsonl."""

    def scalars(self, *_: object) -> None: ...

    def image(self, *_: object) -> None: ...


def train_on_rank(rank: int, folder: str, name: str, options: dict) -> dict:
    """For `processes.run_ranks`: losses of every step, and the state this rank ends with.

    options are those of `method`; "double" computes in float64, "stop" is a step at which
    training ends and is taken up by a new method, "micro_batch" that of `Train`.
    """
    double, stop = options.pop("double", False), options.pop("stop", None)
    parts = {"micro_batch": options.pop("micro_batch", 0)}

    def run(steps: dict) -> tuple[Method, list[dict]]:
        made, data = method(name, **options | steps), Stripes(spoil=_doubled if double else None)
        made = made.double() if double else made
        return made, train(made, Path(folder), data=data, **parts)

    if stop:
        run({"steps": stop})
    made, lines = run({})
    return {"losses": [line["losses"] for line in lines], "state": made.state_dict()}


def train_all_on_rank(rank: int, folder: str, cases: dict[str, tuple[str, dict]]) -> dict:
    """`train_on_rank` of each case in turn: starting processes costs more than training."""
    return {
        case: train_on_rank(rank, f"{folder}/{case}", name, dict(options))
        for case, (name, options) in cases.items()
    }


def _doubled(batch: Batch, step: int) -> Batch:
    for domain in ("source", "target"):
        batch = changed(batch, domain, image=batch[domain].image.double())
    return batch


# A toy extra, and a toy method that draws in every way there is.


@dataclass(frozen=True, kw_only=True)
class QuietConfig(ExtraConfig):
    weight: float = setting(0.1, "ours: a toy", low=0.0)


class Quiet(Extra):
    """A toy: features of all that was seen should be small, as a head of its own sees them."""

    Config = QuietConfig

    def __init__(self, segmentor, config):
        super().__init__(segmentor, config)
        self.head = torch.nn.Conv2d(segmentor.feature_dimension, 1, 1)

    def forward(self, method, batch, seen, step):
        terms = {}
        for name, one in seen.items():
            keep = step.uniform("quiet", one.images.position, one.output.features.shape[-2:]) < 0.5
            values = self.head(one.output.features)[:, 0].square() * keep
            terms[name] = Term(values.sum(), keep.sum(), self.config.weight)
        return terms


def with_quiet(name: str, **options) -> Method:
    made = method(name, **options)
    torch.manual_seed(5)
    made.attach("quiet", Quiet(made.segmentor, QuietConfig()))
    return made


class Dropping(ThreeConvolutions):
    """A foreign network: its random layers draw from torch's global generator."""

    def __init__(self, norm: str):
        super().__init__(norm)
        self.dropout, self.channels = nn.Dropout(0.3), nn.Dropout2d(0.3)

    def forward(self, image):
        return self.dropout(self.channels(super().forward(image)))


class Drawing(Method):
    """A toy: dropout in the network, source pixels pasted into target images."""

    def losses(self, batch, step):
        target = batch.target
        draws = step.uniform("paste", target.position, target.image.shape[-2:])
        pasted = torch.where((draws < 0.3)[:, None], batch.source.image, target.image)
        mixed = type(target)(pasted, target.position)
        source = self.segment(batch.source, "source", step)
        output = self.segment(mixed, "mixed", step)
        terms = {
            "segmentation": Term(*cross_entropy(source.logits, batch.source.label)),
            "mixed": Term(*cross_entropy(output.logits, batch.source.label)),
        }
        return Outputs(terms, {"mixed": Seen(mixed, output)})


def drawing(norm: str = "domain", steps: int = 12) -> Drawing:
    torch.manual_seed(0)
    backbone = Dropping(norm)
    network = Segmentor(backbone, nn.Conv2d(16, CLASSES, 1), CLASSES)
    return Drawing(network, StageConfig(steps=steps, horizon=100, learning_rate=0.01))
