"""Every error that a user's input can cause, in one tree.

    MelmaskError
    ├── ConfigError         a configuration value or key that cannot be used
    ├── InputError          a path, table or array that is not what a command needs
    │   └── AudioFileError  a sound file that cannot be read
    ├── StoreError          a prepared store that is missing, damaged or does not fit
    ├── CheckpointError     a model that is missing, damaged or does not fit
    ├── OutputError         a result that cannot be written
    ├── TrainingError       a run that diverged or lost a process
    ├── NotFiniteError      a result that is NaN or infinite
    └── MissingExtraError   an optional library that is needed and not installed

Each message is one line: the value, what was expected, what to do. The command line prints it and exits with status 2.
`assert` checks melmask's own invariants.
"""

import difflib
from collections.abc import Sequence

_LONGEST = 1500


class MelmaskError(Exception):
    """The base of all errors that a user can cause; the message is one line.

    A file can hold a name of a million letters. Of a message that is too long, the beginning and the end are kept.
    """

    def __init__(self, message: str):
        long = len(message) > _LONGEST
        super().__init__(f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}" if long else message)


class ConfigError(MelmaskError):
    """A configuration value or key that cannot be used."""


class InputError(MelmaskError):
    """A path, table or array that is not what a command needs."""


class AudioFileError(InputError):
    """A sound file that cannot be read as sound."""


class StoreError(MelmaskError):
    """A store of log-mels that is missing, damaged, or made with another front end."""


class CheckpointError(MelmaskError):
    """A checkpoint that is missing, damaged, or of an unknown kind."""


class OutputError(MelmaskError):
    """A place that cannot be written to."""


class TrainingError(MelmaskError):
    """A run that cannot continue: its loss diverged, or one of its processes was lost."""


class NotFiniteError(MelmaskError):
    """A vector, a probability or a score that is NaN or infinite."""


class MissingExtraError(MelmaskError):
    """An optional dependency is not installed."""

    def __init__(self, library: str, extra: str):
        super().__init__(f"this needs {library}, which is not installed; run pip install 'melmask[{extra}]'")


def some_of(names: Sequence[str]) -> str:
    """Return the first four names, each cut to 80 characters, and how many more there are."""
    listed = ", ".join(name if len(name) <= 80 else f"{name[:77]}..." for name in names[:4])
    return listed + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def unknown_name(kind: str, name: str, known: Sequence[str]) -> ConfigError:
    """Return the error for a `name` that is not among `known`; it names the nearest one, or all."""
    # difflib returns nothing if no name is similar.
    near = difflib.get_close_matches(name, known, 1)
    hint = f"the nearest is {near[0]!r}" if near else f"known are {', '.join(known)}"
    return ConfigError(f"unknown {kind} {name!r}; {hint}")
