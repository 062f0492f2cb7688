"""What a HEAR task has on both sides of a split: the same sound, or sounds of one group."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from melmask.evaluate.tasks import Task


class Leaks(NamedTuple):
    """How much is both tested and trained or validated on, in the worst of the splits.

    files: distinct sounds.  groups: distinct groups; None where the task names none.
    """

    files: int
    groups: int | None


def find_leaks(task: Task) -> Leaks:
    """Compare the bytes of a task's sound files, and its groups if it has a groups.json (file name -> group).

    Splits whose sounds are not there are passed over.
    """
    contents = {split: _contents(task, split) for split in task.splits}
    groups = {split: {task.groups[name] for name in task.files[split] if name in task.groups} for split in task.splits}
    return Leaks(_on_both_sides(task, contents), _on_both_sides(task, groups) if task.groups else None)


def _contents(task: Task, split: str) -> set[Any]:
    rates = sorted(path for path in task.folder.iterdir() if path.name.isdigit() and (path / split).is_dir())
    return {_digest(rates[-1] / split / name) for name in task.files[split]} if rates else set()


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return str(path)


def _on_both_sides(task: Task, members: dict[str, set[Any]]) -> int:
    def union(splits: tuple[str, ...]) -> set[Any]:
        return set().union(*(members[split] for split in splits))

    return max(len(union(split.test) & union(split.train + split.valid)) for split in task.data_splits)
