"""Statistics of the files at hand instead of the checkpoint's."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import melmask
from melmask import Statistics
from melmask.cli import main
from melmask.embedding.normalization import with_dataset_statistics
from melmask.embedding.tables import read_settings
from melmask.errors import InputError


def test_the_statistics_are_those_of_every_value_of_the_readable_files(encoder, sound_folder, good_paths):
    logmels = [encoder.logmel(*soundfile.read(path, dtype="float32")) for path in good_paths]
    values = np.concatenate([logmel.ravel() for logmel in logmels]).astype(np.float64)
    found = with_dataset_statistics(encoder, [*good_paths, sound_folder / "broken.wav"]).card.statistics
    assert found.mean == pytest.approx(values.mean(), abs=1e-5)
    assert found.std == pytest.approx(values.std(), abs=1e-5)


def test_only_the_statistics_change(encoder, good_paths, sound):
    other = with_dataset_statistics(encoder, good_paths[:2])
    given = melmask.load(encoder.name, device="cpu", statistics=other.card.statistics)
    x = sound(1.0, 3)
    np.testing.assert_array_equal(other.embed(x, 16000).scene, given.embed(x, 16000).scene)
    assert np.abs(other.embed(x, 16000).scene - encoder.embed(x, 16000).scene).max() > 1e-3
    assert other.sha256 != encoder.sha256
    assert (encoder.normalization, other.normalization, given.normalization) == ("checkpoint", "dataset", "given")


def test_shares_of_a_job_use_the_statistics_of_the_whole(run_folder, sound_folder, tmp_path):
    out = tmp_path / "x.parquet"
    choice = ["--model", str(run_folder), "--normalization", "dataset", "--device", "cpu"]
    for shard in ("0/2", "1/2"):
        assert main(["embed", str(sound_folder), "--out", str(out), "--shard", shard, *choice]) == 0
    assert main(["embed", str(sound_folder), "--out", str(out), *choice]) == 0
    tables = [tmp_path / "x-00000-of-00002.parquet", tmp_path / "x-00001-of-00002.parquet", out]
    settings = [read_settings(table) for table in tables]
    assert settings[0].statistics == settings[1].statistics == settings[2].statistics
    assert {s.normalization for s in settings} == {"dataset"}
    whole = {row["path"]: row["scene"] for row in pq.read_table(out).to_pylist()}
    for table in tables[:2]:
        for row in pq.read_table(table).to_pylist():
            np.testing.assert_allclose(row["scene"], whole[row["path"]], atol=1e-5)


def test_kept_statistics_are_used_for_the_same_files_only(encoder, good_paths, tmp_path):
    kept = tmp_path / "s.json"
    first = with_dataset_statistics(encoder, good_paths, kept).card.statistics
    facts = json.loads(kept.read_text())
    kept.write_text(json.dumps({**facts, "statistics": {"mean": 1.0, "std": 2.0}}))
    assert with_dataset_statistics(encoder, good_paths, kept).card.statistics == Statistics(mean=1.0, std=2.0)
    assert with_dataset_statistics(encoder, good_paths[:-1], kept).card.statistics != first
    for damaged in ("{", "[]", json.dumps({**facts, "statistics": {"mean": 1.0, "std": 0.0}})):
        kept.write_text(damaged)
        assert with_dataset_statistics(encoder, good_paths, kept).card.statistics == first


def test_silence_has_no_statistics(encoder, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    with pytest.raises(InputError, match="silent"):
        with_dataset_statistics(encoder, [tmp_path / "silent.wav"])


def test_probe_records_whose_statistics_it_used(run_folder, good_paths, tmp_path):
    labels = tmp_path / "labels.csv"
    rows = [f"{path},{'ab'[k % 2]},{['train', 'test'][k // 4]}" for k, path in enumerate(good_paths)]
    labels.write_text("\n".join(["path,label,split", *rows]) + "\n")
    command = ["probe", "--labels", str(labels), "--model", str(run_folder), "--out", str(tmp_path / "p")]
    assert main([*command, "--normalization", "dataset", "--device", "cpu"]) == 0
    task = json.loads((tmp_path / "p" / "probe.json").read_text())["tasks"]["labels"]
    assert task["normalization"]["from"] == "dataset"
    expected = with_dataset_statistics(melmask.load(run_folder, device="cpu"), good_paths).card.statistics
    assert task["normalization"]["mean"] == expected.mean


def test_files_that_cannot_be_read_are_not_called_silent(encoder, sound_folder):
    with pytest.raises(InputError, match="none of 1 file could be read"):
        with_dataset_statistics(encoder, [sound_folder / "broken.wav"])
