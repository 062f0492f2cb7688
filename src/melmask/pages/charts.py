"""Lay out curves, bars and confusion matrices on shared axes; sound.py lays out the charts of sounds.

The functions here compute the texts, and the positions in the pixels of an SVG viewBox. templates/charts.html.j2 draws
them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from melmask.figures.confusion import MAX_NAMED_CLASSES, MAX_NUMBERED_CLASSES
from melmask.pages.images import png_data_uri
from melmask.train.health import number_text
from melmask.train.record import Event, Series

MAX_POINTS = 600
COLORS = 7
"""How many models get a color of their own before the first color repeats; evaluation.css defines the colors."""
# Each chart of a page repeats the marks, so thousands of them would make the page slow.
_MAX_MARKS = 100
# A curve of at most so many points also gets dots, because a line of a single point is invisible.
_MAX_DOTS = 40
# The differences and ratios of larger numbers, and of smaller ones than its inverse, would overflow.
_HUGE = 1e100
# Blue from clear to opaque: the page shows through, so one picture fits the light and the dark page.
_SHADES = np.array([[47, 111, 159, alpha] for alpha in range(256)], np.uint8)


class Frame(NamedTuple):
    """The size of a drawing and the edges of its plotting area."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


CURVE = Frame(520, 230, left=58, right=500, top=10, bottom=194)


class Tick(NamedTuple):
    """A round value on an axis: its pixel, its text, and which part of the text stands at that pixel."""

    at: float
    text: str
    anchor: str = "middle"


class Axis(NamedTuple):
    """Places values from `low` to `high` between the pixels `start` and `end`, linearly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Return the pixels of values, any shape."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        share = ((np.log10(values) if self.log else values) - low) / (high - low)
        # The start may lie below the end in pixels or above it: SVG counts from the top.
        return self.start + share * (self.end - self.start)

    def at(self, value: float) -> float:
        """Return the pixel of one value."""
        return float(self.place(np.array([value]))[0])

    def round_values(self, most: int = 7) -> list[float]:
        """Return about `most` round values to mark."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, most)

    def ticks(self, text: Callable[[float], str], most: int = 7, *, inside: bool = False) -> list[Tick]:
        """Return about `most` round values with their texts; with `inside`, no text sticks out beyond the axis."""
        # A text of a few letters, centered within 14 pixels of an end, would stick out.
        room = 14.0 if inside else -math.inf
        values = self.round_values(most)
        return [
            Tick(at, text(value), "start" if at < self.start + room else "end" if at > self.end - room else "middle")
            for value, at in zip(values, self.place(np.array(values)).tolist(), strict=True)
        ]


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return at most about `most` round numbers within low .. high, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    # The smallest round distance wins that leaves at most `most` ticks; the factors forgive errors of rounding.
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Twelve digits drop the rounding error of the product, as in 0.30000000000000004.
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten within low .. high, and twice and five times those where they are few."""
    # About seven labels fit: of many powers some are left out, and between few powers there is room for more.
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = 1 if len(powers) <= 7 else math.ceil(len(powers) / 6)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = (factor * 10.0**power for power in powers[::every] for factor in factors)
    return [value for value in found if low * 0.999 <= value <= high * 1.001]


class Look(NamedTuple):
    """How the curve of a number is drawn: its name and unit, a note on what it means, and its vertical axis."""

    title: str
    unit: str = ""
    note: str = ""
    log: bool = False
    from_zero: bool = False
    percent: bool = False

    def text(self, value: float) -> str:
        """Return a value as the chart's caption writes it."""
        return f"{100 * value:.1f} %" if self.percent else number_text(value)


class Curve(NamedTuple):
    """Points to draw, each array (points,); a point's low and high are the extremes of the rows that it stands for."""

    steps: np.ndarray
    middles: np.ndarray
    lows: np.ndarray
    highs: np.ndarray


class Mark(NamedTuple):
    """An event on a curve. kind: "trouble" or "mark"."""

    at: float
    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CurveChart:
    """One of a run's numbers over its steps."""

    look: Look
    newest: str
    step: str
    """The step of the newest value."""
    data: str
    """What run.js needs to read values back from pixels: the ends of both axes, then 1 or 0 for log and for percent."""
    across: list[Tick]
    up: list[Tick]
    marks: list[Mark]
    line: str
    envelope: str
    """Empty where every row is a point of its own."""
    dots: list[list[str]]
    frame: Frame = CURVE


def curve_chart(series: Series, look: Look, steps: tuple[float, float], events: Sequence[Event]) -> CurveChart | None:
    """Lay out a number over the steps, with an envelope around its extremes and marks where something happened.

    Args:
        series: what to draw. Values that are not finite or beyond 1e100 are left out, and so are those that a
            logarithmic axis has no place for.
        look: its name, unit and axis.
        steps: first and last step of the horizontal axis; the first must be smaller.
        events: each of the newest 100 becomes a vertical line with a tooltip.

    Returns:
        None if there is nothing to draw.
    """
    finite = series.finite()
    kept = (finite.steps >= steps[0]) & (finite.steps <= steps[1]) & (np.abs(finite.values) < _HUGE)
    if look.log:
        kept &= finite.values > 1 / _HUGE
    curve = thin_out(Series(finite.steps[kept], finite.values[kept]))
    if not len(curve.steps):
        return None
    across = Axis(*steps, CURVE.left, CURVE.right)
    low, high = _value_range(float(curve.lows.min()), float(curve.highs.max()), look)
    up = Axis(low, high, CURVE.bottom, CURVE.top, look.log)
    x = across.place(curve.steps)
    points = _points(x, up.place(curve.middles))
    # A run that went back to a snapshot repeats steps; where the step falls, a second line begins.
    jumps = np.diff(curve.steps, prepend=curve.steps[0]) < 0
    # The outline runs to the right along the highs and back along the lows.
    outline = []
    if curve.lows is not curve.highs:
        outline = [*_points(x, up.place(curve.highs)), *_points(x, up.place(curve.lows))[::-1]]
    # Ten digits are more than a screen can show, and they keep small differences of large numbers.
    ends = " ".join(f"{end:.10g}" for end in (*across[:2], *up[:2]))
    return CurveChart(
        look=look,
        newest=look.text(float(finite.values[-1])),
        step=f"{finite.steps[-1]:,.0f}",
        data=f"{ends} {int(look.log)} {int(look.percent)}",
        across=[Tick(across.at(s), _tick_text(s, False)) for s in across.round_values() if s == int(s)],
        up=up.ticks(lambda value: _tick_text(value, look.percent)),
        marks=list(_marks(across, events)),
        line="".join(f"{'M' if i == 0 or jumps[i] else 'L'}{point}" for i, point in enumerate(points)),
        envelope=" ".join(outline),
        dots=[point.split(",") for point in points] if len(points) <= _MAX_DOTS else [],
    )


def thin_out(series: Series) -> Curve:
    """Reduce a series to 600 points, each the mean, the smallest and the largest of neighboring rows."""
    steps, values = series.steps, series.values
    if len(values) <= MAX_POINTS:
        return Curve(steps, values, values, values)
    # Rows are grouped by number, not by step: the steps of a run that went back are not sorted.
    edges = np.linspace(0, len(values), MAX_POINTS + 1).astype(int)
    starts, counts = edges[:-1], np.diff(edges)
    means = [np.add.reduceat(numbers, starts) / counts for numbers in (steps, values)]
    return Curve(means[0], means[1], np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts))


def _value_range(low: float, high: float, look: Look) -> tuple[float, float]:
    """Return both ends of the vertical axis, with some room around the values."""
    if look.log:
        # 5 % of the height on both sides; values within a factor of four get an axis of at least that factor.
        room = (high / low) ** 0.05 if high > 4 * low else 2.0
        return low / room, high * room
    if look.from_zero and low >= 0:
        low = 0.0
    # Values that differ by rounding alone get room in proportion to their size. Else the axis would show the rounding.
    smallest = max(1e-9 * abs(high), 1 / _HUGE)
    room = next(room for room in (0.05 * (high - low), 0.1 * abs(high), 1.0) if room > smallest)
    return (low if low == 0 else low - room), high + room


def _tick_text(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.6g}%"
    # Thousands are shortened from 10,000 on only, because 2000 is easier to read than 2k.
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if least <= abs(value) < 1e13:
            return f"{value / unit:.6g}{letter}"
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e")


def _marks(across: Axis, events: Sequence[Event]) -> Iterable[Mark]:
    # If there are too many, the newest matter most.
    within = [event for event in events if across.low <= event.step <= across.high]
    for event in within[-_MAX_MARKS:]:
        # These kinds mean that the loss broke down; others, such as a restart, are harmless.
        kind = "trouble" if event.kind in ("spike", "rollback", "skip") else "mark"
        reason = f" - {event.text}" if event.text else ""
        yield Mark(across.at(float(event.step)), kind, f"step {event.step:,}: {event.kind}{reason}")


def _points(x: np.ndarray, y: np.ndarray) -> list[str]:
    return [f"{left:.2f},{top:.2f}" for left, top in zip(x.tolist(), y.tolist(), strict=True)]


class Bar(NamedTuple):
    """A score to draw: its value and the ends of its interval as shares (1 is 100 %), and its text."""

    name: str
    value: float | None
    interval: tuple[float, float] | None
    text: str
    color: int | None
    """The number of the model's color; None draws an outline, as for a published number."""


@dataclass(frozen=True, kw_only=True)
class BarChart:
    """Horizontal bars from zero, from top to bottom; a bar without a value becomes a line of text."""

    bars: Sequence[Bar]
    percent: bool
    """Whether the axis is written in %; it then reaches at least to 100."""
    width: int = 340
    row: int = 36

    @property
    def axis(self) -> Axis:
        """The scale of the values."""
        values = [end for bar in self.bars for end in (bar.value, *(bar.interval or ())) if end is not None]
        # Where every value is zero, the axis still needs a length to divide by.
        return Axis(0.0, max([1.0 if self.percent else 1e-9, *values]), 0, self.width)

    @property
    def ticks(self) -> list[Tick]:
        """Round values below the bars."""
        return self.axis.ticks(
            lambda v: f"{100 * v:.6g}{'%' if v else ''}" if self.percent else f"{v:.6g}", most=4, inside=True
        )


@dataclass(frozen=True, kw_only=True)
class ConfusionChart:
    """A row for each true class, a column for each predicted one; a darker cell has a larger share of its row.

    With up to 20 classes the cells hold numbers, and with up to 60 the classes are named. Beyond that, the matrix is
    one picture.
    """

    counts: Integer[np.ndarray, "classes classes"]
    """Clips of each true class (row) that were taken for each class (column)."""
    labels: Sequence[str]

    @property
    def numbered(self) -> bool:
        """Whether a cell has room for a number."""
        return len(self.labels) <= MAX_NUMBERED_CLASSES

    @property
    def named(self) -> bool:
        """Whether a row has room for the name of its class."""
        return len(self.labels) <= MAX_NAMED_CLASSES

    @property
    def cell(self) -> float:
        """The side of a cell."""
        return 26.0 if self.numbered else 13.0 if self.named else 420 / len(self.labels)

    @property
    def shares(self) -> np.ndarray:
        """The counts as shares of their rows."""
        # A class without a tested clip has an empty row, which must not be divided by zero.
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)

    @property
    def cells(self) -> Iterable[tuple[int, int, int, float]]:
        """Row, column, count and share of the cells that are not empty."""
        shares = self.shares
        for row, column in np.argwhere(self.counts).tolist():
            yield row, column, int(self.counts[row, column]), float(shares[row, column])

    @property
    def picture(self) -> str:
        """All cells as one picture; one rectangle for each would take megabytes where there are many classes."""
        # The floor of 0.12 keeps a single clip of a large class visible.
        seen = np.where(self.counts > 0, np.maximum(self.shares, 0.12), 0)
        return png_data_uri(np.round(255 * seen).astype(np.uint8), _SHADES)


class Difference(NamedTuple):
    """A difference to draw: its value, half of its interval or None, its text, and the number of its color."""

    value: float
    half_width: float | None
    text: str
    color: int


@dataclass(frozen=True, kw_only=True)
class DifferenceChart:
    """Rows of differences around zero, each a dot with a whisker."""

    rows: Sequence[tuple[str, Sequence[Difference]]]
    """A name and its differences, which stand below each other."""
    width: int = 520
    left: int = 130
    step: int = 15
    """Height of a difference; a row has as much again above it."""

    @property
    def axis(self) -> Axis:
        """The scale of the values; zero always lies on it."""
        ends = [0.0]
        for _, differences in self.rows:
            for one in differences:
                half = one.half_width or 0.0
                # An interval of two seeds may be as long as the whole scale; its dot must stay visible.
                ends += [one.value, *(one.value + sign * min(half, 0.5) for sign in (-1, 1))]
        room = max(1e-4, 0.06 * (max(ends) - min(ends)))
        return Axis(min(ends) - room, max(ends) + room, self.left, self.width - 8)

    @property
    def ticks(self) -> list[Tick]:
        """Round differences, in points."""
        return self.axis.ticks(
            lambda value: f"{100 * value:+.6g}".replace("-", "−") if value else "0", most=6, inside=True
        )

    @property
    def places(self) -> list[tuple[str, float, list[tuple[Difference, float]]]]:
        """Each row: its name, the height of the name, and its differences with their heights."""
        found, top = [], 0.0
        for name, differences in self.rows:
            heights = [top + self.step * (number + 1) for number in range(len(differences))]
            found.append((name, (heights[0] + heights[-1]) / 2, list(zip(differences, heights, strict=True))))
            top = heights[-1] + self.step
        return found

    @property
    def bottom(self) -> float:
        """Where the axis lies."""
        return self.places[-1][2][-1][1] + self.step


class Spot(NamedTuple):
    """A point of a scatter chart, with its tooltip and the number of its color."""

    x: float
    y: float
    text: str
    color: int


@dataclass(frozen=True, kw_only=True)
class ScatterChart:
    """Points by two numbers; the vertical one is a share, written in %."""

    spots: Sequence[Spot]
    unit: str
    """What the horizontal axis counts."""
    frame: Frame = CURVE

    @property
    def across(self) -> Axis:
        """The horizontal scale, from zero."""
        return Axis(0.0, 1.08 * max([1e-9, *(spot.x for spot in self.spots)]), self.frame.left, self.frame.right)

    @property
    def up(self) -> Axis:
        """The vertical scale."""
        values = [spot.y for spot in self.spots]
        low, high = _value_range(min(values), max(values), Look("", percent=True))
        return Axis(max(0.0, low), high, self.frame.bottom, self.frame.top)

    @property
    def x_ticks(self) -> list[Tick]:
        """Round values of the horizontal axis."""
        return self.across.ticks(lambda value: _tick_text(value, False))

    @property
    def y_ticks(self) -> list[Tick]:
        """Round values of the vertical axis."""
        return self.up.ticks(lambda value: _tick_text(value, True), most=5)


@dataclass(frozen=True, kw_only=True)
class LinesChart:
    """Several curves of one number over the steps."""

    title: str
    lines: Sequence[tuple[str, str, int]]
    """Name, path and color of each."""
    across: list[Tick]
    up: list[Tick]
    frame: Frame = CURVE


def lines_chart(title: str, series: Sequence[tuple[str, Series]]) -> LinesChart | None:
    """Lay out the curves of several runs, such as their losses; return None if there is nothing to draw."""
    shown = []
    for name, one in series:
        finite = one.finite()
        kept = np.abs(finite.values) < _HUGE
        curve = thin_out(Series(finite.steps[kept], finite.values[kept]))
        if len(curve.steps):
            shown.append((name, curve))
    if not shown:
        return None
    last = max(float(curve.steps.max()) for _, curve in shown)
    across = Axis(0.0, max(1.0, last), CURVE.left, CURVE.right)
    lows, highs = ([float(pick(curve.middles)) for _, curve in shown] for pick in (np.min, np.max))
    up = Axis(*_value_range(min(lows), max(highs), Look(title)), CURVE.bottom, CURVE.top)
    lines = []
    for number, (name, curve) in enumerate(shown):
        points = _points(across.place(curve.steps), up.place(curve.middles))
        lines.append((name, "".join(f"{'L' if i else 'M'}{point}" for i, point in enumerate(points)), number % COLORS))
    return LinesChart(
        title=title,
        lines=lines,
        across=[Tick(across.at(s), _tick_text(s, False)) for s in across.round_values() if s == int(s)],
        up=up.ticks(lambda value: _tick_text(value, False)),
    )
