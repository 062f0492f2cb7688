"""Find what a HEAR task has on both sides of a split: the same sound, or sounds of one group."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from melmask.evaluate.tasks import Task
from melmask.system.reading import open_file


class Leaks(NamedTuple):
    """How much is tested and also trained or validated on, in the worst of the splits."""

    files: int
    """Number of different sounds."""
    groups: int | None
    """Number of different groups; None if the task names no groups."""
    sha256: str | None
    """Digest of the task's labels and sounds, by which the task is recognized; None if sounds are missing."""


def find_leaks(task: Task) -> Leaks:
    """Compare the bytes of a task's sound files, and its groups if it has a groups.json (file name -> group).

    Splits whose sounds are missing are skipped.
    """
    contents = {split: _contents(task, split) for split in task.splits}
    groups = {split: {task.groups[name] for name in task.files[split] if name in task.groups} for split in task.splits}
    # If sounds are missing, there is no digest, because it would change when they are unpacked.
    whole = all(len(content) == len(task.files[split]) for split, content in contents.items())
    by_name = {split: sorted(content.items()) for split, content in contents.items()}
    facts = json.dumps([task.labels, task.files, by_name])
    return Leaks(
        _on_both_sides(task, {split: set(content.values()) for split, content in contents.items()}),
        _on_both_sides(task, groups) if task.groups else None,
        hashlib.sha256(facts.encode()).hexdigest() if whole else None,
    )


def _contents(task: Task, split: str) -> dict[str, str]:
    """Return the digest of each sound that exists at the highest rate."""
    rates = task.rates_hz(split)
    if not rates:
        return {}
    # Sounds that differ may become equal at a low rate, so the highest rate counts.
    folder = task.audio_folder(split, rates[-1])
    digests = {name: _digest(folder / name) for name in task.files[split]}
    return {name: digest for name, digest in digests.items() if digest is not None}


def _digest(path: Path) -> str | None:
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _on_both_sides(task: Task, members: dict[str, set[Any]]) -> int:
    def union(splits: tuple[str, ...]) -> set[Any]:
        return set().union(*(members[split] for split in splits))

    return max(len(union(split.test) & union(split.train + split.valid)) for split in task.data_splits)
