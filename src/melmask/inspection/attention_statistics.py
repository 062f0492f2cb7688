"""How far and how widely each head looks, in the mean over the units of many sounds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from melmask.audio.parts import Sound, sounds_of
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.extract import decoded_groups
from melmask.errors import InputError
from melmask.inspection.attention import Attention, attention_of
from melmask.system.progress import track
from melmask.system.terminal import counted


class HeadMeasures(NamedTuple):
    """Measures of attention, each (layers, heads), or numbers for attention that looks everywhere equally.

    time_s: the distance in time from a patch to what it takes from, weighted by how much it takes.  rows: the distance
    in frequency, in rows of patches.  entropy_bits: of a patch's weights; 2 to this power is how many patches it takes
    from.  cls: the share of the weight that goes to the CLS token, 0 without one.
    """

    time_s: Float[np.ndarray, "*measured"]
    rows: Float[np.ndarray, "*measured"]
    entropy_bits: Float[np.ndarray, "*measured"]
    cls: Float[np.ndarray, "*measured"]


@dataclass(frozen=True)
class AttentionStatistics:
    """The measures of each head, those of attention that looks everywhere equally, and what they are the mean of.

    failed: why sounds were left out, by their name.
    """

    heads: HeadMeasures
    uniform: HeadMeasures
    units: int
    sounds: int
    failed: dict[str, str]

    def rows(self) -> list[list[object]]:
        """Return the header and the rows of a table: a row for each head, and a first one for equal attention."""
        header: list[object] = ["layer", "head", "time_s", "frequency_rows", "entropy_bits", "to_cls"]
        equal: list[object] = ["equal", "equal", *(float(value) for value in self.uniform)]
        layers, heads = self.heads.time_s.shape
        of_heads: list[list[object]] = [
            [layer + 1, head + 1, *(float(values[layer, head]) for values in self.heads)]
            for layer in range(layers)
            for head in range(heads)
        ]
        return [header, equal, *of_heads]


def attention_statistics(model: AudioEncoder, sounds: Sequence[Path | Sound]) -> AttentionStatistics:
    """Measure every head in the mean over all whole units of the sounds; progress goes to standard error.

    Sounds that are shorter than a unit count as one shorter unit. The ends of longer ones are left out.

    Raises:
        InputError: no sound can be read.
    """
    parts = sounds_of(sounds)
    of_heads = np.zeros((len(HeadMeasures._fields), model.card.model.depth, model.card.model.heads))
    of_uniform = np.zeros(len(HeadMeasures._fields))
    failed: dict[str, str] = {}
    units = 0
    for sound, logmels, error in track(_by_sound(model, parts), len(parts), "attention", leave=False):
        if error is not None:
            failed[str(sound)] = error
            continue
        for logmel in logmels:
            attention = attention_of(model, logmel)
            of_heads += np.stack(head_measures(model, attention))
            tokens = attention.weights.shape[-1]
            equal = np.full((1, 1, tokens, tokens), 1 / tokens, np.float32)
            of_uniform += np.stack(head_measures(model, replace(attention, weights=equal)))[:, 0, 0]
            units += 1
    if not units:
        reason = next(iter(failed.values()), "all are shorter than a patch")
        raise InputError(f"the attention of none of {counted(len(parts), 'sound')} could be computed: {reason}")
    heads, uniform = HeadMeasures(*(of_heads / units)), HeadMeasures(*(of_uniform / units))
    return AttentionStatistics(heads, uniform, units, len(parts) - len(failed), failed)


def head_measures(model: AudioEncoder, attention: Attention) -> HeadMeasures:
    """Measure the heads of one unit, each (layers, heads), in the mean over its patches."""
    first = int(attention.cls)
    to_patches = attention.weights[:, :, first:, first:].astype(np.float64)
    of_cls = 1 - to_patches.sum(-1)
    # Distances are between patches, so what the CLS token gets is left out of their weights.
    weights = to_patches / to_patches.sum(-1, keepdims=True)
    row, column = np.divmod(np.arange(attention.grid.patches), attention.grid.columns)
    patch_s = model.card.model.patch_frames * model.hop_ms / 1000
    # The logarithm of a weight of 0 does not count, but must be finite.
    bits = -(weights * np.log2(np.maximum(weights, 1e-30))).sum(-1)
    return HeadMeasures(
        time_s=(weights * np.abs(column[:, None] - column) * patch_s).sum(-1).mean(-1),
        rows=(weights * np.abs(row[:, None] - row)).sum(-1).mean(-1),
        entropy_bits=bits.mean(-1),
        cls=np.maximum(of_cls, 0).mean(-1) if attention.cls else np.zeros(weights.shape[:2]),
    )


def _by_sound(model: AudioEncoder, sounds: Sequence[Sound]) -> Iterator[tuple[Sound, list[np.ndarray], str | None]]:
    """Yield each sound with the log-mels of its whole units, or of a shorter one that is all it has, or its error."""
    config, units = model.card.model, list[np.ndarray]()
    for pieces in decoded_groups(model, sounds, model.step_grid()):
        for piece in pieces:
            if piece.logmel is not None:
                logmel = piece.logmel.cpu().numpy()
                whole = logmel.shape[1] // config.frames * config.frames
                units += (
                    np.split(logmel[:, :whole], range(config.frames, whole, config.frames), axis=1) if whole else []
                )
                rest = logmel.shape[1] // config.patch_frames * config.patch_frames
                if not units and rest:
                    units.append(logmel[:, :rest])
            if piece.last:
                yield piece.sound, units, piece.error
                units = []
