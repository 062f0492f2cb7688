"""`melmask index`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.system.terminal import say_lines


@dataclass(frozen=True, kw_only=True)
class Options:
    """Add tables of embeddings to a search index."""

    tables: tuple[Path, ...] = field(metadata={"positional": "EMBEDDINGS"})
    """A table that melmask embed wrote, X.parquet or X.npz; several, such as those of shards, belong together."""
    out: Path
    """The folder of the index. If it is there already, it grows: sounds that it has are replaced if they changed."""
    collection: str = "default"
    """The name of the collection that the sounds belong to."""
    frames: bool = False
    """Index every frame vector instead of one vector for each sound, to find moments in recordings."""
    model: Path | None = None
    """Where the model is now, if it is no longer where it was when the tables were made."""


def run(options: Options) -> int:
    """Add the tables."""
    from melmask.search.build import build_index

    report = build_index(
        options.tables, options.out, collection=options.collection, frames=options.frames, model=options.model
    )
    say_lines(report)
    return 0
