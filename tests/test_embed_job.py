"""Embedding many files to one table: resumable, in shares, every file once."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from melmask.checkpoint.folder import ModelCard
from melmask.config import FrontEndConfig, ModelConfig
from melmask.embedding import encoder as encoder_module
from melmask.embedding import extract, tables
from melmask.embedding import folder as embed_job
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import untrained
from melmask.embedding.folder import embed_table, shard_of
from melmask.embedding.tables import rows_of
from melmask.errors import ConfigError, InputError, OutputError


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(width=32, depth=2, heads=2, decoder_width=0, decoder_depth=0, frames=64)
    return untrained(ModelCard(model=config), device="cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Eleven files of growing length, the fourth of them no sound."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    made = []
    for k in range(11):
        made.append(folder / f"clip{k:02d}.wav")
        soundfile.write(made[-1], 0.1 * rng.normal(size=1600 * (k + 1)), 16000)
    made[3].write_text("no sound")
    return made


@pytest.fixture(autouse=True)
def three_files_a_part(monkeypatch):
    monkeypatch.setattr(tables, "FILES_PER_PART", 3)


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that embedding was asked for, in order."""
    names = []
    embed_files = embed_job.embed_files

    def counting(model, sounds, choice, **more):
        names.extend(sound.path.name for sound in sounds)
        return embed_files(model, sounds, choice, **more)

    monkeypatch.setattr(embed_job, "embed_files", counting)
    return names


@pytest.fixture
def long_paths(tmp_path, paths, monkeypatch):
    """Two minutes of a gliding tone, one that breaks off, a short clip and another minute; in rows of a second or so.

    A part has two files, and files pass through in single units, a few of which are encoded together. The vectors are
    copies of the log-mel, so that nothing is rounded on the way.
    """

    def copied(self, segments, choice):
        return [np.tile(logmel[:, ::16].T.numpy(), (1, 2)) for logmel in segments]

    monkeypatch.setattr(encoder_module.AudioEncoder, "embed_segments", copied)
    monkeypatch.setattr(tables, "FILES_PER_PART", 2)
    monkeypatch.setattr(tables, "_ROW_GROUP_BYTES", 15_000)
    monkeypatch.setattr(extract, "_VALUES_PER_ROW", 7 * 160)
    monkeypatch.setattr(encoder_module, "_SEGMENT_FRAMES", 64)
    for module in (extract, encoder_module):
        monkeypatch.setattr(module, "FRAMES_TOGETHER", 600)
    monkeypatch.setattr("melmask.audio.files._BLOCK_FRAMES", 20_000)
    time_s = np.arange(120 * 16000) / 16000
    glide = 0.3 * np.sin(2 * np.pi * (200 + 10 * time_s) * time_s)
    made = [tmp_path / name for name in ("long.wav", "breaks.wav", "minute.wav")]
    soundfile.write(made[0], glide, 16000)
    soundfile.write(made[1], np.append(glide[:1_000_000], np.nan), 16000, subtype="FLOAT")
    soundfile.write(made[2], glide[::-2], 16000)
    return [made[0], made[1], paths[10], made[2]]


def rows_by_path(table):
    """path -> its rows, of a Parquet table, in order; every row lies beside the others of its file."""
    found = {}
    for row in pq.read_table(table).to_pylist():
        assert row["path"] not in list(found)[:-1]
        found.setdefault(row["path"], []).append(row)
    return found


def read(path):
    """(paths, scenes) of a table."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["path"].tolist(), arrays["scene"]
    rows = pq.read_table(path).to_pylist()
    return [row["path"] for row in rows], np.array([row["scene"] for row in rows])


def test_every_readable_file_is_in_the_table_once_and_in_order(model, paths, tmp_path):
    out = tmp_path / "x.parquet"
    report = embed_table(model, paths, out, keep_frames=True)
    rows = pq.read_table(out).to_pylist()
    assert [row["path"] for row in rows] == [str(path) for path in paths if path != paths[3]]
    assert (report.files, report.failed) == (10, 1) and report.sound_s == pytest.approx(6.2)
    alone = model.embed(paths[7])
    assert np.abs(np.array(rows[6]["scene"]) - alone.scene).max() < 1e-5
    assert np.abs(np.array(rows[6]["frames"]) - alone.frames).max() < 1e-5
    assert "clip03.wav" in (tmp_path / "x.parquet.failed.csv").read_text()
    assert [path.name for path in tmp_path.iterdir() if "parts" in path.name] == []


def kill_at(monkeypatch, fatal):
    """Let a job be killed when it is to write a row group whose first row is `fatal`."""
    write = tables.pq.ParquetWriter.write_table

    def killed(self, table):
        if fatal(table.slice(0, 1).to_pylist()[0]):
            raise KeyboardInterrupt
        write(self, table)

    monkeypatch.setattr(tables.pq.ParquetWriter, "write_table", killed)


@pytest.mark.parametrize("name", ["x.parquet", "x.npz"])
def test_a_killed_job_goes_on_after_its_last_whole_part(name, model, paths, tmp_path, monkeypatch, decoded):
    out = tmp_path / name
    with monkeypatch.context() as context:
        kill_at(context, lambda row: row["path"] == str(paths[6]))
        with pytest.raises(KeyboardInterrupt):
            embed_table(model, paths, out)
    assert not out.exists()
    decoded.clear()
    embed_table(model, paths, out)
    assert decoded == [path.name for path in paths[6:]], "nothing redone"
    whole = tmp_path / f"whole{out.suffix}"
    embed_table(model, paths, whole)
    (paths_here, scenes_here), (paths_there, scenes_there) = read(out), read(whole)
    assert paths_here == paths_there and np.abs(scenes_here - scenes_there).max() < 1e-5


def test_a_part_whose_files_have_changed_since_is_embedded_again(model, paths, tmp_path, monkeypatch, decoded, capsys):
    own = [tmp_path / path.name for path in paths]
    for path, copy in zip(paths, own, strict=True):
        if path.exists():
            shutil.copyfile(path, copy)
    out = tmp_path / "x.parquet"
    with monkeypatch.context() as context:
        kill_at(context, lambda row: row["path"] == str(own[6]))
        with pytest.raises(KeyboardInterrupt):
            embed_table(model, own, out)
    later_s = (tmp_path / "x.parquet.parts" / "part-000000.parquet").stat().st_mtime + 10
    os.utime(own[1], (later_s, later_s))
    decoded.clear()
    embed_table(model, own, out)
    assert decoded == [path.name for path in (*own[:3], *own[6:])]
    assert "1 file of" in (said := capsys.readouterr().err) and "its files are embedded again" in said


def test_a_finished_job_is_not_done_again(model, paths, tmp_path, decoded):
    out = tmp_path / "x.npz"
    embed_table(model, paths, out)
    decoded.clear()
    report = embed_table(model, paths, out)
    assert decoded == [] and (report.files, report.failed) == (10, 1)
    embed_table(model, paths, out, FeatureChoice(pooling="mean"))
    assert len(decoded) == 11, "another choice is another job"


def test_files_changed_since_their_table_was_made_are_told(model, paths, tmp_path):
    own = [tmp_path / path.name for path in paths[:3]]
    for path, copy in zip(paths, own, strict=False):
        shutil.copyfile(path, copy)
    out = tmp_path / "x.parquet"
    assert "already" not in str(embed_table(model, own, out))
    assert "same files and settings; delete the table" in str(embed_table(model, own, out))
    later_s = out.stat().st_mtime + 10
    os.utime(own[1], (later_s, later_s))
    own[2].unlink()
    assert "settings; 1 of the files have changed since; delete the table to rebuild it" in str(
        embed_table(model, own, out)
    )


@pytest.mark.parametrize("hop_ms", [None, 40.0])
def test_rows_of_a_long_file_make_up_its_embedding(model, long_paths, tmp_path, hop_ms):
    out = tmp_path / "x.parquet"
    report = embed_table(model, long_paths[:1], out, FeatureChoice(hop_ms=hop_ms), keep_frames=True)
    alone = model.embed(long_paths[0], hop_ms=hop_ms)
    (rows,) = rows_by_path(out).values()
    assert len(rows) > 100 and pq.ParquetFile(out).num_row_groups > 10
    np.testing.assert_array_equal(np.concatenate([row["frames"] for row in rows]), alone.frames)
    assert [row["first_step"] for row in rows] == list(range(0, len(alone.frames), 7))
    assert {row["duration_s"] for row in rows} == {120}
    np.testing.assert_allclose([row["scene"] for row in rows], [alone.scene] * len(rows), rtol=0, atol=1e-6)
    assert (rows_of(out), report.files, report.failed, report.sound_s) == (1, 1, 0, 120)


def test_a_file_that_breaks_off_after_many_rows_has_failed_and_is_absent(model, long_paths, tmp_path):
    out = tmp_path / "x.parquet"
    before = [row for row in extract.embed_files(model, long_paths[1:2], keep_frames=True) if not row.last]
    assert len(before) > 50, "rows come before the error"
    report = embed_table(model, long_paths, out, keep_frames=True)
    found = rows_by_path(out)
    assert list(found) == [str(path) for path in long_paths if path != long_paths[1]]
    reasons = (tmp_path / "x.parquet.failed.csv").read_text().splitlines()
    assert len(reasons) == 2 and "breaks.wav holds NaN" in reasons[1]
    assert (report.files, report.failed) == (3, 1) and report.sound_s == pytest.approx(181.1)
    again = embed_table(model, long_paths, out, keep_frames=True)
    assert (again.files, again.failed, rows_of(out)) == (3, 1, 3), "files, not rows"
    for path, rows in found.items():
        alone = model.embed(path)
        np.testing.assert_array_equal(np.concatenate([row["frames"] for row in rows]), alone.frames)
        np.testing.assert_allclose([row["scene"] for row in rows], [alone.scene] * len(rows), rtol=0, atol=1e-6)


def test_npz_has_the_frames_of_long_files_together(model, long_paths, tmp_path):
    for name in ("x.parquet", "x.npz"):
        embed_table(model, long_paths, tmp_path / name, keep_frames=True)
    found = rows_by_path(tmp_path / "x.parquet")
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["path"].tolist() == list(found) and rows_of(tmp_path / "x.npz") == 3
        np.testing.assert_allclose(arrays["scene"], [rows[0]["scene"] for rows in found.values()], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(arrays["duration_s"], [rows[0]["duration_s"] for rows in found.values()])
        of_files = np.split(arrays["frames"], arrays["frame_offsets"][1:-1])
        assert arrays["frame_offsets"][[0, -1]].tolist() == [0, len(arrays["frames"])]
    for frames, rows in zip(of_files, found.values(), strict=True):
        np.testing.assert_array_equal(frames, np.concatenate([row["frames"] for row in rows]))


def test_a_job_killed_in_a_long_file_goes_on_to_the_same_table(model, long_paths, tmp_path, monkeypatch, decoded):
    out, whole = tmp_path / "x.parquet", tmp_path / "whole.parquet"
    with monkeypatch.context() as context:
        kill_at(context, lambda row: row["path"] == str(long_paths[3]) and row["first_step"] > 100)
        with pytest.raises(KeyboardInterrupt):
            embed_table(model, long_paths, out, keep_frames=True)
    decoded.clear()
    embed_table(model, long_paths, out, keep_frames=True)
    assert decoded == [path.name for path in long_paths[2:]]
    embed_table(model, long_paths, whole, keep_frames=True)
    resumed, at_once = pq.read_table(out), pq.read_table(whole)
    for column in ("path", "duration_s", "first_step", "frames"):
        assert resumed[column].equals(at_once[column])
    np.testing.assert_allclose(resumed["scene"].to_pylist(), at_once["scene"].to_pylist(), rtol=0, atol=1e-6)


def test_progress_counts_files(model, long_paths, tmp_path, monkeypatch):
    counted = []

    def track(items, total, title):
        for number, item in enumerate(items, 1):
            counted.append((number, total))
            yield item

    monkeypatch.setattr(embed_job, "track", track)
    embed_table(model, long_paths, tmp_path / "x.parquet", keep_frames=True)
    assert counted == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_parts_of_another_job_are_refused(model, paths, tmp_path):
    out = tmp_path / "x.parquet"
    tables.TableJob(out, paths, embed_job.table_settings(model, paths, FeatureChoice(pooling="mean")))
    (tmp_path / "x.parquet.parts" / "part-000000.parquet").touch()
    with pytest.raises(OutputError, match="belongs to a job with another pooling, dimensions"):
        embed_table(model, paths, out)


def test_shares_cover_all_files_once(paths, tmp_path):
    shares = [shard_of(paths, tmp_path / "x.parquet", f"{k}/4") for k in range(4)]
    assert sorted(path for share, _ in shares for path in share) == sorted(paths)
    assert shares[2][1].name == "x-00002-of-00004.parquet"


def test_a_wrong_share_is_refused(paths, tmp_path):
    for wrong in ("4/4", "1", "a/b", "-1/4", f"1/{'9' * 5000}"):
        with pytest.raises(ConfigError, match="0 <= I < N"):
            shard_of(paths, tmp_path / "x.parquet", wrong)
    with pytest.raises(InputError, match="use fewer shards"):
        shard_of(paths[:2], tmp_path / "x.parquet", "3/4")


@pytest.mark.parametrize("name", ["embeddings.parquet", "frames.npz"])
def test_settings_of_release_0_1_0_are_read_and_written_as_they_were(name):
    path = Path(__file__).parent / "reference" / "files-0.1.0" / name
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            written = str(arrays["settings"])
    else:
        written = pq.read_schema(path).metadata[b"melmask"].decode()
    settings = tables.read_settings(path)
    assert settings.to_json() == written
    assert settings.front_end == FrontEndConfig()
