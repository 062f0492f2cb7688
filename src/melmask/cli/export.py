"""`melmask export`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.embedding.choice import FeatureChoice
from melmask.system.terminal import say


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write an ONNX file that turns a waveform into embeddings."""

    model: Path | None = None
    """A run, a checkpoint folder, or an MSM-MAE .pth file. The default is the model in the box."""
    onnx: Path = field(metadata={"metavar": "X.onnx"})
    """The file to write."""
    choice: FeatureChoice = field(default=FeatureChoice(), metadata={"without": ("hop_ms",)})


def run(options: Options) -> int:
    """Write the file, and print how closely it agrees with PyTorch."""
    from melmask.embedding.encoder import load
    from melmask.embedding.export import export_onnx
    from melmask.system.extras import require

    require("onnx")
    cosine = export_onnx(load(options.model, "cpu"), options.onnx, options.choice)
    megabytes = options.onnx.stat().st_size / 1e6
    say(f"{options.onnx}: {megabytes:.0f} MB; the lowest cosine similarity to PyTorch's embeddings is {cosine:.6f}")
    return 0
