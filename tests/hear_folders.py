"""HEAR task folders of made-up sounds, small and learnable, for tests."""

import csv
import json

import numpy as np
import soundfile

RATE_HZ = 16000
PITCHES_HZ = {"low": 300, "middle": 900, "high": 2700}


def tone(label, seconds, rng):
    """A tone of one of three pitches in noise."""
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    pitch_hz = PITCHES_HZ[label] * rng.uniform(0.9, 1.1)
    return 0.3 * np.sin(2 * np.pi * pitch_hz * time_s) + 0.02 * rng.standard_normal(len(time_s))


def write_table(folder, rows, name="labels.csv"):
    """A CSV of these rows, the header first."""
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / name


def write_hear_task(folder, metadata, splits):
    """splits: split -> file name -> (waveform, labels or events)."""
    labels = list(PITCHES_HZ)
    for split, clips in splits.items():
        sounds = folder / str(RATE_HZ) / split
        sounds.mkdir(parents=True)
        (folder / f"{split}.json").write_text(json.dumps({name: items for name, (_, items) in clips.items()}))
        for name, (waveform, _) in clips.items():
            soundfile.write(sounds / name, waveform, RATE_HZ)
    (folder / "task_metadata.json").write_text(json.dumps({"splits": list(splits), "mode": "full", **metadata}))
    with (folder / "labelvocabulary.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("idx", "label"), *enumerate(labels)])
    return folder


def grid(**changes):
    """evaluation_params of a search that takes moments."""
    quick = {"hidden_layers": [1], "hidden_dim": [32], "lr": [1e-2, 1e-3], "max_epochs": [30], "patience": [5]}
    return {"task_specific_param_grid": {**quick, "batch_size": [64], **changes}}


def write_fold_task(folder, folds=3, clips=12):
    """One of three pitches a clip, half a second each."""
    rng = np.random.default_rng(0)
    labels = list(PITCHES_HZ)
    splits = {
        f"fold{fold:02d}": {f"{fold}-{i}.wav": (tone(labels[i % 3], 0.5, rng), [labels[i % 3]]) for i in range(clips)}
        for fold in range(folds)
    }
    metadata = {
        "task_name": "pitches",
        "version": "v1",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "presplit_kfold",
        "nfolds": folds,
        "sample_duration": 0.5,
        "evaluation": ["top1_acc", "mAP"],
        "evaluation_params": grid(),
    }
    return write_hear_task(folder / "pitches-v1-full", metadata, splits)


def write_tag_task(folder, clips=24):
    """Up to three pitches at once, in clips of any length."""
    rng = np.random.default_rng(1)
    labels = list(PITCHES_HZ)
    splits = {}
    for split in ("train", "valid", "test"):
        found = {}
        for i in range(clips):
            chosen = [label for label in labels if rng.random() < 0.5] if i > 3 else labels[: i % 4]
            seconds = rng.uniform(0.3, 0.6)
            waveform = sum((tone(label, seconds, rng) for label in chosen), np.zeros(round(seconds * RATE_HZ)))
            found[f"{split}-{i}.wav"] = (waveform / 3, chosen)
        splits[split] = found
    metadata = {
        "task_name": "tags",
        "version": "v1",
        "embedding_type": "scene",
        "prediction_type": "multilabel",
        "split_mode": "trainvaltest",
        "sample_duration": None,
        "evaluation": ["mAP", "d_prime", "aucroc"],
        "evaluation_params": grid(),
    }
    return write_hear_task(folder / "tags-v1-full", metadata, splits)


def write_event_task(folder, clips=8, stop_on_score=True):
    """Tones of half a second with pauses between them, in clips of three seconds."""
    rng = np.random.default_rng(2)
    labels = list(PITCHES_HZ)
    splits = {}
    for split in ("train", "valid", "test"):
        found = {}
        for i in range(clips):
            waveform, events = 0.01 * rng.standard_normal(3 * RATE_HZ), []
            for start_ms in (200.0, 1200.0, 2200.0):
                label = labels[rng.integers(3)]
                first = round(start_ms / 1000 * RATE_HZ)
                waveform[first : first + RATE_HZ // 2] += tone(label, 0.5, rng)
                events.append({"label": label, "start": start_ms, "end": start_ms + 500})
            found[f"{split}-{i}.wav"] = (waveform, events)
        splits[split] = found
    metadata = {
        "task_name": "bursts",
        "version": "v1",
        "embedding_type": "event",
        "prediction_type": "multilabel",
        "split_mode": "trainvaltest",
        "sample_duration": 3.0,
        "evaluation": ["event_onset_200ms_fms", "segment_1s_er"],
        "use_scoring_for_early_stopping": stop_on_score,
        "evaluation_params": {"event_postprocessing_grid": {"median_filter_ms": [100], "min_duration": [50, 100]}}
        | grid(max_epochs=[60]),
    }
    if not stop_on_score:
        metadata["evaluation_params"]["event_postprocessing_grid"]["min_duration"] = [100]
    return write_hear_task(folder / "bursts-v1-full", metadata, splits)
