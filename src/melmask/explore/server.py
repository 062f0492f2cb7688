"""The HTTP API of the page, and the page itself. `guard.py` stands before all of it."""

import mimetypes
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from melmask.errors import MelmaskError
from melmask.explore import requests as ask
from melmask.explore.collection import Collection
from melmask.explore.columns import Column
from melmask.explore.encoding import base64_of, little_endian
from melmask.explore.guard import Guard
from melmask.explore.inside import Inside
from melmask.explore.requests import RequestError
from melmask.explore.threads import in_thread
from melmask.explore.user_api import UserApi
from melmask.system.reading import read_bytes
from melmask.system.terminal import note

PAGE = Path(__file__).parent / "page"
_MOST_NAMES = 100_000
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}


def app_of(collection: Collection, token: str, port: int) -> Starlette:
    """Return the web application that shows a collection, for requests with this token to this port."""
    inside = Inside(collection)
    api, user = _Api(collection, inside), UserApi(collection, inside)
    routes = [
        Route("/", _page_file(PAGE / "index.html")),
        *(Route(f"/page/{name}", _page_file(path)) for name, path in page_files().items()),
        Route("/api/collection", api.collection),
        Route("/api/points", api.points),
        Route("/api/column", api.column),
        Route("/api/names", api.names),
        Route("/api/items/{id}", api.item),
        Route("/api/items/{id}/spectrogram", api.spectrogram),
        Route("/api/items/{id}/sound", api.sound),
        Route("/api/items/{id}/reconstruct", api.reconstruct, methods=["POST"]),
        Route("/api/items/{id}/listen", api.listen, methods=["POST"]),
        Route("/api/items/{id}/attention", api.attention, methods=["POST"]),
        *user.routes,
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, token=token, port=port)],
        exception_handlers={
            RequestError: _failed,
            MelmaskError: _failed,
            HTTPException: _failed,
            # A browser that turns away needs no answer.
            ClientDisconnect: _failed,
            Exception: _broken,
        },
    )


def page_files() -> dict[str, Path]:
    """Return the files of the page by their names below `/page/`.

    The names are listed once. What a request asks for is looked up among them, and never made a path.
    """
    files = (path for path in sorted(PAGE.rglob("*")) if path.is_file() and path.suffix != ".py")
    return {path.relative_to(PAGE).as_posix(): path for path in files}


class _Api:
    """The answers. Work that takes time runs in threads, so that no request waits for another's."""

    def __init__(self, collection: Collection, inside: Inside):
        self._shown, self._inside = collection, inside

    async def collection(self, _request: Request) -> Response:
        return JSONResponse(await in_thread(collection_facts, self._shown))

    async def points(self, request: Request) -> Response:
        name = ask.one_of(request.query_params, "projection", "pca", tuple(self._shown.projections.names))
        points = await in_thread(self._shown.projections.points, name)
        return Response(little_endian(points), media_type="application/octet-stream")

    async def column(self, request: Request) -> Response:
        return await in_thread(self._column, request.query_params.get("name", ""))

    def _column(self, name: str) -> Response:
        try:
            column = self._shown.column(name)
        except KeyError:
            raise RequestError(f"there is no column {name[:60]!r}", 404) from None
        return JSONResponse(_column_json(column))

    async def names(self, request: Request) -> Response:
        first = ask.whole_number(request.query_params, "from", 0, 0, self._shown.count)
        count = ask.whole_number(request.query_params, "count", 1000, 0, _MOST_NAMES)
        return JSONResponse({"names": await in_thread(self._shown.names, first, count)})

    async def item(self, request: Request) -> Response:
        return await in_thread(self._item, self._point(request))

    def _item(self, point: int) -> Response:
        shown = self._shown
        return JSONResponse(
            {
                "id": point,
                "name": shown.names(point, 1)[0],
                "start_s": shown.sounds[point].start_s,
                "end_s": shown.sounds[point].end_s,
                "duration_s": shown.total_s(point),
                "columns": {column.name: column.value(point) for column in shown.columns()},
                "error": shown.vectors.failed.get(point),
            }
        )

    async def spectrogram(self, request: Request) -> Response:
        return await _json(self._inside.spectrogram, self._point(request), request.query_params)

    async def sound(self, request: Request) -> Response:
        sound = self._shown.sounds[self._point(request)]
        from_s = ask.number(request.query_params, "from_s", 0.0, 0.0, 1e9)
        wav = await in_thread(self._inside.sounds.wav, sound, from_s)
        return _part(wav, request.headers.get("range"), "audio/wav")

    async def reconstruct(self, request: Request) -> Response:
        return await _json(self._inside.reconstruct, self._point(request), await ask.json_of(request))

    async def listen(self, request: Request) -> Response:
        values = await ask.json_of(request)
        wav = await in_thread(self._inside.listen, self._point(request), values)
        return Response(wav, media_type="audio/wav")

    async def attention(self, request: Request) -> Response:
        return await _json(self._inside.attention, self._point(request), await ask.json_of(request))

    def _point(self, request: Request) -> int:
        try:
            return ask.whole_number(request.path_params, "id", None, 0, self._shown.count - 1)
        except RequestError as error:
            raise RequestError(str(error), 404) from None


def collection_facts(shown: Collection) -> dict[str, Any]:
    """Return what the page knows of a collection before it asks for anything else."""
    card = shown.model.card
    return {
        "name": shown.name,
        "count": shown.count,
        "kind": "segments" if shown.segments else "files",
        "model": {
            "name": Path(shown.model.name).name,
            "parameters": sum(p.numel() for p in shown.model.model.parameters()),
            "sample_rate_hz": shown.model.sample_rate_hz,
            "hop_ms": shown.model.hop_ms,
            "unit_frames": card.model.frames,
            "patch_mels": card.model.patch_mels,
            "patch_frames": card.model.patch_frames,
            "rows": card.model.mels // card.model.patch_mels,
            "resolutions": card.model.resolutions,
            "decoder": card.model.has_decoder,
            "layers": card.model.depth,
            "heads": card.model.heads,
            "cls": card.model.cls_token,
        },
        "columns": shown.described(),
        "projections": shown.projections.names,
        "listen": card.model.has_decoder,
        "embedding": {
            "done": shown.vectors.done,
            "total": shown.count,
            "failed": len(shown.vectors.failed),
            "running": shown.job.running,
            "error": shown.job.error,
        },
    }


def _column_json(column: Column) -> dict[str, Any]:
    if column.values is not None:
        return {"kind": column.kind, "values": base64_of(column.values)}
    assert column.codes is not None
    return {"kind": column.kind, "categories": list(column.categories), "codes": base64_of(column.codes)}


async def _json(work: Callable[..., Any], *arguments: Any) -> Response:
    return JSONResponse(await in_thread(work, *arguments))


def _page_file(path: Path) -> Callable[[Request], Response]:
    """Return the endpoint that gives one file of the page."""
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"

    def give(_request: Request) -> Response:
        # Read each time, so that the page can be worked on while the server runs.
        return Response(read_bytes(path), media_type=kind, headers={"Cache-Control": "no-cache"})

    return give


def _part(content: bytes, wanted: str | None, kind: str) -> Response:
    """Return a file, or the one part of it that a Range header asks for (RFC 9110, section 14)."""
    headers = {"Accept-Ranges": "bytes"}
    found = _RANGE.fullmatch(wanted or "")
    if found is None or not (found[1] or found[2]):
        return Response(content, media_type=kind, headers=headers)
    first = int(found[1]) if found[1] else max(0, len(content) - int(found[2]))
    last = min(int(found[2]), len(content) - 1) if found[1] and found[2] else len(content) - 1
    if first > last:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(content[first : last + 1], 206, headers, kind)


def _failed(_request: Request, error: Exception) -> Response:
    """Say in one line what was wrong with a request."""
    status = getattr(error, "status", None) or getattr(error, "status_code", None) or 422
    reason = error.detail if isinstance(error, HTTPException) else str(error)
    return JSONResponse({"error": " ".join(str(reason).split())}, status_code=status)


def _broken(_request: Request, error: Exception) -> Response:
    for line in "".join(traceback.format_exception(error)).splitlines():
        note(line)
    return JSONResponse({"error": f"melmask failed: {type(error).__name__}: {error}"}, status_code=500)
