"""The commands that put a model to use: embed, convert, push, export."""

import argparse
from dataclasses import replace
from pathlib import Path

from melmask.cli.options import Command, add_model, add_settings_help
from melmask.config import Statistics
from melmask.settings import with_overrides


def add(command: Command) -> None:
    """Add these commands."""
    command("embed", embed, "embeddings of files and folders", _add_embed)
    command("convert", convert, "others' checkpoints to melmask's, or melmask's to the original's", _add_convert)
    command("push", push, "put a model on the Hugging Face Hub", _add_push)
    command("export", export, "an ONNX file from waveform to embeddings", _add_export)


def embed(options: argparse.Namespace) -> int:
    """Write the embeddings of files and folders."""
    from melmask.audio.files import find_audio
    from melmask.embed_job import embed_table, shard_of
    from melmask.encoder import load
    from melmask.normalization import with_dataset_statistics
    from melmask.tables import check_table_path

    check_table_path(options.out)
    every_path = find_audio(options.sources)
    paths, out = shard_of(every_path, options.out, options.shard)
    choice = {
        "layer": options.layer,
        "pooling": options.pooling,
        "scene": options.scene,
        "hop_ms": options.hop_ms,
        "keep_frames": options.frames,
    }
    ray = options.engine == "ray"
    # On a cluster, the workers have the GPUs.
    model = load(options.model, "cpu" if ray else options.device, options.precision)
    if options.normalization == "dataset":
        model = with_dataset_statistics(model, every_path, options.out.with_suffix(".statistics.json"))
    if ray:
        from melmask.embed_ray import embed_table_on_ray

        device = "cpu" if options.device == "auto" else options.device
        report = embed_table_on_ray(model, paths, out, workers=options.workers, device=device, **choice)
    else:
        report = embed_table(model, paths, out, **choice)
    print(f"{out}: {report}")
    return 0


def convert(options: argparse.Namespace) -> int:
    """Others' checkpoints to ours, or ours to the original's."""
    from melmask.checkpoint.convert import save_msm_mae
    from melmask.checkpoint.folder import save_checkpoint
    from melmask.checkpoint.locate import load_any

    model, card, source = load_any(options.model)
    card = replace(card, front_end=with_overrides(card.front_end, options.settings))
    if options.statistics:
        mean, std = options.statistics
        card = replace(card, statistics=Statistics(mean=mean, std=std))
    if options.to == "msm-mae":
        save_msm_mae(options.out, model, card)
    else:
        save_checkpoint(options.out, model, card)
    m = card.model
    print(
        f"{source} -> {options.out}: {m.mels}x{m.frames}, patches {m.patch_mels}x{m.patch_frames}, "
        f"{m.width} wide, {m.depth} deep, {'with' if m.has_decoder else 'without'} decoder, "
        f"{card.front_end.sample_rate_hz} Hz, "
        f"mean {card.statistics.mean:g}, std {card.statistics.std:g}"
    )
    return 0


def push(options: argparse.Namespace) -> int:
    """Put a model on the Hugging Face Hub."""
    from melmask.checkpoint.hub import push
    from melmask.checkpoint.locate import load_any

    model, card, _ = load_any(options.model)
    print(push(options.name, model, card, options.license))
    return 0


def export(options: argparse.Namespace) -> int:
    """One ONNX file, front end inside."""
    from melmask.encoder import load
    from melmask.export import export_onnx

    model = load(options.model, "cpu")
    cosine = export_onnx(model, options.onnx, options.layer, options.pooling)
    print(f"{options.onnx}: {options.onnx.stat().st_size >> 20} MB, least cosine to PyTorch {cosine:.6f}")
    return 0


def _add_embed(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "sources", type=Path, nargs="+", metavar="SOURCE", help="sound file, folder, or CSV with a path column"
    )
    sub.add_argument("--out", type=Path, required=True, help="X.parquet or X.npz")
    sub.add_argument("--engine", choices=("local", "ray"), default="local", help="where to compute (%(default)s)")
    sub.add_argument("--workers", type=int, default=2, help="Ray workers (%(default)s)")
    sub.add_argument("--shard", metavar="I/N", help="take every N-th file from the I-th, 0 <= I < N, for array jobs")
    sub.add_argument("--frames", action="store_true", help="keep the frame vectors too")
    sub.add_argument("--hop-ms", type=float, help="time between frame vectors, a divisor of a patch's (a patch's)")
    add_model(sub)


def _add_convert(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", type=Path, metavar="MODEL", help="an MSM-MAE .pth file, a run or a checkpoint folder")
    sub.add_argument("out", type=Path, metavar="OUT", help="the folder, or with --to msm-mae the file, to write")
    sub.add_argument("--to", choices=("melmask", "msm-mae"), default="melmask", help="which form (%(default)s)")
    sub.add_argument(
        "--statistics", type=float, nargs=2, metavar=("MEAN", "STD"), help="of the log-mels (the file's, or AudioSet's)"
    )
    example = "sample_rate_hz=32000 n_fft=800 win_samples=800 hop_samples=320 max_hz=16000 for 32-kHz models"
    add_settings_help(sub, example, "others' files do not say their front end; 16 kHz is assumed")


def _add_push(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", type=Path, metavar="MODEL", help="a run, a checkpoint folder, or an MSM-MAE .pth file")
    sub.add_argument("name", metavar="hub:OWNER/NAME", help="the model's name there")
    sub.add_argument("--license", default="other", help="of the weights, for the model card (%(default)s)")


def _add_export(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", type=Path, required=True, help="a run, a checkpoint folder, or an MSM-MAE .pth file")
    sub.add_argument("--onnx", type=Path, required=True, metavar="X.onnx", help="the file to write")
    sub.add_argument("--layer", type=int, help="features after this block (the last, with the final norm)")
    sub.add_argument("--pooling", default="concat", help="concat, mean, mean+max or cls (%(default)s)")
