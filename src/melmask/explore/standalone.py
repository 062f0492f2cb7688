"""Assembles a page that needs no server: the files of `page/` and blocks of data, all in one HTML file."""

import base64
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import IO, Any

import numpy as np

from melmask.explore.encoding import little_endian
from melmask.pages.images import data_uri
from melmask.pages.render import part
from melmask.system.files import atomic_write
from melmask.system.reading import read_bytes, read_text

PAGE = Path(__file__).parent / "page"
RUNTIME = PAGE / "vendor" / "onnxruntime"
_ENTRY, _PREFIX = "main.js", "melmask/"
_TEMPLATE = "standalone.html.j2"
# Marks in index.html: where modules are told their names, and where the data goes.
_NAMES_HERE, _DATA_HERE = "<!-- names of modules -->", "<!-- data -->"
# A static import or export, or a dynamic import, of a file beside this one: a name in quotes that begins with a dot.
_IMPORT = re.compile(r"""(\bfrom\s*|\bimport\s*\(?\s*)(["'])(\.{1,2}/[^"'\n]+)\2""")


class Blocks:
    """Writes bytes into a page, each block into an element of its own; `static_data.js` reads them."""

    def __init__(self, file: IO[str]):
        self._file, self._count = file, 0
        self.size = 0
        """Letters that all blocks have so far."""

    def add(self, content: bytes) -> str:
        """Compress bytes, write them as a block, and return its name."""
        # The time in the header of gzip would make equal pages differ.
        return self.add_as_is(gzip.compress(content, 6, mtime=0))

    def add_as_is(self, content: bytes) -> str:
        """Write a block whose bytes are compressed already, and return its name."""
        name, text = f"block-{self._count}", base64.b64encode(content).decode("ascii")
        self._file.write(part(_TEMPLATE, "block", name, text))
        self._count += 1
        self.size += len(text)
        return name

    def array(self, values: np.ndarray) -> dict[str, str]:
        """Write an array, and return what `arrayOf` of static_data.js takes."""
        return {"block": self.add(little_endian(values)), "type": values.dtype.name}

    def json(self, content: Any) -> str:
        """Write a JSON text, and return its name."""
        return self.add(json.dumps(content, separators=(",", ":"), allow_nan=False).encode())


def write_standalone(path: Path, fill: Callable[[Blocks], dict[str, Any]]) -> int:
    """Write the page; return its size in bytes.

    Args:
        path: The HTML file.
        fill: Writes blocks, and returns the facts that name them.

    Raises:
        OutputError: the file cannot be written.
    """
    shell = read_text(PAGE / "index.html")
    for old, new in (
        ("/page/style.css", _data_uri("text/css", read_text(PAGE / "style.css"))),
        (f"/page/{_ENTRY}", _data_uri("text/javascript", f'import "{_PREFIX}{_ENTRY}";')),
        (_NAMES_HERE, part(_TEMPLATE, "import_map", _modules())),
    ):
        assert shell.count(old) == 1, f"index.html has no {old}"
        shell = shell.replace(old, new)
    before, mark, after = shell.partition(_DATA_HERE)
    assert mark, f"index.html has no {_DATA_HERE}"
    with atomic_write(path, "w") as file:
        file.write(before)
        file.write(part(_TEMPLATE, "licenses", _licenses()))
        file.write(part(_TEMPLATE, "block", "third-party-notices", _base64(RUNTIME / "ThirdPartyNotices.txt.gz")))
        file.write(part(_TEMPLATE, "facts", fill(Blocks(file))))
        file.write(after)
    return path.stat().st_size


def _modules() -> dict[str, str]:
    """Return the modules of the page by their names, as data URIs: those that the first one imports, and so on."""
    modules: dict[str, str] = {}
    waiting = [_ENTRY]
    while waiting:
        name = waiting.pop()
        if name not in modules:
            text, found = _with_names(read_text(PAGE / name), dirname(name))
            modules[name] = _data_uri("text/javascript", text)
            waiting += found
    return {f"{_PREFIX}{name}": uri for name, uri in sorted(modules.items())}


def _with_names(text: str, folder: str) -> tuple[str, list[str]]:
    """Return a module whose relative imports are names, since data URIs have no folder; and what it imports."""
    found: list[str] = []

    def named(match: re.Match[str]) -> str:
        name = normpath(join(folder, match[3]))
        assert (PAGE / name).is_file(), f"the page has no {name}"
        found.append(name)
        return f"{match[1]}{match[2]}{_PREFIX}{name}{match[2]}"

    return _IMPORT.sub(named, text), found


def _licenses() -> str:
    """Return the licenses of the libraries in the page."""
    own = read_text(PAGE / "vendor" / "LICENSES.txt")
    return f"{own}\nONNX Runtime Web\n\n{read_text(RUNTIME / 'LICENSE')}"


def _base64(path: Path) -> str:
    return base64.b64encode(read_bytes(path)).decode("ascii")


def _data_uri(kind: str, text: str) -> str:
    return data_uri(kind, text.encode())
