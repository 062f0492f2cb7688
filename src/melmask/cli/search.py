"""`melmask search`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melmask.errors import InputError
from melmask.system.terminal import note, say

if TYPE_CHECKING:
    from melmask.search.index import SearchIndex


@dataclass(frozen=True, kw_only=True)
class Options:
    """Find the sounds of a search index that are most similar to a sound."""

    index: Path = field(metadata={"positional": "IDX"})
    """A folder that melmask index wrote."""
    query: Path | None = field(default=None, metadata={"positional": "QUERY"})
    """A sound file, or - for a WAV file on standard input."""
    start_s: float | None = field(default=None, metadata={"flag": "--start", "metavar": "S"})
    """Where the part to search for begins in the query, in s. The default is the start of the query."""
    end_s: float | None = field(default=None, metadata={"flag": "--end", "metavar": "S"})
    """Where that part ends, in s. The default is the end of the query."""
    microphone_s: float | None = field(default=None, metadata={"metavar": "S", "limits": (0.01, 3600)})
    """Record the query with the microphone for this many s. It needs melmask[microphone]."""
    top: int = field(default=20, metadata={"limits": (1, 1_000_000)})
    """How many sounds to show."""
    collections: tuple[str, ...] = field(default=(), metadata={"flag": "--collection", "metavar": "NAME"})
    """The collections that are searched. The default is all."""
    exact: bool = False
    """Compare with every vector, even if the index is so large that it is searched approximately."""
    out: Path | None = None
    """A table of what is found: X.csv, X.jsonl or X.parquet."""
    model: Path | None = None
    """Where the model of the index is now, if it is no longer where it was."""
    device: str = "auto"
    """Device to compute on: cpu, cuda, cuda:1 or mps. Auto uses a GPU if there is one."""


def run(options: Options) -> int:
    """Search, and print what was found."""
    from melmask.search.index import SearchIndex
    from melmask.search.results import check_table, line_of, write_hits

    if (options.query is None) == (options.microphone_s is None):
        raise InputError("give either a sound file as QUERY or --microphone-s, and not both")
    check_table(options.out)
    index = SearchIndex(options.index, options.model, options.device)
    audio, sample_rate_hz = _recorded(index, options.microphone_s) if options.query is None else _given(options.query)
    hits = index.search(
        audio,
        options.top,
        sample_rate_hz=sample_rate_hz,
        start_s=options.start_s,
        end_s=options.end_s,
        collections=options.collections,
        exact=options.exact,
    )
    several = len(index.collections) > 1
    for hit in hits:
        say(f"{hit.similarity:6.3f}  {line_of(hit, collection=several)}")
    if options.out is not None:
        write_hits(options.out, hits)
        say(f"{options.out}: {len(hits)} rows")
    return 0


def _recorded(index: "SearchIndex", microphone_s: float | None) -> tuple[Any, int]:
    """Record the query; return it and its rate in Hz."""
    from melmask.audio.microphone import Microphone

    assert microphone_s is not None
    microphone = Microphone()
    # The model is loaded before the recording, since that takes seconds, and it may be missing.
    note(f"melmask: recording {microphone_s:g} s for {index.model.name}")
    return microphone.record(microphone_s), microphone.rate_hz


def _given(query: Path) -> tuple[Any, None]:
    """Return the path of the query, or what is piped into melmask."""
    if str(query) != "-":
        return query, None
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("the query is -, but nothing is piped into melmask; give a sound file")
    content = sys.stdin.buffer.read()
    if not content:
        raise InputError("the query is -, but standard input is empty; pipe a WAV file into melmask")
    return content, None
