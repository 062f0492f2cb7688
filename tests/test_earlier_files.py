"""Files that release 0.1.0 wrote (tests/reference/make_files_0_1_0.py) are read, resumed and extended."""

import csv
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import melmask
from melmask.cli import main
from melmask.corpus.store import Store
from melmask.embedding.tables import read_settings, rows_of

FILES = Path(__file__).parent / "reference" / "files-0.1.0"


@pytest.fixture
def earlier(tmp_path):
    """A copy that a command may write to."""
    shutil.copytree(FILES, tmp_path / "files")
    return tmp_path / "files"


@pytest.fixture
def sounds(tmp_path):
    """The sounds that the files were made from, with their table of labels."""
    runpy.run_path(str(FILES.parent / "make_files_0_1_0.py"))["write_sounds"](tmp_path / "sounds")
    return tmp_path / "sounds"


def test_a_store_is_read():
    store = Store(FILES / "store")
    assert len(store.frames) == 12 and store.front_end.mels == 80
    crop = np.empty((51, 80), dtype="<f2")
    store.read_into(crop, 0, 0)
    assert np.isfinite(crop).all() and crop.std() > 0


def test_a_model_embeds_as_it_did(sounds):
    table = pq.read_table(FILES / "embeddings.parquet")
    model = melmask.load(FILES / "run", device="cpu")
    assert [Path(path).name for path in table["path"].to_pylist()] == [f"{number:02d}.wav" for number in range(12)]
    for number in (0, 7):
        scene = model.embed(sounds / f"{number:02d}.wav", pooling="mean", scene="mean+std").scene
        np.testing.assert_allclose(scene, table["scene"][number].as_py(), atol=1e-4)


def test_tables_are_recognized():
    for name, kept in (("embeddings.parquet", False), ("frames.npz", True)):
        settings = read_settings(FILES / name)
        assert settings is not None
        assert (settings.frames, settings.files, rows_of(FILES / name)) == (kept, 13, 12)


def test_a_run_is_resumed(earlier, capsys):
    more = ["optimizer.steps=6", "run.log_interval_steps=1"]
    assert main(["pretrain", str(earlier / "store"), "--out", str(earlier / "run"), *more]) == 0
    assert "6 steps done" in capsys.readouterr().out
    assert "done" in (earlier / "run" / "index.html").read_text(encoding="utf-8")


def test_a_run_that_is_resumed_with_a_recipe_gets_advice_that_works(earlier, capsys):
    """The recipe tiny has other settings by now, and `tiny_025` is what it was."""
    toy = runpy.run_path(str(FILES.parent / "make_files_0_1_0.py"))["TOY"]
    call = ["pretrain", str(earlier / "store"), "--out", str(earlier / "run")]
    assert main([*call, "--recipe", "tiny", *toy]) == 2
    refusal = capsys.readouterr().err
    assert "began with masking.ratio = 0.75, not 0.8; " in refusal and "or leave out --recipe to resume it" in refusal
    for words in (toy, ["--recipe", "tiny_025", *toy]):
        assert main([*call, *words]) == 0
        assert "6 steps done" in capsys.readouterr().out
    assert main([*call, "--recipe", "tiny_025", *toy, "optimizer.steps=7"]) == 2
    assert "leave out --recipe" not in capsys.readouterr().err


def test_an_evaluation_is_extended(earlier, sounds, tmp_path):
    """A further protocol joins those of 0.1.0, whose scores stay as they are."""
    tasks, results = str(tmp_path / "tasks"), earlier / "results"
    assert main(["make-task", str(sounds / "labels.csv"), "--out", tasks, "--name", "tones"]) == 0
    before = json.loads((results / "results.json").read_text(encoding="utf-8"))
    words = ["evaluate", "--tasks", tasks, "--out", str(results), "--model", "logmel", "--grid-points", "1"]
    assert main([*words, "--protocol", "hear-fixed", "--head-precision", "fp32"]) == 0
    after = json.loads((results / "results.json").read_text(encoding="utf-8"))
    assert after["results"][:-1] == before["results"]
    assert after["results"][-1]["protocol"] == "hear-fixed"
    assert after["models"] == before["models"]
    assert "hear-fixed" in (results / "report.html").read_text(encoding="utf-8")


def test_a_classifier_predicts(sounds, tmp_path):
    out, model = str(tmp_path / "x.csv"), str(FILES / "classifier")
    assert main(["predict", str(sounds / "01.wav"), str(sounds / "02.wav"), "--model", model, "--out", out]) == 0
    with Path(out).open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["low", "high"]
