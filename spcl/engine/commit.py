"""Which commit ran.  Needs no torch and no ray.

In a checkout git says so.  A Ray job runs in a copy without `.git`, so the submitting shell puts
what git says there into $SPCL_COMMIT.
"""

import os
import re
import subprocess
from functools import cache
from typing import NamedTuple

from spcl.cli import REPOSITORY

VARIABLE = "SPCL_COMMIT"
DESCRIBE = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
SUBMITTED = f'env {VARIABLE}=$({" ".join(DESCRIBE[:-1])} --exclude="*") python'
FORM = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})(-dirty)?")
PATIENCE = 5.0  # seconds that git may take


class Commit(NamedTuple):
    """What git says about the code; None: unknown."""

    hash: str | None
    dirty: bool | None  # were tracked files other than committed?

    def __str__(self) -> str:
        """As $SPCL_COMMIT has it."""
        return f"{self.hash or ''}{'-dirty' if self.dirty else ''}"


@cache
def commit() -> Commit:
    """The commit of the checkout that spcl is run from, else $SPCL_COMMIT, else unknown."""
    if not (REPOSITORY / ".git").exists():  # not one around an installed package
        return parse(os.environ.get(VARIABLE, ""))
    try:
        command = [DESCRIBE[0], "-C", str(REPOSITORY), *DESCRIBE[1:]]
        found = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return parse("")
    return parse(found.stdout)


def parse(text: str) -> Commit:
    """ "<hash>-dirty" -> (hash, True)"""
    found = FORM.fullmatch(text.strip())
    return Commit(found[1], found[2] is not None) if found else Commit(None, None)


def note_unknown(command: str) -> str | None:
    """A line for a job that does not know its commit; None where it is known."""
    if commit().hash:
        return None
    return (
        f"note: the commit is unknown here, and so it will be in the manifest; submit with: "
        f"ray job submit --working-dir . -- {SUBMITTED} {command} ..."
    )
