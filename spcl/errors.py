"""The mistakes a user can mend.  Commands print them as one line and exit with 2.

UserError            what must hold, what was found, what to do next
├── ConfigError      an unknown key, a value out of range, stages that do not fit
├── DataError        missing, damaged or foreign data
└── StorageError     the system refuses to write: a full disk, a quota, a limit, a permission
"""


class UserError(Exception):
    """A mistake in what the user gave; its message is all they need to see."""


class ConfigError(UserError):
    """The configuration cannot be used as written."""


class DataError(UserError):
    """The data on disk cannot be used as it is."""


class StorageError(UserError, OSError):
    """Nothing more can be written.  No other attempt mends it, so nobody makes one.

    It is an OSError, too: who can do without a file that is not written goes on.
    """


def reason(error: BaseException) -> str:
    """What went wrong, in one line; a mistake of ours or the system's by its kind, too."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"
