"""The methods: one file each, none imports another.  A new one is a file and a line here.

Its settings stand in its file; `python -m spcl.configuration.table` then writes them into the table
of settings.
"""

from spcl.methods.adversarial import Adversarial
from spcl.methods.asanet import ASANet
from spcl.methods.asanet_asc import ASANetASC
from spcl.methods.base import Method
from spcl.methods.daformer import DAFormer
from spcl.methods.sdca import SDCA
from spcl.methods.self_training import SelfTraining
from spcl.methods.source_only import SourceOnly
from spcl.methods.spcl import SPCL

METHODS: dict[str, type[Method]] = {
    "source_only": SourceOnly,
    "adversarial": Adversarial,
    "spcl": SPCL,
    "sdca": SDCA,
    "asanet_asc": ASANetASC,
    "asanet": ASANet,
    "self_training": SelfTraining,
    "daformer": DAFormer,
}
