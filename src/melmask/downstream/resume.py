"""The results of single tasks, OUT/tasks/TASK.json: from them a killed `melmask probe` resumes task by task."""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from melmask.downstream.options import ProbeOptions
from melmask.downstream.records import ProbedTask, Score
from melmask.embedding.encoder import AudioEncoder
from melmask.labels.tables import LabelTable
from melmask.system.files import ensure_folder, write_json
from melmask.system.reading import read_json_object

_FOLDER = "tasks"
_METHOD = "3 Newton, also for several labels"
"""Change this whenever the same clips would get other scores, so that earlier results are not used."""


def inputs_of(model: AudioEncoder, table: LabelTable, options: ProbeOptions) -> str:
    """Return the SHA-256 of all that the scores of a task depend on; files count by path, size and time of change."""
    files = []
    for path in table.paths:
        try:
            found = path.stat()
            files.append([found.st_size, found.st_mtime_ns])
        except OSError:
            # A missing file is reported when it is read.
            files.append([])
    facts = [_METHOD, model.sha256, model.precision, asdict(options), asdict(table), files]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()


def write_task(out: Path, name: str, inputs: str, task: ProbedTask) -> None:
    """Keep the result of a task.

    Raises:
        OutputError: it cannot be written.
    """
    write_json(ensure_folder(out / _FOLDER) / f"{name}.json", {"inputs": inputs, **asdict(task)})


def read_task(out: Path, name: str, inputs: str) -> ProbedTask | None:
    """Return the result of a task with the same inputs; None if there is none, or if it cannot be read."""
    try:
        facts = read_json_object(out / _FOLDER / f"{name}.json")
        if facts["inputs"] != inputs:
            return None
        scores = {
            representation: {classifier: _score(score) for classifier, score in found.items()}
            for representation, found in facts["scores"].items()
        }
        kept = {field.name: facts[field.name] for field in fields(ProbedTask)}
        return ProbedTask(**{**kept, "scores": scores})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        # A damaged result is computed again.
        return None


def _score(facts: dict[str, Any]) -> Score:
    """The score of a JSON object, which has lists for tuples."""
    interval = facts["interval_95"]
    tuples = {"splits": tuple(facts["splits"]), "interval_95": None if interval is None else tuple(interval)}
    return Score(**{**facts, **tuples})
