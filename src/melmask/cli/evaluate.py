"""`melmask evaluate`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.cli.options import SEED, ComputeOptions
from melmask.embedding.choice import FeatureChoice


@dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluate models on HEAR 2021 tasks, with a report. The same command resumes."""

    model: tuple[str, ...]
    """Models to evaluate. Each is a run, a checkpoint, hub:OWNER/NAME, untrained:MODEL, logmel, python:MODULE or
    python:MODULE=WEIGHTS."""
    tasks: Path = field(metadata={"metavar": "DIR"})
    """Folder of task folders in HEAR's layout."""
    task: tuple[str, ...] = field(default=(), metadata={"metavar": "NAME"})
    """Names of the tasks to take. Without it, all are taken."""
    out: Path = field(default=Path("results"), metadata={"metavar": "RESULTS"})
    """Folder of the results."""
    protocol: tuple[str, ...] = field(default=("hear",), metadata={"metavar": "NAME"})
    """Protocols to follow: hear, hear-fixed, linear or knn."""
    grid_points: int = 8
    """How many points of the grid of hyperparameters the protocols hear and hear-fixed try. HEAR's kit tries 8."""
    head_precision: str = "auto"
    """Arithmetic of the MLPs' hidden layers: fp32, bf16 or auto. With auto, it is bf16 on CPUs that multiply it in
    hardware."""
    seed: int = field(default=42, metadata={"limits": SEED})
    """Seed of the heads' weights, dropout and order of examples."""
    compute: ComputeOptions = field(default=ComputeOptions())
    features: FeatureChoice = field(default=FeatureChoice())
    """Which features of melmask's models are taken."""


def run(options: Options) -> int:
    """Judge models on HEAR tasks."""
    from melmask.evaluate.clients import Choice
    from melmask.evaluate.evaluation import evaluate, table_text
    from melmask.pages.evaluation import write_hear_page

    features = options.features
    report = evaluate(
        options.model,
        options.tasks,
        options.out,
        tasks=options.task,
        protocols=options.protocol,
        choice=Choice(
            features.layers or None,
            features.pooling,
            features.scene,
            features.hop_ms,
            options.compute.device,
            options.compute.precision,
        ),
        grid_points=options.grid_points,
        precision=options.head_precision,
        seed=options.seed,
        page=write_hear_page,
    )
    print(table_text(report))
    for task in report["tasks"]:
        if task["leaking_files"] or task["leaking_groups"]:
            groups = "" if task["leaking_groups"] is None else f" and {task['leaking_groups']} groups"
            print(f"{task['title']}: {task['leaking_files']} sounds{groups} are on both sides of a split")
    print(f"scores, predictions and the page: {options.out / 'report.html'}")
    return 0
