"""Find the model that a user names: the one in the box, a run, a checkpoint folder, a third-party file, a Hub name."""

from pathlib import Path

from melmask.checkpoint.bundled import BOX, bundled_model
from melmask.checkpoint.convert import read_foreign
from melmask.checkpoint.folder import CONFIG, WEIGHTS, ModelCard, load_checkpoint
from melmask.checkpoint.hub import PREFIX, download
from melmask.errors import CheckpointError
from melmask.models.network import Network
from melmask.system.terminal import note


def load_any(source: Path | None) -> tuple[Network, ModelCard, Path]:
    """Return the model, its card, and the file or folder that it was read from.

    None is the model in the box. So is the name `box`, unless the user has something of this name: that goes first, as
    it did before there was a model in the box, and a note says so.

    Raises:
        CheckpointError: nothing is there, or it is damaged or of an unknown kind.
    """
    named = source is not None and str(source) == BOX
    if source is None or (named and not source.exists()):
        return *load_checkpoint(bundled_model()), Path(BOX)
    if named:
        note(f"{BOX} is {source.absolute()}; for melmask's own model, name none, or work in another folder")
    if str(source).startswith(PREFIX):
        return *load_checkpoint(download(str(source))), source
    if source.is_file():
        # Completing a path with the Tab key may end on a file of the checkpoint.
        if source.name in (CONFIG, WEIGHTS):
            return *load_checkpoint(source.parent), source.parent
        return *read_foreign(source), source
    if not source.exists():
        raise CheckpointError(f"{source} does not exist; give a run, a checkpoint folder or a .pth file")
    found = (path for path in (source / "checkpoints").glob("step-*") if path.name[len("step-") :].isdecimal())
    # Names have seven digits, or more for longer runs, so they are compared as numbers.
    steps = sorted(found, key=lambda path: int(path.name[len("step-") :]))
    # Take a run's newest checkpoint, the encoder of a fine-tuning, or the folder itself.
    classifier = source / "classifier"
    folder = steps[-1] if steps else classifier if (classifier / CONFIG).exists() else source
    if not steps and (source / "run.json").exists():
        raise CheckpointError(f"{source} is a run without a checkpoint; wait until melmask pretrain saves one")
    if not (folder / CONFIG).exists() and not (folder / WEIGHTS).exists():
        raise CheckpointError(
            f"{source} holds no checkpoint; expected a run of melmask pretrain, or {CONFIG} and {WEIGHTS}"
        )
    return *load_checkpoint(folder), folder
