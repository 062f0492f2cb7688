"""`melmask pretrain`."""

import shlex
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from melmask.cli.options import EXIT_SIGNAL
from melmask.labels.options import TableOptions
from melmask.recipes import RECIPES
from melmask.system.terminal import counted, say


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a masked autoencoder on a store, on synthetic sound, or on both. The same command resumes."""

    store: Path | None = field(default=None, metadata={"positional": "STORE"})
    """A store made by melmask prepare. It can be left out with --synth 1."""
    synth: float | None = field(default=None, metadata={"metavar": "SHARE", "limits": (0, 1)})
    """Share of the crops of each batch that are synthetic sound, drawn anew each time; 1: all of them."""
    recipe: str | None = field(default=None, metadata={"metavar": "NAME", "names": RECIPES})
    """Recipe of a new run. The default is tiny, or tiny_025 for a store of one resolution. A run that is resumed keeps
    its recipe."""
    out: Path = field(default=Path("runs/tiny"), metadata={"metavar": "RUN"})
    """Folder of the run."""
    minutes: float | None = field(default=None, metadata={"limits": (0.001, 10_000_000)})
    """Train for this many minutes, whatever the speed: a new run plans its steps from its first ones, so that the
    learning rate falls to zero at the end."""
    init: Path | None = field(default=None, metadata={"metavar": "MODEL"})
    """Start a new run from the weights of this model; box is the model in the box. The run has this model's decoder
    unless settings of model.decoder_... ask for another."""
    monitor: Path | None = field(default=None, metadata={"metavar": "CSV"})
    """Labeled files, for k-NN scores during training: a table, or the folder of a data set."""
    table: TableOptions = field(default=TableOptions())
    settings: tuple[str, ...] = field(default=(), metadata={"settings": None})
    """change settings of the recipe, such as optimizer.learning_rate=5e-4. `melmask settings RECIPE` lists them all."""


def run(options: Options) -> int:
    """Train, or resume training."""
    from melmask.checkpoint.locate import load_any
    from melmask.corpus.resolutions import first_resolutions
    from melmask.corpus.store import Store
    from melmask.corpus.synthetic import synthetic_corpus
    from melmask.downstream.monitor import monitors
    from melmask.embedding.whitening import set_features
    from melmask.pages.run import write_run_page
    from melmask.system.extras import require
    from melmask.train.initial import decoder_settings, initial_weights
    from melmask.train.pretrain import pretrain
    from melmask.train.processes import is_first_process
    from melmask.train.record import RunNumbers, read_run_file
    from melmask.train.resume import resolve_config
    from melmask.train.snapshot import SNAPSHOT

    options = _sorted_out(options)
    given = Store(options.store) if options.store is not None else None
    synth = () if options.synth is None else (f"data.synth_share={options.synth}",)
    budget = () if options.minutes is None else (f"optimizer.minutes={options.minutes}",)
    decoder: tuple[str, ...] = ()
    if options.init is not None:
        # The model may be gone when a run that has begun with it is resumed.
        begun = read_run_file(options.out)
        decoder = decoder_settings(begun.config().model if begun is not None else load_any(options.init)[1].model)
    config = resolve_config(options.out, options.recipe, (*decoder, *options.settings, *synth, *budget), given)
    store = synthetic_corpus(config) if given is None else first_resolutions(given, config.model.resolutions)
    if config.run.wandb_project:
        require("wandb")
    # torchrun starts several processes of this command. Only the first one prints and draws.
    first = is_first_process()
    tell = say if first else lambda _: None
    if given is not None and store is not given:
        heard, there = store.front_end.resolutions, given.front_end.resolutions
        tell(f"{options.store} has {there} resolutions, and this network hears {heard} of them")
    # A run that has begun keeps its weights in its snapshot, and they are newer than those of --init.
    weights = None
    if options.init is not None and (options.out / SNAPSHOT).exists():
        tell(f"{options.out} exists, so it resumes with its own weights and ignores {options.init}")
    elif options.init is not None:
        weights, text = initial_weights(options.init, config, store.front_end, store.reading)
        tell(text)
    # Monitors read the store and draw; one process is enough for that.
    hooks = monitors(store, config, options.monitor, options.table) if first else []
    page = partial(write_run_page, numbers=RunNumbers(options.out))
    outcome = pretrain(store, options.out, config, hooks, page, weights)
    if outcome.step < outcome.steps:
        tell(f"the run stopped at step {outcome.step} of {outcome.steps} and was saved; {_resumption(options)}")
        # A scheduler tells a preempted job from a finished one by the signal in the exit status.
        return EXIT_SIGNAL + outcome.stopped_by if outcome.stopped_by else 0
    if first:
        set_features(options.out, store, config)
    tell(
        f"{options.out}: {counted(outcome.steps, 'step')} done; the run's page is {options.out / 'index.html'}; "
        f"next: melmask embed FOLDER --model {options.out} --out X.parquet"
    )
    return 0


def _sorted_out(options: Options) -> Options:
    """Return the options with a setting that argparse took for the store, which can be left out, as a setting."""
    words = str(options.store)
    if options.store is None or "=" not in words or options.store.exists():
        return options
    return replace(options, store=None, settings=(words.lstrip("-"), *options.settings))


def _resumption(options: Options) -> str:
    """Say how to resume a stopped run."""
    from melmask.train.processes import process_count

    if process_count() > 1:
        return "resume with the same torchrun command"
    # The run's folder holds its configuration, but not what it is watched with.
    table = options.table
    watching: dict[str, object] = {"--monitor": options.monitor, "--audio-root": table.audio_root}
    watching |= {"--path-column": table.path_column, "--label-column": table.label_column}
    words: list[object] = ["melmask", "pretrain", *filter(None, [options.store]), "--out", options.out]
    words += [word for option, value in watching.items() if value is not None for word in (option, value)]
    return f"resume with: {shlex.join(map(str, words))}"
