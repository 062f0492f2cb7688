"""`melmask predict`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.classifier.options import PredictOptions
from melmask.cli.options import ComputeOptions
from melmask.labels.options import TableOptions
from melmask.system.terminal import counted, say


@dataclass(frozen=True, kw_only=True)
class Options:
    """Label files with a classifier, or find events and their times."""

    sources: tuple[Path, ...] = field(metadata={"positional": "SOURCE"})
    """A sound file, a folder, or a table with a column of paths."""
    model: Path
    """A folder written by melmask finetune."""
    out: Path
    """The table to write: X.csv, X.jsonl or X.parquet."""
    job: PredictOptions = field(default=PredictOptions())
    table: TableOptions = field(default=TableOptions(), metadata={"without": ("label_column",)})
    compute: ComputeOptions = field(default=ComputeOptions())


def run(options: Options) -> int:
    """Label files."""
    from melmask.classifier.model import load_classifier
    from melmask.classifier.predict import predict_files
    from melmask.labels.sources import find_sounds
    from melmask.system.files import check_not_read

    check_not_read(options.out, options.sources)
    sounds = find_sounds(options.sources, options.table)
    classifier = load_classifier(options.model, options.compute.device, options.compute.precision)
    report = predict_files(classifier, sounds, options.out, options.job)
    what = "segment" if any(sound.is_part for sound in sounds) else "file"
    say(f"{options.out}: {counted(report.rows, 'row')} of {counted(report.files, what)}")
    if options.job.events and classifier.card.kind != "event":
        say("the classifier was trained on whole clips, so an event here is a stretch that sounds like such a clip")
    if classifier.card.kind == "event" and not options.job.events:
        say("the classifier was trained on events; add --events to get the start and the end of each one")
    if report.failed:
        say(f"{counted(report.failed, what)} could not be labeled; their rows hold the reason")
    for line in report.notes:
        say(line)
    return 0
