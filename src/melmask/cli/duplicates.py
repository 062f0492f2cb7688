"""`melmask duplicates`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.system.terminal import counted, say


@dataclass(frozen=True, kw_only=True)
class Options:
    """Find the sounds of a search index that are nearly the same."""

    index: Path = field(metadata={"positional": "IDX"})
    """A folder that melmask index wrote."""
    similarity: float = field(default=0.95, metadata={"limits": (-1, 1)})
    """The lowest similarity to list. That of equal vectors is 1; copies that are louder or shifted have about 0.97."""
    top: int = field(default=1000, metadata={"limits": (1, 1_000_000)})
    """How many pairs to list at most."""
    collections: tuple[str, ...] = field(default=(), metadata={"flag": "--collection", "metavar": "NAME"})
    """The collections whose sounds are compared. The default is all."""
    out: Path | None = None
    """A table of the pairs: X.csv, X.jsonl or X.parquet."""


def run(options: Options) -> int:
    """Compare the sounds, and print the pairs."""
    from melmask.search.index import SearchIndex
    from melmask.search.results import check_table, line_of, write_pairs

    check_table(options.out)
    index = SearchIndex(options.index)
    pairs = index.duplicates(options.similarity, options.top, collections=options.collections)
    several = len(index.collections) > 1
    for first, second in pairs:
        names = "  =  ".join(line_of(hit, collection=several) for hit in (first, second))
        say(f"{first.similarity:6.3f}  {names}")
    more = f", the {options.top} most similar" if len(pairs) == options.top else ""
    say(f"{counted(len(pairs), 'pair')} with a similarity of {options.similarity:g} or more{more}")
    if options.out is not None:
        write_pairs(options.out, pairs)
        say(f"{options.out}: {counted(len(pairs), 'row')}")
    return 0
