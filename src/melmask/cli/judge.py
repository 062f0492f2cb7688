"""The commands that judge models: probe, few-labels, evaluate, make-task."""

import argparse
from pathlib import Path
from typing import Any

from melmask.cli.options import SEED, THREADS, Command, add_choice, add_model


def add(command: Command) -> None:
    """Add these commands."""
    command("probe", probe, "k-NN and linear scores on labelled files, beside two baselines", _add_probe)
    command("few-labels", few_labels, "how accuracy grows with 1, 2, 5, 10 and all labels a class", _add_few_labels)
    command("evaluate", evaluate, "models on HEAR 2021 tasks, with a report; the same command resumes", _add_evaluate)
    command("make-task", make_task, "labelled files to a task in HEAR's layout", _add_make_task)


def probe(options: argparse.Namespace) -> int:
    """Judge a model on labelled files."""
    from melmask.downstream.options import ProbeOptions
    from melmask.downstream.probing import probe_tasks, table_text
    from melmask.embedding.encoder import load

    model = load(options.model, options.device, options.precision)
    report = probe_tasks(model, options.labels, options.out, ProbeOptions(**_labelled(options)))
    print(table_text(report))
    for name, task in report.tasks.items():
        if task.unreadable:
            print(f"{name}: {len(task.unreadable)} files could not be read and were left out")
        if task.leaking_groups:
            print(f"{name}: {task.leaking_groups} groups have clips on both sides of a split")
    print(f"scores and confusion pictures: {options.out}")
    return 0


def _labelled(options: argparse.Namespace) -> dict[str, Any]:
    """What probe and few-labels have in common."""
    from melmask.embedding.choice import FeatureChoice

    return {
        "scheme": options.scheme,
        "audio_root": options.audio_root,
        "choice": FeatureChoice(pooling=options.pooling, scene=options.scene).changed(layer=options.layer),
        "seed": options.seed,
        "normalization": options.normalization,
    }


def few_labels(options: argparse.Namespace) -> int:
    """Judge a model by how few labels it needs."""
    from melmask.downstream.curves import curves_text
    from melmask.downstream.few_labels import few_label_curves
    from melmask.downstream.options import FewLabelsOptions
    from melmask.embedding.encoder import load

    model = load(options.model, options.device, options.precision)
    wanted = FewLabelsOptions(per_class=tuple(options.per_class), draws=options.draws, **_labelled(options))
    report = few_label_curves(model, options.labels, options.out, wanted)
    print(curves_text(report.tasks))
    print(f"curves and pictures: {options.out}")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Judge models on HEAR tasks."""
    from melmask.embedding.choice import FeatureChoice
    from melmask.evaluate.evaluation import evaluate, table_text
    from melmask.evaluate.options import EvaluateOptions
    from melmask.pages.evaluation import write_evaluation_page

    report = evaluate(
        options.model,
        options.tasks,
        options.out,
        EvaluateOptions(
            tasks=tuple(options.task),
            protocols=tuple(options.protocol),
            choice=FeatureChoice(
                layers=tuple(options.layer or ()),
                pooling=options.pooling,
                scene=options.scene,
                hop_ms=options.hop_ms,
            ),
            grid_points=options.grid_points,
            head_precision=options.head_precision,
            seed=options.seed,
            device=options.device,
            precision=options.precision,
        ),
        page=write_evaluation_page,
    )
    print(table_text(report))
    for task in report.tasks:
        if task.leaking_files or task.leaking_groups:
            groups = "" if task.leaking_groups is None else f" and {task.leaking_groups} groups"
            print(f"{task.title}: {task.leaking_files} sounds{groups} are on both sides of a split")
    print(f"scores, predictions and the page: {options.out / 'report.html'}")
    return 0


def make_task(options: argparse.Namespace) -> int:
    """Write a task folder from a table of labels."""
    from melmask.evaluate.make_task import make_task
    from melmask.evaluate.options import TaskOptions

    report = make_task(
        options.labels,
        options.out,
        TaskOptions(
            name=options.name,
            version=options.version_name,
            mode=options.mode,
            kind=options.kind,
            scheme=options.scheme,
            folds=options.folds,
            seed=options.seed,
            rates_hz=tuple(options.rates),
            duration_s=options.duration_s,
            audio_root=options.audio_root,
            threads=options.threads,
            overwrite=options.overwrite,
        ),
    )
    print(report)
    return 0


def _add_probe(sub: argparse.ArgumentParser) -> None:
    _add_labels(sub)
    sub.add_argument("--out", type=Path, default=Path("probe"), help="folder for scores and pictures (%(default)s)")
    add_model(sub)


def _add_few_labels(sub: argparse.ArgumentParser) -> None:
    _add_labels(sub)
    sub.add_argument("--out", type=Path, default=Path("few-labels"), help="folder for curves (%(default)s)")
    sub.add_argument("--per-class", nargs="+", default=["1", "2", "5", "10", "all"], metavar="N", help="(1 2 5 10 all)")
    sub.add_argument("--draws", type=int, default=5, help="random choices of each number of labels (%(default)s)")
    add_model(sub)


def _add_labels(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--labels", type=Path, nargs="+", required=True, metavar="CSV", help="columns path, label; group, fold, split"
    )
    sub.add_argument("--scheme", default="auto", help="auto, fold, split, group or random: how rows are held out")
    sub.add_argument("--audio-root", type=Path, help="where relative paths start (the table's folder, or its parent)")
    sub.add_argument("--seed", type=SEED, default=0, help="of the untrained network and of made-up splits")


def _add_evaluate(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--tasks", type=Path, required=True, metavar="DIR", help="folder of task folders in HEAR's layout")
    sub.add_argument("--task", nargs="+", default=[], metavar="NAME", help="some of them (all)")
    sub.add_argument("--out", type=Path, default=Path("results"), metavar="RESULTS", help="folder (%(default)s)")
    sub.add_argument(
        "--protocol", nargs="+", default=["hear"], metavar="NAME", help="hear, hear-fixed, linear, knn (hear)"
    )
    sub.add_argument("--grid-points", type=int, default=8, help="of hear and hear-fixed; 8 as in the kit")
    sub.add_argument(
        "--head-precision",
        default="auto",
        help="of the MLPs' hidden layers: fp32, bf16, or auto, which is bf16 on CPUs that multiply it in hardware",
    )
    sub.add_argument("--seed", type=SEED, default=42, help="of weights, dropout and order (%(default)s)")
    sub.add_argument("--hop-ms", type=float, help="time between the steps of event tasks (the longest up to 50)")
    add_choice(sub)
    sub.add_argument(
        "--model",
        nargs="+",
        required=True,
        help="runs, checkpoints, hub:OWNER/NAME, untrained:MODEL, logmel, python:MODULE or python:MODULE=WEIGHTS",
    )


def _add_make_task(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("labels", type=Path, metavar="CSV", help="columns path, label; group, fold, split; start_s, end_s")
    sub.add_argument("--out", type=Path, required=True, metavar="TASKS", help="where the task's folder goes")
    sub.add_argument("--name", help="of the task (the table's)")
    sub.add_argument("--version", dest="version_name", default="v1", help="of the task (%(default)s)")
    sub.add_argument("--mode", default="full", help="last part of the folder's name (%(default)s)")
    sub.add_argument("--kind", choices=("multiclass", "multilabel", "event"), help="of labels (told from the table)")
    sub.add_argument("--scheme", choices=("fold", "split", "new"), help="which splits (the table's, or new folds)")
    sub.add_argument("--folds", type=int, default=5, help="how many new ones (%(default)s)")
    sub.add_argument("--seed", type=SEED, default=0, help="of new splits (%(default)s)")
    sub.add_argument("--rates", type=int, nargs="+", default=[16000], metavar="HZ", help="of the sounds (16000)")
    sub.add_argument(
        "--duration-s",
        type=_duration,
        default="auto",
        help="every clip's length: auto, native or seconds (%(default)s)",
    )
    sub.add_argument("--audio-root", type=Path, help="where relative paths start (the table's folder, or its parent)")
    sub.add_argument("--threads", type=THREADS, default=None, help="decoding threads (all cores)")
    sub.add_argument("--overwrite", action="store_true", help="replace a task of that name")


def _duration(text: str) -> float | str:
    """Seconds, or a word that `make_task` knows or refuses."""
    try:
        return float(text)
    except ValueError:
        return text
