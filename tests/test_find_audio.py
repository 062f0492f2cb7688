"""Every sound in a folder is found: linked folders, other suffixes, phones and videos; leftovers of systems are not."""

import csv
import os
import tempfile

import numpy as np
import pytest
import soundfile

from melmask.audio import folders, video
from melmask.audio.files import find_audio, read_audio
from melmask.audio.video import VIDEO_SUFFIXES, missing_decoder
from melmask.config import FrontEndConfig
from melmask.corpus import prepare as prepare_module
from melmask.corpus.prepare import prepare
from melmask.corpus.store import Store
from melmask.errors import AudioFileError, OutputError

RATE_HZ = 16000


def names_below(folder):
    return [path.relative_to(folder).as_posix() for path in find_audio([folder])]


@pytest.fixture
def folder(tmp_path, as_file, sound):
    """A folder made of names; each file is the same WAV, and its name may be any."""
    content = as_file(sound(0.2, 0))

    def made(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        return tmp_path

    return made


def test_suffixes_of_recorders_phones_and_videos_are_found_in_either_case(folder):
    names = ["a.BWF", "b.wave", "c.mp2", "d.M4A", "e.mp4", "f.Wav", "g.webm", "h.wma", "i.aac"]
    assert names_below(folder(*names, "notes.txt", "x.py", "y.jpg", "z")) == names


def test_hidden_files_and_leftovers_of_systems_are_not_sound(folder):
    leftovers = ["._a.wav", ".DS_Store", "Thumbs.db", ".hidden/b.wav", "__MACOSX/c.wav", "@eaDir/a.wav/x.mp3"]
    assert names_below(folder("a.wav", *leftovers)) == ["a.wav"]
    # A hidden folder that is asked for is searched.
    assert [path.name for path in find_audio([folder() / ".hidden"])] == ["b.wav"]


def test_linked_folders_are_searched_once_and_loops_are_noticed(folder):
    root = folder("corpus/site_a/a.wav", "disk2/site_b/b.wav", "disk2/other.wav")
    corpus = root / "corpus"
    (corpus / "site_b").symlink_to("../disk2/site_b")
    (corpus / "again").symlink_to("site_a")
    (corpus / "loop").symlink_to("..")
    (corpus / "site_a/self").symlink_to(".")
    (corpus / "itself").symlink_to("itself")
    (root / "disk2/site_b/back").symlink_to("../../corpus")
    assert names_below(corpus) == ["site_a/a.wav", "site_b/b.wav"]


def test_a_folder_that_may_not_be_read_is_listed(folder, monkeypatch):
    root, scan = folder("a.wav", "locked/b.wav"), os.scandir

    def refuse(path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    assert names_below(root) == ["a.wav", "locked"]


def test_two_paths_of_one_file_are_one_clip(folder):
    root = folder("good/a.wav", "G/b.wav")
    (root / "link.wav").symlink_to("good/a.wav")
    (root / "good_too").symlink_to("good")
    twice = [root / "good/a.wav", root / "G/../good/a.wav", root / "link.wav", root / "good_too/a.wav"]
    assert find_audio(twice) == [root / "good/a.wav"]


def test_a_store_knows_a_file_by_a_path_that_leads_to_it(folder, tmp_path):
    root = folder("far/away/b.wav", "far/a.wav")
    (root / "link").symlink_to("far/away")
    # Without its links this is far/a.wav; with `link/..` struck out it would be a.wav, which is nowhere.
    prepare([root / "link/../a.wav", root / "link/b.wav"], tmp_path / "store", FrontEndConfig(), threads=1)
    assert len(Store(tmp_path / "store")) == 2


@pytest.mark.parametrize(("kind", "suffix"), [("WAV", "mp3"), ("MP3", "wav"), ("FLAC", "raw"), ("OGG", "m4a")])
def test_a_wrong_suffix_does_not_matter(tmp_path, as_file, sound, kind, suffix):
    path = tmp_path / f"sound.{suffix}"
    path.write_bytes(as_file(sound(1, 0), kind=kind))
    assert len(read_audio(path, RATE_HZ)) == RATE_HZ


@pytest.mark.parametrize(
    ("content", "command"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        ("/annex/objects/MD5-s12345--1234\n", "git annex get"),
    ],
)
@pytest.mark.parametrize("name", ["a.wav", "a.m4a"])
def test_a_pointer_to_a_sound_is_reported_as_such(tmp_path, content, command, name):
    (tmp_path / name).write_text(content)
    with pytest.raises(AudioFileError, match=rf"{name} is not the sound but a pointer to it; .* with {command}$"):
        read_audio(tmp_path / name, RATE_HZ)


MARKED = {
    "phone.m4a": b"\0\0\0\x20ftypM4A ",
    "named.wav": b"\0\0\0\x20ftypmp42",
    "browser.wav": b"\x1aE\xdf\xa3",
    "radio": b"\xff\xf1P@",
    "dictaphone.wma": b"anything",
}


@pytest.mark.parametrize(("name", "content"), MARKED.items())
def test_without_ffmpeg_the_error_names_the_extra(tmp_path, monkeypatch, name, content):
    monkeypatch.setattr("melmask.audio.files.can_read_videos", lambda: False)
    monkeypatch.setattr("melmask.audio.decode.can_read_videos", lambda: False)
    (tmp_path / name).write_bytes(content + bytes(1000))
    with pytest.raises(AudioFileError, match=rf"{name} cannot be read by libsndfile; .*pip install 'melmask\[av\]'"):
        read_audio(tmp_path / name, RATE_HZ)


def test_files_that_need_the_extra_are_counted_by_suffix(monkeypatch):
    monkeypatch.setattr(video, "can_read_videos", lambda: False)
    failed = ["a/x.m4a", "a/y.M4A", "z.wma", "cut.wav"]
    assert missing_decoder(failed) == "3 of these (2 .m4a, 1 .wma) can be read after pip install 'melmask[av]'"
    assert missing_decoder(["cut.wav"]) == ""
    monkeypatch.setattr(video, "can_read_videos", lambda: True)
    assert missing_decoder(failed) == ""


@pytest.mark.parametrize("command", ["prepare", "embed"])
def test_the_summary_and_failed_csv_hold_what_was_not_read(folder, tmp_path, run_folder, monkeypatch, capsys, command):
    from melmask.cli import main

    for module in ("video", "files", "decode"):
        monkeypatch.setattr(f"melmask.audio.{module}.can_read_videos", lambda: False)
    root = folder("sounds/a.wav", "sounds/._a.wav") / "sounds"
    for name in ("b.m4a", "c.m4a", "d.mp4"):
        (root / name).write_bytes(MARKED["phone.m4a"])
    if command == "prepare":
        assert main(["prepare", str(root), "--out", str(tmp_path / "store")]) == 0
        failures = tmp_path / "store/failed.csv"
    else:
        out = tmp_path / "x.parquet"
        assert main(["embed", str(root), "--model", str(run_folder), "--out", str(out), "--device", "cpu"]) == 0
        failures = tmp_path / "x.parquet.failed.csv"
    assert "3 of these (2 .m4a, 1 .mp4) can be read after pip install 'melmask[av]'" in capsys.readouterr().out
    with failures.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [os.path.basename(row["path"]) for row in rows] == ["b.m4a", "c.m4a", "d.mp4"]  # noqa: PTH119
    assert all("melmask[av]" in row["reason"] for row in rows)


def test_a_long_file_waits_on_the_disk_and_gives_the_same_store(folder, tmp_path, monkeypatch):
    root = folder("sounds/a.wav", "sounds/b.wav") / "sounds"
    prepare([root], tmp_path / "memory", FrontEndConfig(), threads=1)
    monkeypatch.setattr(prepare_module, "_SPOOL_BYTES", 100)
    monkeypatch.setattr(prepare_module, "_FRAMES_READ", 3)
    prepare([root], tmp_path / "disk", FrontEndConfig(), threads=2)
    kept = [tmp_path / store / "shard-00000.f16" for store in ("memory", "disk")]
    assert kept[0].read_bytes() == kept[1].read_bytes() != b""
    assert not [path for path in (tmp_path / "disk").iterdir() if path.name.startswith("tmp")]


def test_a_disk_without_room_for_a_waiting_file_is_reported(folder, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_module, "_SPOOL_BYTES", 100)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OutputError, match="No space left"):
        prepare([folder("a.wav")], tmp_path / "store", FrontEndConfig(), threads=1)


def encoded_by_ffmpeg(path, container, codec, seconds=2.0, rate_hz=44100, layout="stereo"):
    av = pytest.importorskip("av", reason="needs the extra melmask[av]")
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    channels = np.stack([0.4 * np.sin(2 * np.pi * 440 * time_s)] * (2 if layout == "stereo" else 1))
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate_hz, layout=layout)
        stream.bit_rate = 128_000
        for first in range(0, channels.shape[1], 1024):
            part = np.ascontiguousarray(channels[:, first : first + 1024], np.float32)
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate_hz, first
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("container", "codec", "layout"),
    [("mp4", "aac", "stereo"), ("adts", "aac", "mono"), ("asf", "wmav2", "stereo"), ("mov", "alac", "mono")],
)
def test_sound_of_phones_and_videos_is_read_with_the_extra(tmp_path, container, codec, layout):
    # The name says nothing: the content does.
    path = encoded_by_ffmpeg(tmp_path / "sound.dat", container, codec, layout=layout)
    read = read_audio(path, RATE_HZ)
    assert len(read) == pytest.approx(2 * RATE_HZ, abs=2000)
    middle = read[8000:24000]
    assert np.abs(middle).max() == pytest.approx(0.4, abs=0.03)
    assert np.abs(np.fft.rfft(middle)).argmax() == 440


def test_aac_that_is_called_an_mp3_is_read(tmp_path, capfd):
    path = encoded_by_ffmpeg(tmp_path / "radio.mp3", "adts", "aac")
    assert len(read_audio(path, RATE_HZ)) == pytest.approx(2 * RATE_HZ, abs=2000)
    path.write_bytes(b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + path.read_bytes())
    assert len(read_audio(path, RATE_HZ)) == pytest.approx(2 * RATE_HZ, abs=2000)
    assert capfd.readouterr().err == ""


def test_a_video_that_breaks_off_or_has_no_sound_is_refused(tmp_path):
    av = pytest.importorskip("av", reason="needs the extra melmask[av]")
    path = encoded_by_ffmpeg(tmp_path / "cut.wma", "asf", "wmav2", seconds=10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioFileError, match=r"breaks off after|Invalid data"):
        read_audio(path, RATE_HZ)
    silent = tmp_path / "silent.mp4"
    with av.open(str(silent), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        file.mux(stream.encode(None))
    with pytest.raises(AudioFileError, match=r"silent.mp4 has no sound track"):
        read_audio(silent, RATE_HZ)


def test_a_playlist_cannot_make_ffmpeg_open_other_files(tmp_path):
    pytest.importorskip("av", reason="needs the extra melmask[av]")
    soundfile.write(tmp_path / "secret.wav", np.zeros(16000), RATE_HZ)
    playlists = {
        "a.m4a": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n",
        "b.mp4": "ffconcat version 1.0\nfile secret.wav\n",
    }
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioFileError, match="cannot be read as sound"):
            read_audio(tmp_path / name, RATE_HZ)


def test_every_suffix_is_scanned_once():
    assert not folders.SOUND_SUFFIXES & VIDEO_SUFFIXES
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in folders.SOUND_SUFFIXES | VIDEO_SUFFIXES)


def test_a_file_that_points_beyond_its_end_leaves_no_traceback(tmp_path, capfd):
    pytest.importorskip("av", reason="needs the extra melmask[av]")
    path = tmp_path / "lying.caf"
    soundfile.write(path, np.zeros(1600), 16000, format="CAF", subtype="PCM_16")
    content = path.read_bytes()
    # A chunk after the first one, which ends at byte 52, says that it has 2^62 bytes.
    path.write_bytes(content[:52] + b"junk" + (1 << 62).to_bytes(8, "big") + content[52:])
    with pytest.raises(AudioFileError, match=r"lying\.caf names places beyond"):
        read_audio(path, 16000)
    assert "Traceback" not in capfd.readouterr().err
