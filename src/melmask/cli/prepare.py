"""`melmask prepare`."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from melmask.cli.options import THREADS
from melmask.config import FrontEndConfig
from melmask.config_text import with_overrides
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
    channel: str = field(default="mean", metadata={"metavar": "N"})
    """Which channel of each file is taken: the mean of all, or the number of one, from 1 on."""
    table: TableOptions = field(default=TableOptions(), metadata={"without": ("label_column",)})
    settings: tuple[str, ...] = field(default=(), metadata={"settings": FrontEndConfig()})
    """change the front end, such as sample_rate_hz=32000. These are its settings and their defaults:"""


def run(options: Options) -> int:
    """Write the store of log-mels."""
    from melmask.audio.video import missing_decoder
    from melmask.corpus.prepare import prepare

    front_end = with_overrides(FrontEndConfig(), options.settings)
    facts = prepare(
        options.sources, options.out, front_end, options.threads, channel=options.channel, table=options.table
    )
    say(
        f"{options.out}: {counted(facts.files, 'file')}, {facts.hours:.2f} h, log-mel mean "
        f"{facts.statistics.mean:.3f} and std {facts.statistics.std:.3f}"
    )
    if facts.failed:
        failures = options.out / "failed.csv"
        say(f"{counted(facts.failed, 'file')} could not be read; the reasons are in {failures}")
        with failures.open(newline="", encoding="utf-8") as file:
            note = missing_decoder(row["path"] for row in csv.DictReader(file))
        if note:
            say(note)
    return 0
