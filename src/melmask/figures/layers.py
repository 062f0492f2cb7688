"""Draw the score of the probe over the layers of a model."""

from typing import TYPE_CHECKING

import numpy as np

from melmask.figures.clip import write_title
from melmask.figures.figure import INK, MUTED, new_figure
from melmask.system.terminal import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from melmask.downstream.layers import LayerScores

COLORS = {"linear": "#1f6aa5", "k-NN": "#c2761b"}


def layers_figure(found: "LayerScores") -> "Figure":
    """Draw the accuracy of each classifier over the layers, with its interval, and that of log-mel statistics, dashed.

    Args:
        found: What `downstream.layers.probe_layers` returned.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(6.2, 3.8)
    axes = figure.subplots()
    layers = np.array(list(found.scores))
    top = 0.0
    for classifier, baseline in found.baseline.items():
        color = COLORS.get(classifier, INK)
        scores = [of[classifier] for of in found.scores.values()]
        means = np.array([score.mean for score in scores])
        lows, highs = np.array([score.interval_95 for score in scores]).T
        axes.fill_between(layers, lows, highs, color=color, alpha=0.15, linewidth=0)
        axes.plot(layers, means, color=color, marker="o", markersize=4, linewidth=1.4, label=f"{classifier}, features")
        axes.axhline(baseline.mean, color=color, linewidth=1, linestyle=(0, (4, 3)), label=f"{classifier}, log-mel")
        top = max(top, float(np.nanmax([*means, *highs, baseline.mean])))
    axes.set(ylim=(0, min(1.02, 1.1 * top)), xticks=layers)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}{' %' if share else ''}")
    axes.tick_params(length=2.5, width=0.6, color=MUTED, labelcolor=INK, labelsize=8, pad=2)
    axes.grid(axis="y", color="#e3e7eb", linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set(edgecolor=MUTED, linewidth=0.6, visible=side in ("left", "bottom"))
    axes.set_xlabel("layer", color=MUTED, fontsize=9)
    axes.set_ylabel("accuracy on test clips", color=MUTED, fontsize=9)
    axes.legend(loc="lower right", fontsize=8, frameon=False, labelcolor=INK)
    write_title(axes, found.name, f"{found.clips:,} clips of {found.classes} classes, {counted(found.splits, 'split')}")
    return figure
