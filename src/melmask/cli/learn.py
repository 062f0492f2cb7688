"""The commands that make a model, and those about its recipe: demo, prepare, pretrain, bench, settings."""

import argparse
import shlex
from functools import partial
from pathlib import Path

from melmask.cli.options import EXIT_SIGNAL, THREADS, Command, add_settings_help, source_path
from melmask.config import FrontEndConfig, PretrainConfig
from melmask.recipes import DEFAULT_RECIPE, RECIPES, recipe
from melmask.settings import describe, to_dict, with_overrides

_LISTING = "melmask settings RECIPE lists them all"


def add(command: Command) -> None:
    """Add these commands."""
    command("demo", demo, "the whole job in minutes, on sounds made here", _add_demo)
    command("prepare", prepare, "folders of sound to a store of log-mels", _add_prepare)
    command("pretrain", pretrain, "train a masked autoencoder on a store; the same command resumes", _add_pretrain)
    command("bench", bench, "how fast a recipe trains on this machine, and where a step goes", _add_bench)
    command("settings", settings, "list every setting of a recipe, with its meaning", _add_settings)


def demo(options: argparse.Namespace) -> int:
    """The main job, end to end, on synthesised sounds."""
    from melmask.demo import run_demo

    print(run_demo(options.out, options.settings))
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Write the store of log-mels."""
    from melmask.corpus.prepare import prepare

    front_end = with_overrides(FrontEndConfig(), options.settings)
    facts = prepare(options.sources, options.out, front_end, options.threads)
    print(
        f"{options.out}: {facts.files} files, {facts.hours:.2f} h, log-mel mean {facts.statistics.mean:.3f} and "
        f"std {facts.statistics.std:.3f}"
    )
    if facts.failed:
        print(f"{facts.failed} files could not be read; the reasons are in {options.out / 'failed.csv'}")
    return 0


def pretrain(options: argparse.Namespace) -> int:
    """Train, or go on training."""
    from melmask.corpus.store import Store
    from melmask.downstream.monitor import monitors
    from melmask.pages.run import write_run_page
    from melmask.train.initial import initial_weights
    from melmask.train.pretrain import pretrain
    from melmask.train.processes import is_first_process
    from melmask.train.record import RunNumbers
    from melmask.train.resume import resolve_config
    from melmask.train.snapshot import SNAPSHOT

    store = Store(options.store)
    config = resolve_config(options.out, options.recipe, options.settings, store)
    # Of several processes started by torchrun, the first one speaks.
    first = is_first_process()
    say = print if first else lambda _: None
    weights = None
    if options.init is not None and (options.out / SNAPSHOT).exists():
        say(f"{options.out} has begun and goes on with its own weights, not with {options.init}")
    elif options.init is not None:
        weights, text = initial_weights(options.init, config, store.front_end)
        say(text)
    hooks = monitors(store, config, options.monitor, options.audio_root) if first else []
    page = partial(write_run_page, numbers=RunNumbers(options.out))
    outcome = pretrain(store, options.out, config, hooks, page, weights)
    if outcome.step < outcome.steps:
        say(f"stopped at step {outcome.step} of {outcome.steps}, saved; {_resumption(options)}")
        return EXIT_SIGNAL + outcome.stopped_by if outcome.stopped_by else 0
    say(
        f"{options.out}: {outcome.steps} steps done, shown in {options.out / 'index.html'}; "
        f"next: melmask embed FOLDER --model {options.out} --out X.parquet"
    )
    return 0


def _resumption(options: argparse.Namespace) -> str:
    """How a stopped run goes on."""
    from melmask.train.processes import process_count

    if process_count() > 1:
        return "go on with the same torchrun command"
    watching = [("--monitor", options.monitor), ("--audio-root", options.audio_root)]
    words = ["melmask", "pretrain", options.store, "--out", options.out]
    words += [word for option in watching if option[1] is not None for word in option]
    return f"go on with: {shlex.join(map(str, words))}"


def bench(options: argparse.Namespace) -> int:
    """Measure the training step."""
    from melmask.corpus.store import Store
    from melmask.system.files import write_json
    from melmask.train.bench import run_bench

    report = run_bench(_chosen(options), Store(options.store) if options.store else None, options.seconds)
    print(report)
    if options.json:
        write_json(options.json, report.as_dict())
    return 0


def settings(options: argparse.Namespace) -> int:
    """Print every setting of a recipe."""
    print(describe(_chosen(options)))
    return 0


def _chosen(options: argparse.Namespace) -> PretrainConfig:
    """The recipe that the first word names, with the settings behind it; the first word may be one of these."""
    if "=" in options.recipe:
        return with_overrides(recipe(DEFAULT_RECIPE), [options.recipe.lstrip("-"), *options.settings])
    return with_overrides(recipe(options.recipe), options.settings)


def _add_demo(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, default=Path("melmask-demo"), help="folder for everything (%(default)s)")
    add_settings_help(sub, "optimizer.steps=1200", _LISTING)


def _add_prepare(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "sources", type=source_path, nargs="+", metavar="SOURCE", help="folder, sound file, or CSV with a path column"
    )
    sub.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    sub.add_argument("--threads", type=THREADS, default=None, help="decoding threads (all cores)")
    add_settings_help(sub, "sample_rate_hz=32000", f"known are {', '.join(to_dict(FrontEndConfig()))}")


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
    add_settings_help(sub, "optimizer.learning_rate=5e-4", _LISTING)


def _add_bench(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", nargs="?", default=DEFAULT_RECIPE, help=f"{', '.join(RECIPES)} (%(default)s)")
    sub.add_argument("--store", type=Path, help="read crops from it (random numbers)")
    sub.add_argument("--seconds", type=float, default=20.0, help="how long to measure (%(default)s)")
    sub.add_argument("--json", type=Path, metavar="X.json", help="write the figures there too")
    add_settings_help(sub, "data.batch_size=64", _LISTING)


def _add_settings(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", nargs="?", default=DEFAULT_RECIPE, help=f"{', '.join(RECIPES)} (%(default)s)")
    add_settings_help(sub, "run.seed=1", _LISTING)
