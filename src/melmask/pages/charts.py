"""A run's numbers over its steps as inline SVG: small, without a library, readable without a script."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from melmask.train.health import number_text
from melmask.train.record import Event, Series

MAX_POINTS = 600
_MAX_MARKS = 100
# Points of a curve that are this few are also drawn as dots: a single one would be invisible.
_MAX_DOTS = 40
# Numbers beyond this, and their inverses, are left out: their differences and ratios would overflow.
_HUGE = 1e100
_WIDTH, _HEIGHT = 520, 230
# The plotting area's edges, in the pixels of the viewBox.
LEFT, RIGHT, TOP, BOTTOM = 58, 500, 10, 194


class Look(NamedTuple):
    """How a number is drawn: its name and unit, a sentence on what it means, and its vertical axis."""

    title: str
    unit: str = ""
    note: str = ""
    log: bool = False
    from_zero: bool = False
    percent: bool = False

    def text(self, value: float) -> str:
        """A value as the chart writes it."""
        return f"{100 * value:.1f} %" if self.percent else number_text(value)


class Axis(NamedTuple):
    """Values from `low` to `high`, laid out from pixel `start` to pixel `end`, in proportion or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Pixels of values, any shape."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        share = ((np.log10(values) if self.log else values) - low) / (high - low)
        return self.start + share * (self.end - self.start)


class Curve(NamedTuple):
    """Points to draw. steps, middles, lows, highs: (points,); the lows and highs enclose all rows."""

    steps: np.ndarray
    middles: np.ndarray
    lows: np.ndarray
    highs: np.ndarray


def draw_chart(series: Series, look: Look, steps: tuple[float, float], events: Sequence[Event]) -> str:
    """A figure of HTML: caption with the newest value, the curve with its envelope, axes, marks of the events.

    Args:
        series: what to draw; without values that are not finite or beyond 1e100, or that a logarithmic axis has no
            place for.
        look: its name, unit and axis.
        steps: first and last step of the horizontal axis, the first the smaller.
        events: marked by vertical lines with a tooltip, the newest 100 of them.

    Returns:
        An empty text if there is nothing to draw.
    """
    finite = series.finite()
    kept = (finite.steps >= steps[0]) & (finite.steps <= steps[1]) & (np.abs(finite.values) < _HUGE)
    if look.log:
        kept &= finite.values > 1 / _HUGE
    curve = thin_out(Series(finite.steps[kept], finite.values[kept]))
    if not len(curve.steps):
        return ""
    across = Axis(*steps, LEFT, RIGHT)
    low, high = _value_range(float(curve.lows.min()), float(curve.highs.max()), look)
    up = Axis(low, high, BOTTOM, TOP, look.log)
    newest = look.text(float(finite.values[-1]))
    unit = f' <span class="unit">{escape(look.unit)}</span>' if look.unit else ""
    note = f'<p class="note">{escape(look.note)}</p>' if look.note else ""
    data = f"{across.low:.10g} {across.high:.10g} {up.low:.10g} {up.high:.10g} {int(look.log)} {int(look.percent)}"
    return (
        f'<figure class="chart"><figcaption><b>{escape(look.title)}</b>{unit}<output>{newest}</output></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" data-axes="{data}" '
        f'aria-label="{escape(look.title)}: {newest} at step {finite.steps[-1]:,.0f}">'
        f"{_grid(across, up, look)}{_marks(across, events)}{_curve(across, up, curve)}"
        f'<g class="cursor"><line y1="{TOP}" y2="{BOTTOM}"/><circle r="3.5"/></g></svg>{note}</figure>'
    )


def thin_out(series: Series) -> Curve:
    """At most 600 points: of neighbouring rows the mean, the smallest and the largest; few rows as they are."""
    steps, values = series
    if len(values) <= MAX_POINTS:
        return Curve(steps, values, values, values)
    edges = np.linspace(0, len(values), MAX_POINTS + 1).astype(int)
    starts, counts = edges[:-1], np.diff(edges)
    means = [np.add.reduceat(numbers, starts) / counts for numbers in (steps, values)]
    return Curve(*means, np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts))


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers within low .. high, 1, 2 or 5 times a power of ten apart, at most about `most` of them."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within low .. high; also twice and five times those where they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = 1 if len(powers) <= 7 else math.ceil(len(powers) / 6)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = (factor * 10.0**power for power in powers[::every] for factor in factors)
    return [value for value in found if low * 0.999 <= value <= high * 1.001]


def _value_range(low: float, high: float, look: Look) -> tuple[float, float]:
    """Both ends of the vertical axis, with some room around the values."""
    if look.log:
        room = (high / low) ** 0.05 if high > 4 * low else 2.0
        return low / room, high * room
    if look.from_zero and low >= 0:
        low = 0.0
    # Values that are all the same, but for rounding, get room in proportion to their size.
    smallest = max(1e-9 * abs(high), 1 / _HUGE)
    room = next(room for room in (0.05 * (high - low), 0.1 * abs(high), 1.0) if room > smallest)
    return (low if low == 0 else low - room), high + room


def _tick_text(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.6g}%"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size <= abs(value) < 1e13:
            return f"{value / min(size, 1e3 if letter == 'k' else size):.6g}{letter}"
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e")


def _grid(across: Axis, up: Axis, look: Look) -> str:
    """Horizontal lines with the values, ticks with the steps."""
    values = log_ticks(up.low, up.high) if look.log else ticks(up.low, up.high)
    parts = []
    for value, y in zip(values, up.place(np.array(values)), strict=True):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_tick_text(value, look.percent)}</text>')
    steps = [step for step in ticks(across.low, across.high) if step == int(step)]
    for step, x in zip(steps, across.place(np.array(steps)), strict=True):
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 17}" text-anchor="middle">{_tick_text(step, False)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    parts.append(f'<text x="{RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">step</text>')
    return "".join(parts)


def _marks(across: Axis, events: Sequence[Event]) -> str:
    """A vertical line an event, with a wider invisible one around it for the pointer."""
    within = [event for event in events if across.low <= event.step <= across.high][-_MAX_MARKS:]
    parts = []
    for event, x in zip(within, across.place(np.array([float(event.step) for event in within])), strict=True):
        kind = "trouble" if event.kind in ("spike", "rollback", "skip") else "mark"
        place = f'x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{BOTTOM}"'
        text = f"step {event.step:,}: {event.kind}" + (f" - {event.text}" if event.text else "")
        parts.append(f'<g class="{kind}"><title>{escape(text)}</title><line {place}/><line class="wide" {place}/></g>')
    return "".join(parts)


def _curve(across: Axis, up: Axis, curve: Curve) -> str:
    """The envelope, the line, and dots where points are few."""
    x = across.place(curve.steps)
    points = _points(x, up.place(curve.middles))
    # A run that went back to a snapshot draws its steps again, in a line of its own.
    jumps = np.diff(curve.steps, prepend=curve.steps[0]) < 0
    line = "".join(f"{'M' if i == 0 or jumps[i] else 'L'}{point}" for i, point in enumerate(points))
    parts = [f'<path class="line" d="{line}"/>']
    if curve.lows is not curve.highs:
        outline = [*_points(x, up.place(curve.highs)), *_points(x, up.place(curve.lows))[::-1]]
        parts.insert(0, f'<polygon class="envelope" points="{" ".join(outline)}"/>')
    if len(points) <= _MAX_DOTS:
        for point in points:
            left, top = point.split(",")
            parts.append(f'<circle class="dot" cx="{left}" cy="{top}" r="2.4"/>')
    return "".join(parts)


def _points(x: np.ndarray, y: np.ndarray) -> list[str]:
    return [f"{left:.2f},{top:.2f}" for left, top in zip(x.tolist(), y.tolist(), strict=True)]
