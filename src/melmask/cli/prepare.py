"""`melmask prepare`."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from melmask.cli.options import THREADS
from melmask.config import FrontEndConfig, Reading
from melmask.config_text import with_overrides
from melmask.errors import ConfigError
from melmask.labels.options import TableOptions
from melmask.system.terminal import counted, say


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn folders of sound into a store of log-mels."""

    sources: tuple[Path, ...] = field(metadata={"positional": "SOURCE"})
    """A folder, a sound file, or a table with a column of paths."""
    out: Path = field(metadata={"metavar": "STORE"})
    """Folder of the store."""
    threads: int | None = field(default=None, metadata={"limits": THREADS})
    """Number of decoding threads. The default is one for each core."""
    band: str = field(default="speech", metadata={"metavar": "BAND"})
    """The frequency band that models hear: a sample rate in Hz, which scales the whole front end, or speech (16000),
    wide (32000: birds, music), bats (256000) or hydrophone (2000: large whales). KEY=VALUE settings are applied
    after it."""
    resolutions: int | None = field(default=None, metadata={"limits": (1, 2)})
    """How many spectrograms a frame holds. The second, which new stores have by default, resolves pitch: its window
    lasts 256 ms (at rates below 8 and above 48 kHz, 2048 and 4096 samples), and it has as many bands as there are mel
    bands, 12 an octave. A store of 1 takes half the space. Recipes of one resolution learn from either."""
    reading: Reading = field(default=Reading())
    table: TableOptions = field(default=TableOptions(), metadata={"without": ("label_column",)})
    settings: tuple[str, ...] = field(default=(), metadata={"settings": FrontEndConfig()})
    """change the front end, such as hop_samples=80. These are its settings and their values for speech:"""


def run(options: Options) -> int:
    """Write the store of log-mels."""
    from melmask.audio.bands import front_end_of, with_second_resolution
    from melmask.audio.notes import summary
    from melmask.audio.video import missing_decoder
    from melmask.corpus.prepare import prepare
    from melmask.corpus.store import NOTES, begun_front_end
    from melmask.system.progress import duration_text

    front_end = with_overrides(front_end_of(options.band), options.settings)
    if front_end.further_resolutions and options.resolutions:
        raise ConfigError("--resolutions and further_resolutions= say the same; give one of them")
    # A store that was begun with one resolution, such as one of release 0.1.0, goes on as it is.
    wanted = options.resolutions or (begun.resolutions if (begun := begun_front_end(options.out)) else 2)
    if not front_end.further_resolutions and wanted > 1:
        front_end = with_second_resolution(front_end)
    facts = prepare(
        options.sources, options.out, front_end, options.threads, reading=options.reading, table=options.table
    )
    # Of a few files, hours with two decimals would say nothing.
    length = f"{facts.hours:.2f} h" if facts.hours >= 0.1 else duration_text(3600 * facts.hours)
    say(
        f"{options.out}: {counted(facts.files, 'file')}, {length}, log-mel mean "
        f"{facts.statistics.mean:.3f} and std {facts.statistics.std:.3f}"
    )
    further = zip(facts.statistics.further_means, facts.statistics.further_stds, strict=True)
    for number, (mean, std) in enumerate(further, 2):
        say(f"resolution {number}: mean {mean:.3f} and std {std:.3f}")
    failures = options.out / "failed.csv"
    if channels := len(_column(failures, "path")) - facts.failed:
        what = f"{counted(channels, 'channel')} could not be read, and the others of the same files are in the store"
        say(f"{what}; the reasons are in {failures}")
    if facts.failed:
        say(f"{counted(facts.failed, 'file')} could not be read; the reasons are in {failures}")
        note = missing_decoder(_column(failures, "path"))
        if note:
            say(note)
    notes = options.out / NOTES
    for line in summary(_column(notes, "note"), notes):
        say(line)
    return 0


def _column(path: Path, name: str) -> list[str]:
    """Return a column of a CSV file; nothing if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row[name] for row in csv.DictReader(file)]
