"""Search: exact and approximate neighbors, an index that grows and survives kills, and queries in every form."""

import io
import itertools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

import melmask
from melmask.audio.parts import Sound
from melmask.checkpoint.folder import save_checkpoint
from melmask.cli import main
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.folder import embed_table
from melmask.embedding.tables import read_settings
from melmask.errors import InputError, OutputError
from melmask.search import approximate, build, files, index, nearest
from melmask.search.build import build_index
from melmask.search.index import SearchIndex
from melmask.search.nearest import Vectors, near_duplicates
from melmask.system import extras

RATE_HZ = 16000
SIZE = 160


def made_vectors(rows, dims=24, seed=0):
    """Twenty clusters, far from zero as the vectors of a model are."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((20, dims))
    own = 0.5 * rng.standard_normal((rows, dims))
    return (20 * np.ones(dims) + centers[rng.integers(20, size=rows)] + own).astype(np.float32)


def cosines(matrix):
    """Every row with every other one, centered, in float64."""
    rows = matrix - matrix.sum(axis=0, dtype=np.float64) / (len(matrix) + 10)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


@pytest.mark.parametrize("block_rows", [7, 1000])
def test_the_nearest_rows_are_those_of_all_similarities_sorted(block_rows, monkeypatch):
    matrix = made_vectors(200)
    matrix[[50, 150]] = matrix[3]
    monkeypatch.setattr(nearest, "_BLOCK_VALUES", block_rows * matrix.shape[1])
    vectors, among = Vectors(matrix), np.arange(200) % 3 != 0
    for row, wanted in itertools.product((0, 3, 77), (None, among)):
        expected = cosines(matrix)[row].astype(np.float32)
        order = np.lexsort((np.arange(200), -np.round(expected, 6)))
        order = order if wanted is None else order[wanted[order]]
        ids, similarity = vectors.nearest(matrix[row], 10, wanted)
        np.testing.assert_array_equal(ids, order[:10])
        np.testing.assert_allclose(similarity, expected[ids], atol=1e-5)
    assert list(vectors.nearest(matrix[3], 3).ids) == [3, 50, 150]
    assert len(vectors.nearest(matrix[3], 500).ids) == 200 and len(Vectors(matrix[:0]).nearest(matrix[0], 5).ids) == 0


def test_near_duplicates_are_the_pairs_of_all_similarities(monkeypatch):
    matrix = made_vectors(150)
    matrix[120] = matrix[7] + 0.001
    monkeypatch.setattr(nearest, "_PAIR_ROWS", 64)
    expected = np.triu(cosines(matrix), 1)
    for threshold, count in ((0.8, 10_000), (0.8, 5), (0.9999, 10)):
        pairs = near_duplicates(Vectors(matrix), threshold, count)
        first, second = np.nonzero(expected >= threshold)
        order = np.argsort(-expected[first, second])[:count]
        assert list(zip(pairs.first, pairs.second, strict=True)) == list(zip(first[order], second[order], strict=True))
        np.testing.assert_allclose(pairs.similarity, expected[first, second][order], atol=1e-5)
    groups = np.arange(150) // 75
    pairs = near_duplicates(Vectors(matrix), 0.8, 10_000, groups=groups)
    assert len(pairs.first) and (groups[pairs.first] != groups[pairs.second]).all()


@pytest.mark.parametrize("rows", [2, 3, 40])
def test_equal_rows_are_duplicates_even_if_there_are_no_others(rows):
    matrix = np.tile(made_vectors(1), (rows, 1))
    pairs = near_duplicates(Vectors(matrix), 1.0, 10_000)
    assert len(pairs.first) == rows * (rows - 1) // 2 and (pairs.similarity == 1).all()


@pytest.fixture(scope="module")
def sounds(tmp_path_factory, sound):
    """Twelve sounds of 2 s, the last of them a copy of the first with half of its volume."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(11):
        soundfile.write(folder / f"{number:02d}.wav", sound(2.0, number), RATE_HZ)
    soundfile.write(folder / "copy.wav", 0.5 * sound(2.0, 0), RATE_HZ)
    return sorted(folder.glob("*.wav"))


@pytest.fixture(scope="module")
def table(encoder, sounds, tmp_path_factory):
    """The embeddings of the sounds, with their frame vectors."""
    path = tmp_path_factory.mktemp("tables") / "e.parquet"
    embed_table(encoder, sounds, path, keep_frames=True)
    return path


def with_vectors(table, to, names, vectors, **changes):
    """Write a table as melmask does, with other names and scene vectors, and settings that are changed."""
    settings = replace(read_settings(table), frames=False, scene_dimensions=vectors.shape[1], **changes)
    columns = {
        "path": pa.array(names, pa.string()),
        "duration_s": pa.array(np.ones(len(names))),
        "scene": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel().astype(np.float32)), vectors.shape[1]),
        "note": pa.nulls(len(names), pa.string()),
    }
    schema = pa.table(columns).schema.with_metadata({b"melmask": settings.to_json()})
    pq.write_table(pa.table(columns).cast(schema), to)
    return to


def content(folder):
    """What an index says: collection, path and vector of every sound."""
    index = SearchIndex(folder)
    items = files.read_items(folder, index.facts).to_pylist()
    live = [item for item in items if item["live"]]
    vectors = (index.vectors.matrix[item["first_row"] : item["first_row"] + item["rows"]] for item in live)
    return {(item["collection"], item["path"]): part.tobytes() for item, part in zip(live, vectors, strict=True)}


def test_a_sound_finds_itself_and_its_copy_by_every_kind_of_query(table, sounds, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "idx"
    assert main(["index", str(table), "--out", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: 12 vectors of 12 sounds; 12 added, 0 replaced, 0 unchanged\n"
    assert main(["search", str(folder), "--top", "2", str(sounds[0]), "--out", str(tmp_path / "hits.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f" 1.000  {sounds[0]}" and lines[1].endswith("copy.wav") and len(lines) == 3
    # Python, standard input, an array and a part that is the whole give the same.
    index = SearchIndex(folder)
    waveform, _ = soundfile.read(sounds[0], dtype="float32")
    hits = index.search(sounds[0], top=2)
    assert [Path(hit.path).name for hit in hits] == ["00.wav", "copy.wav"] and hits[0].start_s is None
    for other in (
        index.search(sounds[0].read_bytes(), top=2),
        index.search(waveform, top=2, sample_rate_hz=RATE_HZ),
        index.search(waveform, top=2, sample_rate_hz=RATE_HZ, start_s=0.0, end_s=2.0),
        index.search(sounds[0], top=2, start_s=0.0, end_s=2.0),
    ):
        assert [hit.row for hit in other] == [hit.row for hit in hits]
        np.testing.assert_allclose([hit.similarity for hit in other], [hit.similarity for hit in hits], atol=1e-5)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(sounds[0].read_bytes()), isatty=bool))
    assert main(["search", str(folder), "-", "--top", "2", "--out", str(tmp_path / "hits.parquet")]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == lines[:2]
    assert (tmp_path / "hits.csv").read_text().splitlines()[
        0
    ] == "rank,similarity,collection,path,channel,start_s,end_s"
    rows = pq.ParquetFile(tmp_path / "hits.parquet").read().to_pylist()
    assert [row["path"] for row in rows] == [hit.path for hit in hits] and rows[1]["similarity"] == hits[1].similarity
    # The pair is found as near-duplicates.
    out = tmp_path / "pairs.jsonl"
    least = hits[1].similarity - 1e-4
    assert main(["duplicates", str(folder), "--similarity", str(least), "--out", str(out)]) == 0
    pairs = [(row["path"], row["other_path"]) for row in map(json.loads, out.read_text().splitlines())]
    assert (hits[0].path, hits[1].path) in pairs and len(pairs) == len(set(pairs))


def test_an_index_grows_and_replaces_only_what_has_changed(table, tmp_path):
    folder, vectors = tmp_path / "idx", made_vectors(30, SIZE)
    names = [f"{number}.wav" for number in range(30)]
    first = with_vectors(table, tmp_path / "a.parquet", names, vectors)
    build_index([first], folder)
    facts = (folder / "index.json").read_bytes()
    report = build_index([first, first], folder)
    assert (report.added, report.replaced, report.unchanged) == (0, 0, 60)
    assert (folder / "index.json").read_bytes() == facts
    # Two sounds change, one is new, and one of the same name belongs to another collection.
    changed = vectors.copy()
    changed[[3, 4]] = made_vectors(2, SIZE, seed=5)
    changed = np.concatenate([changed[:10], made_vectors(1, SIZE, seed=1)])
    second = with_vectors(table, tmp_path / "b.parquet", [*names[:10], "new.wav"], changed)
    report = build_index([second], folder)
    assert (report.added, report.replaced, report.unchanged, report.vectors) == (1, 2, 8, 31)
    report = build_index([second], folder, collection="other")
    assert report.collections == {"default": 31, "other": 11} and report.added == 11
    expected = {("default", name): row.tobytes() for name, row in zip(names, vectors, strict=True)}
    expected |= {("default", name): row.tobytes() for name, row in zip([*names[:10], "new.wav"], changed, strict=True)}
    expected |= {("other", name): row.tobytes() for name, row in zip([*names[:10], "new.wav"], changed, strict=True)}
    assert content(folder) == expected
    index = SearchIndex(folder)
    assert index.nearest(vectors[3], 1)[0].similarity < 0.999
    hits = index.nearest(changed[3], 2)
    assert [(hit.collection, hit.path) for hit in hits] == [("default", "3.wav"), ("other", "3.wav")]
    assert [hit.collection for hit in index.nearest(changed[3], 11, collections=["other"])] == ["other"] * 11
    # Vectors that were replaced are removed from the file when they are most of it.
    for shift in (1.0, 2.0, 3.0):
        moved = with_vectors(table, tmp_path / "c.parquet", names, vectors + shift)
        report = build_index([moved], folder)
    assert report.vectors == 42 and SearchIndex(folder).facts.rows < 100
    assert content(folder)["default", "5.wav"] == (vectors + 3.0)[5].tobytes()
    assert len(list(folder.glob("vectors-*"))) == len(list(folder.glob("items-*"))) == 1


def test_shards_in_both_formats_make_one_index(encoder, sounds, table, tmp_path):
    parts = [Sound(sounds[0], 0.5, 1.5), Sound(sounds[1], 1.0, None), Sound(sounds[2])]
    shards = [tmp_path / "s-0.parquet", tmp_path / "s-1.npz", tmp_path / "s-2.npz"]
    for shard, part in zip(shards, (parts[:2], sounds[3:], parts[2:]), strict=True):
        embed_table(encoder, part, shard)
    report = build_index(shards, tmp_path / "idx")
    assert report.added == 12 and build_index([shards[1]], tmp_path / "idx").unchanged == 9
    index = SearchIndex(tmp_path / "idx")
    (hit,) = index.search(sounds[0], 1, start_s=0.5, end_s=1.5)
    assert (hit.path, hit.start_s, hit.end_s) == (str(sounds[0]), 0.5, 1.5) and hit.similarity > 0.9999
    (hit,) = index.search(sounds[1], 1, start_s=1.0)
    assert (hit.path, hit.start_s, hit.end_s) == (str(sounds[1]), 1.0, None)
    assert build_index([table], tmp_path / "idx").unchanged == 10, "whole files are the same sounds in all tables"


class Killed(BaseException):
    """The process is gone."""


def test_an_index_whose_job_was_killed_at_any_write_is_whole_and_is_resumed(table, tmp_path, monkeypatch):
    vectors = made_vectors(40, SIZE)
    names = [f"{number}.wav" for number in range(40)]
    old = with_vectors(table, tmp_path / "old.parquet", names[:20], vectors[:20] + 1)
    new = with_vectors(table, tmp_path / "new.parquet", names, vectors)
    monkeypatch.setattr(build, "_ROWS_BETWEEN_SAVES", 15)
    build_index([old], tmp_path / "whole")
    build_index([new], tmp_path / "whole")
    expected = content(tmp_path / "whole")
    writes = [(os, "fsync"), (Path, "replace"), (Path, "unlink")]
    for at in itertools.count(1):
        folder, left = tmp_path / f"idx-{at}", at
        build_index([old], folder)

        def killing(write):
            def call(*arguments, **keywords):
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                return write(*arguments, **keywords) if left > 0 else None

            return call

        with monkeypatch.context() as patch:
            for owner, name in writes:
                patch.setattr(owner, name, killing(getattr(owner, name)))
            try:
                build_index([new], folder)
            except Killed:
                pass
            else:
                break
        there = content(folder)
        assert set(there) >= {("default", name) for name in names[:20]}
        assert SearchIndex(folder).nearest(vectors[1], 3)
        build_index([new], folder)
        assert content(folder) == expected
        assert {path.name for path in folder.iterdir()} == SearchIndex(folder).facts.names | {".lock"}
    assert at > 8


def test_an_index_is_opened_while_a_job_adds_to_it(table, tmp_path, monkeypatch):
    build_index([table], tmp_path / "idx")
    more = with_vectors(table, tmp_path / "more.parquet", ["x.wav"], np.ones((1, SIZE)))
    read_items = files.read_items

    def late(folder, facts):
        monkeypatch.undo()
        build_index([more], folder)
        return read_items(folder, facts)

    monkeypatch.setattr(files, "read_items", late)
    assert SearchIndex(tmp_path / "idx").facts.rows == 13


def test_moments_of_recordings_are_found_with_their_times(encoder, sound, tmp_path):
    # Three seconds of one tone with half a second of another one in it.
    calls = {"a.wav": 2.0, "b.wav": 4.5}
    for name, begin_s in calls.items():
        waveform = sound(7.0, 0)
        begin = round(begin_s * RATE_HZ)
        waveform[begin : begin + RATE_HZ] = 3 * sound(1.0, 7)
        soundfile.write(tmp_path / name, waveform, RATE_HZ)
    paths = [tmp_path / name for name in calls]
    embed_table(encoder, paths, tmp_path / "f.parquet", keep_frames=True)
    report = build_index([tmp_path / "f.parquet"], tmp_path / "idx", frames=True)
    assert report.vectors > 80 and report.added == 2
    assert build_index([tmp_path / "f.parquet"], tmp_path / "idx").unchanged == 2
    hits = SearchIndex(tmp_path / "idx").search(paths[0], 4, start_s=2.2, end_s=2.8)
    assert len(hits) == 4
    times = {Path(hit.path).name: hit.start_s for hit in reversed(hits)}
    for name, begin_s in calls.items():
        assert begin_s - 0.2 <= times[name] <= begin_s + 1
    for name in calls:
        starts = sorted(hit.start_s for hit in hits if hit.path.endswith(name))
        assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(starts))


@pytest.mark.parametrize("share", [1, 4])
def test_what_its_position_in_the_unit_adds_to_a_frame_vector_does_not_count(
    share, encoder, sounds, tmp_path, monkeypatch
):
    pytest.importorskip("usearch", reason="the search extra is not installed")
    model = encoder.card.model
    choice = FeatureChoice(hop_ms=model.patch_frames * encoder.hop_ms / share)
    embed_table(encoder, sounds, tmp_path / "f.parquet", choice, keep_frames=True)
    report = build_index([tmp_path / "f.parquet"], tmp_path / "idx", frames=True, least_approximate=50)
    there, count = SearchIndex(tmp_path / "idx"), model.frames // model.patch_frames * share
    assert report.approximate and report.notes == []
    items = files.read_items(tmp_path / "idx", there.facts).to_pylist()
    of_rows = np.concatenate([np.arange(item["rows"]) % count for item in items])
    matrix = np.array(there.vectors.matrix, np.float64)
    offsets = np.stack(
        [(matrix[of_rows == k] - matrix.mean(0)).sum(0) / ((of_rows == k).sum() + 10) for k in range(count)]
    )
    np.testing.assert_allclose(there.vectors.positions.offsets, offsets, atol=1e-5)
    # A query begins with a unit; its mean is over steps as wide as patches, and the last one is shorter.
    waveform, _ = soundfile.read(sounds[3], dtype="float32")
    query = waveform[: round(1.1 * RATE_HZ)]
    frames = encoder.embed(query, RATE_HZ).frames
    weights = np.ones(len(frames))
    weights[-1] = (110 - (len(frames) - 1) * model.patch_frames) / model.patch_frames
    # Where vectors are closer than patches, those of whole patches are among them.
    dense, patches = (encoder.times_ms(encoder.step_grid(one), 100).tolist() for one in (choice, FeatureChoice()))
    steps = np.array([dense.index(time_ms) for time_ms in patches[: len(frames)]]) % count
    expected = np.average(frames - offsets[steps], axis=0, weights=weights)
    np.testing.assert_allclose(there.vector_of(query, RATE_HZ), expected, atol=0.02 * np.abs(expected).max())
    # All ways to compare agree: block by block, in float64, and by the graph.
    units = matrix - matrix.sum(0) / (len(matrix) + 10) - offsets[of_rows]
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    own = there.vector_of(query, RATE_HZ) - there.vectors.mean
    similarity = units @ (own / np.linalg.norm(own))
    for exact in (True, False):
        (hit,) = there.nearest(there.vector_of(query, RATE_HZ), 1, exact=exact)
        assert hit.row == similarity.argmax() and hit.similarity == pytest.approx(similarity.max(), abs=1e-5)
    monkeypatch.setattr(index, "_MOST_COMPARED", 10)
    near, exact = (there.duplicates({1: 0.5, 4: 0.9}[share], 10_000, exact=exact) for exact in (False, True))
    assert near and near == exact and all(one.path != other.path for one, other in near)
    for one, other in near[:20]:
        assert one.similarity == pytest.approx(units[one.row] @ units[other.row], abs=1e-5)


def test_frames_of_a_table_that_does_not_know_their_positions_are_indexed_as_they_are(tmp_path):
    table = Path(__file__).parent / "reference" / "files-0.1.0" / "frames.npz"
    report = build_index([table], tmp_path / "idx", frames=True)
    assert "do not say where in the model's unit" in report.notes[0]
    assert SearchIndex(tmp_path / "idx").vectors.positions is None


@pytest.fixture
def large(table, tmp_path):
    """An approximate index of 3,000 sounds in three collections, the last of which extended its graph."""
    pytest.importorskip("usearch", reason="the search extra is not installed")
    vectors = made_vectors(3000, SIZE)
    for number in range(3):
        names = [f"{number}-{row}.wav" for row in range(1000)]
        path = with_vectors(table, tmp_path / f"{number}.parquet", names, vectors[1000 * number : 1000 * number + 1000])
        build_index([path], tmp_path / "idx", collection=f"c{number}", least_approximate=1500)
    assert SearchIndex(tmp_path / "idx").facts.graph_rows == 3000
    return tmp_path / "idx", vectors


def test_vectors_added_since_the_graph_and_small_collections_are_found(table, tmp_path, monkeypatch):
    pytest.importorskip("usearch", reason="the search extra is not installed")
    folder, vectors = tmp_path / "idx", made_vectors(3000, SIZE)
    far = made_vectors(5, SIZE, seed=9) - 40
    for number, part in enumerate((vectors[:1000], far, vectors[1000:2000], vectors[2000:])):
        if number == 3:
            monkeypatch.setattr(approximate, "available", lambda _: False)
        names = [f"{number}-{row}.wav" for row in range(len(part))]
        path = with_vectors(table, tmp_path / f"{number}.parquet", names, part)
        build_index([path], folder, collection=f"c{number}", least_approximate=1500)
    there = SearchIndex(folder)
    assert (there.facts.graph_rows, there.facts.rows) == (2005, 3005)
    for row in range(2000, 3000, 100):
        (hit,) = there.nearest(vectors[row], 1)
        assert (hit.row, hit.similarity) == (row + 5, 1.0)
    assert len(there.nearest(vectors[0], 5, collections=["c1"])) == 5


def test_sounds_that_are_embedded_again_count_once_in_the_mean(table, tmp_path):
    vectors, names = made_vectors(30, SIZE), [f"{row}.wav" for row in range(30)]
    moved = vectors.copy()
    moved[:3] += 5
    for part in (vectors, moved):
        build_index([with_vectors(table, tmp_path / "e.parquet", names, part)], tmp_path / "idx")
    there = SearchIndex(tmp_path / "idx")
    assert there.facts.rows == 33
    np.testing.assert_allclose(there.vectors.mean, moved.sum(0, dtype=np.float64) / 40, rtol=1e-6)


@pytest.mark.parametrize(("scene", "similarity"), [("mean", 0.95), ("whitened", 0.85)])
def test_copies_are_less_similar_where_vectors_are_whitened(scene, similarity, table, tmp_path):
    path = with_vectors(table, tmp_path / "e.parquet", ["x.wav"], np.ones((1, SIZE)), scene=scene)
    build_index([path], tmp_path / "idx")
    assert SearchIndex(tmp_path / "idx").duplicate_similarity == similarity


@pytest.mark.parametrize("options", [["--normalization", "dataset"], ["--channel", "each"]])
def test_a_query_is_embedded_as_the_index_was(options, run_folder, sounds, sound, tmp_path):
    table, folder, stereo = tmp_path / "e.parquet", tmp_path / "idx", tmp_path / "stereo.wav"
    soundfile.write(stereo, np.stack([sound(2.0, 3), sound(2.0, 20)], axis=1), RATE_HZ)
    arguments = [str(sounds[0].parent), str(stereo), "--model", str(run_folder), "--out", str(table), *options]
    assert main(["embed", *arguments]) == 0
    assert main(["index", str(table), "--out", str(folder)]) == 0
    (hit,) = SearchIndex(folder).search(sounds[5], 1)
    assert Path(hit.path).name == sounds[5].name and hit.similarity == pytest.approx(1.0, abs=1e-4)
    # A query is the mean of its channels, also where the index has each of them.
    mean = SearchIndex(folder).vector_of(np.mean(soundfile.read(stereo, dtype="float32")[0], axis=1), RATE_HZ)
    np.testing.assert_allclose(SearchIndex(folder).vector_of(stereo), mean, atol=1e-3)


def test_an_approximate_index_finds_nearly_all_that_an_exact_one_does(large, monkeypatch):
    folder, vectors = large
    index = SearchIndex(folder)
    rows = range(0, 3000, 100)
    for collections in ((), ("c1",), ("c0", "c2")):
        found = [
            {hit.row for hit in index.nearest(vectors[row], 10, collections=collections, exact=exact)}
            for exact in (True, False)
            for row in rows
        ]
        shared = sum(len(one & other) for one, other in zip(found[: len(rows)], found[len(rows) :], strict=True))
        assert shared >= 0.97 * 10 * len(rows)
    for row in rows:
        (hit,) = index.nearest(vectors[row], 1)
        assert (hit.row, hit.similarity) == (row, 1.0)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(melmask.MelmaskError, match=r"pip install 'melmask\[search\]'"):
        SearchIndex(folder).nearest(vectors[0])
    assert SearchIndex(folder).nearest(vectors[0], exact=True)


def test_a_graph_is_replaced_beside_an_open_index_and_only_by_a_whole_one(large, table, tmp_path, monkeypatch):
    usearch = pytest.importorskip("usearch.index", reason="the search extra is not installed")
    folder, vectors = large
    opened = SearchIndex(folder)
    more = with_vectors(table, tmp_path / "more.parquet", ["x.wav"], made_vectors(1, SIZE, seed=1))

    def failing(_graph, path):
        raise RuntimeError("Failed to serialize into stream")

    # On a full disk, usearch raises or says nothing.
    for save, message in (
        (failing, "Failed to serialize"),
        (lambda _graph, path: Path(path).touch(), "it was cut off"),
    ):
        with monkeypatch.context() as context, pytest.raises(OutputError, match=message):
            context.setattr(usearch.Index, "save", save)
            build_index([more], folder, least_approximate=1500)
        assert SearchIndex(folder).nearest(vectors[0], 1)[0].row == 0
    build_index([more], folder, least_approximate=1500)
    assert SearchIndex(folder).facts.graph_rows == 3001 and opened.nearest(vectors[0], 1)[0].row == 0


def test_near_duplicates_of_very_many_vectors_are_nearly_all_of_those_that_are_compared_exactly(
    table, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("usearch", reason="the search extra is not installed")
    rng = np.random.default_rng(3)
    vectors = made_vectors(6000)
    # Copies that differ a little, sounds that are nearly one, and silences, which are equal.
    vectors[3000:3500] = vectors[rng.integers(3000, size=500)] + 0.1 * rng.standard_normal((500, 24))
    vectors[4000:4100] = vectors[0] + 0.05 * rng.standard_normal((100, 24))
    vectors[5000:5100] = vectors[1]
    vectors = vectors[rng.permutation(6000)]
    for number, (start, least) in enumerate(((0, 1000), (5500, 10**6))):
        part = vectors[start : start + 5500]
        names = [f"{number}-{row}.wav" for row in range(len(part))]
        path = with_vectors(table, tmp_path / f"{number}.parquet", names, part)
        if number:
            # The last sounds are not in the graph: the library was missing when they were added.
            monkeypatch.setattr(approximate, "available", lambda _: False)
        build_index([path], tmp_path / "idx", collection=f"c{number}", least_approximate=least)
    there = SearchIndex(tmp_path / "idx")
    assert there.facts.graph_rows == 5500 and not there.duplicates_are_approximate()
    monkeypatch.setattr(index, "_MOST_COMPARED", 3000)
    for threshold, top, collections in ((0.98, 100_000, ()), (0.98, 100_000, ("c0",)), (0.95, 300, ())):
        exact, near = (
            {
                (one.row, other.row): one.similarity
                for one, other in there.duplicates(threshold, top, collections=collections, exact=exact)
            }
            for exact in (True, False)
        )
        if top == 300:
            # There are more pairs that are equal: any of them will do.
            assert len(near) == 300 and set(near.values()) == {1.0}
        else:
            assert len(exact) > 5000 and len(near) > 0.99 * len(exact)
            assert near.items() <= exact.items()
    assert not there.duplicates_are_approximate(["c1"])
    graph, one = approximate.Graph(there.path, there.facts), int(next(iter(exact))[0])
    assert graph.neighbors(there.vectors.part(np.array([one])), 3).shape == (1, 3)
    capsys.readouterr()
    last = "found approximately: a few may be missing; --exact compares every sound with every other one"
    for words, said in (([], True), (["--exact"], False), (["--collection", "c1"], False)):
        assert main(["duplicates", str(tmp_path / "idx"), "--top", "3", *words]) == 0
        assert (capsys.readouterr().out.splitlines()[-1] == last) == said


def test_without_the_library_a_large_index_is_exact_and_says_how_to_speed_up(table, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    report = build_index([table], tmp_path / "idx", least_approximate=5)
    assert not report.approximate and "pip install 'melmask[search]'" in report.notes[0]
    assert SearchIndex(tmp_path / "idx").nearest(np.ones(SIZE, np.float32), 1)


BAD_TABLES = {
    "another model": ({"model_sha256": "0" * 64}, "was made with another model"),
    "another pooling": ({"pooling": "mean"}, "has pooling mean, and"),
    "another speed": ({"expand": 10.0}, "has expand 10.0, and"),
    "another scene": ({"scene": "mean+std"}, "has scene mean+std, and"),
    "another size": ({"size": SIZE * 2}, f"has scene_dimensions {SIZE * 2}, and"),
    "NaN": ({"value": np.nan}, "a vector of x.wav is NaN or infinite; embed the file again"),
    "no rows": ({"names": []}, "has no rows"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_does_not_fit_is_refused_in_one_line(name, table, tmp_path, capsys):
    changes, message = dict(BAD_TABLES[name][0]), BAD_TABLES[name][1]
    names = changes.pop("names", ["x.wav", "y.wav"])
    vectors = np.ones((len(names), changes.pop("size", SIZE)))
    vectors[:1] = changes.pop("value", 1)
    bad = with_vectors(table, tmp_path / "bad.parquet", names, vectors, **changes)
    assert main(["index", str(table), "--out", str(tmp_path / "idx")]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "idx").iterdir()}
    capsys.readouterr()
    assert main(["index", str(bad), "--out", str(tmp_path / "idx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert SearchIndex(tmp_path / "idx").facts.rows == 12
    named = SearchIndex(tmp_path / "idx").facts.names
    assert {name: before[name] for name in named - {"vectors-0.f32"}} == {
        name: (tmp_path / "idx" / name).read_bytes() for name in named - {"vectors-0.f32"}
    }
    # Of two tables that do not fit each other, no index is made.
    assert main(["index", str(table), str(bad), "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new" / "index.json").exists()


BAD_CALLS = {
    "no index": (["search", "SOUNDS", "SOUND"], "is no search index; make one with melmask index"),
    "no query": (["search", "IDX"], "give either a sound file as QUERY or --microphone-s"),
    "missing query": (["search", "IDX", "no.wav"], "no.wav does not exist"),
    "short query": (["search", "IDX", "SOUND", "--start", "1", "--end", "1.05"], "the length of a patch"),
    "end before start": (["search", "IDX", "SOUND", "--start", "1", "--end", "0.5"], "an end after it"),
    "NaN": (["search", "IDX", "SOUND", "--start", "nan"], "give a start from 0 on"),
    "end outside": (["search", "IDX", "SOUND", "--start", "1", "--end", "5"], "ends at 2 s"),
    "start outside": (["search", "IDX", "SOUND", "--start", "5"], "begins after the file's end at 2 s"),
    "unknown collection": (["search", "IDX", "SOUND", "--collection", "x"], "has no collection 'x'; it has default"),
    "unknown table": (["duplicates", "IDX", "--out", "x.txt"], "expected a file whose name ends in"),
    "another model": (["search", "IDX", "SOUND", "--model", "box"], "box is not the model that"),
    "no table": (["index", "SOUND", "--out", "IDX"], "is no table of embeddings"),
    "a folder of other things": (["index", "TABLE", "--out", "SOUNDS"], "is no index and holds"),
    "frames later": (["index", "TABLE", "--out", "IDX", "--frames"], "has a vector for each sound"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_refused_in_one_line(name, table, sounds, tmp_path, capsys):
    build_index([table], tmp_path / "idx")
    arguments, message = BAD_CALLS[name]
    names = {"IDX": tmp_path / "idx", "SOUND": sounds[0], "SOUNDS": sounds[0].parent, "TABLE": table}
    capsys.readouterr()
    assert main([str(names.get(word, word)) for word in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("melmask: error: ") and message in line


def test_a_model_that_has_moved_can_be_named(run_folder, table, sounds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gone = with_vectors(table, tmp_path / "gone.parquet", ["x.wav"], np.ones((1, SIZE)), model="gone")
    build_index([gone], "idx")
    with pytest.raises(melmask.MelmaskError, match=r"was gone, which cannot be used .* with --model"):
        SearchIndex("idx").search(sounds[0])
    assert SearchIndex("idx", run_folder).search(sounds[0])
    # The index can be told, once for all.
    assert build_index([gone], "idx", model=run_folder).unchanged == 1
    assert SearchIndex("idx").search(sounds[0])


def damaged(facts):
    return [
        *((name, None) for name in sorted(facts.names - {"index.json"})),
        *((name, 100) for name in sorted(facts.names)),
        *(("index.json", change) for change in ({"rows": 10**9}, {"vectors": "../x"}, {"frames": 1}, {"more": 1})),
        *(("index.json", change) for change in ({"version": 2}, {"graph_rows": -1}, {"settings": {}})),
    ]


def test_a_damaged_index_is_refused_in_one_line(table, tmp_path):
    build_index([table], tmp_path / "idx")
    facts = SearchIndex(tmp_path / "idx").facts
    for name, change in damaged(facts):
        path = tmp_path / "idx" / name
        whole = path.read_bytes()
        if change is None:
            path.unlink()
        elif isinstance(change, int):
            path.write_bytes(whole[:change])
        else:
            path.write_text(json.dumps({**json.loads(whole), **change}))
        with pytest.raises(InputError) as error:
            SearchIndex(tmp_path / "idx").nearest(np.ones(SIZE, np.float32))
        assert "\n" not in str(error.value)
        path.write_bytes(whole)
    assert SearchIndex(tmp_path / "idx").nearest(np.ones(SIZE, np.float32))


def test_a_full_disk_leaves_the_index_as_it_was(table, tmp_path, full_disk):
    build_index([table], tmp_path / "idx")
    names = [f"{number}.wav" for number in range(1000)]
    more = with_vectors(table, tmp_path / "more.parquet", names, made_vectors(1000, SIZE))
    before = content(tmp_path / "idx")
    with full_disk(300_000), pytest.raises(OutputError, match="cannot write"):
        build_index([more], tmp_path / "idx")
    assert content(tmp_path / "idx") == before
    assert build_index([more], tmp_path / "idx").added == 1000


def test_an_index_whose_vectors_were_cut_off_takes_no_more(table, tmp_path):
    build_index([table], tmp_path / "idx")
    vectors = tmp_path / "idx" / "vectors-0.f32"
    vectors.write_bytes(vectors.read_bytes()[:-100])
    more = with_vectors(table, tmp_path / "more.parquet", ["x.wav"], np.ones((1, SIZE)))
    with pytest.raises(InputError, match=r"vectors-0\.f32 is damaged .* build the index again"):
        build_index([more], tmp_path / "idx")


def test_a_query_has_the_features_of_the_index_whatever_the_card_names_now(encoder, table, sounds, tmp_path):
    build_index([table], tmp_path / "idx")
    changed = replace(encoder.card, layers=(1,))
    save_checkpoint(tmp_path / "changed", encoder.model, changed)
    (hit,) = SearchIndex(tmp_path / "idx", tmp_path / "changed").search(sounds[0], 1)
    assert hit.path == str(sounds[0]) and hit.similarity == pytest.approx(1, abs=1e-4)


def test_a_microphone_is_a_query_or_its_absence_one_line(table, sounds, tmp_path, capsys, monkeypatch):
    build_index([table], tmp_path / "idx")
    waveform, _ = soundfile.read(sounds[3], dtype="float32")

    class PortAudioError(Exception):
        """As the library has."""

    def query_devices(kind):
        assert kind == "input"
        return {"default_samplerate": 16000.0}

    def no_devices(kind):
        raise PortAudioError("Error querying device -1")

    def rec(frames, samplerate, channels, dtype):
        assert (frames, samplerate, channels, dtype) == (2 * RATE_HZ, RATE_HZ, 1, "float32")
        return waveform[:, None]

    library = SimpleNamespace(
        PortAudioError=PortAudioError, query_devices=query_devices, rec=rec, wait=lambda: None, __file__="x"
    )
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    assert main(["search", str(tmp_path / "idx"), "--microphone-s", "2", "--top", "1"]) == 0
    assert capsys.readouterr().out == f" 1.000  {sounds[3]}\n"
    library.query_devices = no_devices
    assert main(["search", str(tmp_path / "idx"), "--microphone-s", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no microphone that can be used (Error querying device -1)" in line
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert not extras.available("microphone")
    assert main(["search", str(tmp_path / "idx"), "--microphone-s", "2"]) == 2
    assert "pip install 'melmask[microphone]'" in capsys.readouterr().err
