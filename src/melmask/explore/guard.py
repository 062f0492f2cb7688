"""What stands before every request: only this computer's own page, with the token of this start, is answered.

A web site that is open in the same browser must neither read nor change anything. It cannot send the token. Its name,
made to lead to this computer (DNS rebinding), is in the Host header and is refused. What it sends from its own pages
has its Origin, or says `cross-site` in Sec-Fetch-Site, and is refused. Other computers cannot connect at all, as the
server listens on the loopback interface only.
"""

import secrets
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = "127.0.0.1"
_OPEN = "/page/"
"""Scripts and styles below this hold no data, and are given without a token."""
_POLICY = "; ".join(
    (
        "default-src 'none'",
        # WebAssembly has to be allowed by name; scripts within the page are not.
        "script-src 'self' 'wasm-unsafe-eval'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "font-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # The address has the token in it.
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
}


class Guard:
    """ASGI middleware that refuses what does not come from the page of this start, and adds the security headers."""

    def __init__(self, app: ASGIApp, token: str, port: int):
        self._app, self._token = app, token.encode()
        self._hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}
        # Browsers leave out the port that is usual.
        if port == 80:
            self._hosts |= {LOOPBACK, "localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # There are no web sockets; closing before accepting refuses one.
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return _refused(421, "the Host header is not this page's; open the address that melmask printed")
        origins = headers.getlist("origin")
        if any(origin.lower() != f"http://{hosts[0].lower()}" for origin in origins):
            return _refused(403, "the request comes from another site; open the address that melmask printed")
        # Browsers say `none` of an address that was typed, or opened by another program.
        if any(site not in ("same-origin", "none") for site in headers.getlist("sec-fetch-site")):
            return _refused(403, "the request comes from another site; open the address that melmask printed")
        if scope["path"].startswith(_OPEN):
            return None
        if not self._has_token(scope, headers):
            return _refused(403, "the token is missing or of an earlier start; open the address that melmask printed")
        return None

    def _has_token(self, scope: Scope, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            try:
                fields = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=20)
            except ValueError:
                return False
            given = fields.get("token", [""])[0]
        # The time of the comparison must not say how much of the token was right.
        return secrets.compare_digest(given.encode("utf-8", "replace"), self._token)


def _refused(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status_code=status)
