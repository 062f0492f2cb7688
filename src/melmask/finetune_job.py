"""`melmask finetune`: labelled files or a HEAR task folder to a classifier.

OUT/
    classifier/       the result (docs/formats.md), written at the end
    finetune.pt       the state after the last epoch; with it a killed job goes on
    finetune.json     settings and what the labels are, to refuse going on with others
    metrics.jsonl     a line an epoch
    failed.csv        files that could not be read
"""

import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from melmask.classifier import ClassifierCard, save_classifier
from melmask.config import HardwareConfig
from melmask.encoder import AudioEncoder, load
from melmask.errors import AudioFileError, CheckpointError, InputError
from melmask.evaluate.labels import sorted_names
from melmask.evaluate.metrics import scene_score
from melmask.evaluate.task_table import ClipTable, read_clips
from melmask.evaluate.tasks import METADATA, Event, Task, read_task
from melmask.files import atomic_write, claimed, write_json
from melmask.hardware import pick_precision
from melmask.progress import track
from melmask.train.finetune import Clips, Finetuning, Kind
from melmask.train.finetune_config import FinetuneConfig

_VALID_PARTS, _MOST_PARTS = 10, 5


@dataclass(frozen=True)
class LabelledFiles:
    """paths; labels (names, or events) and part ('train', 'valid', 'test') of each; the classes and kind of task."""

    paths: list[Path]
    labels: list[list[Any]]
    parts: list[str]
    classes: list[str]
    kind: Kind


def finetune(
    source: str,
    labels: Path,
    out: Path,
    config: FinetuneConfig,
    *,
    audio_root: Path | None = None,
    fold: str = "",
    device: str = "auto",
) -> dict[str, Any]:
    """Fine-tune a model on labelled files; the same call goes on where a killed one was.

    Args:
        source: A run, checkpoint, .pth file or hub:owner/name.
        labels: A CSV (path, label; several labels as a;b; events with start_s, end_s; split, fold, group), or a HEAR
            task folder.
        out: Folder of the job; the classifier comes to lie in `out/classifier`.
        config: How to train.
        audio_root: Where relative paths start.
        fold: With folds: the one to test on, the next one validates (the first).
        device: Where to train.

    Returns:
        Scores of validation and, if there is one, test: accuracy or mAP, and of each class.

    Raises:
        InputError: labels that cannot be used, or too few readable files.
        CheckpointError, OutputError, TrainingError: as their names say.
    """
    is_task = (labels / METADATA).is_file()
    files = _task_files(read_task(labels), fold) if is_task else _table_files(labels, audio_root, config.seed, fold)
    model = load(source, device)
    with claimed(out):
        _check_same_job(out, {"model": model.sha256, "labels": _digest_of(files), "config": asdict(config)})
        return _finetuned(model, files, config, out)


def _finetuned(model: AudioEncoder, files: LabelledFiles, config: FinetuneConfig, out: Path) -> dict[str, Any]:
    """Train, save and score."""
    logmels, errors = _read_logmels(model, files.paths)
    with atomic_write(out / "failed.csv", "w") as file:
        csv.writer(file).writerows([("path", "reason"), *((str(p), reason) for p, reason in errors.items())])
    parts = {part: _clips(model, files, logmels, part) for part in ("train", "valid", "test")}
    _check_parts(files, parts, len(errors))
    training = _trained(model, files, config, parts, out)
    scores: dict[str, Any] = {"epoch": training.best["epoch"], "unreadable": len(errors)}
    for part in ("valid", "test"):
        if parts[part].logmels:
            scores[part] = _scores(files, *training.predict(parts[part])) | {"clips": len(parts[part].logmels)}
    _save(out / "classifier", model, training, files, scores)
    return scores


def _check_parts(files: LabelledFiles, parts: dict[str, Clips], failed: int) -> None:
    """Refuse what nothing can be learnt from; say what is learnt from what."""
    for part in ("train", "valid"):
        if not parts[part].logmels:
            raise InputError(f"no readable file is left to {part} on; {failed} of {len(files.paths)} failed")
    occurs = np.any([target.reshape(-1, len(files.classes)).any(0) for target in parts["train"].targets], axis=0)
    known = [label for label, there in zip(files.classes, occurs, strict=True) if there]
    fewest = 2 if files.kind == "multiclass" else 1
    if len(known) < fewest:
        there = ", ".join(map(repr, known)) or "no label"
        raise InputError(f"the readable files to train on have {there}; expected {fewest} or more labels")
    sys.stderr.write(", ".join(f"{part} {len(clips.logmels)}" for part, clips in parts.items()) + " clips\n")
    unknown = [label for label in files.classes if label not in known]
    if unknown:
        named = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        sys.stderr.write(
            f"no clip to train on has {named}: {len(unknown)} of {len(files.classes)} labels stay unknown\n"
        )


def _trained(
    model: AudioEncoder, files: LabelledFiles, config: FinetuneConfig, parts: dict[str, Clips], out: Path
) -> Finetuning:
    """Train with a line an epoch to standard error and metrics.jsonl."""
    training = Finetuning(
        model.model,
        files.kind,
        len(files.classes),
        config,
        _crop_frames(model, parts["train"], files.kind, config.crop_s),
        model.card.front_end.hop_ms,
        model.device,
        pick_precision(HardwareConfig(), model.device),
    )
    primary = "accuracy" if files.kind == "multiclass" else "mAP"

    def report(line: dict[str, Any]) -> None:
        _put_line(out / "metrics.jsonl", {key: value for key, value in line.items() if key != "left"})
        score = f"validation {primary} {line['score']:.4f}"
        if line["epoch"]:
            score = f"loss {line['loss']:.4f}  {score}  at most {line['left']} left"
        sys.stderr.write(f"epoch {line['epoch']}/{config.epochs}  {score}\n")
        sys.stderr.flush()

    def judge(probabilities: np.ndarray, targets: np.ndarray) -> float:
        return _score(files.kind, probabilities, targets)

    training.run(parts["train"], parts["valid"], judge, out / "finetune.pt", report)
    return training


def _put_line(path: Path, line: dict[str, Any]) -> None:
    """Add an epoch's line; what a killed training wrote of this epoch and later ones goes."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [text for text in lines if json.loads(text)["epoch"] < line["epoch"]]
    with atomic_write(path, "w") as file:
        file.writelines(text + "\n" for text in [*kept, json.dumps(line)])


def _save(
    folder: Path, model: AudioEncoder, training: Finetuning, files: LabelledFiles, scores: dict[str, Any]
) -> None:
    card = replace(
        model.card,
        model=replace(model.card.model, decoder_width=0),
        training={**model.card.training, "finetuned": {"from": model.name, "config": asdict(training.config)}},
    )
    # The decoder has nothing to do with the new encoder: left out, it cannot reconstruct wrongly.
    model.model.decoder = None
    save_classifier(
        folder,
        model.model,
        card,
        training.head.state_dict(),
        ClassifierCard(labels=files.classes, kind=files.kind, scene=training.scene, scores=scores),
    )


def _table_files(path: Path, audio_root: Path | None, seed: int, fold: str) -> LabelledFiles:
    table = read_clips(path, audio_root=audio_root)
    kind: Kind = "multilabel" if table.kind == "multilabel" else "event" if table.kind == "event" else "multiclass"
    parts = _parts(table, seed, fold)
    known = {name for names, part in zip(table.names, parts, strict=True) if part == "train" for name in names}
    if kind == "multiclass" and len(known) < 2:
        raise InputError(f"{path}: all rows to train on have label {known.pop()!r}; a classifier needs two labels")
    return LabelledFiles(table.paths, table.targets, parts, table.class_names, kind)


def _parts(table: ClipTable, seed: int, fold: str) -> list[str]:
    """Each row's part: the table's, or folds with one to test and one to validate; a tenth validates if none does."""
    if fold and table.folds is None:
        raise InputError(f"--fold is {fold!r}, but {table.source} has no column `fold`; leave --fold out or add it")
    if table.splits is not None and not fold:
        parts = list(table.splits)
    elif table.folds is not None:
        folds = sorted_names(table.folds)
        chosen = fold or folds[0]
        if chosen not in folds:
            raise InputError(f"--fold is {chosen!r}; the table has {', '.join(folds)}")
        following = folds[(folds.index(chosen) + 1) % len(folds)]
        # Of two folds one tests, and the validation clips come from the other.
        part_of = {following: "valid" if len(folds) > 2 else "train", chosen: "test"}
        parts = [part_of.get(name, "train") for name in table.folds]
    else:
        parts = ["train"] * len(table.paths)
    rows = [row for row, part in enumerate(parts) if part == "train"]
    if not rows:
        raise InputError(f"{table.source} has no row to train on, only {' and '.join(sorted(set(parts)))}; mark some")
    if "valid" not in parts:
        for row in _held_out(table, rows, seed):
            parts[row] = "valid"
    return parts


def _held_out(table: ClipTable, rows: list[int], seed: int) -> list[int]:
    """Rows (of those) to validate on: a tenth, more where it has not each label, at most a fifth.

    Labels have their share of it, groups stay whole, and of each label a group or clip is left to train on.

    Raises:
        InputError: there is no such row.
    """
    names = [own or [""] for own in table.names]
    units: dict[str, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(rows).tolist():
        units.setdefault(table.groups[row] if table.groups else str(row), []).append(row)
    labels_of = {unit: {name for row in own for name in names[row]} for unit, own in units.items()}
    left = Counter(name for labels in labels_of.values() for name in labels)
    # Each unit counts for its rarest label, and of each label the units are at even places.
    rarest = {unit: min(labels, key=lambda name: (left[name], name)) for unit, labels in labels_of.items()}
    count, turn = Counter(rarest.values()), Counter[str]()
    place: dict[str, float] = {}
    for unit, name in rarest.items():
        place[unit] = (turn[name] + 0.5) / count[name]
        turn[name] += 1
    enough = max(1, round(len(rows) / _VALID_PARTS), min(len(left), len(rows) // _MOST_PARTS))
    held: list[int] = []
    for unit in sorted(units, key=lambda unit: (max(0, len(units[unit]) - enough), place[unit])):
        spare = all(left[name] > 1 for name in labels_of[unit])
        if spare and (not held or len(held) + len(units[unit]) <= enough):
            held += units[unit]
            left.subtract(labels_of[unit])
    if not held:
        what = "group" if table.groups else "clip"
        raise InputError(
            f"{table.source}: no {what} can be held out to validate, as each is the last of a label; label more, or "
            "mark rows `valid` in a column `split`"
        )
    return held


def _task_files(task: Task, fold: str) -> LabelledFiles:
    names = [split.name for split in task.data_splits]
    if fold and fold not in names:
        raise InputError(f"--fold is {fold!r}; {task.title} has {', '.join(names)}")
    split = task.data_splits[names.index(fold) if fold else 0]
    rates = sorted((int(p.name) for p in task.folder.iterdir() if p.name.isdigit()), reverse=True)
    if not rates:
        raise InputError(f"{task.folder} has no folder of sounds such as 16000; unpack the task whole")
    paths, labels, parts = [], [], []
    for part in ("train", "valid", "test"):
        for name in getattr(split, part):
            for file, items in task.files[name].items():
                paths.append(task.audio_folder(name, rates[0]) / file)
                labels.append(items)
                parts.append(part)
    kind = "event" if task.embedding_type == "event" else task.prediction_type
    assert kind in ("multiclass", "multilabel", "event")
    return LabelledFiles(paths, labels, parts, list(task.labels), kind)


def _read_logmels(model: AudioEncoder, paths: Sequence[Path]) -> tuple[dict[Path, np.ndarray], dict[Path, str]]:
    """Normalised (frames, mels) float16 of each readable file, and why the others are not."""
    logmels: dict[Path, np.ndarray] = {}
    errors: dict[Path, str] = {}
    statistics, grid = model.card.statistics, model.step_grid()
    for path in track(paths, len(paths), "read"):
        try:
            pieces = [piece.cpu().numpy() for _, piece in model.segments_of_file(path, grid)]
        except AudioFileError as error:
            errors[path] = str(error)
        else:
            logmel = (np.concatenate(pieces, axis=1) - statistics.mean) / statistics.std
            logmels[path] = logmel.T.astype(np.float16)
    return logmels, errors


def _clips(model: AudioEncoder, files: LabelledFiles, logmels: dict[Path, np.ndarray], part: str) -> Clips:
    numbers = {label: number for number, label in enumerate(files.classes)}
    hop_ms = model.card.front_end.hop_ms
    kept, targets = [], []
    for path, labels, own in zip(files.paths, files.labels, files.parts, strict=True):
        if own != part or path not in logmels:
            continue
        logmel = logmels[path]
        target = np.zeros((len(logmel), len(numbers)) if files.kind == "event" else len(numbers), dtype=np.float32)
        for label in labels:
            if isinstance(label, Event):
                first, behind = round(label.start_ms / hop_ms), round(label.end_ms / hop_ms) + 1
                target[first:behind, numbers[label.label]] = 1
            else:
                target[numbers[label]] = 1
        kept.append(logmel)
        targets.append(target)
    return Clips(kept, targets)


def _crop_frames(model: AudioEncoder, train: Clips, kind: Kind, crop_s: float) -> int:
    """What nearly all clips fit into, up to the longest crop, or the model's unit for events; whole patches."""
    patch, front_end = model.card.model.patch_frames, model.card.front_end
    limit = model.card.model.frames if kind == "event" else round(1000 * crop_s / front_end.hop_ms)
    longest = int(np.quantile([len(logmel) for logmel in train.logmels], 0.95))
    return max(1, round(min(limit, longest) / patch)) * patch


def _score(kind: Kind, probabilities: np.ndarray, targets: np.ndarray) -> float:
    found = targets > 0.5
    if kind == "multiclass":
        return scene_score("top1_acc", probabilities, found)
    # A class that does not occur among these clips says nothing of the classifier.
    occurring = found.any(0)
    return scene_score("mAP", probabilities[:, occurring], found[:, occurring]) if occurring.any() else 0.0


def _scores(files: LabelledFiles, probabilities: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """The primary score, and each class's recall or average precision; classes that do not occur have none."""
    found = targets > 0.5
    if files.kind == "multiclass":
        right = probabilities.argmax(1) == targets.argmax(1)
        of_class = {
            label: float(right[found[:, i]].mean()) for i, label in enumerate(files.classes) if found[:, i].any()
        }
        return {"accuracy": float(right.mean()), "recall": of_class}
    precision = {
        label: scene_score("mAP", probabilities[:, [i]], found[:, [i]])
        for i, label in enumerate(files.classes)
        if found[:, i].any()
    }
    return {"mAP": _score(files.kind, probabilities, targets), "average_precision": precision}


def _digest_of(files: LabelledFiles) -> str:
    rows = [[str(p), labels, part] for p, labels, part in zip(files.paths, files.labels, files.parts, strict=True)]
    return hashlib.sha256(json.dumps([files.kind, files.classes, rows]).encode()).hexdigest()


def _check_same_job(out: Path, job: dict[str, Any]) -> None:
    path = out / "finetune.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else job
        different = [key for key in job if known.get(key) != job[key]]
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete {out} to begin anew, or choose another") from error
    if different:
        raise InputError(f"{out} has begun with another {' and '.join(different)}; choose another --out, or delete it")
    write_json(path, job)
