"""Show the inside of a model in one call, for notebooks and for `melmask show`: each function returns a figure."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melmask.audio.parts import Sound, seconds_text
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import ConfigError
from melmask.figures.attention import attention_figure, attention_panels, attention_statistics_figure
from melmask.figures.error_map import error_map_figure, predictability_figure
from melmask.figures.features import features_figure
from melmask.geometry import grid_of
from melmask.inspection.attention import attention_of
from melmask.inspection.attention_statistics import AttentionStatistics, attention_statistics
from melmask.inspection.clips import clip_of
from melmask.inspection.features import clip_features
from melmask.inspection.masks import patch_at
from melmask.inspection.options import AttentionOptions, MaskOptions, StretchOptions
from melmask.inspection.reconstruction import masked_clip, predictability, reconstruct_clip
from melmask.inspection.sound import write_sounds
from melmask.system.terminal import note

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_reconstruction(
    model: AudioEncoder,
    audio: Any,
    masks: MaskOptions = MaskOptions(),
    stretch: StretchOptions = StretchOptions(),
    sample_rate_hz: int | float | None = None,
    *,
    sounds_beside: Path | None = None,
) -> "Figure":
    """Draw input, visible part, reconstruction and error of a sound; with `masks.seeds`, the mean error of many masks.

    Args:
        model: A model with a decoder.
        audio: A sound file or an array, as `AudioEncoder.embed` takes it.
        masks: What is hidden.
        stretch: Which part of the sound is shown.
        sample_rate_hz: The rate of an array.
        sounds_beside: Write input, visible part and reconstruction as sounds beside this file, too.

    Raises:
        AudioFileError: the file cannot be read.
        InputError: the sound is too short, or nothing can be hidden, or all of a unit is.
        ConfigError: the model has no decoder, or sounds are wanted of many masks.
        MissingExtraError: matplotlib is not installed.
    """
    clip, masked = masked_clip(model, audio, masks, stretch, sample_rate_hz)
    if masks.seeds is not None:
        if sounds_beside is not None:
            raise ConfigError("--sound plays one reconstruction, and --seeds shows many; leave one out")
        seeds = range(masks.seed, masks.seed + masks.seeds)
        return predictability_figure(model, predictability(model, clip, masks.masking, seeds, leak=masks.leak))
    made = reconstruct_clip(model, clip, masked, leak=masks.leak)
    figure = error_map_figure(model, made)
    if sounds_beside is not None:
        write_sounds(sounds_beside, model, made)
    return figure


def show_attention(
    model: AudioEncoder,
    audio: Any,
    attention: AttentionOptions = AttentionOptions(),
    stretch: StretchOptions = StretchOptions(),
    sample_rate_hz: int | float | None = None,
) -> "Figure":
    """Draw what the tokens of one unit attend to, a picture for each layer and head.

    Args:
        model: A loaded model.
        audio: A sound file or an array, as `AudioEncoder.embed` takes it.
        attention: Whose attention, and which layers and heads.
        stretch: Which part of the sound is shown, at most what the model sees at once.
        sample_rate_hz: The rate of an array.

    Raises:
        AudioFileError: the file cannot be read.
        InputError: the sound is shorter than a patch, or the time or the frequency lies outside.
        ConfigError: the model has no CLS token, or no such layer or head.
        MissingExtraError: matplotlib is not installed.
    """
    config = model.card.model
    layers, heads = attention.numbers("layer", config.depth), attention.numbers("head", config.heads)
    unit_s = config.frames * model.hop_ms / 1000
    end_s = stretch.start + unit_s
    if stretch.end is not None and stretch.end > end_s:
        note(f"melmask: the model sees {unit_s:g} s at once; shown are {stretch.start:g} to {seconds_text(end_s)} s")
    elif stretch.end is not None:
        end_s = stretch.end
    clip = clip_of(model, audio, sample_rate_hz, start_s=stretch.start, end_s=end_s)
    of: str | int = attention.of
    if attention.at is not None:
        time_s, frequency_hz = attention.at
        grid = grid_of(config, clip.logmel.shape[1])
        of = patch_at(replace(model.card, reading=model.reading), grid, time_s - clip.start_s, frequency_hz)
    elif of == "auto":
        of = "cls" if config.cls_token else "mean"
    found = attention_of(model, clip.logmel)
    return attention_figure(model, clip, found, attention_panels(found, of, layers, heads), of)


def show_attention_statistics(
    model: AudioEncoder, sounds: Sequence[Path | Sound], title: str = ""
) -> tuple["Figure", AttentionStatistics]:
    """Draw how far and how widely each head looks in the mean over many sounds, and return the numbers, too.

    Args:
        model: A loaded model.
        sounds: Sound files, or parts of them.
        title: The line above the picture.

    Raises:
        InputError: no sound can be read.
        MissingExtraError: matplotlib is not installed.
    """
    found = attention_statistics(model, sounds)
    return attention_statistics_figure(model, found, title), found


def show_features(
    model: AudioEncoder,
    audio: Any,
    choice: FeatureChoice = FeatureChoice(),
    stretch: StretchOptions = StretchOptions(),
    sample_rate_hz: int | float | None = None,
    *,
    keep_position: bool = False,
) -> "Figure":
    """Draw the frame features of a sound as colors under its spectrogram, and the similarity of all moments.

    Args:
        model: A loaded model.
        audio: A sound file or an array, as `AudioEncoder.embed` takes it.
        choice: Which features are taken.
        stretch: Which part of the sound is shown.
        sample_rate_hz: The rate of an array.
        keep_position: As in `inspection.features.clip_features`.

    Raises:
        AudioFileError: the file cannot be read.
        InputError: the sound is shorter than a patch.
        ConfigError: the model has no such layer, pooling or hop.
        MissingExtraError: matplotlib is not installed.
    """
    clip = clip_of(model, audio, sample_rate_hz, start_s=stretch.start, end_s=stretch.end)
    return features_figure(model, clip_features(model, clip, choice, keep_position=keep_position))
