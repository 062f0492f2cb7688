"""The options of `melmask explore`. Its command line is built from them, so this module does not import PyTorch."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.config import ReadingOptions
from melmask.labels.options import TableOptions


@dataclass(frozen=True, kw_only=True)
class ExploreOptions:
    """What is shown, and where it is served."""

    labels: Path | None = field(default=None, metadata={"metavar": "TABLE"})
    """A table with a column of paths. Each of its other columns can color the map."""
    out: Path = Path("melmask-explore")
    """Folder for embeddings and labels. It is used again at the next start."""
    port: int = field(default=0, metadata={"limits": (0, 65535)})
    """Port of the page on this computer. 0 takes a free one."""
    export: Path | None = field(default=None, metadata={"metavar": "PAGE.html"})
    """Instead of serving the page, write it to this file, which works without melmask: from any web host or a disk."""
    sounds: int = field(default=50, metadata={"limits": (0, 100_000)})
    """How many sounds the file of --export holds, with all that the model sees of them; at most 10 s of each."""
    spectrograms: int = field(default=2000, metadata={"limits": (0, 1_000_000)})
    """How many sounds have at least a small spectrogram in the file of --export."""
    no_browser: bool = False
    """Do not open the page in a browser; only print its address."""
    reading: ReadingOptions = field(default=ReadingOptions())
    table: TableOptions = field(default=TableOptions(), metadata={"without": ("label_column",)})
