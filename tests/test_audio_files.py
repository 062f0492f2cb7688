import os
import struct

import numpy as np
import pytest

from melmask.audio import files
from melmask.audio.files import find_audio, read_audio, read_audio_blocks
from melmask.errors import AudioFileError, InputError

RATE_HZ = 16000
# Edges left out of comparisons: filters of resamplers and codecs ring there.
EDGE = 1600


def tones(seconds, rate_hz=RATE_HZ):
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.4 * np.sin(2 * np.pi * 440 * time_s) + 0.2 * np.sin(2 * np.pi * 3000 * time_s)).astype(np.float32)


def largest_difference(a, b):
    return np.abs(a - b)[EDGE:-EDGE].max()


@pytest.fixture
def written(tmp_path, as_file):
    """Write a sound file under a name and return its path."""

    def write(name, waveform, *args, **kwargs):
        path = tmp_path / name
        path.write_bytes(as_file(waveform, *args, **kwargs))
        return path

    return write


def assert_refused(path, *words):
    """Reading fails with one line that names the file and holds `words`."""
    with pytest.raises(AudioFileError) as caught:
        read_audio(path, RATE_HZ)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 0.01),
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-7),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 0),
        ("FLAC", "PCM_16", 1e-4),
        ("FLAC", "PCM_24", 1e-6),
        ("AIFF", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.05),
        ("OGG", "OPUS", 0.08),
        ("MP3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_every_format_gives_the_same_sound(written, kind, subtype, tolerance):
    waveform = tones(2)
    read = read_audio(written("sound", waveform, RATE_HZ, kind, subtype), RATE_HZ)
    assert read.dtype == np.float32
    assert read.shape == waveform.shape
    assert largest_difference(read, waveform) <= tolerance


def test_stereo_at_44100_hz_reads_as_the_16_khz_original(written):
    left = tones(2, 44100)
    read = read_audio(written("stereo.wav", np.stack([left, 0.5 * left], 1), 44100, subtype="FLOAT"), RATE_HZ)
    assert read.shape == (2 * RATE_HZ,)
    assert largest_difference(read, 0.75 * tones(2)) < 1e-4


def test_eight_channels_at_96_khz_are_averaged_and_resampled(written):
    gains = np.arange(8) / 8
    read = read_audio(written("many.wav", tones(1, 96000)[:, None] * gains, 96000, subtype="FLOAT"), RATE_HZ)
    assert read.shape == (RATE_HZ,)
    assert largest_difference(read, gains.mean() * tones(1)) < 1e-4


@pytest.mark.parametrize("rate_hz", [16000, 44100, 8000])
def test_a_file_read_in_blocks_equals_the_file_read_at_once(written, monkeypatch, rate_hz):
    path = written("long.wav", np.stack([tones(1, rate_hz)] * 2, 1), rate_hz)
    whole = read_audio(path, RATE_HZ)
    monkeypatch.setattr(files, "_BLOCK_FRAMES", 1000)
    blocks = list(read_audio_blocks(path, RATE_HZ))
    assert len(blocks) > 5
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-7)


def test_a_single_sample_is_read(written):
    assert read_audio(written("one.wav", np.full(1, 0.5)), RATE_HZ) == pytest.approx([0.5])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(written, value):
    waveform = tones(1)
    waveform[5000] = value
    assert_refused(written("nan.wav", waveform, subtype="FLOAT"), "NaN", "leave out")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.wav").touch()
    assert_refused(tmp_path / "empty.wav", "0 bytes", "leave it out")


def test_text_named_wav_is_refused(tmp_path):
    (tmp_path / "text.wav").write_text("hello " * 100)
    assert_refused(tmp_path / "text.wav", "expected wav, flac")


def test_a_folder_named_wav_is_refused(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    assert_refused(tmp_path / "folder.wav", "expected wav, flac")


def test_headerless_samples_are_refused(tmp_path):
    (tmp_path / "samples.raw").write_bytes(bytes(4000))
    assert_refused(tmp_path / "samples.raw", "expected wav, flac")


def test_a_missing_file_is_refused(tmp_path):
    assert_refused(tmp_path / "missing.wav", "does not exist", "check the path")


@pytest.mark.parametrize(("samples", "rate_hz"), [(0, 16000), (1, 96000)])
def test_a_file_without_samples_is_refused(written, samples, rate_hz):
    assert_refused(written("none.wav", tones(1)[:samples], rate_hz), "no samples", "leave it out")


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_a_truncated_flac_is_refused(written, kept):
    # Noise, so that the data is as long as the sound.
    path = written("cut.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE_HZ), RATE_HZ, "FLAC")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert_refused(path)


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "W64", "NIST", "VOC"])
def test_a_header_that_announces_more_than_the_file_holds_is_refused(written, kind):
    path = written("cut", tones(2), RATE_HZ, kind)
    assert len(read_audio(path, RATE_HZ)) == 2 * RATE_HZ
    path.write_bytes(path.read_bytes()[:20000])
    assert_refused(path, "breaks off", "restore or leave out")


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_written_to_a_pipe_without_its_length_is_read(written, length):
    path = written("pipe.wav", tones(1))
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", length)
    path.write_bytes(content)
    assert len(read_audio(path, RATE_HZ)) == RATE_HZ


def test_a_scan_finds_known_suffixes_below_a_folder_in_order(tmp_path, as_file):
    content = as_file(tones(0.1))
    for name in ("z.wav", "b/c.FLAC", "b/a.mp3", "a.opus", "notes.txt", "cover.jpg", "b/list.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.wav").mkdir()
    expected = [tmp_path / name for name in ("a.opus", "b/a.mp3", "b/c.FLAC", "z.wav")]
    assert find_audio([tmp_path]) == expected


def test_sources_keep_their_order_and_give_each_file_once(tmp_path, as_file):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(as_file(tones(0.1)))
    a, b = tmp_path / "a.wav", tmp_path / "b.wav"
    assert find_audio([b, tmp_path, b]) == [b, a]


def test_sources_that_give_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no sound files"):
        find_audio([tmp_path])
    with pytest.raises(InputError, match="does not exist"):
        find_audio([tmp_path / "nowhere"])


def test_a_file_name_that_no_table_can_hold_fails_alone(tmp_path, written):
    written("good.wav", tones(1))
    (tmp_path / "caf\udce9.wav").touch()
    odd, good = find_audio([tmp_path])
    assert good.name == "good.wav"
    with pytest.raises(AudioFileError, match=r"caf\\udce9.wav has a name that is not UTF-8; rename"):
        read_audio(odd, RATE_HZ)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.wav")
    assert_refused(tmp_path / "x.wav", "is a pipe or device", "save the sound as a file")
    assert_refused(tmp_path, "cannot be read as sound")


def test_a_name_that_no_file_system_takes_fails_alone(tmp_path):
    assert_refused(tmp_path / ("x" * 300 + ".wav"), "cannot be opened (File name too long); check the path")


def test_a_link_to_nowhere_is_a_missing_file(tmp_path):
    (tmp_path / "a.wav").symlink_to("gone.wav")
    (path,) = find_audio([tmp_path])
    assert_refused(path, "is a link to gone.wav, which does not exist")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    assert_refused(tmp_path / "loop.wav", "cannot be opened (Too many levels of symbolic links)")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_that_ends_within_a_page_is_refused(written, subtype):
    path = written("cut.ogg", np.random.default_rng(0).uniform(-0.5, 0.5, 5 * RATE_HZ), RATE_HZ, "OGG", subtype)
    whole = path.read_bytes()
    last_page = whole.rfind(b"OggS")
    for kept in (len(whole) - 1, len(whole) * 3 // 4, last_page + 26, last_page + 27, last_page + 4):
        path.write_bytes(whole[:kept])
        assert_refused(path, "breaks off within a page", "restore or leave out")
    path.write_bytes(whole)
    assert len(read_audio(path, RATE_HZ)) == 5 * RATE_HZ


def test_values_beyond_all_sound_are_refused(written):
    """Their log-mel would be infinite."""
    wave = tones(0.2)
    wave[100] = 1e30
    assert_refused(written("loud.wav", wave, subtype="FLOAT"), "holds samples of 1e+30; expected -1 to 1")
