"""General-purpose audio representations by masked spectrogram modeling (MSM-MAE, PMLR 166, 2022)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melmask.config import FRONT_END_32_KHZ, FrontEndConfig, Statistics
    from melmask.embedding.choice import POOLINGS, SCENES, FeatureChoice
    from melmask.embedding.encoder import AudioEncoder, Embedding, load
    from melmask.embedding.extract import embed_files
    from melmask.embedding.reconstruction import Reconstruction
    from melmask.embedding.streaming import EmbeddingStream
    from melmask.errors import MelmaskError

__version__ = "0.1.0"

# Type checkers read the imports above; Python finds the modules here.
_HOMES = {
    "FRONT_END_32_KHZ": "melmask.config",
    "POOLINGS": "melmask.embedding.choice",
    "SCENES": "melmask.embedding.choice",
    "AudioEncoder": "melmask.embedding.encoder",
    "Embedding": "melmask.embedding.encoder",
    "EmbeddingStream": "melmask.embedding.streaming",
    "FeatureChoice": "melmask.embedding.choice",
    "FrontEndConfig": "melmask.config",
    "MelmaskError": "melmask.errors",
    "Reconstruction": "melmask.embedding.reconstruction",
    "Statistics": "melmask.config",
    "embed_files": "melmask.embedding.extract",
    "load": "melmask.embedding.encoder",
}

__all__ = [
    "FRONT_END_32_KHZ",
    "POOLINGS",
    "SCENES",
    "AudioEncoder",
    "Embedding",
    "EmbeddingStream",
    "FeatureChoice",
    "FrontEndConfig",
    "MelmaskError",
    "Reconstruction",
    "Statistics",
    "__version__",
    "embed_files",
    "load",
]


def __getattr__(name: str) -> Any:
    # Names are imported on first use, so that `melmask --help` does not wait for PyTorch.
    if name not in _HOMES:
        raise AttributeError(f"module 'melmask' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
