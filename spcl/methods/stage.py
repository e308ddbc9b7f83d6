"""The settings that every training stage has: the optimisation, what its images undergo."""

from dataclasses import dataclass

from spcl.settings import setting

OPTIMIZERS = ("sgd", "adamw")  # of `optimizer`, see `spcl.methods.optimization`


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """The optimisation of one training stage.  Defaults: SPCL's authors' code, adaptation stage."""

    steps: int = setting(40_000, "authors' code: stop at 40000", low=0)
    horizon: int = setting(62_500, "authors' code: poly schedule's end, apart from the stop", low=1)
    learning_rate: float = setting(2.5e-4, "authors' code: backbone", low=0.0)
    head_multiplier: float = setting(10.0, "authors' code: classifier at 10x", low=0.0)
    momentum: float = setting(0.9, "authors' code", low=0.0, below=1.0)
    weight_decay: float = setting(5e-4, "authors' code", low=0.0)
    poly_power: float = setting(0.9, "authors' code; 1 is a linear decay", low=0.0)
    optimizer: str = setting("sgd", "authors' code; adamw is DAFormer's", choices=OPTIMIZERS)
    warm_up_steps: int = setting(0, "authors' code: none; 1500 in DAFormer's, linear", low=0)
    norm_decay: bool = setting(
        True, "authors' code; false is DAFormer's: no weight decay of scales and shifts"
    )
    layer_decay: float = setting(
        1.0,
        "authors' code: one rate; 0.9 in VFM-UDA++: times the rate of the layer behind it, where "
        "the network says its layers",
        low=0.0,
        high=1.0,
    )
    batch: int | None = setting(None, "ours: train.batch unless a stage says otherwise", low=1)
    scale: tuple[float, float] = setting(
        (1.0, 1.0), "paper: no random scale here; times the size that is cropped", low=0.1
    )
    augment: str = setting(
        "both",
        "paper: jitter and flip on both domains; source is the authors' code: no flip, and the "
        "colours of the source alone",
        choices=("both", "source", "none"),
    )
    start: str = setting(
        "trained",
        "paper: from the stage before; pretrained, from model.weights as the first stage, is "
        "SDCA's code",
        choices=("trained", "pretrained"),
    )
    extras: tuple[str, ...] = setting(
        (), "ours: further terms on top of the method's, of spcl/extras"
    )

    @property
    def by_rank(self) -> tuple[str, ...]:
        """Settings, none of them at its default, by which the result depends on the number of
        workers (state or losses that are not synchronised); it then enters the stage's key.
        """
        return ()
