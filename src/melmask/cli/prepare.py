"""`melmask prepare`."""

import csv
from dataclasses import dataclass, field, replace
from pathlib import Path

from melmask.cli.options import THREADS
from melmask.config import FrontEndConfig, ResolutionConfig
from melmask.config_text import with_overrides
from melmask.errors import ConfigError
from melmask.labels.options import TableOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn folders of sound into a store of log-mels."""

    sources: tuple[Path, ...] = field(metadata={"positional": "SOURCE"})
    """A folder, a sound file, or a table with a column of paths."""
    out: Path = field(metadata={"metavar": "STORE"})
    """Folder of the store."""
    threads: int | None = field(default=None, metadata={"limits": THREADS})
    """Number of decoding threads. The default is one for each core."""
    channel: str = field(default="mean", metadata={"metavar": "N"})
    """Which channel of each file is taken: the mean of all, or the number of one, from 1 on."""
    second_resolution: bool = False
    """Add a second spectrogram with a window of 128 ms, which resolves pitch: as many bands as there are mel bands, 12
    an octave. The store is twice as large, and is for recipes such as tiny_two_resolutions."""
    table: TableOptions = field(default=TableOptions(), metadata={"without": ("label_column",)})
    settings: tuple[str, ...] = field(default=(), metadata={"settings": FrontEndConfig()})
    """change the front end, such as sample_rate_hz=32000. These are its settings and their defaults:"""


def run(options: Options) -> int:
    """Write the store of log-mels."""
    from melmask.audio.video import missing_decoder
    from melmask.corpus.prepare import prepare

    front_end = with_overrides(FrontEndConfig(), options.settings)
    if options.second_resolution:
        if front_end.further_resolutions:
            raise ConfigError("--second-resolution and further_resolutions= say the same; give one of them")
        front_end = replace(front_end, further_resolutions=(ResolutionConfig(),))
    facts = prepare(
        options.sources, options.out, front_end, options.threads, channel=options.channel, table=options.table
    )
    print(
        f"{options.out}: {facts.files} files, {facts.hours:.2f} h, log-mel mean {facts.statistics.mean:.3f} and "
        f"std {facts.statistics.std:.3f}"
    )
    further = zip(facts.statistics.further_means, facts.statistics.further_stds, strict=True)
    for number, (mean, std) in enumerate(further, 2):
        print(f"resolution {number}: mean {mean:.3f} and std {std:.3f}")
    if facts.failed:
        failures = options.out / "failed.csv"
        print(f"{facts.failed} files could not be read; the reasons are in {failures}")
        with failures.open(newline="", encoding="utf-8") as file:
            note = missing_decoder(row["path"] for row in csv.DictReader(file))
        print(note, end="\n" if note else "")
    return 0
