"""`melmask study`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.study.description import BUNDLED
from melmask.study.options import StudyOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare settings of pre-training over many short runs, with a page. The same command resumes."""

    study: str = field(metadata={"positional": "STUDY", "names": BUNDLED})
    """A TOML file, or the name of a study that comes with melmask."""
    out: Path = field(metadata={"metavar": "STUDY"})
    """Folder of the study: its runs, numbers and page."""
    job: StudyOptions = field(default=StudyOptions())
    settings: tuple[str, ...] = field(default=(), metadata={"settings": None})
    """change settings that all runs share, such as data.batch_size=64 or front_end.win_samples=320."""


def run(options: Options) -> int:
    """Do the runs that are left, and print what they say."""
    from melmask.pages.run import write_run_page
    from melmask.pages.study import write_study_page
    from melmask.study.options import chosen_study
    from melmask.study.study import Pages, closing_text, judge_winner, run_study
    from melmask.system.terminal import say_lines

    study, pages = chosen_study(options.study, options.job, options.settings), Pages(write_run_page, write_study_page)
    results = run_study(study, options.out, options.job, pages)
    if options.job.final:
        results = judge_winner(results, pages)
    say_lines(closing_text(results))
    return 0
