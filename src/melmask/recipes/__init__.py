"""Pre-training recipes: each file holds one function that returns a full `PretrainConfig`, and says what to expect."""

import difflib
from importlib import import_module

from melmask.config import PretrainConfig
from melmask.errors import ConfigError

RECIPES = ("demo", "tiny")


def recipe(name: str) -> PretrainConfig:
    """The configuration of a named recipe.

    Raises:
        ConfigError: for a name that is not in `RECIPES`.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 1)
        hint = f"the nearest is {near[0]!r}" if near else f"known are {', '.join(RECIPES)}"
        raise ConfigError(f"unknown recipe {name!r}; {hint}")
    return import_module(f"melmask.recipes.{name}").config()
