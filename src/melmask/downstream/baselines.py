"""Features of labeled files for the probes: the model's, and those of two baselines that any model should beat."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from melmask.audio.parts import Sound, shortened_text
from melmask.config_text import to_dict
from melmask.downstream.options import ProbeOptions
from melmask.embedding.assemble import ClipVectors
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder, untrained
from melmask.embedding.extract import Piece, decoded_groups
from melmask.embedding.normalization import with_dataset_statistics
from melmask.errors import InputError, NotFiniteError
from melmask.geometry import StepGrid
from melmask.labels.tables import LabelTable, keep_rows
from melmask.system.progress import track
from melmask.system.terminal import counted, note

LOGMEL, UNTRAINED, PRETRAINED = "log-mel mean+std", "untrained network", "pre-trained"


@dataclass(frozen=True, kw_only=True)
class TaskFeatures:
    """The features of one task's readable files."""

    table: LabelTable
    """The rows of these files."""
    features: dict[str, np.ndarray]
    """By representation, (rows of the table, D) float32."""
    normalization: dict[str, str | float]
    """Where the mean and std of the log-mels are from, and what they are."""
    unreadable: dict[str, str]
    """Why the other files were left out, by path."""
    noticed: dict[str, str]
    """What is to be known of the files that were read, by path; files without a note are left out."""


def features_of_task(
    model: AudioEncoder,
    name: str,
    table: LabelTable,
    options: ProbeOptions,
    title: str = "",
    *,
    with_untrained: bool = True,
) -> TaskFeatures:
    """Compute scene vectors of the model, of the same network untrained, and each mel band's mean and std over time.

    Every file is decoded once for all three; progress goes to standard error, under `title` or the name. The untrained
    network takes as long as the model, and can be left out.

    Raises:
        ConfigError: the model does not have what the choice asks for.
        InputError: none of the files can be read.
    """
    if options.normalization == "dataset":
        model = with_dataset_statistics(model, table.sounds)
    card, seed, sounds = model.card, options.seed, table.sounds
    choices = {PRETRAINED: options.choice.of_model(card)}
    networks = {PRETRAINED: model}
    if with_untrained:
        networks = {UNTRAINED: untrained(model.card, seed, str(model.device), model.precision), **networks}
        choices[UNTRAINED] = choices[PRETRAINED].unwhitened()
    rows: dict[str, list[np.ndarray]] = {LOGMEL: [], **{network: [] for network in networks}}
    errors: dict[Sound, str] = {}
    noticed: dict[str, str] = {}
    shortened: list[Sound] = []
    hop_s = model.hop_ms / 1000
    of_sounds = _vectors_of_sounds(networks, sounds, choices)
    for last, vectors, frames in track(of_sounds, len(sounds), f"embed {title or name}"):
        if last.error is not None:
            errors[last.sound] = last.error
        elif last.sound.shortened((frames - 1) * hop_s, hop_s):
            shortened.append(last.sound)
        if last.note is not None:
            noticed[str(last.sound)] = last.note
        for representation, vector in vectors.items():
            rows[representation].append(vector)
    if text := shortened_text(shortened):
        note(f"{name}: {text}")
    readable = np.array([sound not in errors for sound in sounds])
    if not readable.any():
        reason = next(iter(errors.values()))
        raise InputError(f"none of {counted(len(readable), 'file')} of task {name} could be read, as {reason}")
    return TaskFeatures(
        table=keep_rows(table, readable),
        features={representation: np.array(vectors) for representation, vectors in rows.items()},
        normalization={"from": model.normalization, **to_dict(model.card.statistics)},
        unreadable={str(sound): reason for sound, reason in errors.items()},
        noticed=noticed,
    )


def _vectors_of_sounds(
    networks: dict[str, AudioEncoder], sounds: Sequence[Sound], choices: dict[str, FeatureChoice]
) -> Iterator[tuple[Piece, dict[str, np.ndarray], int]]:
    """Yield (last piece, representation -> vector, frames) of each sound. One with an error has no vectors."""
    # All networks have the same front end and step grid, so each sound is decoded and cut once.
    model = networks[PRETRAINED]
    grid = model.step_grid()

    def new_clip() -> dict[str, ClipVectors]:
        # For the log-mel baseline each frame is a step, and the bands of a frame are its vector.
        bands = ClipVectors(StepGrid(patch_frames=1, hop_frames=1), keep_frames=False, scene="mean+std")
        found = {name: net.clip_vectors(choices[name], grid, keep_frames=False) for name, net in networks.items()}
        return {LOGMEL: bands, **found}

    clip = new_clip()
    for pieces in decoded_groups(model, sounds, grid):
        logmels = [piece.logmel for piece in pieces if piece.logmel is not None]
        encoded = {name: iter(network.embed_segments(logmels, choices[name])) for name, network in networks.items()}
        # Only the first resolution, so that the baseline of a task is the same beside any model.
        mels = model.card.front_end.mels
        encoded[LOGMEL] = iter([logmel[:mels].T.cpu().numpy() for logmel in logmels])
        for piece in pieces:
            if piece.logmel is not None:
                for name, vectors in clip.items():
                    vectors.add(piece.phase, next(encoded[name]), piece.logmel.shape[1])
            if piece.last:
                scenes: dict[str, np.ndarray] = {}
                if piece.error is None:
                    try:
                        scenes = {name: vectors.scene() for name, vectors in clip.items()}
                    except NotFiniteError as reason:
                        piece = piece._replace(error=f"{piece.sound}: {reason}")
                yield piece, scenes, clip[LOGMEL].frames_seen
                clip = new_clip()
