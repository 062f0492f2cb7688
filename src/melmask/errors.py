"""Everything melmask raises for a user's input, in one tree.

    MelmaskError
    ├── ConfigError         a configuration value or key that cannot be used
    ├── InputError          a path, table or array that is not what a command needs
    │   └── AudioFileError  a sound file that cannot be read
    ├── StoreError          a prepared store that is missing, damaged or does not fit
    ├── CheckpointError     a model that is missing, damaged or does not fit
    ├── OutputError         a result that cannot be written
    ├── TrainingError       a run that diverged
    └── MissingExtraError   an optional library that a command needs

Each message is one line: what came, what was expected, what to do. The command line prints it and exits
with status 2. `assert` is for melmask's own invariants.
"""

import difflib
from collections.abc import Sequence


class MelmaskError(Exception):
    """Base of all errors a user can cause; the message is one line."""


class ConfigError(MelmaskError):
    """A configuration value or key that cannot be used."""


class InputError(MelmaskError):
    """A path, table or array that is not what was asked for."""


class AudioFileError(InputError):
    """A sound file that cannot be read as sound."""


class StoreError(MelmaskError):
    """A store of log-mels that is missing, damaged, or made with another front end."""


class CheckpointError(MelmaskError):
    """A checkpoint that is missing, damaged, or of an unknown kind."""


class OutputError(MelmaskError):
    """A place that cannot be written to."""


class TrainingError(MelmaskError):
    """The loss is no longer a number."""


class MissingExtraError(MelmaskError):
    """An optional dependency is not installed."""

    def __init__(self, library: str, extra: str):
        super().__init__(f"{library} is not installed, and this needs it: pip install 'melmask[{extra}]'")


def unknown_name(kind: str, name: str, known: Sequence[str]) -> ConfigError:
    """The error for a `name` that is not among `known`: it names the nearest, or all."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f"the nearest is {near[0]!r}" if near else f"known are {', '.join(known)}"
    return ConfigError(f"unknown {kind} {name!r}; {hint}")
