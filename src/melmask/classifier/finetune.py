"""`melmask finetune`: from labeled files, or the folder of a HEAR task, to a classifier. See `record.py` for files."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

from melmask.classifier import record
from melmask.classifier.clips import Clips, clips_of, crop_frames, labels_in, read_logmels
from melmask.classifier.examples import PARTS, Examples, read_examples
from melmask.classifier.model import ClassifierCard, save_classifier
from melmask.classifier.network import ClassifierNetwork
from melmask.classifier.options import FinetuneConfig, FinetuneOptions
from melmask.classifier.record import EpochMetrics, FinetuneJob
from melmask.classifier.scores import FinetuneReport, metric_of, scores_of
from melmask.classifier.training import Finetuning
from melmask.config import HardwareConfig
from melmask.embedding.encoder import AudioEncoder, load
from melmask.errors import InputError
from melmask.system.extras import require
from melmask.system.files import claimed, write_csv, write_json
from melmask.system.hardware import pick_precision
from melmask.system.progress import duration_text

_FEWEST_PARTS = 20
"""Warn if fewer than one clip validates for so many that are trained on."""
_LABELS_NAMED = 5


def finetune(
    source: str, labels: Path, out: Path, config: FinetuneConfig, options: FinetuneOptions = FinetuneOptions()
) -> FinetuneReport:
    """Fine-tune a model on labeled files; the same call resumes a job that was killed.

    Args:
        source: A run, a checkpoint folder, a .pth file or hub:owner/name.
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
    model = load(source, options.device)
    with claimed(out):
        previous = record.read_job(out)
        job = FinetuneJob(model=model.sha256, config=config, fold=options.fold, labels=examples.sha256)
        # Checked before minutes are spent on reading the files.
        if previous is not None:
            job.check_same(previous, out)
        logmels, errors = read_logmels(model, examples.paths)
        job = replace(job, unreadable=sorted(str(path.resolve()) for path in errors))
        if previous is not None:
            job.check_same_files(previous, out)
        # Nothing is trained yet, so a job that is refused below does not bind the next one: see `read_job`.
        write_json(out / record.JOB, asdict(job))
        failed = [("path", "reason"), *((str(path), reason) for path, reason in errors.items())]
        write_csv(out / record.FAILED, failed)
        parts = {part: clips_of(model, examples, logmels, part) for part in PARTS}
        _check_parts(examples, parts, len(errors))
        training = _train(model, examples, config, parts, out)
        report = _report(training, examples, parts, len(errors))
        _save(out / record.CLASSIFIER, model, training, examples, report)
        return report


def _check_parts(examples: Examples, parts: dict[str, Clips], failed: int) -> None:
    """Refuse what nothing can be learned from; report what is learned from what."""
    train, valid = parts["train"], parts["valid"]
    for part in ("train", "valid"):
        if not parts[part]:
            raise InputError(f"no readable file is left to {part} on; {failed} of {len(examples.paths)} failed")
    known = labels_in(train, examples.classes)
    # With one label per clip, a classifier of a single label would always be right.
    fewest = 2 if examples.kind == "multiclass" else 1
    if len(known) < fewest:
        there = ", ".join(map(repr, known)) or "no label"
        raise InputError(f"the readable files to train on have {there}; expected {fewest} or more labels")
    sys.stderr.write(", ".join(f"{part} {len(clips)}" for part, clips in parts.items()) + " clips\n")
    if len(valid) * _FEWEST_PARTS < len(train):
        sys.stderr.write(
            "few clips validate, so chance has a say in which epoch is the best; mark more rows `valid` in a column "
            "`split`\n"
        )
    _report_missing("train", known, examples.classes, "stay unknown")
    checked = labels_in(valid, examples.classes)
    _report_missing("validate", checked, examples.classes, "have no part in the choice of the epoch")


def _report_missing(purpose: str, there: list[str], classes: list[str], effect: str) -> None:
    missing = [label for label in classes if label not in there]
    if missing:
        named = ", ".join(missing[:_LABELS_NAMED]) + (", ..." if len(missing) > _LABELS_NAMED else "")
        sys.stderr.write(f"no clip to {purpose} on has {named}: {len(missing)} of {len(classes)} labels {effect}\n")


def _train(
    model: AudioEncoder, examples: Examples, config: FinetuneConfig, parts: dict[str, Clips], out: Path
) -> Finetuning:
    """Train, with a line per epoch to standard error and to metrics.jsonl."""
    network = ClassifierNetwork(model.model, examples.kind, len(examples.classes), config.scene, model.device)
    training = Finetuning(
        network,
        config,
        crop_frames(model, parts["train"], examples.kind, config.crop_s),
        model.card.front_end.hop_ms,
        pick_precision(HardwareConfig(), model.device),
    )

    def report(metrics: EpochMetrics, left_s: float | None) -> None:
        record.add_metrics(out, metrics)
        text = f"validation {metric_of(examples.kind)} {metrics.score:.4f}"
        if metrics.loss is not None and left_s is not None:
            text = f"loss {metrics.loss:.4f}  {text}  at most {duration_text(left_s)} left"
        sys.stderr.write(f"epoch {metrics.epoch}/{config.epochs}  {text}\n")
        # Standard error is buffered where it is a file, and an epoch may take minutes.
        sys.stderr.flush()

    training.run(parts["train"], parts["valid"], out / record.SNAPSHOT, report)
    return training


def _report(training: Finetuning, examples: Examples, parts: dict[str, Clips], unreadable: int) -> FinetuneReport:
    """Score the trained network."""
    scores = {
        part: scores_of(examples.kind, examples.classes, len(parts[part]), *training.network.predict(parts[part]))
        for part in ("valid", "test")
        if parts[part]
    }
    valid, test = scores["valid"], scores.get("test")
    return FinetuneReport(epoch=training.best_epoch, unreadable=unreadable, valid=valid, test=test)


def _save(folder: Path, model: AudioEncoder, training: Finetuning, examples: Examples, report: FinetuneReport) -> None:
    """Write the classifier, with what it was made from and how."""
    network = training.network
    finetuned = {"from": model.name, "config": asdict(training.config)}
    card = replace(
        model.card,
        model=replace(model.card.model, decoder_width=0),
        training={**model.card.training, "finetuned": finetuned},
    )
    # The decoder does not know the new encoder: with it, the classifier would reconstruct wrongly.
    model.model.decoder = None
    classifier = ClassifierCard(labels=examples.classes, kind=examples.kind, scene=network.scene, scores=report)
    save_classifier(folder, model.model, card, network.head.state_dict(), classifier)
