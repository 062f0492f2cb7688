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
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from melmask.classifier.examples import LabelledFiles, table_files, task_files
from melmask.classifier.model import ClassifierCard, save_classifier
from melmask.classifier.options import FinetuneConfig
from melmask.classifier.training import Clips, Finetuning, Kind
from melmask.config import HardwareConfig
from melmask.downstream.metrics import scene_score
from melmask.embedding.encoder import AudioEncoder, load
from melmask.errors import AudioFileError, CheckpointError, InputError
from melmask.evaluate.tasks import METADATA, read_task
from melmask.labels.tables import Event
from melmask.system.files import atomic_write, claimed, write_json
from melmask.system.hardware import pick_precision
from melmask.system.progress import track

_FEWEST_PARTS = 20
"""One clip to validate on to so many to train on is worth a word."""


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
    if labels.is_dir() and not is_task:
        raise InputError(f"{labels} is a folder without {METADATA}; give one task's folder, or a CSV table")
    files = task_files(read_task(labels), fold) if is_task else table_files(labels, audio_root, config.seed, fold)
    model = load(source, device)
    with claimed(out):
        known = _known_job(out)
        job = {"model": model.sha256, "config": asdict(config), "fold": fold, "labels": _digest_of(files)}
        different = [key for key in job if known and known.get(key) != job[key]]
        if different:
            raise InputError(f"{out} has begun with another {different[0]}; choose another --out, or delete it")
        logmels, errors = _read_logmels(model, files.paths)
        unreadable = sorted(str(path.resolve()) for path in errors)
        _check_same_unreadable(out, known.get("unreadable", unreadable), unreadable)
        write_json(out / "finetune.json", job | {"unreadable": unreadable})
        return _finetuned(model, files, logmels, errors, config, out)


def _finetuned(
    model: AudioEncoder,
    files: LabelledFiles,
    logmels: dict[Path, np.ndarray],
    errors: dict[Path, str],
    config: FinetuneConfig,
    out: Path,
) -> dict[str, Any]:
    """Train, save and score."""
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
    known = _labels_in(files, parts["train"])
    fewest = 2 if files.kind == "multiclass" else 1
    if len(known) < fewest:
        there = ", ".join(map(repr, known)) or "no label"
        raise InputError(f"the readable files to train on have {there}; expected {fewest} or more labels")
    sys.stderr.write(", ".join(f"{part} {len(clips.logmels)}" for part, clips in parts.items()) + " clips\n")
    if len(parts["valid"].logmels) * _FEWEST_PARTS < len(parts["train"].logmels):
        sys.stderr.write(
            "few clips validate, so chance has a say in which epoch is the best; mark more rows `valid` in a column "
            "`split`\n"
        )
    of_valid = _labels_in(files, parts["valid"])
    for what, there, effect in (
        ("train", known, "stay unknown"),
        ("validate", of_valid, "have no part in the choice of the epoch"),
    ):
        missing = [label for label in files.classes if label not in there]
        if missing:
            named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            sys.stderr.write(
                f"no clip to {what} on has {named}: {len(missing)} of {len(files.classes)} labels {effect}\n"
            )


def _labels_in(files: LabelledFiles, clips: Clips) -> list[str]:
    """The labels that occur in these clips, one at least."""
    occurs = np.any([target.reshape(-1, len(files.classes)).any(0) for target in clips.targets], axis=0)
    return [label for label, there in zip(files.classes, occurs, strict=True) if there]


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
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    kept = [text for text in lines if _epoch_of(text) < line["epoch"]]
    with atomic_write(path, "w") as file:
        file.writelines(text + "\n" for text in [*kept, json.dumps(line)])


def _epoch_of(text: str) -> float:
    """Of a line of metrics.jsonl; infinity of what is none."""
    try:
        return float(json.loads(text)["epoch"])
    except (ValueError, KeyError, TypeError):
        return math.inf


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
                first, behind = _frames_of(label, hop_ms, len(logmel), model.card.model.patch_frames)
                target[first:behind, numbers[label.label]] = 1
            else:
                target[numbers[label]] = 1
        kept.append(logmel)
        targets.append(target)
    return Clips(kept, targets)


def _frames_of(event: Event, hop_ms: float, frames: int, shortest: int) -> tuple[int, int]:
    """First frame of an event and the one behind its last.

    A step has the label of its centre, which an event shorter than a step would mostly miss: it counts as a step long.
    """
    first, behind = round(event.start_ms / hop_ms), round(event.end_ms / hop_ms) + 1
    if behind - first < shortest:
        first = max(0, min((first + behind - shortest) // 2, frames - shortest))
        behind = first + shortest
    return first, behind


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
    if not occurring.any():
        raise InputError("nothing to validate on has a label; mark clips with labels `valid` in a column `split`")
    return scene_score("mAP", probabilities[:, occurring], found[:, occurring])


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
    return {"mAP": float(np.mean(list(precision.values()))) if precision else None, "average_precision": precision}


def _digest_of(files: LabelledFiles) -> str:
    rows = [
        [str(path.resolve()), labels, part]
        for path, labels, part in zip(files.paths, files.labels, files.parts, strict=True)
    ]
    return hashlib.sha256(json.dumps([files.kind, files.classes, rows]).encode()).hexdigest()


def _known_job(out: Path) -> dict[str, Any]:
    """What `out` has begun with; nothing where nothing has been trained yet."""
    path = out / "finetune.json"
    if not path.exists() or not ((out / "finetune.pt").exists() or (out / "classifier").exists()):
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete {out} to begin anew, or choose another") from error


def _check_same_unreadable(out: Path, known: list[str], unreadable: list[str]) -> None:
    """Refuse to score what was learnt without some files, or with some that are gone, as if it were otherwise."""
    changed = sorted(set(known) ^ set(unreadable))
    if changed:
        now = "cannot be read now, but could" if changed[0] in unreadable else "can be read now, but could not"
        raise InputError(
            f"{changed[0]} {now} when {out} began ({len(changed)} such files); put it back as it was, or choose "
            "another --out"
        )
