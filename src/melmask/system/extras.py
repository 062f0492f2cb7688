"""Optional libraries: which extra brings which one, and whether it is there. Looked up before work that needs it."""

from collections.abc import Iterator
from importlib import import_module

from melmask.errors import MissingExtraError
from melmask.system.terminal import note

EXTRAS: dict[str, dict[str, str]] = {
    # SciPy comes with scikit-learn, which is what a user installs.
    "eval": {"sklearn": "scikit-learn", "scipy": "scikit-learn"},
    "plot": {"matplotlib.figure": "matplotlib"},
    "log": {"tensorboard": "tensorboard"},
    "wandb": {"wandb": "wandb"},
    "hub": {"huggingface_hub": "huggingface_hub"},
    "ray": {"ray": "ray"},
    "mteb": {"mteb": "mteb"},
    "explore": {"starlette": "starlette", "uvicorn": "uvicorn", "sklearn": "scikit-learn"},
    "map": {"umap": "umap-learn"},
    "onnx": {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"},
}
"""By extra of melmask: the modules that are imported, and the library that each one belongs to."""

_told: set[str] = set()


def require(extra: str) -> None:
    """Refuse to begin work that needs this extra, if it is not installed.

    Raises:
        MissingExtraError: one of its libraries is missing, or is installed but cannot be imported.
    """
    for library in _missing(extra):
        raise MissingExtraError(library, extra)


def available(extra: str) -> bool:
    """Whether all libraries of this extra are installed and can be imported."""
    return not any(_missing(extra))


def can_draw() -> bool:
    """Whether pictures can be drawn. If not, say so once on standard error: the job goes on without them."""
    for library in _missing("plot"):
        if "plot" not in _told:
            _told.add("plot")
            note(f"melmask: {library} is not installed, so no pictures are drawn: pip install 'melmask[plot]'")
        return False
    return True


def _missing(extra: str) -> Iterator[str]:
    for module, library in EXTRAS[extra].items():
        # It is imported, not only searched for: an installation may be broken in many ways, and the work that needs the
        # library imports it anyway.
        try:
            found = import_module(module)
        except Exception:
            yield library
        else:
            # A folder of that name is imported as an empty package; Weights & Biases leaves one where it has run.
            if getattr(found, "__file__", "") is None:
                yield library
