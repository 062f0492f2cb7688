"""Pre-training recipes: each file has a function that returns a full `PretrainConfig`, and says what to expect."""

from importlib import import_module

from melmask.config import PretrainConfig
from melmask.errors import unknown_name

RECIPES = ("demo", "tiny", "tiny_two_resolutions", "small", "msm_mae_208", "msm_mae_512", "msm_mae_608")
DEFAULT_RECIPE = "tiny"


def recipe(name: str) -> PretrainConfig:
    """Return the configuration of a named recipe.

    Raises:
        ConfigError: the name is not in `RECIPES`.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    # The list, not the folder, decides which names are recipes; only the one that is asked for is imported.
    return import_module(f"melmask.recipes.{name}").config()
