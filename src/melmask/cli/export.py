"""`melmask export`."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write an ONNX file that turns a waveform into embeddings."""

    model: Path
    """A run, a checkpoint folder, or an MSM-MAE .pth file."""
    onnx: Path = field(metadata={"metavar": "X.onnx"})
    """The file to write."""
    layer: int | None = None
    """Take the features after this block. Without it, they are the last block's, after the final norm."""
    pooling: str = "concat"
    """How the frequency patches of a time step become its vector: concat, mean, mean+max or cls."""


def run(options: Options) -> int:
    """Write one ONNX file with the front end inside."""
    from melmask.embedding.encoder import load
    from melmask.embedding.export import export_onnx

    model = load(options.model, "cpu")
    cosine = export_onnx(model, options.onnx, options.layer, options.pooling)
    print(f"{options.onnx}: {options.onnx.stat().st_size >> 20} MB, least cosine to PyTorch {cosine:.6f}")
    return 0
