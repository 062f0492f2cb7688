"""Nothing that is NaN or infinite leaves a command or a function unsaid, and the files beside it go on."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from melmask.adapters import hear
from melmask.checkpoint.folder import save_checkpoint
from melmask.cli import main
from melmask.config import LOG_EPSILON, Statistics
from melmask.embedding.encoder import AudioEncoder, load
from melmask.embedding.export import export_onnx
from melmask.embedding.extract import embed_files
from melmask.embedding.streaming import EmbeddingStream
from melmask.errors import NotFiniteError

RATE_HZ = 16000
SILENCE = float(np.log(np.float32(LOG_EPSILON)))
"""Digital silence is exactly the mean of this model; whatever is louder overflows, divided by its deviation."""
BROKEN = Statistics(mean=SILENCE, std=1e-38)


def broken(encoder):
    card = replace(encoder.card, statistics=BROKEN)
    return AudioEncoder(encoder.model, card, device="cpu")


@pytest.fixture(scope="module")
def folder(run_folder, sound, tmp_path_factory):
    """A model that only silence suits, four silent files and four others, and what is made of them."""
    folder = tmp_path_factory.mktemp("broken")
    model = load(run_folder, "cpu")
    save_checkpoint(folder / "model", model.model, replace(model.card, statistics=BROKEN))
    (folder / "sounds").mkdir()
    rows = []
    for number in range(8):
        waveform = sound(0.75, number) if number % 2 else np.zeros(12000, np.float32)
        soundfile.write(folder / "sounds" / f"{number}.wav", waveform, RATE_HZ)
        rows.append((f"sounds/{number}.wav", "xy"[number // 2 % 2], ("train", "valid")[number // 4]))
    for table, held_out in (("labels.csv", "valid"), ("probed.csv", "test")):
        with (folder / table).open("w", encoding="utf-8", newline="") as file:
            lines = [(path, label, split.replace("valid", held_out)) for path, label, split in rows]
            csv.writer(file).writerows([("path", "label", "split"), *lines])
    # Learned with the good model; the weights of the broken one are those of its encoder.
    assert not main(["finetune", str(run_folder), str(folder / "labels.csv"), "--out", str(folder / "c"), "epochs=1"])
    for name in ("nan-head", "broken-classifier"):
        shutil.copytree(folder / "c" / "classifier", folder / name)
    head = load_file(folder / "nan-head" / "head.safetensors")
    save_file({**head, "linear.weight": head["linear.weight"] * torch.nan}, folder / "nan-head" / "head.safetensors")
    config = json.loads((folder / "broken-classifier" / "config.json").read_text(encoding="utf-8"))
    config["statistics"] = {"mean": SILENCE, "std": 1e-38}
    (folder / "broken-classifier" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def listed_by_embed(out):
    with out.with_name(out.name + ".failed.csv").open(encoding="utf-8", newline="") as file:
        failed = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    rows = pq.read_table(out).to_pylist()
    assert all(np.isfinite(row["scene"]).all() and np.isfinite(row.get("frames", 0)).all() for row in rows)
    return failed, [row["path"] for row in rows]


def listed_by_predict(out):
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    good = [row for row in rows if "error" not in row]
    assert all(row["probability"] is None or 0 <= row["probability"] <= 1 for row in good)
    return {row["path"]: row["error"] for row in rows if "error" in row}, [row["path"] for row in good]


def listed_by_probe(out):
    (task,) = json.loads((out / "probe.json").read_text(encoding="utf-8"))["tasks"].values()
    return task["unreadable"], ["?"] * task["clips"]


def listed_by_few_labels(out):
    (task,) = json.loads((out / "few-labels.json").read_text(encoding="utf-8"))["tasks"].values()
    return task["unreadable"], ["?"] * task["clips"]


def listed_by_finetune(out):
    with (out / "failed.csv").open(encoding="utf-8", newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}, ["?"] * 4


FILES = {
    "finetune": ("finetune {}/model {}/labels.csv epochs=1 --out", "x", listed_by_finetune),
    "embed": ("embed {}/sounds --model {}/model --out", "x.parquet", listed_by_embed),
    "embed, frames": ("embed {}/sounds --model {}/model --frames --out", "x.parquet", listed_by_embed),
    "predict": ("predict {}/sounds --model {}/broken-classifier --out", "x.jsonl", listed_by_predict),
    "predict, events": ("predict {}/sounds --model {}/broken-classifier --events --out", "x.jsonl", listed_by_predict),
    "probe": ("probe --labels {}/probed.csv --model {}/model --out", "x", listed_by_probe),
    "few-labels": (
        "few-labels --labels {}/probed.csv --model {}/model --per-class 1 --draws 1 --out",
        "x",
        listed_by_few_labels,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_whose_numbers_are_not_finite_is_listed_and_the_others_go_on(name, folder, tmp_path, capfd):
    arguments, out, listed = FILES[name]
    words = [word.replace("{}", str(folder)) for word in arguments.split()]
    assert main([*words, str(tmp_path / out)]) == 0, capfd.readouterr()
    failed, good = listed(tmp_path / out)
    assert sorted(path[-5:] for path in failed) == ["1.wav", "3.wav", "5.wav", "7.wav"] and len(good) == 4
    assert all("is not finite" in reason for reason in failed.values())
    said = capfd.readouterr()
    assert "4 files" in said.out and "Warning" not in said.err


LEAKS = {
    "embed": ["embed", "{}/sounds/1.wav", "--model", "{}/model", "--out", "{out}/x.npz"],
    "predict": ["predict", "{}/sounds", "--model", "{}/nan-head", "--out", "{out}/x.csv"],
    "predict, events": ["predict", "{}/sounds", "--model", "{}/nan-head", "--out", "{out}/x.csv", "--events"],
    "evaluate": ["evaluate", "--model", "{}/model", "--tasks", "{out}/tasks", "--out", "{out}/x", "--protocol", "knn"],
    "export": ["export", "--model", "{}/model", "--onnx", "{out}/x.onnx"],
}


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.filterwarnings("ignore")
def test_a_command_with_nothing_finite_to_give_says_so_and_fails(name, folder, tmp_path, capfd):
    if name == "export":
        pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
    if name == "evaluate":
        assert main(["make-task", str(folder / "labels.csv"), "--out", str(tmp_path / "tasks"), "--name", "toy"]) == 0
    arguments = [word.replace("{}", str(folder)).replace("{out}", str(tmp_path)) for word in LEAKS[name]]
    capfd.readouterr()
    assert main(arguments) == 2
    said = capfd.readouterr().err
    assert "not finite" in said.splitlines()[-1] and "Warning" not in said and "Traceback" not in said
    assert not [path for path in tmp_path.glob("x.*") if path.is_file()]


def through_a_stream(encoder, waveform):
    stream = EmbeddingStream(encoder, RATE_HZ)
    stream.push(waveform)
    stream.finish()


def reconstructed(encoder, waveform):
    masked = np.zeros((1, 5 * 4), bool)
    masked[:, ::2] = True
    encoder.reconstruct(encoder.logmel(waveform, RATE_HZ)[:, :, :64], masked=masked)


FUNCTIONS = {
    "embed": lambda encoder, waveform: encoder.embed(waveform, RATE_HZ),
    "stream": through_a_stream,
    "reconstruct": reconstructed,
    "HEAR scenes": lambda encoder, waveform: hear.get_scene_embeddings(
        torch.from_numpy(waveform)[None], hear.hear_model(encoder)
    ),
    "HEAR timestamps": lambda encoder, waveform: hear.get_timestamp_embeddings(
        torch.from_numpy(waveform)[None], hear.hear_model(encoder)
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_returns_what_is_not_finite(name, run_folder, sound):
    with pytest.raises(NotFiniteError, match="is not finite"):
        FUNCTIONS[name](broken(load(run_folder, "cpu")), sound(1.0, 0))


def test_rows_of_a_long_file_end_with_its_error_once_its_frames_are_not_finite(
    run_folder, tmp_path, sound, monkeypatch
):
    monkeypatch.setattr("melmask.embedding.extract._VALUES_PER_ROW", 1 << 12)
    waveform = np.concatenate([np.zeros(20 * RATE_HZ, np.float32), sound(1.0, 0)])
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, waveform if name == "a.wav" else waveform[: 10 * RATE_HZ], RATE_HZ)
    rows = list(
        embed_files(broken(load(run_folder, "cpu")), [tmp_path / "a.wav", tmp_path / "b.wav"], keep_frames=True)
    )
    assert [row.path.name for row in rows if row.error is not None] == ["a.wav"]
    assert all(np.isfinite(row.frames).all() for row in rows if row.frames is not None)
    assert rows[-1].last and rows[-1].scene is not None


@pytest.mark.filterwarnings("ignore")
def test_an_export_that_fails_leaves_the_file_that_was_there(run_folder, tmp_path):
    pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
    (tmp_path / "x.onnx").write_bytes(b"an earlier export")
    with pytest.raises(NotFiniteError):
        export_onnx(broken(load(run_folder, "cpu")), tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_bytes() == b"an earlier export"
