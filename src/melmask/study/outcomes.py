"""The files of a study: study.json, and for each run a folder with its outcome. No other module writes or reads them.

study.json                  what the study tries
stores/DIGEST/              the log-mels of a front end, which all runs with that front end read
runs/NAME/                  a run of `melmask pretrain`, with `log.txt`, what it printed
runs/NAME/outcome.json      how it ended: scores, or the reason of its failure
final.json                  the scores of the winner on the test rows
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from melmask.config_text import from_dict
from melmask.errors import ConfigError, InputError
from melmask.study.description import MAY_GROW, Study, as_content, study_from
from melmask.study.judging import TaskScore
from melmask.study.settings import Run
from melmask.system.files import write_json
from melmask.system.reading import DamagedFileError, parse_json, read_json_object, reason_of

STUDY_FILE, OUTCOME_FILE, FINAL_FILE, LOG_FILE = "study.json", "outcome.json", "final.json", "log.txt"
RUNS, STORES = "runs", "stores"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of a study ended."""

    setting: str
    seed: int
    status: Literal["done", "failed"] = "done"
    reason: str = ""
    """Why it failed."""
    steps: int = 0
    loss: float | None = None
    feature_rank: float | None = None
    """RankMe of the last checkpoint."""
    minutes: float | None = None
    """Training time."""
    crops_per_s: float | None = None
    scores: dict[str, dict[str, TaskScore]] = field(default_factory=dict)
    """On validation rows, by task and probe."""
    failed_tasks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Final:
    """final.json: the one reading of the test rows."""

    setting: str
    began: str
    """When the test rows were first opened."""
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """By task and probe, a score for each seed; empty if the reading broke off."""


def run_folder(study: Path, name: str) -> Path:
    """Return the folder of a run."""
    return study / RUNS / name


def write_study(folder: Path, study: Study) -> None:
    """Write what the study tries; a study that has begun may only grow.

    Raises:
        ConfigError: it began with another recipe, budget, corpus or way of judging.
        OutputError: it cannot be written.
    """
    path, wanted = folder / STUDY_FILE, _content_of(study)
    if path.exists() and (difference := _difference(folder, wanted)):
        raise ConfigError(f"{difference}; use another --out")
    write_json(path, wanted)


def check_same_study(folder: Path, study: Study) -> None:
    """Check that a folder is of the same study, so that its runs compare.

    Raises:
        ConfigError: it is of a study with another recipe, budget or way of judging.
        InputError: it is of no study.
    """
    if not (folder / STUDY_FILE).exists():
        raise InputError(f"--merge has {folder}, which is no folder of a study; give the --out of another shard")
    # Each shard may have been given the sounds and the tables where it ran.
    if difference := _difference(folder, _content_of(study), but=("sounds", "table")):
        raise ConfigError(f"{difference}; leave it out of --merge")


def _content_of(study: Study) -> dict[str, Any]:
    content: dict[str, Any] = parse_json(json.dumps(as_content(study)))
    return content


def _difference(folder: Path, wanted: dict[str, Any], but: tuple[str, ...] = ()) -> str:
    """Say in what the study in a folder differs from another, other than by having grown; empty if in nothing."""
    begun = _read(folder / STUDY_FILE)
    for key, value in wanted.items():
        if key not in (*MAY_GROW, *but) and begun.get(key, value) != value:
            return f"{folder} began with {key} = {begun[key]}, not {value}"
    return ""


def read_begun(folder: Path) -> Study:
    """Read what a study that has begun tries.

    Raises:
        InputError: the file is missing or damaged.
    """
    content = _read(folder / STUDY_FILE)
    return study_from(content, str(content.get("name", folder.name)), folder)


def write_outcome(run: Path, outcome: Outcome) -> None:
    """Write how a run ended.

    Raises:
        OutputError: it cannot be written.
    """
    write_json(run / OUTCOME_FILE, asdict(outcome))


def read_outcome(folders: Iterable[Path], name: str) -> Outcome | None:
    """Read how a run ended, from the first of several studies' folders that knows; None if it has not ended.

    Raises:
        InputError: the file is damaged.
    """
    for folder in folders:
        path = run_folder(folder, name) / OUTCOME_FILE
        if path.exists():
            content = _read(path)
            try:
                scores = {
                    task: {probe: from_dict(TaskScore, score) for probe, score in of_task.items()}
                    for task, of_task in content.pop("scores", {}).items()
                }
                known = {key: content[key] for key in Outcome.__dataclass_fields__ if key in content}
                return Outcome(**known, scores=scores)
            except (ConfigError, TypeError, AttributeError) as error:
                raise InputError(f"{path} is damaged; delete it, and run the study again") from error
    return None


def failed_outcome(folder: Path, study: Study, run: Run, reason: str) -> Outcome:
    """Return the outcome of a run that failed. If it was judged before the study grew, it keeps those scores."""
    known = read_outcome([folder], run.name)
    if known is None or not known.scores:
        return Outcome(setting=run.point.name, seed=run.seed, status="failed", reason=reason)
    added = {path.absolute().stem for path in study.labels} - known.scores.keys()
    return replace(known, failed_tasks={**known.failed_tasks, **dict.fromkeys(sorted(added), reason)})


def write_final(folder: Path, final: Final) -> None:
    """Write what the test rows said.

    Raises:
        OutputError: it cannot be written.
    """
    write_json(folder / FINAL_FILE, asdict(final))


def read_final(folder: Path) -> Final | None:
    """Read what the test rows said; None if they were never opened.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / FINAL_FILE
    if not path.exists():
        return None
    content = _read(path)
    try:
        return Final(**{key: content[key] for key in Final.__dataclass_fields__ if key in content})
    except TypeError as error:
        raise InputError(f"{path} is damaged; it records that test rows were read, so restore it") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except (OSError, DamagedFileError) as error:
        raise InputError(f"{path} is missing or damaged ({reason_of(error)}); use another --out") from error
