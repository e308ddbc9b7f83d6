"""What a method or an extra asks its streams for."""

from collections.abc import Iterable, Mapping

from spcl.data.pairs import PairCrops
from spcl.errors import ConfigError

#: Fields of `spcl.data.batch.Images`, or pairs of crops.
Read = frozenset[str] | PairCrops
#: Stream -> what is read of it.  A name is a domain, "source" or "target", or "<domain>/<purpose>":
#: a further stream of that domain, with its own order and its own draws.
Reads = Mapping[str, Read]


def domain_of(stream: str) -> str:
    """Whose images a stream holds: "source" or "target"."""
    return stream.split("/")[0]


def united(readers: Iterable[Reads]) -> dict[str, Read]:
    """What several readers need together, the domains' own streams first."""
    united: dict[str, Read] = {}
    for reads in readers:
        for stream, what in reads.items():
            known = united.get(stream, what)
            if isinstance(known, frozenset) and isinstance(what, frozenset):
                what = known | what
            elif known != what:
                raise ConfigError(
                    f"a stream must be read in one way, but {stream} as {known} and as {what}; "
                    "give one of the two another name"
                )
            united[stream] = what
    return dict(sorted(united.items(), key=lambda item: ("/" in item[0], item[0])))
