"""Masks, attention, and the levels of hidden patches: numbers about the inside of a model."""

import numpy as np
import pytest
import torch

from melmask.audio.logmel import normalize
from melmask.checkpoint.folder import ModelCard
from melmask.config import FrontEndConfig, MaskingConfig, ModelConfig, ResolutionConfig, Statistics
from melmask.embedding.encoder import untrained
from melmask.embedding.levels import estimated_levels
from melmask.errors import ConfigError, InputError, NotFiniteError
from melmask.geometry import PatchGrid
from melmask.inspection.attention import Attention, attention_of
from melmask.inspection.masks import Box, box_mask, mask_of, row_edges_hz
from melmask.inspection.sound import equally_loud, loudness_lufs, sound_of

GRID = PatchGrid(5, 4)
SMALL = {"width": 16, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
TWO = FrontEndConfig(further_resolutions=(ResolutionConfig(),))
TWO_STATISTICS = Statistics(mean=-8.0, std=3.0, further_means=(-6.0,), further_stds=(5.0,))


def make_model(training=None, **changes):
    config = ModelConfig(**{"frames": 64, **SMALL, **changes})
    parts = {"front_end": TWO, "statistics": TWO_STATISTICS} if config.resolutions > 1 else {}
    return untrained(ModelCard(model=config, training=training or {}, **parts), device="cpu")


def noise(*shape):
    return np.random.default_rng(0).normal(-7, 3, shape).astype(np.float32)


@pytest.mark.parametrize("strategy", ["random", "inverse-blocks", "time", "frequency"])
def test_a_mask_is_the_seeds_and_each_unit_has_its_own(strategy):
    masking = MaskingConfig(strategy=strategy, ratio=0.6)
    grid = PatchGrid(5, 40)
    mask = mask_of(grid, masking, seed=3)
    assert mask.shape == (200,) and mask.dtype == bool and mask.sum() == 120
    assert np.array_equal(mask, mask_of(grid, masking, 3))
    assert not np.array_equal(mask, mask_of(grid, masking, 4))
    assert not np.array_equal(mask, mask_of(grid, masking, 3, unit=1))


@pytest.mark.parametrize(
    ("grid", "masking", "says"),
    [
        (PatchGrid(5, 1), {"strategy": "time"}, "one stripe of time"),
        (PatchGrid(1, 5), {"strategy": "frequency"}, "one stripe of frequency"),
        (PatchGrid(1, 4), {"ratio": 1e-9}, "hides none of 4 patches"),
        (PatchGrid(1, 1), {}, "hides none of 1 patches"),
    ],
)
def test_a_mask_that_hides_nothing_is_refused(grid, masking, says):
    with pytest.raises(InputError, match=says):
        mask_of(grid, MaskingConfig(**masking), 0)


def test_a_box_hides_what_it_touches():
    card = make_model().card
    # Patches are 160 ms wide; the first begins half a hop before the sound.
    edges_hz = row_edges_hz(card.front_end, 5)
    assert (edges_hz[1:] > edges_hz[:-1]).all() and edges_hz[0] < 100 and edges_hz[-1] > 7000
    inside = Box(0.16, 0.31, (edges_hz[1] + edges_hz[2]) / 2, edges_hz[2])
    hidden = box_mask(card, GRID, inside).reshape(GRID)
    assert np.argwhere(hidden).tolist() == [[1, 1]]
    wider = box_mask(card, GRID, Box(0.14, 0.33, edges_hz[1], edges_hz[2] * 1.01)).reshape(GRID)
    assert wider.sum() == 6 and wider[1:3, 0:3].all()
    assert box_mask(card, GRID, Box(0.0, 99.0, 0.0, 99_999.0)).all()


def test_a_box_is_hidden_in_all_resolutions():
    card = make_model(resolutions=2).card
    box = Box(0.2, 0.25, 900.0, 1100.0)
    rows = np.flatnonzero(box_mask(card, GRID, box).reshape(GRID).any(1))
    # About 1 kHz lies in the second row of the mel bands, and in the third and fourth of the semitones.
    for resolution in (0, 1):
        edges_hz = row_edges_hz(card.front_end, 5, resolution)
        touched = {row for row in range(5) if edges_hz[row + 1] > 900 and edges_hz[row] < 1100}
        assert touched and touched <= set(rows)
    assert len(rows) > 1


def test_a_box_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="start before its end"):
        Box(1.0, 1.0, 100.0, 200.0)
    for box in (Box(1.0, 2.0, 100.0, 200.0), Box(0.0, 0.1, 8100.0, 9000.0)):
        with pytest.raises(InputError, match="no patch lies between"):
            box_mask(make_model().card, GRID, box)


# With 64 frames the layers compute attention plainly, with 704 by the fused kernel.
@pytest.mark.parametrize(("frames", "cls"), [(64, True), (64, False), (704, True)])
def test_the_attention_is_what_the_layers_attend_to(frames, cls):
    model = make_model(frames=frames, cls_token=cls)
    logmel = noise(80, frames)
    attention = attention_of(model, logmel)
    tokens = 5 * frames // 16 + cls
    assert attention.weights.shape == (2, 2, tokens, tokens)
    np.testing.assert_allclose(attention.weights.sum(-1), 1, atol=1e-5)
    encoder = model.model.encoder
    x = encoder.embed_all(normalize(torch.from_numpy(logmel), model.card.statistics)[None])
    for weights, block in zip(attention.weights, encoder.blocks, strict=True):
        layer = block.attn
        values = torch.nn.functional.linear(block.norm1(x), layer.qkv.weight[-16:], layer.v_bias)
        heads = values.unflatten(2, (2, 8)).transpose(1, 2)
        mixed = (torch.from_numpy(weights) @ heads).transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer.proj(mixed), layer(block.norm1(x)), atol=1e-5, rtol=1e-4)
        x = block(x)
    *_, last = encoder.encode_layers(normalize(torch.from_numpy(logmel), model.card.statistics)[None])
    torch.testing.assert_close(encoder.norm(x), last)


def test_attention_is_read_by_layer_head_and_token():
    weights = np.random.default_rng(0).random((2, 3, 21, 21)).astype(np.float32)
    attention = Attention(weights, GRID, cls=True)
    np.testing.assert_allclose(attention.from_cls(2, 3).ravel(), weights[1, 2, 0, 1:])
    np.testing.assert_allclose(attention.from_patch(7, layer=1).ravel(), weights[0].mean(0)[8, 1:], rtol=1e-6)
    np.testing.assert_allclose(attention.mean(head=1).ravel(), weights[:, 0].mean((0, 1))[1:], rtol=1e-6)
    assert attention.rollout().shape == (5, 4)
    with pytest.raises(ConfigError, match="no CLS token"):
        Attention(weights[:, :, 1:, 1:], GRID, cls=False).from_cls()
    with pytest.raises(ConfigError, match="layer is 3; this model has layers 1 to 2"):
        attention.from_cls(3)
    with pytest.raises(ConfigError, match="head is 0; this model has heads 1 to 3"):
        attention.mean(1, 0)
    with pytest.raises(ConfigError, match="patch is 20; this unit has patches 0 to 19"):
        attention.from_patch(20)


def test_rollout_follows_what_the_layers_pass_on():
    # In both layers every token looks at the next one, and the last at itself.
    step = np.eye(21, k=1, dtype=np.float32)
    step[-1, -1] = 1
    rollout = Attention(np.broadcast_to(step, (2, 1, 21, 21)).copy(), GRID, cls=True).rollout().ravel()
    np.testing.assert_allclose(rollout[:3], [0.5, 0.25, 0])


@pytest.mark.parametrize("shape", [(80, 63), (80, 80), (64, 64), (80, 0)])
def test_attention_of_what_is_no_unit_is_refused(shape):
    with pytest.raises(InputError, match=r"expected .80, frames. with frames a multiple of 16 up to 64"):
        attention_of(make_model(), noise(*shape))


NORMALIZED = {"config": {"masking": {"normalize_target": True}}}


@pytest.mark.parametrize("resolutions", [1, 2])
def test_nothing_of_a_hidden_patch_reaches_the_picture_of_normalized_targets(resolutions):
    model = make_model(NORMALIZED, resolutions=resolutions)
    logmel = noise(1, 80 * resolutions, 64)
    masked = mask_of(GRID, MaskingConfig(), 0)
    over_bands = np.kron(masked.reshape(GRID), np.ones((16, 16), bool))
    changed = np.where(np.tile(over_bands, (resolutions, 1)), noise(*logmel.shape) * 2 + 5, logmel)
    honest = [model.reconstruct(x, masked=masked[None]).logmel for x in (logmel, changed)]
    np.testing.assert_array_equal(*honest)
    leaking = [model.reconstruct(x, masked=masked[None], leak=True).logmel for x in (logmel, changed)]
    assert np.abs(leaking[0] - leaking[1]).max() > 1
    # Visible patches have their own level and contrast in both.
    seen = np.tile(~over_bands, (resolutions, 1))
    np.testing.assert_allclose(honest[0][0][seen], leaking[0][0][seen], rtol=1e-4)


def test_levels_are_interpolated_between_visible_patches():
    grid = PatchGrid(5, 12)
    rng = np.random.default_rng(0)
    row, column = np.divmod(np.arange(grid.patches), grid.columns)
    levels = -0.5 * row + 0.1 * column
    contrasts = np.where(row > 2, 0.2, 0.8)
    values = (levels[:, None, None] + contrasts[:, None, None] * rng.standard_normal((60, 1, 256))).astype(np.float32)
    masked = mask_of(grid, MaskingConfig(), 1)
    means, deviations = (part[:, 0, 0] for part in estimated_levels(values, masked, grid))
    np.testing.assert_allclose(means[~masked], values.mean(-1)[~masked, 0], atol=1e-5)
    np.testing.assert_allclose(deviations[~masked], values.std(-1, ddof=1)[~masked, 0], rtol=1e-4)
    # The estimates of hidden patches are much nearer than the mean of all.
    assert np.abs(means - levels)[masked].mean() < 0.3 * np.abs(levels - levels.mean()).mean()
    assert np.abs(np.log(deviations / contrasts))[masked].mean() < 0.5 * np.log(4) / 2


def test_where_all_visible_patches_have_one_contrast_the_hidden_ones_are_given_it():
    """A sound without contrast would else be shown with the noise of the corpus in its hidden patches."""
    grid = PatchGrid(5, 12)
    values = np.tile(np.float32([0.05, -0.05] * 128), (60, 1, 1))
    _, deviations = estimated_levels(values, mask_of(grid, MaskingConfig(), 1), grid)
    np.testing.assert_allclose(deviations, 0.05, rtol=0.01)


def tone_and_noise(seconds=1.0, rate_hz=16000):
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    sound = 0.3 * np.sin(2 * np.pi * (300 + 400 * time_s) * time_s) * (time_s % 0.25 < 0.15)
    return (sound + 0.01 * np.random.default_rng(0).standard_normal(len(time_s))).astype(np.float32)


def mean_error_db(one, other):
    frames = min(one.shape[1], other.shape[1])
    return float(np.abs(one[:, :frames] - other[:, :frames]).mean() * 10 / np.log(10))


@pytest.mark.parametrize("resolutions", [1, 2])
def test_a_log_mel_becomes_a_sound_with_nearly_this_log_mel(resolutions):
    model = make_model(resolutions=resolutions)
    logmel = model.logmel(tone_and_noise(), 16000)[0]
    sound = sound_of(logmel, model)
    assert sound.shape == (16000,) and sound.dtype == np.float32
    again = model.logmel(sound, 16000)[0]
    assert mean_error_db(again, logmel) < 0.6
    # A few rounds are far from it, so the measure can fail.
    assert mean_error_db(model.logmel(sound_of(logmel, model, rounds=1), 16000)[0], logmel) > 1.2
    np.testing.assert_array_equal(sound, sound_of(logmel, model))


def test_silence_and_short_log_mels_become_sound():
    model = make_model(resolutions=2)
    silence = np.full((160, 40), np.log(1.1920929e-07), np.float32)
    assert np.abs(sound_of(silence, model)).max() < 1e-3
    # Half of the long window is 64 ms, longer than two frames.
    assert sound_of(np.full((160, 3), -5.0, np.float32), model).shape == (320,)


def test_a_log_mel_that_cannot_be_heard_is_refused():
    model = make_model()
    for logmel in (noise(79, 20), noise(80, 1)):
        with pytest.raises(InputError, match=r"expected .80, frames. with 2 frames or more"):
            sound_of(logmel, model)
    with pytest.raises(NotFiniteError):
        sound_of(np.full((80, 20), np.nan, np.float32), model)
    sparse = untrained(ModelCard(model=model.card.model, front_end=FrontEndConfig(hop_samples=400)), device="cpu")
    with pytest.raises(ConfigError, match="a hop of 400 samples leaves out sound between windows of 400"):
        sound_of(noise(80, 20), sparse)


def test_loudness_is_that_of_the_recommendation():
    # BS.1770: a full-scale sine of 997 Hz in one channel has -3.01 LUFS.
    time_s = np.arange(3 * 48000) / 48000
    tone = np.sin(2 * np.pi * 997 * time_s)
    assert loudness_lufs(tone, 48000) == pytest.approx(-3.01, abs=0.02)
    # Silence after it and a quiet part do not count.
    longer = np.concatenate([tone, np.zeros(480000), 0.01 * tone])
    assert loudness_lufs(longer, 48000) == pytest.approx(-3.01, abs=0.4)
    assert loudness_lufs(np.zeros(100), 16000) == -np.inf


def test_sounds_become_equally_loud_without_clipping():
    click = np.zeros(16000, np.float32)
    click[8000] = 1e-3
    made = equally_loud([tone_and_noise(), 20 * tone_and_noise(), click, np.zeros(99, np.float32)], 16000)
    levels = [loudness_lufs(sound, 16000) for sound in made[:3]]
    assert np.ptp(levels) < 0.01 and max(np.abs(sound).max() for sound in made) < 1
    assert not made[3].any()
    (alone,) = equally_loud([tone_and_noise()], 16000)
    assert loudness_lufs(alone, 16000) == pytest.approx(-23, abs=0.01)
