"""What a search has found, as lines of text and as a table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from melmask.audio.parts import seconds_text
from melmask.errors import OutputError
from melmask.search.index import Hit
from melmask.system.files import atomic_write, write_csv

SUFFIXES = (".csv", ".jsonl", ".parquet")
_OF_HIT = {
    "collection": pa.string(),
    "path": pa.string(),
    "channel": pa.int64(),
    "start_s": pa.float64(),
    "end_s": pa.float64(),
}


def check_table(out: Path | None) -> None:
    """Raise OutputError unless a table can have this name."""
    if out is not None and (out.suffix not in SUFFIXES or out.is_dir()):
        raise OutputError(f"--out is {out}; expected a file whose name ends in {', '.join(SUFFIXES)}")


def write_hits(out: Path, hits: Sequence[Hit]) -> None:
    """Write a row for each sound that was found: rank, similarity, and what and where it is.

    Raises:
        OutputError: the table cannot be written.
    """
    rows = [{"rank": rank, "similarity": hit.similarity, **_of(hit)} for rank, hit in enumerate(hits, 1)]
    _write(out, rows, {"rank": pa.int64(), "similarity": pa.float64(), **_OF_HIT})


def write_pairs(out: Path, pairs: Sequence[tuple[Hit, Hit]]) -> None:
    """Write a row for each pair: its similarity, the first sound, and the second one with the prefix `other_`.

    Raises:
        OutputError: the table cannot be written.
    """
    others = [{f"other_{name}": value for name, value in _of(second).items()} for _, second in pairs]
    rows = [
        {"similarity": first.similarity, **_of(first), **other} for (first, _), other in zip(pairs, others, strict=True)
    ]
    columns = {"similarity": pa.float64(), **_OF_HIT, **{f"other_{name}": kind for name, kind in _OF_HIT.items()}}
    _write(out, rows, columns)


def line_of(hit: Hit, *, collection: bool) -> str:
    """Return a sound that was found as a part of a line, with its collection if that is of interest."""
    text = hit.path
    if hit.start_s is not None:
        end = "the end" if hit.end_s is None else f"{seconds_text(round(hit.end_s, 3))} s"
        text += f"  {seconds_text(round(hit.start_s, 3))} to {end}"
    if hit.channel is not None:
        text += f"  channel {hit.channel}"
    return text + (f"  ({hit.collection})" if collection else "")


def _of(hit: Hit) -> dict[str, Any]:
    return {name: getattr(hit, name) for name in _OF_HIT}


def _write(out: Path, rows: list[dict[str, Any]], columns: dict[str, pa.DataType]) -> None:
    if out.suffix == ".parquet":
        with atomic_write(out) as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(columns)), file)
    elif out.suffix == ".csv":
        write_csv(out, [columns, *([row[name] for name in columns] for row in rows)])
    else:
        with atomic_write(out, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
