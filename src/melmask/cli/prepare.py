"""`melmask prepare`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.cli.options import THREADS
from melmask.config import FrontEndConfig
from melmask.labels.options import TableOptions
from melmask.settings import with_overrides


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn folders of sound into a store of log-mels."""

    sources: tuple[Path, ...] = field(metadata={"positional": "SOURCE"})
    """A folder, a sound file, or a table with a column of paths."""
    out: Path = field(metadata={"metavar": "STORE"})
    """Folder of the store."""
    threads: int | None = field(default=None, metadata={"limits": THREADS})
    """Number of decoding threads. Without it, there is one for each core."""
    table: TableOptions = field(default=TableOptions(), metadata={"without": ("label_column",)})
    settings: tuple[str, ...] = field(default=(), metadata={"settings": FrontEndConfig()})
    """change the front end, as sample_rate_hz=32000. These are its settings and their defaults:"""


def run(options: Options) -> int:
    """Write the store of log-mels."""
    from melmask.corpus.prepare import prepare

    front_end = with_overrides(FrontEndConfig(), options.settings)
    facts = prepare(options.sources, options.out, front_end, options.threads, table=options.table)
    print(
        f"{options.out}: {facts.files} files, {facts.hours:.2f} h, log-mel mean {facts.statistics.mean:.3f} and "
        f"std {facts.statistics.std:.3f}"
    )
    if facts.failed:
        print(f"{facts.failed} files could not be read; the reasons are in {options.out / 'failed.csv'}")
    return 0
