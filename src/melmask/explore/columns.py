"""Columns of a collection: what its points can be colored and filtered by, as arrays with one entry a point."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Literal

import numpy as np

from melmask.labels.tables import sorted_names

Kind = Literal["category", "number", "time", "text"]
_MOST_CATEGORIES = 1000
"""A column with more different texts is shown as text: so many colors and names tell nothing."""
ABSENT = -1
"""The code of a point without a category."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One value for each point.

    Numbers, and times in seconds since 1970, are `values` float64, NaN where absent. Categories and texts are numbered
    in `codes` int32, -1 where absent; `categories` are the texts.
    """

    name: str
    kind: Kind
    values: np.ndarray | None = None
    codes: np.ndarray | None = None
    categories: Sequence[str] = ()

    @cached_property
    def distinct(self) -> int:
        """Number of different categories, texts, or values."""
        if self.values is None:
            return len(self.categories)
        return len(np.unique(self.values[np.isfinite(self.values)]))

    def value(self, row: int) -> str | float | None:
        """Return the value of one point, a time as text; None where absent."""
        if self.values is not None:
            number = float(self.values[row])
            if not math.isfinite(number):
                return None
            # A file may say that it was modified in any year.
            return str(np.datetime64(int(number), "s")).replace("T", " ") if self.kind == "time" else number
        assert self.codes is not None
        code = int(self.codes[row])
        return None if code == ABSENT else self.categories[code]


def numbers(name: str, values: np.ndarray, kind: Kind = "number") -> Column:
    """Return a column of numbers, or of times in s since 1970."""
    return Column(name=name, kind=kind, values=values.astype(np.float64))


def texts(name: str, cells: Sequence[str]) -> Column:
    """Return a column of categories, or of texts if there are very many different ones; "" is absent."""
    categories = sorted_names([cell for cell in set(cells) if cell])
    index_of = {category: code for code, category in enumerate(categories)}
    codes = np.fromiter((index_of.get(cell, ABSENT) for cell in cells), np.int32, len(cells))
    # A name for each point colors nothing, however few points there are.
    many = len(categories) > _MOST_CATEGORIES or (len(cells) > 50 and len(categories) > 0.9 * len(cells))
    return Column(name=name, kind="text" if many else "category", codes=codes, categories=categories)


def column_of(name: str, cells: Sequence[str]) -> Column:
    """Return the column that the cells of a table are: numbers, times (ISO 8601), categories or texts.

    Whole numbers with few different values are categories, as the folds and classes of data sets are.
    """
    filled = [cell for cell in cells if cell]
    distinct = set(filled)
    for kind, read in (("number", _number), ("time", _time)):
        found = {cell: read(cell) for cell in distinct}
        if not distinct or any(value is None for value in found.values()):
            continue
        if kind == "number" and len(distinct) <= 20 and all(cell.lstrip("-").isdecimal() for cell in distinct):
            break
        lookup = {cell: math.nan if value is None else value for cell, value in found.items()}
        values = np.fromiter((lookup.get(cell, math.nan) for cell in cells), np.float64, len(cells))
        return numbers(name, values, "number" if kind == "number" else "time")
    return texts(name, cells)


def _number(cell: str) -> float | None:
    # Python reads 1_01 as 101; in a table it is a name.
    if "_" in cell:
        return None
    try:
        value = float(cell.replace(",", ".", 1))
    except ValueError:
        return None
    return value if math.isfinite(value) else math.nan


def _time(cell: str) -> float | None:
    # Anything shorter than a date, such as a year or a name of digits, is none.
    if len(cell) < len("2026-01-01"):
        return None
    try:
        return datetime.fromisoformat(cell).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
