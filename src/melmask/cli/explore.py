"""`melmask explore`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.explore.options import ExploreOptions
from melmask.system.terminal import counted, say


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show a collection of sounds on a local page: map, spectrograms, the inside of the model, search, labels."""

    source: Path = field(metadata={"positional": "FOLDER"})
    """A folder of sounds, or a table with a column of paths; rows with times are segments. A table that melmask embed
    wrote brings its vectors along."""
    model: Path | None = None
    """A run, a checkpoint folder, or an MSM-MAE .pth file. The default is the model in the box."""
    device: str = "auto"
    """Device to compute on: cpu, cuda, cuda:1 or mps. Auto uses a GPU if there is one."""
    job: ExploreOptions = field(default=ExploreOptions())


def run(options: Options) -> int:
    """Serve the page until Ctrl-C."""
    from melmask.system.extras import require

    require("explore")
    if options.job.export is not None:
        return _export(options)
    from melmask.explore.explore import explore

    collection = explore(options.source, options.model, options.job, options.device)
    if labels := collection.labels.all():
        say(f"{collection.labels.path}: {counted(len(labels), 'label')}")
    say("ended; the same command shows the collection again")
    return 0


def _export(options: Options) -> int:
    from melmask.explore.collection import open_collection
    from melmask.explore.export import export_page
    from melmask.system.extras import require

    # It makes the graph of the model that runs in the browser.
    require("onnx")
    path = options.job.export
    assert path is not None
    collection = open_collection(options.source, options.model, options.job, options.device)
    made = export_page(collection, options.job)
    for line in made.lines:
        say(line)
    say(f"{path}: {made.size / 1e6:.1f} MB; it works without melmask: open the file, or put it on a web host")
    return 0
