"""What `melmask explore` finds among its points: wrong labels, duplicates, what to label next, and huge collections."""

from pathlib import Path

import numpy as np
import pytest

from melmask.audio.parts import Sound
from melmask.explore import similarity, vectors
from melmask.explore.learning import label_table, suggestions
from melmask.explore.similarity import Similarity
from melmask.explore.vectors import PointVectors
from melmask.models.whitening import fit_whitening


def points_of(rows):
    """A collection whose points have these vectors."""
    made = PointVectors(*rows.shape)
    made.add(np.arange(len(rows)), rows.astype(np.float32), np.ones(len(rows), np.float32))
    return made


def test_a_point_does_not_vote_for_itself():
    axes = np.eye(8)
    rows = np.stack([axes[0], axes[0] + 0.3 * axes[2], -axes[0], axes[1], -axes[1]])
    found = Similarity(points_of(rows)).suspects({0: "x", 1: "y", 2: "z", 3: "z", 4: "z"}, 9)
    assert [one.point for one in found][:2] == [0, 1]


def test_duplicates_of_a_large_collection_are_those_of_a_small_one(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(300, 24))
    rows[[10, 200]] = rows[5], rows[6] + 0.001
    alike = Similarity(points_of(rows))
    assert {(one.point, one.other) for one in alike.duplicates(10)} == {(5, 10), (6, 200)}
    monkeypatch.setattr(similarity, "_MOST_COMPARED", 100)
    assert {(one.point, one.other) for one in alike.duplicates(10)} == {(5, 10), (6, 200)}


def test_of_equal_points_each_is_suggested_once():
    assert len({one.point for one in suggestions(points_of(np.ones((5, 3))), None, {}, 4)}) == 4


def test_parts_of_a_file_stay_on_one_side():
    parts = [Sound(Path(f"{number % 5}.wav"), float(number // 5), number // 5 + 1.0) for number in range(20)]
    found, _ = label_table(parts, {number: "xy"[number % 2] for number in range(20)}, np.ones(20, bool))
    assert found.groups is not None and len(set(found.groups)) == 5


@pytest.fixture
def little_memory(monkeypatch):
    """A memory in which 64 numbers of each vector have room, those along the axes of the first hundred vectors."""
    monkeypatch.setattr(vectors, "_MOST_BYTES", 0)
    monkeypatch.setattr(vectors, "_SAMPLE_ROWS", 100)


def test_a_huge_collection_keeps_fewer_numbers_of_each_vector_and_the_same_similarities(little_memory):
    rng = np.random.default_rng(0)
    # Forty axes hold them.
    rows = (rng.normal(size=(300, 40)) @ rng.normal(size=(40, 80))).astype(np.float32)
    whitening = fit_whitening(rows, 2)
    held = PointVectors(300, 80, whitening)
    for some in np.split(np.arange(300), 5):
        held.add(some, rows[some], np.ones(60, np.float32))
    assert held.rows.shape == (300, 64) and held.known.all()
    np.testing.assert_allclose(held.rows @ held.rows.T, rows @ rows.T, atol=0.01)
    np.testing.assert_allclose(held.turned(rows[:9]), held.rows[:9], atol=0.001)
    np.testing.assert_allclose(held.rows @ held.plain, rows @ whitening.undoing(), rtol=1e-3, atol=0.1)


def test_the_points_of_a_huge_collection_of_which_few_can_be_read_are_kept_at_the_end(little_memory):
    rows = np.random.default_rng(0).normal(size=(10, 80)).astype(np.float32)
    held = PointVectors(300, 80)
    held.add(np.arange(10), rows, np.ones(10, np.float32))
    assert not held.known.any()
    held.finish()
    assert np.flatnonzero(held.known).tolist() == list(range(10))
    np.testing.assert_allclose(held.rows[:10] @ held.rows[:10].T, rows @ rows.T, atol=0.001)
