"""Writing so that a killed or full-disk run never leaves half a file under its final name."""

import contextlib
import csv
import errno
import glob
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from melmask.errors import OutputError

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary neighbor of `path`; on success flush it to disk and rename it to `path`.

    Raises:
        OutputError: where the file cannot be written; whatever was at `path` before is still there.
    """
    # A link stays, and what it leads to is written.
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {path}: there is something that is no regular file; choose another place")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "b" not in mode
        with temporary.open(mode, encoding="utf-8" if text else None, newline="" if text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def output_error(path: Path, error: OSError) -> OutputError:
    """The one-line report of a failed write."""
    reason = error.strerror or str(error)
    return OutputError(f"cannot write {path}: {reason}; choose a writable place with enough free space")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows of values as CSV (RFC 4180, UTF-8), atomically; the first row is the header.

    Values are written as they are, so that a reader gets back what was written: docs/formats.md says what that means
    for spreadsheets.
    """
    with atomic_write(path, "w") as file:
        csv.writer(file).writerows(rows)


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return what `write_csv` writes."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def check_not_read(out: Path, sources: Iterable[Path]) -> None:
    """Raise OutputError if `out`, which is about to be written, is one of the files that are read."""
    if out.exists() and any(source.exists() and out.samefile(source) for source in sources):
        raise OutputError(f"--out is {out}, which is read and would be lost; give another name")


def check_nobodys(folder: Path, names: Iterable[str]) -> None:
    """Raise OutputError if a folder that is about to be written to has files of these names, which would be lost."""
    for name in names:
        if (folder / name).exists():
            raise OutputError(f"{folder} holds {name}, which would be lost; give --out a new or an empty folder")


def changed_since(path: Path, time_s: float) -> bool:
    """Tell whether a file was changed after a time, in s since 1970. One that is gone was not: who reads it says so."""
    try:
        return path.stat().st_mtime > time_s
    except OSError:
        return False


def ensure_folder(path: Path) -> Path:
    """Make `path` a folder that can be written to, before hours are spent on what goes there."""
    probe = path / f".{os.getpid()}.writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except (FileExistsError, NotADirectoryError):
        raise OutputError(f"cannot write to {path}: it or a folder above it is a file; choose a folder") from None
    except OSError as error:
        raise output_error(path, error) from error
    return path


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder` as `ensure_folder` does, and keep other jobs from it until this one is done, or dies.

    Raises:
        OutputError: it cannot be written to, or another job is at it.
    """
    with locked(ensure_folder(folder) / ".lock", folder) as alone:
        if alone:
            remove_partial(folder)
        yield


@contextlib.contextmanager
def locked(path: Path, what: Path) -> Iterator[bool]:
    """Hold the lock file `path`, which stays; gives False where the file system has no locks.

    Raises:
        OutputError: it cannot be written, or another job holds it and writes to `what`.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"another melmask is writing to {what}; wait for it, or choose another place") from None
    except (OSError, NotImplementedError) as error:
        # Some shared file systems have no locks; work there is better than none.
        if not (isinstance(error, NotImplementedError) or error.errno in _NO_LOCKS):
            raise output_error(what, error) from error
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def remove_partial(folder: Path, name: str = "*") -> None:
    """Remove what `atomic_write` left in a folder when it was killed; no other job may be writing there.

    Args:
        folder: The folder.
        name: The name of the file that was being written; by default any.
    """
    name = name if name == "*" else f"{glob.escape(name)}.*"
    for path in (*folder.glob(f".{name}.partial"), *folder.glob(f".{name}.writable")):
        if path.name.split(".")[-2].isdecimal():
            with contextlib.suppress(OSError):
                path.unlink()
