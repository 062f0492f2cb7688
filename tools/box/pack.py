"""Put the model of a run into the box: `src/melmask/bundled/`, which every installation brings along.

    python tools/box/pack.py OUT/run [--results probe.json ...] [--scene mean+std]

OUT is what `build.py` made: the tables of the training sounds lie beside the run. The box then holds

    model.safetensors  encoder and decoder in half precision
    config.json        as in any checkpoint, with the layer and the scene vector that its users get
    README.md          the model card, made of the tables, the run and the results
    ATTRIBUTION.csv    what the licenses of the sounds ask to be said, and HOLDERS.csv
    SHA256SUMS         of all these files, which loading compares

`--results` takes files of `melmask probe`, on sounds that the model never heard. The layer and the scene vector with
the highest mean become those that users get, unless `--scene` names one, and the card shows their scores. Packing again
replaces everything; it needs no training, so that scores may come later.
"""

import argparse
import csv
import hashlib
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import StatisticsError, mean
from typing import Any

import numpy as np
import torch

from melmask.checkpoint.bundled import BUNDLED, LARGEST_BYTES, SUMS
from melmask.checkpoint.folder import WEIGHTS, ModelCard, load_checkpoint, save_checkpoint
from melmask.checkpoint.locate import load_any
from melmask.downstream.baselines import LOGMEL, PRETRAINED, UNTRAINED
from melmask.downstream.linear_and_knn import CLASSIFIERS
from melmask.embedding.choice import SCENES, FeatureChoice
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import CheckpointError, InputError, MelmaskError
from melmask.system.files import atomic_write
from melmask.system.reading import read_json_object, read_text
from melmask.system.terminal import note, say

MOST_PARAMETERS = 6_000_000
LEAST_COSINE = 0.9998
"""What half precision may change: the vectors of test sounds have at least this cosine to those of the run."""
TABLES = ("ATTRIBUTION.csv", "HOLDERS.csv")
_CARD = Path(__file__).with_name("card.md")
_SCENE_WORDS = {"mean": "mean", "mean+std": "mean and deviation", "whitened": "whitened mean and deviation"}
_REPRESENTATIONS = {LOGMEL: "log-mel", UNTRAINED: "untrained", PRETRAINED: "box"}


def main() -> int:
    """Read the command line, and pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run, beside the tables of build.py")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="probe.json of unheard sounds")
    parser.add_argument("--scene", choices=SCENES, help="the scene vector that users get")
    options = parser.parse_args()
    try:
        pack(options.run, options.results, options.scene)
    except MelmaskError as error:
        note(f"pack.py: error: {error}")
        return 2
    return 0


def pack(run: Path, result_files: list[Path], scene: str | None, folder: Path = BUNDLED) -> None:
    """Write the box to `folder`, whose earlier content goes when the new one is whole and checked.

    Raises:
        CheckpointError: the model is too large, or half precision changes its vectors.
        InputError: a table of the training sounds, or a file of results, cannot be read.
    """
    model, card, _ = load_any(run)
    parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    if parameters > MOST_PARAMETERS:
        raise CheckpointError(f"{run} has {parameters:,} parameters; the box holds at most {MOST_PARAMETERS:,}")
    tables = {name: _text(run.parent / name) for name in TABLES}
    results = [_results(path) for path in result_files]
    results = [report for report in results if scene in (None, report["scene"])]
    best = max(results, key=_mean_score, default={"scene": scene or "mean+std", "layer": None})
    card = replace(card, scene=best["scene"], layers=tuple(best["layer"] or ()))
    new = folder.with_name(f".{folder.name}.new")
    save_checkpoint(new, model, card, torch.float16)
    size = (new / WEIGHTS).stat().st_size
    if size > LARGEST_BYTES:
        raise CheckpointError(f"the weights of {run} have {size:,} bytes; the box holds at most {LARGEST_BYTES:,}")
    cosine = least_cosine(AudioEncoder(model, card, device="cpu"), AudioEncoder(*load_checkpoint(new), device="cpu"))
    if cosine < LEAST_COSINE:
        raise CheckpointError(f"half precision changes the vectors of {run}: cosine {cosine:.6f}; train it again")
    shown = [report for report in results if (report["scene"], report["layer"]) == (best["scene"], best["layer"])]
    facts = {"cosine": f"{cosine:.6f}", "parameters": f"{parameters:,}", "size": f"{size / 1e6:.1f}"}
    for name, text in {**tables, "README.md": card_text(run, card, shown, facts)}.items():
        with atomic_write(new / name, "w") as file:
            file.write(text)
    names = sorted(path.name for path in new.iterdir())
    with atomic_write(new / SUMS, "w") as file:
        file.writelines(f"{hashlib.sha256((new / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    shutil.rmtree(folder, ignore_errors=True)
    new.replace(folder)
    say(
        f"{folder}: {parameters:,} parameters, {size / 1e6:.1f} MB, scene {card.scene}, "
        f"layers {list(card.layers) or 'last'}, cosine to the run {cosine:.6f}"
    )


def least_cosine(one: AudioEncoder, other: AudioEncoder) -> float:
    """Return the least cosine of the two models' scene vectors, over tones and noises of several levels."""
    rng, rate = np.random.default_rng(0), one.sample_rate_hz
    time_s = np.arange(3 * rate) / rate
    sounds = [np.sin(2 * np.pi * hz * time_s**power) for hz in (110, 440, 1760) for power in (1, 1.5)]
    sounds += [rng.standard_normal(len(time_s)).cumsum() / 100, rng.standard_normal(len(time_s))]
    levels = np.stack([level * sound for sound in sounds for level in (0.003, 0.3)]).clip(-1, 1).astype(np.float32)
    pairs = zip(*(model.embed(levels, rate).scene.astype(np.float64) for model in (one, other)), strict=True)
    return min(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs)


def card_text(run: Path, card: ModelCard, results: list[dict[str, Any]], facts: dict[str, str]) -> str:
    """Return the model card: `card.md` with the numbers filled in."""
    hours: Counter[str] = Counter()
    licenses: Counter[str] = Counter()
    sources = set()
    for row in csv.DictReader(_text(run.parent / "ATTRIBUTION.csv").splitlines()):
        hours[row["kind"]] += float(row["seconds"]) / 3600
        licenses[row["license"]] += float(row["seconds"]) / 3600
        sources.add(row["source"])
    training, front_end = card.training, card.front_end
    values = facts | {
        "scene": _SCENE_WORDS[card.scene],
        "layer": f"block {card.layers[0]} of {card.model.depth}" if card.layers else "the last block",
        "rate_khz": f"{front_end.sample_rate_hz / 1000:g}",
        "highest_khz": f"{front_end.max_hz / 1000:g}",
        "step_ms": f"{card.model.patch_frames * front_end.hop_ms:g}",
        "hours": f"{sum(hours.values()):.1f}",
        "sources": str(len(sources)),
        "kinds": _table(("kind", "hours"), [(kind, f"{amount:.2f}") for kind, amount in hours.most_common()]),
        "licenses": _table(("license", "hours"), [(name, f"{amount:.2f}") for name, amount in licenses.most_common()]),
        "steps": f"{training.get('step', 0):,}",
        "minutes": f"{training.get('minutes', 0):.0f}",
        "loss": f"{training.get('loss', 0):.3f}",
        "sections": ", ".join(f"`{part}.{name}={value}`" for part, name, value in _settings(training)),
        "dimensions": str(FeatureChoice(scene=card.scene).scene_size(card.model)),
        "scores": _scores(results),
    }
    text = _text(_CARD)
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def _settings(training: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Return the settings that decide the result; a run with a number of minutes plans its steps by itself."""
    config, parts = training.get("config", {}), ("objective", "masking", "data", "optimizer", "features")
    planned = ("steps", "warmup_steps") if config.get("optimizer", {}).get("minutes") else ()
    return [
        (part, name, value) for part in parts for name, value in config.get(part, {}).items() if name not in planned
    ]


def _results(path: Path) -> dict[str, Any]:
    """Return what probe.json holds: a `ProbeReport` as a dictionary."""
    try:
        report = read_json_object(path)
        if report["scene"] not in SCENES or not _mean_score(report):
            raise ValueError("it has no scores")
    except (OSError, ValueError, KeyError, TypeError, StatisticsError) as error:
        raise InputError(f"{path} cannot be used ({error}); give the probe.json of melmask probe") from error
    return report


def _mean_score(report: dict[str, Any]) -> float:
    return mean(task["scores"][PRETRAINED]["linear"]["accuracy"] for task in report["tasks"].values())


def _scores(results: list[dict[str, Any]]) -> str:
    """Return a table of linear and k-NN scores with their intervals, a row for each task."""
    if not results:
        return "This build was packed without results.\n"
    columns = [(name, kind) for name in _REPRESENTATIONS for kind in CLASSIFIERS]
    rows = []
    for report in results:
        for name, task in report["tasks"].items():
            scores = [_cell(task["scores"][one][kind]) for one, kind in columns]
            rows.append((name, str(task["clips"]), str(task["classes"]), *scores))
    return _table(("task", "clips", "classes", *(f"{_REPRESENTATIONS[one]}, {kind}" for one, kind in columns)), rows)


def _cell(score: dict[str, Any]) -> str:
    return f"{score['accuracy']:.3f} ({score['interval_95'][0]:.3f} to {score['interval_95'][1]:.3f})"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("--:" if number else "---" for number in range(len(header))), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); build.py writes it beside the run") from error


if __name__ == "__main__":
    sys.exit(main())
