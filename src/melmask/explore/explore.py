"""The work of `melmask explore`: open a collection, serve its page on this computer, and end cleanly."""

import secrets
import socket
import webbrowser
from contextlib import suppress
from pathlib import Path

import uvicorn

from melmask.errors import ConfigError
from melmask.explore.collection import Collection
from melmask.explore.guard import LOOPBACK
from melmask.explore.options import ExploreOptions
from melmask.explore.server import app_of
from melmask.system.terminal import counted, note, say

_TOKEN_BYTES = 32
_GRACE_S = 2


def serve(collection: Collection, options: ExploreOptions) -> None:
    """Serve the page until the process is interrupted; what is missing is embedded meanwhile.

    Raises:
        ConfigError: the port is taken.
    """
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    with listening(options.port) as listener:
        port = listener.getsockname()[1]
        address = f"http://{LOOPBACK}:{port}/?token={token}"
        what = "segment" if collection.segments else "file"
        say(f"{counted(collection.count, what)}, of which {collection.vectors.done:,} are embedded")
        say(address)
        say("the page is for this computer only; Ctrl-C ends it")
        collection.job.start()
        server = uvicorn.Server(
            uvicorn.Config(
                app_of(collection, token, port),
                # What goes wrong is said by the application; uvicorn would add what Ctrl-C interrupts.
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                lifespan="off",
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        if not options.no_browser:
            _open(address)
        try:
            # uvicorn raises the interrupt again when it has closed its connections.
            with suppress(KeyboardInterrupt):
                server.run(sockets=[listener])
        finally:
            if collection.job.running:
                note("\nmelmask: ends when the sounds under way are embedded; Ctrl-C again ends it at once")
            collection.job.stop()


def _open(address: str) -> None:
    """Open the page in a browser, if there is one with windows: one of the terminal would take the terminal over."""
    with suppress(webbrowser.Error):
        browser = webbrowser.get()
        if type(browser) is not webbrowser.GenericBrowser:
            browser.open(address)


def listening(port: int) -> socket.socket:
    """Return a socket that listens on the loopback interface only.

    Raises:
        ConfigError: the port is taken, or not allowed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # On Windows, what elsewhere lets a port be used again soon would let other programs listen on it.
    listener.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR), 1)
    try:
        listener.bind((LOOPBACK, port))
        # Browsers that are quicker than the server wait, and are not refused.
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(f"port {port} cannot be used ({error.strerror}); give another --port, or none") from error
    return listener


def explore(source: Path, model: Path | None, options: ExploreOptions, device: str = "auto") -> Collection:
    """Show a collection until the process is interrupted, and return it.

    Raises:
        MelmaskError: as `open_collection` and `serve`.
    """
    from melmask.explore.collection import open_collection

    collection = open_collection(source, model, options, device)
    serve(collection, options)
    return collection
