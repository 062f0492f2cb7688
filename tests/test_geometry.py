import numpy as np
import pytest

from melmask.config import FrontEndConfig, ModelConfig
from melmask.geometry import (
    PatchGrid,
    frames_of_samples,
    grid_of,
    step_durations_frames,
    step_times_ms,
    unit_lengths,
)

# The paper's and its successor's inputs: frames, patch, grid, patches, visible at ratio 0.75, step in ms.
TABLE = [
    (208, (16, 16), (5, 13), 65, 16, 160),
    (512, (16, 16), (5, 32), 160, 40, 160),
    (608, (16, 16), (5, 38), 190, 47, 160),
    (208, (16, 8), (5, 26), 130, 32, 80),
    (208, (16, 4), (5, 52), 260, 65, 40),
    (200, (16, 4), (5, 50), 250, 62, 40),
    (208, (8, 16), (10, 13), 130, 32, 160),
    (208, (80, 4), (1, 52), 52, 13, 40),
    (208, (80, 2), (1, 104), 104, 26, 20),
    (208, (80, 1), (1, 208), 208, 52, 10),
]
PAPER = FrontEndConfig()


@pytest.mark.parametrize(("frames", "patch", "grid", "patches", "visible", "step_ms"), TABLE)
def test_published_inputs_have_their_published_geometry(frames, patch, grid, patches, visible, step_ms):
    ours = grid_of(ModelConfig(frames=frames, patch_mels=patch[0], patch_frames=patch[1]))
    assert ours == grid
    assert ours.patches == patches
    assert ours.visible_patches(0.75) == visible == int(patches * 0.25)
    assert np.diff(step_times_ms(np.array([0, patch[1]]), patch[1], PAPER)) == [step_ms]


@pytest.mark.parametrize("patches", [1, 13, 65, 130, 190, 1000])
def test_visible_patches_are_counted_exactly_and_never_none(patches):
    counts = [PatchGrid(1, patches).visible_patches(percent / 100) for percent in range(1, 100)]
    assert counts == [max(1, patches * (100 - percent) // 100) for percent in range(1, 100)]


def test_a_second_of_audio_has_seven_steps_160_ms_apart_at_their_centers():
    frames = frames_of_samples(16000, PAPER)
    assert frames == 101
    times_ms = step_times_ms(np.arange(7) * 16, 16, PAPER)
    # The first step covers frames 0 to 15, which are centered at 0 to 150 ms.
    np.testing.assert_allclose(times_ms, 75 + 160 * np.arange(7))
    assert times_ms.dtype == np.float64


def test_steps_follow_the_front_ends_own_hop_and_rate():
    config = FrontEndConfig(sample_rate_hz=32000, n_fft=800, win_samples=800, hop_samples=320, max_hz=16000.0)
    np.testing.assert_allclose(step_times_ms(np.array([0, 4]), 4, config), [15, 55])
    slow = FrontEndConfig(sample_rate_hz=8000, hop_samples=200, max_hz=4000.0)
    np.testing.assert_allclose(step_times_ms(np.array([0, 1]), 1, slow), [0, 25])


@pytest.mark.parametrize("patch_frames", [1, 2, 4, 16])
def test_units_cover_a_clip_in_whole_patches_without_a_surplus_one(patch_frames):
    for frames in range(1, 700):
        lengths = unit_lengths(frames, 208, patch_frames)
        assert 0 <= sum(lengths) - frames < patch_frames
        assert all(length == 208 for length in lengths[:-1])
        assert 0 < lengths[-1] <= 208
        assert lengths[-1] % patch_frames == 0


def test_a_clip_of_exactly_two_units_has_two_units():
    assert unit_lengths(416, 208, 16) == [208, 208]
    assert unit_lengths(417, 208, 16) == [208, 208, 16]


def test_the_last_step_counts_only_the_true_audio_in_it():
    assert step_durations_frames(40, 16).tolist() == [16, 16, 8]
    assert step_durations_frames(32, 16).tolist() == [16, 16]
    assert step_durations_frames(1, 16).tolist() == [1]
    assert all(step_durations_frames(frames, 16).sum() == frames for frames in range(1, 200))
