"""How files are read: each channel, played slower, and what is noted of them; files and models remember it."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from melmask.audio.files import read_audio_blocks
from melmask.audio.notes import CANCEL, DEAD, HIGH, LOUD, Listener, summary
from melmask.checkpoint.folder import read_card, save_checkpoint
from melmask.cli import main
from melmask.config import FrontEndConfig, Reading, ReadingOptions
from melmask.corpus.prepare import prepare
from melmask.corpus.store import Store
from melmask.downstream.monitor import NearestNeighbors
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.extract import embed_files
from melmask.embedding.folder import embed_sources, embed_table
from melmask.embedding.options import EmbedOptions
from melmask.embedding.reading import read_as
from melmask.embedding.tables import notes_in, read_settings, rows_of
from melmask.train.pretrain import build_card

RATE_HZ = 16000


@pytest.fixture
def folder(tmp_path, as_file, sound):
    """A stereo file, a mono file, and one that is no sound."""
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    (sounds / "a.wav").write_bytes(as_file(np.stack([sound(1, 0), sound(1, 3)], 1), subtype="FLOAT"))
    (sounds / "b.wav").write_bytes(as_file(sound(2, 1), subtype="FLOAT"))
    (sounds / "c.wav").write_text("no sound")
    return sounds


def rows(table):
    return [{k: v for k, v in row.items() if k not in ("scene", "frames")} for row in pq.read_table(table).to_pylist()]


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_each_channel_is_a_row(folder, run_folder, tmp_path, suffix):
    out = tmp_path / f"x.{suffix}"
    options = EmbedOptions(device="cpu", reading=ReadingOptions(channel="each"), frames=suffix == "npz")
    report = embed_sources([folder], run_folder, out, options)
    assert (report.files, report.failed, rows_of(out)) == (2, 1, 2)
    # The job is done, and says the same.
    again = embed_sources([folder], run_folder, out, options)
    assert (again.files, again.failed) == (2, 1)
    if suffix == "npz":
        with np.load(out) as arrays:
            scenes, channels = arrays["scene"], arrays["channel"].tolist()
            assert len(arrays["frame_offsets"]) == 4
    else:
        scenes, channels = np.stack(pq.read_table(out)["scene"].to_numpy()), [row["channel"] for row in rows(out)]
    assert channels == [1, 2, 1]
    for number in (1, 2):
        alone = tmp_path / f"{number}.parquet"
        only = EmbedOptions(device="cpu", reading=ReadingOptions(channel=str(number)))
        embed_sources([folder / "a.wav"], run_folder, alone, only)
        np.testing.assert_allclose(scenes[number - 1], pq.read_table(alone)["scene"][0].as_py(), atol=1e-6)


def test_a_store_has_a_clip_for_each_channel(folder, tmp_path):
    facts = prepare([folder], tmp_path / "each", FrontEndConfig(), shard_mb=0, reading=Reading(channel="each"))
    assert (facts.files, facts.failed, len(Store(tmp_path / "each"))) == (2, 1, 3)
    assert facts.hours == pytest.approx(4 / 3600)
    # Both channels of a file are in one shard, so that a killed job repeats both or none.
    indexes = [pq.read_table(path).to_pylist() for path in sorted((tmp_path / "each").glob("*.parquet"))]
    assert [[row["channel"] for row in rows] for rows in indexes[:2]] == [[1, 2], [1]]
    for number in "12":
        prepare([folder / "a.wav"], tmp_path / number, FrontEndConfig(), reading=Reading(channel=number))
    kept = b"".join((tmp_path / number / "shard-00000.f16").read_bytes() for number in "12")
    assert (tmp_path / "each/shard-00000.f16").read_bytes() == kept


def test_a_channel_that_cannot_be_used_costs_no_other(folder, encoder, run_folder, tmp_path, as_file, sound):
    bad = sound(1, 0)
    bad[100] = np.nan
    for name, channels in (("a.wav", [bad, sound(1, 3), bad]), ("b.wav", [bad, bad])):
        (folder / name).write_bytes(as_file(np.stack(channels, 1), subtype="FLOAT"))
    each, out = ReadingOptions(channel="each"), tmp_path / "x.parquet"
    for _ in range(2):
        report = embed_sources([folder], run_folder, out, EmbedOptions(device="cpu", reading=each))
        assert (report.files, report.failed, report.failed_channels) == (1, 2, 2)
        assert "2 channels could not be embedded, and the others of the same files are in the table" in str(report)
    assert [(row["path"][-5:], row["channel"]) for row in rows(out)] == [("a.wav", 2)]
    prepare([folder], tmp_path / "store", FrontEndConfig(), reading=Reading(channel="each"))
    facts = prepare([folder], tmp_path / "store", FrontEndConfig(), reading=Reading(channel="each"))
    assert (facts.files, facts.failed, len(Store(tmp_path / "store"))) == (1, 2, 1)
    for failures in (tmp_path / "x.parquet.failed.csv", tmp_path / "store/failed.csv"):
        with failures.open(encoding="utf-8", newline="") as file:
            found = sorted(
                (row["path"][-5:], re.findall(r"in channel \d", row["reason"])) for row in csv.DictReader(file)
            )
        two = ["in channel 1", "in channel 2"]
        assert found == [("a.wav", two[:1]), ("a.wav", ["in channel 3"]), ("b.wav", two), ("c.wav", [])]
    # One channel is taken whatever the others hold.
    (row,) = embed_files(read_as(encoder, ReadingOptions(channel="2")), [folder / "a.wav"])
    assert row.error is None


def test_sound_played_slower_is_that_of_a_lower_rate(encoder, tmp_path, as_file, sound):
    fast, slow = tmp_path / "fast.wav", tmp_path / "slow.wav"
    fast.write_bytes(as_file(sound(2, 2), RATE_HZ * 10, subtype="FLOAT"))
    slow.write_bytes(as_file(sound(2, 2), RATE_HZ, subtype="FLOAT"))
    model = read_as(encoder, ReadingOptions(expand=10.0))
    assert encoder.reading == Reading()
    expected = encoder.embed(slow)
    for found in (model.embed(fast), model.embed(sound(2, 2), RATE_HZ * 10)):
        np.testing.assert_allclose(found.scene, expected.scene, atol=1e-5)
        # Times stay those of the file.
        np.testing.assert_allclose(found.times_ms, expected.times_ms / 10)
    (row,) = embed_files(model, [fast])
    assert row.duration_s == pytest.approx(0.2)
    embed_table(model, [fast], tmp_path / "x.parquet")
    settings = read_settings(tmp_path / "x.parquet")
    assert (settings.expand, settings.step_ms) == (10, pytest.approx(16))


def test_a_store_of_slower_sound_is_that_of_a_lower_rate(tmp_path, as_file, sound):
    for name, rate_hz, expand in (("fast", RATE_HZ * 10, 10.0), ("slow", RATE_HZ, 1.0)):
        (tmp_path / f"{name}.wav").write_bytes(as_file(sound(2, 2), rate_hz, subtype="FLOAT"))
        facts = prepare([tmp_path / f"{name}.wav"], tmp_path / name, FrontEndConfig(), reading=Reading(expand=expand))
        assert facts.hours == pytest.approx(2 / expand / 3600)
    kept = [(tmp_path / name / "shard-00000.f16").read_bytes() for name in ("fast", "slow")]
    assert kept[0] == kept[1]


def test_a_monitor_reads_as_the_store_was_read(folder, tmp_path, configure):
    labels = folder / "labels.csv"
    copies = [(folder / f"{name}{number}.wav", name) for name in "ab" for number in range(4)]
    for path, name in copies:
        path.write_bytes((folder / f"{name}.wav").read_bytes())
    rows = [f"{path.name},{name},{('train', 'valid')[number % 2]}" for number, (path, name) in enumerate(copies)]
    labels.write_text("path,label,split\n" + "\n".join(rows) + "\n", encoding="utf-8")
    prepare([folder / "a.wav"], tmp_path / "store", FrontEndConfig(), reading=Reading(channel="each", expand=3.0))
    store = Store(tmp_path / "store")
    hook = NearestNeighbors(labels, store, configure("run.picture_interval_steps=2"))
    # A labeled file is one clip, played as slowly as those of the store.
    assert [logmel.shape[1] for logmel in hook._logmels[::4]] == [301, 601]
    assert store.frames.tolist() == [301, 301]


def test_a_model_remembers_how_its_store_was_read(encoder, folder, tmp_path, configure, capsys):
    reading = Reading(channel="1", expand=4.0)
    prepare([folder], tmp_path / "store", FrontEndConfig(), reading=reading)
    store = Store(tmp_path / "store")
    assert store.reading == reading
    save_checkpoint(tmp_path / "model", encoder.model, build_card(store, configure()))
    card = read_card(tmp_path / "model")
    assert card.reading == reading
    model = AudioEncoder(encoder.model, card, device="cpu")
    # Sound is played as slowly as in the training, while the channel is chosen anew.
    assert model.reading == Reading(expand=4.0)
    for options, said in (
        (ReadingOptions(channel="1"), ["sound is played 4 times slower, as in the training"]),
        (ReadingOptions(channel="1", expand=1.0), ["sound played 4 times slower, and hears it at its own speed now"]),
        (ReadingOptions(expand=4.0), ["on channel 1 of the files, and hears the mean", "is played 4 times slower"]),
    ):
        read_as(model, options)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == len(said) and all(part in line for part, line in zip(said, lines, strict=True))
    # Earlier versions refuse keys that they do not know, so ordinary models do not have this one.
    save_checkpoint(tmp_path / "plain", encoder.model, encoder.card)
    assert "reading" not in json.loads((tmp_path / "plain/config.json").read_text(encoding="utf-8"))


_NOISE = np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32) / 10


@pytest.mark.parametrize(
    ("samples", "rate_hz", "kind"),
    [
        (_NOISE[:, :2], 48000, None),
        (_NOISE, 44100, None),
        (np.stack([_NOISE[:, 0], _NOISE[:, 0]], 1), 48000, None),
        (np.stack([_NOISE[:, 0], 0.1 * _NOISE[:, 1] - _NOISE[:, 0]], 1), 48000, CANCEL),
        (np.stack([_NOISE[:, 0], -_NOISE[:, 0]], 1), 48000, CANCEL),
        (np.stack([_NOISE[:, 0], 0 * _NOISE[:, 0]], 1), 48000, DEAD),
        (0 * _NOISE[:, :2], 48000, None),
        (4 * _NOISE[:, 0], 48000, None),
        (32768 * _NOISE[:, 0], 48000, LOUD),
        (_NOISE[:, 0], 64000, HIGH),
        (_NOISE[:, 0], 256000, HIGH),
    ],
)
def test_what_is_noted_of_a_file(tmp_path, as_file, samples, rate_hz, kind):
    path = tmp_path / "x.wav"
    path.write_bytes(as_file(samples, rate_hz, subtype="FLOAT"))
    listener = Listener(Reading(), RATE_HZ)
    list(read_audio_blocks(path, RATE_HZ, listener=listener))
    assert listener.note is None if kind is None else (listener.note or "").startswith(f"{kind} (")
    # One channel cancels nothing, and nobody compares a rate with a band that was chosen.
    listener = Listener(Reading(channel="1"))
    list(read_audio_blocks(path, RATE_HZ, Reading(channel="1"), listener))
    assert bool(listener.note) == (kind == LOUD)


def test_a_model_of_a_low_band_does_not_call_every_file_too_fast(tmp_path, as_file):
    path = tmp_path / "whale.wav"
    path.write_bytes(as_file(_NOISE[:, 0], 48000))
    listener = Listener(Reading(), 2000)
    list(read_audio_blocks(path, 2000, listener=listener))
    assert listener.note is None


def test_notes_are_counted_in_two_lines():
    notes = [f"{CANCEL} (x); {HIGH} (384000 Hz, for 16000 Hz)", f"{LOUD} (x)", f"{HIGH} (250000 Hz, for 16000 Hz)"]
    levels, rates = summary(notes, "here")
    assert levels.startswith(f"2 files have notes ({CANCEL} in 1, {LOUD} in 1), see here; --channel N")
    assert rates.startswith("2 files have rates of up to 384000 Hz") and "--expand 24," in rates
    assert summary([], "here") == []
    # A model of 16 kHz hears 64 kHz of sound that is played four times slower.
    slowed = Listener(Reading(expand=4.0), 64000)
    slowed.at_rate(384000)
    assert "1 segment has rates" in (line := summary([slowed.note], "here", "segment")[0]) and "--expand 24," in line


def test_notes_are_in_tables_and_stores(folder, run_folder, tmp_path, as_file, capsys):
    (folder / "d.wav").write_bytes(as_file(np.stack([_NOISE[:, 0], -_NOISE[:, 0]], 1), 192000))
    out, store = tmp_path / "x.parquet", tmp_path / "store"
    assert main(["embed", str(folder), "--model", str(run_folder), "--out", str(out)]) == 0
    embedded = capsys.readouterr().out.splitlines()
    assert [bool(row["note"]) for row in rows(out)] == [False, False, True]
    assert len(notes_in(out)) == 1
    command = ["prepare", str(folder), "--out", str(store)]
    # A rerun reads nothing, and reports the same.
    for _ in range(2):
        assert main(command) == 0
        prepared = capsys.readouterr().out.splitlines()
        for lines in (embedded, prepared):
            assert [line for line in lines if "1 file has notes (channels cancel" in line]
            assert [line for line in lines if "1 file has rates of up to 192000 Hz" in line]
        with (store / "notes.csv").open(encoding="utf-8", newline="") as file:
            assert [row["path"] for row in csv.DictReader(file)] == [str(folder / "d.wav")]
    # The other shards are as before notes came: this one has no row that needs the column.
    prepare([folder / "a.wav"], tmp_path / "plain", FrontEndConfig())
    assert pq.read_schema(tmp_path / "plain/shard-00000.parquet").names[-1] == "error"


def test_parts_of_an_earlier_version_are_merged(folder, run_folder, tmp_path):
    out = tmp_path / "x.parquet"
    embed_sources([folder], run_folder, out, EmbedOptions(device="cpu"))
    settings, parts = read_settings(out), tmp_path / "y.parquet.parts"
    parts.mkdir()
    (parts / "job.json").write_text(settings.to_json(), encoding="utf-8")
    written = pq.read_table(out).drop_columns(["note"])
    failed = {"path": [str(folder / "c.wav")], "duration_s": [0.0], "scene": [[0.0] * settings.scene_dimensions]}
    both = pa.concat_tables([written, pa.table(failed, written.schema)])
    both = both.append_column("error", pa.array([None, None, "no sound"], pa.string()))
    pq.write_table(both.append_column("last", pa.array([True] * 3)), parts / "part-000000.parquet")
    embed_sources([folder], run_folder, tmp_path / "y.parquet", EmbedOptions(device="cpu"))
    assert pq.read_table(tmp_path / "y.parquet").equals(pq.read_table(out))


def test_predictions_of_each_channel(folder, run_folder, tmp_path, as_file, capsys):
    table = folder / "labels.csv"
    for name in "ab":
        (folder / f"{name}2.wav").write_bytes((folder / f"{name}.wav").read_bytes())
    table.write_text(
        "path,label,split\n" + "".join(f"{n}.wav,{n},train\n{n}2.wav,{n},valid\n" for n in "ab"), encoding="utf-8"
    )
    fine = [str(run_folder), str(table), "--out", str(tmp_path / "fine"), "epochs=1"]
    assert main(["finetune", *fine, "--channel", "1", "--expand", "2"]) == 0
    assert main(["finetune", *fine, "--channel", "each"]) == 2
    card = read_card(tmp_path / "fine/classifier")
    assert card.reading == replace(Reading(), channel="1", expand=2.0)
    out = tmp_path / "p.csv"
    command = ["predict", str(folder / "a.wav"), str(folder / "b.wav"), "--model", str(tmp_path / "fine")]
    assert main([*command, "--out", str(out), "--channel", "each"]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        assert [(row["path"][-5:], row["channel"]) for row in csv.DictReader(file)] == [
            ("a.wav", "1"),
            ("a.wav", "2"),
            ("b.wav", "1"),
        ]
    bad = np.full((8000, 2), 0.1)
    bad[:, 1] = np.nan
    (folder / "bad.wav").write_bytes(as_file(bad, subtype="FLOAT"))
    bad_one = ["predict", str(folder / "bad.wav"), "--model", str(tmp_path / "fine"), "--out", str(out)]
    assert main([*bad_one, "--channel", "each"]) == 0
    assert "1 channel could not be labeled, and others of the same files could" in capsys.readouterr().out
    with out.open(encoding="utf-8", newline="") as file:
        assert [(row["channel"], "in channel 2" in row["error"]) for row in csv.DictReader(file)] == [
            ("1", False),
            ("2", True),
        ]
    assert main([*command, "--out", str(tmp_path / "plain.csv")]) == 0
    with (tmp_path / "plain.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == ["path", "label", "probability", "error"]
