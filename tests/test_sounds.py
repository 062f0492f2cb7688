import csv
import os
from collections import Counter

import numpy as np
import pytest
import soundfile
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from melmask.datasets import synthetic as sounds
from melmask.datasets.synthetic import CLASSES, CLIP_S, SAMPLE_RATE_HZ, synthesize, write_sound_set
from melmask.errors import ConfigError, OutputError

PAIRS = list(zip(CLASSES[::2], CLASSES[1::2], strict=True))
REVERSED_PAIRS = PAIRS[:4]
FRAME_SAMPLES = 400
HOP_SAMPLES = 160
BANDS = 40


def log_spectrogram(clip):
    """(frames, BANDS) log power in bands of equal width."""
    frames = np.lib.stride_tricks.sliding_window_view(clip, FRAME_SAMPLES)[::HOP_SAMPLES]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME_SAMPLES))[:, 1:]) ** 2
    return np.log(power.reshape(len(power), BANDS, -1).mean(2) + 1e-8)


def time_averages(clip):
    spectrogram = log_spectrogram(clip)
    return np.concatenate([spectrogram.mean(0), spectrogram.std(0)])


def foreground(label, seed):
    return sounds._foreground(label, np.random.default_rng(seed), SAMPLE_RATE_HZ)


def read_rows(table):
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sound_set(tmp_path_factory):
    return write_sound_set(tmp_path_factory.mktemp("sounds"), clips_per_class=4, seed=3)


def modified_times_ns(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("label", CLASSES)
def test_a_clip_is_finite_and_within_full_scale(label):
    clip = synthesize(label, 0)
    assert clip.dtype == np.float32
    assert clip.shape == (round(CLIP_S * SAMPLE_RATE_HZ),)
    assert np.isfinite(clip).all()
    assert 10 ** (-30.1 / 20) < np.abs(clip).max() <= 1


@pytest.mark.parametrize("label", CLASSES)
def test_the_same_arguments_give_the_same_clip_and_another_seed_another(label):
    assert np.array_equal(synthesize(label, 5), synthesize(label, 5))
    assert not np.array_equal(synthesize(label, 5), synthesize(label, 6))


def test_a_clip_does_not_depend_on_the_clips_made_before_it():
    alone = synthesize("decay", 1)
    synthesize("trill_slow", 0)
    assert np.array_equal(synthesize("decay", 1), alone)


def test_a_lower_sample_rate_gives_as_many_seconds():
    assert synthesize("sweep_rising", 0, 8000).shape == (round(CLIP_S * 8000),)


def test_there_are_sixteen_classes_with_a_name_each():
    assert len(set(CLASSES)) == len(CLASSES) == 16


def test_levels_spread_over_most_of_the_range():
    levels_db = [20 * np.log10(np.abs(synthesize("vibrato_slow", seed)).max()) for seed in range(30)]
    assert min(levels_db) < -20
    assert max(levels_db) > -10


@pytest.mark.parametrize(("forwards", "backwards"), REVERSED_PAIRS)
def test_reversed_pairs_share_their_spectrum_but_not_their_order(forwards, backwards):
    one, other = foreground(forwards, 0), foreground(backwards, 0)
    np.testing.assert_allclose(np.abs(np.fft.rfft(one)), np.abs(np.fft.rfft(other)), atol=1e-6)
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize(("forwards", "backwards"), REVERSED_PAIRS)
def test_a_class_of_a_reversed_pair_is_the_other_one_played_backwards(forwards, backwards):
    one, other = foreground(forwards, 1), foreground(backwards, 1)
    (heard_one,), (heard_other,) = np.nonzero(one), np.nonzero(other)
    reversed_other = other[heard_other[0] : heard_other[-1] + 1][::-1]
    np.testing.assert_allclose(one[heard_one[0] : heard_one[-1] + 1], reversed_other, atol=1e-9)


@pytest.mark.parametrize(("slow", "fast"), [("tremolo_slow", "tremolo_fast"), ("vibrato_slow", "vibrato_fast")])
def test_rate_pairs_differ_in_how_fast_the_spectrogram_changes(slow, fast):
    def change(label):
        return np.mean([np.abs(np.diff(log_spectrogram(synthesize(label, n)), axis=0)).mean() for n in range(8)])

    assert change(fast) > 1.1 * change(slow)


@pytest.mark.parametrize("pair", PAIRS)
def test_time_averages_do_not_separate_a_pair(pair):
    averages = np.array([time_averages(synthesize(label, n)) for label in pair for n in range(30)])
    is_second = np.repeat([0, 1], 30)
    for_training = np.tile(np.arange(30) < 18, 2)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    probe.fit(averages[for_training], is_second[for_training])
    assert probe.score(averages[~for_training], is_second[~for_training]) < 0.8


def test_the_pitch_of_a_rising_sweep_rises_and_of_a_falling_one_falls():
    def rising_share(label):
        shares = []
        for seed in range(6):
            frames = np.lib.stride_tricks.sliding_window_view(foreground(label, seed), 1024)[::256]
            power = np.abs(np.fft.rfft(frames * np.hanning(1024), 4096)) ** 2
            loud = power.sum(1) > 0.2 * power.sum(1).max()
            steps = np.diff(power.argmax(1))[loud[1:] & loud[:-1]]
            shares.append((steps > 0).sum() / np.count_nonzero(steps))
        return np.mean(shares)

    assert rising_share("sweep_rising") > 0.75
    assert rising_share("sweep_falling") < 0.25


def test_the_table_lists_every_clip_with_its_label(sound_set):
    rows = read_rows(sound_set)
    assert list(rows[0]) == ["path", "label", "split"]
    assert Counter(row["label"] for row in rows) == dict.fromkeys(CLASSES, 4)
    assert {row["path"] for row in rows} == {
        path.relative_to(sound_set.parent).as_posix() for path in sound_set.parent.rglob("*.wav")
    }
    assert all(row["path"].startswith(f"{row['label']}/{row['label']}_") for row in rows)


def test_files_are_16_bit_at_16_khz_and_hold_the_clips(sound_set):
    path = sound_set.parent / "swell" / "swell_002.wav"
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    found, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_allclose(found, synthesize("swell", sounds._clip_seed(3, 2)), atol=2 * 2**-15)


def test_the_smallest_set_has_each_class_in_each_split(sound_set):
    cells = Counter((row["label"], row["split"]) for row in read_rows(sound_set))
    assert set(cells) == {(label, split) for label in CLASSES for split in ("train", "valid", "test")}


@pytest.mark.parametrize("clips_per_class", [20, 50, 120])
def test_splits_are_stratified_and_near_60_15_25_percent(clips_per_class):
    rows = sounds._table_rows(clips_per_class)
    assert len({path for path, _, _ in rows}) == len(rows)
    cells = Counter((label, split) for _, label, split in rows)
    for split, share in {"train": 0.6, "valid": 0.15, "test": 0.25}.items():
        counts = {cells[label, split] for label in CLASSES}
        assert len(counts) == 1
        assert counts.pop() == pytest.approx(share * clips_per_class, abs=1)


def test_a_clip_keeps_its_split_when_the_set_grows():
    assert set(sounds._table_rows(7)) < set(sounds._table_rows(30))


def test_a_complete_set_is_not_written_again(sound_set):
    before = modified_times_ns(sound_set.parent)
    assert write_sound_set(sound_set.parent, clips_per_class=4, seed=3) == sound_set
    assert modified_times_ns(sound_set.parent) == before


def test_another_seed_replaces_the_set(tmp_path):
    first = write_sound_set(tmp_path, clips_per_class=4, seed=0)
    one = (tmp_path / "decay" / "decay_003.wav").read_bytes()
    assert write_sound_set(tmp_path, clips_per_class=4, seed=1) == first
    assert (tmp_path / "decay" / "decay_003.wav").read_bytes() != one


def test_a_set_with_a_missing_or_damaged_clip_is_written_again(tmp_path):
    write_sound_set(tmp_path, clips_per_class=4)
    missing, damaged = tmp_path / "swell" / "swell_001.wav", tmp_path / "decay" / "decay_000.wav"
    whole = damaged.read_bytes()
    missing.unlink()
    damaged.write_bytes(whole[: len(whole) // 2])
    write_sound_set(tmp_path, clips_per_class=4)
    assert missing.is_file()
    assert damaged.read_bytes() == whole


def test_a_run_that_is_interrupted_leaves_no_table(tmp_path, monkeypatch):
    write_sound_set(tmp_path, clips_per_class=4)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sounds.soundfile, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_sound_set(tmp_path, clips_per_class=5)
    assert not (tmp_path / "labels.csv").exists()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="choose a writable place"):
        write_sound_set(tmp_path / "taken", clips_per_class=4)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="choose a writable place"):
        write_sound_set(tmp_path, clips_per_class=4)


@pytest.mark.parametrize("clips_per_class", [0, 3, 100_001])
def test_a_set_too_small_or_too_large_is_refused(tmp_path, clips_per_class):
    with pytest.raises(ConfigError, match="clips_per_class"):
        write_sound_set(tmp_path, clips_per_class)


def test_an_unknown_class_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'piano'.*sweep_rising"):
        synthesize("piano", 0)


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="-1"):
        synthesize("decay", -1)
