"""The Ray engine writes the table that one machine writes; on a cluster of two local workers."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.config import ModelConfig
from melmask.embedding import tables
from melmask.embedding.encoder import load
from melmask.embedding.folder import embed_sources, embed_table
from melmask.embedding.options import EmbedOptions
from melmask.models.network import build_network


@pytest.mark.filterwarnings("ignore")
def test_two_ray_workers_write_the_table_of_one_machine(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the ray extra is not installed")
    monkeypatch.setattr(tables, "FILES_PER_PART", 2)
    config = ModelConfig(width=32, depth=2, heads=2, decoder_width=0, decoder_depth=0, frames=64)
    save_checkpoint(tmp_path / "model", build_network(config), ModelCard(model=config))
    paths = [tmp_path / f"clip{k}.wav" for k in range(7)]
    rng = np.random.default_rng(0)
    for k, path in enumerate(paths):
        soundfile.write(path, 0.1 * rng.normal(size=3000 * (k + 1)), 16000)
    paths[2].write_text("no sound")
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}
    )
    try:
        options = EmbedOptions(engine="ray", workers=2, frames=True)
        report = embed_sources(paths, tmp_path / "model", tmp_path / "ray.parquet", options)
    finally:
        ray.shutdown()
    assert (report.files, report.failed) == (6, 1)
    embed_table(load(tmp_path / "model"), paths, tmp_path / "local.parquet", keep_frames=True)
    there, here = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("ray", "local"))
    assert [row["path"] for row in there] == [row["path"] for row in here]
    for a, b in zip(there, here, strict=True):
        assert np.abs(np.array(a["frames"]) - np.array(b["frames"])).max() < 1e-5
