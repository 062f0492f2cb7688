"""The command that judges a model: probe."""

import argparse
from pathlib import Path

from melmask.cli.options import Command, add_model


def add(command: Command) -> None:
    """Add these commands."""
    command("probe", probe, "k-NN and linear scores on labelled files, beside two baselines", _add_probe)


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


def _add_probe(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--labels", type=Path, nargs="+", required=True, metavar="CSV", help="columns path, label; group, fold, split"
    )
    sub.add_argument("--out", type=Path, default=Path("probe"), help="folder for scores and pictures (%(default)s)")
    sub.add_argument("--scheme", default="auto", help="auto, fold, split, group or random: how rows are held out")
    sub.add_argument("--audio-root", type=Path, help="where relative paths start (the table's folder, or its parent)")
    sub.add_argument("--seed", type=int, default=0, help="of the untrained network and of made-up splits")
    add_model(sub)
