"""The commands that judge and classify, as a user calls them: results, and wrong calls in one line."""

import csv
import json
import re

import numpy as np
import pytest
import soundfile
from hear_folders import PITCHES_HZ, RATE_HZ, tone, write_fold_task

from melmask.cli import main


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    rng = np.random.default_rng(0)
    with (folder / "pitches.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "fold"))
        for i in range(36):
            label = list(PITCHES_HZ)[i % 3]
            soundfile.write(folder / f"{i}.wav", tone(label, 0.5, rng), RATE_HZ)
            rows.writerow((f"{i}.wav", label, i // 3 % 4))
    return folder / "pitches.csv"


def test_commands_are_listed_in_the_order_of_the_work(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^    ([a-z-]+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    assert listed == [
        *("demo", "prepare", "pretrain", "bench", "embed", "explore", "index", "search", "duplicates", "probe"),
        *("few-labels", "evaluate", "make-task", "study", "show", "finetune", "predict", "convert", "push", "export"),
        "settings",
    ]


def test_from_labels_to_a_task_to_a_report(labels, run_folder, tmp_path, capsys):
    tasks, results = tmp_path / "tasks", tmp_path / "results"
    assert main(["make-task", str(labels), "--out", str(tasks), "--duration-s", "0.5"]) == 0
    assert "pitches-v1-full: 36 clips of 0.5 s, 3 classes" in capsys.readouterr().out
    metadata = tasks / "pitches-v1-full" / "task_metadata.json"
    quick = {"task_specific_param_grid": {"hidden_dim": [32], "lr": [1e-2], "max_epochs": [9], "hidden_layers": [1]}}
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"evaluation_params": quick}))
    words = ["evaluate", "--model", str(run_folder), "logmel", "--tasks", str(tasks), "--out", str(results)]
    assert main([*words, "--protocol", "hear", "knn", "--device", "cpu", "--grid-points", "2"]) == 0
    printed = capsys.readouterr().out
    assert "pitches-v1-full  hear  top1_acc" in printed
    assert "pitches-v1-full  knn  top1_acc" in printed
    assert "<html" in (results / "report.html").read_text()[:200]
    assert len(json.loads((results / "results.json").read_text())["results"]) == 4


def test_few_label_curves(labels, run_folder, tmp_path, capsys):
    words = ["few-labels", "--model", str(run_folder), "--labels", str(labels), "--out", str(tmp_path)]
    assert main([*words, "--per-class", "1", "all", "--draws", "2", "--device", "cpu"]) == 0
    assert "pitches, linear probe: 3 classes, chance 0.333, 4 splits, 2 draws" in capsys.readouterr().out
    assert (tmp_path / "few-labels-pitches.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("make-task NONE.csv --out OUT", "NONE.csv"),
        ("make-task LABELS --out OUT --duration-s soon", "soon"),
        ("evaluate --model logmel --tasks NONE --out OUT", "is not a folder; give the one that holds the task folders"),
        ("evaluate --model logmel --tasks EMPTY --out OUT", "holds no task folder"),
        ("evaluate --model logmel --tasks TASKS --task pitchess --out OUT", "the nearest is 'pitches'"),
        ("evaluate --model logmel --tasks TASKS --protocol here --out OUT", "the nearest is 'hear'"),
        ("evaluate --model NONE --tasks TASKS --out OUT", "NONE"),
        ("evaluate --model python:no_such_module --tasks TASKS --out OUT", "cannot be imported"),
        ("evaluate --model RUN --layer 9 --tasks TASKS --out OUT", "layer is 9; this model has layers 1 to 2"),
        ("evaluate --model logmel --tasks TASKS --out LABELS", "LABELS"),
        ("few-labels --model RUN --labels LABELS --per-class none --out OUT", "none"),
        ("few-labels --model RUN --labels LABELS --draws 0 --out OUT", "0"),
        ("finetune NONE LABELS --out OUT", "NONE"),
        ("finetune RUN LABELS --out OUT epochs=0", "epochs is 0; give at least 1"),
        ("finetune RUN LABELS --out OUT --fold 9", "--fold is '9'; the table has 0, 1, 2, 3"),
        ("predict LABELS --model RUN --out X.csv", "holds no classifier"),
    ],
)
def test_wrong_calls_end_with_one_line_and_status_2(words, message, labels, run_folder, tmp_path, capsys):
    (tmp_path / "EMPTY").mkdir()
    write_fold_task(tmp_path / "TASKS")
    places = {"RUN": str(run_folder), "LABELS": str(labels)}
    for name in ("NONE", "EMPTY", "TASKS", "OUT", "X.csv", "NONE.csv"):
        places[name] = str(tmp_path / name)
    call = [places.get(word, word) for word in words.split(" ")]
    assert main(call) == 2
    lines = capsys.readouterr().err.splitlines()
    error = [line for line in lines if line.startswith("melmask: error: ")]
    assert len(error) == 1
    assert places.get(message, message) in error[0]
    assert not any("Traceback" in line for line in lines)
