"""How arrays travel to the page: little-endian bytes, in base64 within JSON."""

import base64

import numpy as np


def base64_of(array: np.ndarray) -> str:
    """Return the little-endian bytes of an array, row by row, in base64."""
    return base64.b64encode(little_endian(array)).decode("ascii")


def little_endian(array: np.ndarray) -> bytes:
    """Return the little-endian bytes of an array, row by row."""
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
