import threading

import numpy as np
import pytest
import soundfile
import torch

from melmask import encoder as encoder_module
from melmask import extract
from melmask.errors import ConfigError
from melmask.extract import decoded_groups, embed_files

RATE_HZ = 16000
UNIT_FRAMES = 64


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.fixture
def mixed_paths(good_paths, sound_folder):
    """Readable files with a broken and a missing one between them, in no particular order."""
    a, b, c, d, e, f = good_paths
    return [f, sound_folder / "broken.wav", a, d, sound_folder / "missing.wav", c, b, e]


@pytest.fixture
def small_pieces(monkeypatch):
    """Files pass through in single units, a few of which are encoded together."""
    monkeypatch.setattr(encoder_module, "_SEGMENT_FRAMES", UNIT_FRAMES)
    monkeypatch.setattr("melmask.audio.files._BLOCK_FRAMES", 3000)
    monkeypatch.setattr(extract, "_FRAMES_TOGETHER", 3 * UNIT_FRAMES)


def test_results_come_in_the_order_of_the_files_with_errors_in_place(encoder, mixed_paths):
    results = list(embed_files(encoder, mixed_paths))
    assert [result.path for result in results] == mixed_paths
    assert [result.path.name for result in results if result.error] == ["broken.wav", "missing.wav"]
    broken, missing = results[1], results[4]
    assert "cannot be read as sound" in broken.error
    assert "does not exist" in missing.error
    assert (broken.scene, broken.frames, broken.duration_s) == (None, None, 0)


@pytest.mark.parametrize("choice", [{}, {"layer": 1, "pooling": "mean"}, {"layer": [1, 2]}, {"hop_ms": 40.0}])
def test_a_file_among_others_gives_what_it_gives_alone(encoder, mixed_paths, choice):
    for result in embed_files(encoder, mixed_paths, **choice, keep_frames=True):
        if result.error is None:
            alone = encoder.embed(result.path, **choice)
            assert_close(result.scene, alone.scene)
            assert_close(result.frames, alone.frames)


def test_files_in_pieces_give_what_whole_files_give(encoder, mixed_paths, small_pieces, monkeypatch):
    in_pieces = list(embed_files(encoder, mixed_paths, keep_frames=True))
    monkeypatch.undo()
    for piecewise, whole in zip(in_pieces, embed_files(encoder, mixed_paths, keep_frames=True), strict=True):
        assert piecewise.error == whole.error
        if whole.error is None:
            assert_close(piecewise.scene, whole.scene)
            assert_close(piecewise.frames, whole.frames)


def test_frames_are_kept_on_demand_only(encoder, good_paths):
    plain, kept = next(embed_files(encoder, good_paths)), next(embed_files(encoder, good_paths, keep_frames=True))
    assert plain.frames is None
    assert kept.frames.shape == (2, 160)
    assert plain.scene.dtype == kept.frames.dtype == np.float32


def test_durations_are_right_to_a_hop(encoder, good_paths):
    for result in embed_files(encoder, good_paths):
        assert 0 <= soundfile.info(result.path).duration - result.duration_s < 0.010001


def test_pieces_and_groups_are_bounded(encoder, mixed_paths, small_pieces):
    groups = list(decoded_groups(encoder, mixed_paths, encoder.step_grid()))
    sizes = [[0 if piece.logmel is None else piece.logmel.shape[1] for piece in group] for group in groups]
    assert max(size for group in sizes for size in group) == UNIT_FRAMES
    assert max(sum(group) for group in sizes) < 4 * UNIT_FRAMES
    assert len(groups) > 4
    last = [piece.path for group in groups for piece in group if piece.last]
    assert last == mixed_paths


def test_only_some_files_are_decoded_ahead(encoder, good_paths, monkeypatch):
    monkeypatch.setattr(extract, "_FILES_AHEAD", 3)
    monkeypatch.setattr(extract, "_FRAMES_TOGETHER", 1)
    begun = []
    begin = extract._begin

    def noted(model, path, grid):
        begun.append(path)
        return begin(model, path, grid)

    monkeypatch.setattr(extract, "_begin", noted)
    results = embed_files(encoder, good_paths * 5)
    next(results)
    assert len(begun) <= 3
    assert len(list(results)) == 29
    assert len(begun) == 30


def test_a_file_that_breaks_half_way_does_not_touch_its_neighbours(encoder, good_paths, sound, tmp_path, small_pieces):
    waveform = sound(4, 0)
    waveform[50_000] = np.nan
    path = tmp_path / "breaks.wav"
    soundfile.write(path, waveform, RATE_HZ, subtype="FLOAT")
    before, broken, after = embed_files(encoder, [good_paths[2], path, good_paths[3]], keep_frames=True)
    assert "NaN" in broken.error
    assert broken.scene is None
    for result in (before, after):
        assert_close(result.frames, encoder.embed(result.path).frames)
        assert_close(result.scene, encoder.embed(result.path).scene)


def test_nothing_but_broken_files_gives_nothing_but_errors(encoder, sound_folder):
    results = list(embed_files(encoder, [sound_folder / "broken.wav"] * 3))
    assert [result.scene for result in results] == [None] * 3
    assert list(embed_files(encoder, [])) == []


def test_a_choice_the_model_does_not_have_is_refused_before_any_work(encoder, good_paths):
    with pytest.raises(ConfigError, match="layer is 9"):
        next(embed_files(encoder, good_paths, layer=9))


def test_results_that_are_not_wanted_any_more_leave_nothing_behind(encoder, good_paths):
    threads, computing = threading.active_count(), torch.get_num_threads()
    results = embed_files(encoder, good_paths * 20)
    next(results)
    results.close()
    assert threading.active_count() == threads
    assert torch.get_num_threads() == computing
