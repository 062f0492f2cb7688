"""One setting scales the front end to a band of frequency, and front ends with empty bands are refused."""

from dataclasses import replace

import pytest

from melmask.audio.bands import BANDS, check_filters, front_end_of, with_second_resolution
from melmask.audio.logmel import empty_filters, mel_filterbank
from melmask.cli import main
from melmask.config import FRONT_END_32_KHZ, FrontEndConfig
from melmask.corpus.store import Store
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import ConfigError


def test_names_of_the_published_front_ends():
    assert front_end_of("speech") == FrontEndConfig()
    assert front_end_of("wide") == FRONT_END_32_KHZ


@pytest.mark.parametrize("band", [*BANDS, "100", "8000", "11025", "44100", "48000", "96000", "384000", "2000000"])
def test_a_band_scales_the_whole_front_end(band):
    front_end = front_end_of(band)
    assert front_end.sample_rate_hz == (BANDS[band] if band in BANDS else int(band))
    assert front_end.max_hz == front_end.sample_rate_hz / 2
    assert front_end.mels == 80
    assert front_end.win_samples == pytest.approx(2.5 * front_end.hop_samples, rel=0.01)
    assert (mel_filterbank(front_end).sum(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("band", "rate_hz", "min_hz"),
    [
        ("speech", 16000, 50),
        ("11025", 11025, 50),
        ("hydrophone", 2000, 12.5),
        ("bats", 256_000, 10_000),
        ("96000", 96_000, 3750),
        ("384000", 384_000, 10_000),
    ],
)
def test_a_band_has_its_rate_and_its_lowest_frequency(band, rate_hz, min_hz):
    front_end = front_end_of(band)
    assert (front_end.sample_rate_hz, front_end.min_hz) == (rate_hz, min_hz)


@pytest.mark.parametrize("band", ["99", "2000001", "batz", "", "16e3", "-16000", "²"])
def test_what_is_no_band_is_refused(band):
    with pytest.raises(ConfigError, match=r"give a sample rate from 100 to 2000000 Hz, or speech, wide, bats, hydrop"):
        front_end_of(band)


@pytest.mark.parametrize(
    "front_end",
    [FrontEndConfig(), FrontEndConfig(sample_rate_hz=384000), FrontEndConfig(mels=128), FrontEndConfig(min_hz=7999.0)],
)
def test_empty_filters_are_counted_as_they_are(front_end):
    assert empty_filters(front_end) == (mel_filterbank(front_end).sum(axis=1) == 0).sum()


def test_empty_bands_are_refused_with_a_way_out(sound_folder, tmp_path, capsys):
    command = ["prepare", str(sound_folder), "--out", str(tmp_path / "store"), "sample_rate_hz=384000"]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "64 of the 80 mel bands hold no frequency" in line and "give --band 384000" in line
    assert not (tmp_path / "store").exists()
    longer = replace(FrontEndConfig(sample_rate_hz=384000), n_fft=6400)
    assert "n_fft=6400" in line
    check_filters(longer)


def test_a_checkpoint_with_empty_bands_stays_usable(encoder):
    card = replace(encoder.card, front_end=FrontEndConfig(sample_rate_hz=384000))
    assert AudioEncoder(encoder.model, card, device="cpu").sample_rate_hz == 384000


def test_single_settings_are_applied_after_the_band(sound_folder, tmp_path):
    out = tmp_path / "store"
    assert main(["prepare", str(sound_folder), "--out", str(out), "--band", "wide", "hop_samples=160"]) == 0
    assert Store(out).front_end == with_second_resolution(replace(FRONT_END_32_KHZ, hop_samples=160))
