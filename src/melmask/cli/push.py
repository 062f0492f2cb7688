"""`melmask push`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.system.terminal import say


@dataclass(frozen=True, kw_only=True)
class Options:
    """Upload a model to the Hugging Face Hub."""

    model: Path = field(metadata={"positional": "MODEL"})
    """A run, a checkpoint folder, or an MSM-MAE .pth file."""
    name: str = field(metadata={"positional": "hub:OWNER/NAME"})
    """Name of the model on the Hub."""
    license: str = "other"
    """License of the weights, for the model card."""


def run(options: Options) -> int:
    """Upload the model and print its address."""
    from melmask.checkpoint.hub import push
    from melmask.checkpoint.locate import load_any
    from melmask.system.extras import require

    require("hub")
    model, card, _ = load_any(options.model)
    say(push(options.name, model, card, options.license))
    return 0
