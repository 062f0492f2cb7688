"""Segments: parts of files that tables name are read, embedded, stored and labeled as clips of their own."""

import csv
from copy import copy

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from melmask.audio import parts
from melmask.audio.files import read_audio
from melmask.audio.parts import Sound
from melmask.classifier.model import AudioClassifier, ClassifierCard
from melmask.classifier.options import PredictOptions
from melmask.classifier.predict import predict_files
from melmask.config import EACH, FrontEndConfig, Reading
from melmask.corpus.prepare import prepare
from melmask.corpus.store import Store, read_indexes
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.folder import embed_table, table_settings
from melmask.errors import AudioFileError
from melmask.labels.sources import find_sounds

RATE_HZ = 16000
ROWS = ("a.wav,0.5,1.5", "a.wav,,", "a.wav,3.5,9", "a.wav,7,8", "a.wav,2,1", "a.wav,x,1", "b.wav,1,2")


@pytest.fixture(scope="module")
def table(tmp_path_factory, sound):
    """Two sounds of 4 s, and a table of parts of them: good ones, a whole file, one too long, three that are none."""
    folder = tmp_path_factory.mktemp("segments")
    for seed, name in enumerate(("a.wav", "b.wav")):
        soundfile.write(folder / name, sound(4, seed), RATE_HZ)
    path = folder / "t.csv"
    path.write_text("path,start,end\n" + "\n".join(ROWS) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("x.wav", "PCM_16"),
        ("x.wav", "IMA_ADPCM"),
        ("x.flac", "PCM_16"),
        ("x.ogg", "VORBIS"),
        ("x.mp3", "MPEG_LAYER_III"),
    ],
)
def test_a_part_is_the_same_slice_of_the_whole_file(tmp_path, monkeypatch, sound, name, subtype):
    path, opened = tmp_path / name, []
    soundfile.write(path, sound(6, 0), RATE_HZ, subtype=subtype)
    whole, decoded = read_audio(path, RATE_HZ), parts.decoded
    monkeypatch.setattr(parts, "decoded", lambda *given: opened.append(given) or decoded(*given))
    ascending = [(k / 2, k / 2 + 1) for k in range(9)]
    for start_s, end_s in (*ascending, (0.0, 0.5), (3.3333, 3.3335), (2.0, None), (5.5, 7.0)):
        part = read_audio(Sound(path, start_s, end_s), RATE_HZ)
        stop = None if end_s is None else round(end_s * RATE_HZ)
        np.testing.assert_array_equal(part, whole[round(start_s * RATE_HZ) : stop])
        if (start_s, end_s) == ascending[-1]:
            # Where the decoder cannot jump, parts in order are decoded in one go, although they overlap.
            assert len(opened) == (9 if subtype == "PCM_16" else 1)
    with pytest.raises(AudioFileError, match=r"from 8 s to 9 s begins after the file's end at 6(\.0\d+)? s"):
        read_audio(Sound(path, 8.0, 9.0), RATE_HZ)


def test_joined_files_of_different_rates_count_time_from_the_first(tmp_path, sound):
    path, content = tmp_path / "x.ogg", b""
    for rate_hz in (16000, 8000):
        soundfile.write(path, sound(2, 1), rate_hz, format="OGG")
        content += path.read_bytes()
    path.write_bytes(content)
    # 2 s at 16 kHz, and then as many samples at 8 kHz, which are 4 s.
    assert read_audio(Sound(path, 1.0, 3.0), RATE_HZ).size == pytest.approx(2 * RATE_HZ, abs=10)
    assert read_audio(Sound(path, 5.0, 6.0), RATE_HZ).size == pytest.approx(RATE_HZ, abs=10)


@pytest.mark.parametrize("name", ["x.parquet", "x.npz"])
def test_each_row_has_an_embedding(encoder, table, tmp_path, name):
    out = tmp_path / name
    report = embed_table(encoder, find_sounds([table]), out)
    assert (report.files, report.failed) == (4, 3)
    assert "from 3.5 s to 9 s ends after its file, and was shortened" in str(report)
    if name == "x.npz":
        with np.load(out) as arrays:
            rows = [
                dict(zip(arrays.files[:4], row, strict=True)) for row in zip(*list(arrays.values())[:4], strict=True)
            ]
            scenes = arrays["scene"]
    else:
        rows = pq.read_table(out).to_pylist()
        scenes = np.array([row["scene"] for row in rows])
    assert [row["start_s"] for row in rows] == [0.5, 0.0, 3.5, 1.0]
    assert [row["duration_s"] for row in rows] == pytest.approx([1.0, 4.0, 0.5, 1.0], abs=0.02)
    waveform, _ = soundfile.read(table.parent / "a.wav", dtype="float32")
    alone = encoder.embed(waveform[8000:24000], RATE_HZ).scene
    np.testing.assert_allclose(scenes[0], alone, atol=1e-5)
    with out.with_name(f"{name}.failed.csv").open(newline="", encoding="utf-8") as file:
        failed = list(csv.DictReader(file))
    assert [(row["start_s"], row["end_s"]) for row in failed] == [("7.0", "8.0"), ("", ""), ("", "")]
    assert ["begins after" in failed[0]["reason"], "'2' to '1'" in failed[1]["reason"]] == [True, True]


def test_tables_of_whole_files_have_no_times_and_other_segments_are_another_job(encoder, table, tmp_path):
    out, path = tmp_path / "x.parquet", table.parent / "a.wav"
    embed_table(encoder, [path], out)
    assert pq.read_schema(out).names == ["path", "duration_s", "scene", "note"]
    assert "segments" not in pq.read_schema(out).metadata[b"melmask"].decode()
    embed_table(encoder, [Sound(path, 0.0, 1.0)], out)
    assert pq.read_schema(out).names == ["path", "start_s", "end_s", "duration_s", "scene", "note"]
    digests = {
        table_settings(encoder, [sound], FeatureChoice()).files_sha256
        for sound in (Sound(path), Sound(path, 0.0, 1.0), Sound(path, 0.0, 2.0), Sound(path, 1.0))
    }
    assert len(digests) == 4


def test_each_row_is_a_clip_of_the_store(table, tmp_path, capsys):
    for _ in range(2):
        facts = prepare([table], tmp_path / "store", FrontEndConfig(), threads=2)
        assert (facts.files, facts.failed) == (4, 3)
    assert capsys.readouterr().err.count("ends after its file, and was shortened") == 1
    # 1, 4, 0.5 and 1 s at 100 frames a second.
    assert Store(tmp_path / "store").frames.tolist() == [101, 401, 51, 101]
    assert len((tmp_path / "store" / "failed.csv").read_text().splitlines()) == 1 + 3
    more = prepare([table, table.parent / "b.wav"], tmp_path / "store", FrontEndConfig(), threads=2)
    assert more.files == 5
    plain = tmp_path / "plain"
    prepare([table.parent / "b.wav"], plain, FrontEndConfig(), threads=2)
    assert "start_s" not in pq.read_schema(next(plain.glob("*.parquet"))).names
    assert "start_s" in read_indexes(plain)[0][1].column_names


@pytest.fixture
def classifier(encoder):
    card = ClassifierCard(labels=["x", "y"], kind="multiclass")
    dims = encoder.embedding_size()
    weights = {"mean": torch.zeros(dims), "std": torch.ones(dims), "linear.weight": torch.zeros(2, dims)}
    return AudioClassifier(encoder, card, {**weights, "linear.bias": torch.tensor([1.0, 0.0])})


@pytest.mark.parametrize("events", [False, True])
def test_each_row_has_a_prediction_whose_times_are_those_of_the_file(classifier, table, tmp_path, events):
    sounds, out = find_sounds([table]), tmp_path / "p.csv"
    report = predict_files(classifier, sounds, out, PredictOptions(events=events))
    assert (report.files, report.failed) == (4, 3) and "was shortened" in "".join(report.notes)
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    good = [row for row in rows if not row["error"]]
    assert [row["label"] for row in good] == ["x"] * 4 and len(rows) == 7
    assert [float(row["start_s"]) for row in good] == [0.5, 0.0, 3.5, 1.0]
    # Of an event, the end is that of the sound; of a segment, that of the table.
    assert [row["end_s"] for row in good] == (["1.5", "4.0", "4.0", "2.0"] if events else ["1.5", "", "9.0", "2.0"])


def test_channels_of_a_segment_without_an_end_count_once(encoder, tmp_path):
    path, out = tmp_path / "x.wav", tmp_path / "x.npz"
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=(RATE_HZ, 2)), RATE_HZ)
    model = copy(encoder)
    model.reading = Reading(channel=EACH)
    # The second call finds the table there, and counts what it holds.
    reports = [embed_table(model, [Sound(path), Sound(path, 0.5)], out) for _ in range(2)]
    assert [(report.files, report.failed) for report in reports] == [(2, 0), (2, 0)]
    with np.load(out) as arrays:
        assert arrays["channel"].tolist() == [1, 2, 1, 2]
