import sys
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from melmask.checkpoint.folder import ModelCard
from melmask.config import FrontEndConfig, ModelConfig
from melmask.embedding.encoder import AudioEncoder, Reconstruction, untrained
from melmask.errors import ConfigError, InputError, MissingExtraError, OutputError
from melmask.figures import figure as figure_module
from melmask.figures.figure import new_figure, save_figure
from melmask.figures.reconstruction import reconstruction_figure, save_reconstruction_picture
from melmask.figures.spectrogram import band_positions, draw_spectrogram, frequency_ticks_hz, time_edges_s

SMALL = {"frames": 64, "width": 16, "depth": 1, "heads": 2, "decoder_heads": 2}
PATCH = 16


def make_model(**changes):
    config = ModelConfig(**{**SMALL, "decoder_width": 16, "decoder_depth": 1, **changes})
    return untrained(ModelCard(model=config), device="cpu")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def logmels():
    """(3 clips, 80 mels, 100 frames), longer than the model's unit."""
    ramp = np.linspace(-9, 0, 100) + np.linspace(0, -3, 80)[:, None]
    noise = np.random.default_rng(0).standard_normal((3, 80, 100))
    return (ramp + noise).astype(np.float32)


def panels(figure):
    """The values drawn, a row of three a clip; color bars hold no such picture."""
    drawn = [np.ma.filled(axes.images[0].get_array(), np.nan) for axes in figure.axes if axes.images]
    return [drawn[i : i + 3] for i in range(0, len(drawn), 3)]


def tone_logmel(model, frequency_hz, seconds=0.6):
    time_s = np.arange(int(seconds * 16000)) / 16000
    return model.logmel(0.5 * np.sin(2 * np.pi * frequency_hz * time_s), 16000)[0]


def test_a_picture_is_written_whose_columns_differ(tmp_path, model, logmels):
    path = tmp_path / "pictures" / "step-1.png"
    save_reconstruction_picture(path, model, logmels, ["a", "b $1 {", "c" * 200])
    pixels = imread(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["step-1.png"]
    assert 1600 < pixels.shape[1] < 2000 and pixels.shape[0] > 800
    left, middle, right = (pixels[200:-200, start : start + 400] for start in (200, 750, 1250))
    for one, other in ((left, middle), (left, right), (middle, right)):
        assert np.abs(one - other).mean() > 0.02


def test_hidden_patches_are_blank_then_predicted_and_visible_ones_are_kept(model, logmels):
    for heard, seen, made in panels(reconstruction_figure(model, logmels, ["a", "b", "c"])):
        assert heard.shape == seen.shape == made.shape == (80, 64)
        hidden = np.isnan(seen)
        assert hidden.sum() == 15 * PATCH * PATCH
        assert np.array_equal(heard[~hidden], seen[~hidden]) and np.array_equal(heard[~hidden], made[~hidden])
        assert (heard[hidden] != made[hidden]).all()
        whole_patches = hidden.reshape(5, PATCH, 4, PATCH).mean((1, 3))
        assert set(np.unique(whole_patches)) == {0, 1}


def test_values_are_decibels(model, logmels):
    heard = panels(reconstruction_figure(model, logmels, ["a", "b", "c"]))[0][0]
    assert np.allclose(heard, 10 * np.log10(np.exp(logmels[0, :, :64])), atol=1e-4)


def test_a_perfect_model_gives_back_the_input(logmels, monkeypatch):
    model = make_model()

    def perfect(self, logmel, *, masked):
        return Reconstruction(0.0, np.zeros((1, masked.shape[1], PATCH * PATCH), np.float32), logmel)

    monkeypatch.setattr(AudioEncoder, "reconstruct", perfect)
    figure = reconstruction_figure(model, logmels, ["a", "b", "c"])
    assert all(np.array_equal(heard, made) for heard, _, made in panels(figure))
    assert sum(axes.get_title("right").startswith("loss 0.000") for axes in figure.axes) == 3


def test_each_clip_is_titled_with_its_own_loss_on_the_hidden_patches(model, logmels):
    figure = reconstruction_figure(model, logmels, ["a", "b", "c"])
    shown = [axes.get_title("right").split()[1] for axes in figure.axes if axes.get_title("right")]
    std_db = model.card.statistics.std * 10 / np.log(10)
    expected = [np.mean((made - heard)[np.isnan(seen)] ** 2) / std_db**2 for heard, seen, made in panels(figure)]
    assert shown == [f"{loss:.3f}" for loss in expected]
    assert [axes.get_title("left") for axes in figure.axes if axes.get_title("left")] == ["a", "b", "c"]


def test_masks_depend_on_the_seed_and_the_ratio_alone(model, logmels):
    def hidden(clips, **choice):
        rows = panels(reconstruction_figure(model, clips, ["x"] * len(clips), **choice))
        return np.array([np.isnan(seen) for _, seen, _ in rows])

    assert np.array_equal(hidden(logmels, seed=3), hidden(logmels[::-1], seed=3))
    assert not np.array_equal(hidden(logmels, seed=3), hidden(logmels, seed=4))
    assert hidden(logmels, mask_ratio=0.5).mean() == 0.5


@pytest.mark.parametrize(("frames", "drawn"), [(16, 16), (63, 48), (64, 64), (100, 64)])
def test_a_clip_is_cut_to_whole_patches_and_to_one_unit(tmp_path, model, logmels, frames, drawn):
    heard = panels(reconstruction_figure(model, logmels[:1, :, :frames], ["a"]))[0][0]
    assert heard.shape == (80, drawn)
    save_reconstruction_picture(tmp_path / "a.png", model, logmels[:1, :, :frames], ["a"])


def test_silence_is_drawn_dark_without_a_warning(tmp_path, model):
    silence = np.full((1, 80, 64), -15.94, np.float16)
    figure = reconstruction_figure(model, silence, ["silence"])
    image = next(axes.images[0] for axes in figure.axes if axes.images)
    assert image.norm(image.get_array()).max() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_reconstruction_picture(tmp_path / "silence.png", model, silence, ["静けさ"])


@pytest.mark.parametrize("frequency_hz", [500, 1000, 2000, 5000])
def test_a_tone_is_brightest_at_its_own_tick(model, frequency_hz):
    logmel = tone_logmel(model, frequency_hz)
    axes = Figure().add_subplot()
    draw_spectrogram(axes, logmel, model.card.front_end, (-15.0, 5.0))
    ticks = {
        label.get_text(): position for label, position in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    }
    # Half a band: the row of the picture that the tick points at.
    assert abs(ticks[f"{frequency_hz:,}"] - logmel[:, 20].argmax()) <= 0.5


def test_a_click_is_brightest_at_its_own_time(model):
    clip = np.zeros(16000)
    clip[8000] = 1.0
    logmel = model.logmel(clip, 16000)[0]
    axes = Figure().add_subplot()
    image = draw_spectrogram(axes, logmel, model.card.front_end, (-15.0, 5.0))
    left, right, low, high = image.get_extent()
    center_s = left + (logmel.mean(0).argmax() + 0.5) * (right - left) / logmel.shape[1]
    assert center_s == pytest.approx(0.5, abs=0.006)
    assert (low, high) == (-0.5, 79.5) and axes.get_ylim() == (-0.5, 79.5)


@pytest.mark.parametrize(
    ("rate_hz", "max_hz", "mels"), [(16000, 8000.0, 80), (32000, 16000.0, 80), (48000, 24000.0, 128)]
)
def test_ticks_are_round_inside_the_picture_and_apart(rate_hz, max_hz, mels):
    config = FrontEndConfig(sample_rate_hz=rate_hz, max_hz=max_hz, mels=mels)
    ticks = frequency_ticks_hz(config)
    positions = band_positions(ticks, config)
    assert {500, 1000, 2000, 5000} <= set(ticks)
    assert positions.min() >= -0.5 and positions.max() <= mels - 0.5
    assert np.diff(positions).min() > 0.08 * mels
    assert all(str(int(tick)).rstrip("0") in {"1", "2", "5"} for tick in ticks)


def test_time_edges_lie_half_a_hop_outside_the_frames():
    assert time_edges_s(100, FrontEndConfig()) == pytest.approx((-0.005, 0.995))


def test_a_picture_that_cannot_be_written_is_refused(tmp_path, model, logmels, monkeypatch):
    (tmp_path / "file").touch()
    for name, message in (("file/a.png", "cannot write"), ("a.xyz", "not a kind of picture"), ("a", "not a kind")):
        with pytest.raises(OutputError, match=message):
            save_reconstruction_picture(tmp_path / name, model, logmels[:1], ["a"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"melmask\[plot\]"):
        save_reconstruction_picture(tmp_path / "a.png", model, logmels[:1], ["a"])


def test_clips_that_cannot_be_drawn_are_refused(model, logmels):
    for clips, titles, message in (
        (logmels, ["a"], "3 clips with 1 titles"),
        (logmels[:0], [], "0 clips"),
        (np.repeat(logmels, 3, axis=0), ["a"] * 9, "9 clips"),
        (logmels[:1, :, :15], ["a"], "two patches or more"),
        (logmels[:1, :64], ["a"], "give \\(80, frames\\)"),
    ):
        with pytest.raises(InputError, match=message):
            reconstruction_figure(model, clips, titles)
    for ratio in (0.0, 1.0, -0.5):
        with pytest.raises(ConfigError, match="ratio"):
            reconstruction_figure(model, logmels[:1], ["a"], mask_ratio=ratio)
    encoder_only = make_model(decoder_width=0, decoder_depth=0)
    with pytest.raises(ConfigError, match="cannot reconstruct"):
        reconstruction_figure(encoder_only, logmels[:1], ["a"])


@pytest.fixture
def fonts(tmp_path, monkeypatch):
    """Fonts for two letters that matplotlib's own lacks, as if they were installed, once this is called."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib import font_manager

    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", list(manager.ttflist))
    figure_module._fonts_for.cache_clear()
    figure_module._told.clear()

    def install():
        for letter, width in (("静", 200), ("ก", 800)):
            pen = TTGlyphPen(None)
            pen.moveTo((100, 0))
            for corner in ((100, 700), (100 + width, 700), (100 + width, 0)):
                pen.lineTo(corner)
            pen.closePath()
            empty = TTGlyphPen(None).glyph()
            builder = FontBuilder(1000, isTTF=True)
            builder.setupGlyphOrder([".notdef", "letter"])
            builder.setupCharacterMap({ord(letter): "letter"})
            builder.setupGlyf({".notdef": empty, "letter": pen.glyph()})
            builder.setupHorizontalMetrics({".notdef": (1000, 0), "letter": (1000, 100)})
            builder.setupHorizontalHeader(ascent=800, descent=-200)
            builder.setupNameTable({"familyName": f"Toy {width}", "styleName": "Regular"})
            builder.setupOS2()
            builder.setupPost()
            path = tmp_path / f"toy-{width}.ttf"
            builder.save(path)
            manager.addfont(path)
        figure_module._fonts_for.cache_clear()

    yield install
    figure_module._fonts_for.cache_clear()


def drawn(path, *words):
    figure = new_figure(3.0, 1.0)
    axes = figure.add_subplot()
    axes.set_xticks(range(len(words)), words)
    save_figure(figure, path)
    return path.read_bytes()


def test_a_script_that_no_font_has_is_told_in_one_line(tmp_path, fonts, capsys):
    drawn(tmp_path / "a.png", "静か", "静", "กา", "ünï ≤ …")
    drawn(tmp_path / "b.png", "か")
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(")")[0] for line in said] == [
        "melmask: no font here has the letter 静 (Chinese character",
        "melmask: no font here has the letter か (Hiragana",
        "melmask: no font here has the letter ก (Thai",
    ]


def test_a_font_that_has_the_letters_is_chosen(tmp_path, fonts, capsys):
    without = drawn(tmp_path / "a.png", "静", "ก x")
    capsys.readouterr()
    fonts()
    assert drawn(tmp_path / "b.png", "静", "ก x") != without
    assert capsys.readouterr().err == ""
    families, missing = figure_module._fonts_for(frozenset("静กか"))
    assert set(families) == {"Toy 200", "Toy 800"} and missing == {"か"}
