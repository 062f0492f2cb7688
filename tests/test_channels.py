"""One channel of a recording is chosen by its number; without a choice, channels are averaged."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import melmask
from melmask.audio.files import read_audio_blocks
from melmask.cli import main
from melmask.config import FrontEndConfig, Reading, ReadingOptions
from melmask.corpus.prepare import prepare
from melmask.embedding.folder import embed_sources
from melmask.embedding.options import EmbedOptions
from melmask.embedding.tables import read_settings
from melmask.errors import AudioFileError, ConfigError, OutputError, StoreError

RATE_HZ = 16000


@pytest.fixture
def stereo(tmp_path, as_file, sound):
    """A folder with a stereo file of two sounds, beside the two as mono files elsewhere."""
    left, right = sound(1, 0), sound(1, 3)
    (tmp_path / "stereo").mkdir()
    (tmp_path / "stereo/both.wav").write_bytes(as_file(np.stack([left, right], 1), subtype="FLOAT"))
    for name, waveform in (("left", left), ("right", right)):
        (tmp_path / f"{name}.wav").write_bytes(as_file(waveform, subtype="FLOAT"))
    return tmp_path


def test_a_channel_is_read_by_its_number(stereo):
    read = {
        channel: next(read_audio_blocks(stereo / "stereo/both.wav", RATE_HZ, Reading(channel=channel)))
        for channel in "12"
    }
    left, right = (next(read_audio_blocks(stereo / f"{name}.wav", RATE_HZ)) for name in ("left", "right"))
    np.testing.assert_array_equal(read["1"], left)
    np.testing.assert_array_equal(read["2"], right)
    mean = next(read_audio_blocks(stereo / "stereo/both.wav", RATE_HZ))
    np.testing.assert_allclose(mean, (left + right) / 2, atol=1e-7)
    with pytest.raises(AudioFileError, match=r"both.wav has no channel 3, only 2"):
        next(read_audio_blocks(stereo / "stereo/both.wav", RATE_HZ, Reading(channel="3")))


@pytest.mark.parametrize("channel", ["0", "-1", "left", "", "1.5", "²", "99999"])
def test_what_is_no_channel_is_refused(channel):
    for options in (Reading, ReadingOptions):
        with pytest.raises(ConfigError, match="give mean, the number of a channel from 1 on, or each"):
            options(channel=channel)


@pytest.mark.parametrize("normalization", ["checkpoint", "dataset"])
def test_embeddings_are_those_of_the_channel_and_say_so(stereo, run_folder, normalization):
    out = stereo / "x.parquet"
    options = EmbedOptions(device="cpu", reading=ReadingOptions(channel="2"), normalization=normalization)
    embed_sources([stereo / "stereo"], run_folder, out, options)
    alone = EmbedOptions(device="cpu", normalization=normalization)
    embed_sources([stereo / "right.wav"], run_folder, stereo / "right.parquet", alone)
    both, right = (np.stack(pq.read_table(path)["scene"].to_numpy()) for path in (out, stereo / "right.parquet"))
    np.testing.assert_allclose(both, right, atol=1e-6)
    assert read_settings(out).channel == "2"
    assert read_settings(stereo / "right.parquet").channel == "mean"


def test_a_job_is_not_resumed_with_another_channel(stereo, run_folder):
    out = stereo / "x.parquet"
    embed_sources([stereo / "stereo"], run_folder, out, EmbedOptions(device="cpu"))
    # As a killed job leaves it: parts, and no table. Earlier versions did not write the channel.
    parts = stereo / "y.parquet.parts"
    parts.mkdir()
    settings = read_settings(out).to_json()
    assert "channel" not in json.loads(settings)
    (parts / "job.json").write_text(settings)
    (parts / "part-00000.parquet").touch()
    with pytest.raises(OutputError, match="belongs to a job with another channel"):
        embed_sources(
            [stereo / "stereo"],
            run_folder,
            stereo / "y.parquet",
            EmbedOptions(device="cpu", reading=ReadingOptions(channel="1")),
        )


def test_a_store_holds_one_choice_of_channel(stereo):
    command = [
        "prepare",
        str(stereo / "stereo"),
        "--out",
        str(stereo / "store"),
        "--channel",
        "2",
        "--resolutions",
        "1",
    ]
    assert main(command) == main(command) == 0
    prepare([stereo / "right.wav"], stereo / "alone", FrontEndConfig())
    kept = [(stereo / name / "shard-00000.f16").read_bytes() for name in ("store", "alone")]
    assert kept[0] == kept[1]
    with pytest.raises(StoreError, match="was made with --channel 2, not mean"):
        prepare([stereo / "stereo"], stereo / "store", FrontEndConfig())


def test_a_file_without_the_channel_is_listed(stereo, capsys):
    command = ["prepare", str(stereo / "stereo"), str(stereo / "left.wav"), "--out", str(stereo / "store")]
    assert main([*command, "--channel", "2"]) == 0
    assert "1 file could not be read" in capsys.readouterr().out
    assert "left.wav has no channel 2, only 1" in (stereo / "store/failed.csv").read_text(encoding="utf-8")


def test_the_encoder_hears_the_mean_unless_told_otherwise(run_folder):
    assert melmask.load(run_folder, "cpu").reading == Reading()
