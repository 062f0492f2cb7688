"""`melmask duplicates`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.system.terminal import counted, say


@dataclass(frozen=True, kw_only=True)
class Options:
    """Find the sounds of a search index that are nearly the same."""

    index: Path = field(metadata={"positional": "IDX"})
    """A folder that melmask index wrote."""
    similarity: float | None = field(default=None, metadata={"limits": (-1, 1)})
    """The lowest similarity to list. That of equal vectors is 1. The default is 0.85 for whitened vectors, of which
    different sounds seldom have more than 0.7, and 0.95 for others."""
    top: int = field(default=1000, metadata={"limits": (1, 1_000_000)})
    """How many pairs to list at most."""
    collections: tuple[str, ...] = field(default=(), metadata={"flag": "--collection", "metavar": "NAME"})
    """The collections whose sounds are compared. The default is all."""
    exact: bool = False
    """Compare every sound with every other one, even if there are so many that their neighbors are found approximately.
    """
    out: Path | None = None
    """A table of the pairs: X.csv, X.jsonl or X.parquet."""


def run(options: Options) -> int:
    """Compare the sounds, and print the pairs."""
    from melmask.search.index import SearchIndex
    from melmask.search.results import check_table, line_of, write_pairs

    check_table(options.out)
    index = SearchIndex(options.index)
    least = index.duplicate_similarity if options.similarity is None else options.similarity
    pairs = index.duplicates(least, options.top, collections=options.collections, exact=options.exact)
    several = len(index.collections) > 1
    for first, second in pairs:
        names = "  =  ".join(line_of(hit, collection=several) for hit in (first, second))
        say(f"{first.similarity:6.3f}  {names}")
    more = f", the {options.top} most similar" if len(pairs) == options.top else ""
    say(f"{counted(len(pairs), 'pair')} with a similarity of {least:g} or more{more}")
    if not options.exact and index.duplicates_are_approximate(options.collections):
        say("found approximately: a few may be missing; --exact compares every sound with every other one")
    if options.out is not None:
        write_pairs(options.out, pairs)
        say(f"{options.out}: {counted(len(pairs), 'row')}")
    return 0
