"""Sphinx builds the documentation site from these settings: `make docs`, or python -m sphinx -W docs site."""

import contextlib
import io
import os
import re
from pathlib import Path

import melmask
from melmask.cli import main
from melmask.recipes import RECIPES

DOCS = Path(__file__).parent

project = "melmask"
release = melmask.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# A link to a heading, as [words](page.md#some-heading), is checked like any other link.
myst_heading_anchors = 4
# Pages whose developers add to them without touching the menu are listed by a pattern, which may match nothing.
suppress_warnings = ["toc.empty_glob"]

# Docstrings put code between single backticks.
default_role = "code"
# Blocks without a language are diagrams and output, not Python.
highlight_language = "text"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "melmask"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


def commands_text() -> str:
    """The help of every command, as `melmask COMMAND --help` prints it: this page cannot differ from the program."""
    names = re.findall(r"^    ([a-z][a-z-]+)(?: |$)", _help(), re.MULTILINE)
    return "\n\n".join(f"## melmask {name}\n\n```text\n{_help(name)}```" for name in names)


def recipes_text() -> str:
    """What each recipe's file says at its head: the command, the hardware, the time and the expected score."""
    heads = {name: __import__(f"melmask.recipes.{name}", fromlist=["config"]).__doc__ for name in RECIPES}
    return "\n\n".join(f"## {name}\n\n```text\n{head.strip()}\n```" for name, head in heads.items())


def _help(*command: str) -> str:
    os.environ["COLUMNS"] = "88"
    with contextlib.redirect_stdout(io.StringIO()) as page, contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return page.getvalue()


_GENERATED = {"reference/commands": commands_text, "reference/recipes": recipes_text}


def _complete_source(_app, name: str, source: list[str]) -> None:
    if name in _GENERATED:
        source[0] += f"\n{_GENERATED[name]()}\n"
    folder = (DOCS / name).parent

    def leaving(link: re.Match[str]) -> str:
        # The pages are read on a code host, too, where links to files outside docs/ work as they are. Here such a file
        # becomes a download, and a link to a folder becomes plain text.
        target = (folder / link[2]).resolve()
        if target.is_relative_to(DOCS):
            return link[0]
        return f"{link[1]} (`{target.relative_to(DOCS.parent)}`)" if target.is_dir() else f"[{link[1]}](path:{link[2]})"

    source[0] = re.sub(r"\[([^\]]*)\]\((\.\.?/[^)#]*)\)", leaving, source[0])


def _mark_examples(_app, _kind: str, _name: str, _object, _options, lines: list[str]) -> None:
    """Mark the indented examples of docstrings as code; docstrings are written for readers of the code, without it."""
    marked: list[str] = []
    for line in lines:
        is_example = line.startswith("    ") and marked and not marked[-1]
        before = next((kept for kept in reversed(marked) if kept), "")
        if is_example and before and not before.startswith(" "):
            marked += [".. code-block:: python", ""]
        marked.append(line)
    lines[:] = marked


def setup(app) -> None:
    """Connect what completes the pages."""
    app.connect("source-read", _complete_source)
    # Before napoleon, which turns the sections of a docstring into markup at the usual priority of 500.
    app.connect("autodoc-process-docstring", _mark_examples, priority=400)
