"""Files that lie or harm: crafted models, JSON, stores, tables and pipes give one line of error, or are made again."""

import dataclasses
import io
import json
import os
import shutil
import threading
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hear_folders import write_fold_task
from safetensors.torch import load_file, save_file

from melmask.checkpoint.convert import read_foreign, to_msm_mae
from melmask.checkpoint.folder import ModelCard, load_checkpoint, read_card
from melmask.classifier.finetune import _read_job
from melmask.classifier.model import load_classifier
from melmask.classifier.predictions import _read as read_journal
from melmask.cli import main
from melmask.config import DataConfig, FrontEndConfig, HardwareConfig, ModelConfig, OptimizerConfig, RunConfig
from melmask.config_text import from_dict
from melmask.corpus.store import Store, StoreFacts
from melmask.embedding import tables
from melmask.embedding.normalization import _kept
from melmask.errors import CheckpointError, ConfigError, MelmaskError, StoreError
from melmask.evaluate.embeddings import _read_part
from melmask.evaluate.results import read_report, saved_split
from melmask.evaluate.tasks import read_task
from melmask.labels.read import read_sheet
from melmask.models.network import build_network
from melmask.system.arrays import read_arrays
from melmask.system.parquet import open_parquet
from melmask.system.reading import DamagedFileError, parse_json
from melmask.train.record import RunNumbers, read_events, read_metrics, read_record, read_run_file

FILES = Path(__file__).parent / "reference" / "files-0.1.0"
CHECKPOINT = FILES / "run" / "checkpoints" / "step-0000006"


@pytest.fixture
def files(tmp_path):
    """A copy of what release 0.1.0 wrote, and a task, to be damaged."""
    shutil.copytree(FILES, tmp_path / "files")
    write_fold_task(tmp_path / "files" / "task")
    return tmp_path / "files"


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 1000
    return text


# ---- JSON

# A file, and what reads it.
JSON_FILES = {
    "run/checkpoints/step-0000006/config.json": lambda f: read_card(f / "run/checkpoints/step-0000006"),
    "run/run.json": lambda f: (read_run_file(f / "run"), read_record(f / "run", RunNumbers(f / "run"))),
    "run/metrics.jsonl": lambda f: (read_metrics(f / "run"), RunNumbers(f / "run").read()),
    "run/events.jsonl": lambda f: read_events(f / "run"),
    "store/store.json": lambda f: StoreFacts.read(f / "store"),
    "classifier/classifier/classifier.json": lambda f: load_classifier(f / "classifier", "cpu"),
    "classifier/finetune.json": lambda f: _read_job(f / "classifier"),
    "results/results.json": lambda f: read_report(f / "results"),
    "results/models/run/tones-v1-full/knn/test.json": lambda f: saved_split(
        f / "results", f / "results/models/run/tones-v1-full/knn/test.json", "x"
    ),
    "task/task_metadata.json": lambda f: read_task(f / "task"),
    "task/fold00.json": lambda f: read_task(f / "task"),
    "task/groups.json": lambda f: read_task(f / "task"),
    "labels.jsonl": lambda f: read_sheet(f / "labels.jsonl"),
    "x.statistics.json": lambda f: _kept(f / "x.statistics.json", {}),
    "half.parquet.parts/job.json": lambda f: tables.TableJob(
        f / "half.parquet", [], tables.read_settings(FILES / "embeddings.parquet")
    ),
    ".x.csv.partial.jsonl": lambda f: read_journal(f / ".x.csv.partial.jsonl", "[]"),
}
NASTY = {
    "deep list": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "as deep as Python reads": "[" * 500 + "]" * 500,
    "long number": "9" * 5000,
    "number beyond floats": "9" * 400,
    "infinite": "1e999",
    "NaN": "NaN",
    "text": '"\\ud800"',
    "list": "[1, null]",
    "object": '{"x": null}',
    "key twice": '{"format": "melmask-model", "format": "x"}',
    "no JSON": "{",
    "empty": "",
    "other encoding": "\xff\xfe",
}


def given_or_refused(read, folder):
    """Reading gives something, or an error of one line; any other exception is the test's."""
    try:
        read(folder)
    except MelmaskError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_crafted_json_file_is_read_or_refused_in_one_line(files, name):
    path, read = files / name, JSON_FILES[name]
    path.parent.mkdir(exist_ok=True)
    good = json.loads(path.read_text()) if path.suffix == ".json" and path.exists() else {}
    for nasty in NASTY.values():
        contents = [nasty, f"[]\n{nasty}\n"]
        # The same in the place of each value, so that every one of them meets a wrong type.
        contents += [
            json.dumps({**good, key: "<here>"}).replace('"<here>"', nasty or "null") for key in (*good, "version")
        ]
        for content in contents:
            path.write_bytes(content.encode("latin-1"))
            given_or_refused(read, files)


@pytest.mark.parametrize("nasty", ["deep list", "deep object", "as deep as Python reads", "long number", "key twice"])
def test_json_that_python_reads_or_stumbles_over_is_damaged(nasty):
    with pytest.raises(DamagedFileError) as error:
        parse_json(NASTY[nasty])
    one_line(error)


def test_json_of_usual_depth_and_size_is_read():
    content = {"a": [1, -2.5, None, True, {"b": [[["ü"]]]}], "n": 10**250}
    assert parse_json(json.dumps(content)) == content
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(content).encode()) == content


# ---- models

LIES = [
    *(("model", key, 10**5) for key in ("depth", "width", "decoder_depth", "decoder_width")),
    *(("model", key, 10**9) for key in ("depth", "frames", "mels", "patch_frames", "heads")),
    *(("model", key, 10**200) for key in ("depth", "frames", "width")),
    *(("model", key, value) for key in ("depth", "width", "heads", "decoder_heads") for value in (7, 256, 1000)),
    *(("model", key, 0) for key in ("patch_mels", "patch_frames", "mels", "frames", "width", "depth", "heads")),
    *(("front_end", key, 10**7 + 2) for key in ("n_fft", "sample_rate_hz", "hop_samples", "mels", "win_samples")),
    *(("front_end", key, 0) for key in ("n_fft", "sample_rate_hz", "hop_samples", "mels", "win_samples")),
    *(("front_end", "max_hz", value) for value in (float("nan"), float("inf"), 1e30)),
    *(("statistics", "std", value) for value in (float("nan"), float("inf"), 0.0, -1.0, "x", [])),
]


@pytest.mark.parametrize(("section", "key", "value"), LIES)
def test_a_configuration_that_lies_is_refused_before_memory_is_made_for_it(files, section, key, value):
    folder = files / CHECKPOINT.relative_to(FILES)
    card = json.loads((folder / "config.json").read_text())
    card[section][key] = value
    if key == "mels":
        card["model"]["mels"] = card["front_end"]["mels"] = value
    (folder / "config.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=rf"(model|{section})\.|does not fit its architecture in ") as error:
        load_checkpoint(folder)
    one_line(error)


BOUNDED = [
    *((FrontEndConfig, {key: value}) for key, value in {"n_fft": 1 << 16, "mels": 1025, "hop_samples": 1}.items()),
    *((FrontEndConfig, {"sample_rate_hz": rate}) for rate in (10, 20_000_000)),
    *((ModelConfig, {key: 1 << 20}) for key in ("depth", "width", "decoder_depth", "decoder_width")),
    (ModelConfig, {"frames": 1 << 20, "patch_frames": 1}),
    (ModelConfig, {"frames": 1 << 21}),
    (DataConfig, {"batch_size": 10**9}),
    (OptimizerConfig, {"steps": 10**13}),
    (RunConfig, {"log_interval_steps": 10**20}),
    (HardwareConfig, {"micro_batch": 10**20}),
]


@pytest.mark.parametrize(("kind", "changes"), BOUNDED)
def test_every_setting_has_a_bound_that_the_error_names(kind, changes):
    with pytest.raises(ConfigError, match=next(iter(changes))) as error:
        from_dict(kind, {**dataclasses.asdict(kind()), **changes})
    one_line(error)


NO_WEIGHTS = {
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "complex": lambda t: t.to(torch.complex64),
    "integers": lambda t: t.to(torch.int32),
    "booleans": lambda t: t > 0,
    "NaN": lambda t: torch.full_like(t, float("nan")),
    "infinite": lambda t: torch.full_like(t, float("inf")),
    "beyond float32": lambda t: torch.full_like(t, 1e300, dtype=torch.float64),
    "another shape": lambda t: t[None].clone(),
    "empty": lambda t: t[:0].clone(),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
@pytest.mark.parametrize(
    ("place", "name"),
    [("model.safetensors", "encoder.norm.weight"), ("head.safetensors", "linear.bias"), ("head.safetensors", "std")],
)
def test_weights_that_are_none_are_refused_by_name(files, place, name, kind):
    path = files / "classifier" / "classifier" / place
    weights = load_file(path)
    save_file({**weights, name: NO_WEIGHTS[kind](weights[name])}, path)
    with pytest.raises(CheckpointError, match=rf"{name}|does not fit its encoder") as error:
        load_classifier(files / "classifier", "cpu")
    one_line(error)


def test_deviations_of_zero_are_refused(files):
    path = files / "classifier" / "classifier" / "head.safetensors"
    weights = load_file(path)
    save_file({**weights, "std": torch.zeros_like(weights["std"])}, path)
    with pytest.raises(CheckpointError, match="standard deviations of 0"):
        load_classifier(files / "classifier", "cpu")


NO_PLAIN_TENSORS = {
    **{kind: make for kind, make in NO_WEIGHTS.items() if kind != "another shape"},
    "expanded": lambda t: torch.zeros(1).expand(t.shape),
    "expanded to all memory": lambda t: torch.zeros(1).expand(10**7, *t.shape),
    "without data": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "one number": lambda t: torch.tensor(1.0),
    "a dimension more": lambda t: t[None].clone(),
    "a dimension fewer": lambda t: t.flatten(),
    "patches without height": lambda t: t[..., :0, :].clone() if t.ndim > 1 else t[:0],
    "half of it": lambda t: t[: len(t) // 2].clone(),
}
OF_ANOTHER_FORM = ("one number", "a dimension more", "a dimension fewer", "half of it")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.norm1.weight", "cls_token")
        for kind in NO_PLAIN_TENSORS
        # A token is read in any form that has its values.
        if kind not in OF_ANOTHER_FORM or name in ("patch_embed.proj.weight", "pos_embed")
    ],
)
def test_tensors_of_other_kinds_are_refused_in_one_line(tmp_path, name, kind):
    config = ModelConfig(width=64, heads=1, depth=1, frames=64, decoder_width=64, decoder_heads=1, decoder_depth=1)
    state = to_msm_mae(build_network(config), ModelCard(model=config))
    torch.save(state, tmp_path / "good.pth")
    read_foreign(tmp_path / "good.pth")
    torch.save({**state, name: NO_PLAIN_TENSORS[kind](state[name])}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as error:
        read_foreign(tmp_path / "x.pth")
    one_line(error)


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    torch.save({"patch_embed.proj.weight": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
    packed = zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, packed:
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    with pytest.raises(CheckpointError, match="cut off or not a torch file"):
        read_foreign(tmp_path / "x.pth")


# ---- stores

_ROWS = ("path", "first_frame", "frames", "duration_s", "error")


def _column(name, change):
    def damage(table):
        values = change(table[name].to_pylist())
        return table.set_column(table.column_names.index(name), name, pa.array(values))

    return damage


def _facts(change):
    def damage(table):
        facts = json.loads(table.schema.metadata[b"melmask-store"])
        text = change(facts)
        return table.replace_schema_metadata({b"melmask-store": text if isinstance(text, str) else json.dumps(text)})

    return damage


STORES = {
    **{f"no {name}": lambda t, name=name: t.drop_columns([name]) for name in _ROWS},
    **{f"empty {name}": _column(name, lambda v: [None, *v[1:]]) for name in _ROWS[:4]},
    **{f"all of {name} empty": _column(name, lambda v: [None] * len(v)) for name in _ROWS[:4]},
    **{f"texts for {name}": _column(name, lambda v: ["x"] * len(v)) for name in _ROWS[1:4]},
    "negative frames": _column("frames", lambda v: [-v[0], *v[1:]]),
    "frames that cancel": _column("frames", lambda v: [v[0] + 10**6, v[1] - 10**6, *v[2:]]),
    "frames that wrap": _column("frames", lambda v: [2**62, 2**62, 2**62, 2**62, *v[4:]]),
    "offset beyond the data": _column("first_frame", lambda v: [10**9, *v[1:]]),
    "negative offset": _column("first_frame", lambda v: [-5, *v[1:]]),
    "duration NaN": _column("duration_s", lambda v: [float("nan"), *v[1:]]),
    "no facts": lambda t: t.replace_schema_metadata(None),
    "facts no JSON": _facts(lambda f: "{"),
    "facts deep": _facts(lambda f: "[" * 100_000),
    "facts a list": _facts(lambda f: []),
    "no moments": _facts(lambda f: {**f, "moments": None}),
    "infinite moments": _facts(lambda f: {**f, "moments": {"count": 1, "mean": float("inf"), "squares": 1.0}}),
    "negative moments": _facts(lambda f: {**f, "moments": {"count": -1, "mean": 0.0, "squares": 1.0}}),
    "other moments": _facts(lambda f: {**f, "moments": {"count": "x"}}),
    "no front end": _facts(lambda f: {**f, "front_end": {"mels": "x"}}),
    "infinite version": _facts(lambda f: json.dumps(f).replace('"version": 1', '"version": 1e999')),
}


@pytest.mark.parametrize("kind", STORES)
def test_an_index_that_lies_is_refused_in_one_line(files, kind):
    path = files / "store" / "shard-00000.parquet"
    pq.write_table(STORES[kind](pq.read_table(path)), path)
    with pytest.raises(StoreError) as error:
        Store(files / "store")
    one_line(error)


def test_a_store_that_lies_gives_one_line_in_every_command(files, tmp_path, capsys):
    path = files / "store" / "shard-00000.parquet"
    pq.write_table(STORES["negative frames"](pq.read_table(path)), path)
    for words in (["pretrain"], ["bench", "tiny", "--store"]):
        out = [] if "bench" in words else ["--out", str(tmp_path / "run")]
        assert main([*words, str(files / "store"), *out]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert "shard-00000.parquet" in line


def test_a_shard_of_another_size_is_refused(files):
    for size in (0, 100, 1 << 20):
        os.truncate(files / "store" / "shard-00000.f16", size)
        with pytest.raises(StoreError, match=f"has {size} bytes, expected"):
            Store(files / "store")


# ---- pipes

PIPES = {
    **JSON_FILES,
    "run/checkpoints/step-0000006/model.safetensors": lambda f: load_checkpoint(f / "run/checkpoints/step-0000006"),
    "classifier/classifier/head.safetensors": lambda f: load_classifier(f / "classifier", "cpu"),
    "store/shard-00000.parquet": lambda f: Store(f / "store"),
    "store/shard-00000.f16": lambda f: Store(f / "store"),
    "x.pth": lambda f: read_foreign(f / "x.pth"),
    "labels.csv": lambda f: read_sheet(f / "labels.csv"),
    "task/labelvocabulary.csv": lambda f: read_task(f / "task"),
    "embeddings.parquet": lambda f: tables.read_settings(f / "embeddings.parquet"),
    "frames.npz": lambda f: (tables.read_settings(f / "frames.npz"), tables.rows_of(f / "frames.npz")),
    "cache.npz": lambda f: _read_part(f / "cache.npz", 1),
    "run/snapshot.pt": lambda f: main(["pretrain", str(f / "store"), "--out", str(f / "run")]),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes among files")
@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_in_the_place_of_a_file_does_not_hang(files, name):
    path = files / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)

    done, waited = threading.Event(), threading.Event()

    def open_other_end():
        """Let go whoever waits for the pipe; a signal would not end that where Arrow waits."""
        while not done.wait(0.1 if waited.is_set() else 30):
            waited.set()
            # Without somebody who reads, a pipe cannot be opened to be written.
            with suppress(OSError):
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))

    helper = threading.Thread(target=open_other_end)
    helper.start()
    try:
        given_or_refused(PIPES[name], files)
    finally:
        done.set()
        helper.join()
    assert not waited.is_set(), f"{name} is waited for"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there are no devices among files")
def test_a_device_in_the_place_of_a_file_is_not_read():
    for read in (read_sheet, read_foreign):
        with pytest.raises(MelmaskError, match="pipe or device"):
            read(Path("/dev/zero"))


def test_a_parquet_file_whose_name_is_not_utf_8_is_read(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.parquet"))
    try:
        path.write_bytes(_as_parquet(pa.table({"path": ["x"]})))
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    with open_parquet(path) as parquet:
        assert parquet.read().to_pydict() == {"path": ["x"]}


# ---- what an interrupted job leaves

HALF_WRITTEN = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "without end": lambda content: content[:-9],
    "another table": lambda content: _as_parquet(pa.table({"path": ["x"]})),
}


def _as_parquet(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", HALF_WRITTEN)
def test_a_half_written_part_is_set_aside_and_done_again(encoder, good_paths, tmp_path, monkeypatch, capsys, kind):
    from melmask.embedding.choice import FeatureChoice
    from melmask.embedding.extract import embed_files
    from melmask.embedding.folder import embed_table, table_settings

    monkeypatch.setattr(tables, "FILES_PER_PART", 1)
    out, whole = tmp_path / "e.parquet", tmp_path / "whole.parquet"
    embed_table(encoder, good_paths, whole)
    job = tables.TableJob(out, good_paths, table_settings(encoder, good_paths, FeatureChoice()))
    job.write(job.todo(), embed_files(encoder, good_paths))
    part = sorted((tmp_path / "e.parquet.parts").glob("part-*"))[1]
    part.write_bytes(HALF_WRITTEN[kind](part.read_bytes()))
    capsys.readouterr()
    embed_table(encoder, good_paths, out)
    assert f"{part} is damaged or cut off; it is set aside" in capsys.readouterr().err
    assert pq.read_table(out).equals(pq.read_table(whole))
    # And a table that is itself half-written is rebuilt.
    for name in ("whole.parquet", "whole.npz"):
        embed_table(encoder, good_paths, tmp_path / name)
        (tmp_path / name).write_bytes(HALF_WRITTEN[kind]((tmp_path / name).read_bytes()))
        assert embed_table(encoder, good_paths, tmp_path / name).sound_s > 0


ARRAYS = {
    "empty file": b"",
    "no archive": b"\x93NUMPY\x01\x00",
    "another array": {"y": np.zeros(3)},
    "objects": {"x": np.array([None, {}], dtype=object)},
}


@pytest.mark.parametrize("kind", [*ARRAYS, "header that lies"])
def test_an_npz_file_that_is_none_is_damaged(tmp_path, kind):
    path = tmp_path / "x.npz"
    if kind == "header that lies":
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", buffer.getvalue())
    elif isinstance(ARRAYS[kind], bytes):
        path.write_bytes(ARRAYS[kind])
    else:
        np.savez(path, **ARRAYS[kind])
    with pytest.raises(DamagedFileError):
        read_arrays(path, ["x"])


# ---- numbers in tables

LONG = {"digits": "7" * 5000, "more digits": "8" * 5000, "signed": "-" + "9" * 5000, "zeros": "0" * 5000 + "1"}


@pytest.mark.parametrize("command", ["make-task", "probe", "few-labels", "finetune"])
def test_labels_of_thousands_of_digits_stop_no_command(run_folder, sound_folder, good_paths, tmp_path, capfd, command):
    rows = [f"{path},{label}" for path, label in zip(good_paths * 4, list(LONG.values()) * 10, strict=False)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label", *dict.fromkeys(rows)]) + "\n")
    out, model = ["--out", str(tmp_path / "out")], ["--model", str(run_folder)]
    labels = ["--labels", str(table), "--device", "cpu"]
    words = {
        "make-task": ["make-task", str(table), *out, "--name", "toy", "--folds", "3"],
        "probe": ["probe", *model, *labels, *out],
        "few-labels": ["few-labels", *model, *labels, *out, "--draws", "1"],
        "finetune": ["finetune", str(run_folder), str(table), *out, "epochs=1"],
    }[command]
    status = main(words)
    assert status in (0, 2)
    assert "Traceback" not in capfd.readouterr().err
