"""Find the model in the box, which melmask brings along, and check that it is whole.

`tools/box/pack.py` writes the folder `bundled`: a checkpoint in half precision, its model card, the attribution of the
sounds that it was trained on, and SHA256SUMS, which has a line for each file. A build without the model has no folder.
"""

import hashlib
from functools import cache
from pathlib import Path

import melmask
from melmask.errors import CheckpointError
from melmask.system.reading import read_bytes

BOX = "box"
"""The name of the model in the box."""
SUMS = "SHA256SUMS"
BUNDLED = Path(melmask.__file__).parent / "bundled"
LARGEST_BYTES = 12_000_000
"""What the weights may take of the repository and of every installation."""


def has_bundled_model() -> bool:
    """Return whether this build has a model in the box."""
    return (BUNDLED / SUMS).exists()


def bundled_model() -> Path:
    """Return the folder of the model in the box, after a comparison of its files with their SHA-256.

    Raises:
        CheckpointError: this build has no such model, or a file is not what was packed.
    """
    if not has_bundled_model():
        raise CheckpointError(
            "this build of melmask has no bundled model; give a model, as --model RUN or melmask.load(RUN), or train "
            "one with melmask pretrain"
        )
    _check(BUNDLED)
    return BUNDLED


@cache
def _check(folder: Path) -> None:
    """Raise CheckpointError unless the files of `folder` are those of its SHA256SUMS."""
    try:
        for line in read_bytes(folder / SUMS, LARGEST_BYTES).decode().splitlines():
            wanted, name = line.split("  ", 1)
            if hashlib.sha256(read_bytes(folder / name, LARGEST_BYTES)).hexdigest() != wanted:
                raise CheckpointError(f"{folder / name} is not the file that was packed; install melmask again")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged ({error}); install melmask again") from error
