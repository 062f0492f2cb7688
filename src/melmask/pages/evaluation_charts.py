"""What the page of an evaluation draws, as inline SVG: bars of scores, confusion matrices, piano rolls of events."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from melmask.figures.confusion import MAX_NAMED_CLASSES, MAX_NUMBERED_CLASSES
from melmask.pages.charts import ticks
from melmask.pages.sound import Picture, png_data_uri

COLOURS = 7
"""How many models get a colour of their own, before the first comes again."""
HATCH = (
    '<svg class="hidden" aria-hidden="true"><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect width="2" height="5" fill="#d55e00"/></pattern></svg>'
)
"""What predicted events are filled with; a page of piano rolls holds it once."""
_CHARACTER_PX = 6.7
"""Width of a letter of 12 px text, on the generous side."""
_MAX_NAME = 16
_BAR_WIDTH, _BAR_ROW = 340, 36
_ROLL_LEFT, _ROLL_RIGHT, _SOUND_HEIGHT, _LANE = 120, 830, 110, 9
_ROLL_WIDTH = _ROLL_RIGHT + 30
# Blue from clear to full: what lies behind the picture makes it fit a light and a dark page.
_SHADES = np.array([[47, 111, 159, alpha] for alpha in range(256)], np.uint8)


class Bar(NamedTuple):
    """A score to draw: `value` and the ends of its interval as a share of the axis' unit, `text` as it is written."""

    name: str
    value: float | None
    interval: tuple[float, float] | None
    text: str
    colour: int | None
    """Index of a colour; None draws an outline, as for a published number."""


class Lane(NamedTuple):
    """The (start, end) in s of one label's events, as they are and as they were predicted."""

    label: str
    reference: Sequence[tuple[float, float]]
    predicted: Sequence[tuple[float, float]]


def shortened(name: str, most: int) -> str:
    """At most `most` characters of a name."""
    return name if len(name) <= most else name[: most - 1] + "…"


def draw_bars(title: str, bars: Sequence[Bar], percent: bool) -> str:
    """Horizontal bars from zero with their intervals, the name and value of each above it.

    Args:
        title: what is drawn, for those who hear the page.
        bars: from top to bottom; one without a value is a line of text.
        percent: the axis is written in %, and reaches to 100 at least.
    """
    values = [end for bar in bars for end in (bar.value, *(bar.interval or ())) if end is not None]
    most = max([1.0 if percent else 1e-9, *values])
    bottom = _BAR_ROW * len(bars) + 4
    parts = []
    for tick in ticks(0.0, float(most), 4):
        x = _BAR_WIDTH * tick / most
        anchor = "start" if x < 12 else "end" if x > _BAR_WIDTH - 12 else "middle"
        text = f"{100 * tick:.6g}{'%' if tick else ''}" if percent else f"{tick:.6g}"
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="{anchor}">{text}</text>')
    parts.extend(_bar(bar, _BAR_ROW * i, most) for i, bar in enumerate(bars))
    spoken = "; ".join(f"{bar.name}: {bar.text}" for bar in bars)
    return (
        f'<svg class="bars" viewBox="0 0 {_BAR_WIDTH} {bottom + 20}" role="img" '
        f'aria-label="{escape(f"{title}. {spoken}")}">{"".join(parts)}</svg>'
    )


def _bar(bar: Bar, top: int, most: float) -> str:
    kind = "published" if bar.colour is None else f"c{bar.colour % COLOURS}"
    name = escape(shortened(bar.name, int((_BAR_WIDTH - 12) / _CHARACTER_PX) - len(bar.text)))
    parts = [
        f'<g class="bar-row {kind}"><title>{escape(f"{bar.name}: {bar.text}")}</title>',
        f'<text class="name" x="0" y="{top + 15}">{name}</text>',
        f'<text class="value" x="{_BAR_WIDTH}" y="{top + 15}" text-anchor="end">{escape(bar.text)}</text>',
    ]
    scale = _BAR_WIDTH / most
    if bar.value is not None:
        width, edge = max(0.0, bar.value * scale), 0.5 if bar.colour is None else 0.0
        parts.append(
            f'<rect x="{edge}" y="{top + 20 + edge}" width="{max(0.0, width - 2 * edge):.1f}" '
            f'height="{11 - 2 * edge}"/>'
        )
    if bar.interval is not None:
        low, high = (min(max(end * scale, 0.0), _BAR_WIDTH) for end in bar.interval)
        y = top + 25.5
        parts.append(f'<path class="whisker" d="M{low:.1f},{y - 4}v8M{high:.1f},{y - 4}v8M{low:.1f},{y}H{high:.1f}"/>')
    return "".join(parts) + "</g>"


def draw_confusion(counts: Integer[np.ndarray, "classes classes"], labels: Sequence[str], title: str) -> str:
    """The confusion matrix: a row a true class, a column a predicted one, the darker the larger the share of the row.

    Up to 20 classes the cells hold numbers, up to 60 the classes are named; beyond, it is one picture.

    Args:
        counts: clips of each true class (row) that were taken for each class (column).
        labels: the classes' names.
        title: what is drawn, for those who hear the page.
    """
    classes = len(labels)
    cell = 26.0 if classes <= MAX_NUMBERED_CLASSES else 13.0 if classes <= MAX_NAMED_CLASSES else 420 / classes
    named = classes <= MAX_NAMED_CLASSES
    names = [shortened(label, _MAX_NAME) for label in labels] if named else []
    longest = max((len(name) for name in names), default=0)
    small = cell < 20
    room = longest * _CHARACTER_PX * (0.8 if small else 1) + 8 if named else 4.0
    upright = longest > 3 or small
    left, top = room + 16, (room if upright else 18.0) + 16
    side = cell * classes
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    draw = _cells if named else _cells_as_picture
    parts = [
        f'<text x="{left + side / 2:.1f}" y="10" text-anchor="middle">predicted</text>',
        f'<text transform="translate(10 {top + side / 2:.1f}) rotate(-90)" text-anchor="middle">true</text>',
        draw(counts, shares, labels, cell, left, top),
        f'<rect class="frame" x="{left:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}"/>',
    ]
    for i, name in enumerate(names):
        at, word = (i + 0.5) * cell, escape(name)
        turn = "rotate(-90)" if upright else ""
        shift, anchor = ("4 -5", "start") if upright else ("0 -6", "middle")
        dx, dy = shift.split()
        parts.append(
            f'<text class="label" transform="translate({left + at + float(dx):.1f} {top + float(dy):.1f}) {turn}" '
            f'text-anchor="{anchor}">{word}</text>'
        )
        parts.append(f'<text class="label" x="{left - 5:.1f}" y="{top + at + 4:.1f}" text-anchor="end">{word}</text>')
    width, height = left + side + 2, top + side + 2
    return (
        f'<svg class="confusion{" small" if small else ""}" viewBox="0 0 {width:.1f} {height:.1f}" role="img" '
        f'style="width:{width:.0f}px" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _cells(counts: np.ndarray, shares: np.ndarray, labels: Sequence[str], cell: float, left: float, top: float) -> str:
    """A rectangle a cell that is not empty, with a tooltip, and its percentage where there is room."""
    parts = []
    for row, column in np.argwhere(counts):
        share, x, y = float(shares[row, column]), left + column * cell, top + row * cell
        tip = f"{labels[row]} taken for {labels[column]}: {counts[row, column]} clips, {100 * share:.0f} %"
        place = f'x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}"'
        parts.append(f'<g><title>{escape(tip)}</title><rect class="cell" {place} fill-opacity="{share:.2f}"/>')
        if cell >= 20 and share >= 0.005:
            kind = "on" if share > 0.55 else "off"
            middle = f'x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}"'
            parts.append(f'<text class="{kind}" {middle} text-anchor="middle">{100 * share:.0f}</text>')
        parts.append("</g>")
    return "".join(parts)


def _cells_as_picture(
    counts: np.ndarray, shares: np.ndarray, labels: Sequence[str], cell: float, left: float, top: float
) -> str:
    """All cells as one picture: a rectangle each would be megabytes."""
    # A single clip of a large class is still to be seen.
    seen = np.where(counts > 0, np.maximum(shares, 0.12), 0)
    side = cell * len(labels)
    return (
        f'<image class="pixels" x="{left:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}" '
        f'href="{png_data_uri(np.round(255 * seen).astype(np.uint8), _SHADES)}"/>'
    )


def most_confused(
    counts: Integer[np.ndarray, "classes classes"], labels: Sequence[str], most: int = 3
) -> list[tuple[str, str, int, int]]:
    """(true, predicted, clips, of how many) of the commonest mistakes, the commonest first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = (divmod(int(cell), len(labels)) for cell in order)
    return [
        (labels[row], labels[column], int(wrong[row, column]), int(counts[row].sum()))
        for row, column in pairs
        if wrong[row, column]
    ]


def draw_roll(lanes: Sequence[Lane], start_s: float, end_s: float, picture: Picture | None, title: str) -> str:
    """A piano roll, two rows a label: the reference above, filled, and the prediction below, hatched.

    Args:
        lanes: a label each, from top to bottom.
        start_s: where the part of the file that is drawn begins.
        end_s: where it ends.
        picture: the spectrogram of just that part, drawn above the rows on the same axis of time.
        title: what is drawn, for those who hear the page.
    """
    scale = (_ROLL_RIGHT - _ROLL_LEFT) / (end_s - start_s)
    top = _SOUND_HEIGHT + 8 if picture else 2
    row = 2 * _LANE + 7
    bottom = top + row * len(lanes)
    parts = []
    if picture:
        parts.append(
            f'<image x="{_ROLL_LEFT}" y="0" width="{_ROLL_RIGHT - _ROLL_LEFT}" height="{_SOUND_HEIGHT}" '
            f'preserveAspectRatio="none" href="{picture.uri}"/>'
        )
        parts.extend(
            f'<text x="{_ROLL_LEFT - 6}" y="{_SOUND_HEIGHT * (1 - share) + 4:.1f}" text-anchor="end">{text}</text>'
            for share, text in picture.ticks
        )
    for tick in ticks(start_s, end_s, 10):
        x = _ROLL_LEFT + (tick - start_s) * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:.6g} s</text>')
    for i, lane in enumerate(lanes):
        y = top + row * i
        parts.append(f'<line class="grid" x1="0" x2="{_ROLL_RIGHT}" y1="{y}" y2="{y}"/>')
        name = escape(shortened(lane.label, _MAX_NAME))
        parts.append(f'<text class="name" x="{_ROLL_LEFT - 6}" y="{y + 17}" text-anchor="end">{name}</text>')
        for kind, events, at in (("reference", lane.reference, y + 3), ("predicted", lane.predicted, y + 4 + _LANE)):
            for first, last in events:
                low, high = max(first, start_s), min(last, end_s)
                tip = escape(f"{lane.label}, {kind}: {first:.2f} to {last:.2f} s")
                parts.append(
                    f'<rect class="{kind}" x="{_ROLL_LEFT + (low - start_s) * scale:.1f}" y="{at}" '
                    f'width="{max(1.0, (high - low) * scale):.1f}" height="{_LANE}"><title>{tip}</title></rect>'
                )
    return (
        f'<svg class="roll" viewBox="0 0 {_ROLL_WIDTH} {bottom + 20}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
