"""The command `melmask`. Each command's work is imported when it runs, so that help is quick."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from melmask import __version__
from melmask.config import FrontEndConfig, Statistics
from melmask.errors import MelmaskError
from melmask.recipes import RECIPES, recipe
from melmask.settings import describe, to_dict, with_overrides

EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128
_LISTING = "melmask settings RECIPE lists them all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 with one line on standard error."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        _take_settings(parser, options, rest)
        return options.run(options)
    except MelmaskError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("\nmelmask: stopped; the same command goes on where it was\n")
        return EXIT_SIGNAL + 2
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough.
        sys.stderr.close()
        return 0
    except OSError as error:
        return _fail(
            f"{error.filename or 'a file'}: {error.strerror or error}; check the path, its permissions and space"
        )


def prepare(options: argparse.Namespace) -> int:
    """Write the store of log-mels."""
    from melmask.data.prepare import prepare

    front_end = with_overrides(FrontEndConfig(), options.settings)
    facts = prepare(options.sources, options.out, front_end, options.threads)
    statistics = facts["statistics"]
    print(
        f"{options.out}: {facts['files']} files, {facts['hours']:.2f} h, log-mel mean {statistics['mean']:.3f} and "
        f"std {statistics['std']:.3f}"
    )
    if facts["failed"]:
        print(f"{facts['failed']} files could not be read; the reasons are in {options.out / 'failed.csv'}")
    return 0


def pretrain(options: argparse.Namespace) -> int:
    """Train, or go on training."""
    from melmask.data.store import Store
    from melmask.evaluate.monitor import monitors
    from melmask.train.initial import initial_weights
    from melmask.train.pretrain import pretrain
    from melmask.train.processes import is_first_process
    from melmask.train.resume import resolve_config
    from melmask.train.snapshot import SNAPSHOT
    from melmask.viz.run_page import write_run_page
    from melmask.viz.run_record import RunNumbers

    store = Store(options.store)
    config = resolve_config(options.out, options.recipe, options.settings, store)
    # Of several processes started by torchrun, the first one speaks.
    first = is_first_process()
    say = print if first else lambda _: None
    weights = None
    if options.init is not None and (options.out / SNAPSHOT).exists():
        say(f"{options.out} has begun and goes on with its own weights, not with {options.init}")
    elif options.init is not None:
        weights, text = initial_weights(options.init, config)
        say(text)
    hooks = monitors(store, config, options.monitor, options.audio_root) if first else []
    page = partial(write_run_page, numbers=RunNumbers(options.out))
    outcome = pretrain(store, options.out, config, hooks, page, weights)
    if outcome.step < outcome.steps:
        watching = [("--monitor", options.monitor), ("--audio-root", options.audio_root)]
        words = ["melmask", "pretrain", options.store, "--out", options.out]
        words += [word for option in watching if option[1] is not None for word in option]
        command = shlex.join(map(str, words))
        say(f"stopped at step {outcome.step} of {outcome.steps}, saved; go on with: {command}")
        return EXIT_SIGNAL + outcome.stopped_by if outcome.stopped_by else 0
    say(
        f"{options.out}: {outcome.steps} steps done, shown in {options.out / 'index.html'}; "
        f"next: melmask embed FOLDER --model {options.out} --out X.parquet"
    )
    return 0


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


def bench(options: argparse.Namespace) -> int:
    """Measure the training step."""
    from melmask.bench import run_bench
    from melmask.data.store import Store
    from melmask.files import write_json

    config = with_overrides(recipe(options.recipe), options.settings)
    report = run_bench(config, Store(options.store) if options.store else None, options.seconds)
    print(report)
    if options.json:
        write_json(options.json, report.as_dict())
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


def probe(options: argparse.Namespace) -> int:
    """Judge a model on labelled files."""
    from melmask.encoder import load
    from melmask.evaluate.report import probe_tasks, table_text

    model = load(options.model, options.device, options.precision)
    report = probe_tasks(
        model,
        options.labels,
        options.out,
        scheme=options.scheme,
        audio_root=options.audio_root,
        layer=options.layer,
        pooling=options.pooling,
        scene=options.scene,
        seed=options.seed,
        dataset_statistics=options.normalization == "dataset",
    )
    print(table_text(report))
    for name, task in report["tasks"].items():
        if task["unreadable"]:
            print(f"{name}: {len(task['unreadable'])} files could not be read and were left out")
        if task["leaking_groups"]:
            print(f"{name}: {task['leaking_groups']} groups have clips on both sides of a split")
    print(f"scores and confusion pictures: {options.out}")
    return 0


def demo(options: argparse.Namespace) -> int:
    """The main job, end to end, on synthesised sounds."""
    from melmask.demo import run_demo

    print(run_demo(options.out, options.settings))
    return 0


def settings(options: argparse.Namespace) -> int:
    """Print every setting of a recipe."""
    print(describe(with_overrides(recipe(options.recipe), options.settings)))
    return 0


class _Parser(argparse.ArgumentParser):
    """Reports a wrong call in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="melmask", description="Audio representations by masked spectrogram modelling.")
    parser.add_argument("--version", action="version", version=f"melmask {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: object, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    _add_demo(command("demo", demo, "the whole job in minutes, on sounds made here"))
    _add_prepare(command("prepare", prepare, "folders of sound to a store of log-mels"))
    _add_pretrain(command("pretrain", pretrain, "train a masked autoencoder on a store; the same command resumes"))
    _add_bench(command("bench", bench, "how fast a recipe trains on this machine, and where a step goes"))
    _add_embed(command("embed", embed, "embeddings of files and folders"))
    _add_probe(command("probe", probe, "k-NN and linear scores on labelled files, beside two baselines"))
    _add_convert(command("convert", convert, "others' checkpoints to melmask's, or melmask's to the original's"))
    _add_push(command("push", push, "put a model on the Hugging Face Hub"))
    _add_export(command("export", export, "an ONNX file from waveform to embeddings"))
    _add_settings(command("settings", settings, "list every setting of a recipe, with its meaning"))
    return parser


def _add_demo(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, default=Path("melmask-demo"), help="folder for everything (%(default)s)")
    _add_settings_help(sub, "optimizer.steps=1200", _LISTING)


def _add_prepare(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "sources", type=Path, nargs="+", metavar="SOURCE", help="folder, sound file, or CSV with a path column"
    )
    sub.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    sub.add_argument("--threads", type=int, default=None, help="decoding threads (all cores)")
    _add_settings_help(sub, "sample_rate_hz=32000", f"known are {', '.join(to_dict(FrontEndConfig()))}")


def _add_pretrain(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("store", type=Path, metavar="STORE", help="a store made by melmask prepare")
    sub.add_argument("--recipe", metavar="NAME", help=f"{', '.join(RECIPES)} (tiny, or the run's own when resuming)")
    sub.add_argument(
        "--out", type=Path, default=Path("runs/tiny"), metavar="RUN", help="folder of the run (%(default)s)"
    )
    sub.add_argument("--init", type=Path, metavar="MODEL", help="start from its weights (a new run only)")
    sub.add_argument(
        "--monitor", type=Path, metavar="CSV", help="labelled files (path, label; split, fold or group) for k-NN scores"
    )
    sub.add_argument("--audio-root", type=Path, help="where the relative paths of --monitor start")
    _add_settings_help(sub, "optimizer.learning_rate=5e-4", _LISTING)


def _add_bench(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", nargs="?", default="tiny", help=f"{', '.join(RECIPES)} (%(default)s)")
    sub.add_argument("--store", type=Path, help="read crops from it (random numbers)")
    sub.add_argument("--seconds", type=float, default=20.0, help="how long to measure (%(default)s)")
    sub.add_argument("--json", type=Path, metavar="X.json", help="write the figures there too")
    _add_settings_help(sub, "data.batch_size=64", _LISTING)


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
    _add_model(sub)


def _add_probe(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--labels", type=Path, nargs="+", required=True, metavar="CSV", help="columns path, label; group, fold, split"
    )
    sub.add_argument("--out", type=Path, default=Path("probe"), help="folder for scores and pictures (%(default)s)")
    sub.add_argument("--scheme", default="auto", help="auto, fold, split, group or random: how rows are held out")
    sub.add_argument("--audio-root", type=Path, help="where relative paths start (the table's folder, or its parent)")
    sub.add_argument("--seed", type=int, default=0, help="of the untrained network and of made-up splits")
    _add_model(sub)


def _add_convert(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", type=Path, metavar="MODEL", help="an MSM-MAE .pth file, a run or a checkpoint folder")
    sub.add_argument("out", type=Path, metavar="OUT", help="the folder, or with --to msm-mae the file, to write")
    sub.add_argument("--to", choices=("melmask", "msm-mae"), default="melmask", help="which form (%(default)s)")
    sub.add_argument(
        "--statistics", type=float, nargs=2, metavar=("MEAN", "STD"), help="of the log-mels (the file's, or AudioSet's)"
    )
    example = "sample_rate_hz=32000 n_fft=800 win_samples=800 hop_samples=320 max_hz=16000 for 32-kHz models"
    _add_settings_help(sub, example, "others' files do not say their front end; 16 kHz is assumed")


def _add_push(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", type=Path, metavar="MODEL", help="a run, a checkpoint folder, or an MSM-MAE .pth file")
    sub.add_argument("name", metavar="hub:OWNER/NAME", help="the model's name there")
    sub.add_argument("--license", default="other", help="of the weights, for the model card (%(default)s)")


def _add_export(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", type=Path, required=True, help="a run, a checkpoint folder, or an MSM-MAE .pth file")
    sub.add_argument("--onnx", type=Path, required=True, metavar="X.onnx", help="the file to write")
    sub.add_argument("--layer", type=int, help="features after this block (the last, with the final norm)")
    sub.add_argument("--pooling", default="concat", help="concat, mean, mean+max or cls (%(default)s)")


def _add_settings(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", nargs="?", default="tiny", help=f"{', '.join(RECIPES)} (%(default)s)")
    _add_settings_help(sub, "run.seed=1", _LISTING)


def _add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", type=Path, required=True, help="a run, a checkpoint folder, or an MSM-MAE .pth file")
    sub.add_argument(
        "--layer", type=int, nargs="+", help="features after these blocks, 1 to depth (the last, with the final norm)"
    )
    sub.add_argument("--pooling", default="concat", help="concat, mean, mean+max or cls (%(default)s)")
    sub.add_argument("--scene", default="mean", help="over time: mean or mean+std, twice as long (%(default)s)")
    sub.add_argument(
        "--normalization",
        choices=("checkpoint", "dataset"),
        default="checkpoint",
        help="mean and std of the log-mels: the model's own, or those of the files given (%(default)s)",
    )
    sub.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (a GPU if there is one)")
    sub.add_argument("--precision", default="fp32", help="fp32, fp32-fast or bf16 (%(default)s)")


def _add_settings_help(sub: argparse.ArgumentParser, example: str, listing: str) -> None:
    # Not an argument of argparse's, which does not find positional ones after options: see _take_settings.
    sub.set_defaults(settings=[])
    sub.usage = f"{sub.format_usage().removeprefix('usage: ').rstrip()} [KEY=VALUE ...]"
    sub.epilog = f"KEY=VALUE, last: change settings, as {example}; {listing}"


def _take_settings(parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Read what no option claims as settings: key=value, --key=value or --key value."""
    words = list(rest)
    while words:
        word = words.pop(0)
        if "=" not in word and word.startswith("--") and words:
            word = f"{word}={words.pop(0)}"
        if "settings" not in options or "=" not in word:
            parser.error(f"unrecognized argument {word!r}")
        options.settings.append(word.lstrip("-"))


def _fail(message: str) -> int:
    sys.stderr.write(f"melmask: error: {message}\n")
    return EXIT_BAD_INPUT
