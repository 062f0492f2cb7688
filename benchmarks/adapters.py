"""Evaluate models with mteb or with X-ARES on tables of labels of your own, without a download.

    python benchmarks/adapters.py mteb --labels AUDIO/tasks/esc10.csv --models box --out runs/mteb
    python benchmarks/adapters.py xares --labels AUDIO/tasks/esc10.csv --models box --out runs/xares

A table has one label a clip and a column `split` (docs/tables.md). The model `untrained:box` is the network of the box
with random weights. docs/how-to/benchmarks.md says how to install either project.

- mteb: classification, as its tasks without cross-validation do it (a logistic regression on 8 clips of each class,
  drawn ten times from the training rows), and clustering of the test rows.
- X-ARES: its linear layer, whose epoch is chosen by the validation rows, and its k-NN. OUT/NAME_task.py is the task, as
  X-ARES wants it: run it again with `python -m xares.run` in OUT.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from melmask.checkpoint.folder import save_checkpoint
from melmask.embedding.encoder import load, untrained
from melmask.labels.tables import LabelTable, read_labels

UNTRAINED = "untrained:"
XARES_TASK = """from xares.task import TaskConfig


def local_config(encoder) -> TaskConfig:
    return TaskConfig(
        encoder=encoder,
        name={name!r},
        output_dim={classes},
        eval_weight={clips},
        label_processor=lambda row: row["label"],
    )
"""


def named(model: str, out: Path) -> tuple[str, str]:
    """Return a name for a model and where to load it; write the weights of an untrained one to a folder of `out`."""
    if not model.startswith(UNTRAINED):
        return Path(model).name, model
    card = load(model.removeprefix(UNTRAINED)).card
    folder = out / f"untrained-{Path(model.removeprefix(UNTRAINED)).name}"
    save_checkpoint(folder, untrained(card).model, card)
    return folder.name, str(folder.resolve())


def rows_of(table: LabelTable, split: str) -> list[int]:
    """Return the numbers of the rows of a split."""
    return [row for row, of_row in enumerate(table.splits or []) if of_row == split]


def mteb_tasks(name: str, table: LabelTable) -> list[Any]:
    """Return a task of classification and one of clustering over the table, whose clips mteb's data loader decodes."""
    from datasets import Audio, Dataset, DatasetDict
    from mteb.abstasks import AbsTaskClassification, AbsTaskClustering
    from mteb.abstasks.task_metadata import TaskMetadata

    def data(split: str) -> Dataset:
        rows = rows_of(table, split)
        columns = {
            "audio": [str(table.paths[row]) for row in rows],
            "label": [int(table.label_indices[row]) for row in rows],
        }
        return Dataset.from_dict(columns).cast_column("audio", Audio())

    def described(kind: str, score: str) -> TaskMetadata:
        return TaskMetadata(
            name=f"{name}{kind}",
            description=f"Local clips of {name}",
            reference=None,
            dataset={"path": f"local/{name}", "revision": "1"},
            type=f"Audio{kind}",
            category="a2c" if kind == "Classification" else "a2a",
            eval_splits=["test"],
            eval_langs=["zxx-Zxxx"],
            main_score=score,
            modalities=["audio"],
        )

    class Local:
        input_column_name, label_column_name = "audio", "label"

        def load_data(self, **_: Any) -> None:
            self.dataset = DatasetDict(train=data("train"), test=data("test"))
            self.data_loaded = True

    class Classification(Local, AbsTaskClassification):
        metadata = described("Classification", "accuracy")

    class Clustering(Local, AbsTaskClustering):
        metadata = described("Clustering", "v_measure")
        max_fraction_of_documents_to_embed = None

    return [Classification(), Clustering()]


def run_mteb(tables: dict[str, LabelTable], models: list[tuple[str, str]], out: Path) -> None:
    """Let mteb evaluate each model on each table, and print the main scores."""
    import mteb

    from melmask.adapters.mteb import load_model

    tasks = [task for name, table in tables.items() for task in mteb_tasks(name, table)]
    for name, source in models:
        results = mteb.evaluate(load_model(source, name=f"melmask/{name}"), tasks, cache=mteb.ResultCache(out))
        for result in results.task_results:
            print(f"{name:16} {result.task_name:32} {result.get_score():.3f}")


def write_xares_task(name: str, table: LabelTable, out: Path) -> str:
    """Write the clips as X-ARES reads them, and a file that defines the task; return the name of that file."""
    folder = out / "env" / name
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid", "test"):
        with tarfile.open(folder / f"{split}-000000.tar", "w") as tar:
            for row in rows_of(table, split):
                path = table.paths[row]
                label = json.dumps({"label": int(table.label_indices[row])}).encode()
                # X-ARES does not know .opus, which is Ogg. Labels come first, as it reads a clip's files in order.
                ending = ".ogg" if path.suffix == ".opus" else path.suffix
                for suffix, content in ((".json", label), (ending, path.read_bytes())):
                    member = tarfile.TarInfo(f"{row:06d}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    # X-ARES then takes the data for downloaded.
    (folder / ".audio_tar_ready").touch()
    file = out / f"{name}_task.py"
    clips = len(rows_of(table, "test"))
    file.write_text(XARES_TASK.format(name=name, classes=len(table.class_names), clips=clips), encoding="utf-8")
    return file.name


def run_xares(tables: dict[str, LabelTable], models: list[tuple[str, str]], out: Path) -> None:
    """Let X-ARES evaluate each model on each table; it prints the scores itself."""
    tasks = [write_xares_task(name, table, out) for name, table in tables.items()]
    for name, source in models:
        print(f"== {name}", flush=True)
        variables = {**os.environ, "MELMASK_MODEL": source if source == "box" else str(Path(source).resolve())}
        command = [sys.executable, "-m", "xares.run", "--max-jobs", "0", "melmask/adapters/xares.py", *tasks]
        subprocess.run(command, cwd=out, env=variables, check=True)


def main() -> None:
    """Read the tables, load the models, and let the project evaluate them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", choices=("mteb", "xares"))
    parser.add_argument("--labels", type=Path, nargs="+", required=True)
    parser.add_argument("--models", nargs="+", default=["box"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    tables = {path.stem: read_labels(path) for path in given.labels}
    needed = {"train", "test"} if given.project == "mteb" else {"train", "valid", "test"}
    for name, table in tables.items():
        if not needed <= set(table.splits or []) or table.parts is not None:
            parser.error(f"{name} must have whole files, and a column split that marks {', '.join(sorted(needed))}")
    models = [named(model, given.out) for model in given.models]
    (run_mteb if given.project == "mteb" else run_xares)(tables, models, given.out)


if __name__ == "__main__":
    main()
