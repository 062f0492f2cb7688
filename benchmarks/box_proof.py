"""Judge a model on labeled tasks beside log-mel statistics, the untrained network and other pre-trained models.

    python benchmarks/box_proof.py --model runs/mine --tables AUDIO/tasks/*.csv --audio-root AUDIO \
        --vectors aisfx=aisfx.npz resemblyzer=resemblyzer.npz --out benchmarks/results/2026-12-01-proof

It writes OUT.md and OUT.json: linear, k-NN and 8-shot accuracy with intervals, by the functions of `melmask probe` and
`few-labels`, which are the same for all representations. --vectors are files of `peer_vectors.py`, which runs in an
environment of its own. Tasks that OUT.json holds already, for the same model, features and files, are kept. --per-class
20 takes a part of each task, to try things out. The main battery is the mean over the tasks of --battery.
"""

import argparse
import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from melmask.audio.files import read_audio
from melmask.audio.logmel import LogMelSpectrogram
from melmask.audio.parts import Sound
from melmask.config import FrontEndConfig
from melmask.downstream.baselines import LOGMEL, PRETRAINED, UNTRAINED, features_of_task
from melmask.downstream.few_labels import curves_of_features
from melmask.downstream.linear_and_knn import earlier_equals, probe_features
from melmask.downstream.options import FewLabelsOptions
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import load
from melmask.labels.options import TableOptions
from melmask.labels.splits import make_splits
from melmask.labels.tables import LabelTable, keep_rows, read_labels
from melmask.system.files import atomic_write, write_json
from melmask.system.hardware import available_cores, map_ahead
from melmask.system.reading import read_json_object

BATTERY = (
    "esc50",
    "arabic_words",
    "fsdd_digit",
    "ravdess_emotion",
    "ravdess_speaker",
    "phil_instrument",
    "phil_chroma",
)
RICHER = "log-mel, richer statistics"
JUDGES = ("linear", "k-NN", "8-shot")
SHOTS = "8"


def part_of(table: LabelTable, per_class: int) -> LabelTable:
    """Keep at most `per_class` clips of each class in each fold and split, the first ones; 0 keeps all."""
    kinds = zip(table.labels, table.folds or table.labels, table.splits or table.labels, strict=True)
    _, numbers = np.unique(["\t".join(kind) for kind in kinds], return_inverse=True)
    return keep_rows(table, earlier_equals(numbers) < per_class) if per_class else table


def richer_statistics(sounds: list[Sound]) -> np.ndarray:
    """Return (sounds, 448): of 64 mel bands the mean, std, maximum, mean change of frames, and means of thirds."""
    config = FrontEndConfig(mels=64)
    front_end = LogMelSpectrogram(config)

    @torch.inference_mode()
    def of_sound(sound: Sound) -> np.ndarray:
        logmel = front_end(torch.from_numpy(read_audio(sound, config.sample_rate_hz))[None])[0].numpy()
        change = np.abs(np.diff(logmel, axis=1)).mean(1) if logmel.shape[1] > 1 else np.zeros(len(logmel))
        # A clip of one or two frames has empty thirds, which get the mean of the whole.
        thirds = [(part if part.shape[1] else logmel).mean(1) for part in np.array_split(logmel, 3, axis=1)]
        return np.concatenate([logmel.mean(1), logmel.std(1), logmel.max(1), change, *thirds]).astype(np.float32)

    return np.array(list(map_ahead(of_sound, sounds, available_cores(), 64)))


class Peer:
    """The vectors of another model, by the paths of `peer_vectors.py`."""

    def __init__(self, file: Path, audio_root: Path):
        with np.load(file) as arrays:
            self._rows, paths = arrays["vectors"], arrays["paths"]
        self._row_of = {(audio_root / str(path)).resolve(): row for row, path in enumerate(paths)}
        self._file = file
        self.digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]

    def of_table(self, table: LabelTable) -> np.ndarray:
        """Return the vectors (rows, dims) of a table's clips."""
        missing = [path for path in table.paths if path.resolve() not in self._row_of]
        if missing:
            raise SystemExit(f"{self._file} has no vector of {missing[0]} and {len(missing) - 1} other files")
        return self._rows[[self._row_of[path.resolve()] for path in table.paths]]


def judged(features: dict[str, np.ndarray], table: LabelTable) -> dict[str, Any]:
    """Return the accuracies and intervals of each representation on one task."""
    splits = make_splits(table)
    probes = probe_features(features, table.label_indices, splits)
    curves = curves_of_features(features, table, FewLabelsOptions(per_class=(SHOTS,)))
    scores: dict[str, dict[str, Any]] = {}
    for name in features:
        scores[name] = {judge: [score.mean, *score.interval_95] for judge, score in probes[name].items()}
        shots = curves.scores[name]["linear"][0]
        scores[name]["8-shot"] = [shots.accuracy, *(shots.interval_95 or (None, None))]
    return {"clips": len(table.labels), "classes": len(table.class_names), "scores": scores}


def mean_of(tasks: dict[str, Any], names: list[str], representation: str, judge: str) -> float:
    """Return the mean accuracy of a representation over the tasks of these names."""
    return float(np.mean([tasks[name]["scores"][representation][judge][0] for name in names]))


def page(facts: dict[str, Any], tasks: dict[str, Any], battery: list[str]) -> str:
    """Return the tables as Markdown."""
    representations = list(next(iter(tasks.values()))["scores"])
    used = [name for name in battery if name in tasks]
    lines = ["# The model beside baselines and pre-trained models", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    for judge in JUDGES:
        lines += ["", f"## {judge}", "", "| task | clips | classes | " + " | ".join(representations) + " |"]
        lines += ["|---|--:|--:|" + "--:|" * len(representations)]
        for name, task in tasks.items():
            values = [task["scores"][representation][judge][0] for representation in representations]
            best = max(values)
            shown = [f"**{value:.3f}**" if value == best else f"{value:.3f}" for value in values]
            lines.append(f"| {name} | {task['clips']} | {task['classes']} | {' | '.join(shown)} |")
        for title, names in (("mean of the main battery", used), ("mean of all tasks", list(tasks))):
            if names:
                means = " | ".join(f"{mean_of(tasks, names, each, judge):.3f}" for each in representations)
                lines.append(f"| {title} ({len(names)}) | | | {means} |")
    won = [name for name, task in tasks.items() if wins(task, representations)]
    lines += ["", f"The model is above every other column by the linear probe on {len(won)} of {len(tasks)} tasks."]
    return "\n".join(lines) + "\n"


def wins(task: dict[str, Any], representations: list[str]) -> bool:
    """Whether the model's linear probe is above every other one on a task."""
    others = [task["scores"][name]["linear"][0] for name in representations if name != PRETRAINED]
    return task["scores"][PRETRAINED]["linear"][0] > max(others)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tables", type=Path, nargs="+", required=True)
    parser.add_argument("--audio-root", type=Path, required=True)
    parser.add_argument("--vectors", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--out", type=Path, required=True, help="of the results, without .md and .json")
    parser.add_argument("--battery", nargs="*", default=BATTERY, metavar="TASK")
    parser.add_argument("--per-class", type=int, default=0)
    parser.add_argument("--scene", default="mean+std")
    parser.add_argument("--layer", type=int, nargs="*", default=[])
    parser.add_argument("--pooling", default="concat")
    return parser.parse_args()


def main() -> None:
    """Judge all tasks that have no result yet, and write the page."""
    given = arguments()
    model = load(given.model)
    peers = {
        name: Peer(Path(file), given.audio_root) for name, _, file in (text.partition("=") for text in given.vectors)
    }
    choice = FeatureChoice(layers=tuple(given.layer), pooling=given.pooling, scene=given.scene)
    facts = {
        "model": f"{given.model} ({model.sha256[:16]})",
        "features": asdict(choice),
        "peers": {name: peer.digest for name, peer in peers.items()},
        "clips": f"at most {given.per_class} of a class in a fold or split" if given.per_class else "all",
    }
    json_file = Path(f"{given.out}.json")
    earlier = read_json_object(json_file) if json_file.exists() else {}
    # JSON turns tuples into lists.
    tasks = earlier["tasks"] if earlier.get("facts") == json.loads(json.dumps(facts)) else {}
    for file in given.tables:
        if file.stem in tasks:
            print(f"{file.stem} is done")
            continue
        began = time.monotonic()
        table = part_of(read_labels(file, TableOptions(audio_root=given.audio_root)), given.per_class)
        found = features_of_task(model, file.stem, table, FewLabelsOptions(choice=choice))
        features = {LOGMEL: found.features[LOGMEL], RICHER: richer_statistics(found.table.sounds)}
        features |= {UNTRAINED: found.features[UNTRAINED]}
        features |= {name: peer.of_table(found.table) for name, peer in peers.items()}
        features |= {PRETRAINED: found.features[PRETRAINED]}
        tasks[file.stem] = judged(features, found.table)
        # A killed job resumes after its last task.
        write_json(json_file, {"facts": facts, "tasks": tasks})
        print(f"{file.stem}: {time.monotonic() - began:.0f} s")
    with atomic_write(Path(f"{given.out}.md"), "w") as page_file:
        page_file.write(page(facts, tasks, given.battery))
    print(page(facts, tasks, given.battery))


if __name__ == "__main__":
    main()
