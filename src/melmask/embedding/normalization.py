"""Statistics of the files at hand, for a model whose own do not fit them: instruments, sonar, other loudness."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from melmask.audio.statistics import Moments, moments_of
from melmask.config import Statistics
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.tables import digest_of_paths
from melmask.errors import AudioFileError, InputError
from melmask.settings import from_dict, to_dict
from melmask.system.files import write_json
from melmask.system.hardware import available_cores
from melmask.system.progress import track

_FILES_TOGETHER = 256


def with_dataset_statistics(model: AudioEncoder, paths: Sequence[Path], kept_in: Path | None = None) -> AudioEncoder:
    """Return the model with the mean and std of the log-mel values of all of `paths` instead of its own.

    Every file is read once; one that cannot be read is skipped. The result depends on the whole list, so all shares of
    a job must be given the same list. `kept_in`, a JSON file, keeps the result, so that only the first share reads.

    Raises:
        InputError: nothing can be read, or all of it is silent.
        OutputError: `kept_in` cannot be written.
    """
    facts = {
        "files": len(paths),
        "files_sha256": digest_of_paths(paths),
        "front_end": to_dict(model.card.front_end),
    }
    statistics = _kept(kept_in, facts)
    if statistics is None:
        moments = Moments()
        for of_file in track(_moments_of_files(model, paths), len(paths), "statistics"):
            moments = moments.plus(of_file)
        if not moments.count:
            raise InputError(f"none of the {len(paths)} files could be read; check the paths")
        statistics = moments.statistics()
        if kept_in is not None:
            write_json(kept_in, {**facts, "statistics": to_dict(statistics)})
    return _with_statistics(model, statistics)


def _with_statistics(model: AudioEncoder, statistics: Statistics) -> AudioEncoder:
    # The weights are shared.
    card = replace(model.card, statistics=statistics)
    encoder = AudioEncoder(model.model, card, model.name, str(model.device), model.precision)
    encoder.normalization = "dataset"
    return encoder


def _moments_of_files(model: AudioEncoder, paths: Sequence[Path]) -> Iterator[Moments]:
    def moments(path: Path) -> Moments:
        total = Moments()
        try:
            for _, logmel in model.segments_of_file(path, model.step_grid()):
                total = total.plus(moments_of(logmel.cpu().numpy()))
        except AudioFileError:
            return Moments()
        return total

    with ThreadPoolExecutor(available_cores()) as pool:
        # In the order of the paths: sums then come out the same each time.
        for start in range(0, len(paths), _FILES_TOGETHER):
            yield from pool.map(moments, paths[start : start + _FILES_TOGETHER])


def _kept(path: Path | None, facts: dict[str, object]) -> Statistics | None:
    if path is None or not path.exists():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        statistics = from_dict(Statistics, kept.pop("statistics"))
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return statistics if kept == facts else None
