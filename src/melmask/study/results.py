"""What a study has found so far: all numbers of its runs, as an object, as CSV and as Parquet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from melmask.study.description import Probe, Study
from melmask.study.outcomes import OUTCOME_FILE, Final, Outcome, read_final, read_outcome, run_folder
from melmask.study.settings import Point, Run, points_of, runs_of
from melmask.system.files import atomic_write, write_csv

CSV_FILE, PARQUET_FILE = "results.csv", "results.parquet"
_FACTS = ("loss", "feature_rank", "minutes", "steps", "crops_per_s")


@dataclass(frozen=True, kw_only=True)
class Results:
    """A study at one moment."""

    study: Study
    folder: Path
    folders: tuple[Path, ...]
    """The study's own folder, and those that are merged with it."""
    points: list[Point]
    runs: list[Run]
    outcomes: dict[str, Outcome]
    """By the run's name; a run that has not ended is missing."""
    final: Final | None

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that any run has a score on, in the order of the study."""
        found = {task for outcome in self.outcomes.values() for task in outcome.scores}
        return [name for name in (path.absolute().stem for path in self.study.labels) if name in found]

    def ended(self, point: Point) -> list[tuple[Run, Outcome]]:
        """Return the runs of a setting that are done, by seed."""
        found = ((run, self.outcomes.get(run.name)) for run in self.runs if run.point == point)
        return [(run, outcome) for run, outcome in found if outcome is not None and outcome.status == "done"]

    def score(self, outcome: Outcome, probe: Probe, task: str | None) -> float | None:
        """Return a run's score on a task, or its mean over all tasks; None if any is missing."""
        tasks = self.tasks if task is None else [task]
        scores = [outcome.scores[name][probe].score for name in tasks if name in outcome.scores]
        return float(np.mean(scores)) if scores and len(scores) == len(tasks) else None

    def scores(self, point: Point, probe: Probe, task: str | None = None) -> dict[int, float]:
        """Return the scores of a setting by seed."""
        found = {run.seed: self.score(outcome, probe, task) for run, outcome in self.ended(point)}
        return {seed: score for seed, score in found.items() if score is not None}

    @property
    def winner(self) -> Point | None:
        """The setting with the best mean score on validation rows, of those whose seeds are all done."""
        best = [(point, self.scores(point, self.study.choose_by)) for point in self.points]
        whole = [(np.mean(list(scores.values())), point) for point, scores in best if self._is_whole(scores)]
        return max(whole, key=lambda pair: pair[0])[1] if whole else None

    def failed(self) -> list[tuple[Run, str]]:
        """Return the runs that failed, and the tasks without a score, with their reasons."""
        found = []
        for run in self.runs:
            outcome = self.outcomes.get(run.name)
            if outcome is not None and outcome.status == "failed":
                found.append((run, outcome.reason))
            elif outcome is not None:
                found += [(run, f"{task}: {reason}") for task, reason in outcome.failed_tasks.items()]
        return found

    def path(self, run: Run) -> Path:
        """Return the folder of a run, in the study's folder or in one that is merged with it."""
        folders = (run_folder(folder, run.name) for folder in self.folders)
        # The study's own folder may hold a run that was stopped, and another one the same run to its end.
        return next((path for path in folders if (path / OUTCOME_FILE).exists()), run_folder(self.folder, run.name))

    def _is_whole(self, scores: dict[int, float]) -> bool:
        return set(scores) == set(self.study.seeds)


def read_results(study: Study, folder: Path, merged: Sequence[Path] = ()) -> Results:
    """Read all outcomes of a study.

    Raises:
        InputError: an outcome is damaged.
    """
    folders, runs = (folder, *merged), runs_of(study)
    found = {run.name: read_outcome(folders, run.name) for run in runs}
    return Results(
        study=study,
        folder=folder,
        folders=folders,
        points=points_of(study),
        runs=runs,
        outcomes={name: outcome for name, outcome in found.items() if outcome is not None},
        final=read_final(folder),
    )


def write_tables(results: Results) -> None:
    """Write results.csv and results.parquet: a row for each run, task and probe.

    A run that failed, or that was not judged, has one row without a task.

    Raises:
        OutputError: they cannot be written.
    """
    header, *rows = _rows(results)
    write_csv(results.folder / CSV_FILE, [header, *rows])
    columns = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    texts = {*header} - {"seed", "score", "low_95", "high_95", *_FACTS}
    kinds = {name: pa.string() if name in texts else pa.int64() if name in ("seed", "steps") else pa.float64()
             for name in header}  # fmt: skip
    schema = pa.schema(list(kinds.items()))
    with atomic_write(results.folder / PARQUET_FILE) as file:
        pq.write_table(pa.Table.from_pydict(columns, schema=schema), file)


def _rows(results: Results) -> Iterator[list[object]]:
    axes = [axis.name for axis in results.study.axes]
    # An axis may be called like another column.
    yield ["run", "setting", *(f"axis {name}" for name in axes), "seed", "status", "reason", "task", "probe",
           "score", "low_95", "high_95", *_FACTS]  # fmt: skip
    for run in results.runs:
        outcome = results.outcomes.get(run.name)
        if outcome is None:
            continue
        begin = [run.name, run.point.name, *(run.point.values[name] for name in axes), run.seed, outcome.status]
        facts = [getattr(outcome, name) for name in _FACTS]
        scores = [
            (task, probe, score.score, score.low_95, score.high_95)
            for task, of_task in outcome.scores.items()
            for probe, score in of_task.items()
        ]
        for part in scores:
            yield [*begin, outcome.reason, *part, *facts]
        for task, reason in outcome.failed_tasks.items():
            yield [*begin, reason, task, None, None, None, None, *facts]
        if not scores and not outcome.failed_tasks:
            yield [*begin, outcome.reason, None, None, None, None, None, *facts]
