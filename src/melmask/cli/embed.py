"""`melmask embed`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.embedding.options import EmbedOptions
from melmask.system.terminal import say_lines


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write the embeddings of sound files and folders to a table."""

    sources: tuple[Path, ...] = field(metadata={"positional": "SOURCE"})
    """A sound file, a folder, or a table with a column of paths."""
    model: Path | None = None
    """A run, a checkpoint folder, or an MSM-MAE .pth file. The default is the model in the box."""
    out: Path = Path("embeddings.parquet")
    """The table to write: X.parquet or X.npz."""
    job: EmbedOptions = field(default=EmbedOptions())


def run(options: Options) -> int:
    """Write the embeddings and print where they are."""
    from melmask.embedding.folder import embed_sources

    say_lines(embed_sources(options.sources, options.model, options.out, options.job))
    return 0
