"""Where the files of a table lie: what is written in a table is seldom, letter by letter, what the disk has.

Tables come from other machines, so a path may start elsewhere, have backslashes and a drive letter, accents in another
Unicode form, other capitals or no suffix, and data sets keep their sounds in a folder such as `clips/`. Each folder is
listed once, and a row then costs look-ups in memory.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from melmask.audio.folders import SCANNED_SUFFIXES, SOUND_SUFFIXES
from melmask.errors import InputError

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
# Folders in which data sets keep their sounds, and which may have folders of folds in turn.
_OF_SOUNDS = re.compile("audio|clip|record|sound|wav|^data$", re.IGNORECASE)
_MOST_FOLDERS = 1000
"""A folder with more folders than this is no data set's, and searching them would take long."""
_MOST_TRIED = 1000
"""Of so many names one has to be found below a root, or the table's sounds are not there."""


class _Listing:
    """What one folder holds; empty where it is none."""

    def __init__(self, folder: str):
        self.names: set[str] = set()
        self.folders: list[str] = []
        self.closed = False
        try:
            with os.scandir(folder or ".") as entries:
                for entry in entries:
                    self.names.add(entry.name)
                    if not entry.name.startswith(".") and entry.is_dir():
                        self.folders.append(entry.name)
        except PermissionError:
            self.closed = True
        except (OSError, ValueError):
            # A folder that is not there has no files. ValueError: the name holds a zero byte.
            pass
        self.folders.sort()

    @cached_property
    def spellings(self) -> dict[str, list[str]]:
        """The names that are the same but for capitals and Unicode form."""
        found = defaultdict(list)
        for name in sorted(self.names):
            found[_folded(name)].append(name)
        return found

    @cached_property
    def stems(self) -> dict[str, list[str]]:
        """The sound files of each name without suffix; videos of a name only where it has no other sound."""
        found: dict[str, list[str]] = defaultdict(list)
        videos: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self.names):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 - on names, by the million
            if suffix.lower() in SCANNED_SUFFIXES:
                (found if suffix.lower() in SOUND_SUFFIXES else videos)[_folded(stem)].append(name)
        return {**videos, **found}


class _Below:
    """The sounds one or two folders down: in the folders of a root, and in the folders of its folders of sounds.

    Beside the folder of a table may be anybody's folders, of which only those that are named after sound count.
    """

    def __init__(self, root: str, *, beside: bool):
        self._names: dict[str, list[str]] = defaultdict(list)
        self._stems: dict[str, list[str]] = defaultdict(list)
        for name in _Listing(root).folders[:_MOST_FOLDERS]:
            of_sounds = _OF_SOUNDS.search(name) is not None
            if beside and not of_sounds:
                continue
            folder = os.path.join(root, name)  # noqa: PTH118 - strings are quicker for a million files
            inner = self._add(folder)
            if of_sounds:
                for own in inner.folders[:_MOST_FOLDERS]:
                    self._add(os.path.join(folder, own))  # noqa: PTH118

    def _add(self, folder: str) -> _Listing:
        listing = _Listing(folder)
        for index, names in ((self._names, listing.spellings), (self._stems, listing.stems)):
            for key, own in names.items():
                index[key] += [os.path.join(folder, one) for one in own]  # noqa: PTH118
        return listing

    def find(self, parts: Sequence[str]) -> list[str]:
        """The files whose paths end with `parts`."""
        key = _folded(parts[-1])
        found = self._names.get(key) or self._stems.get(key, [])
        if len(parts) > 1:
            ending = "/" + _folded("/".join(parts[:-1]))
            found = [path for path in found if _folded(Path(path).parent.as_posix()).endswith(ending)]
        return [path for path in found if Path(path).name == parts[-1]] or found


class Finder:
    """Finds the files of one table, `source`, below the folders `roots`."""

    def __init__(self, source: Path, roots: Sequence[Path]):
        self.source, self.roots = source, roots
        self._listings: dict[str, _Listing] = {}
        self._below: dict[str, _Below] = {}

    def find_all(self, names: Sequence[str]) -> tuple[list[Path], list[str]]:
        """Return the path of each name, and notes on names that are written otherwise on disk.

        A single file that is missing keeps its path, and is reported where it is read.

        Raises:
            InputError: no file exists at all, or a name could be several files.
        """
        # Names are joined as strings, because making paths of them takes most of the time of a million rows.
        absolute = {name for name in set(names) if os.path.isabs(name)}  # noqa: PTH117
        relative = [name for name in names if name not in absolute]
        # Absolute paths that all lead nowhere come from another machine, and their ends may be found here.
        foreign = not relative and not any(self._has(name) for name in absolute)
        root = self._root(relative)
        start = str(root)
        elsewhere: list[tuple[str, Path]] = []
        paths = []
        for name in names:
            inside = name not in absolute
            written = os.path.join(start, name) if inside else name  # noqa: PTH118
            found = None
            if (inside or foreign) and not self._has(written):
                found = self._find(name, [root] if inside else self.roots)
                if found is not None:
                    elsewhere.append((name, found))
            paths.append(found or Path(written))
        if not elsewhere:
            return paths, []
        name, found = elsewhere[0]
        count = "a path is" if len(elsewhere) == 1 else f"{len(elsewhere)} paths are"
        return paths, [f"{count} not found as written; {name!r} is taken for {found}"]

    def _root(self, relative: Sequence[str]) -> Path:
        """The first root under which one of the names is found as it is written, else in some other way."""
        if not relative:
            return self.roots[0]
        for root in self.roots:
            # One file is enough to find the root: files that are missing are reported where they are read.
            if any(self._has(str(root / name)) for name in relative):
                return root
        for root in self.roots:
            if any(self._find(name, [root]) is not None for name in relative[:_MOST_TRIED]):
                return root
        looked = " or ".join(map(str, self.roots))
        raise InputError(
            f"{self.source}: neither {relative[0]!r} nor any other file of it is below {looked}; say with --audio-root "
            "where the paths start"
        )

    def _listing(self, folder: str) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = _Listing(folder)
        return self._listings[folder]

    def _has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        listing = self._listing(folder)
        # A folder may let its files be opened and not be listed.
        return name in listing.names or (listing.closed and os.path.exists(path))  # noqa: PTH110

    def _find(self, name: str, roots: Sequence[Path]) -> Path | None:
        """Where `name` lies, tried in this order: other spellings, then fewer leading folders, then folders below."""
        drive = _DRIVE.match(name) is not None
        foreign = drive or os.path.isabs(name)  # noqa: PTH117
        parts = [part for part in re.split(r"[\\/]", name) if part not in ("", ".")]
        if not parts or ".." in parts:
            return None
        # Of a path from another machine, any number of its leading folders may be missing here.
        tails = [parts[start:] for start in range(len(parts))] if foreign else [parts]
        for root in map(str, roots):
            for tail in tails:
                if found := self._choose(name, self._at(root, tail)):
                    return found
            # A path from another machine names its folders, so that its file need not be looked for in others.
            if not foreign and (found := self._choose(name, self._files_below(root).find(parts))):
                return found
        return None

    def _files_below(self, root: str) -> _Below:
        if root not in self._below:
            self._below[root] = _Below(root, beside=root != str(self.roots[0]))
        return self._below[root]

    def _choose(self, name: str, found: Sequence[str]) -> Path | None:
        if len(found) > 1:
            raise InputError(
                f"{self.source}: {name!r} could be {found[0]} or {found[1]}; write its path in full, or give "
                "--audio-root"
            )
        return Path(found[0]) if found else None

    def _at(self, folder: str, parts: Sequence[str]) -> list[str]:
        """The files in `folder` that are called `parts`, but for capitals, Unicode form and a missing suffix."""
        folders = [folder]
        for part in parts[:-1]:
            folders = [os.path.join(at, own) for at in folders for own in self._spelled(at, part)]  # noqa: PTH118
        found = []
        for at in folders:
            own = self._spelled(at, parts[-1]) or self._listing(at).stems.get(_folded(parts[-1]), [])
            found += [os.path.join(at, name) for name in own]  # noqa: PTH118
        return found

    def _spelled(self, folder: str, name: str) -> list[str]:
        listing = self._listing(folder)
        return [name] if name in listing.names else listing.spellings.get(_folded(name), [])


def find_paths(source: Path, names: Sequence[str], roots: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return where the files `names` of the table `source` lie, and notes on what was assumed.

    Args:
        source: The table, or the folder of a data set.
        names: What is written in it.
        roots: Folders where relative names may start, the likeliest first.

    Raises:
        InputError: none of the relative names is found, or one could be several files.
    """
    return Finder(source, roots).find_all(names)


def sound_of(table: Path) -> Path:
    """The sound that a table of annotations lies beside and is named after: rec.Table.1.selections.txt, rec.wav.

    Raises:
        InputError: there is none, or there are several.
    """
    stems = _Listing(str(table.parent)).stems
    stem = table.name
    while "." in stem:
        stem = stem.rpartition(".")[0]
        found = stems.get(_folded(stem), [])
        if len(found) > 1:
            both = " or ".join(found[:2])
            raise InputError(f"{table}: its sound could be {both}; keep one of them, or add a column `path`")
        if found:
            return table.parent / found[0]
    raise InputError(
        f"{table}: no column `path`, and no sound of its name lies beside it; put the sound there, or name the column "
        "with --path-column"
    )


def resolved(paths: Sequence[Path]) -> list[str]:
    """The real path of each, so that two ways to one file are one: links are followed and `..` is taken away."""
    folders: dict[str, str] = {}
    found = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        own = os.path.join(folders[folder], name)  # noqa: PTH118
        found.append(os.path.realpath(own) if os.path.islink(own) else own)  # noqa: PTH114
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
