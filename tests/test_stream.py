import threading
from collections import Counter

import numpy as np
import pytest

from melmask.audio.statistics import moments_of
from melmask.config import DataConfig, FrontEndConfig
from melmask.corpus.store import Store, StoreWriter
from melmask.corpus.stream import CropStream

CROP = 64
MELS = 4
LENGTHS = (10, 64, 100, 640, 1000, 33)
CROPS_BY_TIME = {0: 1, 1: 1, 2: 2, 3: 10, 4: 16, 5: 1}


def numbered_store(folder, lengths):
    """A store whose frame `i` of clip `c` holds the values (c, i, 7 c + i, 1)."""
    folder.mkdir()
    writer = StoreWriter(folder, FrontEndConfig(mels=MELS), shard_mb=0)
    for clip, length in enumerate(lengths):
        frame = np.arange(length)
        block = np.stack([np.full(length, clip), frame, 7 * clip + frame, np.ones(length)], 1).astype(np.float16)
        writer.add(f"/{clip}.wav", [block], length / 100, moments_of(block))
    writer.finish()
    return Store(folder)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    return numbered_store(tmp_path_factory.mktemp("numbered") / "store", LENGTHS)


def stream_of(store, sampling="time", batch_size=8, seed=0, **ranks):
    return CropStream(store, DataConfig(batch_size=batch_size, sampling=sampling), CROP, seed, **ranks)


def epoch(stream, number):
    """The crops of one epoch, whatever batches they lie in; the stream's batch size must be 1."""
    crops = stream.crops_per_epoch
    return np.concatenate([stream.batch(step) for step in range(number * crops, (number + 1) * crops)])


def first_clips(crops):
    return [int(crop[0, 0]) for crop in crops]


def runs_of(crop):
    """The stretches (clip, first frame, frames) that a crop is put together from."""
    clips, frames = crop[:, 0].astype(int), crop[:, 1].astype(int)
    breaks = np.flatnonzero((np.diff(clips) != 0) | (np.diff(frames) != 1)) + 1
    return [(int(part[0, 0]), int(part[0, 1]), len(part)) for part in np.split(crop, breaks)]


def test_a_batch_depends_on_its_step_alone(numbered):
    forwards, backwards = stream_of(numbered), stream_of(numbered)
    expected = [forwards.batch(step) for step in range(12)]
    for step in reversed(range(12)):
        np.testing.assert_array_equal(backwards.batch(step), expected[step])
    assert expected[0].shape == (8, CROP, MELS)
    assert expected[0].dtype == np.float16


def test_another_seed_gives_other_crops(numbered):
    assert not np.array_equal(stream_of(numbered, seed=0).batch(0), stream_of(numbered, seed=1).batch(0))


@pytest.mark.parametrize("number", [0, 1, 7])
def test_by_time_an_epoch_draws_each_clip_in_proportion_to_its_length(numbered, number):
    stream = stream_of(numbered, batch_size=1)
    assert stream.crops_per_epoch == sum(CROPS_BY_TIME.values())
    assert Counter(first_clips(epoch(stream, number))) == CROPS_BY_TIME


@pytest.mark.parametrize("number", [0, 1, 7])
def test_by_clip_an_epoch_draws_each_clip_once(numbered, number):
    crops = epoch(stream_of(numbered, "clip", batch_size=1), number)
    assert sorted(first_clips(crops)) == list(range(len(LENGTHS)))


def test_epochs_differ_in_order_and_offsets(numbered):
    stream = stream_of(numbered, batch_size=1)
    first, second = epoch(stream, 0), epoch(stream, 1)
    assert first_clips(first) != first_clips(second)
    assert {runs_of(crop)[0] for crop in first} != {runs_of(crop)[0] for crop in second}


def test_the_size_of_a_batch_does_not_change_the_order_of_the_crops(numbered):
    ones, eights = stream_of(numbered, batch_size=1), stream_of(numbered)
    crops = np.concatenate([eights.batch(step) for step in range(10)])
    np.testing.assert_array_equal(crops, np.concatenate([ones.batch(step) for step in range(80)]))


@pytest.mark.parametrize("sampling", ["time", "clip"])
def test_every_frame_of_a_crop_is_in_the_store(numbered, sampling):
    stream = stream_of(numbered, sampling)
    crops = np.concatenate([stream.batch(step) for step in range(40)]).astype(np.float64)
    clip, frame = crops[..., 0].astype(int), crops[..., 1]
    assert (frame < np.array(LENGTHS)[clip]).all()
    np.testing.assert_array_equal(crops[..., 2], 7 * clip + frame)
    assert (crops[..., 3] == 1).all()


def test_a_short_clip_is_shown_whole_and_followed_by_others(numbered):
    stream = stream_of(numbered, "clip", batch_size=1)
    followers = set()
    for number in range(30):
        for crop in epoch(stream, number):
            runs = runs_of(crop)
            for clip, first, frames in runs[:-1]:
                assert (first, frames) == (0, LENGTHS[clip])
            if runs[0][0] == 0:
                followers.add(runs[1][0])
            if LENGTHS[runs[0][0]] >= CROP:
                assert len(runs) == 1
    assert len(followers) > 3


def test_offsets_reach_both_ends_of_a_clip(numbered):
    crops = np.concatenate([epoch(stream_of(numbered, "clip", batch_size=1), number) for number in range(400)])
    firsts = {int(crop[0, 1]) for crop in crops if crop[0, 0] == 2}
    assert firsts == set(range(LENGTHS[2] - CROP + 1))


def test_a_store_of_one_short_clip_still_fills_its_crops(tmp_path):
    store = numbered_store(tmp_path / "store", (5,))
    crops = stream_of(store).batch(3)
    assert {tuple(crop[:5, 1]) for crop in crops} == {(0, 1, 2, 3, 4)}


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_share_out_the_rows_of_the_global_batch(numbered, processes):
    whole = stream_of(numbered).batch(5)
    for rank in range(processes):
        part = stream_of(numbered, rank=rank, processes=processes).batch(5)
        np.testing.assert_array_equal(part, whole[rank::processes])


def test_a_stream_can_start_at_any_step(numbered):
    whole = list(stream_of(numbered).batches(0, 12, readers=2))
    resumed = list(stream_of(numbered).batches(7, 5, readers=2))
    assert len(whole) == 12
    np.testing.assert_array_equal(resumed, whole[7:])


def test_the_number_of_readers_does_not_change_the_batches(numbered):
    one = list(stream_of(numbered).batches(0, 30, readers=1))
    many = list(stream_of(numbered).batches(0, 30, readers=6))
    np.testing.assert_array_equal(one, many)


def test_a_stream_left_early_leaves_no_thread_behind(numbered):
    before = threading.active_count()
    batches = stream_of(numbered).batches(0, 1000, readers=3)
    next(batches)
    batches.close()
    assert threading.active_count() == before
