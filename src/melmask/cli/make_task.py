"""`melmask make-task`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.evaluate.options import TaskOptions
from melmask.system.terminal import say_lines


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn labeled files into a task folder in HEAR's layout."""

    labels: Path = field(metadata={"positional": "CSV"})
    """Labeled files: the folder of a data set, or a table with the columns path, label, and perhaps group, fold or
    split. Events also have start_s and end_s."""
    out: Path = field(metadata={"metavar": "TASKS"})
    """Folder of tasks. The command creates the task's folder in it."""
    task: TaskOptions = field(default=TaskOptions())


def run(options: Options) -> int:
    """Write a task folder from a table of labels."""
    from melmask.evaluate.make_task import make_task

    # The first line says what was written, and each further line warns of something in it.
    say_lines(make_task(options.labels, options.out, options.task))
    return 0
