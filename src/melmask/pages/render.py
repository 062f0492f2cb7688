"""Render a page with jinja2 and write it as one file that asks for nothing from elsewhere."""

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from melmask.system.files import atomic_write

MISSING = "–"
"""What a page writes where a number does not exist."""


@functools.cache
def environment() -> Environment:
    """Return the templates of all pages.

    Names, labels and error messages come from users' files, so everything that a template inserts is escaped, and a
    name that the Python code forgot to pass is an error instead of an empty place on the page.
    """
    made = Environment(
        loader=PackageLoader("melmask.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_position,
    )
    made.filters |= {"thousands": thousands, "counted": counted}
    return made


def write_page(path: Path, template: str, **content: Any) -> Path:
    """Render `template` with `content` and write it to `path`, whole or not at all.

    Args:
        path: the HTML file to write.
        template: the name of a file in pages/templates.
        content: what the template inserts.

    Returns:
        `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    page = environment().get_template(template).render(content)
    with atomic_write(path, "w") as file:
        # JSON can name half of a surrogate pair, which UTF-8 cannot encode; a question mark must not break the page.
        file.write(page.encode("utf-8", "replace").decode("utf-8"))
    return path


def _position(value: Any) -> Any:
    """Write a number with a fraction, which on these pages is a place in a drawing, to a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def thousands(value: object) -> str:
    """Write an integer as 12,345, and anything else as a dash."""
    return f"{value:,}" if isinstance(value, int) else MISSING


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: '1 task', '3 tasks'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
