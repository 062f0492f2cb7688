"""What tests of HTML pages share: a reader that knows elements, and a browser."""

import shutil
import subprocess
from html.parser import HTMLParser

import pytest

VOID = {"meta", "link", "img", "br", "wbr", "input"}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="neither chromium nor chromium-browser is on PATH")


class Page(HTMLParser):
    """Elements with their attributes and text; every element has to be closed in its turn."""

    def __init__(self, page):
        super().__init__()
        self.found, self.texts, self._open = [], [], []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        if self._open[-1:] not in (["script"], ["style"]):
            self.texts.append(text)

    def all(self, tag, kind=None):
        """Attributes of the elements of a tag, or of those among them that have a class."""
        found = [attributes for name, attributes in self.found if name == tag]
        return [a for a in found if kind is None or kind in (a.get("class") or "").split(" ")]

    @property
    def text(self):
        """All that is not script or style, with one space for any white space."""
        return " ".join("".join(self.texts).split())

    @property
    def links(self):
        """Whatever the page may load or lead to."""
        return [a[key] for _, a in self.found for key in ("href", "src") if key in a]


def shown(path, folder, *options):
    """The page at `path` after its scripts have run, as HTML; the browser must not complain."""
    usual = "--headless --no-sandbox --enable-logging=stderr --v=0 --virtual-time-budget=4000 --dump-dom"
    done = subprocess.run(
        [BROWSER, *usual.split(), *options, f"--user-data-dir={folder / 'browser'}", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "CONSOLE" not in done.stderr
    return done.stdout
