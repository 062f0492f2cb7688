"""`melmask predict`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.cli.options import ComputeOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """Label files with a classifier, or find events and their times."""

    sources: tuple[Path, ...] = field(metadata={"positional": "SOURCE"})
    """A sound file, a folder, or a CSV with a path column."""
    model: Path
    """A folder written by melmask finetune."""
    out: Path
    """The table to write: X.csv, X.jsonl or X.parquet."""
    events: bool = False
    """Write what sounds when, not what a whole file is."""
    threshold: float = 0.5
    """Probability above which a label is given."""
    hop_ms: float | None = None
    """Time between the steps of events, in ms: the duration of a patch divided by a whole number. Without it, that is
    the longest up to 50 ms, as in HEAR."""
    median_filter_ms: float = 250.0
    """Length of the median filter over the probabilities of events, in ms."""
    min_duration_ms: float = 125.0
    """Shortest event that is kept, in ms."""
    compute: ComputeOptions = field(default=ComputeOptions())


def run(options: Options) -> int:
    """Label files."""
    from melmask.audio.files import find_audio
    from melmask.classifier.model import load_classifier
    from melmask.classifier.predict import predict_files

    paths = find_audio(options.sources)
    classifier = load_classifier(options.model, options.compute.device, options.compute.precision)
    report = predict_files(
        classifier,
        paths,
        options.out,
        events=options.events,
        threshold=options.threshold,
        hop_ms=options.hop_ms,
        median_filter_ms=options.median_filter_ms,
        min_duration_ms=options.min_duration_ms,
    )
    print(f"{options.out}: {report.rows} rows of {report.files} files")
    if options.events and classifier.card.kind != "event":
        print("the classifier was trained on whole clips, so an event is a stretch that sounds like such a clip")
    if classifier.card.kind == "event" and not options.events:
        print("the classifier was trained on events; give --events to learn when each one sounds")
    if report.failed:
        print(f"{report.failed} files could not be read; their rows hold the reason")
    return 0
