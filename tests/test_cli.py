"""The command line as a user types it: the main job at toy size, and every kind of bad input."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from melmask.cli import main

RATE_HZ = 16000
TOY = [
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "model.decoder_width=16",
    "model.decoder_depth=1",
    "model.decoder_heads=2",
    "model.frames=64",
    "data.batch_size=8",
    "optimizer.steps=6",
    "optimizer.warmup_steps=2",
    "run.log_interval_steps=2",
    "run.picture_interval_steps=0",
    "hardware.threads=1",
]


def tone(seconds, hz, rate_hz=RATE_HZ):
    return 0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)


@pytest.fixture
def run(capsys):
    """Run one command in this process; returns (status, standard output, standard error)."""

    def call(*arguments):
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def refused(run):
    """Run a command that must fail with status 2 and one line on standard error; returns the line."""

    def call(*arguments):
        status, _, err = run(*arguments)
        last = err.strip().splitlines()[-1]
        assert status == 2 and "Traceback" not in err
        assert last.startswith("melmask") and "error: " in last
        return last

    return call


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A folder of eight good files and the bad ones, with labels of the good ones."""
    folder = tmp_path_factory.mktemp("sounds")
    for k in range(8):
        soundfile.write(folder / f"tone{k}.wav", tone(0.9 + 0.1 * k, 200 if k % 2 else 900), RATE_HZ)
    lines = [f"tone{k}.wav,{'low' if k % 2 else 'high'},{k // 4}" for k in range(8)]
    (folder / "labels.csv").write_text("path,label,fold\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def job(sounds, tmp_path_factory):
    """The store and the run of the toy job."""
    work = tmp_path_factory.mktemp("job")
    assert main(["prepare", str(sounds), "--out", str(work / "store")]) == 0
    assert main(["pretrain", str(work / "store"), "--out", str(work / "run"), *TOY]) == 0
    return work


def write_bad_file(kind, folder):
    path = folder / f"bad_{kind}.wav"
    if kind == "text":
        path.write_text("this is no sound\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no_samples":
        soundfile.write(path, np.zeros(0), RATE_HZ)
    elif kind == "nan":
        soundfile.write(path, np.r_[tone(0.5, 300), np.nan, tone(0.5, 300)], RATE_HZ, subtype="FLOAT")
    elif kind == "truncated_flac":
        path = path.with_suffix(".flac")
        soundfile.write(path, np.random.default_rng(0).normal(size=RATE_HZ) * 0.1, RATE_HZ)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


BAD_KINDS = ["text", "empty", "no_samples", "nan", "truncated_flac"]


def test_help_waits_neither_for_torch_nor_for_numpy():
    code = (
        "import sys, contextlib\n"
        "from melmask.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pretrain" in out


def test_the_toy_job_writes_embeddings_that_describe_themselves(job, sounds, run, tmp_path):
    out = tmp_path / "x.parquet"
    status, text, _ = run("embed", sounds, "--model", job / "run", "--out", out, "--frames", "--pooling", "mean")
    assert status == 0 and "8 files, 64 dimensions" in text
    table = pq.read_table(out)
    settings = json.loads(table.schema.metadata[b"melmask"])
    assert settings["pooling"] == "mean" and settings["step_ms"] == 160 and settings["first_ms"] == 75
    row = table.to_pylist()[0]
    assert row["path"].endswith("tone0.wav") and abs(row["duration_s"] - 0.9) < 0.02
    frames = np.array(row["frames"])
    assert frames.shape == (6, 32) and len(row["scene"]) == 64


def test_npz_and_parquet_hold_the_same_numbers(job, sounds, run, tmp_path):
    for name in ("x.npz", "x.parquet"):
        assert run("embed", sounds, "--model", job / "run", "--out", tmp_path / name, "--frames")[0] == 0
    arrays = np.load(tmp_path / "x.npz")
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert np.array_equal(arrays["scene"], np.array([row["scene"] for row in rows], dtype=np.float32))
    first, last = arrays["frame_offsets"][3:5]
    assert np.array_equal(arrays["frames"][first:last], np.array(rows[3]["frames"], dtype=np.float32))


def test_probe_writes_scores_beside_both_baselines(job, sounds, run, tmp_path):
    out = tmp_path / "probe"
    arguments = ("--labels", sounds / "labels.csv", "--out", out)
    status, text, _ = run("probe", "--model", job / "run", *arguments)
    assert status == 0 and "log-mel mean+std" in text and "untrained network" in text
    scores = json.loads((out / "probe.json").read_text())["tasks"]["labels"]["scores"]
    assert set(scores) == {"log-mel mean+std", "untrained network", "pre-trained"}
    assert scores["log-mel mean+std"]["linear"]["accuracy"] == 1.0, "two tones differ in their spectrum"
    assert (out / "labels.png").stat().st_size > 5000


_ENVIRONMENT = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE='abc', expected a number from 1 on; start the run with torchrun, or unset"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0', expected a number from 1 on"),
        ({"WORLD_SIZE": "9" * 5000}, "expected a number from 1 on"),
        ({"RANK": "-1"}, "RANK='-1', expected 0; start the run with torchrun, or unset"),
        ({"RANK": "1"}, "RANK='1', expected 0; start the run with torchrun"),
        ({**_ENVIRONMENT, "RANK": "2"}, "RANK='2', expected 0 to 1; start the run with torchrun"),
        ({**_ENVIRONMENT, "MASTER_PORT": "abc"}, "MASTER_PORT='abc', expected 1 to 65535"),
        ({**_ENVIRONMENT, "MASTER_PORT": "70000"}, "MASTER_PORT='70000', expected 1 to 65535"),
        ({**_ENVIRONMENT, "LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE='0', expected a number from 1 on"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 but RANK is not set; start the run with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE is 2 but MASTER_ADDR is not set"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_refused(job, refused, monkeypatch, tmp_path, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert words in refused("pretrain", job / "store", "--out", tmp_path / "run", *TOY)


def test_settings_alone_are_of_the_default_recipe(run):
    assert run("settings", "optimizer.steps=3000") == run("settings", "tiny", "optimizer.steps=3000")
    status, text, _ = run("settings", "optimizer.steps=3000", "run.seed=5")
    assert status == 0 and re.search(r"optimizer.steps += 3000\b", text) and re.search(r"run.seed += 5\b", text)


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_one_bad_file_is_listed_and_the_others_are_kept(kind, job, sounds, run, tmp_path):
    bad = write_bad_file(kind, tmp_path)
    out = tmp_path / "x.npz"
    status, text, _ = run("embed", bad, sounds, "--model", job / "run", "--out", out)
    assert status == 0 and "1 file could not be embedded" in text
    assert len(np.load(out)["path"]) == 8
    assert bad.name in (tmp_path / "x.npz.failed.csv").read_text()
    status, text, _ = run("prepare", bad, sounds, "--out", tmp_path / "store")
    assert status == 0 and "8 files" in text
    assert bad.name in (tmp_path / "store" / "failed.csv").read_text()


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_nothing_but_bad_files_is_one_line_and_status_2(kind, job, refused, tmp_path):
    bad = write_bad_file(kind, tmp_path)
    assert bad.name in refused("embed", bad, "--model", job / "run", "--out", tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    assert "failed.csv" in refused("prepare", bad, "--out", tmp_path / "store")


@pytest.mark.parametrize(
    "samples, rate_hz",
    [(tone(0.01, 300), RATE_HZ), (np.zeros(RATE_HZ), RATE_HZ), (np.stack([tone(1, 300, 96000)] * 8, 1), 96000)],
    ids=["10 ms", "silence", "8 channels at 96 kHz"],
)
def test_odd_but_sound_files_are_embedded(samples, rate_hz, job, run, tmp_path):
    soundfile.write(tmp_path / "odd.wav", samples, rate_hz)
    status, _, _ = run("embed", tmp_path / "odd.wav", "--model", job / "run", "--out", tmp_path / "x.npz")
    scene = np.load(tmp_path / "x.npz")["scene"]
    assert status == 0 and scene.shape == (1, 320) and np.isfinite(scene).all()


def test_a_store_of_silence_alone_is_refused(refused, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE_HZ), RATE_HZ)
    assert "silent" in refused("prepare", tmp_path / "silent.wav", "--out", tmp_path / "store")


def test_an_empty_folder_and_a_missing_one_are_refused(job, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no sound files" in refused("prepare", tmp_path / "empty", "--out", tmp_path / "store")
    assert "does not exist" in refused("prepare", tmp_path / "nowhere", "--out", tmp_path / "store")
    out = tmp_path / "x.npz"
    assert "no sound files" in refused("embed", tmp_path / "empty", "--model", job / "run", "--out", out)


def test_words_in_the_wrong_place_are_refused_with_the_right_one(job, sounds, refused, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n")
    assert "give the model first: melmask finetune MODEL LABELS" in refused(
        "finetune", table, job / "run", "--out", tmp_path / "x"
    )
    for out in (table, table / "below"):
        assert "it or a folder above it is a file; choose a folder" in refused("prepare", sounds, "--out", out)
    assert table.read_text() == "path,label\n"


def test_a_table_that_is_read_is_not_replaced_by_what_is_made_of_it(job, sounds, refused, tmp_path):
    first = next(sounds.rglob("*.wav"))
    csv_table, parquet = tmp_path / "labels.csv", tmp_path / "labels.parquet"
    csv_table.write_text(f"path,label\n{first},x\n")
    pq.write_table(pa.table({"path": [str(first)], "label": ["x"]}), parquet)
    before = parquet.read_bytes()
    assert "is read and would be lost" in refused("embed", parquet, "--model", job / "run", "--out", parquet)
    assert "is read and would be lost" in refused("predict", csv_table, "--model", job / "run", "--out", csv_table)
    assert (csv_table.read_text(), parquet.read_bytes()) == (f"path,label\n{first},x\n", before)


def test_a_store_made_with_another_front_end_is_refused(job, sounds, refused):
    line = refused("prepare", sounds, "--out", job / "store", "hop_samples=320")
    assert "another front end" in line and "hop_samples 160 there, 320 asked for" in line


def test_a_model_that_does_not_fit_the_store_is_refused(sounds, run, refused, tmp_path):
    assert run("prepare", sounds, "--out", tmp_path / "store", "mels=64")[0] == 0
    line = refused("pretrain", tmp_path / "store", "--out", tmp_path / "run", *TOY)
    assert "64 mel bands" in line


def test_a_folder_without_a_store_is_refused(sounds, refused, tmp_path):
    assert "is not a store" in refused("pretrain", sounds, "--out", tmp_path / "run")
    assert "is not a store" in refused("pretrain", tmp_path / "nowhere", "--out", tmp_path / "run")


@pytest.mark.parametrize("command", ["embed", "probe"])
def test_a_checkpoint_cut_in_half_is_refused(command, job, sounds, refused, tmp_path):
    whole = sorted((job / "run" / "checkpoints").glob("step-*"))[-1]
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text((whole / "config.json").read_text())
    weights = (whole / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    inputs = {"embed": [sounds, "--out", tmp_path / "x.npz"], "probe": ["--labels", sounds / "labels.csv"]}
    assert "cut off or damaged" in refused(command, *inputs[command], "--model", half)


def test_what_is_no_model_is_refused(sounds, refused, tmp_path):
    out = tmp_path / "x.npz"
    assert "does not exist" in refused("embed", sounds, "--model", tmp_path / "nowhere", "--out", out)
    assert "no checkpoint" in refused("embed", sounds, "--model", sounds, "--out", out)
    assert "torch" in refused("embed", sounds, "--model", sounds / "labels.csv", "--out", out)


@pytest.mark.parametrize(
    "setting, says",
    [
        ("optimizer.learning_rat=1", "nearest is 'optimizer.learning_rate'"),
        ("learning_rate=1", "nearest is 'optimizer.learning_rate'"),
        ("optimizer.steps=many", "expected a whole number"),
        ("model.patch_mels=7", "divisor of model.mels"),
        ("masking.ratio=1.5", "between 0 and 1"),
        ("hardware.threads=-1", "hardware.threads is -1; give 0 to 1024"),
        ("run.snapshot_interval_s=-1", "run.snapshot_interval_s is -1.0; give 0 or more"),
        ("hardware.precision=fp16", "'fp32'"),
        ("--optimizer.learning_rat=1", "nearest is 'optimizer.learning_rate'"),
        ("optimizer.steps", "unrecognized argument"),
    ],
)
def test_a_wrong_setting_says_what_is_known(setting, says, job, refused, tmp_path):
    assert says in refused("pretrain", job / "store", "--out", tmp_path / "run", setting)


def test_an_unknown_recipe_and_device_are_refused(job, refused, tmp_path):
    assert "nearest is 'tiny'" in refused("pretrain", job / "store", "--recipe", "tyny", "--out", tmp_path / "run")
    line = refused("pretrain", job / "store", "--out", tmp_path / "run", *TOY, "hardware.device=cuda:7")
    assert "this machine lacks" in line


def test_wrong_layer_pooling_and_output_name_are_refused(job, sounds, refused, tmp_path):
    call = ("embed", sounds, "--model", job / "run", "--out")
    assert "layers 1 to 2" in refused(*call, tmp_path / "x.npz", "--layer", 3)
    assert "known are concat" in refused(*call, tmp_path / "x.npz", "--pooling", "max")
    assert ".parquet or .npz" in refused(*call, tmp_path / "x.csv")


def test_an_output_that_cannot_be_written_is_refused(job, sounds, refused, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file, where a folder is wanted")
    assert "cannot write" in refused("prepare", sounds, "--out", blocked / "store")
    assert "cannot write" in refused("pretrain", job / "store", "--out", blocked / "run", *TOY)
    assert "cannot write" in refused("embed", sounds, "--model", job / "run", "--out", blocked / "x.npz")
    call = ("probe", "--labels", sounds / "labels.csv", "--model", job / "run")
    assert "cannot write" in refused(*call, "--out", blocked / "probe")
    assert "cannot write" in refused("demo", "--out", blocked / "demo")


def test_labels_that_cannot_be_used_are_refused(job, refused, tmp_path):
    call = ("probe", "--model", job / "run", "--out", tmp_path / "probe", "--labels")
    (tmp_path / "wrong.csv").write_text("path,lable\na.wav,x\n")
    assert "label" in refused(*call, tmp_path / "wrong.csv")
    assert "wrong.csv" in refused(*call, tmp_path / "wrong.csv")
    rows = "".join(f"row{k}.wav,{k % 2}\n" for k in range(10))
    (tmp_path / "rows.csv").write_text("path,label\n" + rows)
    assert "--audio-root" in refused(*call, tmp_path / "rows.csv", "--scheme", "random")
    (tmp_path / "row3.wav").write_text("no sound")
    assert "none of 10 files" in refused(*call, tmp_path / "rows.csv", "--scheme", "random")


def test_a_run_that_has_begun_keeps_what_decides_its_result(job, refused, run):
    call = ("pretrain", job / "store", "--out", job / "run")
    assert "began with optimizer.steps = 6, not 7" in refused(*call, "optimizer.steps=7")
    status, out, _ = run(*call, "hardware.readers=1")
    assert status == 0 and "6 steps done" in out


def test_a_signal_saves_the_run_and_says_how_to_resume(job, tmp_path):
    arguments = [sys.executable, "-m", "melmask", "pretrain", str(job / "store"), "--out", str(tmp_path / "run")]
    settings = [s for s in TOY if not s.startswith("optimizer.steps")] + ["optimizer.steps=100000"]
    process = subprocess.Popen([*arguments, *settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in err
    assert "resume with: melmask pretrain" in out
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")) and (tmp_path / "run" / "snapshot.pt").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_job_says_how_to_resume(number, monkeypatch, capsys):
    def job(*_):
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr("melmask.cli.settings.describe", job)
    monkeypatch.setattr("melmask.labels.sources.find_sounds", job)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["settings", "tiny"]) == 128 + number
    assert capsys.readouterr().err == "melmask: stopped; run the same command again to start over\n"
    assert main(["predict", "x.wav", "--model", "m", "--out", "x.csv"]) == 128 + number
    assert capsys.readouterr().err == "melmask: stopped; run the same command again to resume\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_run_may_start_from_or_be_watched_with_is_checked_first(job, refused, tmp_path):
    start = ["pretrain", job / "store", "--out", tmp_path / "new"]
    assert "does not exist" in refused(*start, "--init", tmp_path / "nowhere")
    assert "set model.width=32" in refused(*start, "--init", job / "run", *TOY, "model.width=64")
    assert "no such file" in refused(*start, "--monitor", tmp_path / "nowhere.csv", "run.picture_interval_steps=1")
    monitor = ("--monitor", job / "labels.csv", "run.picture_interval_steps=0")
    assert "set it, or drop --monitor" in refused(*start, *monitor)
    assert not (tmp_path / "new").exists()


def test_bench_says_how_fast_and_where_a_step_goes(run, refused, tmp_path):
    small = ["model.width=32", "model.heads=2", "model.depth=1", "data.batch_size=2", "hardware.threads=1"]
    status, text, _ = run("bench", "tiny", "--seconds", "0", "--json", tmp_path / "x.json", *small)
    assert status == 0
    assert all(word in text for word in ("crops/s", "of the peak", "encoder", "backward", "optimizer"))
    assert json.loads((tmp_path / "x.json").read_text())["config"]["model"]["width"] == 32
    assert "nearest is 'tiny'" in refused("bench", "tinny")
    assert "is not a store" in refused("bench", "tiny", "--store", tmp_path)


def test_a_scene_that_does_not_exist_is_refused(job, sounds, refused, tmp_path):
    text = refused("embed", sounds, "--model", job / "run", "--out", tmp_path / "x.npz", "--scene", "median")
    assert "known are mean, mean+std" in text


def test_convert_deletes_nothing_that_is_not_its_own(run_folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years")
    # Models of other programs have files of the same names as a checkpoint.
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).write_text("{}")
    for target in (out, run_folder, other):
        before = sorted(path.name for path in target.iterdir())
        assert main(["convert", str(run_folder), str(target)]) == 2
        assert "would be lost; give a new or an empty folder" in capsys.readouterr().err
        assert sorted(path.name for path in target.iterdir()) == before
    for _ in range(2):
        assert main(["convert", str(run_folder), str(tmp_path / "new")]) == 0
    capsys.readouterr()
    original = tmp_path / "a.pth"
    assert main(["convert", str(run_folder), str(original), "--to", "msm-mae"]) == 0
    content = original.read_bytes()
    assert main(["convert", str(original), str(original), "--to", "msm-mae"]) == 2
    assert "is there already, and would be lost" in capsys.readouterr().err and original.read_bytes() == content
    assert main(["convert", str(run_folder), str(tmp_path / "b.pth"), "--to", "msm-mae", "--whiten", "store"]) == 2
    assert "has no place for a whitening" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you")])
def test_out_of_memory_is_one_line(monkeypatch, capsys, error):
    def failing(_):
        raise error

    monkeypatch.setattr("melmask.cli.settings.run", failing)
    assert main(["settings", "demo"]) == 2
    assert capsys.readouterr().err.startswith("melmask: error: out of memory; use a smaller batch")


def test_a_closed_pipe_sets_the_exit_status():
    words = [sys.executable, "-m", "melmask", "settings"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    ("source", "message"),
    [("", "the value is ''; give a file or folder"), ("no\nsuch\x00", r"no\nsuch\x00 does not exist; give files")],
)
def test_one_line_is_one_line_whatever_a_name_holds(source, message, tmp_path, capsys):
    try:
        status = main(["prepare", source, "--out", str(tmp_path / "store")])
    except SystemExit as left:
        status = left.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert (error.count("\n"), "\x00" in error) == (1, False)


def test_a_run_outlives_a_closed_standard_error(job, tmp_path):
    words = shlex.join([sys.executable, "-m", "melmask", "pretrain", str(job / "store"), "--out", str(tmp_path), *TOY])
    done = subprocess.run(["sh", "-c", f"{words} 2>&-"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "snapshot.pt").exists()
