"""`melmask show`: pictures of the inside of a model, their numbers, and the sounds beside them."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from melmask.audio.logmel import DB_PER_NATURAL_LOG
from melmask.checkpoint.folder import ModelCard
from melmask.cli import main
from melmask.config import MaskingConfig, ModelConfig, Reading
from melmask.downstream.baselines import PRETRAINED, features_of_task
from melmask.downstream.layers import probe_layers
from melmask.downstream.options import ProbeOptions
from melmask.downstream.probe import read_tables
from melmask.embedding.encoder import untrained
from melmask.errors import ConfigError, InputError
from melmask.figures.attention import attention_panels
from melmask.figures.show import show_attention, show_features, show_reconstruction
from melmask.geometry import PatchGrid
from melmask.inspection.attention import Attention
from melmask.inspection.attention_statistics import attention_statistics, head_measures
from melmask.inspection.clips import clip_of
from melmask.inspection.features import clip_features
from melmask.inspection.masks import Box, patch_at
from melmask.inspection.options import AttentionOptions, MaskOptions, StretchOptions
from melmask.inspection.reconstruction import (
    clip_box,
    clip_mask,
    filled,
    masked_clip,
    over_bands,
    patch_means,
    predictability,
    reconstruct_clip,
)
from melmask.inspection.sound import loudness_lufs

RATE_HZ = 16000


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    from melmask.figures import figure

    save = figure.save_figure
    monkeypatch.setattr(figure, "save_figure", lambda made, path: (figures.append(made), save(made, path)))
    return figures


@pytest.fixture(scope="module")
def wav(sound, tmp_path_factory):
    """2.5 s, four units of the toy model: 15 whole patches of 160 ms."""
    path = tmp_path_factory.mktemp("show") / "a $1 sound.wav"
    soundfile.write(path, sound(2.5, 1), RATE_HZ)
    return path


def rows_of(table):
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def pictures(figure):
    """What is drawn, by the title above it."""
    return {
        axes.get_title("left"): np.ma.filled(axes.images[0].get_array(), np.nan) for axes in figure.axes if axes.images
    }


def test_a_clip_is_a_part_of_a_file_cut_to_whole_patches(encoder, wav, capsys):
    whole, part = clip_of(encoder, wav), clip_of(encoder, str(wav), start_s=0.5, end_s=1.0)
    assert whole.logmel.shape == (80, 240) and len(whole.waveform) == 40000 and whole.name == "a $1 sound.wav"
    assert part.logmel.shape == (80, 48) and len(part.waveform) == 8000 and part.start_s == 0.5
    # Away from the edges, a part is the same as in the whole.
    np.testing.assert_allclose(part.logmel[:, 2:46], whole.logmel[:, 52:96], atol=1e-3)
    samples, _ = soundfile.read(wav, dtype="float32")
    np.testing.assert_array_equal(clip_of(encoder, samples, RATE_HZ, start_s=0.5, end_s=1.0).logmel, part.logmel)
    assert [grid for _, grid in whole.units(encoder)] == [PatchGrid(5, 4)] * 3 + [PatchGrid(5, 3)]
    assert capsys.readouterr().err == ""
    long = clip_of(encoder, np.zeros(31 * RATE_HZ, np.float32) + 0.01, RATE_HZ)
    assert len(long.waveform) == 30 * RATE_HZ
    assert "sound is longer than 30 s; shown are 0 to 30 s, and --start and --end choose" in capsys.readouterr().err


def test_a_clip_that_is_none_is_refused(encoder, wav):
    with pytest.raises(InputError, match=r"has 100 ms from 0.5 s on; a patch of this model has 160 ms"):
        clip_of(encoder, wav, start_s=0.5, end_s=0.6)
    with pytest.raises(InputError, match=r"begins after the file's end at 2.5 s; correct the times"):
        clip_of(encoder, wav, start_s=3.0)
    with pytest.raises(InputError, match="ends before 3 s"):
        clip_of(encoder, np.zeros(8000, np.float32), RATE_HZ, start_s=3.0)
    with pytest.raises(InputError, match="holds 2 clips"):
        clip_of(encoder, np.zeros((2, 8000), np.float32), RATE_HZ)


def test_a_reconstruction_keeps_what_is_visible_and_its_errors_are_those_of_the_rest(encoder, wav):
    clip = clip_of(encoder, wav)
    masked = clip_mask(encoder, clip, MaskingConfig(), 3)
    assert masked.shape == (5, 15) and [masked[:, k : k + 4].sum() for k in (0, 4, 8)] == [15] * 3
    made = reconstruct_clip(encoder, clip, masked)
    over = over_bands(masked, encoder.card.model)
    np.testing.assert_array_equal(made.logmel[~over], clip.logmel[~over])
    unit = encoder.reconstruct(clip.logmel[None, :, 64:128], masked=masked[:, 4:8].reshape(1, -1))
    np.testing.assert_array_equal(
        made.logmel[:, 64:128], np.where(over[:, 64:128], unit.logmel[0], clip.logmel[:, 64:128])
    )
    assert (made.visible[over] < -15.9).all() and np.isnan(made.errors_db[~masked]).all()
    distances = np.abs(made.logmel - clip.logmel) * DB_PER_NATURAL_LOG
    assert masked[4, 0] and made.errors_db[4, 0] == pytest.approx(distances[64:80, :16].mean())
    assert made.error_db == pytest.approx(distances[over].mean()) == pytest.approx(np.nanmean(made.errors_db), rel=1e-4)
    assert made.filled_db == pytest.approx(
        np.abs(filled(encoder, clip, masked) - clip.logmel)[over].mean() * 4.343, rel=1e-3
    )


def test_patches_and_bands_fit_together_in_all_resolutions():
    config = ModelConfig(frames=64, resolutions=2)
    by_patch = np.arange(20.0).reshape(5, 4)
    spread = over_bands(by_patch, config)
    assert spread.shape == (160, 64)
    np.testing.assert_array_equal(spread[:80], spread[80:])
    np.testing.assert_array_equal(patch_means(spread, config), by_patch)


def test_a_box_is_hidden_in_the_middle_of_a_unit(encoder, wav):
    clip, masked = masked_clip(encoder, wav, MaskOptions(box=(1.3, 1.4, 1000.0, 1500.0)))
    assert clip.start_s == pytest.approx(0.96) and clip.logmel.shape == (80, 64)
    assert np.flatnonzero(masked.any(0)).tolist() == [2]
    with pytest.raises(InputError, match=r"the box hides all that the model sees at once, 0.64 s"):
        clip_box(encoder, clip_of(encoder, wav), Box(0.0, 1.0, 0.0, 9000.0))
    # A box at the start of a file has no unit around it.
    assert masked_clip(encoder, wav, MaskOptions(box=(0.0, 0.1, 100.0, 500.0)))[0].start_s == 0


def test_predictability_is_the_mean_error_of_the_masks_that_hide_a_value(encoder, wav):
    clip = clip_of(encoder, wav, end_s=0.7)
    found = predictability(encoder, clip, MaskingConfig(), range(5, 8))
    sums, counts = np.zeros((80, 64)), np.zeros((80, 64))
    for seed in range(5, 8):
        made = reconstruct_clip(encoder, clip, clip_mask(encoder, clip, MaskingConfig(), seed))
        over = over_bands(made.masked, encoder.card.model)
        sums[over] += np.abs(made.logmel - clip.logmel)[over] * DB_PER_NATURAL_LOG
        counts += over
    np.testing.assert_allclose(found.errors_db[counts > 0], (sums / np.maximum(counts, 1))[counts > 0], rtol=1e-5)
    assert np.array_equal(np.isnan(found.errors_db), counts == 0) and found.masks == 3


def test_show_reconstruct_draws_four_pictures_and_writes_sounds_of_one_loudness(
    run_folder, wav, tmp_path, capsys, drawn
):
    out = tmp_path / "pictures" / "a.png"
    assert main(["show", "reconstruct", str(wav), "--model", str(run_folder), "--out", str(out), "--sound"]) == 0
    assert f"picture: {out}" in capsys.readouterr().out
    (figure,) = drawn
    shown = pictures(figure)
    assert list(shown) == ["input", "what the model sees", "what it reconstructs", "error of the reconstruction"]
    heard, seen, made, error = shown.values()
    hidden = np.isnan(seen)
    np.testing.assert_array_equal(heard[~hidden], made[~hidden])
    np.testing.assert_allclose(error[hidden], np.abs(made - heard)[hidden], atol=1e-4)
    assert np.isnan(error[~hidden]).all() and "76 % hidden" in figure.get_supxlabel()
    assert imread(out).shape[1] > 1000
    levels = []
    for name in ("sound", "input", "visible", "reconstruction"):
        samples, rate_hz = soundfile.read(out.with_name(f"a-{name}.wav"))
        assert rate_hz == RATE_HZ and len(samples) == 239 * 160 and np.abs(samples).max() < 1
        levels.append(loudness_lufs(samples, rate_hz))
    assert np.ptp(levels) < 0.1


def test_a_leak_is_drawn_only_on_request_and_says_so(wav):
    card = ModelCard(
        model=ModelConfig(frames=64, width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2),
        training={"config": {"masking": {"normalize_target": True}}},
    )
    model = untrained(card, device="cpu")
    honest, leaking = (show_reconstruction(model, wav, MaskOptions(leak=leak)) for leak in (False, True))
    assert "levels are estimated from the visible patches" in honest.get_supxlabel()
    assert "LEAKED" in leaking.get_supxlabel() and "LEAKED" not in honest.get_supxlabel()
    made = [pictures(figure)["what it reconstructs"] for figure in (honest, leaking)]
    assert np.abs(made[0] - made[1]).max() > 0.1


def test_seeds_show_the_mean_error(encoder, wav):
    shown = pictures(show_reconstruction(encoder, wav, MaskOptions(seeds=3), StretchOptions(start=1.0)))
    assert list(shown) == ["input", "mean error over 3 masks", "nearer than the level of the neighbors"]
    with pytest.raises(ConfigError, match="--sound plays one reconstruction"):
        show_reconstruction(encoder, wav, MaskOptions(seeds=3), sounds_beside=wav)


def test_attention_is_drawn_for_each_layer_and_head(encoder, wav, capsys):
    weights = np.random.default_rng(0).random((2, 2, 21, 21)).astype(np.float32)
    attention = Attention(weights, PatchGrid(5, 4), cls=True)
    panels = attention_panels(attention, "cls", [1, 2], [None, 2])
    assert [panel[:2] for panel in panels] == [
        ("layer 1", "all heads"),
        ("layer 1", "head 2"),
        ("layer 2", "all heads"),
        ("layer 2", "head 2"),
    ]
    np.testing.assert_array_equal(panels[3].weights, attention.from_cls(2, 2))
    np.testing.assert_array_equal(attention_panels(attention, 7, [1], [1])[0].weights, attention.from_patch(7, 1, 1))
    figure = show_attention(encoder, wav, AttentionOptions(), StretchOptions(start=0.5))
    drawn = [axes.images[0].get_array().shape for axes in figure.axes if axes.images]
    assert drawn == [(80, 64), *[(5, 4)] * 4]
    for options, count in ((AttentionOptions(of="rollout"), 1), (AttentionOptions(at=(0.9, 1000.0), head="mean"), 2)):
        figure = show_attention(encoder, wav, options, StretchOptions(start=0.5, end=9.0))
        assert len([axes for axes in figure.axes if axes.images]) == 1 + count
    assert "the model sees 0.64 s at once; shown are 0.5 to 1.14 s" in capsys.readouterr().err


def test_a_patch_is_found_by_its_time_and_frequency(encoder):
    card, grid = encoder.card, PatchGrid(5, 4)
    assert patch_at(card, grid, 0.0, 100.0) == 0
    assert patch_at(card, grid, 0.2, 100.0) == 1 and patch_at(card, grid, 0.0, 7000.0) == 16
    # Played ten times slower, the same place of the log-mel is a tenth as long and ten times as high.
    assert patch_at(replace(card, reading=Reading(expand=10.0)), grid, 0.02, 1000.0) == 1
    for time_s, frequency_hz in ((0.7, 100.0), (0.1, 8000.0), (0.1, 10.0)):
        with pytest.raises(InputError, match="no patch is at"):
            patch_at(card, grid, time_s, frequency_hz)


def test_heads_are_measured_against_equal_attention(encoder):
    equal = np.full((1, 1, 21, 21), 1 / 21, np.float32)
    # The second head looks at its own patch only, the third at the CLS token and the patch one column further.
    own = np.eye(21, dtype=np.float32)[None, None]
    ahead = np.zeros((1, 1, 21, 21), np.float32)
    for patch in range(20):
        ahead[0, 0, 1 + patch, 1 + patch // 4 * 4 + min(patch % 4 + 1, 3)] = 0.5
        ahead[0, 0, 1 + patch, 0] = 0.5
    measured = head_measures(encoder, Attention(np.concatenate([equal, own, ahead], 1), PatchGrid(5, 4), cls=True))
    np.testing.assert_allclose(measured.entropy_bits[0], [np.log2(20), 0, 0], atol=1e-5)
    np.testing.assert_allclose(measured.time_s[0], [1.25 * 0.16, 0, 0.75 * 0.16], atol=1e-5)
    np.testing.assert_allclose(measured.rows[0], [1.6, 0, 0], atol=1e-5)
    np.testing.assert_allclose(measured.cls[0], [1 / 21, 0, 0.5], atol=1e-5)


def test_attention_of_a_folder_is_measured_by_layer_and_head(
    run_folder, encoder, sound_folder, tmp_path, capsys, good_paths
):
    out = tmp_path / "heads.svg"
    assert main(["show", "attention", str(sound_folder), "--model", str(run_folder), "--out", str(out)]) == 0
    told = capsys.readouterr()
    # 0.3, 0.64, 1, 1.5, 2.5 and 4 s hold 1, 1, 1, 2, 3 and 6 whole units of 0.64 s.
    assert "14 units of 6 sounds" in told.out and "1 sound could not be read; the first is" in told.err
    rows = rows_of(out.with_suffix(".csv"))
    assert [(row["layer"], row["head"]) for row in rows] == [("equal", "equal"), *[(a, b) for a in "12" for b in "12"]]
    found = attention_statistics(encoder, good_paths)
    assert float(rows[1]["time_s"]) == pytest.approx(found.heads.time_s[0, 0])
    assert out.read_text().startswith("<?xml")


def test_features_have_no_position_unless_it_is_kept(encoder, wav):
    clip = clip_of(encoder, wav)
    found, kept = clip_features(encoder, clip), clip_features(encoder, clip, keep_position=True)
    assert found.colors.shape == (15, 3) and found.similarity.shape == (15, 15) and 0 < found.of_position < 1
    np.testing.assert_allclose(np.diag(found.similarity), 1)
    assert found.times_s[0] == pytest.approx(0.075) and np.diff(found.times_s) == pytest.approx([0.16] * 14)
    assert np.isnan(kept.of_position) and np.abs(kept.similarity - found.similarity).max() > 0.1
    # A sound that is the corpus mean has nothing but its position.
    neutral = replace(clip, logmel=np.full_like(clip.logmel, encoder.card.statistics.mean))
    assert clip_features(encoder, neutral).of_position == pytest.approx(1)
    figure = show_features(encoder, wav)
    assert len(pictures(figure)) == 3 and pictures(figure)["features as colors"].shape == (1, 15, 3)


@pytest.fixture(scope="module")
def table(sound, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labeled")
    rows = [("path", "label", "split")]
    for number in range(18):
        soundfile.write(folder / f"{number}.wav", sound(0.7, number % 3), RATE_HZ)
        rows.append((f"{number}.wav", "xyz"[number % 3], "train" if number < 12 else "test"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "labels.csv"


def test_layers_are_probed_as_probe_does_it(encoder, table, run_folder, tmp_path, capsys):
    found = probe_layers(encoder, table)
    assert list(found.scores) == [1, 2] and (found.clips, found.classes, found.splits) == (18, 3, 1)
    options = ProbeOptions(choice=ProbeOptions().choice.changed(layer=2))
    ((name, labels),) = read_tables([table], options).items()
    alone = features_of_task(encoder, name, labels, options).features[PRETRAINED]
    both = ProbeOptions(choice=ProbeOptions().choice.changed(layer=[1, 2], scene="mean+std"))
    together = features_of_task(encoder, name, labels, both, with_untrained=False).features
    assert list(together) == ["log-mel mean+std", PRETRAINED]
    from melmask.downstream.layers import _by_layer

    parts = _by_layer(together[PRETRAINED], [1, 2], both, encoder)
    np.testing.assert_allclose(parts["2"][:, : alone.shape[1]], alone, rtol=1e-4, atol=1e-5)
    out = tmp_path / "layers.png"
    assert main(["show", "layers", str(table), "--model", str(run_folder), "--out", str(out)]) == 0
    assert "linear: layer " in capsys.readouterr().out and out.exists()
    rows = rows_of(out.with_suffix(".csv"))
    assert [row["representation"] for row in rows] == [n for n in ("log-mel", "layer 1", "layer 2") for _ in "12"]
    assert float(rows[2]["accuracy"]) == found.scores[1][rows[2]["classifier"]].mean


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "reconstruct WAV --layer 2",
            "--layer has no effect on reconstruct; leave it out, or show attention or features",
        ),
        ("features WAV --seeds 3", "--seeds has no effect on features; leave it out, or show reconstruct"),
        ("layers TABLE --sound", "--sound has no effect on layers; leave it out, or show reconstruct"),
        ("attention FOLDER --layer 1", "--layer is for one sound, and"),
        ("features WAV --layer mean", "--layer is mean; for features give the number of a layer"),
        ("attention WAV --layer 3", "--layer is 3; this model has layers 1 to 2"),
        ("attention WAV --head 0", "--head is '0'; give a number from 1 on, mean or all"),
        ("attention WAV --of me", "--of is 'me'; give auto, cls, mean, rollout"),
        ("reconstruct WAV --ratio 1.5", "--ratio is 1.5; give a share between 0 and 1"),
        ("reconstruct WAV --box 1 0 10 20", "the box is 1 to 0 s and 10 to 20 Hz; give a start before its end"),
        ("reconstruct WAV --start 1 --end 0.5", "--end is 0.5 s; give a time after 1 s"),
        # This comes before the work, here before the file is found to be missing.
        ("layers nowhere.csv --out x.txt", "not a kind of picture; use .png, .svg or .pdf"),
        ("reconstruct NOWHERE", "does not exist; check the path"),
    ],
)
def test_what_has_no_effect_or_no_sense_is_refused_in_one_line(words, says, wav, table, run_folder, tmp_path, capsys):
    places = {"WAV": wav, "TABLE": table, "FOLDER": table.parent, "NOWHERE": tmp_path / "nowhere.wav"}
    arguments = [str(places.get(word, word)) for word in words.split()]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "x.png")]
    assert main(["show", *arguments, "--model", str(run_folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
