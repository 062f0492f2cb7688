"""Draw attention over the spectrogram that it looks at, and what heads do in the mean over many sounds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from melmask.audio.logmel import DB_PER_NATURAL_LOG
from melmask.embedding.encoder import AudioEncoder
from melmask.figures.clip import clip_width_inches, draw_clip, draw_key, draw_patches, write_title
from melmask.figures.figure import INK, MUTED, new_figure
from melmask.figures.reconstruction import limits_db
from melmask.inspection.attention import Attention
from melmask.inspection.attention_statistics import AttentionStatistics
from melmask.inspection.clips import Clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = "viridis"
_LEAST_TIMES, _MOST_TIMES = 0.1, 20.0
"""The ends of the color scale, as multiples of the weight of attention that looks everywhere equally."""
_LARGE_INCHES, _SMALL_INCHES, _MARGIN_INCHES = 1.9, 0.75, 1.1
_PANEL_INCHES, _WIDEST_INCHES = 3.0, 16.0


class Panel(NamedTuple):
    """A picture of attention: its row and column in the figure by their names, and the weight of each patch."""

    row: str
    column: str
    weights: Float[np.ndarray, "rows columns"]


def attention_panels(
    attention: Attention, of: str | int, layers: Sequence[int | None], heads: Sequence[int | None]
) -> list[Panel]:
    """Return the pictures of all these layers and heads; None is the mean over all of them.

    Args:
        attention: The attention of a unit.
        of: Whose: 'cls', 'mean' of all tokens, 'rollout', which is one picture, or the number of a patch.
        layers: Numbers of layers, from 1 on.
        heads: Numbers of heads, from 1 on.

    Raises:
        ConfigError: the model has no CLS token, or no such patch, layer or head.
    """
    if of == "rollout":
        return [Panel("all layers", "rollout", attention.rollout())]
    found = []
    for layer in layers:
        for head in heads:
            if of == "cls":
                weights = attention.from_cls(layer, head)
            elif isinstance(of, int):
                weights = attention.from_patch(of, layer, head)
            else:
                weights = attention.mean(layer, head)
            names = "all layers" if layer is None else f"layer {layer}", "all heads" if head is None else f"head {head}"
            found.append(Panel(*names, weights))
    return found


def attention_figure(
    model: AudioEncoder, clip: Clip, attention: Attention, panels: Sequence[Panel], of: str | int
) -> "Figure":
    """Draw the spectrogram of a unit, and below it where attention goes, a picture for each layer and head.

    All pictures share one color scale, which is logarithmic: how many times as much a patch gets as if the attention
    went everywhere equally. Frequencies are those of the first resolution.

    Args:
        model: The model whose attention it is.
        clip: The unit that `attention_of` was called with.
        attention: What it returned.
        panels: What `attention_panels` returned.
        of: As there; a patch is framed in the spectrogram.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from matplotlib.colors import LogNorm

    rows, columns = (list(dict.fromkeys(names)) for names in ([p.row for p in panels], [p.column for p in panels]))
    small = _SMALL_INCHES if len(rows) > 2 else _LARGE_INCHES
    width = clip_width_inches(clip, model)
    if len(columns) > 1:
        width = min(_WIDEST_INCHES, _PANEL_INCHES * len(columns))
    figure = new_figure(width + 1.2, _MARGIN_INCHES + _LARGE_INCHES + small * len(rows))
    heights = [_LARGE_INCHES + 0.5, small * len(rows) + 0.6]
    top, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).ravel()
    _draw_heard(top, (clip, model), attention, of)
    grid = below.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    scale = LogNorm(_LEAST_TIMES, _MOST_TIMES, clip=True)
    tokens = attention.weights.shape[-1]
    for panel in panels:
        axes = grid[rows.index(panel.row), columns.index(panel.column)]
        # A weight of 0 has no logarithm, and the last color anyway.
        times = np.maximum(panel.weights * tokens, 1e-6)
        image = draw_patches(axes, times, (clip, model), cmap=_COLORS, norm=scale)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(edgecolor=MUTED, linewidth=0.6)
    for axes, name in zip(grid[0], columns, strict=True):
        write_title(axes, name)
    for axes, name in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(name, rotation=0, ha="right", va="center", color=INK, fontsize=8)
    bar = draw_key(below, image, list(grid.ravel()), "times equal attention")
    bar.set_ticks([0.1, 0.2, 0.5, 1, 2, 5, 10, 20], labels=["≤0.1", "0.2", "0.5", "1", "2", "5", "10", "≥20"])
    bar.minorticks_off()
    return figure


def _draw_heard(figure: "Figure", of_clip: tuple[Clip, AudioEncoder], attention: Attention, of: str | int) -> None:
    """Draw the spectrogram, and a frame around the patch whose attention is shown."""
    from matplotlib.patches import Rectangle

    clip, model = of_clip
    axes = figure.subplots()
    values = clip.logmel[: model.card.front_end.mels] * DB_PER_NATURAL_LOG
    image = draw_clip(axes, values, of_clip, limits_db(values))
    axes.set_xlabel("time (s)", color=MUTED, fontsize=8)
    axes.set_ylabel("frequency (Hz)", color=MUTED, fontsize=8)
    whose = {"cls": "of the CLS token", "mean": "of all tokens in the mean", "rollout": "through all layers (rollout)"}
    write_title(axes, clip.name, "attention " + whose.get(str(of), "of the framed patch"))
    draw_key(figure, image, [axes], "dB")
    if isinstance(of, int):
        row, column = divmod(of, attention.grid.columns)
        left, right, low, high = image.get_extent()
        wide, tall = (right - left) / attention.grid.columns, (high - low) / attention.grid.rows
        corner = left + column * wide, low + row * tall
        axes.add_patch(Rectangle(corner, wide, tall, fill=False, edgecolor="#4fd1c5", linewidth=1.8))


def attention_statistics_figure(model: AudioEncoder, found: AttentionStatistics, title: str) -> "Figure":
    """Draw how far and how widely each head looks, a dot for each head and a line for the mean, over the layers.

    A dashed line is attention that looks everywhere equally.

    Args:
        model: The model whose attention was measured.
        found: What `attention_statistics` returned.
        title: The line above the picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    panels = [
        ("distance in time", "s", found.heads.time_s, found.uniform.time_s),
        ("distance in frequency", "rows of patches", found.heads.rows, found.uniform.rows),
        ("entropy", "bits", found.heads.entropy_bits, found.uniform.entropy_bits),
    ]
    if model.card.model.cls_token:
        panels.append(("goes to the CLS token", "share", found.heads.cls, found.uniform.cls))
    figure = new_figure(_PANEL_INCHES * len(panels), 3.0)
    for axes, (name, unit, values, uniform) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _draw_heads(axes, values, float(uniform))
        write_title(axes, f"{name} ({unit})")
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold", parse_math=False)
    figure.supxlabel(
        f"layer      (a dot is a head, the line their mean, dashed: attention that goes everywhere equally; "
        f"{found.units:,} units of {found.sounds:,} sounds)",
        color=MUTED,
        fontsize=8,
    )
    return figure


def _draw_heads(axes: "Axes", values: Float[np.ndarray, "layers heads"], uniform: float) -> None:
    layers = np.arange(1, len(values) + 1)
    axes.axhline(uniform, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(layers, values.mean(1), color="#1f6aa5", linewidth=1.2)
    for head in values.T:
        axes.scatter(layers, head, s=14, color="#c2761b", alpha=0.75, linewidths=0, zorder=3)
    axes.set_ylim(0, 1.08 * max(uniform, float(values.max()), 1e-3))
    axes.set_xticks(layers[:: max(1, len(layers) // 6)])
    axes.tick_params(length=2.5, width=0.6, color=MUTED, labelcolor=INK, labelsize=7.5, pad=2)
    for side, spine in axes.spines.items():
        spine.set(edgecolor=MUTED, linewidth=0.6, visible=side in ("left", "bottom"))
