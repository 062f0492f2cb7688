"""The form of a table: bytes in some encoding, separated by some sign, become rows of named columns.

Spreadsheets, annotation programs and published data sets each write their own kind of CSV. The csv module splits the
lines; this module decides what it is told (docs/decisions/0008-table-reader.md). What is assumed is a note for the
user, because an assumption can be wrong. What the columns mean is the matter of `columns.py`.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from melmask.audio.folders import SCANNED_SUFFIXES
from melmask.errors import ConfigError, InputError
from melmask.system.reading import parse_json, read_bytes, reason_of
from melmask.system.terminal import note

_SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods")
TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".txt", ".jsonl", ".parquet", *_SPREADSHEETS))
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Spreadsheets of western Europe and America write this code page where they do not write UTF-8.
_HEADER_SAMPLE_BYTES = 8
"""Bytes by which UTF-16 is known; the shortest header that serves is longer."""
_CODE_PAGE = "cp1252"
# In this order: a comma may also be that of a number, and seldom is a tab anything else.
_SEPARATORS = "\t,;|"
# Excel's own way to say which sign separates the columns.
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w\s]|\t)"?[,;\s]*', re.IGNORECASE)
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f]")
_NUMBER = re.compile(r"\d+([.,]\d+)?")
# The two lines that Audacity writes for a label with a frequency range begin with a backslash.
_FREQUENCY_LINE = "\\"
_LABEL_TRACK = ["start_s", "end_s", "label"]
"""The columns of a label track, which has no header of its own."""
_ZIP = b"PK\x03\x04"
Row = tuple[int, list[str]]
"""The number of a line and its values."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table as it is written: names of columns, and rows with as many values, without surrounding blanks."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    """What was assumed, a line each."""
    label_track: bool = False
    """Whether it is one of Audacity, whose labels may be without text."""

    def column(self, index: int) -> list[str]:
        """The values of one column."""
        return [row[index] for row in self.rows]


def is_table(path: Path) -> bool:
    """Whether a path is a file with the suffix of a table."""
    return path.suffix.lower() in TABLE_SUFFIXES and path.is_file()


def report(path: Path, notes: Iterable[str]) -> None:
    """Write a line on standard error for each different note on the table `path`."""
    for line in dict.fromkeys(notes):
        note(f"{path}: {line}")


def read_sheet(path: Path, encoding: str | None = None) -> Sheet:
    """Read a table in any of the forms of docs/tables.md.

    Args:
        path: The table.
        encoding: Encoding of a text that is not UTF-8; None takes the code page of western Windows.

    Raises:
        InputError: there is no such file, it is no text, or its rows do not fit its header.
        ConfigError: Python knows no such encoding of text.
    """
    notes: list[str] = []
    if path.suffix.lower() == ".parquet" and path.is_file():
        return _parquet(path)
    text = _text(path, notes, encoding)
    if path.suffix.lower() == ".jsonl":
        return _json_lines(path, text)
    rows = [(line, [value.strip() for value in values]) for line, values in _rows(path, text, notes)]
    rows = [(line, values) for line, values in rows if any(values)]
    if not rows:
        raise InputError(f"{path}: the file is empty; expected a header with `path` and `label`, then rows")
    header = _missing_header(rows, notes)
    if header is None:
        _, header = rows.pop(0)
    track = header == _LABEL_TRACK
    return Sheet(path=path, header=header, rows=_fitted(path, header, rows), notes=notes, label_track=track)


def _text(path: Path, notes: list[str], given: str | None) -> str:
    page = _known(given) if given else _CODE_PAGE
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a CSV table with `path` and `label`") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({reason_of(error)}); expected a CSV table") from None
    if content.startswith(_ZIP) or path.suffix.lower() in _SPREADSHEETS:
        raise InputError(f"{path}: is a spreadsheet file or an archive; save the sheet as CSV in UTF-8")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), None)
    if encoding is None:
        encoding = _unmarked(content)
        if encoding != "utf-8":
            notes.append(f"has no byte order mark, and is read as {encoding.upper()}")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        try:
            text = content.decode(page)
        except UnicodeDecodeError:
            raise InputError(
                f"{path}: not a CSV table in UTF-8 ({error}) or {page}; save it as UTF-8, or give --encoding"
            ) from None
        if given is None:
            notes.append(f"not UTF-8, so it is read as Windows text ({page}); give --encoding if letters look wrong")
    if found := _NO_TEXT.search(text):
        raise InputError(f"{path}: not a CSV table in UTF-8 (it holds the byte {ord(found[0])}); save it as one")
    return text


def _known(encoding: str) -> str:
    try:
        # Python also calls "encodings" what makes bytes of bytes, as base64 does.
        "".encode(encoding)
        return encoding
    except (LookupError, ValueError):
        raise ConfigError(
            f"--encoding is {encoding!r}, which is none; give one such as utf-8, cp1250 or cp1251"
        ) from None


def _unmarked(content: bytes) -> str:
    """The encoding of a text without a byte order mark: in UTF-16, every other byte of a Latin header is 0."""
    start = content[:_HEADER_SAMPLE_BYTES]
    for encoding, zeros, others in (("utf-16-le", start[1::2], start[::2]), ("utf-16-be", start[::2], start[1::2])):
        if len(start) == _HEADER_SAMPLE_BYTES and not any(zeros) and all(others):
            return encoding
    return "utf-8"


def _rows(path: Path, text: str, notes: list[str]) -> list[Row]:
    """Split a text into rows of values, blank lines left out."""
    # The csv module refuses the lone carriage returns by which some programs still end lines.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    first, _, rest = text.lstrip("\n").partition("\n")
    skipped = 0
    if named := _SEPARATOR_LINE.fullmatch(first):
        text, separator, skipped = rest, named[1], 1
    else:
        separator = _separator(first)
    try:
        rows = _split(path, text, separator)
        swallowed = separator == "\t" and any("\n" in value for _, values in rows for value in values)
    except InputError:
        if separator != "\t":
            raise
        swallowed = True
    if swallowed:
        # Programs that separate by tabs do not quote: a quotation mark is one, and would else swallow lines.
        rows = _split(path, text, separator, quoted=False)
    return [(line + skipped, values) for line, values in rows]


def _separator(header: str) -> str:
    """The sign that gives the header the most columns, the comma where none gives two.

    csv.Sniffer fails on a single column and goes by the text of all cells, where commas are common; names of columns
    seldom hold any.
    """
    # The csv module refuses longer values; a table that has one is refused where its lines are split.
    start = header[: csv.field_size_limit()]
    counts = {sign: len(next(csv.reader([start], delimiter=sign), [])) for sign in _SEPARATORS}
    best = max(counts, key=lambda sign: counts[sign])
    return best if counts[best] > 1 else ","


def _split(path: Path, text: str, separator: str, *, quoted: bool = True) -> list[Row]:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting, strict=True)
    rows: list[Row] = []
    start = 1
    try:
        for values in reader:
            if values:
                rows.append((start, values))
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}: not a CSV table, as line {start} cannot be split ({error}); close or remove its quotation mark"
        ) from None
    return rows


def _missing_header(rows: list[Row], notes: list[str]) -> list[str] | None:
    """Name the columns of a table without header: a label track of Audacity, or a list of files."""
    _, first = rows[0]
    if len(first) in (2, 3) and all(_NUMBER.fullmatch(value) for value in first[:2]):
        notes.append("has no header, so it is read as a label track of Audacity: start, end, label")
        rows[:] = [
            (line, [*values, ""][:3] if len(values) < 3 else values)
            for line, values in rows
            if values[0] != _FREQUENCY_LINE
        ]
        return _LABEL_TRACK
    if len(first) <= 2 and Path(first[0].replace("\\", "/")).suffix.lower() in SCANNED_SUFFIXES:
        header = ["path", "label"][: len(first)]
        notes.append(f"has no header, so its columns are taken for {' and '.join(header)}")
        return header
    return None


def _fitted(path: Path, header: list[str], rows: Sequence[Row]) -> list[list[str]]:
    fitted = []
    for line, values in rows:
        # Spreadsheets write separators for columns that somebody has emptied.
        fits = len(values) >= len(header) and not any(values[len(header) :])
        if not fits:
            raise InputError(
                f"{path}, line {line}: {len(values)} values for {len(header)} columns; quote values that hold the "
                "separator"
            )
        fitted.append(values[: len(header)])
    return fitted


def _json_lines(path: Path, text: str) -> Sheet:
    """Read a table with a JSON object a line, as Hugging Face's audiofolder has; lists are several labels."""
    objects = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = parse_json(line)
            json.dumps(found, ensure_ascii=False).encode()
        except ValueError as error:
            raise InputError(f"{path}, line {number}: is not JSON ({error}); expected an object a line") from None
        if not isinstance(found, dict):
            raise InputError(f"{path}, line {number}: is no JSON object; expected one with the names of columns")
        objects.append(found)
    header = list(dict.fromkeys(name for found in objects for name in found))
    return Sheet(path=path, header=header, rows=[[_cell(found.get(name)) for name in header] for found in objects])


def _parquet(path: Path) -> Sheet:
    """Read the columns of text, numbers and lists of text; vectors and embedded sounds say nothing about rows."""
    import pyarrow as pa

    from melmask.system.parquet import open_parquet

    def serves(kind: pa.DataType) -> bool:
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return serves(kind.value_type) and not pa.types.is_floating(kind.value_type)
        return not pa.types.is_nested(kind) and not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind)

    try:
        with open_parquet(path) as stored:
            schema = stored.schema_arrow
            header = [column.name for column in schema if serves(column.type)]
            columns = [column.to_pylist() for column in stored.read(columns=header).columns]
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = reason_of(error)
        raise InputError(f"{path}: cannot be read as Parquet ({reason}); write it again, or save it as CSV") from None
    left_out = [f"`{name}`" for name in schema.names if name not in header]
    notes = [f"has {', '.join(left_out)}: lists or other data, which are left out"] if left_out else []
    rows = [list(map(_cell, row)) for row in zip(*columns, strict=True)]
    if not rows:
        raise InputError(f"{path}: the table has no rows; expected one row per clip")
    return Sheet(path=path, header=header, rows=rows, notes=notes)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ";".join(map(_cell, value))
    # pandas writes what is missing in a column of numbers as NaN.
    return "" if value is None or value != value else str(value).strip()
