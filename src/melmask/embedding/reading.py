"""How the files of a command are read, beside how those of the model's training were."""

from copy import copy

from melmask.config import EACH, MEAN, Reading, ReadingOptions
from melmask.embedding.encoder import AudioEncoder
from melmask.system.terminal import note


def read_as(model: AudioEncoder, options: ReadingOptions) -> AudioEncoder:
    """Return the model with files read as the options say; report on standard error where its training differs.

    Sound is played as slowly as in the training unless the options say otherwise. Channels do not follow the training:
    their numbers belong to a recorder, not to a model, and other files may have a single channel.
    """
    # Both encoders share the weights.
    model = copy(model)
    model.reading = options.of(model.card.reading)
    for difference in _differences(model.card.reading, model.reading):
        note(f"melmask: {difference}")
    return model


def _differences(trained: Reading, now: Reading) -> list[str]:
    found = []
    # A model that heard each channel has heard this one, or one like it.
    if trained.channel not in (now.channel, EACH):
        option = f"; --channel {trained.channel} is as in the training" if trained.channel != MEAN else ""
        found.append(f"the model was trained on {_named(trained.channel)}, and hears {_named(now.channel)} now{option}")
    if trained.expand != now.expand:
        found.append(
            f"the model was trained on sound {_speed(trained.expand)}, and hears it {_speed(now.expand)} now; "
            f"--expand {trained.expand:g} is as in the training"
        )
    elif now.expand != 1:
        found.append(f"sound is played {now.expand:g} times slower, as in the training; times are those of the files")
    return found


def _speed(expand: float) -> str:
    return "at its own speed" if expand == 1 else f"played {expand:g} times slower"


def _named(channel: str) -> str:
    return {MEAN: "the mean of all channels", EACH: "each channel"}.get(channel, f"channel {channel} of the files")
