"""Make and save figures, and hold the colors that all figures share."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from melmask.errors import MissingExtraError, OutputError
from melmask.system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 200
INK, MUTED = "#1f2933", "#66727f"


def new_figure(width_inches: float, height_inches: float) -> "Figure":
    """Make an empty figure that lays itself out, without a window and without global state.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format its suffix names (.png, .svg, .pdf), whole or not at all.

    Raises:
        OutputError: the file cannot be written, or matplotlib does not know its suffix.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise OutputError(f"{path}: not a kind of picture; use .png, .svg or .pdf")
    with warnings.catch_warnings(), atomic_write(path) as file:
        # Letters that matplotlib's own font lacks become boxes; a warning for each would bury other messages.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(file, format=kind, dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.1, facecolor="white")
