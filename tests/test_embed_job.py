"""Embedding many files to one table: resumable, in shares, every file once."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from melmask import embed_job, tables
from melmask.checkpoint.folder import ModelCard
from melmask.config import ModelConfig
from melmask.embed_job import embed_table, shard_of
from melmask.encoder import untrained
from melmask.errors import ConfigError, InputError, OutputError


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(width=32, depth=2, heads=2, decoder_width=0, decoder_depth=0, frames=64)
    return untrained(ModelCard(model=config), device="cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Eleven files of growing length, the fourth of them no sound."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    made = []
    for k in range(11):
        made.append(folder / f"clip{k:02d}.wav")
        soundfile.write(made[-1], 0.1 * rng.normal(size=1600 * (k + 1)), 16000)
    made[3].write_text("no sound")
    return made


@pytest.fixture(autouse=True)
def three_files_a_part(monkeypatch):
    monkeypatch.setattr(tables, "FILES_PER_PART", 3)


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that embedding was asked for, in order."""
    names = []
    embed_files = embed_job.embed_files

    def counting(model, paths, **choice):
        names.extend(path.name for path in paths)
        return embed_files(model, paths, **choice)

    monkeypatch.setattr(embed_job, "embed_files", counting)
    return names


def read(path):
    """(paths, scenes) of a table."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["path"].tolist(), arrays["scene"]
    rows = pq.read_table(path).to_pylist()
    return [row["path"] for row in rows], np.array([row["scene"] for row in rows])


def test_every_readable_file_is_in_the_table_once_and_in_order(model, paths, tmp_path):
    out = tmp_path / "x.parquet"
    report = embed_table(model, paths, out, keep_frames=True)
    rows = pq.read_table(out).to_pylist()
    assert [row["path"] for row in rows] == [str(path) for path in paths if path != paths[3]]
    assert (report.files, report.failed) == (10, 1) and report.sound_s == pytest.approx(6.2)
    alone = model.embed(paths[7])
    assert np.abs(np.array(rows[6]["scene"]) - alone.scene).max() < 1e-5
    assert np.abs(np.array(rows[6]["frames"]) - alone.frames).max() < 1e-5
    assert "clip03.wav" in (tmp_path / "x.parquet.failed.csv").read_text()
    assert [path.name for path in tmp_path.iterdir() if "parts" in path.name] == []


@pytest.mark.parametrize("name", ["x.parquet", "x.npz"])
def test_a_killed_job_goes_on_after_its_last_whole_part(name, model, paths, tmp_path, monkeypatch, decoded):
    out = tmp_path / name
    write = tables.pq.write_table

    def killed(table, file):
        if table["path"][0].as_py() == str(paths[6]):
            raise KeyboardInterrupt
        write(table, file)

    with monkeypatch.context() as context:
        context.setattr(tables.pq, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            embed_table(model, paths, out)
    assert not out.exists()
    decoded.clear()
    embed_table(model, paths, out)
    assert decoded == [path.name for path in paths[6:]], "nothing redone"
    whole = tmp_path / f"whole{out.suffix}"
    embed_table(model, paths, whole)
    (paths_here, scenes_here), (paths_there, scenes_there) = read(out), read(whole)
    assert paths_here == paths_there and np.abs(scenes_here - scenes_there).max() < 1e-5


def test_a_finished_job_is_not_done_again(model, paths, tmp_path, decoded):
    out = tmp_path / "x.npz"
    embed_table(model, paths, out)
    decoded.clear()
    report = embed_table(model, paths, out)
    assert decoded == [] and (report.files, report.failed) == (10, 1)
    embed_table(model, paths, out, pooling="mean")
    assert len(decoded) == 11, "another choice is another job"


def test_parts_of_another_job_are_refused(model, paths, tmp_path):
    out = tmp_path / "x.parquet"
    tables.TableJob(out, paths, tables.settings_of(model, paths, pooling="mean"))
    with pytest.raises(OutputError, match="belongs to a job with another pooling, dimensions"):
        embed_table(model, paths, out)


def test_shares_cover_all_files_once(paths, tmp_path):
    shares = [shard_of(paths, tmp_path / "x.parquet", f"{k}/4") for k in range(4)]
    assert sorted(path for share, _ in shares for path in share) == sorted(paths)
    assert shares[2][1].name == "x-00002-of-00004.parquet"


def test_a_wrong_share_is_refused(paths, tmp_path):
    for wrong in ("4/4", "1", "a/b", "-1/4"):
        with pytest.raises(ConfigError, match="0 <= I < N"):
            shard_of(paths, tmp_path / "x.parquet", wrong)
    with pytest.raises(InputError, match="use fewer shards"):
        shard_of(paths[:2], tmp_path / "x.parquet", "3/4")
