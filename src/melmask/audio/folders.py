"""The sound files below a folder."""

import os
from collections import deque
from pathlib import Path

from melmask.audio.video import VIDEO_SUFFIXES

_SOUND = ".wav .wave .bwf .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .caf .au .snd .w64 .rf64 .nist .sph .voc"
SOUND_SUFFIXES = frozenset(_SOUND.split(" "))
"""What the bundled libsndfile reads."""
SCANNED_SUFFIXES = SOUND_SUFFIXES | VIDEO_SUFFIXES
"""What a scan takes; it skips other files."""

_SYSTEM_FOLDERS = frozenset({"__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "lost+found"})


def sound_paths(folder: Path) -> list[Path]:
    """Return the files below `folder` whose suffix, in either case, is that of a sound or a video; sorted.

    Linked folders are searched too, each folder once. Hidden files and folders, and those of operating systems (`._x`,
    `__MACOSX`), are skipped. A folder that may not be read is returned as if it were a file, so that reading it says
    why, and so is a link that leads nowhere.
    """
    found: list[Path] = []
    # Linked folders come last, so that a folder that is there without a link keeps its own name.
    waiting = deque([folder])
    visited: set[str] = set()
    while waiting:
        here = waiting.popleft()
        real = os.path.realpath(here)
        if real in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(here) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            found.append(here)
            continue
        # The folders of this one go first, in order.
        nearer: list[Path] = []
        for entry in listed:
            path = here / entry.name
            if entry.name.startswith(".") or entry.name in _SYSTEM_FOLDERS:
                continue
            if not _is_folder(entry):
                if path.suffix.lower() in SCANNED_SUFFIXES and _may_be_sound(path):
                    found.append(path)
            elif not entry.is_symlink():
                nearer.append(path)
            elif not _is_loop(path, folder, real):
                waiting.append(path)
        waiting.extendleft(reversed(nearer))
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself, say.
        return False


def _is_loop(link: Path, folder: Path, real: str) -> bool:
    """Whether a link leads to a folder above it, and so to all that lies beside the searched folder."""
    target = Path(os.path.realpath(link))
    return target in (Path(real), *Path(real).parents) or target in Path(os.path.realpath(folder)).parents


def _may_be_sound(path: Path) -> bool:
    # A link that leads nowhere is somebody's file, and missing.
    try:
        return path.is_file() or (path.is_symlink() and not path.exists())
    except OSError:
        return True
