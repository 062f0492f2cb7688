"""What every command that takes a table can be told about it, without PyTorch: command lines come from here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["multiclass", "multilabel", "event"]
"""What a label says: what a whole clip is, alone or among others, or what sounds when in it."""


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How a table of files is read; `docs/tables.md` says what melmask assumes by itself."""

    audio_root: Path | None = None
    """Folder where relative paths of a table start. The default is the table's folder or its parent."""
    path_column: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Column with the paths, where melmask does not know its name."""
    label_column: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Column with the labels, where melmask does not know its name or several could be it."""
    encoding: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Encoding of tables that are not UTF-8, such as cp1250 for Central European or cp1251 for Cyrillic text. The
    default is cp1252, that of western Windows."""
