"""What mpg123, which libsndfile uses for MP3, prints on standard error: caught, and told once with the file's name.

It writes to file descriptor 2 from C, where Python cannot look. While it decodes, that descriptor leads to a temporary
file, whose lines go on to where they belong as soon as the call ends, except for those of mpg123.
"""

import contextlib
import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from melmask.system.terminal import note

_OF_MPG123 = re.compile(rb"\[src/libmpg123/|(?:Note|Warning|Error): |\w[\w/]*\.c:\w+\(\):\d+\] ")
_STANDARD_ERROR = 2


class _Catcher:
    """Standard error while files are decoded, in any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoding: Counter[Path] = Counter()
        self._kept: IO[bytes] | None = None
        self._real, self._read = -1, 0
        self._found: dict[Path, tuple[str, list[Path]]] = {}
        self._told: set[Path] = set()

    @contextlib.contextmanager
    def during(self, path: Path) -> Iterator[None]:
        """Catch what mpg123 prints in this block, which decodes a part of `path`."""
        with self._lock:
            if not self._decoding:
                self._begin()
            self._decoding[path] += 1
        try:
            yield
        finally:
            with self._lock:
                self._sort()
                self._decoding -= Counter([path])
                if not self._decoding:
                    self._end()

    def tell(self, path: Path) -> None:
        """Write what was caught for a file that has been read: one line, once in the life of the process.

        If other files were decoded at that moment, the line may be about one of them, so it names them as well.
        """
        with self._lock:
            line, others = self._found.pop(path, ("", []))
            for other in others:
                if self._found.get(other, ("", []))[0] == line:
                    del self._found[other]
            known = not line or path in self._told
            self._told |= {path} if line else set()
        if not known:
            which = " or ".join(map(str, [path, *others]))
            note(f"{which}: damaged within (the decoder writes: {line})")

    def _begin(self) -> None:
        # The process may have been started without standard error, and a full disk has no room for temporary files.
        with contextlib.suppress(OSError):
            real = os.dup(_STANDARD_ERROR)
            try:
                # What is written goes to the end, wherever the file is being read.
                kept = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115 - open until `_end`
                os.dup2(kept.fileno(), _STANDARD_ERROR)
            except OSError:
                os.close(real)
                raise
            self._kept, self._real, self._read = kept, real, 0

    def _sort(self, last: bool = False) -> None:
        """Keep the lines of mpg123, and pass the others on; what is no whole line yet waits."""
        if self._kept is None:
            return
        self._kept.seek(self._read)
        text = self._kept.read()
        if not last:
            text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        for line in text.splitlines(keepends=True):
            if not _OF_MPG123.match(line):
                with contextlib.suppress(OSError):
                    os.write(self._real, line)
                continue
            for path in self._decoding:
                others = [other for other in self._decoding if other != path]
                # The first line says what is wrong; the next ones say what mpg123 does about it.
                self._found.setdefault(path, (line.decode(errors="replace").strip(), others))

    def _end(self) -> None:
        if self._kept is not None:
            os.dup2(self._real, _STANDARD_ERROR)
            self._sort(last=True)
            os.close(self._real)
            self._kept.close()
            self._kept = None


_catcher = _Catcher()
decoder_notes = _catcher.during
tell_decoder_notes = _catcher.tell
