"""Checks that the dataclasses of settings make when they are built, and what their fields say of themselves."""

import math
from typing import get_args

from melmask.errors import ConfigError

# Bounds far beyond anything that has been trained, here and in the sections. A file that lies, or a slip of the
# keyboard, is refused by its setting's name; otherwise the process would fill the memory, or compute for days.
WIDEST = 1 << 14
MOST_MELS = 1024
MOST_FRAMES = 1 << 20
MOST_STEPS = 10**12
LARGEST_BATCH = 2**24

LEFT_OUT_AT_DEFAULT = {"left_out_at_default": True}
"""Metadata of a field that files do not hold where it has its default, so that they stay what version 0.1.0 wrote."""


def check(condition: bool, message: str) -> None:
    """Raise ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_range(config: object, key: str, least: int, most: int | None = None) -> None:
    """Check that the number `section.name` is from `least` to `most`; NaN is in no range."""
    value = getattr(config, key.partition(".")[2])
    limits = f"{least} to {most}" if most is not None else f"at least {least}" if least else "0 or more"
    check(least <= value <= (math.inf if most is None else most), f"{key} is {value}; give {limits}")


def check_choice(config: object, key: str) -> None:
    """Check that `section.name` is one of the words that its annotation lists."""
    name = key.partition(".")[2]
    # Compared as text: True equals 1, but is not the same word.
    value, words = getattr(config, name), [repr(word) for word in get_args(type(config).__annotations__[name])]
    check(repr(value) in words, f"{key} is {value!r}; give {', '.join(words[:-1])} or {words[-1]}")
