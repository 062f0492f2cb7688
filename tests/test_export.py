"""The exported graph gives the embeddings of the Python path, also where neither torch nor melmask is."""

import subprocess
import sys

import numpy as np
import pytest

from melmask.checkpoint.folder import ModelCard
from melmask.config import ModelConfig
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import untrained

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnxscript", reason="the onnx extra is not installed")

RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
with numpy.load(sys.argv[2]) as audio:
    outputs = {key: session.run(None, {"waveform": audio[key]}) for key in audio}
numpy.savez(sys.argv[3], **{f"{key}{i}": o for key, out in outputs.items() for i, o in enumerate(out)})
assert "torch" not in sys.modules and "melmask" not in sys.modules
"""


@pytest.mark.parametrize(("cls_token", "layer", "pooling"), [(True, None, "concat"), (False, 1, "mean+max")])
@pytest.mark.filterwarnings("ignore")
def test_the_graph_equals_the_python_path_for_any_batch_and_length(cls_token, layer, pooling, tmp_path):
    from jaxtyping import config as jaxtyping_config

    from melmask.embedding.export import export_onnx

    config = ModelConfig(width=32, depth=2, heads=2, decoder_width=0, decoder_depth=0, frames=64, cls_token=cls_token)
    model = untrained(ModelCard(model=config), device="cpu")
    model.name = str(tmp_path / "run")
    choice, path = FeatureChoice(pooling=pooling).changed(layer=layer), tmp_path / "x.onnx"
    # torch.export traces with symbolic sizes, which the shape checker does not know.
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        assert export_onnx(model, path, choice) > 0.9999
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)
    # Neither the model's folder nor those of the program are anybody's business who gets the file.
    content = path.read_bytes()
    assert not any(trace in content for trace in (b"/tmp", bytes(tmp_path), b".py", b"site-packages", b"stack_trace"))
    rng = np.random.default_rng(0)
    shapes = [(1, 201), (5, 10240), (2, 33333)]
    # Clips that are mirrored more than once: up to n_fft / 2 samples.
    shapes += [(1, samples) for samples in (1, 2, 3, 4, 7, 40, 66, 67, 100, 101, 159, 160, 199, 200)] + [(3, 1)]
    audio = {f"a{k}": 0.1 * rng.normal(size=shape).astype(np.float32) for k, shape in enumerate(shapes)}
    np.savez(tmp_path / "audio.npz", **audio)
    files = [str(tmp_path / name) for name in ("x.onnx", "audio.npz", "out.npz")]
    subprocess.run([sys.executable, "-c", RUN, *files], check=True)
    with np.load(tmp_path / "out.npz") as outputs:
        for key, waveform in audio.items():
            ours = model.embed(waveform, 16000, choice)
            for k, expected in enumerate((ours.scene, ours.frames, ours.times_ms)):
                assert outputs[f"{key}{k}"].shape == expected.shape
                assert np.abs(outputs[f"{key}{k}"] - expected).max() < 2e-3
