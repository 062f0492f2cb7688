"""The scene vector over time: the mean, or mean and standard deviation, by the true duration of each step."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from melmask.adapters import hear
from melmask.cli import main
from melmask.embedding.extract import embed_files
from melmask.embedding.tables import read_settings

RATE_HZ, HOP_SAMPLES, PATCH_FRAMES = 16000, 160, 16


def by_hand(frames, samples):
    """Weighted moments of frame vectors in float64; the last step holds fewer frames of sound."""
    logmel_frames = 1 + samples // HOP_SAMPLES
    weights = np.full(len(frames), float(PATCH_FRAMES))
    weights[-1] = logmel_frames - PATCH_FRAMES * (len(frames) - 1)
    values = frames.astype(np.float64)
    mean = np.average(values, axis=0, weights=weights)
    std = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights))
    return np.concatenate([mean, std])


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("hop_ms", [None, 40.0])
def test_mean_and_deviation_of_the_frame_vectors(encoder, sound, seconds, hop_ms):
    x = sound(seconds, 1)
    frames = encoder.embed(x, RATE_HZ).frames
    both = encoder.embed(x, RATE_HZ, scene="mean+std", hop_ms=hop_ms)
    assert both.scene.shape == (2 * frames.shape[1],)
    np.testing.assert_allclose(both.scene, by_hand(frames, len(x)), atol=1e-5)
    np.testing.assert_allclose(both.scene[: frames.shape[1]], encoder.embed(x, RATE_HZ).scene, atol=1e-6)


def test_a_clip_of_one_step_does_not_vary(encoder, sound):
    scene = encoder.embed(sound(0.05, 1), RATE_HZ, scene="mean+std").scene
    half = len(scene) // 2
    assert np.abs(scene[half:]).max() < 1e-3 < np.abs(scene[:half]).max()


def test_files_and_tables_have_it(encoder, run_folder, good_paths, tmp_path):
    rows = list(embed_files(encoder, good_paths, scene="mean+std"))
    for row, path in zip(rows, good_paths, strict=True):
        np.testing.assert_allclose(row.scene, encoder.embed(path, scene="mean+std").scene, atol=1e-5)
    choice = ["--model", str(run_folder), "--scene", "mean+std", "--frames", "--device", "cpu"]
    sources = [str(path) for path in good_paths]
    for name in ("x.parquet", "x.npz"):
        assert main(["embed", *sources, "--out", str(tmp_path / name), *choice]) == 0
        settings = read_settings(tmp_path / name)
        assert (settings.scene, settings.scene_dimensions) == ("mean+std", 2 * settings.dimensions)
    table = pq.read_table(tmp_path / "x.parquet").to_pylist()
    with np.load(tmp_path / "x.npz") as arrays:
        for k, row in enumerate(rows):
            np.testing.assert_allclose(table[k]["scene"], row.scene, atol=1e-5)
            np.testing.assert_allclose(arrays["scene"][k], row.scene, atol=1e-5)
        assert arrays["frames"].shape[1] == settings.dimensions


def test_probe_takes_it(run_folder, good_paths, tmp_path):
    labels = tmp_path / "labels.csv"
    rows = [f"{path},{'ab'[k % 2]},{['train', 'test'][k // 4]}" for k, path in enumerate(good_paths)]
    labels.write_text("\n".join(["path,label,split", *rows]) + "\n")
    command = ["probe", "--labels", str(labels), "--model", str(run_folder), "--out", str(tmp_path / "p")]
    assert main([*command, "--scene", "mean+std", "--device", "cpu"]) == 0
    assert '"scene": "mean+std"' in (tmp_path / "p" / "probe.json").read_text()


def test_hear_takes_it(run_folder, sound, monkeypatch):
    monkeypatch.setenv("MELMASK_SCENE", "mean+std")
    model = hear.load_model(str(run_folder))
    scenes = hear.get_scene_embeddings(torch.from_numpy(sound(1.0, 0))[None], model)
    assert scenes.shape == (1, model.scene_embedding_size)
    assert model.scene_embedding_size == 2 * model.timestamp_embedding_size
