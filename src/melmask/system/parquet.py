"""Parquet files to read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from melmask.system.reading import check_regular


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a regular file.

    Arrow reads it by itself. If it read a file object of Python, its threads could still hold parts of that when the
    program ends, and a thread that gives back an object of Python then aborts the process (apache/arrow issue 34314).

    Raises:
        OSError: it is missing, a folder, a pipe or a device, or cannot be opened.
        ValueError, pyarrow.ArrowException: it is no Parquet file.
    """
    check_regular(path)
    # A name need not be UTF-8.
    with pa.OSFile(os.fsencode(path)) as file, pq.ParquetFile(file) as parquet:
        yield parquet
