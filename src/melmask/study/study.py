"""The work of `melmask study`: prepare what the runs share, do the runs that are left, and collect what they found."""

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from melmask.config import FrontEndConfig
from melmask.corpus.prepare import prepare
from melmask.corpus.store import Store
from melmask.downstream.probe import read_tables
from melmask.embedding.encoder import load
from melmask.errors import ConfigError, InputError, MelmaskError, OutputError, StoreError
from melmask.labels.splits import make_splits
from melmask.recipes import recipe, with_settings
from melmask.study.description import Study
from melmask.study.effects import summary
from melmask.study.judging import judge, rows_of
from melmask.study.options import StudyOptions
from melmask.study.outcomes import (
    STORES,
    Final,
    Outcome,
    check_same_study,
    failed_outcome,
    run_folder,
    write_final,
    write_outcome,
    write_study,
)
from melmask.study.results import Results, read_results, write_tables
from melmask.study.settings import Run, digest_of, runs_of
from melmask.study.side_by_side import do_runs
from melmask.study.worker import EXIT_BUSY, EXIT_SIGNAL, settings_of
from melmask.system.extras import require
from melmask.system.files import ensure_folder
from melmask.system.hardware import available_cores
from melmask.system.progress import duration_text
from melmask.system.terminal import counted, note
from melmask.train.pretrain import build_card

_WAIT_S = 2.0


class Pages(NamedTuple):
    """Writes pages: of a run's folder, and of the results of a study."""

    run: Callable[[Path], object]
    study: Callable[[Results], object]


def run_study(study: Study, folder: Path, options: StudyOptions, pages: Pages) -> Results:
    """Do the runs of a study that are left, and return what it has found; a killed study resumes run by run.

    Args:
        study: What to try.
        folder: The study's folder.
        options: Which share of the runs to do, and where.
        pages: They show the runs and the study.

    Raises:
        ConfigError: the study cannot be used as a whole, or it began with other settings.
        InputError: a table cannot be used, or there is no sound.
        OutputError: `folder` cannot be written to.
        MissingExtraError: Ray is asked for and not installed; or scikit-learn, which intervals over several seeds and
            tables without folds and splits need.
    """
    if options.engine == "ray":
        require("ray")
    _check_tables(study)
    runs = _shard(runs_of(study), options.shard)
    for merged in options.merge:
        check_same_study(merged, study)
    write_study(ensure_folder(folder), study)
    progress = _Progress(study, folder, options.merge, pages)
    known = progress.results().outcomes
    left = [run for run in runs if not _is_judged(study, known.get(run.name))]
    progress.begin(len(runs), len(left))
    left = [run for run in left if _can_run(study, run, progress)]
    for front_end in dict.fromkeys(run.point.front_end for run in left):
        _prepare(study, folder, front_end)
    left = [run for run in left if _fits_store(study, folder, run, progress)]
    names = [run.name for run in left]
    threads = max(1, available_cores() // study.side_by_side)
    if options.engine == "ray":
        from melmask.study.on_ray import do_runs_on_ray

        gpus = int(any(text.startswith("hardware.device=cuda") for text in study.settings))
        do_runs_on_ray(folder, names, threads, gpus, progress.ended)
    else:
        do_runs(folder, names, study.side_by_side, threads, progress.ended)
    return progress.results()


def judge_winner(results: Results, pages: Pages) -> Results:
    """Judge the winner on the test rows, once, and return the results with its scores.

    A second call reads nothing; it returns what the first one recorded.

    Raises:
        ConfigError: not all runs have ended, there is no winner, or test rows were read for another one.
        OutputError: the record cannot be written.
    """
    winner, known = results.winner, results.final
    if len(results.outcomes) < len(results.runs):
        left = counted(len(results.runs) - len(results.outcomes), "run")
        raise ConfigError(f"{left} left; run the study to its end before --final opens the test rows")
    if winner is None:
        raise ConfigError("no setting has a score of every seed, so there is no winner; --final needs labeled tables")
    if known is not None and known.setting != winner.name:
        raise ConfigError(
            f"the test rows were read already, on {known.began}, for {known.setting}; the winner is now {winner.name}, "
            "and a second reading would let test rows choose: keep final.json, or take other test rows"
        )
    if known is None or not known.scores:
        began = known.began if known is not None else time.strftime("%Y-%m-%d %H:%M")
        # The record comes before the reading, so that no kill can hide that test rows were opened.
        write_final(results.folder, Final(setting=winner.name, began=began))
        scores: dict[str, dict[str, list[float]]] = {}
        tables = read_tables(results.study.labels, results.study.probe)
        for run, _ in results.ended(winner):
            model = load(results.path(run))
            for task, table in tables.items():
                for probe, score in judge(model, task, table, results.study, "test").items():
                    scores.setdefault(task, {}).setdefault(probe, []).append(score.score)
        write_final(results.folder, Final(setting=winner.name, began=began, scores=scores))
    results = read_results(results.study, results.folder, results.folders[1:])
    pages.study(results)
    return results


class _Progress:
    """Records how runs end, says so, and shows the study as it grows."""

    def __init__(self, study: Study, folder: Path, merged: Sequence[Path], pages: Pages):
        self._study, self._folder, self._merged, self._pages = study, folder, merged, pages
        self._runs = {run.name: run for run in runs_of(study)}
        self._left = self._total = 0

    def begin(self, runs: int, left: int) -> None:
        """Say what will be done."""
        self._total = self._left = left
        study, settings = self._study, len({run.point.name for run in self._runs.values()})
        note(f"settings: {settings}; seeds: {len(study.seeds)}; runs here: {runs}, of which {left} are left")
        if study.minutes and left:
            about_s = 60 * study.minutes * left / study.side_by_side
            note(f"the training takes about {duration_text(about_s)}; judging comes on top")
        if not study.labels:
            note("there are no labeled tables: the study shows losses and feature ranks, and names no winner")

    def results(self) -> Results:
        """Return what is known now, and write it as tables and as a page."""
        results = read_results(self._study, self._folder, self._merged)
        write_tables(results)
        self._pages.study(results)
        return results

    def ended(self, name: str, status: int) -> None:
        """Record the end of a run's process."""
        self._left -= 1
        run, path = self._runs[name], run_folder(self._folder, name)
        if status == EXIT_BUSY:
            note(f"{name} is left out: another process works on it")
            return
        if status > EXIT_SIGNAL or status in (-signal.SIGTERM, -signal.SIGINT):
            note(f"{name} was stopped; run the study again to resume it")
            return
        results = read_results(self._study, self._folder, self._merged)
        outcome = results.outcomes.get(name)
        if outcome is None:
            outcome = failed_outcome(self._folder, self._study, run, _reason(status))
            write_outcome(path, outcome)
        if outcome.steps:
            self._pages.run(path)
        score = results.score(outcome, self._study.choose_by, None)
        found = "" if score is None else f", {self._study.choose_by} {score:.3f}"
        what = f"failed: {outcome.reason}" if outcome.status == "failed" else f"{outcome.steps} steps{found}"
        note(f"[{self._total - self._left}/{self._total}] {name}: {what}")
        self.results()

    def fail(self, run: Run, reason: str) -> None:
        """Record that a run cannot begin."""
        self._left -= 1
        outcome = failed_outcome(self._folder, self._study, run, reason)
        write_outcome(ensure_folder(run_folder(self._folder, run.name)), outcome)
        note(f"[{self._total - self._left}/{self._total}] {run.name} failed: {reason}")


def closing_text(results: Results) -> str:
    """Return the summary of a study, and where its files are."""
    lines = summary(results)
    if results.final is not None and results.final.scores:
        means = {
            f"{task}, {probe}": sum(scores) / len(scores)
            for task, of_task in results.final.scores.items()
            for probe, scores in of_task.items()
        }
        listed = "; ".join(f"{name} {100 * mean:.1f} %" for name, mean in means.items())
        lines.append(f"Test rows, opened once for {results.final.setting}: {listed}.")
    return "\n".join([*lines, f"all numbers: {results.folder / 'results.csv'}; page: {results.folder / 'study.html'}"])


def _shard(runs: list[Run], shard: str | None) -> list[Run]:
    if shard is None:
        return runs
    number, _, count = shard.partition("/")
    plain = number.isdecimal() and count.isdecimal() and len(shard) < 20
    if not (plain and int(number) < int(count)):
        raise ConfigError(f"--shard is {shard!r}; expected I/N with 0 <= I < N, as 0/8 to 7/8")
    return runs[int(number) :: int(count)]


def _is_judged(study: Study, outcome: Outcome | None) -> bool:
    """Tell whether a run has ended and knows all tables; a study may get more of them later."""
    if outcome is None or outcome.status == "failed":
        return outcome is not None
    return {path.absolute().stem for path in study.labels} <= {*outcome.scores, *outcome.failed_tasks}


def _check_tables(study: Study) -> None:
    """Refuse a table that cannot choose before any run begins."""
    if not study.labels:
        return
    # Intervals are taken over seeds, and in a random search over all runs with a value.
    if len(study.seeds) > 1 or study.search == "random":
        require("eval")
    for name, table in read_tables(study.labels, study.probe).items():
        try:
            make_splits(*rows_of(table, "valid"))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None


def _can_run(study: Study, run: Run, progress: _Progress) -> bool:
    """Tell whether the settings of a run are valid; if not, record why."""
    try:
        # These include the front end's.
        with_settings(recipe(study.recipe), settings_of(study, run, 1))
    except ConfigError as error:
        progress.fail(run, str(error))
        return False
    return True


def _fits_store(study: Study, folder: Path, run: Run, progress: _Progress) -> bool:
    """Tell whether the network of a run fits its store; if not, record why."""
    try:
        config = with_settings(recipe(study.recipe), settings_of(study, run, 1))
        build_card(Store(folder / STORES / digest_of(run.point.front_end)), config)
    except MelmaskError as error:
        progress.fail(run, str(error))
        return False
    return True


def _prepare(study: Study, folder: Path, front_end: FrontEndConfig) -> None:
    """Prepare the store of a front end, unless it is there; another shard may be at it, and is waited for."""
    path = folder / STORES / digest_of(front_end)
    while not (path / "store.json").exists():
        if not study.sounds:
            raise InputError("the study names no sounds; add `sounds` to its file, or give --sounds FOLDER")
        try:
            facts = prepare(study.sounds, path, front_end, table=study.table)
        except OutputError as error:
            if "another melmask" not in str(error):
                raise
            time.sleep(_WAIT_S)
        except StoreError as error:
            raise StoreError(f"{error}; delete {path} to prepare it again") from None
        else:
            files, failed = counted(facts.files, "file"), counted(facts.failed, "file")
            note(f"{path}: {files}, {facts.hours:.2f} h; {failed} could not be read")


def _reason(status: int) -> str:
    """Say how a process ended that left no outcome."""
    if status < 0:
        return f"ended by signal {-status}, perhaps for lack of memory; log.txt in its folder says more"
    return f"ended with status {status}; log.txt in its folder says more"
