"""`melmask settings`, and the configuration that a recipe and settings on a command line stand for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from melmask.config import PretrainConfig
from melmask.config_text import describe
from melmask.recipes import DEFAULT_RECIPE, RECIPES, recipe, with_settings
from melmask.system.terminal import say_lines


@dataclass(frozen=True, kw_only=True)
class Options:
    """List every setting of a recipe with its meaning."""

    recipe: str = field(default=DEFAULT_RECIPE, metadata={"positional": "RECIPE", "names": RECIPES})
    """Name of the recipe."""
    settings: tuple[str, ...] = field(default=(), metadata={"settings": None})
    """change settings before they are listed, such as run.seed=1."""


def run(options: Options) -> int:
    """Print every setting of a recipe."""
    say_lines(describe(chosen_config(options.recipe, options.settings)))
    return 0


def chosen_config(name: str, settings: Sequence[str]) -> PretrainConfig:
    """Return the recipe that the first word names, with the settings applied.

    Raises:
        ConfigError: no recipe or setting has such a name, or a value is refused.
    """
    # RECIPE can be left out. Then argparse takes the first setting for it.
    if "=" in name:
        return with_settings(recipe(DEFAULT_RECIPE), [name.lstrip("-"), *settings])
    return with_settings(recipe(name), settings)
