import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from melmask.audio.files import read_audio
from melmask.audio.logmel import LogMelSpectrogram
from melmask.config import FrontEndConfig
from melmask.corpus import prepare as prepare_module
from melmask.corpus import store as store_module
from melmask.corpus.prepare import prepare
from melmask.corpus.store import Store, StoreWriter
from melmask.errors import InputError, OutputError, StoreError

FRONT_END = FrontEndConfig()
BYTES_PER_FRAME = 2 * FRONT_END.mels


def offline_logmel(path):
    """(frames, mels) float32."""
    waveform = torch.from_numpy(read_audio(path, FRONT_END.sample_rate_hz))
    return LogMelSpectrogram(FRONT_END)(waveform[None])[0].T.numpy()


def stored_clip(store, clip):
    frames = np.empty((store.frames[clip], FRONT_END.mels), np.float16)
    store.read_into(frames, clip, 0)
    return frames


def rows_of(folder):
    return [row for path in sorted(folder.glob("shard-*.parquet")) for row in pq.read_table(path).to_pylist()]


def content_of(folder):
    """All that a reader of a store can see, but for where failures were noted."""
    shards = {path.name: path.read_bytes() for path in folder.glob("shard-*.f16")}
    good = [row for row in rows_of(folder) if row["error"] is None]
    return shards, good, json.loads((folder / "store.json").read_text()), (folder / "failed.csv").read_text()


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of about a second and a half, so that the test sounds fill three."""
    begin = StoreWriter.__init__

    def begin_small(self, *arguments):
        begin(self, *arguments)
        self._shard_bytes = 25_000

    monkeypatch.setattr(StoreWriter, "__init__", begin_small)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded from now on."""
    names = []
    read = prepare_module.read_audio_blocks

    def noted(sound, *options):
        names.append(sound.path.name)
        return read(sound, *options)

    monkeypatch.setattr(prepare_module, "read_audio_blocks", noted)
    return names


@pytest.fixture
def finished(sound_folder, tmp_path, small_shards):
    """A store of several shards that a test may damage."""
    folder = tmp_path / "store"
    prepare([sound_folder], folder, FRONT_END, threads=1)
    return folder


def test_stored_frames_are_the_offline_log_mel_in_half_precision(store, good_paths):
    assert len(store) == len(good_paths)
    for clip, path in enumerate(good_paths):
        expected = offline_logmel(path)
        np.testing.assert_allclose(stored_clip(store, clip), expected, rtol=2**-10, atol=2**-10)


def test_statistics_are_those_of_all_values(store, good_paths):
    values = np.concatenate([offline_logmel(path).ravel() for path in good_paths]).astype(np.float64)
    assert store.statistics.mean == pytest.approx(values.mean(), rel=1e-5)
    assert store.statistics.std == pytest.approx(values.std(), rel=1e-5)


def test_store_json_sums_up_files_frames_and_hours(store_folder, store, good_paths):
    facts = json.loads((store_folder / "store.json").read_text())
    seconds = sum(soundfile.info(path).duration for path in good_paths)
    assert (facts["files"], facts["failed"]) == (6, 1)
    assert facts["frames"] == store.frames.sum()
    assert facts["hours"] == pytest.approx(seconds / 3600)
    assert store.front_end == FRONT_END


def test_a_file_that_cannot_be_read_is_listed_with_its_reason(store_folder, sound_folder):
    with (store_folder / "failed.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == str(sound_folder / "broken.wav")
    assert "cannot be read as sound" in row["reason"]


def test_the_store_is_the_same_for_any_number_of_threads(finished, sound_folder, tmp_path):
    prepare([sound_folder], tmp_path / "three", FRONT_END, threads=3)
    assert content_of(tmp_path / "three") == content_of(finished)


def test_the_size_of_shards_does_not_change_the_clips(store, finished):
    split = Store(finished)
    assert len(list(finished.glob("shard-*.f16"))) == 3
    assert split.statistics.mean == pytest.approx(store.statistics.mean, rel=1e-12)
    assert split.statistics.std == pytest.approx(store.statistics.std, rel=1e-12)
    for clip in range(len(store)):
        np.testing.assert_array_equal(stored_clip(split, clip), stored_clip(store, clip))


def test_preparing_leaves_the_number_of_threads_as_it_was(sound_folder, tmp_path):
    before = torch.get_num_threads()
    prepare([sound_folder], tmp_path / "again", FRONT_END, threads=2)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("clips_done", [0, 1, 4, 5])
def test_an_interrupted_job_goes_on_to_the_same_store(
    finished, sound_folder, tmp_path, decoded, monkeypatch, clips_done
):
    folder = tmp_path / "resumed"
    add, added = StoreWriter.add, []

    def add_until_stopped(self, path, *rest):
        if len(added) == clips_done:
            raise KeyboardInterrupt
        added.append(path)
        add(self, path, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(StoreWriter, "add", add_until_stopped)
        prepare([sound_folder], folder, FRONT_END, threads=1)
    with pytest.raises(StoreError, match=r"unfinished store; run melmask prepare again|is not a store"):
        Store(folder)

    closed = {row["path"] for row in rows_of(folder) if row["error"] is None}
    decoded.clear()
    prepare([sound_folder], folder, FRONT_END, threads=1)
    assert content_of(folder) == content_of(finished)
    assert not {name for name in decoded if str(sound_folder / name) in closed}
    assert len(decoded) == 7 - len(closed)
    assert not list(folder.glob("*.partial"))


_KILLED_AFTER_FOUR_CLIPS = """
import os, pathlib, signal, sys
from melmask.config import FrontEndConfig
from melmask.corpus.prepare import prepare
from melmask.corpus.store import StoreWriter
begin, add, added = StoreWriter.__init__, StoreWriter.add, []
def begin_small(self, *arguments):
    begin(self, *arguments)
    self._shard_bytes = 25_000
def add_until_killed(self, path, *rest):
    add(self, path, *rest)
    added.append(path)
    if len(added) == 4:
        self._file and self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
StoreWriter.__init__, StoreWriter.add = begin_small, add_until_killed
prepare([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[2]), FrontEndConfig(), threads=2)
"""


def test_a_killed_job_goes_on_to_the_same_store(finished, sound_folder, tmp_path, decoded):
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", _KILLED_AFTER_FOUR_CLIPS, str(sound_folder), str(folder)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    prepare([sound_folder], folder, FRONT_END, threads=1)
    assert content_of(folder) == content_of(finished)
    assert len(decoded) < 7


def test_what_a_killed_job_has_left_is_no_data_of_a_shard_of_failures(tmp_path):
    folder, source = tmp_path / "store", tmp_path / "sounds"
    source.mkdir()
    folder.mkdir()
    (source / "broken.wav").write_bytes(b"no sound")
    (folder / "shard-00000.partial").write_bytes(b"half")
    with pytest.raises(InputError, match="none of 1 file could be read"):
        prepare([source], folder, FRONT_END)
    assert [path.stat().st_size for path in folder.glob("shard-*.f16")] == [0]


def test_data_without_its_index_is_not_taken_for_a_shard(finished, sound_folder, decoded):
    expected = content_of(finished)
    last = max(finished.glob("shard-*.parquet"))
    last.unlink()
    (finished / "shard-00099.partial").write_bytes(b"half")
    (finished / f".{last.name}.123.partial").write_bytes(b"half")
    with pytest.raises(StoreError, match="prepare it again"):
        Store(finished)
    prepare([sound_folder], finished, FRONT_END)
    assert content_of(finished) == expected
    assert set(decoded) == {"f.wav", "broken.wav"}


def test_preparing_a_finished_store_decodes_nothing_but_the_failures(finished, sound_folder, decoded):
    expected = content_of(finished)[1:]
    prepare([sound_folder], finished, FRONT_END)
    assert decoded == ["broken.wav"]
    assert content_of(finished)[1:] == expected


def test_a_repaired_file_leaves_the_list_of_failures(tmp_path, sound):
    folder, source = tmp_path / "store", tmp_path / "sounds"
    source.mkdir()
    soundfile.write(source / "a.wav", sound(1, 0), 16000)
    (source / "b.wav").touch()
    assert prepare([source], folder, FRONT_END).failed == 1
    soundfile.write(source / "b.wav", sound(1, 1), 16000)
    facts = prepare([source], folder, FRONT_END)
    assert (facts.files, facts.failed) == (2, 0)
    assert (folder / "failed.csv").read_text().splitlines() == ["path,reason"]


def test_a_file_that_changed_stays_as_it_was_and_a_line_says_so(sound_folder, tmp_path, sound, capsys):
    folder, source = tmp_path / "store", tmp_path / "sounds"
    shutil.copytree(sound_folder, source)
    prepare([source], folder, FRONT_END)
    prepare([source], folder, FRONT_END)
    assert "changed" not in capsys.readouterr().err
    soundfile.write(source / "a.wav", sound(3, 7), 16000)
    later_s = (folder / "shard-00000.parquet").stat().st_mtime + 10
    os.utime(source / "a.wav", (later_s, later_s))
    before = content_of(folder)
    prepare([source], folder, FRONT_END)
    assert f"1 file changed after {folder} was prepared" in capsys.readouterr().err
    assert content_of(folder) == before


def test_files_added_later_extend_the_store(good_paths, store, tmp_path, decoded):
    folder = tmp_path / "store"
    prepare(good_paths[:2], folder, FRONT_END)
    decoded.clear()
    facts = prepare(good_paths, folder, FRONT_END)
    assert len(decoded) == len(good_paths) - 2
    extended = Store(folder)
    assert facts.files == len(good_paths)
    assert extended.statistics.mean == pytest.approx(store.statistics.mean, rel=1e-12)
    for clip in range(len(store)):
        np.testing.assert_array_equal(stored_clip(extended, clip), stored_clip(store, clip))


def test_a_file_named_in_two_ways_is_stored_once(good_paths, tmp_path):
    path = good_paths[0]
    facts = prepare([path, path.parent / "deep" / ".." / path.name], tmp_path / "store", FRONT_END)
    assert facts.files == 1


def test_another_front_end_is_refused_and_the_difference_named(finished, sound_folder):
    other = replace(FRONT_END, hop_samples=320, mels=64)
    with pytest.raises(StoreError, match="hop_samples 160 there, 320 asked for, mels 80 there, 64 asked for"):
        prepare([sound_folder], finished, other)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_shard_is_refused_and_preparing_again_repairs_it(finished, sound_folder, store, damage, capsys):
    data = finished / "shard-00001.f16"
    data.write_bytes(data.read_bytes()[:-1]) if damage == "cut" else data.unlink()
    with pytest.raises(StoreError, match=r"shard-00001.f16 has \d+ bytes, expected \d+; prepare the store again"):
        Store(finished)
    prepare([sound_folder], finished, FRONT_END)
    assert "must be prepared again: give all sources of the store" in capsys.readouterr().err
    assert sorted(Store(finished).frames) == sorted(store.frames)


def test_a_file_of_somebody_else_is_not_removed(sound_folder, tmp_path):
    (tmp_path / "notes.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes\.csv, which would be lost"):
        prepare([sound_folder], tmp_path, FRONT_END)
    assert (tmp_path / "notes.csv").read_text() == "mine"


def test_a_damaged_index_is_refused_and_can_be_done_again(finished, sound_folder, store):
    index = finished / "shard-00001.parquet"
    index.write_bytes(index.read_bytes()[:100])
    for read in (lambda: Store(finished), lambda: prepare([sound_folder], finished, FRONT_END)):
        with pytest.raises(StoreError, match=r"shard-00001.parquet .*delete it and prepare again"):
            read()
    index.unlink()
    prepare([sound_folder], finished, FRONT_END)
    assert sorted(Store(finished).frames) == sorted(store.frames)


@pytest.mark.parametrize("lost", ["shard-00001.*", "shard-*.parquet"])
def test_lost_shards_are_noticed(finished, lost):
    for path in finished.glob(lost):
        path.unlink()
    with pytest.raises(StoreError, match=r"shards of \d+ frames, expected \d+ .*; prepare it again"):
        Store(finished)


def test_an_index_of_other_columns_is_refused(finished):
    index = finished / "shard-00001.parquet"
    table = pq.read_table(index)
    for other in (table.drop_columns(["first_frame"]), table.set_column(2, "frames", pa.array(["many"] * len(table)))):
        pq.write_table(other, index)
        with pytest.raises(StoreError, match=r"shard-00001.parquet .*delete it and prepare again"):
            Store(finished)


@pytest.mark.parametrize("change", [{"hours": None}, {"front_end": None}, {"statistics": {"mean": "low", "std": 1}}])
def test_values_in_store_json_that_cannot_be_are_refused_with_its_name(finished, change):
    facts = json.loads((finished / "store.json").read_text())
    (finished / "store.json").write_text(json.dumps(facts | change))
    with pytest.raises(StoreError, match=r"store.json is damaged \(.+\); delete it and run melmask prepare again"):
        Store(finished)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "melmask-store", "version": 1}', '{"format": "zip"}'])
def test_a_damaged_store_json_is_refused(finished, content):
    (finished / "store.json").write_text(content)
    with pytest.raises(StoreError, match=r"store.json is damaged \(.+\); delete it and run melmask prepare again"):
        Store(finished)


def test_a_store_of_a_later_version_is_refused(finished):
    facts = json.loads((finished / "store.json").read_text())
    (finished / "store.json").write_text(json.dumps(facts | {"version": 2}))
    with pytest.raises(StoreError, match="version 2"):
        Store(finished)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreError, match=r"is not a store .*make one with melmask prepare"):
            Store(folder)


def test_a_crop_reads_its_own_bytes_only(store, monkeypatch):
    calls = []
    read = store_module.os.preadv

    def noted(descriptor, buffers, offset):
        calls.append((sum(memoryview(buffer).nbytes for buffer in buffers), offset))
        return read(descriptor, buffers, offset)

    clip = len(store) - 1
    whole = stored_clip(store, clip)
    monkeypatch.setattr(store_module.os, "preadv", noted)
    crop = np.empty((10, FRONT_END.mels), np.float16)
    store.read_into(crop, clip, 23)
    np.testing.assert_array_equal(crop, whole[23:33])
    frames_before = store.frames[:clip].sum() + 23
    assert calls == [(10 * BYTES_PER_FRAME, frames_before * BYTES_PER_FRAME)]


def test_threads_that_share_few_open_shards_read_the_right_clips(sound_folder, store, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_OPEN_SHARDS", 1)
    # No shard is below 0 MB, so each clip gets its own.
    prepare([sound_folder], tmp_path / "store", FRONT_END, shard_mb=0)
    split = Store(tmp_path / "store")
    clips = np.random.default_rng(0).integers(len(store), size=600).tolist()
    with ThreadPoolExecutor(8) as pool:
        frames = list(pool.map(lambda clip: stored_clip(split, clip), clips))
    expected = [stored_clip(store, clip) for clip in range(len(store))]
    assert all(np.array_equal(read, expected[clip]) for clip, read in zip(clips, frames, strict=True))


def test_a_full_disk_is_reported_in_one_line_and_keeps_the_closed_shards(
    finished, sound_folder, tmp_path, decoded, full_disk
):
    folder = tmp_path / "full"
    refused = pytest.raises(OutputError, match=r"cannot write .*shard-0000\d.f16: File too large; choose")
    # The second shard is longer than this.
    with full_disk(50_000), refused as caught:
        prepare([sound_folder], folder, FRONT_END, threads=1)
    assert "\n" not in str(caught.value)
    kept = [row["path"] for row in rows_of(folder) if row["error"] is None]
    assert len(kept) == 3
    decoded.clear()
    prepare([sound_folder], folder, FRONT_END)
    assert content_of(folder) == content_of(finished)
    assert set(decoded) == {"d.ogg", "e.wav", "f.wav", "broken.wav"}


def test_a_store_cannot_be_where_a_file_is(sound_folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        prepare([sound_folder], tmp_path / "file", FRONT_END)


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(InputError, match=r"none of 1 file could be read; the reasons are in .*failed.csv"):
        prepare([tmp_path], tmp_path / "store", FRONT_END)


def test_a_newer_store_is_left_alone(sound_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "VERSION", 9)
    prepare([sound_folder], tmp_path, FRONT_END)
    monkeypatch.setattr(store_module, "VERSION", 1)
    before = (tmp_path / "store.json").read_bytes()
    with pytest.raises(StoreError, match=r"shard-00000\.parquet is melmask-store version 9; this writes 1: update"):
        prepare([sound_folder], tmp_path, FRONT_END)
    assert (tmp_path / "store.json").read_bytes() == before


def test_nothing_but_silence_is_an_error(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    with pytest.raises(InputError, match="all silent"):
        prepare([tmp_path], tmp_path / "store", FRONT_END)
