"""Statistics of the files at hand, for sound unlike the model's corpus: instruments, sonar, another loudness."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from melmask.audio.files import readings_of
from melmask.audio.parts import Sound, sounds_of
from melmask.audio.statistics import Moments, moments_of
from melmask.config import Statistics
from melmask.config_text import from_dict, to_dict
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.tables import digest_of_sounds
from melmask.errors import AudioFileError, ConfigError, InputError
from melmask.system.files import write_json
from melmask.system.hardware import available_cores, map_ahead
from melmask.system.progress import track
from melmask.system.reading import DamagedFileError, read_json_object
from melmask.system.terminal import counted

_WAITING_PER_THREAD = 4


def with_dataset_statistics(
    model: AudioEncoder, paths: Sequence[Path | Sound], kept_in: Path | None = None
) -> AudioEncoder:
    """Return the model with the mean and std of the log-mel values of all of `paths` instead of its own.

    Every file is read once; files that cannot be read are skipped. The result depends on the whole list, so all shares
    of a job must pass the same list. The JSON file `kept_in` keeps the result, so that only the first share reads the
    files.

    Raises:
        InputError: no file can be read, or all sound is silent.
        OutputError: `kept_in` cannot be written.
    """
    facts: dict[str, object] = {
        "files": len(paths),
        "files_sha256": digest_of_sounds(paths),
        "front_end": to_dict(model.card.front_end),
    }
    facts |= model.reading.changed_facts()
    statistics = _kept(kept_in, facts)
    if statistics is None:
        moments = Moments()
        cores = available_cores()
        # Results come in the order of the paths, so that the sums are the same each time.
        sounds = sounds_of(paths)
        of_files = map_ahead(lambda sound: _moments_of_file(model, sound), sounds, cores, _WAITING_PER_THREAD * cores)
        for of_file in track(of_files, len(sounds), "statistics"):
            moments = moments.plus(of_file)
        if not moments.count:
            raise InputError(f"none of {counted(len(paths), 'file')} could be read; check the paths")
        statistics = moments.statistics()
        if kept_in is not None:
            write_json(kept_in, {**facts, "statistics": to_dict(statistics)})
    # Both encoders share the weights.
    card = replace(model.card, statistics=statistics)
    return AudioEncoder(model.model, card, model.name, str(model.device), model.precision, "dataset", model.reading)


def _moments_of_file(model: AudioEncoder, sound: Sound) -> Moments:
    """Return the moments of a file's log-mel values; those of a file that cannot be read are empty."""
    moments = Moments()
    for reading in readings_of(sound.path, model.reading):
        of_clip = Moments()
        try:
            for _, logmel in model.segments_of_file(sound, model.step_grid(), reading):
                of_clip = of_clip.plus(moments_of(logmel.cpu().numpy().T, model.card.front_end.resolutions))
        except AudioFileError:
            # A clip that breaks off counts for nothing, as it has no embedding either.
            continue
        moments = moments.plus(of_clip)
    return moments


def _kept(path: Path | None, facts: dict[str, object]) -> Statistics | None:
    """Return the statistics that an earlier share kept, if they are those of the same files and front end."""
    if path is None or not path.exists():
        return None
    try:
        kept = read_json_object(path)
        statistics = from_dict(Statistics, kept.pop("statistics"))
    except (OSError, DamagedFileError, KeyError, ConfigError):
        return None
    return statistics if kept == facts else None
