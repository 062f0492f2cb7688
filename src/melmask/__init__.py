"""General-purpose audio representations by masked spectrogram modelling (MSM-MAE, PMLR 166, 2022)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melmask.config import FRONT_END_32_KHZ, FrontEndConfig, Statistics
    from melmask.embedding.assemble import POOLINGS, SCENES
    from melmask.embedding.encoder import AudioEncoder, Embedding, Reconstruction, load
    from melmask.errors import MelmaskError

__version__ = "0.1.0"

_HOMES = {
    "FRONT_END_32_KHZ": "melmask.config",
    "POOLINGS": "melmask.embedding.assemble",
    "SCENES": "melmask.embedding.assemble",
    "AudioEncoder": "melmask.embedding.encoder",
    "Embedding": "melmask.embedding.encoder",
    "FrontEndConfig": "melmask.config",
    "MelmaskError": "melmask.errors",
    "Reconstruction": "melmask.embedding.encoder",
    "Statistics": "melmask.config",
    "load": "melmask.embedding.encoder",
}

__all__ = [
    "FRONT_END_32_KHZ",
    "POOLINGS",
    "SCENES",
    "AudioEncoder",
    "Embedding",
    "FrontEndConfig",
    "MelmaskError",
    "Reconstruction",
    "Statistics",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `melmask --help` does not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'melmask' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
