"""The table of predictions: its rows, how it is written, and the journal from which a killed job resumes."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from melmask.audio.parts import Sound
from melmask.errors import ConfigError, OutputError
from melmask.system.files import atomic_write, locked, output_error, remove_partial, write_csv
from melmask.system.reading import open_file, parse_json, read_text

SUFFIXES = (".csv", ".jsonl", ".parquet")
_COLUMNS = ({"path", "label", "probability"}, {"path", "error"})
"""What a table of predictions has, and a line of JSON about a sound that cannot be read."""
_LONGEST_HEAD = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A row of the table without its path: a label, no label, or the error of a file that cannot be read."""

    label: str | None = None
    """None if nothing in the file exceeds the threshold."""
    probability: float | None = None
    start_s: float | None = None
    """When an event starts and ends; None for whole files."""
    end_s: float | None = None
    channel: int | None = None
    """The number of the channel, where each channel of a file has rows of its own."""
    note: str | None = None
    """What is to be known of the file."""
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON lines and the journal hold it."""
        channel = {} if self.channel is None else {"channel": self.channel}
        if self.error is not None:
            return {**channel, "error": self.error}
        # Rows of whole files have no keys for times.
        times = {} if self.start_s is None else {"start_s": self.start_s, "end_s": self.end_s}
        note = {} if self.note is None else {"note": self.note}
        return {**channel, **times, "label": self.label, "probability": self.probability, **note}


def check_table_path(out: Path) -> None:
    """Refuse a path that no table can have, and a file that is no earlier table of predictions.

    Raises:
        ConfigError: the path is a folder, or has an unknown suffix.
        OutputError: a file is there that would be lost.
    """
    if out.suffix not in SUFFIXES or out.is_dir():
        raise ConfigError(f"{out} cannot be the table; give a file that ends in {', '.join(SUFFIXES)}")
    if out.exists() and out.stat().st_size and not any(columns <= _columns_of(out) for columns in _COLUMNS):
        raise OutputError(f"{out} is there and holds no predictions; it would be lost, so give --out another name")


def _columns_of(table: Path) -> set[str]:
    """Return the names of the columns of a table that may be one of predictions; none if it cannot be read as such."""
    try:
        if table.suffix == ".parquet":
            from melmask.system.parquet import open_parquet

            with open_parquet(table) as parquet:
                return set(parquet.schema_arrow.names)
        with open_file(table) as file:
            begun = file.readline(_LONGEST_HEAD).decode()
        return set(parse_json(begun)) if table.suffix == ".jsonl" else set(begun.strip().split(","))
    except (OSError, ValueError, TypeError):
        return set()


def write_predictions(out: Path, rows: Sequence[tuple[Sound, Prediction]], events: bool) -> None:
    """Write X.csv, X.jsonl or X.parquet, with times if there are events or parts of files.

    A value that a row lacks is empty in CSV and null in Parquet.

    Raises:
        OutputError: it cannot be written.
    """
    parts = any(sound.is_part for sound, _ in rows)
    # The times of an event replace those of the part that it was found in.
    values = [{"path": str(sound.path), **(_times(sound) if parts else {}), **row.to_dict()} for sound, row in rows]
    # Most tables need neither of these two columns.
    channel, note = ([name] if any(name in row for row in values) else [] for name in ("channel", "note"))
    times = ["start_s", "end_s"] if events or parts else []
    columns = ["path", *channel, *times, "label", "probability", *note, "error"]
    if out.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        # The types are fixed, because an empty column would get another one, and tables of many jobs must fit together.
        kinds = {**dict.fromkeys(("start_s", "end_s", "probability"), pa.float64()), "channel": pa.int64()}
        types = {name: kinds.get(name, pa.string()) for name in columns}
        with atomic_write(out) as file:
            pq.write_table(pa.Table.from_pylist(values, schema=pa.schema(types)), file)
        return
    if out.suffix == ".csv":
        write_csv(out, [columns, *([row.get(column) for column in columns] for row in values)])
        return
    with atomic_write(out, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in values)


def _times(sound: Sound) -> dict[str, float | None]:
    return dict(zip(("start_s", "end_s"), sound.times, strict=True))


class Journal:
    """The record of a running job, a line per sound. If the job is killed, only the current file is lost.

    Attributes: `done` has the rows of each sound that is done, by its key, which is the path of a whole file;
    `written_s` is when an earlier job wrote its last line, in s since 1970.
    """

    def __init__(self, file: IO[str], path: Path, done: dict[str, list[Prediction]], written_s: float):
        self._file, self._path = file, path
        self.done, self.written_s = done, written_s

    def add(self, path: str, rows: list[Prediction]) -> None:
        """Add the rows of a file.

        Raises:
            OutputError: the journal cannot be written.
        """
        self.done[path] = rows
        try:
            self._file.write(_line(path, rows))
            self._file.flush()
        except OSError as error:
            raise output_error(self._path, error) from error

    @staticmethod
    @contextmanager
    def of(out: Path, job: list[Any]) -> Iterator["Journal"]:
        """Open the journal of the table `out`, and keep other jobs from it until the end, when it is removed.

        If the block raises an exception, the journal stays, so that the next job can resume.

        Args:
            out: The table.
            job: Everything that affects the rows. The journal of another job is discarded.

        Raises:
            OutputError: the journal cannot be written, or another job writes to `out`.
        """
        path = out.with_name(f".{out.name}.partial.jsonl")
        lock, head = path.with_suffix(".lock"), json.dumps(job)
        with locked(lock, out):
            # A kill may have left a table or journal that was being written.
            for name in (out.name, path.name):
                remove_partial(out.parent, name)
            written_s = path.stat().st_mtime if path.exists() else 0.0
            done = _read(path, head)
            # The file is rewritten, because a kill may have cut off its last line.
            with atomic_write(path, "w") as file:
                file.write(head + "\n")
                file.writelines(_line(name, rows) for name, rows in done.items())
            with _opened(path) as file:
                yield Journal(file, path, done, written_s)
        # This comes after the lock is released, because some file systems keep a file that is open.
        for remains in (path, lock):
            remains.unlink(missing_ok=True)


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise output_error(path, error) from error


def _read(path: Path, head: str) -> dict[str, list[Prediction]]:
    """Return the rows that the same job has written. Failed files are left out, so that they are tried again."""
    try:
        begun, *lines = read_text(path).split("\n")
        # The text after the last line break is empty, or a line that a kill has cut off.
        entries = [parse_json(line) for line in lines[:-1]] if begun == head else []
        rows = {entry["path"]: [_checked(row) for row in entry["rows"]] for entry in entries}
        return {path: own for path, own in rows.items() if own and all(row.error is None for row in own)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        # The lines are damaged, or another version has written them: the job starts over.
        return {}


def _checked(row: dict[str, Any]) -> Prediction:
    """Return a row of the journal; raise TypeError or ValueError if it has other keys or types than a prediction."""
    kinds = {"probability": float, "start_s": float, "end_s": float, "channel": int}
    for name, value in row.items():
        kind = kinds.get(name, str)
        if value is not None and (type(value) is not kind or (isinstance(value, float) and not math.isfinite(value))):
            raise TypeError(name)
        if isinstance(value, str):
            # Raises ValueError for text that no table can hold.
            value.encode()
    return Prediction(**row)


def _line(path: str, rows: list[Prediction]) -> str:
    return json.dumps({"path": path, "rows": [row.to_dict() for row in rows]}) + "\n"
