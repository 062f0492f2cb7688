"""Folders that jobs write to: one job at a time."""

import csv
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hear_folders import write_fold_task

import melmask
from melmask.audio.files import find_audio
from melmask.audio.parts import Sound
from melmask.classifier.finetune import finetune
from melmask.classifier.options import FinetuneConfig, FinetuneOptions
from melmask.classifier.predictions import Prediction, write_predictions
from melmask.config import FrontEndConfig
from melmask.corpus.prepare import prepare
from melmask.downstream.few_labels import few_label_curves
from melmask.downstream.probe import probe_tasks
from melmask.embedding.folder import embed_table
from melmask.errors import OutputError
from melmask.evaluate.evaluation import evaluate
from melmask.evaluate.options import EvaluateOptions
from melmask.labels.tables import read_labels
from melmask.system import files
from melmask.system.files import atomic_write, claimed
from melmask.train.pretrain import pretrain


def test_a_folder_is_one_jobs_until_that_ends(tmp_path):
    message = "another melmask is writing to .*out; wait"
    with claimed(tmp_path / "out"), pytest.raises(OutputError, match=message), claimed(tmp_path / "out"):
        pass
    with claimed(tmp_path / "out"):
        pass


def test_a_killed_job_leaves_its_folder_free(tmp_path):
    holds = (
        "import sys, pathlib, melmask.system.files as f\nwith f.claimed(pathlib.Path(sys.argv[1])): print(), input()"
    )
    words = [sys.executable, "-u", "-c", holds, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        job.stdout.readline()
        with pytest.raises(OutputError), claimed(tmp_path):
            pass
        job.send_signal(signal.SIGKILL)
        job.wait()
    with claimed(tmp_path):
        pass


def test_what_a_kill_left_half_written_goes_with_the_next_job(tmp_path):
    left, others = tmp_path / ".state.pt.123.partial", tmp_path / ".somebody-elses.partial"
    for path in (left, others):
        path.touch()
    with claimed(tmp_path):
        assert (left.exists(), others.exists()) == (False, True)


def test_one_table_is_one_jobs(tmp_path, run_folder, sound_folder):
    model, paths, out = melmask.load(run_folder, "cpu"), find_audio([sound_folder]), tmp_path / "x.parquet"
    with claimed(tmp_path / "x.parquet.parts"), pytest.raises(OutputError, match=r"writing to .*x\.parquet\.parts"):
        embed_table(model, paths, out)
    embed_table(model, paths, out)
    assert not (tmp_path / "x.parquet.parts").exists()
    assert "it was there already" not in str(embed_table(model, paths, tmp_path / "y.parquet"))
    assert "the table was there already, with the same files and settings" in str(embed_table(model, paths, out))


@pytest.mark.parametrize("name", ["x.npz", "x.parquet"])
def test_a_damaged_table_or_job_is_no_traceback(tmp_path, run_folder, sound_folder, name):
    model, paths, out = melmask.load(run_folder, "cpu"), find_audio([sound_folder]), tmp_path / name
    out.touch()
    embed_table(model, paths, out)
    out.write_bytes(out.read_bytes()[:3000])
    parts = tmp_path / f"{name}.parts"
    parts.mkdir()
    for content in ("", "[1]"):
        (parts / "job.json").write_text(content)
        with pytest.raises(OutputError, match=r"job\.json is damaged .* delete .*parts or use another --out"):
            embed_table(model, paths, out)
    # A job that has done nothing stands in nobody's way; one that has does.
    (parts / "job.json").write_text('{"pooling": "cls"}')
    (parts / "part-000000.parquet").touch()
    with pytest.raises(OutputError, match=r"belongs to a job with another .*pooling.*files; delete it"):
        embed_table(model, paths, out)
    (parts / "part-000000.parquet").unlink()
    embed_table(model, paths, out)
    assert [path.name for path in tmp_path.glob("*.parts")] == []


def test_where_a_file_system_has_no_locks_work_goes_on(tmp_path, monkeypatch):
    for error in (NotImplementedError("no flock"), OSError(errno.ENOLCK, "No locks available")):

        def acquire(*_, error=error, **__):
            raise error

        monkeypatch.setattr(files.FileLock, "acquire", acquire)
        with claimed(tmp_path):
            pass


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    target, link = tmp_path / "a" / "target.txt", tmp_path / "link.txt"
    link.symlink_to(target)
    for text in ("first", "second"):
        with atomic_write(link, "w") as file:
            file.write(text)
        assert (link.is_symlink(), target.read_text()) == (True, text)
    assert [path.name for path in target.parent.iterdir()] == ["target.txt"]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_only_a_regular_file_is_replaced(tmp_path, kind):
    path = tmp_path / "x"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(OutputError, match="x: there is something that is no regular file; choose"), atomic_write(path):
        pass
    assert path.exists()


def test_every_long_job_keeps_others_from_its_folder(store, configure, encoder, run_folder, sound_folder, tmp_path):
    out, task = tmp_path / "out", write_fold_task(tmp_path / "tasks")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label,split\na.wav,x,train\nb.wav,y,train\nc.wav,x,test\nd.wav,y,test\n")
    for name in "abcd":
        (tmp_path / f"{name}.wav").touch()
    for job in (
        lambda: prepare([sound_folder], out, FrontEndConfig()),
        lambda: pretrain(store, out, configure()),
        lambda: finetune(str(run_folder), task, out, FinetuneConfig(), FinetuneOptions(device="cpu")),
        lambda: evaluate(["logmel"], task.parent, out, EvaluateOptions(device="cpu")),
        lambda: probe_tasks(encoder, [labels], out),
        lambda: few_label_curves(encoder, [labels], out),
    ):
        with claimed(out), pytest.raises(OutputError, match="another melmask is writing to"):
            job()
    assert [path.name for path in out.iterdir()] in ([], [".lock"])


def test_a_csv_gives_back_what_was_written_and_there_is_one_writer(tmp_path):
    cells = ["=1+1", "+1", "-1", "@x", "a,b", 'a "b"', "a\r\nb", "\tx", " x ", "음 \u202e", ""]
    files.write_csv(tmp_path / "x.csv", [("path", "label"), *((cell, cell) for cell in cells)])
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == cells
    rows = [(path, Prediction(label=f"={path.name}", probability=1.0)) for path in (tmp_path / "-1.wav", Path("@.wav"))]
    write_predictions(tmp_path / "p.csv", [(Sound(path), row) for path, row in rows], events=False)
    for path, _ in rows:
        (tmp_path / path).touch()
    assert read_labels(tmp_path / "p.csv").class_names == ["=-1.wav", "=@.wav"]
    package = Path(melmask.__file__).parent
    writers = [path for path in package.rglob("*.py") if "csv.writer" in path.read_text(encoding="utf-8")]
    assert [path.name for path in writers] == ["files.py"]
