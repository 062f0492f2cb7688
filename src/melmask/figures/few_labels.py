"""A picture of how accuracy grows with the number of labeled clips per class."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from melmask.figures.figure import INK, MUTED, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from melmask.downstream.records import CurvePoint, CurveScore, TaskCurves

RULE = "#e3e7eb"
# The model comes last and should be seen first, so the last color is the strongest.
COLORS = ("#7b8794", "#c2761b", "#1f6aa5")
_PANEL_INCHES, _HEIGHT_INCHES = 5.0, 4.2
# The least distance of two words beside the axes and of two ticks, as shares of the axes' height and width.
_LABEL_GAP, _TICK_GAP = 0.058, 0.07


class _Curve(NamedTuple):
    """Accuracies, shares between 0 and 1, and the ends of their intervals, NaN where there is none."""

    name: str
    means: Float[np.ndarray, " points"]
    lows: Float[np.ndarray, " points"]
    highs: Float[np.ndarray, " points"]


def save_few_labels_picture(path: Path, name: str, task: "TaskCurves") -> None:
    """Draw a panel of curves for each classifier, over a logarithmic axis of labeled clips per class.

    A number of labels lies at its true mean over the classes; "≤" marks a number that some classes have fewer clips
    than. Each curve has its name and last value beside it, and a band where it has an interval. A dashed line is
    chance. Where ticks would overlap, the right one is kept.

    Args:
        path: Where to write; the suffix gives the format (.png, .svg, .pdf).
        name: The title above the panels.
        task: The curves of a task. The last representation gets the strongest color.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written, or matplotlib does not know its suffix.
    """
    points, chance = task.points, task.chance
    positions = np.array([point.mean_per_class for point in points])
    panels = _panels(task.scores, max(point.neighbors for point in points))
    figure = new_figure(_PANEL_INCHES * len(panels), _HEIGHT_INCHES)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    ends = [chance, *(end for curves in panels.values() for curve in curves for end in (*curve.means, *curve.highs))]
    # The axis ends at a multiple of 10 % with a little room above the curves, and just above 100 % at most.
    top = min(1.02, 0.1 * math.ceil(10 * float(np.nanmax(ends)) + 0.3))
    for panel, (title, curves) in zip(axes, panels.items(), strict=True):
        panel.set(xscale="log", ylim=(0, top), xlim=_limits(positions))
        _write_axes(panel, title, positions, [_tick(point) for point in points])
        panel.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for curve, color in zip(curves, _colors(len(curves)), strict=True):
            _draw_curve(panel, positions, curve, color)
        _name_lines(panel, curves, chance, top)
    axes[0].set_ylabel("accuracy on test clips", color=MUTED, fontsize=10)
    figure.suptitle(name, x=0.008, ha="left", color=INK, fontsize=13, fontweight="bold", parse_math=False)
    draws = max(point.draws for point in points)
    bands = f"bands: 95 % t-interval of the mean over {draws} draws" if draws > 1 else "one draw, so no bands"
    figure.supxlabel(f"labeled clips per class      ({bands})", color=MUTED, fontsize=10)
    save_figure(figure, path)


def _panels(scores: Mapping[str, Mapping[str, Sequence["CurveScore"]]], neighbors: int) -> dict[str, list[_Curve]]:
    """Return the curves of each panel, by the title of its classifier."""
    titles = {"linear": "linear probe", "k-NN": f"k-NN, k = labels per class, at most {neighbors}"}
    panels: dict[str, list[_Curve]] = {}
    for representation, of_classifiers in scores.items():
        for classifier, points in of_classifiers.items():
            lows, highs = np.array([score.interval_95 or (math.nan, math.nan) for score in points]).T
            curve = _Curve(representation, np.array([score.accuracy for score in points]), lows, highs)
            panels.setdefault(titles[classifier], []).append(curve)
    return panels


def _tick(point: "CurvePoint") -> str:
    if isinstance(point.per_class, str):
        return f"{point.per_class}\n({point.mean_per_class:.3g})"
    return f"{'≤' * bool(point.classes_with_fewer)}{point.per_class}"


def _colors(curves: int) -> list[str]:
    """Return the last colors, so that the last curve has the strongest."""
    return [COLORS[index % len(COLORS)] for index in range(-curves, 0)]


def _limits(positions: np.ndarray) -> tuple[float, float]:
    """Return the ends of the axis: a little room on both sides, or a factor of 3 around a single point."""
    low, high = float(positions[0]), float(positions[-1])
    room = (high / low) ** 0.04 if high > low else 3.0
    return low / room, high * room


def _write_axes(axes: "Axes", name: str, positions: np.ndarray, ticks: Sequence[str]) -> None:
    """Write the name of a panel, percents from bottom to top, and the ticks that have room."""
    axes.set_title(name, loc="left", color=INK, fontsize=10.5)
    low, high = np.log(_limits(positions))
    places = (np.log(positions) - low) / (high - low)
    shown: list[int] = []
    for index in reversed(range(len(ticks))):
        if not shown or places[shown[-1]] - places[index] >= _TICK_GAP:
            shown.append(index)
    axes.set_xticks(positions[shown], [ticks[index] for index in shown])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}{' %' if share else ''}")
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=9, labelleft=True)
    axes.tick_params(axis="x", length=3, color=MUTED)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def _draw_curve(axes: "Axes", positions: np.ndarray, curve: _Curve, color: str) -> None:
    banded = np.isfinite(curve.lows)
    axes.fill_between(
        positions[banded], curve.lows[banded], curve.highs[banded], color=color, alpha=0.2, linewidth=0, zorder=2
    )
    axes.plot(positions, curve.means, color=color, linewidth=1.8, marker="o", markersize=4.5, zorder=3)


def _name_lines(axes: "Axes", curves: Sequence[_Curve], chance: float, top: float) -> None:
    """Write the names beside the right ends, moved apart where they would touch."""
    colored = zip(curves, _colors(len(curves)), strict=True)
    ends = sorted(
        [(chance, "chance", MUTED), *((float(curve.means[-1]), curve.name, color) for curve, color in colored)]
    )
    # Names above the axes would run into the panel's title.
    highest = [1 - _LABEL_GAP * index for index in reversed(range(len(ends)))]
    heights = spread([min(end[0] / top, most) for end, most in zip(ends, highest, strict=True)], _LABEL_GAP)
    for height, (value, name, color) in zip(heights, ends, strict=True):
        axes.annotate(
            f"{name}  {100 * value:.0f} %",
            (1, height),
            (6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
            parse_math=False,
        )


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Move ascending values so that neighbors are `gap` apart, with the least sum of squared moves.

    With `gap * index` taken off, the values only have to ascend, so this is isotonic regression. Its solution merges
    neighbors that are out of order into blocks, which get their mean (pool adjacent violators).
    """
    blocks: list[list[float]] = []
    for index, value in enumerate(values):
        blocks.append([value - gap * index])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    means = [float(np.mean(block)) for block in blocks for _ in block]
    return [mean + gap * index for index, mean in enumerate(means)]
