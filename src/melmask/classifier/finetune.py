"""`melmask finetune`: train a classifier from labeled files, or from the folder of a HEAR task.

OUT/
    classifier/       the result (docs/formats.md), written at the end
    finetune.pt       the state after the last epoch, from which a killed job resumes
    finetune.json     what the job is: a `FinetuneJob`
    metrics.jsonl     a line per epoch: an `EpochMetrics`
    failed.csv        files that could not be read, and why
    notes.csv         files with something to know of, if there are any
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from melmask.audio.notes import summary
from melmask.audio.parts import Sound
from melmask.classifier.examples import PARTS, Clips, Examples, clips_of, read_examples, read_logmels, resolved_key
from melmask.classifier.model import (
    CLASSIFIER,
    ClassifierCard,
    FinetuneReport,
    metric_of,
    save_classifier,
    scores_of,
)
from melmask.classifier.network import ClassifierNetwork
from melmask.classifier.options import FinetuneConfig, FinetuneOptions
from melmask.classifier.training import EpochMetrics, Finetuning, crop_frames
from melmask.config import HardwareConfig, Reading
from melmask.config_text import from_dict
from melmask.embedding.encoder import AudioEncoder, load
from melmask.embedding.reading import read_as
from melmask.errors import CheckpointError, ConfigError, InputError
from melmask.models.network import network_with, weight_shapes
from melmask.system.extras import require
from melmask.system.files import atomic_write, check_nobodys, claimed, write_csv, write_json
from melmask.system.hardware import pick_precision
from melmask.system.progress import duration_text
from melmask.system.reading import LARGE_FILE_BYTES, parse_json, read_bytes, read_json_object, reason_of
from melmask.system.terminal import note

SNAPSHOT, JOB, METRICS = "finetune.pt", "finetune.json", "metrics.jsonl"
FAILED, NOTES = "failed.csv", "notes.csv"
_FEWEST_PARTS = 20
"""Warn if there is less than one validation clip for this many training clips."""
_LABELS_NAMED = 5
"""A warning about missing labels names this many of them."""


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """What tells one fine-tuning from another."""

    model: str
    """SHA-256 of the model that training starts from."""
    config: FinetuneConfig
    fold: str
    labels: str
    """SHA-256 of the examples."""
    reading: Reading = Reading()
    """How the files are read."""
    unreadable: Sequence[str] = ()
    """Absolute paths of the files that could not be read, sorted."""

    def to_dict(self) -> dict[str, Any]:
        """Return the job as finetune.json holds it; how files are read only if not as in release 0.1.0."""
        facts = asdict(self) | {"reading": self.reading.changed_facts()}
        return {name: value for name, value in facts.items() if name != "reading" or value}

    def check_same(self, previous: "FinetuneJob", out: Path) -> None:
        """Raise InputError unless `previous`, the job that `out` holds, trains the same; readability is left aside."""
        for key in ("model", "config", "fold", "labels", "reading"):
            if getattr(self, key) != getattr(previous, key):
                raise InputError(f"{out} was begun with another {key}; choose another --out, or delete this one")

    def check_same_files(self, previous: "FinetuneJob", out: Path) -> None:
        """Raise InputError unless the same files can be read as in `previous`, the job that `out` holds.

        A classifier that learned without some files must not be scored as if it had them, or the other way round.
        """
        changed = sorted(set(previous.unreadable) ^ set(self.unreadable))
        if changed:
            now = "cannot be read now, but could" if changed[0] in self.unreadable else "can be read now, but could not"
            raise InputError(
                f"{changed[0]} {now} when {out} was begun ({len(changed)} such files); put it back as it was, or "
                "choose another --out"
            )


def finetune(
    source: str | None, labels: Path, out: Path, config: FinetuneConfig, options: FinetuneOptions = FinetuneOptions()
) -> FinetuneReport:
    """Fine-tune a model on labeled files; the same call resumes a job that was killed.

    Args:
        source: A run, a checkpoint folder, a .pth file, hub:owner/name or box. None is the model in the box.
        labels: A CSV (path, label; several labels as a;b; events with start_s, end_s; split, fold, group), or the
            folder of a HEAR task.
        out: Folder of the job; the classifier is written to `out/classifier`.
        config: How to train.
        options: Which rows to train on, and on which device.

    Returns:
        The scores on the validation clips and, if there are any, on the test clips.

    Raises:
        InputError: the labels cannot be used, or too few files are readable.
        CheckpointError: the model or what is in `out` cannot be used.
        OutputError: `out` cannot be written, or another job writes to it.
        TrainingError: the training diverged.
        MissingExtraError: scikit-learn is not installed, which scores several labels per clip, and events.
    """
    examples = read_examples(labels, config.seed, options)
    if metric_of(examples.kind) == "mAP":
        require("eval")
    model = read_as(load(source, options.device), options.reading)
    if not (out / JOB).exists():
        check_nobodys(out, (CLASSIFIER, METRICS, NOTES, FAILED, SNAPSHOT))
    with claimed(out):
        previous = _read_job(out)
        job = FinetuneJob(
            model=model.sha256, config=config, fold=options.fold, labels=examples.sha256, reading=model.reading
        )
        # This check comes before minutes are spent on reading the files.
        if previous is not None:
            job.check_same(previous, out)
        logmels, errors, notes = read_logmels(model, examples.sounds)
        job = replace(job, unreadable=sorted(map(resolved_key, errors)))
        if previous is not None:
            job.check_same_files(previous, out)
        # Nothing is trained yet, so a job that is refused below does not bind the next one: see `_read_job`.
        write_json(out / JOB, job.to_dict())
        write_csv(out / FAILED, [("path", "reason"), *((str(sound), reason) for sound, reason in errors.items())])
        _report_notes(out / NOTES, notes)
        model = up_to_its_layer(model)
        parts = {part: clips_of(model, examples, logmels, part) for part in PARTS}
        _check_parts(examples, parts, len(errors))
        training = _train(model, examples, config, parts, out)
        report = _report(training, examples, parts, len(errors))
        _save(out / CLASSIFIER, model, training, examples, report)
        return report


def up_to_its_layer(model: AudioEncoder) -> AudioEncoder:
    """Return the encoder up to the last block whose features its users get, if its card names any.

    Its card names that block, so the features do not pass the final norm, and what is trained starts from those that
    `melmask probe` judges.
    """
    card = model.card
    if not card.layers:
        return model
    depth = max(card.layers)
    config = replace(card.model, depth=depth, decoder_width=0)
    weights, shapes = model.model.state_dict(), weight_shapes(config)
    network = network_with(config, {name: weights[name] for name in shapes}, Path(model.name))
    # A whitening of several blocks does not fit the vectors of one.
    card = replace(card if len(card.layers) == 1 else card.without_whitening(), model=config, layers=(depth,))
    return AudioEncoder(
        network, card, model.name, str(model.device), model.precision, model.normalization, model.reading
    )


def _report_notes(path: Path, notes: dict[Sound, str]) -> None:
    """Write the notes on files to `path`, and count them on standard error."""
    path.unlink(missing_ok=True)
    if notes:
        write_csv(path, [("path", "note"), *((str(name), note) for name, note in notes.items())])
    for line in summary(notes.values(), path):
        note(line)


def _read_job(out: Path) -> FinetuneJob | None:
    """Return the job that was begun in `out`, or None if nothing has been trained there yet.

    Raises:
        CheckpointError: finetune.json is damaged.
    """
    path = out / JOB
    if not path.exists() or not ((out / SNAPSHOT).exists() or (out / CLASSIFIER).exists()):
        return None
    try:
        facts = read_json_object(path, LARGE_FILE_BYTES)
        config, unreadable = from_dict(FinetuneConfig, facts["config"]), [str(name) for name in facts["unreadable"]]
        # Jobs of earlier versions do not say how they read files.
        reading = from_dict(Reading, facts.get("reading", {}))
        return FinetuneJob(**facts | {"config": config, "unreadable": unreadable, "reading": reading})
    except (OSError, ValueError, TypeError, KeyError, ConfigError) as error:
        raise CheckpointError(
            f"{path} is damaged ({reason_of(error)}); delete {out} to start over, or choose another"
        ) from error


def _check_parts(examples: Examples, parts: dict[str, Clips], failed: int) -> None:
    """Refuse clips from which nothing can be learned; report on standard error what is learned from what."""
    train, valid = parts["train"], parts["valid"]
    for part in ("train", "valid"):
        if not parts[part]:
            raise InputError(f"no readable file is left to {part} on; {failed} of {len(examples.sounds)} failed")
    known = _labels_in(train, examples.classes)
    # With one label per clip, a classifier of a single label would always be right.
    fewest = 2 if examples.kind == "multiclass" else 1
    if len(known) < fewest:
        there = ", ".join(map(repr, known)) or "no label"
        raise InputError(f"the readable files to train on have {there}; expected {fewest} or more labels")
    note(", ".join(f"{part} {len(clips)}" for part, clips in parts.items()) + " clips")
    if len(valid) * _FEWEST_PARTS < len(train):
        note(
            "there are few validation clips, so the choice of the best epoch depends on chance; mark more rows `valid` "
            "in a column `split`"
        )
    _report_missing("train", known, examples.classes, "not learned")
    _report_missing("validate", _labels_in(valid, examples.classes), examples.classes, "ignored for the best epoch")


def _labels_in(clips: Clips, classes: Sequence[str]) -> list[str]:
    """Return the labels that occur in these clips, of which there is at least one."""
    # A clip's target is (classes,), and of an event task (frames, classes): as rows, both are alike.
    occurs = np.any([target.reshape(-1, len(classes)).any(0) for target in clips.targets], axis=0)
    return [label for label, there in zip(classes, occurs, strict=True) if there]


def _report_missing(purpose: str, there: list[str], classes: list[str], effect: str) -> None:
    missing = [label for label in classes if label not in there]
    if missing:
        named = ", ".join(missing[:_LABELS_NAMED]) + (", ..." if len(missing) > _LABELS_NAMED else "")
        note(f"no clip to {purpose} on has {named} ({len(missing)} of {len(classes)} labels): {effect}")


def _train(
    model: AudioEncoder, examples: Examples, config: FinetuneConfig, parts: dict[str, Clips], out: Path
) -> Finetuning:
    """Train, and write a line per epoch to standard error and to metrics.jsonl."""
    kind, classes = examples.kind, len(examples.classes)
    whitening, normed = model.card.whitening, not model.card.layers
    network = ClassifierNetwork(model.model, kind, classes, config.scene, model.device, whitening, normed)
    training = Finetuning(
        network,
        config,
        crop_frames(model, parts["train"], examples.kind, config.crop_s),
        model.card.front_end.hop_ms,
        pick_precision(HardwareConfig(), model.device),
    )

    def report(metrics: EpochMetrics, left_s: float | None) -> None:
        _add_metrics(out / METRICS, metrics)
        text = f"validation {metric_of(examples.kind)} {metrics.score:.4f}"
        if metrics.loss is not None and left_s is not None:
            text = f"loss {metrics.loss:.4f}  {text}  at most {duration_text(left_s)} left"
        note(f"epoch {metrics.epoch}/{config.epochs}  {text}")

    training.run(parts["train"], parts["valid"], out / SNAPSHOT, report)
    return training


def _add_metrics(path: Path, metrics: EpochMetrics) -> None:
    """Add an epoch to metrics.jsonl, and drop the lines of this and later epochs, which a killed job wrote.

    Raises:
        OutputError: it cannot be written.
    """
    # The file is rewritten for each epoch: it is short, and a kill leaves either the old or the new one.
    lines = read_bytes(path).decode("utf-8", "replace").splitlines() if path.exists() else []
    line = {key: value for key, value in asdict(metrics).items() if value is not None}
    kept = [text for text in lines if _epoch_of(text) < metrics.epoch]
    with atomic_write(path, "w") as file:
        file.writelines(text + "\n" for text in [*kept, json.dumps(line)])


def _epoch_of(line: str) -> float:
    """Return the epoch of a line of metrics.jsonl; infinity if the line is damaged, so that it is dropped."""
    try:
        return float(parse_json(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _report(training: Finetuning, examples: Examples, parts: dict[str, Clips], unreadable: int) -> FinetuneReport:
    """Score the trained network on the validation clips and, if there are any, on the test clips."""
    valid, test = (
        scores_of(examples.kind, examples.classes, len(clips), *training.network.predict(clips)) if clips else None
        for clips in (parts["valid"], parts["test"])
    )
    # `_check_parts` has refused a job without validation clips.
    assert valid is not None
    return FinetuneReport(epoch=training.best_epoch, unreadable=unreadable, valid=valid, test=test)


def _save(folder: Path, model: AudioEncoder, training: Finetuning, examples: Examples, report: FinetuneReport) -> None:
    """Write the classifier, with what it was made from and how."""
    network = training.network
    finetuned = {"from": model.name, "config": asdict(training.config)}
    # The whitening was learned from vectors of the weights before.
    card = replace(
        model.card.without_whitening(),
        model=replace(model.card.model, decoder_width=0),
        reading=model.reading,
        training={**model.card.training, "finetuned": finetuned},
    )
    # The decoder was trained with the old encoder. If it were kept, the classifier would reconstruct wrongly.
    model.model.decoder = None
    classifier = ClassifierCard(labels=examples.classes, kind=examples.kind, scene=network.scene, scores=report)
    save_classifier(folder, model.model, card, network.head.state_dict(), classifier)
