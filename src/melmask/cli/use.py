"""The commands that put a model to use: embed, finetune, predict, convert, push, export."""

import argparse
from dataclasses import replace
from pathlib import Path

from melmask.classifier.options import FinetuneConfig, FinetuneOptions, PredictOptions
from melmask.cli.options import Command, add_model, add_settings_help, source_path
from melmask.config import Statistics
from melmask.errors import OutputError
from melmask.settings import to_dict, with_overrides


def add(command: Command) -> None:
    """Add these commands."""
    command("embed", embed, "embeddings of files and folders", _add_embed)
    command("finetune", finetune, "a classifier from labelled files; the same command resumes", _add_finetune)
    command("predict", predict, "labels of files, or events with times, by a classifier", _add_predict)
    command("convert", convert, "others' checkpoints to melmask's, or melmask's to the original's", _add_convert)
    command("push", push, "put a model on the Hugging Face Hub", _add_push)
    command("export", export, "an ONNX file from waveform to embeddings", _add_export)


def embed(options: argparse.Namespace) -> int:
    """Write the embeddings of files and folders."""
    from melmask.embedding.choice import FeatureChoice
    from melmask.embedding.folder import embed_sources
    from melmask.embedding.options import EmbedOptions

    choice = FeatureChoice(pooling=options.pooling, scene=options.scene, hop_ms=options.hop_ms)
    wanted = EmbedOptions(
        choice=choice.changed(layer=options.layer),
        frames=options.frames,
        normalization=options.normalization,
        shard=options.shard,
        engine=options.engine,
        workers=options.workers,
        device=options.device,
        precision=options.precision,
    )
    print(embed_sources(options.sources, options.model, options.out, wanted))
    return 0


def finetune(options: argparse.Namespace) -> int:
    """Train a classifier."""
    from melmask.classifier.finetune import finetune

    config = with_overrides(FinetuneConfig(), options.settings)
    choice = FinetuneOptions(audio_root=options.audio_root, fold=options.fold, device=options.device)
    report = finetune(options.model, options.labels, options.out, config, choice)
    for part, scores in (("valid", report.valid), ("test", report.test)):
        if scores is not None:
            value = "unknown, as no label occurs" if scores.value is None else f"{scores.value:.4f}"
            print(f"{part:<6}{scores.metric} {value} on {scores.clips} clips")
    if report.unreadable:
        print(f"{report.unreadable} files could not be read; the reasons are in {options.out / 'failed.csv'}")
    print(f"next: melmask predict FILES --model {options.out} --out X.csv")
    return 0


def predict(options: argparse.Namespace) -> int:
    """Label files."""
    from melmask.audio.files import find_audio
    from melmask.classifier.model import load_classifier
    from melmask.classifier.predict import predict_files

    paths = find_audio(options.sources)
    classifier = load_classifier(options.model, options.device, options.precision)
    choice = PredictOptions(
        events=options.events,
        threshold=options.threshold,
        hop_ms=options.hop_ms,
        median_filter_ms=options.median_filter_ms,
        min_duration_ms=options.min_duration_ms,
    )
    report = predict_files(classifier, paths, options.out, choice)
    print(f"{options.out}: {report.rows} rows of {report.files} files")
    if options.events and classifier.card.kind != "event":
        print("the classifier was trained on whole clips: its events say which steps sound like such a clip")
    if classifier.card.kind == "event" and not options.events:
        print("the classifier was trained on events: with --events it tells when each sounds")
    if report.failed:
        print(f"{report.failed} files could not be read; their rows have an error")
    return 0


def convert(options: argparse.Namespace) -> int:
    """Others' checkpoints to ours, or ours to the original's."""
    from melmask.checkpoint.convert import save_msm_mae
    from melmask.checkpoint.folder import CONFIG, WEIGHTS, save_checkpoint
    from melmask.checkpoint.locate import load_any

    # The folder is replaced as a whole.
    others = {path.name for path in options.out.iterdir()} - {CONFIG, WEIGHTS} if options.out.is_dir() else set()
    if others:
        raise OutputError(f"{options.out} holds {min(others)}, which would be lost; give a new or an empty folder")
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
    if options.to == "msm-mae":
        print(
            "the file holds neither these statistics nor the front end nor the number of heads: tell them to its reader"
            f" (melmask: --statistics {card.statistics.mean:g} {card.statistics.std:g})"
        )
        if m.width != 64 * m.heads or (m.has_decoder and m.decoder_width != 64 * m.decoder_heads):
            print("readers of that form take heads for 64 wide, as some of these are not: they compute something else")
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
    from melmask.embedding.choice import FeatureChoice
    from melmask.embedding.encoder import load
    from melmask.embedding.export import export_onnx

    model = load(options.model, "cpu")
    choice = FeatureChoice(pooling=options.pooling).changed(layer=options.layer)
    cosine = export_onnx(model, options.onnx, choice)
    print(f"{options.onnx}: {options.onnx.stat().st_size >> 20} MB, least cosine to PyTorch {cosine:.6f}")
    return 0


def _add_embed(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "sources", type=source_path, nargs="+", metavar="SOURCE", help="sound file, folder, or CSV with a path column"
    )
    sub.add_argument("--out", type=Path, required=True, help="X.parquet or X.npz")
    sub.add_argument("--engine", choices=("local", "ray"), default="local", help="where to compute (%(default)s)")
    sub.add_argument("--workers", type=int, default=2, help="Ray workers (%(default)s)")
    sub.add_argument("--shard", metavar="I/N", help="take every N-th file from the I-th, 0 <= I < N, for array jobs")
    sub.add_argument("--frames", action="store_true", help="keep the frame vectors too")
    sub.add_argument("--hop-ms", type=float, help="time between frame vectors, a divisor of a patch's (a patch's)")
    add_model(sub)


def _add_finetune(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "model", metavar="MODEL", help="a run, a checkpoint folder, an MSM-MAE .pth file or hub:OWNER/NAME"
    )
    sub.add_argument(
        "labels", type=Path, metavar="LABELS", help="CSV: path, label (several as a;b); split, fold, group; or a task"
    )
    sub.add_argument("--out", type=Path, required=True, help="folder of the classifier")
    sub.add_argument("--audio-root", type=Path, help="where relative paths start (the table's folder, or its parent)")
    sub.add_argument("--fold", default="", help="with folds: the one to test on; the next one validates (the first)")
    sub.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (a GPU if there is one)")
    add_settings_help(sub, "epochs=10", f"known are {', '.join(to_dict(FinetuneConfig()))}")


def _add_predict(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "sources", type=source_path, nargs="+", metavar="SOURCE", help="sound file, folder, or CSV with a path column"
    )
    sub.add_argument("--model", type=Path, required=True, help="a folder written by melmask finetune")
    sub.add_argument("--out", type=Path, required=True, help="X.csv, X.jsonl or X.parquet")
    sub.add_argument("--events", action="store_true", help="what sounds when, instead of what a whole file is")
    sub.add_argument("--threshold", type=float, default=0.5, help="what a probability has to exceed (%(default)s)")
    sub.add_argument(
        "--hop-ms", type=float, help="time between the steps of events, a divisor of a patch's (40 if it is)"
    )
    sub.add_argument("--median-filter-ms", type=float, default=250.0, help="over time, for events (%(default)s)")
    sub.add_argument("--min-duration-ms", type=float, default=125.0, help="of an event (%(default)s)")
    sub.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (a GPU if there is one)")
    sub.add_argument("--precision", default="fp32", help="fp32, fp32-fast or bf16 (%(default)s)")


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
