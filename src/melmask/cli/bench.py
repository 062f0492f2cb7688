"""`melmask bench`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.cli.settings import chosen_config
from melmask.recipes import DEFAULT_RECIPE, RECIPES
from melmask.system.terminal import say_lines


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how fast a recipe trains on this machine, and where the time of a step goes."""

    recipe: str = field(default=DEFAULT_RECIPE, metadata={"positional": "RECIPE", "names": RECIPES})
    """Name of the recipe."""
    store: Path | None = None
    """Store to read crops from. By default the crops are random numbers."""
    seconds: float = 20.0
    """Time to measure for, in seconds."""
    json: Path | None = field(default=None, metadata={"metavar": "X.json"})
    """File to write the results to as well."""
    settings: tuple[str, ...] = field(default=(), metadata={"settings": None})
    """change settings of the recipe, such as data.batch_size=64. `melmask settings RECIPE` lists them all."""


def run(options: Options) -> int:
    """Measure the training step and print where its time goes."""
    from melmask.corpus.resolutions import first_resolutions
    from melmask.corpus.store import Store
    from melmask.system.files import write_json
    from melmask.train.bench import run_bench

    config = chosen_config(options.recipe, options.settings)
    store = first_resolutions(Store(options.store), config.model.resolutions) if options.store else None
    report = run_bench(config, store, options.seconds)
    say_lines(report)
    if options.json:
        write_json(options.json, report.as_dict())
    return 0
