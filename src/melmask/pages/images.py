"""Encode pictures as data URIs, without a picture library."""

import base64
import struct
import zlib

import numpy as np
from jaxtyping import UInt8


def data_uri(kind: str, content: bytes) -> str:
    """Return bytes of a media type, such as "image/png", as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png_data_uri(indices: UInt8[np.ndarray, "rows columns"], palette: UInt8[np.ndarray, "colors channels"]) -> str:
    """Return a PNG whose pixels are indices into a palette of 3 (red, green, blue) or 4 (and opacity) channels."""
    rows, columns = indices.shape
    # Each row of a PNG begins with the number of its filter, and 0 is no filter (PNG specification, section 9).
    raw = np.concatenate([np.zeros((rows, 1), np.uint8), indices], axis=1).tobytes()
    # 8 bits a pixel, and color type 3: pixels are indices into PLTE. tRNS holds the opacities of the colors.
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        (b"PLTE", np.ascontiguousarray(palette[:, :3]).tobytes()),
        *([(b"tRNS", palette[:, 3].tobytes())] if palette.shape[1] == 4 else []),
        (b"IDAT", zlib.compress(raw, 9)),
        (b"IEND", b""),
    ]
    # A chunk is its length, its kind, its data, and a checksum of kind and data.
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return data_uri("image/png", b"\x89PNG\r\n\x1a\n" + b"".join(parts))
