"""What checks find: a problem, how severe it is, and of which files."""

from typing import NamedTuple

ERROR, SKIP, NOTE = "error", "skip", "note"


class Problem(NamedTuple):
    """Something a check found.

    severity  error: nothing is written; skip: the sample is left out; note: it is only reported
    """

    check: str
    severity: str
    files: tuple[str, ...]
    message: str
