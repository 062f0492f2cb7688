"""`melmask show`."""

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from melmask.cli.options import ModelOptions
from melmask.config import ReadingOptions
from melmask.downstream.options import ProbeOptions
from melmask.embedding.choice import FeatureChoice
from melmask.errors import ConfigError
from melmask.inspection.options import ALL, AttentionOptions, MaskOptions, StretchOptions
from melmask.labels.options import TableOptions
from melmask.system.terminal import counted, note, say

if TYPE_CHECKING:
    from melmask.embedding.encoder import AudioEncoder

_TAKEN = {
    "reconstruct": ("sound", "stretch", "masks"),
    "attention": ("stretch", "attention", "table"),
    "features": ("stretch", "attention.layer", "choice.pooling", "choice.hop_ms", "keep_position"),
    "layers": ("choice.pooling", "choice.scene", "scheme", "table"),
}
"""The options that each picture takes, besides those that all take: their places in `Options`, or how these begin."""
_ALL_TAKE = ("what", "file", "model", "out", "reading")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw what a model sees, hears and attends to in a sound."""

    what: Literal["reconstruct", "attention", "features", "layers"] = field(metadata={"positional": "WHAT"})
    """What to draw. `layers` draws the score of a probe on each layer."""
    file: Path = field(metadata={"positional": "FILE"})
    """A sound file. For attention also a folder or a table, which gives statistics of all heads; for layers a table of
    labels or the folder of a data set."""
    model: ModelOptions
    out: Path = Path("show.png")
    """The picture to write: .png, .svg or .pdf. Statistics are written beside it as CSV."""
    sound: bool = False
    """With reconstruct: write input, visible part and reconstruction as wav files beside the picture, equally loud."""
    reading: ReadingOptions = field(default=ReadingOptions())
    stretch: StretchOptions = field(default=StretchOptions())
    """Which part of the sound is shown."""
    masks: MaskOptions = field(default=MaskOptions())
    """What is hidden, for `reconstruct`."""
    attention: AttentionOptions = field(default=AttentionOptions())
    """Whose attention is shown, for `attention`."""
    choice: FeatureChoice = field(default=FeatureChoice(), metadata={"without": ("layers",)})
    """Which features are taken, for `features` and `layers`."""
    keep_position: bool = False
    """For features: keep what a feature says about its place in the unit, the same in all sounds. It is subtracted by
    default, as it may hide the rest."""
    scheme: str = ProbeOptions().scheme
    """For layers: how test clips are held out, as `melmask probe` does it: fold, split, group or random; auto takes the
    first that the table allows."""
    table: TableOptions = field(default=TableOptions())
    """How a table is read."""


def run(options: Options) -> int:
    """Draw the picture, and print where it is."""
    from melmask.embedding.reading import read_as
    from melmask.figures.figure import check_picture
    from melmask.system.extras import require
    from melmask.system.files import ensure_folder

    require("plot")
    _check_taken(options)
    # A place that cannot be written to is refused before the work, which may take an hour.
    check_picture(options.out)
    ensure_folder(options.out.parent)
    model = read_as(options.model.load(), options.reading)
    {"reconstruct": _reconstruct, "attention": _attention, "features": _features, "layers": _layers}[options.what](
        model, options
    )
    say(f"picture: {options.out}")
    return 0


def _check_taken(options: Options) -> None:
    """Raise ConfigError if an option is given that has no effect on this picture."""
    taken = (*_ALL_TAKE, *_TAKEN[options.what])
    for place in _changed(options):
        if not any(place == start or place.startswith(f"{start}.") for start in taken):
            flag = "--" + place.rpartition(".")[2].replace("_", "-")
            others = [what for what, starts in _TAKEN.items() if place.startswith(starts)]
            raise ConfigError(f"{flag} has no effect on {options.what}; leave it out, or show {' or '.join(others)}")


def _changed(options: Any, place: str = "") -> Iterator[str]:
    """Yield the places of the options that differ from their defaults."""
    for option in fields(options):
        value = getattr(options, option.name)
        if is_dataclass(value):
            yield from _changed(value, f"{place}{option.name}.")
        elif option.default is not MISSING and value != option.default:
            yield place + option.name


def _reconstruct(model: "AudioEncoder", options: Options) -> None:
    from melmask.figures.figure import save_figure
    from melmask.figures.show import show_reconstruction

    beside = options.out if options.sound else None
    save_figure(
        show_reconstruction(model, options.file, options.masks, options.stretch, sounds_beside=beside), options.out
    )
    if options.sound:
        say(f"sounds: {options.out.with_suffix('')}-{{sound,input,visible,reconstruction}}.wav")


def _attention(model: "AudioEncoder", options: Options) -> None:
    from melmask.figures.figure import save_figure
    from melmask.figures.show import show_attention, show_attention_statistics
    from melmask.labels.read import is_table
    from melmask.labels.sources import find_sounds
    from melmask.system.files import write_csv

    if not (options.file.is_dir() or is_table(options.file)):
        save_figure(show_attention(model, options.file, options.attention, options.stretch), options.out)
        return
    for place in _changed(options):
        if place.startswith(("stretch.", "attention.")):
            flag = "--" + place.rpartition(".")[2]
            raise ConfigError(
                f"{flag} is for one sound, and {options.file} gives many; leave it out, or give one sound"
            )
    sounds = find_sounds([options.file], options.table)
    figure, found = show_attention_statistics(model, sounds, options.file.name)
    save_figure(figure, options.out)
    write_csv(options.out.with_suffix(".csv"), found.rows())
    say(f"{counted(found.units, 'unit')} of {counted(found.sounds, 'sound')}")
    say(f"numbers: {options.out.with_suffix('.csv')}")
    if found.failed:
        name, reason = next(iter(found.failed.items()))
        note(f"melmask: {counted(len(found.failed), 'sound')} could not be read; the first is {name}: {reason}")


def _features(model: "AudioEncoder", options: Options) -> None:
    from melmask.figures.figure import save_figure
    from melmask.figures.show import show_features

    choice = options.choice
    if options.attention.layer != ALL:
        (layer,) = options.attention.numbers("layer", model.card.model.depth)
        if layer is None:
            raise ConfigError("--layer is mean; for features give the number of a layer")
        choice = choice.changed(layer=layer)
    figure = show_features(model, options.file, choice, options.stretch, keep_position=options.keep_position)
    save_figure(figure, options.out)


def _layers(model: "AudioEncoder", options: Options) -> None:
    from melmask.downstream.layers import probe_layers
    from melmask.figures.figure import save_figure
    from melmask.figures.layers import layers_figure
    from melmask.system.files import write_csv

    job = ProbeOptions(scheme=options.scheme, table=options.table, choice=options.choice, reading=options.reading)
    found = probe_layers(model, options.file, job)
    save_figure(layers_figure(found), options.out)
    write_csv(options.out.with_suffix(".csv"), found.rows())
    for classifier in found.baseline:
        best = max(found.scores, key=lambda layer: found.scores[layer][classifier].mean)
        score, of_logmel = found.scores[best][classifier].mean, found.baseline[classifier].mean
        say(f"{classifier}: layer {best} is best, with accuracy {score:.3f}; log-mel statistics have {of_logmel:.3f}")
    say(f"numbers: {options.out.with_suffix('.csv')}")
