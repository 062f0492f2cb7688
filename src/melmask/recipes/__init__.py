"""Pre-training recipes: each file has a function that returns a full `PretrainConfig`, and says what to expect."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

from melmask.config import PretrainConfig
from melmask.config_text import with_overrides
from melmask.errors import unknown_name

RECIPES = ("demo", "tiny", "tiny_025", "small", "msm_mae_208", "msm_mae_512", "msm_mae_608")
DEFAULT_RECIPE = "tiny"
ONE_RESOLUTION_RECIPE = "tiny_025"
"""What a store of one resolution is for, unless a recipe is named."""


def recipe(name: str) -> PretrainConfig:
    """Return the configuration of a named recipe.

    Raises:
        ConfigError: the name is not in `RECIPES`.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    # The list, not the folder, decides which names are recipes; only the one that is asked for is imported.
    return import_module(f"melmask.recipes.{name}").config()


def with_settings(config: PretrainConfig, settings: Sequence[str]) -> PretrainConfig:
    """Return a copy of a recipe's configuration with `section.name=value` strings applied, and `warmup_steps` known.

    Raises:
        ConfigError: a setting is not known, or its value is refused.
    """
    given = {text.partition("=")[0] for text in settings}
    if "optimizer.warmup_steps" in given and "optimizer.warmup_share" not in given:
        # A recipe has a share; a number of steps that the user gives replaces it.
        settings = ["optimizer.warmup_share=0", *settings]
    changed = with_overrides(config, settings)
    return replace(changed, optimizer=replace(changed.optimizer, warmup_steps=changed.optimizer.warmup))
