"""General-purpose audio representations by masked spectrogram modeling (MSM-MAE, PMLR 166, 2022)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melmask.audio.parts import Sound
    from melmask.config import FRONT_END_32_KHZ, FrontEndConfig, Statistics
    from melmask.embedding.choice import SCENES, FeatureChoice
    from melmask.embedding.encoder import AudioEncoder, Embedding, load
    from melmask.embedding.extract import embed_files
    from melmask.embedding.reconstruction import Reconstruction
    from melmask.embedding.streaming import EmbeddingStream
    from melmask.errors import MelmaskError
    from melmask.search.build import build_index
    from melmask.search.index import SearchIndex

__version__ = "0.2.0.dev0"

# Type checkers read the imports above, and Python finds the same names here.
_HOMES = {
    "melmask.audio.parts": ("Sound",),
    "melmask.config": ("FRONT_END_32_KHZ", "FrontEndConfig", "Statistics"),
    "melmask.embedding.choice": ("SCENES", "FeatureChoice"),
    "melmask.embedding.pooling": ("POOLINGS",),
    "melmask.embedding.encoder": ("AudioEncoder", "Embedding", "load"),
    "melmask.embedding.extract": ("embed_files",),
    "melmask.embedding.reconstruction": ("Reconstruction",),
    "melmask.embedding.streaming": ("EmbeddingStream",),
    "melmask.errors": ("MelmaskError",),
    "melmask.search.build": ("build_index",),
    "melmask.search.index": ("SearchIndex",),
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
    "SearchIndex",
    "Sound",
    "Statistics",
    "__version__",
    "build_index",
    "embed_files",
    "load",
]


def __getattr__(name: str) -> Any:
    # Names are imported on first use, so that `melmask --help` does not wait for PyTorch.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'melmask' has no attribute {name!r}")
