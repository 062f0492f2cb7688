"""What the page asks for, read from requests that may hold anything: each value is checked for type and range."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request

from melmask.explore.threads import in_thread
from melmask.system.reading import DamagedFileError, parse_json

MOST_JSON_BYTES = 16 << 20
"""The numbers of a million points are 8 MB."""
MOST_SOUND_BYTES = 64 << 20


class RequestError(Exception):
    """A request that is not answered; `status` is its HTTP status, and the message one line."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


async def body_of(request: Request, most: int) -> bytes:
    """Return the body of a request; it is counted while it arrives, as its length may be missing or a lie.

    Raises:
        RequestError: it is longer than `most` bytes.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        _check_length(len(body), most)
    return bytes(body)


async def save_body(request: Request, path: Path, most: int) -> int:
    """Write the body of a request to a file, and return its length, as `body_of`."""
    length = 0
    with path.open("wb") as file:
        async for chunk in request.stream():
            length += len(chunk)
            _check_length(length, most)
            file.write(chunk)
    return length


def _check_length(length: int, most: int) -> None:
    if length > most:
        raise RequestError(f"the request is larger than {most >> 20} MB; send less, or a shorter sound", 413)


async def json_of(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    Raises:
        RequestError: there is none, or it is too long.
    """
    body = await body_of(request, MOST_JSON_BYTES)
    try:
        # A million numbers take a second, in which other requests are answered.
        content = await in_thread(parse_json, body or b"{}")
    except DamagedFileError as error:
        raise RequestError(f"the request cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RequestError("the request is no JSON object; expected one")
    return content


def whole_number(values: Mapping[str, Any], name: str, default: int | None, least: int, most: int) -> int:
    """Return a whole number of a request, from its JSON or from its query.

    Raises:
        RequestError: it is missing and has no default, is no number, or is not from `least` to `most`.
    """
    value = values.get(name, default)
    if isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= most:
        raise RequestError(f"{name} is {_shown(value)}; expected a whole number from {least} to {most}")
    return value


def number(values: Mapping[str, Any], name: str, default: float | None, least: float, most: float) -> float:
    """Return a number of a request, as `whole_number`."""
    value = values.get(name, default)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    # In Python, True is a number; comparisons with NaN are false.
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise RequestError(f"{name} is {_shown(values.get(name))}; expected a number from {least:g} to {most:g}")
    return float(value)


def whole_numbers(values: Mapping[str, Any], name: str, below: int, most: int) -> list[int]:
    """Return a list of whole numbers from 0 up to below `below`, at most `most` of them.

    Raises:
        RequestError: it is something else.
    """
    found = values.get(name)
    if not isinstance(found, list) or len(found) > most or not all(type(n) is int and 0 <= n < below for n in found):
        raise RequestError(f"{name} is no list of numbers below {below}; expected at most {most} of them")
    return found


def one_of(values: Mapping[str, Any], name: str, default: str | None, known: tuple[str, ...]) -> str:
    """Return a word of a request that has to be a known one.

    Raises:
        RequestError: it is another.
    """
    value = values.get(name, default)
    if not isinstance(value, str) or value not in known:
        raise RequestError(f"{name} is {_shown(value)}; known are {', '.join(known)}")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
