"""Render a page with jinja2 and write it as one file that asks for nothing from elsewhere."""

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from melmask.pages.wording import metric_text, rounded, setting_text, span, spread_text, thousands
from melmask.system.files import atomic_write
from melmask.system.terminal import counted, shown
from melmask.train.health import number_text


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
        finalize=_text,
    )
    made.filters |= {"thousands": thousands, "counted": counted, "number": number_text, "rounded": rounded}
    made.filters |= {"span": span, "metric": metric_text, "spread": spread_text, "settings": setting_text}
    return made


def part(template: str, macro: str, *content: Any) -> str:
    """Return what a macro of a template makes of `content`: a part of a page that is too large to be rendered at once.

    Args:
        template: the name of a file in pages/templates.
        macro: the name of a macro in it.
        content: what it inserts.
    """
    made = getattr(environment().get_template(template).module, macro)(*content)
    return str(made).encode("utf-8", "replace").decode("utf-8")


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


def _text(value: Any) -> Any:
    """Return what a template inserts as it is shown.

    A float gets at most two decimals: on these pages it is a place in a drawing, in pixels. A text may be a name from a
    file, whose marks of direction would turn what follows it; what is HTML already stays as it is.
    """
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return shown(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
