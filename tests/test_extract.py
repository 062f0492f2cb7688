import threading

import numpy as np
import pytest
import soundfile
import torch

from melmask.audio.parts import sounds_of
from melmask.embedding import encoder as encoder_module
from melmask.embedding import extract
from melmask.embedding.assemble import ClipVectors
from melmask.embedding.extract import decoded_groups, embed_files
from melmask.errors import ConfigError
from melmask.geometry import StepGrid

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
    for module in (extract, encoder_module):
        monkeypatch.setattr(module, "FRAMES_TOGETHER", 3 * UNIT_FRAMES)


@pytest.fixture
def short_rows(small_pieces, monkeypatch):
    """Rows have five steps of the 160 numbers that these models give."""
    monkeypatch.setattr(extract, "_VALUES_PER_ROW", 5 * 160 + 159)


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
    groups = list(decoded_groups(encoder, sounds_of(mixed_paths), encoder.step_grid()))
    sizes = [[0 if piece.logmel is None else piece.logmel.shape[1] for piece in group] for group in groups]
    assert max(size for group in sizes for size in group) == UNIT_FRAMES
    assert max(sum(group) for group in sizes) < 4 * UNIT_FRAMES
    assert len(groups) > 4
    last = [piece.sound.path for group in groups for piece in group if piece.last]
    assert last == mixed_paths


def test_only_some_files_are_decoded_ahead(encoder, good_paths, monkeypatch):
    monkeypatch.setattr(extract, "_FILES_AHEAD", 3)
    monkeypatch.setattr(extract, "FRAMES_TOGETHER", 1)
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


def test_a_file_that_breaks_half_way_does_not_touch_its_neighbors(encoder, good_paths, sound, tmp_path, small_pieces):
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


@pytest.mark.parametrize("hop_ms", [None, 40.0, 10.0])
def test_a_long_file_comes_in_rows_that_make_up_the_whole(encoder, good_paths, short_rows, hop_ms):
    rows = list(embed_files(encoder, good_paths[-1:], keep_frames=True, hop_ms=hop_ms))
    whole = encoder.embed(good_paths[-1], hop_ms=hop_ms)
    assert len(rows) == -(-len(whole.frames) // 5) > 4
    assert [row.first_step for row in rows] == list(range(0, len(whole.frames), 5))
    assert_close(np.concatenate([row.frames for row in rows]), whole.frames)
    assert_close(rows[-1].scene, whole.scene)
    assert {row.path for row in rows} == {good_paths[-1]}
    assert [row.last for row in rows] == [False] * (len(rows) - 1) + [True]
    assert {(row.duration_s, row.scene, row.error) for row in rows[:-1]} == {(0, None, None)}
    assert 3.99 < rows[-1].duration_s <= 4


def test_without_frames_a_long_file_comes_in_one_row(encoder, good_paths, short_rows):
    (row,) = embed_files(encoder, good_paths[-1:])
    assert row.last and row.frames is None
    assert_close(row.scene, encoder.embed(good_paths[-1]).scene)


def test_a_file_that_breaks_after_its_first_rows_ends_with_an_error(encoder, good_paths, sound, tmp_path, short_rows):
    waveform = sound(4, 0)
    waveform[50_000] = np.nan
    path = tmp_path / "breaks.wav"
    soundfile.write(path, waveform, RATE_HZ, subtype="FLOAT")
    rows = list(embed_files(encoder, [path, good_paths[0]], keep_frames=True))
    of_broken = [row for row in rows if row.path == path]
    assert len(of_broken) > 2 and not any(row.last or row.error for row in of_broken[:-1])
    assert of_broken[-1].last and "NaN" in of_broken[-1].error and of_broken[-1].frames is None
    assert [row.first_step for row in rows if row.path == good_paths[0]] == [0]


@pytest.mark.parametrize("hop_frames", [16, 8, 4, 1])
@pytest.mark.parametrize("most", [None, 1, 7])
def test_what_is_taken_of_a_clip_in_between_adds_up_to_its_steps(hop_frames, most):
    grid = StepGrid(16, hop_frames)
    rng = np.random.default_rng(0)
    for frames in [*range(1, 70), 400]:
        vectors, taken = ClipVectors(grid, keep_frames=True), []
        left = {phase: frames - phase for phase in grid.phases if frames > phase}
        added = dict.fromkeys(left, 0)
        while left:
            # The phases advance unevenly, by one or two units of 32 frames; a step's vector is its number.
            phase = int(rng.choice(list(left)))
            length = min(left[phase], 32 * int(rng.integers(1, 3)))
            steps = -(-length // 16)
            numbers = grid.phases.index(phase) + len(grid.phases) * (added[phase] + np.arange(steps))
            vectors.add(phase, numbers[:, None].astype(np.float32), length)
            added[phase] += steps
            left[phase] -= length
            if not left[phase]:
                del left[phase]
            assert vectors.taken == sum(map(len, taken))
            taken.append(vectors.take(most))
        taken.append(vectors.take())
        np.testing.assert_array_equal(np.concatenate(taken)[:, 0], np.arange(grid.steps(frames)))


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
