"""One run of a study, in a process of its own: pre-train, embed, probe, write the outcome.

    python -m melmask.study.worker STUDY NAME THREADS

A run that was killed resumes from its snapshot. The exit status is 0 if the outcome was written, 3 if another process
works on the run, and 128 plus the signal if a signal stopped it.
"""

import os
import sys
import threading
import time
import traceback
from pathlib import Path

from melmask.config import WHITENED
from melmask.corpus.store import Store
from melmask.downstream.monitor import monitors
from melmask.downstream.probe import read_tables
from melmask.embedding.choice import AUTO
from melmask.embedding.encoder import load
from melmask.embedding.whitening import set_features
from melmask.errors import InputError, MelmaskError, OutputError
from melmask.study.description import Study
from melmask.study.judging import TaskScore, judge
from melmask.study.outcomes import STORES, Outcome, failed_outcome, read_begun, read_outcome, run_folder, write_outcome
from melmask.study.settings import Run, digest_of, pretrain_settings, runs_of
from melmask.system.files import ensure_folder, locked
from melmask.system.hardware import use_threads
from melmask.system.terminal import note
from melmask.train.pretrain import pretrain
from melmask.train.record import read_metrics
from melmask.train.resume import resolve_config

EXIT_BUSY = 3
EXIT_SIGNAL = 128
_LOOK_S = 1.0


def main(study_folder: str, name: str, threads: str) -> int:
    """Do one run and return the exit status."""
    _end_with_parent()
    folder, run = Path(study_folder), run_folder(Path(study_folder), name)
    try:
        lock = locked(ensure_folder(run) / ".study.lock", run)
        lock.__enter__()
    except OutputError as error:
        note(str(error))
        return EXIT_BUSY
    study = read_begun(folder)
    planned = next(one for one in runs_of(study) if one.name == name)
    try:
        outcome = _do(folder, study, planned, int(threads))
    except Exception as error:
        # Whatever stops one run must not stop the others; its log has the whole story.
        traceback.print_exc()
        reason = str(error) if isinstance(error, MelmaskError) else f"{type(error).__name__}: {error}"
        outcome = failed_outcome(folder, study, planned, reason)
    if isinstance(outcome, int):
        return EXIT_SIGNAL + outcome
    write_outcome(run, outcome)
    return 0


def settings_of(study: Study, run: Run, threads: int) -> list[str]:
    """Return the settings of `melmask pretrain` for a run."""
    own = [*pretrain_settings(run.point.settings), *study.budget, f"run.seed={run.seed}"]
    # The user's own number of threads stands later, so it wins.
    return [f"hardware.threads={threads}", *own]


def _do(folder: Path, study: Study, run: Run, threads: int) -> Outcome | int:
    """Train and judge; return the outcome, or the signal that stopped the training."""
    path = run_folder(folder, run.name)
    store = Store(folder / STORES / digest_of(run.point.front_end))
    config = resolve_config(path, study.recipe, settings_of(study, run, threads), store)
    ended = pretrain(store, path, config, monitors(store, config, None))
    if ended.step < ended.steps:
        return ended.stopped_by
    use_threads(config.hardware.threads)
    if study.scene in (AUTO, WHITENED):
        set_features(path, store, config)
    # A study that has grown judges its earlier runs on the added tables only.
    known = read_outcome([folder], run.name)
    scores: dict[str, dict[str, TaskScore]] = dict(known.scores) if known is not None else {}
    failed: dict[str, str] = {}
    model = load(path, config.hardware.device)
    for name, table in read_tables(study.labels, study.probe).items():
        if name in scores:
            continue
        try:
            scores[name] = judge(model, name, table, study, "valid")
            note(f"{name}: {', '.join(f'{probe} {one.score:.3f}' for probe, one in scores[name].items())}")
        except InputError as error:
            failed[name] = str(error)
    rows = read_metrics(path)
    newest = {name: value for row in rows for name, value in row.items()}
    return Outcome(
        setting=run.point.name,
        seed=run.seed,
        steps=ended.step,
        loss=newest.get("loss"),
        feature_rank=newest.get("feature_rank"),
        minutes=newest["seconds"] / 60 if "seconds" in newest else None,
        crops_per_s=newest.get("crops_per_s"),
        scores=scores,
        failed_tasks=failed,
    )


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: a killed study must not leave runs that slow the next."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        # The run resumes from its snapshot, as after any kill.
        os._exit(EXIT_SIGNAL + 1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
