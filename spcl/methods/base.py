"""The contract between the trainer and a method, and the settings every stage shares.

A method is one `nn.Module` in one DDP wrapper: one forward, one backward for all players.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from spcl.data.batch import Batch, Images
from spcl.data.reads import Reads
from spcl.methods import optimization
from spcl.methods.passes import Pass
from spcl.methods.stage import StageConfig
from spcl.models.segmentor import Output, Segmentor
from spcl.randomness import Step


class Term(NamedTuple):
    """One named loss on this rank: the trainer turns it into weight * global sum / global count."""

    sum: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody asks a term for
    weight: float = 1.0


class Seen(NamedTuple):
    """Images as the student, or its teacher, has seen them in this step, to build on."""

    images: Images
    output: Output
    label: Tensor | None = None  # (B, H, W), what it was trained with: truth or pseudo label
    weights: Tensor | None = None  # (B, H, W), how much each label is trusted, if not alike


class Outputs(NamedTuple):
    """What a method's `losses` give.

    seen      "source", "target", "mixed": what an extra may add terms to without a second forward;
              "taught": the target as the method's teacher sees it, with its labels, no gradient
    activity  numbers that are no losses, each a sum over a count: what share of pixels is pasted
    """

    terms: dict[str, Term]
    seen: dict[str, Seen]
    activity: Mapping[str, Term] = MappingProxyType({})


#: What is before the name of an activity among the terms: see `Method.forward`.
ACTIVITY = "activity/"


class Method(nn.Module):
    """What differs between methods.  Sub-classes set the class attributes and write `losses`."""

    Config: ClassVar[type[StageConfig]] = StageConfig
    #: What the network is called in a table after this stage.
    title: ClassVar[str] = ""
    #: Stream -> what is read of it; where the settings decide, `reads_of` says it instead.
    reads: ClassVar[Reads] = {
        "source": frozenset({"image", "label"}),
        "target": frozenset({"image"}),
    }
    #: What is learnt over a whole domain before the stage's first step.
    passes: ClassVar[tuple[type[Pass], ...]] = ()
    #: Sections of the configuration that the stage reads besides the method's own.
    sections: ClassVar[tuple[str, ...]] = ()
    #: Whether it starts from a trained network, and so can't be a recipe's first stage.
    starts_trained: ClassVar[bool] = False
    #: The network that is evaluated and handed on, by its name in the method: a teacher, perhaps.
    scored: str = "segmentor"
    #: Whether its source could not be read, so that it is built from our specification: its rows on
    #: boards are marked (spec).
    spec: ClassVar[bool] = False
    #: Whether its `losses` see "taught": what some extras build on.
    teaches: ClassVar[bool] = False
    #: Activity -> the setting of its section to look at where it is 0 for a whole stage.
    hints: ClassVar[Mapping[str, str]] = MappingProxyType({})
    #: Raised when the same settings would give other results than before; enters the stage's key.
    version: ClassVar[int] = 1
    #: What `segment` calls, if not the student: see `running_by`.
    _run: Callable[[Tensor, str, Tensor], Output] | None = None

    def __init__(self, segmentor: Segmentor, config: StageConfig):
        """A further network comes from `segmentor.new`, a copy of this one from deepcopy."""
        super().__init__()
        self.segmentor = segmentor
        self.config = config
        self._extras: list[str] = []

    @classmethod
    def reads_of(cls, config: StageConfig) -> Reads:
        """What its streams are asked for under these settings."""
        return cls.reads

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Take over the results of the method's `StatePass`es."""
        raise NotImplementedError

    def losses(self, batch: Batch, step: Step) -> Outputs:
        """The terms of one step, from this rank's share of the batch.

        What is random in it is drawn from `step`, and the network is run by `segment`: the same
        bits then come out on one rank or many, resumed or not.
        """
        raise NotImplementedError

    @final
    def attach(self, name: str, extra: nn.Module) -> None:
        """Put an extra on the method; its state is part of the method's, as <name>.* there."""
        self.add_module(name, extra)
        self._extras.append(name)

    @final
    def extras(self) -> dict[str, Any]:
        """Those that were attached, by name."""
        # Each is an `Extra`, whose module imports this one.  No ModuleDict: even an empty one would
        # be a line in the state that is stored.
        return {name: self.get_submodule(name) for name in self._extras}

    @final  # type: ignore[misc]  # to mypy, nn.Module's forward is an attribute
    def forward(self, batch: Batch, step: Step) -> dict[str, Term]:
        """The method's terms and its extras', in one graph: DDP needs a single forward.

        Activities are among them, as terms of no weight: they then travel with the counts.
        """
        outputs = self.losses(batch, step)
        terms = dict(outputs.terms)
        for name, one in outputs.activity.items():
            terms[ACTIVITY + name] = one._replace(weight=0.0)
        for name, extra in self.extras().items():
            for term, value in extra(self, batch, outputs.seen, step).items():
                active = term.startswith(ACTIVITY)
                one = value._replace(weight=0.0) if active else value
                terms[f"{ACTIVITY * active}{name}/{term.removeprefix(ACTIVITY)}"] = one
        return terms

    def segment(self, images: Images, domain: str, step: Step, *, draws: str = "") -> Output:
        """The student's output for images.

        domain  whose normalisation they get: "source", "target", "mixed" (`model.mixed_norm`) or
                "styled", which moves no statistics
        draws   what random layers draw by, if not the domain: a second view needs another name
        """
        keys = step.keys(draws or domain, images.position)
        run = self._run or self.segmentor
        return run(images.image, domain, keys)

    @contextlib.contextmanager
    def running_by(self, run: Callable[[Tensor, str, Tensor], Output]) -> Iterator[None]:
        """Within, `segment` calls `run` in place of the student: see `gradients.InParts`."""
        self._run = run
        try:
            yield
        finally:
            self._run = None

    def train(self, mode: bool = True) -> "Method":
        """All in train mode but sub-modules that are frozen and in eval mode: they stay so.

        A teacher's or a reference network's statistics would move otherwise, with collectives.
        """
        kept = [m for m in self.modules() if mode and not m.training and is_frozen(m)]
        super().train(mode)
        for module in kept:
            module.eval()
        return self

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The segmentor's; a method with other players adds theirs."""
        return [optimization.build(self.segmentor, self.config)]

    @final
    def all_optimizers(self) -> list[torch.optim.Optimizer]:
        """The method's and its extras', in the order of a checkpoint."""
        more = (extra.optimizers(self.config) for extra in self.extras().values())
        return [*self.optimizers(), *itertools.chain.from_iterable(more)]

    def after_step(self, step: Step) -> None:
        """Called after the optimizers' step: teachers and the like."""


def is_frozen(module: nn.Module) -> bool:
    """Whether it has parameters and trains none of them."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)
