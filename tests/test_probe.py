import math
import sys

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from melmask.downstream.linear_and_knn import ProbeScore, knn_probe, linear_probe, neighbor_votes
from melmask.downstream.metrics import confusion_counts
from melmask.downstream.regression import Regressions, fit_regressions
from melmask.downstream.several_labels import logistic_probabilities, neighbor_probabilities, several_labels_probe
from melmask.errors import InputError, MissingExtraError, OutputError
from melmask.figures.confusion import save_confusion_picture
from melmask.labels.splits import Split

PROBES = [linear_probe, knn_probe]


def clusters(rows=300, classes=3, dims=20, spread=0.1, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    centers = rng.standard_normal((classes, dims))
    features = centers[labels] + spread * rng.standard_normal((rows, dims))
    return features.astype(np.float32), labels


def folds(rows, count=3):
    fold = np.arange(rows) % count
    none = np.empty(0, dtype=np.int64)
    return [Split(f"fold {k}", np.flatnonzero(fold != k), none, np.flatnonzero(fold == k)) for k in range(count)]


@pytest.mark.parametrize("probe", PROBES)
def test_separable_classes_are_told_apart_without_error(probe):
    features, labels = clusters()
    score = probe(features, labels, folds(300))
    assert score.accuracies == (1.0, 1.0, 1.0)
    assert (score.mean, score.std, score.tested) == (1.0, 0.0, 300)
    assert (score.predictions == labels).all()


@pytest.mark.parametrize("probe", PROBES)
def test_shuffled_labels_give_chance(probe):
    features, labels = clusters(rows=1200, classes=4)
    shuffled = np.random.default_rng(1).permutation(labels)
    score = probe(features, shuffled, folds(1200))
    assert abs(score.mean - 0.25) < 4 * math.sqrt(score.mean * (1 - score.mean) / score.tested)


@pytest.mark.parametrize("probe", PROBES)
def test_a_huge_test_row_does_not_change_the_other_predictions(probe):
    features, labels = clusters(spread=1.5)
    (split, *_) = folds(300)
    huge = features.copy()
    huge[split.test[0]] *= 1e6
    before, after = (probe(array, labels, [split]).predictions for array in (features, huge))
    assert (before[split.test[1:]] == after[split.test[1:]]).all()


@pytest.mark.parametrize("probe", PROBES)
def test_the_scale_of_a_feature_does_not_matter(probe):
    features, labels = clusters(spread=1.5)
    scales = (10.0 ** np.linspace(-3, 3, 20)).astype(np.float32)
    plain, scaled = (probe(array, labels, folds(300)) for array in (features, features * scales + 5 * scales))
    assert np.mean(plain.predictions == scaled.predictions) > 0.99


@pytest.mark.parametrize("probe", PROBES)
def test_valid_rows_are_neither_trained_nor_tested_on(probe):
    features, labels = clusters()
    features[200:250] = np.float32(1e6)
    split = Split("split", np.arange(200), np.arange(200, 250), np.arange(250, 300))
    score = probe(features, labels, [split])
    assert score.mean == 1.0
    assert (score.predictions[:250] == -1).all() and (score.predictions[250:] >= 0).all()


@pytest.mark.parametrize("probe", PROBES)
def test_constant_features_change_nothing(probe):
    features, labels = clusters(spread=1.5)
    constants = np.tile(np.float32([0.0, 0.1, -1e4]), (300, 1))
    constants[::7, 2] = np.nextafter(np.float32(-1e4), np.float32(0))
    with_constants = np.hstack([features, constants])
    plain, padded = (probe(array, labels, folds(300)) for array in (features, with_constants))
    assert (plain.predictions == padded.predictions).all()


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_repeats_exactly(probe):
    features, labels = clusters(spread=1.5)
    first, second = (probe(features, labels, folds(300)) for _ in range(2))
    assert first.accuracies == second.accuracies
    assert (first.predictions == second.predictions).all()


@pytest.mark.parametrize("probe", PROBES)
def test_a_class_that_was_never_trained_is_counted_as_wrong(probe):
    features, labels = clusters()
    test = np.flatnonzero(labels == 2)
    split = Split("split", np.flatnonzero(labels != 2), np.empty(0, dtype=np.int64), test)
    assert probe(features, labels, [split]).mean == 0.0


def test_the_linear_probe_is_at_the_optimum_of_the_regression():
    from sklearn.linear_model import LogisticRegression

    features, labels = clusters(rows=600, classes=5, dims=60, spread=3.0)
    features[:, 1:] += 3 * features[:, :1]
    (split, *_) = folds(600)
    train, test = features[split.train].astype(np.float64), features[split.test].astype(np.float64)
    mean, std = train.mean(axis=0), train.std(axis=0)
    exact = LogisticRegression(tol=1e-9, max_iter=10_000).fit((train - mean) / std, labels[split.train])
    predictions = linear_probe(features, labels, [split]).predictions[split.test]
    assert np.mean(predictions == exact.predict((test - mean) / std)) >= 0.995


def test_nearer_neighbors_outvote_more_numerous_ones():
    angles = np.radians([0.0, 5.0, 80.0, 81.0, 82.0, 1.0])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # Copies that cancel out keep the training mean at 0, so that standardizing keeps the angles.
    train = np.vstack([features[:5], -features[:5]])
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 0])
    rows = np.vstack([train, features[5:]])
    split = Split("split", np.arange(10), np.empty(0, dtype=np.int64), np.array([10]))
    assert knn_probe(rows, labels, [split], neighbors=5).mean == 1.0


def test_more_neighbors_than_training_rows_all_vote():
    features, labels = clusters(rows=30)
    assert knn_probe(features, labels, folds(30), neighbors=1000).tested == 30


def test_std_is_over_splits_and_absent_for_one():
    features, labels = clusters(spread=1.5)
    score = knn_probe(features, labels, folds(300))
    assert score.std == pytest.approx(np.std(score.accuracies, ddof=1))
    assert knn_probe(features, labels, folds(300)[:1]).std is None


def test_the_interval_is_the_binomial_one():
    score = ProbeScore((0.5,), 0.5, None, np.zeros(100, dtype=np.int64), 100)
    # Wilson's interval for 50 of 100, from tables.
    assert score.interval_95 == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = score._replace(mean=1.0).interval_95
    assert 0.95 < low < 1.0 and high == pytest.approx(1.0)


@pytest.mark.parametrize("probe", PROBES)
def test_features_that_are_not_finite_are_refused(probe):
    features, labels = clusters()
    features[7, 3] = math.nan
    with pytest.raises(InputError, match=r"1 of 300 rows .* first row 7"):
        probe(features, labels, folds(300))


def test_zero_neighbors_are_refused():
    features, labels = clusters()
    with pytest.raises(InputError, match="expected at least 1"):
        knn_probe(features, labels, folds(300), neighbors=0)


def test_splits_are_fitted_together_as_each_is_alone():
    features, labels = clusters(rows=400, classes=5, dims=60, spread=3.0)
    together = linear_probe(features, labels, folds(400))
    alone = [linear_probe(features, labels, [split]).mean for split in folds(400)]
    assert together.accuracies == pytest.approx(alone, abs=0.008)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_the_optimum_of_every_kind_penalty_and_start(kind, warm, quick, monkeypatch):
    monkeypatch.setattr("melmask.downstream.regression.cpu_computes_bf16", lambda: quick)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12))
    inputs = ((inputs - inputs.mean(0)) / inputs.std(0)).astype(np.float32)
    labels = (inputs[:, :4] + rng.standard_normal((200, 4))).argmax(1)
    targets = np.eye(5, dtype=np.float32)[labels]
    trained, penalties = np.ones((2, 200), dtype=bool), np.ones((2, 12), dtype=np.float32)
    trained[1, 150:], penalties[0] = False, 30.0
    problem = Regressions(
        inputs=torch.from_numpy(inputs),
        targets=torch.from_numpy(targets),
        trained=torch.from_numpy(trained),
        penalties=torch.from_numpy(penalties),
        kind=kind,
    )
    first = fit_regressions(problem)
    found = fit_regressions(problem, first) if warm else first
    for fit in range(2):
        rows, penalty = trained[fit], penalties[fit, 0]
        x, y = torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows])
        weight = found.weight[fit].double().requires_grad_()
        logits = x.double() @ weight + found.bias[fit]
        if kind == "multiclass":
            loss = -(y * logits.log_softmax(1)).sum()
        else:
            loss = F.binary_cross_entropy_with_logits(logits, y.double(), reduction="sum")
        (loss + 0.5 * penalty * weight.square().sum()).backward()
        assert weight.grad.abs().max() < 0.02 * rows.sum() / penalty.clip(1)
        # No row has the last class, so it is never predicted.
        assert (found.logits(torch.from_numpy(1e3 * inputs))[fit].argmax(1) < 4).all()


def test_products_in_bfloat16_lead_to_the_same_optimum(monkeypatch):
    # Fewer rows than features, and classes that no row confuses at the optimum, as in tasks of many classes.
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 15, 260)
    inputs = rng.standard_normal((260, 200)) + rng.standard_normal((15, 200))[labels] / 3
    inputs += 5 * rng.standard_normal((260, 3)) @ rng.standard_normal((3, 200))
    inputs = torch.from_numpy(((inputs - inputs.mean(0)) / inputs.std(0)).astype(np.float32))
    problem = Regressions(
        inputs=inputs[:160],
        targets=torch.from_numpy(np.eye(15, dtype=np.float32)[labels[:160]]),
        trained=torch.from_numpy(np.arange(160) % 5 != np.arange(3)[:, None]),
        penalties=1 + 0.2 * torch.rand(3, 200, generator=torch.Generator().manual_seed(0)),
    )
    found = []
    for quick in (False, True):
        monkeypatch.setattr("melmask.downstream.regression.cpu_computes_bf16", lambda quick=quick: quick)
        found.append(fit_regressions(problem).logits(inputs[160:]).softmax(-1))
    assert (found[0] - found[1]).abs().max() < 0.02
    assert (found[0].argmax(-1) == found[1].argmax(-1)).float().mean() > 0.98


def test_equally_near_neighbors_come_in_the_order_of_the_rows():
    train = np.repeat(np.eye(3, dtype=np.float32), 50, axis=0)
    votes = neighbor_votes(train, np.eye(3, dtype=np.float32), np.eye(150), 10)
    assert [np.flatnonzero(row).tolist() for row in votes] == [list(range(k, k + 10)) for k in (0, 50, 100)]


@pytest.mark.parametrize("classes", [2, 12, 50, 70])
def test_a_confusion_picture_is_drawn_for_any_number_of_classes(tmp_path, classes):
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, classes, (2, 200))
    predicted[:10] = -1
    names = [f"class ${i}_{{" for i in range(classes)]
    save_confusion_picture(tmp_path / "confusion.png", confusion_counts(truth, predicted, classes), names, "a $title")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_the_confusion_picture_writes_each_share_of_the_true_class(tmp_path):
    truth, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, -1])
    path = tmp_path / "confusion.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        save_confusion_picture(path, confusion_counts(truth, predicted, 2), ["left", "right"], "sides")
    words = path.read_text()
    assert all(f">{text}<" in words for text in ("75", "25", "100", "left", "right", "5 tested, 4 right"))


def test_a_picture_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    counts = np.eye(2, dtype=int)
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    for name, message in (("taken/confusion.png", "cannot write"), ("confusion.xyz", "not a kind")):
        with pytest.raises(OutputError, match=message):
            save_confusion_picture(tmp_path / name, counts, ["a", "b"], "title")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"melmask\[plot\]"):
        save_confusion_picture(tmp_path / "confusion.png", counts, ["a", "b"], "title")


@pytest.mark.parametrize("probabilities", [logistic_probabilities, neighbor_probabilities])
def test_clips_with_several_labels_are_scored_by_the_precision_of_each_label(probabilities):
    features, labels = clusters(classes=4)
    # A label for each bit of the cluster's number; one that all clips have, and one that no tested clip has.
    targets = np.stack([labels % 2 == 1, labels >= 2, labels >= 0, np.arange(300) % 3 == 3], axis=1)
    assert several_labels_probe(features, targets, folds(300), probabilities) == pytest.approx((1.0, 1.0, 1.0))
    shuffled = np.random.default_rng(1).permutation(targets[:, :2])
    chance = several_labels_probe(features, shuffled, folds(300), probabilities)
    assert np.mean(chance) == pytest.approx(shuffled.mean(), abs=0.1)
    with pytest.raises(InputError, match="no clip that fold 0 tests has a label"):
        several_labels_probe(features, targets[:, 3:], folds(300), probabilities)
