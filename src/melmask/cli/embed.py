"""`melmask embed`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from melmask.cli.options import ModelOptions
from melmask.embedding.choice import FeatureChoice


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write the embeddings of sound files and folders to a table."""

    sources: tuple[Path, ...] = field(metadata={"positional": "SOURCE"})
    """A sound file, a folder, or a CSV with a path column."""
    out: Path
    """The table to write: X.parquet or X.npz."""
    engine: Literal["local", "ray"] = "local"
    """Where to compute: in this process, or on a Ray cluster."""
    workers: int = 2
    """Number of Ray workers."""
    shard: str | None = field(default=None, metadata={"metavar": "I/N"})
    """Take every N-th file from the I-th on, where I is 0 to N - 1. This is for array jobs."""
    frames: bool = False
    """Keep the frame vectors too."""
    model: ModelOptions
    """The model."""
    features: FeatureChoice = field(default=FeatureChoice())
    """Which features of the model are taken."""


def run(options: Options) -> int:
    """Write the embeddings of files and folders."""
    from melmask.audio.files import find_audio
    from melmask.embedding.encoder import load
    from melmask.embedding.folder import embed_table, shard_of
    from melmask.embedding.normalization import with_dataset_statistics
    from melmask.embedding.tables import check_table_path

    # A wrong name is cheap to find now, and annoying after a folder was searched and a model was loaded.
    check_table_path(options.out)
    every_path = find_audio(options.sources)
    paths, out = shard_of(every_path, options.out, options.shard)
    features = options.features
    choice: dict[str, Any] = {
        "layer": features.layers or None,
        "pooling": features.pooling,
        "scene": features.scene,
        "hop_ms": features.hop_ms,
        "keep_frames": options.frames,
    }
    device, precision = options.model.compute.device, options.model.compute.precision
    ray = options.engine == "ray"
    # On a cluster, the workers have the GPUs.
    model = load(options.model.model, "cpu" if ray else device, precision)
    if options.model.normalization == "dataset":
        # All files count, not this share of them, so that the shares of an array job have the same statistics.
        model = with_dataset_statistics(model, every_path, options.out.with_suffix(".statistics.json"))
    if ray:
        from melmask.embedding.on_ray import embed_table_on_ray

        # The machine that starts the job cannot know which devices the workers have, so GPUs must be asked for.
        device = "cpu" if device == "auto" else device
        report = embed_table_on_ray(model, paths, out, workers=options.workers, device=device, **choice)
    else:
        report = embed_table(model, paths, out, **choice)
    print(f"{out}: {report}")
    return 0
