"""Reading npz files that may not be what they should be. `system/reading.py` does the same for other files."""

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from melmask.system.reading import DamagedFileError, open_file

_ARRAY_BYTES = 8 << 30
"""The most that an array of an npz file may fill in memory."""


def read_arrays(path: Path, names: Iterable[str]) -> list[np.ndarray]:
    """Return the arrays with these names of an npz file.

    Raises:
        OSError: it cannot be read.
        DamagedFileError: it is no npz file, lacks an array, or an array is damaged, too large or of Python objects.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            return [_array(archive, name) for name in names]
    except (zipfile.BadZipFile, EOFError, KeyError, RuntimeError, NotImplementedError, MemoryError) as error:
        raise DamagedFileError(f"it is no npz file with these arrays ({type(error).__name__})") from None
    except DamagedFileError:
        raise
    except Exception as error:
        if isinstance(error, OSError):
            raise
        # The decompressors and NumPy's reader of headers raise errors of many classes.
        raise DamagedFileError(f"it holds a damaged array ({type(error).__name__})") from None


def names_of_arrays(path: Path) -> list[str]:
    """Return the names of the arrays in an npz file.

    Raises:
        OSError: it cannot be read.
        DamagedFileError: it is no npz file.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise DamagedFileError(f"it is no npz file ({type(error).__name__})") from None


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(member)
        held = info.file_size - member.tell()
    # NumPy makes room for what the header says before it reads: a small file could ask for all memory.
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != held or held > _ARRAY_BYTES:
        raise DamagedFileError(f"its array {name} is not of the size that it says, or too large")
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)
