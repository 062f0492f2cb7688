"""Draw the frame features of a clip under its spectrogram: as colors, and how similar moments are."""

import math
from typing import TYPE_CHECKING

from melmask.audio.logmel import DB_PER_NATURAL_LOG
from melmask.embedding.encoder import AudioEncoder
from melmask.figures.clip import clip_edges_s, clip_width_inches, draw_clip, draw_key, write_title
from melmask.figures.figure import INK, MUTED, new_figure
from melmask.figures.reconstruction import limits_db
from melmask.inspection.features import ClipFeatures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEARD_INCHES, _STRIP_INCHES, _MARGIN_INCHES = 1.7, 0.35, 1.0
_SIMILARITIES = "PuOr"


def features_figure(model: AudioEncoder, found: ClipFeatures) -> "Figure":
    """Draw a spectrogram, the colors of its frame features, and the similarity of every moment to every other.

    Moments of the same color have similar features. The spectrogram is that of the first resolution.

    Args:
        model: The model whose features they are.
        found: What `inspection.features.clip_features` returned.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    clip = found.clip
    width = clip_width_inches(clip, model, columns=2)
    figure = new_figure(width + 1.2, _MARGIN_INCHES + _HEARD_INCHES + _STRIP_INCHES + width)
    heard, strip, square = figure.subplots(3, 1, sharex=True, height_ratios=[_HEARD_INCHES, _STRIP_INCHES, width])
    values = clip.logmel[: model.card.front_end.mels] * DB_PER_NATURAL_LOG
    image = draw_clip(heard, values, (clip, model), limits_db(values))
    edges_s = clip_edges_s(clip, model)
    half_s = (found.times_s[1] - found.times_s[0]) / 2 if len(found.times_s) > 1 else (edges_s[1] - edges_s[0]) / 2
    left, right = float(found.times_s[0] - half_s), float(found.times_s[-1] + half_s)
    strip.imshow(found.colors[None], aspect="auto", interpolation="nearest", extent=(left, right, 0, 1))
    extent = (left, right, left, right)
    similar = square.imshow(
        found.similarity, origin="lower", aspect="auto", cmap=_SIMILARITIES, vmin=-1, vmax=1, extent=extent
    )
    strip.set_yticks([])
    square.set(xlim=edges_s, ylim=edges_s)
    write_title(heard, clip.name)
    shares = ", ".join(f"{100 * share:.0f}" for share in found.explained)
    write_title(strip, "features as colors", f"red, green and blue have {shares} % of the variance")
    position = (
        "position kept" if math.isnan(found.of_position) else f"position ({100 * found.of_position:.0f} %) removed"
    )
    write_title(square, "self-similarity", f"cosine; clip's mean and {position}")
    heard.set_ylabel("frequency (Hz)", color=MUTED, fontsize=8)
    for axes in (strip, square):
        axes.tick_params(length=2.5, width=0.6, color=MUTED, labelcolor=INK, labelsize=7.5, pad=2)
        for spine in axes.spines.values():
            spine.set(edgecolor=MUTED, linewidth=0.6)
    square.set_xlabel("time (s)", color=MUTED, fontsize=8)
    square.set_ylabel("time (s)", color=MUTED, fontsize=8)
    draw_key(figure, image, [heard], "dB")
    draw_key(figure, similar, [square], "cosine")
    return figure
