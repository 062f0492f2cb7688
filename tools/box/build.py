"""Make the training data of the box and train it: the model that melmask brings along.

    python tools/box/build.py --shared SHARED --out OUT --recipe NAME [pretrain options] [KEY=VALUE ...]

SHARED holds the folders `corpus` and `audio` that sources.csv describes. OUT gets

    train.csv        the clips to train on: path (from SHARED), label (the kind of sound), source, group, seconds
    held-out.csv     the clips that are never trained on: whole sources, and the speakers that sources.csv names
    ATTRIBUTION.csv  every clip of train.csv with its author where known, its origin, its license and its seconds
    HOLDERS.csv      the sources whose authors are too many for each row of ATTRIBUTION.csv, with all of them
    store            the log-mels of train.csv, by `melmask prepare`
    run              the model, by `melmask pretrain`, which gets all further words of the command

The same command resumes: prepared clips are skipped, and the run goes on from its last snapshot. A clip whose license
is not in `ALLOWED` ends the command before anything is written.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from melmask.errors import InputError, MelmaskError
from melmask.system.files import write_csv
from melmask.system.terminal import counted, note, say

_LONGEST_AUTHOR = 120
"""Characters of the authors in a row of ATTRIBUTION.csv; longer lists are in HOLDERS.csv."""
SOURCES = Path(__file__).with_name("sources.csv")
ALLOWED = {
    "CC0": "CC0-1.0",
    "CC0-1.0": "CC0-1.0",
    "public-domain": "public domain",
    "CC-BY": "CC-BY",
    "CC-BY-3.0": "CC-BY-3.0",
    "CC-BY-4.0": "CC-BY-4.0",
    "MIT": "MIT",
    "Expat": "MIT",
    "BSD-2-Clause": "BSD-2-Clause",
    "BSD-3-Clause": "BSD-3-Clause",
    "Apache-2.0": "Apache-2.0",
}
"""The licenses of clips that may be used, as the tables write them, and the name that ATTRIBUTION.csv gives each."""


class Clip(NamedTuple):
    """A sound that may be used, with what the license asks to be said of it."""

    path: str
    kind: str
    source: str
    group: str
    seconds: float
    license: str
    author: str
    origin: str
    original_name: str
    held_out: bool


def main() -> int:
    """Read the command line, and do its work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with the folders corpus and audio")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data and the run")
    parser.add_argument("--recipe", default="tiny", help="recipe of melmask pretrain")
    parser.add_argument("--clips", type=int, default=0, help="use so many clips, evenly drawn, to try the command")
    parser.add_argument("--data-only", action="store_true", help="stop before the training")
    options, training = parser.parse_known_args()
    try:
        build(options, training)
    except MelmaskError as error:
        note(f"build.py: error: {error}")
        return 2
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    return 0


def build(options: argparse.Namespace, training: list[str]) -> None:
    """Write the tables and the store, and become `melmask pretrain`.

    Raises:
        InputError: a table is missing, or a clip has another license or an unknown source.
        CalledProcessError: `melmask prepare` has failed.
    """
    clips = list(read_clips(options.shared))
    if options.clips:
        clips = clips[:: max(1, len(clips) // options.clips)]
    tables = {"train": [c for c in clips if not c.held_out], "held-out": [c for c in clips if c.held_out]}
    for name, chosen in tables.items():
        rows = [(c.path, c.kind, c.source, c.group, c.seconds) for c in chosen]
        write_csv(options.out / f"{name}.csv", [("path", "label", "source", "group", "seconds"), *rows])
        say(f"{options.out / name}.csv: {counted(len(chosen), 'clip')}, {summary(chosen)}")
    write_attribution(options.out, tables["train"])

    melmask = [sys.executable, "-m", "melmask"]
    store, shared = options.out / "store", options.shared.resolve()
    prepare = [*melmask, "prepare", options.out / "train.csv", "--audio-root", shared, "--out", store]
    subprocess.run([str(word) for word in prepare], check=True)
    if options.data_only:
        return
    pretrain = [*melmask, "pretrain", store, "--recipe", options.recipe, "--out", options.out / "run", *training]
    # The training takes the place of this process, so that signals reach it and its exit status is the command's.
    os.execv(sys.executable, [str(word) for word in pretrain])


def read_clips(shared: Path) -> Iterator[Clip]:
    """Give every clip of sources.csv, and say which are held out.

    Raises:
        InputError: a table is missing, or a clip has another license or an unknown source.
    """
    sources = {row["source"]: row for row in _read(SOURCES)}
    holders = read_holders(shared / "corpus" / "ATTRIBUTIONS.md")
    for row in _read(shared / "corpus" / "corpus.csv"):
        if row["source"] not in sources:
            raise InputError(f"{row['path']} is of {row['source']}, which {SOURCES.name} does not list; add it there")
        source, original = sources[row["source"]], row["original_name"]
        yield Clip(
            path=f"corpus/{row['path']}",
            kind=row["kind"],
            source=row["source"],
            group=_group(source, original),
            seconds=float(row["seconds"]),
            license=_license(row["path"], row["licence"], source),
            author=holders.get(row["source"], ""),
            origin=source["origin"],
            original_name=original,
            held_out=bool(source["held_out"]) and re.search(source["held_out"], original) is not None,
        )
    for name, source in sources.items():
        if not source["table"]:
            continue
        column, _, value = source["rows"].partition("=")
        for row in _read(shared / "audio" / source["table"]):
            # The column `split` decides: rows marked test stay unseen, for the scores of the model card.
            if row["split"] == "test" or (column and row[column] != value):
                continue
            yield Clip(
                path=f"audio/{row['path']}",
                kind=source["kinds"],
                source=name,
                group=f"{name}/{row['group']}",
                seconds=float(row["seconds"]),
                license=_license(row["path"], source["license"], source),
                author=source["author"].format(**row),
                origin=source["origin"].format(**row),
                original_name=Path(row["path"]).name,
                held_out=False,
            )


def read_holders(path: Path) -> dict[str, str]:
    """Return the copyright holders of each source from ATTRIBUTIONS.md."""
    holders: dict[str, str] = {}
    source = ""
    for line in _text(path).splitlines():
        if line.startswith("## "):
            source = line.removeprefix("## ").strip()
        elif line.startswith("Copyright: "):
            holders[source] = " ".join(line.removeprefix("Copyright: ").split())
    return holders


def summary(clips: list[Clip]) -> str:
    """Return the hours of all clips, and of each kind."""
    hours: Counter[str] = Counter()
    for clip in clips:
        hours[clip.kind] += clip.seconds / 3600
    kinds = ", ".join(f"{kind} {amount:.2f}" for kind, amount in hours.most_common())
    return f"{sum(hours.values()):.2f} h ({kinds})"


def write_attribution(folder: Path, clips: list[Clip]) -> None:
    """Write one row for each clip to ATTRIBUTION.csv, and one for each source with many authors to HOLDERS.csv."""
    many = {clip.source: (clip.origin, clip.author) for clip in clips if len(clip.author) > _LONGEST_AUTHOR}
    header = ("path", "kind", "source", "original_name", "author", "origin", "license", "seconds")
    rows = []
    for c in clips:
        author = f"{c.author.split(';')[0]} and others, see HOLDERS.csv" if c.source in many else c.author
        rows.append((c.path, c.kind, c.source, c.original_name, author, c.origin, c.license, c.seconds))
    write_csv(folder / "ATTRIBUTION.csv", [header, *rows])
    holders = ((source, *facts) for source, facts in sorted(many.items()))
    write_csv(folder / "HOLDERS.csv", [("source", "origin", "authors"), *holders])


def _group(source: dict[str, str], original: str) -> str:
    """Return what must not lie on both sides of a split: the speaker where names tell it, else the source."""
    found = re.search(source["speaker"], original) if source["speaker"] else None
    return f"{source['source']}/{found[1]}" if found else source["source"]


def _license(path: str, name: str, source: dict[str, str]) -> str:
    """Return the license of a clip, which must be allowed, and be one of those that its source has in sources.csv."""
    if name not in ALLOWED or name not in source["license"].split():
        raise InputError(
            f"{path} has the license {name!r}; {SOURCES.name} has {source['license']} for {source['source']}, and only "
            f"these may be used: {', '.join(ALLOWED)}"
        )
    return ALLOWED[name]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        text = f"{path} cannot be read ({error.strerror}); give the folder of the data with --shared"
        raise InputError(text) from error


def _read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(_text(path).splitlines()))


if __name__ == "__main__":
    sys.exit(main())
