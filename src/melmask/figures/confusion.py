"""Draw which classes a probe mistakes for which."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from melmask.figures.figure import INK, MUTED, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

# With more classes, names would be too small to read and numbers would not fit into the cells.
MAX_NAMED_CLASSES = 60
MAX_NUMBERED_CLASSES = 20
MAX_NAME_CHARACTERS = 24
MIN_SIDE_INCHES = 2.4
_GRID = "#e8ecf0"


def save_confusion_picture(
    path: Path,
    counts: Int[np.ndarray, "classes classes"],
    class_names: list[str],
    title: str,
) -> None:
    """Draw the confusion matrix; the row of each true class adds up to 100 %.

    With up to 20 classes, every cell that rounds to 1 % or more is numbered. With up to 60, the classes are named.
    Beyond that, only the heat map is drawn.

    Args:
        path: where to write; the suffix gives the format (.png, .svg, .pdf).
        counts: clips of each true class (row) by the class that they were taken for (column).
        class_names: name of each class index.
        title: one line above the picture. The numbers of tested and of right clips stand under it.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written, or matplotlib does not know its suffix.
    """
    count = len(class_names)
    # A class that was never tested has a row of zeros, which must not be divided by zero.
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell_inches = _cell_inches(count)
    # The added inches are for the color bar on the right, the title and the names; the layout divides them.
    side_inches = max(MIN_SIDE_INCHES, cell_inches * count)
    figure = new_figure(side_inches + 2.6, side_inches + 2.2)
    axes = figure.add_subplot()
    # In a matrix of many classes, the lines between cells would hide the cells.
    edge_points = 0.4 if count <= MAX_NAMED_CLASSES else 0.0
    # pcolormesh draws from the bottom; the limits of y turn the first class to the top.
    image = axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors=_GRID, linewidth=edge_points)
    axes.set(aspect="equal", ylim=(count, 0))
    _write_title(axes, title, counts)
    _name_classes(axes, class_names, cell_inches)
    if count <= MAX_NUMBERED_CLASSES:
        _number_cells(axes, shares)
    _draw_bar(figure, image)
    save_figure(figure, path)


def _cell_inches(classes: int) -> float:
    """Return the side of a cell, with room for a number in it, only for a name beside it, or for neither."""
    if classes <= MAX_NUMBERED_CLASSES:
        return 0.42
    return 0.17 if classes <= MAX_NAMED_CLASSES else max(0.02, 10.0 / classes)


def _write_title(axes: "Axes", title: str, counts: Int[np.ndarray, "classes classes"]) -> None:
    """Write the caller's title, and under it what the matrix adds up to."""
    tested, right = int(counts.sum()), int(counts.trace())
    summary = f"{tested:,} tested" + (f", {right:,} right" if tested else "")
    axes.set_title(title, loc="left", pad=24, color=INK, fontsize=12, fontweight="bold", parse_math=False)
    axes.annotate(
        summary, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", color=MUTED, fontsize=9
    )


def _name_classes(axes: "Axes", class_names: list[str], cell_inches: float) -> None:
    """Label both axes, with the name of each class as long as names fit."""
    axes.set_xlabel("predicted", color=MUTED, fontsize=10)
    axes.set_ylabel("true", color=MUTED, fontsize=10)
    for spine in axes.spines.values():
        spine.set_edgecolor(MUTED)
    count = len(class_names)
    axes.tick_params(length=0, colors=INK)
    if count > MAX_NAMED_CLASSES:
        axes.set(xticks=[], yticks=[])
        return
    short = [
        name if len(name) <= MAX_NAME_CHARACTERS else name[: MAX_NAME_CHARACTERS - 1] + "…" for name in class_names
    ]
    # A name is at most 60 % as high as its cell; 72 points are an inch.
    font_points = min(10.0, 72 * cell_inches * 0.6)
    rotation = 90 if max(len(name) for name in short) > 3 else 0
    # Without parse_math=False, a $ in a name would start a formula.
    axes.set_xticks(np.arange(count) + 0.5, short, rotation=rotation, fontsize=font_points, parse_math=False)
    axes.set_yticks(np.arange(count) + 0.5, short, fontsize=font_points, parse_math=False)


def _number_cells(axes: "Axes", shares: np.ndarray) -> None:
    """Write each share that rounds to 1 % or more into its cell, in percent."""
    for row, column in np.argwhere(shares >= 0.005):
        share = shares[row, column]
        # White text on dark cells, dark text on light ones.
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{100 * share:.0f}",
            ha="center",
            va="center",
            fontsize=8.5,
            color="white" if share > 0.55 else INK,
        )


def _draw_bar(figure: "Figure", image: "QuadMesh") -> None:
    """Draw the key to the colors."""
    bar = figure.colorbar(image, shrink=0.5, aspect=18, pad=0.02, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "25", "50", "75", "100%"], fontsize=8, color=INK)
    bar.ax.tick_params(length=0)
    bar.set_label("of the true class", color=MUTED, fontsize=9)
    bar.outline.set_visible(False)
