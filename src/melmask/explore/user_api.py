"""The part of the HTTP API that answers the user's own doing: search, labels, and what a probe of them finds."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from melmask.audio.parts import Sound
from melmask.errors import AudioFileError
from melmask.explore import requests as ask
from melmask.explore.collection import Collection
from melmask.explore.encoding import base64_of
from melmask.explore.inside import Inside
from melmask.explore.learning import Probe, fit_probe, label_table, suggestions
from melmask.explore.requests import MOST_SOUND_BYTES, RequestError
from melmask.explore.similarity import Suggestion
from melmask.explore.threads import in_thread

_MOST_RESULTS = 1000
_LONGEST_QUERY_S = 600.0
_CLASSES_TO_LEARN = 2


class UserApi:
    """Search, labels and learning. What takes time runs in threads."""

    def __init__(self, collection: Collection, inside: Inside):
        self._shown, self._inside = collection, inside
        self._probe: tuple[int, dict[int, str], Probe] | None = None
        self._lock = Lock()

    @property
    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("/api/search", self.search, methods=["POST"]),
            Route("/api/labels", self.labels),
            Route("/api/labels", self.put_labels, methods=["PUT"]),
            Route("/api/labels.csv", self.labels_csv),
            Route("/api/probe", self.probe, methods=["POST"]),
            Route("/api/suggestions", self.suggestions),
            Route("/api/suspects", self.suspects),
            Route("/api/duplicates", self.duplicates),
        ]

    async def search(self, request: Request) -> Response:
        """Find the points that are most like a point, a part of one, or a sound in the body."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith(("audio/", "video/")) or kind == "application/octet-stream":
            count = ask.whole_number(request.query_params, "count", 20, 1, _MOST_RESULTS)
            # The name of the file is ours; on Windows it cannot be removed while a failed reader holds it.
            with tempfile.TemporaryDirectory(prefix="melmask-", ignore_cleanup_errors=True) as folder:
                path = Path(folder) / "sound"
                await ask.save_body(request, path, MOST_SOUND_BYTES)
                return await in_thread(self._by_file, path, count)
        values = await ask.json_of(request)
        point = ask.whole_number(values, "id", None, 0, self._shown.count - 1)
        count = ask.whole_number(values, "count", 20, 1, _MOST_RESULTS)
        start_s, end_s = (
            None if values.get(name) is None else ask.number(values, name, None, 0.0, 1e9)
            for name in ("start_s", "end_s")
        )
        return await in_thread(self._by_point, point, start_s, end_s, count)

    def _by_file(self, path: Path, count: int) -> Response:
        if not path.stat().st_size:
            raise RequestError("the sound is empty; send a sound file")
        try:
            vector = self._inside.vector(Sound(path, 0.0, _LONGEST_QUERY_S))
        except AudioFileError as error:
            # Where the copy lies is of no use to the user.
            whole = f"{path} from 0 s to {_LONGEST_QUERY_S:g} s"
            raise RequestError(str(error).replace(whole, "the sound").replace(str(path), "the sound"), 422) from None
        return self._results(self._shown.vectors.turned(vector[None])[0], count)

    def _by_point(self, point: int, start_s: float | None, end_s: float | None, count: int) -> Response:
        shown = self._shown
        if start_s is None and end_s is None and shown.vectors.known[point]:
            return self._results(shown.vectors.rows[point], count, without=point)
        sound = shown.sounds[point]
        begin_s = sound.start_s + (start_s or 0.0)
        stop_s = sound.end_s if end_s is None else sound.start_s + end_s
        if stop_s is not None and stop_s <= begin_s:
            raise RequestError(f"the part from {start_s} s to {end_s} s is empty; give an end after the start")
        vector = self._inside.vector(Sound(sound.path, begin_s, stop_s))
        return self._results(shown.vectors.turned(vector[None])[0], count, without=point)

    def _results(self, vector: Any, count: int, without: int | None = None) -> Response:
        found = self._shown.similarity.nearest(vector, count + 1)
        kept = [(point, similarity) for point, similarity in found if point != without][:count]
        return JSONResponse({"results": [{"id": point, "similarity": round(value, 5)} for point, value in kept]})

    async def labels(self, _request: Request) -> Response:
        """Return the label of each labeled point."""
        return JSONResponse({"labels": {str(point): label for point, label in self._shown.labels.all().items()}})

    async def put_labels(self, request: Request) -> Response:
        """Label points, or take their labels away."""
        values = await ask.json_of(request)
        label = values.get("label")
        if "label" not in values or not (label is None or isinstance(label, str)):
            raise RequestError("label is missing; give a text, or null to take labels away")
        await in_thread(self._put, values, label)
        return JSONResponse({"labeled": len(self._shown.labels.all())})

    def _put(self, values: dict[str, Any], label: str | None) -> None:
        points = ask.whole_numbers(values, "ids", self._shown.count, self._shown.count)
        self._shown.labels.put(points, label)

    async def labels_csv(self, _request: Request) -> Response:
        """Return the labels as the table that `melmask finetune` takes."""
        text = await in_thread(self._shown.labels.csv_text)
        headers = {"Content-Disposition": 'attachment; filename="labels.csv"'}
        return Response(text.encode("utf-8", "surrogateescape"), headers=headers, media_type="text/csv; charset=utf-8")

    async def probe(self, _request: Request) -> Response:
        """Fit a probe to the labels, and return its score and its guesses."""
        return await in_thread(self._probed)

    def _probed(self) -> Response:
        probe = self._fitted()
        return JSONResponse(
            {
                "labelled": probe.labeled,
                "classes": probe.classes,
                "accuracy": probe.accuracy,
                "interval": probe.interval_95,
                "note": probe.note,
                "codes": base64_of(probe.codes),
                "confidence": base64_of(probe.confidence),
            }
        )

    def _fitted(self) -> Probe:
        """Return the probe of the labels as they are, which is fitted once."""
        with self._lock:
            labels, known = self._shown.labels.all(), int(self._shown.vectors.known.sum())
            if self._probe is None or self._probe[:2] != (known, labels):
                table, points = label_table(self._shown.sounds, labels, self._shown.vectors.known)
                self._probe = known, labels, fit_probe(self._shown.vectors, table, points)
            return self._probe[2]

    async def suggestions(self, request: Request) -> Response:
        """Return the points that are worth labeling next."""
        return await in_thread(self._suggested, _count(request, 10))

    def _suggested(self, count: int) -> Response:
        labels, known = self._shown.labels.all(), self._shown.vectors.known
        enough = len({label for point, label in labels.items() if known[point]}) >= _CLASSES_TO_LEARN
        return _items(suggestions(self._shown.vectors, self._fitted() if enough else None, labels, count))

    async def suspects(self, request: Request) -> Response:
        """Return labeled points whose neighbors have another label."""
        return await in_thread(self._suspected, _count(request, 20))

    def _suspected(self, count: int) -> Response:
        return _items(self._shown.similarity.suspects(self._shown.labels.all(), count))

    async def duplicates(self, request: Request) -> Response:
        """Return pairs of points that are nearly the same."""
        return await in_thread(self._doubled, _count(request, 50))

    def _doubled(self, count: int) -> Response:
        return _items(self._shown.similarity.duplicates(count))


def _count(request: Request, default: int) -> int:
    return ask.whole_number(request.query_params, "count", default, 1, _MOST_RESULTS)


def _items(found: Iterable[Suggestion]) -> Response:
    items = [{"id": point, "why": why, **({} if other is None else {"other": other})} for point, why, other in found]
    return JSONResponse({"items": items})
