"""Extras: terms on top of any method's.  A new one is a file and a line here.

Its settings stand in its file; `python -m spcl.configuration.table` then writes them into the table
of settings.
"""

from spcl.extras.base import Extra
from spcl.extras.feature_distance import FeatureDistance
from spcl.extras.masked_consistency import MaskedConsistency
from spcl.extras.pipa import PiPa

EXTRAS: dict[str, type[Extra]] = {
    "feature_distance": FeatureDistance,
    "masked_consistency": MaskedConsistency,
    "pipa": PiPa,
}
