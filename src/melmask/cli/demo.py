"""`melmask demo`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.system.terminal import say_lines


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run the whole job in minutes, on sounds that it synthesizes."""

    out: Path = Path("melmask-demo")
    """Folder for everything that the demo writes."""
    settings: tuple[str, ...] = field(default=(), metadata={"settings": None})
    """change settings of the recipe demo, such as optimizer.steps=1200. `melmask settings demo` lists them all."""


def run(options: Options) -> int:
    """Run the demo and print what it found."""
    from melmask.demo import run_demo

    say_lines(run_demo(options.out, options.settings))
    return 0
