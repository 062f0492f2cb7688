"""What all figures share: their ink, their fonts, and how they are saved."""

import functools
import unicodedata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from melmask.errors import OutputError
from melmask.system.extras import require
from melmask.system.files import atomic_write
from melmask.system.terminal import note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 200
INK, MUTED = "#1f2933", "#66727f"
_NO_LETTERS = ("Last Resort", ".LastResort", "STIXNonUnicode", "STIXSize", "cm")
"""Fonts that show a box for each letter, or signs of formulas in the place of letters."""
_told: set[str] = set()


def new_figure(width_inches: float, height_inches: float) -> "Figure":
    """Make an empty figure that lays itself out, without a window and without global state.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("plot")
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format its suffix names (.png, .svg, .pdf), whole or not at all.

    Letters that matplotlib's own font lacks are drawn in an installed font that has them. Where there is none, they
    become boxes, and one line on standard error names the script.

    Raises:
        OutputError: the file cannot be written, or matplotlib does not know its suffix.
    """
    kind = check_picture(path)
    _choose_fonts(figure)
    with warnings.catch_warnings(), atomic_write(path) as file:
        # The line about a script stands for matplotlib's warnings about each of its letters.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(file, format=kind, dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.1, facecolor="white")


def check_picture(path: Path) -> str:
    """Return the format that the suffix of a picture names.

    Raises:
        OutputError: matplotlib does not know it.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    kind = path.suffix.removeprefix(".").lower()
    if kind not in FigureCanvasBase.get_supported_filetypes():
        raise OutputError(f"{path}: not a kind of picture; use .png, .svg or .pdf")
    return kind


def _choose_fonts(figure: "Figure") -> None:
    """Give the figure's texts more fonts if they need them, and say which letters no font has."""
    from matplotlib import rcParams
    from matplotlib.text import Text

    for axes in figure.axes:
        # The texts of ticks are written when they are asked for.
        axes.get_xticklabels()
        axes.get_yticklabels()
    texts = figure.findobj(Text)
    letters = {letter for text in texts if isinstance(text, Text) for letter in text.get_text()}
    foreign = frozenset(letter for letter in letters if not letter.isascii() and letter.isprintable())
    if not foreign:
        return
    families, without = _fonts_for(foreign)
    for text in texts if families else ():
        if isinstance(text, Text):
            text.set_fontfamily([*rcParams["font.family"], *families])
    scripts = {_script_of(letter): letter for letter in sorted(without, reverse=True)}
    for script in sorted(scripts.keys() - _told):
        _told.add(script)
        note(
            f"melmask: no font here has the letter {scripts[script]} ({script}), so pictures show boxes; install a "
            "font that has it, such as one of the Noto fonts"
        )


@functools.cache
def _fonts_for(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the fonts that are needed besides matplotlib's own, fewest first, and the letters that none has."""
    from matplotlib import font_manager

    def found_in(path: str, wanted: frozenset[str]) -> frozenset[str]:
        try:
            known = font_manager.get_font(path).get_charmap()
        except (RuntimeError, OSError):
            # A damaged font is no reason to have no picture.
            return frozenset()
        return frozenset(letter for letter in wanted if ord(letter) in known)

    missing = letters - found_in(font_manager.findfont(font_manager.FontProperties()), letters)
    # Regular fonts are looked through, and the renderer takes a bold one of that family where it needs it.
    fonts = {
        font.name: font.fname
        for font in font_manager.fontManager.ttflist
        if font.style == "normal"
        and font.weight in (400, "normal", "regular")
        and not font.name.startswith(_NO_LETTERS)
    }
    hits = {name: found_in(path, missing) for name, path in sorted(fonts.items())} if missing else {}
    chosen: list[str] = []
    while missing and (best := max(hits, key=lambda name: len(hits[name] & missing), default="")):
        if not hits[best] & missing:
            break
        chosen.append(best)
        missing -= hits[best]
    return tuple(chosen), missing


def _script_of(letter: str) -> str:
    """Name a letter's script by the first word of its name in Unicode, as Hangul or Devanagari."""
    word = unicodedata.name(letter, "unknown").split()[0]
    return {"CJK": "Chinese character"}.get(word, word.capitalize())
