"""Reading files that may not be what they should be: pipes, archives that unpack without end, and crafted JSON.

Every module opens and reads files by these functions. Each raises `OSError` for what cannot be opened, and
`DamagedFileError`, a ValueError, for what was opened and is something else; the caller says in one line what it
expected.
"""

import errno
import json
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

SMALL_FILE_BYTES = 16 << 20
"""Far above any file of settings or facts that melmask writes: the labels of 100,000 classes are 10 MB."""
LARGE_FILE_BYTES = 1 << 30
"""The most that is read at once of lists and tables with a line for each clip: some ten million clips."""
_LONGEST_REASON = 200
_HALF_A_LETTER = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Halves of surrogate pairs. The others stand for bytes in the names of files, and melmask writes such names."""
_DEEPEST = 64
"""Objects and lists within each other; the deepest JSON file of melmask has eight."""
_DIGITS = 300
"""A whole number of more digits fits no float (1.8e308), and Python converts none of more than 4,300."""


class DamagedFileError(ValueError):
    """What a file holds is not what it should be; the message is a clause such as "it is no JSON"."""


class NewerVersionError(DamagedFileError):
    """A later melmask has written the file."""


def reason_of(error: Exception) -> str:
    """Return why a file could not be read, as a clause on one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    line = text.splitlines()[0]
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."


def check_regular(path: Path) -> None:
    """Raise OSError if `path` is a pipe, a socket or a device; what is missing or a folder is left to `open`."""
    try:
        mode = path.stat().st_mode
    except ValueError as error:
        # A name with a null character, which a file may hold, is the name of no file.
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        # Opening a pipe that nobody writes to would wait forever, and a device may never end.
        raise OSError(errno.EINVAL, "is a pipe or device, no file", str(path))


def open_file(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes.

    Raises:
        OSError: it is missing, a folder, a pipe or a device, or cannot be opened.
    """
    check_regular(path)
    return path.open("rb")


def read_bytes(path: Path, most: int = LARGE_FILE_BYTES) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises:
        OSError: it cannot be read.
        DamagedFileError: it is larger.
    """
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DamagedFileError(f"it is larger than {most >> 20} MB")
    return content


def read_text(path: Path, most: int = LARGE_FILE_BYTES) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark, of at most `most` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def read_json(path: Path, most: int = SMALL_FILE_BYTES) -> Any:
    """Return what a JSON file of at most `most` bytes holds; see `parse_json`.

    Raises:
        OSError: it cannot be read.
        DamagedFileError: it is larger, or no JSON that melmask reads.
    """
    return parse_json(read_bytes(path, most))


def read_json_object(path: Path, most: int = SMALL_FILE_BYTES) -> dict[str, Any]:
    """Return what a JSON file holds, as `read_json`, which must be an object.

    Raises:
        OSError: it cannot be read.
        DamagedFileError: it is larger, or no JSON object that melmask reads.
    """
    content = read_json(path, most)
    if not isinstance(content, dict):
        raise DamagedFileError("it is no JSON object")
    return content


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Values may be NaN or infinite, as Python writes them; whole numbers have at most 300 digits, so that each can become
    a float. Who uses a value checks its type and range.

    Raises:
        DamagedFileError: it is no JSON, is nested deeper than 64 levels, names a key twice, has a longer number, or
            half of a surrogate pair, which no file can hold.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        content = _DECODER.decode(text)
    except DamagedFileError:
        raise
    except RecursionError:
        raise DamagedFileError(f"its brackets are nested deeper than {_DEEPEST} levels") from None
    except ValueError as error:
        raise DamagedFileError(f"it is no JSON: {error}") from None
    # Python itself may still be able to read what the functions that copy and compare it can not.
    _check_depth(content)
    if "\\ud" in text.lower() and _HALF_A_LETTER.search(json.dumps(content, ensure_ascii=False)):
        raise DamagedFileError("it has half of a surrogate pair, which is no letter")
    return content


def check_version(facts: dict[str, Any], name: str, newest: int) -> None:
    """Take `format` and `version` out of what a file of melmask holds, and check both.

    Raises:
        DamagedFileError: they are missing, the format is another, or the version is newer than `newest`.
    """
    if facts.pop("format", None) != name:
        raise DamagedFileError(f"its format is not {name}")
    version = facts.pop("version", None)
    # In Python, True is a whole number.
    if type(version) is not int or version < 1:
        raise DamagedFileError("its version is no whole number from 1")
    if version > newest:
        raise NewerVersionError(f"it has {name} version {version}, and this melmask reads up to {newest}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        # Python would take the last value and forget the others.
        names = [name for name, _ in pairs]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise DamagedFileError(f"it has the key {twice[:80]!r} twice")
    return content


def _whole_number(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise DamagedFileError(f"it has a number of {len(digits)} digits")
    return int(digits)


# Made once: a run's metrics are a million lines of JSON.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole_number)


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(_DEEPEST):
        groups = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [inner for group in groups for inner in group if isinstance(inner, dict | list)]
        if not level:
            return
    raise DamagedFileError(f"its brackets are nested deeper than {_DEEPEST} levels")
