"""What a header says about length is a hint: files are read to the end of their sound, or refused as broken off."""

import contextlib
import io
import os
import signal
import struct
import threading
import time

import numpy as np
import pytest
import soundfile

from melmask.audio.files import read_audio, read_audio_blocks
from melmask.audio.pieces import Pieces
from melmask.errors import AudioFileError

RATE_HZ = 44100
SECONDS = 3


def sound(seed=0, seconds=SECONDS):
    """A chirp that grows louder, so that MP3 frames of a variable rate differ in size."""
    time_s = np.arange(seconds * RATE_HZ) / RATE_HZ
    noise = np.random.default_rng(seed).normal(size=time_s.size)
    return (0.3 * np.sin(2 * np.pi * (200 + 300 * time_s) * time_s) + 0.1 * time_s / seconds * noise).astype(np.float32)


def encoded(kind, seed=0, rate_hz=RATE_HZ, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, sound(seed), rate_hz, format=kind, **options)
    return buffer.getvalue()


def mp3(seed=0, mode="CONSTANT"):
    return encoded("MP3", seed, subtype="MPEG_LAYER_III", bitrate_mode=mode, compression_level=0.6)


def without_tag(content):
    """An MP3 as encoders write it to a pipe: from the second frame on, as the first is the tag that counts them."""
    return content[content.index(content[:2], 4) :]


def refusal(path):
    with pytest.raises(AudioFileError) as caught:
        read_audio(path, RATE_HZ)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def read(tmp_path):
    """Write bytes to a file and return its samples at 44.1 kHz."""

    def samples_of(content, name="sound"):
        path = tmp_path / name
        path.write_bytes(content)
        return read_audio(path, RATE_HZ)

    return samples_of


def assert_same_sound(read, expected, tolerance=1e-3):
    assert len(read) == len(expected)
    np.testing.assert_allclose(read, expected, atol=tolerance)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_without_its_tag_is_read_whole(read, mode):
    content = mp3(mode=mode)
    whole, bare = read(content), read(without_tag(content))
    assert len(whole) == SECONDS * RATE_HZ
    # Without the tag nothing says which samples at the ends are the encoder's own.
    assert 0 <= len(bare) - len(whole) <= 3 * 1152
    shift = int(np.argmax(np.correlate(bare[20000:30000], whole[21000:28000]))) - 1000
    np.testing.assert_allclose(bare[22000 + shift : 90000 + shift], whole[22000:90000], atol=1e-3)


def test_an_mp3_with_its_tag_is_read_as_libsndfile_reads_it(tmp_path, read):
    content = mp3(mode="VARIABLE")
    samples = read(content, "tagged.mp3")
    expected, _ = soundfile.read(tmp_path / "tagged.mp3", dtype="float32")
    np.testing.assert_array_equal(samples, expected)
    for tail in (b"TAG".ljust(128, b"\0"), b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 0).ljust(24, b"\0")):
        np.testing.assert_array_equal(read(content + tail), expected)


@pytest.mark.parametrize("between", [b"", b"ID3\4\0\0\0\0\0\x0a" + bytes(10), b"TAG".ljust(128, b"\0")])
def test_joined_mp3s_are_all_read(read, between):
    first, second = mp3(0), mp3(1, "VARIABLE")
    expected = np.concatenate([read(first), read(second)])
    np.testing.assert_array_equal(read(first + between + second), expected)
    bare = without_tag(second)
    assert_same_sound(read(first + between + bare), np.concatenate([read(first), read(bare)]))
    # Without any tag, a decoder cannot tell where one sound ends.
    joined = read(without_tag(first) + between + bare)
    assert abs(len(joined) - len(read(without_tag(first))) - len(read(bare))) < 2000


def test_joined_mp3s_of_two_rates_are_all_read(tmp_path):
    path = tmp_path / "joined.mp3"
    path.write_bytes(mp3(0) + without_tag(encoded("MP3", 1, rate_hz=22050, subtype="MPEG_LAYER_III")))
    assert read_audio(path, 16000).size == pytest.approx(3 * SECONDS * 16000, abs=2000)


def test_an_mp3_that_counts_more_frames_than_it_has_is_refused(read, capfd):
    content = mp3()
    for kept in (len(content) // 2, len(content) * 9 // 10):
        with pytest.raises(AudioFileError, match="breaks off"):
            read(content[:kept])
    with pytest.raises(AudioFileError, match="breaks off"):
        read(content + content[: len(content) // 2])
    assert capfd.readouterr().err == ""


def test_damage_between_the_frames_of_an_mp3_is_skipped(read, capfd):
    content = without_tag(mp3())
    middle = content.index(b"\xff\xfb", len(content) // 2)
    damaged = content[:middle] + b"no frame at all " * 100 + content[middle:]
    assert_same_sound(read(damaged), read(content))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("count", ["none", "half", "double"])
def test_a_flac_with_a_wrong_count_of_samples_is_read_whole(read, count):
    content = bytearray(encoded("FLAC"))
    field = int.from_bytes(content[18:26], "big")
    samples = field & (1 << 36) - 1
    wrong = {"none": 0, "half": samples // 2, "double": 2 * samples}[count]
    expected = read(bytes(content))
    content[18:26] = (field >> 36 << 36 | wrong).to_bytes(8, "big")
    np.testing.assert_array_equal(read(bytes(content)), expected)
    # An ID3 tag before it, as some programs write.
    np.testing.assert_array_equal(read(b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + content), expected)


@pytest.mark.parametrize("kinds", [("VORBIS", "VORBIS"), ("OPUS", "OPUS"), ("OPUS", "VORBIS")])
def test_chained_ogg_streams_are_all_read(tmp_path, kinds):
    links = [encoded("OGG", seed, 48000, subtype=kind) for seed, kind in enumerate(kinds)]
    path, parts = tmp_path / "chain.ogg", []
    for link in links:
        path.write_bytes(link)
        parts.append(read_audio(path, 48000))
    path.write_bytes(b"".join(links))
    np.testing.assert_array_equal(read_audio(path, 48000), np.concatenate(parts))
    path.write_bytes(b"".join(links)[:-50])
    assert "breaks off within a page" in refusal(path)


def wav_with(data_bytes, riff_bytes, content=None):
    content = bytearray(content or encoded("WAV"))
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", data_bytes & 0xFFFFFFFF)
    content[4:8] = struct.pack("<I", riff_bytes & 0xFFFFFFFF)
    return bytes(content)


@pytest.mark.parametrize("data_bytes", [0, 2, 1001, 50_000, 0xFFFFFFFF, 0x80000000, 0x7FFFFFFE])
@pytest.mark.parametrize("more", [0, 36])
def test_a_wav_that_holds_more_than_its_header_says_is_read_whole(read, data_bytes, more):
    np.testing.assert_array_equal(read(wav_with(data_bytes, data_bytes + more)), read(encoded("WAV")))


def test_a_wav_of_an_odd_number_of_bytes_keeps_its_end(read):
    samples = sound()[: SECONDS * RATE_HZ - 1]
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE_HZ, format="WAV", subtype="PCM_U8")
    assert len(read(buffer.getvalue())) == len(samples)
    assert len(read(buffer.getvalue().rstrip(b"\0"))) == len(samples)


@pytest.mark.parametrize(
    "after", [b"LIST" + struct.pack("<I", 4) + b"INFO", b"xtra\4\0\0\0abcd", b"TAG".ljust(128, b"\0"), b"\0\0"]
)
def test_chunks_and_tags_after_the_sound_of_a_wav_are_not_sound(read, after):
    np.testing.assert_array_equal(read(encoded("WAV") + after), read(encoded("WAV")))


@pytest.mark.parametrize("data_bytes", [0, 1000])
def test_an_rf64_that_holds_more_than_its_header_says_is_read_whole(read, data_bytes):
    content = bytearray(encoded("RF64"))
    assert content[12:16] == b"ds64"
    content[28:36] = struct.pack("<Q", data_bytes)
    np.testing.assert_array_equal(read(bytes(content)), read(encoded("RF64")))


def test_an_rf64_that_is_cut_is_refused(read):
    with pytest.raises(AudioFileError, match=r"breaks off after \d+ of 132300 samples"):
        read(encoded("RF64")[:100_000])


@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_a_file_with_a_hole_is_refused(read, kind, subtype):
    content = bytearray(encoded(kind, rate_hz=48000, subtype=subtype))
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    with pytest.raises(AudioFileError, match=r"is damaged within|breaks off after"):
        read(bytes(content))


def test_a_wav_beyond_4_gib_is_read_on(tmp_path):
    """The 32-bit size has wrapped. A sparse file, of which the first blocks are read; no disk holds its zeros."""
    path, data_bytes = tmp_path / "long.wav", (1 << 32) + 80_000
    with path.open("wb") as file:
        file.write(wav_with(data_bytes, data_bytes + 36)[: 44 + 80_000])
        file.truncate(44 + data_bytes)
    blocks = read_audio_blocks(path, RATE_HZ)
    assert len(next(blocks)) == len(next(blocks)) > 80_000
    blocks.close()


@pytest.mark.parametrize("kind", ["AIFF", "AU"])
def test_an_aiff_or_au_that_holds_more_than_its_header_says_is_read_whole(read, kind):
    content = bytearray(encoded(kind))
    expected = read(bytes(content))
    if kind == "AU":
        content[8:12] = struct.pack(">I", 1000)
    else:
        place = content.index(b"SSND") + 4
        content[place : place + 4] = struct.pack(">I", 1008)
        content[4:8] = struct.pack(">I", place + 1008)
        place = content.index(b"COMM") + 10
        content[place : place + 4] = struct.pack(">I", 500)
    np.testing.assert_array_equal(read(bytes(content)), expected)


def size_at(content, chunk, layout):
    """Where the size of a chunk is: in a W64 it follows the 16 bytes of the name."""
    return content.index(chunk, 12) + (16 if layout == "<Q" else 4)


# libsndfile goes by the size of the whole file in a W64, so that its own sizes matter only where they are too large.
SIZES = [
    ("CAF", {}, ">q", [-1, 0, 4, 1004]),
    ("WAV", {"endian": "BIG"}, ">I", [0, 2, 1000, 0xFFFFFFFF]),
    ("W64", {}, "<Q", [24, 1024, (1 << 63) - 1]),
]


@pytest.mark.parametrize(("kind", "options", "layout", "sizes"), SIZES, ids=["CAF", "RIFX", "W64"])
def test_a_caf_rifx_or_w64_that_holds_more_than_its_header_says_is_read_whole(read, kind, options, layout, sizes):
    content = bytearray(encoded(kind, subtype="PCM_16", **options))
    expected, place = read(bytes(content)), size_at(content, b"data", layout)
    after = bytes(content) + (b"info" + struct.pack(">q", 4) + bytes(4) if kind == "CAF" else b"")
    np.testing.assert_array_equal(read(after), expected)
    for size in sizes:
        struct.pack_into(layout, content, place, size)
        np.testing.assert_array_equal(read(bytes(content)), expected)


@pytest.mark.parametrize(("kind", "options"), [row[:2] for row in SIZES], ids=["CAF", "RIFX", "W64"])
def test_a_caf_rifx_or_w64_that_is_cut_is_refused(read, kind, options):
    content = encoded(kind, subtype="PCM_16", **options)
    with pytest.raises(AudioFileError, match=r"breaks off after \d+ of 132[23]\d\d samples"):
        read(content[: len(content) // 2])


def test_what_the_decoder_prints_of_damage_within_a_frame_is_told_once_with_the_name(read, tmp_path, capfd):
    whole, rng = mp3(), np.random.default_rng(0)
    for number in range(200):
        content = bytearray(whole)
        for at in rng.integers(2000, len(content), 4):
            content[at] ^= 16
        with contextlib.suppress(AudioFileError):
            read(bytes(content), f"{number}.mp3")
        if capfd.readouterr().err:
            break
    lines, stop = [], threading.Event()

    def chatter():
        while not stop.is_set():
            lines.append(f"line {len(lines)}")
            os.write(2, f"{lines[-1]}\n".encode())
            time.sleep(1e-4)

    thread = threading.Thread(target=chatter)
    thread.start()
    for _ in range(3):
        with contextlib.suppress(AudioFileError):
            read(bytes(content), "damaged.mp3")
    stop.set()
    thread.join()
    said = capfd.readouterr().err.splitlines()
    # What other threads write at that time arrives, in order.
    assert [line for line in said if line.startswith("line ")] == lines
    (told,) = [line for line in said if not line.startswith("line ")]
    assert told.startswith(f"{tmp_path / 'damaged.mp3'}: damaged within") and ("libmpg123" in told or "Note" in told)


@pytest.mark.parametrize("rate_hz", [0, 1, 2, 99, 20_000_000, 0x7FFFFFFF])
def test_a_rate_that_no_recorder_has_is_refused(tmp_path, rate_hz):
    content = bytearray(encoded("WAV"))
    content[24:28] = struct.pack("<I", rate_hz)
    (tmp_path / "lying.wav").write_bytes(content)
    with pytest.raises(AudioFileError):
        read_audio(tmp_path / "lying.wav", RATE_HZ)


@pytest.mark.parametrize(("rate_hz", "channels"), [(100, 1), (16000, 1024), (100, 1024)])
def test_blocks_are_bounded_by_what_comes_out(tmp_path, monkeypatch, rate_hz, channels):
    monkeypatch.setattr("melmask.audio.files._BLOCK_FRAMES", 20_000)
    path = tmp_path / "wide.wav"
    soundfile.write(path, np.zeros((3000, channels), np.int16), rate_hz)
    blocks = [len(block) for block in read_audio_blocks(path, 16000)]
    assert sum(blocks) == 3000 * 16000 // rate_hz
    # The resampler holds some back, and gives it with a later block.
    assert max(blocks) <= 10 * 20_000


def test_pieces_of_a_file_read_as_one_and_never_raise(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    with (tmp_path / "x").open("rb") as file:
        pieces = Pieces(file, [b"ab", (3, 6), b"", (8, 10)])
        assert pieces.read() == b"ab34589"
        assert pieces.seek(-3, io.SEEK_END) == 4
        assert pieces.read(2) == b"58"
        assert pieces.seek(-100) == 0
        assert pieces.seek(100) == 100
        assert pieces.read(5) == b""
        beyond = Pieces(file, [(8, 30), b"z"])
        assert beyond.read(10) == b"89"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_file_is_decoded_is_not_taken_for_its_end(read, monkeypatch, number):
    def interrupt(*_):
        raise KeyboardInterrupt

    readinto = Pieces.readinto

    def interrupted(pieces, buffer):
        if pieces.tell() > 10_000:
            signal.raise_signal(number)
        return readinto(pieces, buffer)

    monkeypatch.setattr(Pieces, "readinto", interrupted)
    previous = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            read(encoded("FLAC"))
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, previous)


def test_files_made_to_take_long_do_not(read):
    """Each place in them looks like the start of a frame."""
    flac = bytearray(encoded("FLAC")[:-1])
    flac[-200_000:] = b"\xff\xf8" * 100_000
    with pytest.raises(AudioFileError):
        read(bytes(flac))
    bare = without_tag(mp3())
    read(bare + b"\xff\xfb\x10\xc4\x00" * 200_000)


@pytest.mark.parametrize("after", [b"TAG".ljust(128, b"x"), b"APETAGEX" + bytes(60), bytes(1000), b"\n"])
def test_what_follows_the_last_frame_of_a_flac_is_not_sound(read, after):
    content = encoded("FLAC")
    np.testing.assert_array_equal(read(content + after), read(content))


def test_a_flac_behind_another_one_is_not_left_out_without_a_word(tmp_path):
    path = tmp_path / "two.flac"
    path.write_bytes(encoded("FLAC") * 2)
    assert "damaged within" in refusal(path)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("name", ["sound.mp3", "SOUND.MP3"])
def test_an_mp3_that_does_not_begin_with_a_frame_is_read_whole(read, mode, name):
    content = without_tag(mp3(mode=mode))
    expected = read(content, name)
    np.testing.assert_array_equal(read(bytes(2000) + content, name), expected)
    np.testing.assert_array_equal(read(b"ID3\4\0\0\0\0\0\x0a" + bytes(2010) + content, name), expected)
    # A recording of a radio stream begins within a frame.
    assert len(expected) - len(read(content[100:], name)) == 1152


def test_chunks_that_are_not_padded_after_the_sound_of_a_wav_are_not_sound(read):
    after = b"LIST" + struct.pack("<I", 7) + b"INFOabc" + b"bext" + struct.pack("<I", 602) + bytes(602)
    np.testing.assert_array_equal(read(encoded("WAV") + after), read(encoded("WAV")))


def test_both_data_chunks_of_a_wav_are_read(read):
    content = encoded("WAV", subtype="PCM_16")
    start = content.index(b"data") + 8
    samples, half = content[start:], (len(content) - start) // 4 * 2
    chunks = [b"data" + struct.pack("<I", len(part)) + part for part in (samples[:half], samples[half:])]
    body = content[8 : start - 8] + chunks[0] + b"LIST" + struct.pack("<I", 4) + b"INFO" + chunks[1]
    whole = read(content)
    np.testing.assert_array_equal(read(b"RIFF" + struct.pack("<I", len(body)) + body), whole)


def test_an_mp3_within_a_wav_is_read(read):
    frames = without_tag(mp3())
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE_HZ, 16000, 1, 0, 12, 1, 2, 417, 1, 1393)
    count = b"fact" + struct.pack("<II", 4, SECONDS * RATE_HZ + 1500)
    chunks = (
        b"WAVEfmt " + struct.pack("<I", len(form)) + form + count + b"data" + struct.pack("<I", len(frames)) + frames
    )
    content = b"RIFF" + struct.pack("<I", len(chunks)) + chunks
    assert len(read(content, "sound.wav")) >= SECONDS * RATE_HZ


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "CAF", "AIFF", "AU", "FLAC", "OGG", "MP3"])
def test_a_file_that_breaks_off_within_its_header_is_refused(tmp_path, kind):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    soundfile.write(whole, np.zeros(1000, np.float32), 16000, format=kind)
    content = whole.read_bytes()
    for length in range(44):
        cut.write_bytes(content[:length])
        with pytest.raises(AudioFileError):
            read_audio(cut, 16000)


@pytest.mark.parametrize(
    "content", [b"RF64\xff\xff\xff\xffWAVEds64\0\0\0\0data\xff\xff\xff\xff", b"TAG", b"APETAGEX" * 2]
)
def test_a_few_bytes_that_look_like_a_header_are_refused(tmp_path, content):
    (tmp_path / "few.mp3").write_bytes(content)
    with pytest.raises(AudioFileError):
        read_audio(tmp_path / "few.mp3", 16000)
