"""Assembles a page that needs no server: the files of `page/` and blocks of data, all in one HTML file."""

import base64
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from posixpath import join, normpath
from typing import IO, Any

import numpy as np

from melmask.explore.encoding import little_endian
from melmask.system.files import atomic_write
from melmask.system.reading import read_bytes, read_text

PAGE = Path(__file__).parent / "page"
RUNTIME = PAGE / "vendor" / "onnxruntime"
_ENTRY = "main.js"
_STYLE = '<link rel="stylesheet" href="/page/style.css">'
_SCRIPT = f'<script type="module" src="/page/{_ENTRY}"></script>'
_END = "</body>"
_ELEMENT = '<script type="{kind}" id="{name}">{content}</script>\n'
# A static import or export, or a dynamic import, of a file beside this one: a name in quotes that begins with a dot.
_IMPORT = re.compile(r"""(\bfrom\s*|\bimport\s*\(?\s*)(["'])(\.{1,2}/[^"'\n]+)\2""")


class Blocks:
    """Writes bytes into a page, each block into an element of its own; `static_data.js` reads them."""

    def __init__(self, file: IO[str]):
        self._file, self._count = file, 0
        self.size = 0
        """Letters that all blocks have so far."""

    def add(self, content: bytes, packed: bool = True) -> str:
        """Write a block, compressed unless told otherwise, and return its name."""
        # The time in the header of gzip would make equal pages differ.
        content = gzip.compress(content, 6, mtime=0) if packed else content
        return self.add_as_is(content)

    def add_as_is(self, content: bytes) -> str:
        """Write a block whose bytes are compressed already, and return its name."""
        name, text = f"block-{self._count}", base64.b64encode(content).decode("ascii")
        self._file.write(_ELEMENT.format(kind="application/octet-stream", name=name, content=text))
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
    style = f"<style>\n{read_text(PAGE / 'style.css')}</style>"
    for old, new in ((_STYLE, style), (_SCRIPT, _scripts())):
        assert shell.count(old) == 1, f"index.html has no {old}"
        shell = shell.replace(old, new)
    before, end, after = shell.rpartition(_END)
    with atomic_write(path, "w") as file:
        file.write(before)
        _add_licenses(file)
        facts = fill(Blocks(file))
        file.write(_ELEMENT.format(kind="application/json", name="melmask-data", content=json_in_html(facts)))
        file.write(end + after)
    return path.stat().st_size


def json_in_html(content: Any) -> str:
    """Return JSON that cannot end the element it is in, whatever names and labels hold."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _scripts() -> str:
    """Return the modules of the page as elements: a map from their names to data URIs, and what starts the first."""
    modules: dict[str, str] = {}
    waiting = [_ENTRY]
    while waiting:
        name = waiting.pop()
        if name in modules:
            continue
        folder = str(Path(name).parent)
        text, found = _with_names(read_text(PAGE / name), "" if folder == "." else folder)
        modules[name] = f"data:text/javascript;base64,{base64.b64encode(text.encode()).decode()}"
        waiting += found
    imports = {"imports": {f"melmask/{name}": uri for name, uri in sorted(modules.items())}}
    return (
        f'<script type="importmap">{json_in_html(imports)}</script>\n'
        f'<script type="module">import "melmask/{_ENTRY}";</script>'
    )


def _with_names(text: str, folder: str) -> tuple[str, list[str]]:
    """Return a module whose relative imports are names, since data URIs have no folder; and what it imports."""
    found: list[str] = []

    def named(match: re.Match[str]) -> str:
        name = normpath(join(folder, match[3]))
        assert (PAGE / name).is_file(), f"the page has no {name}"
        found.append(name)
        return f"{match[1]}{match[2]}melmask/{name}{match[2]}"

    return _IMPORT.sub(named, text), found


def _add_licenses(file: IO[str]) -> None:
    """Write the licenses of the libraries in the page: short ones to be read, the notices of the runtime packed."""
    texts = [read_text(PAGE / "vendor" / "LICENSES.txt"), "ONNX Runtime Web\n", read_text(RUNTIME / "LICENSE")]
    file.write(_ELEMENT.format(kind="text/plain", name="licenses", content="\n".join(texts).replace("<", "&lt;")))
    notices = base64.b64encode(read_bytes(RUNTIME / "ThirdPartyNotices.txt.gz")).decode()
    file.write(_ELEMENT.format(kind="application/gzip;base64", name="third-party-notices", content=notices))
