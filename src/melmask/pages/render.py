"""Render a page with jinja2 and write it as one file that asks for nothing from elsewhere."""

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from melmask.system.files import atomic_write
from melmask.train.health import number_text

MISSING = "–"
"""What a page writes where a number does not exist."""


@functools.cache
def environment() -> Environment:
    """Return the templates of all pages.

    Names, labels and error messages come from users' files, so everything that a template inserts is escaped, and a
    name that the Python code forgot to pass is an error instead of an empty place on the page.
    """
    # The trimming keeps lines that hold only a block of the template out of the page.
    made = Environment(
        loader=PackageLoader("melmask.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_position,
    )
    made.filters |= {"thousands": thousands, "counted": counted}
    made.filters |= {"number": number_text, "rounded": rounded, "span": span}
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
    """Write a float with at most two decimals: on these pages it is a place in a drawing, in pixels."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def thousands(value: object) -> str:
    """Write an integer as 12,345, and anything else as a dash."""
    return f"{value:,}" if isinstance(value, int) else MISSING


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: '1 task', '3 tasks'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rounded(value: float) -> str:
    """Write a number with two digits, or all digits before the point: '0.17', '1,234'."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def span(seconds: float) -> str:
    """Write a time: 93784 -> '1 d 2 h', 3725 -> '1 h 02 min', 65 -> '1 min 05 s'."""
    # An estimate of the time left can be infinite or negative for a moment.
    if not 0 <= seconds < 1e10:
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h} h"
    if hours:
        return f"{h} h {m:02d} min"
    return f"{m} min {s:02d} s" if minutes else f"{s} s"
