"""What is shown on a terminal or a page: names from files, without what would act on it."""

import re
import sys
from contextlib import suppress

_ACTING = re.compile(
    # The control characters of ASCII and Latin-1, among them ESC, line breaks and the one-byte CSI.
    "[\x00-\x1f\x7f-\x9f"
    # Marks that turn the direction of what follows, and breaks of lines and paragraphs.
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    # What nobody sees: blanks of no width, the byte order mark, tags, halves of characters.
    "\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)


def shown(text: object) -> str:
    r"""Return a name, a label or another program's message as it may be shown within a line.

    Control characters, marks of direction and invisible characters are spelled out, as in `\x1b` and `\u202e`. Letters
    of all scripts, and the joiners that some of them and emoji need, stay as they are.
    """
    return _ACTING.sub(_spelled, str(text))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: '1 file', '3 files'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def say(line: str) -> None:
    """Print one line on standard output, whatever is in it."""
    # Python has no standard output where the process was started without one.
    if sys.stdout is not None:
        sys.stdout.write(f"{shown(line)}\n")


def say_lines(text: object) -> None:
    """Print a text of several lines, such as a table, whose names are already as `shown` gives them."""
    for line in str(text).split("\n"):
        say(line)


def note(text: str) -> None:
    """Write one line on standard error, whatever is in it; a reader that has gone away must not stop the work."""
    _write_error(f"{shown(text)}\n")


def update(text: str) -> None:
    """Write a line as `note` does, which on a terminal the next one replaces, until `end_updates`."""
    _write_error(f"\r{shown(text):<78}" if sys.stderr.isatty() else f"{shown(text)}\n")


def note_below(text: str) -> None:
    """Write a line as `note` does, below a line of `update` or a progress bar, which have no end on a terminal."""
    end_updates()
    note(text)


def end_updates() -> None:
    """End the line of `update` or of a progress bar; where there is no terminal, it has ended."""
    if sys.stderr.isatty():
        _write_error("\n")


def _write_error(text: str) -> None:
    with suppress(OSError):
        sys.stderr.write(text)
        # Standard error is buffered if it is redirected to a file.
        sys.stderr.flush()


def _spelled(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
