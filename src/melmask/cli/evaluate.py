"""`melmask evaluate`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.evaluate.options import EvaluateOptions
from melmask.system.terminal import counted, say, say_lines


@dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluate models on HEAR 2021 tasks, with a report. The same command resumes."""

    model: tuple[str, ...] = ("box",)
    """Models to evaluate. Each is a run, a checkpoint, box (the model in the box), hub:OWNER/NAME, untrained:MODEL,
    logmel, python:MODULE or python:MODULE=WEIGHTS."""
    tasks: Path = field(metadata={"metavar": "DIR"})
    """Folder of task folders in HEAR's layout."""
    out: Path = field(default=Path("results"), metadata={"metavar": "RESULTS"})
    """Folder of the results."""
    job: EvaluateOptions = field(default=EvaluateOptions())


def run(options: Options) -> int:
    """Evaluate the models, print their scores, and say where the report is."""
    from melmask.evaluate.evaluation import evaluate, table_text
    from melmask.pages.evaluation import write_evaluation_page

    report = evaluate(options.model, options.tasks, options.out, options.job, page=write_evaluation_page)
    say_lines(table_text(report))
    for task in report.tasks:
        if task.leaking_files or task.leaking_groups:
            groups = "" if task.leaking_groups is None else f" and {counted(task.leaking_groups, 'group')}"
            say(f"{task.title}: used both to train and to test: {counted(task.leaking_files, 'sound')}{groups}")
    say(f"scores and predictions are in {options.out}; open {options.out / 'report.html'} in a browser")
    return 0
