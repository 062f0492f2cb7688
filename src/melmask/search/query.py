"""The vector of a query, made as the vectors of an index were: the same model, features, channel and speed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from melmask.audio.parts import Sound, seconds_text
from melmask.config import EACH, MEAN
from melmask.embedding.choice import SCENES, FeatureChoice
from melmask.embedding.encoder import AudioEncoder, load
from melmask.embedding.extract import embed_files
from melmask.embedding.tables import TableSettings
from melmask.embedding.waveform import sound_file
from melmask.errors import AudioFileError, CheckpointError, ConfigError, InputError
from melmask.geometry import StepGrid, step_durations_frames
from melmask.search.files import IndexFacts


def load_model(facts: IndexFacts, index: Path, model: Path | str | None = None, device: str = "auto") -> AudioEncoder:
    """Load the model that the vectors of an index were made with, and check that it is the same one.

    Args:
        facts: What the index says of itself.
        index: Its folder, for messages.
        model: Where the model is now; by default where the index says.
        device: The device to compute on.

    Raises:
        CheckpointError: there is no model, or it is another one.
        ConfigError: the device is unknown.
    """
    settings, source = facts.settings, facts.model if model is None else str(model)
    try:
        encoder = load(source, device)
    except CheckpointError as error:
        if model is not None:
            raise
        raise CheckpointError(
            f"the model of {index} was {source}, which cannot be used ({error}); say where it is now with --model"
        ) from error
    found = encoder.sha256
    if found != settings.model_sha256:
        encoder = _with_settings(encoder, settings)
    if encoder.sha256 != settings.model_sha256:
        raise CheckpointError(
            f"{source} is not the model that {index} was made with ({found[:8]} instead of "
            f"{settings.model_sha256[:8]}); say where that one is with --model"
        )
    # The index may have been made before the model's card named a layer: without one, it has the final norm's features.
    encoder.card = replace(encoder.card, layers=tuple(settings.layer or ()))
    # A query is one sound, also where the index has each channel of a file.
    channel = MEAN if settings.channel == EACH else settings.channel
    encoder.reading = replace(settings.reading, channel=channel)
    return encoder


def _with_settings(encoder: AudioEncoder, settings: TableSettings) -> AudioEncoder:
    """Return the encoder with the front end and the statistics of a table, if it can have them.

    They may be those of the files that were embedded, and third-party models do not bring their own.
    """
    try:
        card = replace(encoder.card, front_end=settings.front_end, statistics=settings.statistics)
    except ConfigError:
        # It is a model with another number of bands.
        return encoder
    return AudioEncoder(encoder.model, card, encoder.name, str(encoder.device), normalization=settings.normalization)


def choice_of(facts: IndexFacts) -> FeatureChoice:
    """Return which features of the model the index has; for frames, a query is the mean of its frame vectors."""
    settings = facts.settings
    scene = SCENES[0] if facts.frames else settings.scene
    return FeatureChoice(layers=tuple(settings.layer or ()), pooling=settings.pooling, scene=scene)


def query_vector(
    model: AudioEncoder,
    choice: FeatureChoice,
    audio: Any,
    sample_rate_hz: int | float | None = None,
    start_s: int | float | None = None,
    end_s: int | float | None = None,
) -> tuple[np.ndarray, float]:
    """Return the vector (D,) float32 of a sound, or of the part of it from `start_s` to `end_s`, and its duration in s.

    Args:
        model: What `load_model` returned.
        choice: What `choice_of` returned.
        audio: A sound file: its path, its bytes, or open for reading bytes; or an array as `AudioEncoder.embed` takes.
        sample_rate_hz: The rate of an array.
        start_s: Where the part begins; by default at the sound's begin.
        end_s: Where it ends; by default with the sound.

    Raises:
        AudioFileError: the file cannot be read.
        InputError: the times are no part of the sound, or the sound is shorter than a patch of the model.
    """
    begin_s = 0.0 if start_s is None else start_s
    if not begin_s >= 0 or (end_s is not None and not end_s > begin_s):
        end = "its end" if end_s is None else f"{end_s:g} s"
        raise InputError(f"the query is from {begin_s:g} s to {end}; give a start from 0 on, and an end after it")
    with sound_file(audio) as path:
        if path is None:
            vector, duration_s = _of_array(model, choice, audio, sample_rate_hz, (begin_s, end_s))
        else:
            vector, duration_s = _of_file(model, choice, Sound(path, begin_s, end_s))
    patch_s = model.card.model.patch_frames * model.hop_ms / 1000
    # Durations are counted in frames.
    if duration_s < patch_s - model.hop_ms / 2000:
        raise InputError(
            f"the query lasts {seconds_text(duration_s)} s, and the model needs {seconds_text(patch_s)} s, the length "
            "of a patch; give a longer one"
        )
    return vector, duration_s


def without_positions(
    vector: np.ndarray, duration_s: float, offsets: Float[np.ndarray, "positions dims"], model: AudioEncoder
) -> np.ndarray:
    """Return the mean of the frame vectors of a sound without what their positions in the unit add to them.

    Args:
        vector: Their mean (D,), each weighted by its audio.
        duration_s: How long the sound is.
        offsets: What each position adds. Where frame vectors are closer than patches, some positions lie between these.
        model: The model.
    """
    patch, unit = model.card.model.patch_frames, model.card.model.frames
    weights = step_durations_frames(max(1, round(1000 * duration_s / model.hop_ms)), patch)
    positions = len(offsets)
    hop = max(1, unit // positions)
    between = -StepGrid(patch, hop).first_frame // hop
    numbers = (between + np.arange(len(weights)) * (patch // hop)) % positions
    return (vector - np.average(offsets[numbers], axis=0, weights=weights)).astype(np.float32)


def _of_file(model: AudioEncoder, choice: FeatureChoice, sound: Sound) -> tuple[np.ndarray, float]:
    (result,) = embed_files(model, [sound], choice)
    if result.error is not None:
        raise AudioFileError(result.error)
    assert result.scene is not None
    if sound.shortened(result.duration_s, model.hop_ms / 1000):
        ends_s = sound.start_s + result.duration_s
        raise InputError(f"the query is to end at {sound.end_s:g} s, but {sound.path} ends at {seconds_text(ends_s)} s")
    return result.scene, result.duration_s


def _of_array(
    model: AudioEncoder,
    choice: FeatureChoice,
    audio: Any,
    sample_rate_hz: int | float | None,
    times: tuple[int | float, int | float | None],
) -> tuple[np.ndarray, float]:
    waveform = np.asarray(audio)
    if sample_rate_hz is not None and waveform.ndim == 1:
        length_s = len(waveform) / sample_rate_hz
        if times[0] >= length_s or (times[1] is not None and times[1] > length_s + model.hop_ms / 1000):
            raise InputError(f"the query is to be a part of a sound of {length_s:g} s; give times within it")
        first, last = (None if time is None else round(time * sample_rate_hz) for time in times)
        waveform = waveform[first:last]
    scene = model.embed(waveform, sample_rate_hz, choice).scene
    if scene.ndim != 1:
        raise InputError(f"the query has {len(scene)} sounds; give one")
    assert sample_rate_hz is not None, "an array without a rate has been refused"
    return scene, waveform.shape[-1] / sample_rate_hz
