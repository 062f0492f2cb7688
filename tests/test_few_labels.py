import csv
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import soundfile
from sklearn.linear_model import LogisticRegression

from melmask.downstream import probe as probe_module
from melmask.downstream.few_labels import curves_of_features, draw_interval, draw_order, few_label_curves
from melmask.downstream.linear_and_knn import knn_probe, linear_probe, neighbor_votes, standardize
from melmask.downstream.options import FewLabelsOptions
from melmask.downstream.probe import probe_tasks
from melmask.downstream.records import CurvePoint, CurveScore, TaskCurves, curves_text
from melmask.errors import ConfigError, InputError, MissingExtraError, OutputError
from melmask.figures.few_labels import save_few_labels_picture, spread
from melmask.labels.options import TableOptions
from melmask.labels.splits import make_splits
from melmask.labels.tables import LabelTable

NUMBERS = (1, 3, 10, "all")


def curves(features, labeled, per_class=NUMBERS, **options):
    """The curves of a task, its numbers of labels as they come."""
    chosen = FewLabelsOptions(per_class=tuple(map(str, per_class)), **options)
    return curves_of_features(features, labeled, chosen)


def table(labels, groups=None, folds=None, splits=None):
    return LabelTable([Path(f"{i}.wav") for i in range(len(labels))], [str(k) for k in labels], groups, folds, splits)


def clusters(rows=240, classes=4, dims=30, spread=1.0, seed=0):
    """Features of classes that overlap the more the larger `spread`, and their table with three folds."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    features = rng.standard_normal((classes, dims))[labels] + spread * rng.standard_normal((rows, dims))
    return {"x": features.astype(np.float32)}, table(labels, folds=[str(i // classes % 3) for i in range(rows)])


def sizes(labels, places, n):
    return np.bincount(labels[places < n]).tolist()


def test_a_draw_holds_n_of_each_class_or_all_of_a_smaller_one():
    labels = np.repeat([0, 1, 2], [50, 20, 3])
    places = draw_order(labels, None, np.random.default_rng(0))
    assert [sizes(labels, places, n) for n in (1, 5, 30)] == [[1, 1, 1], [5, 5, 3], [30, 20, 3]]
    again, other = (draw_order(labels, None, np.random.default_rng(seed)) for seed in (0, 1))
    assert (places == again).all() and (places != other).any()


def test_a_draw_takes_a_second_clip_of_a_group_only_after_one_of_every_group():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    groups = np.concatenate([rng.choice(5, 100, p=[0.8, 0.05, 0.05, 0.05, 0.05]), rng.choice(5, 100)])
    for seed in range(10):
        places = draw_order(labels, groups, np.random.default_rng(seed))
        for label in (0, 1):
            drawn = groups[(places < 5) & (labels == label)]
            assert sorted(drawn) == [0, 1, 2, 3, 4]
        assert sizes(labels, places, 7) == [7, 7]


def test_the_interval_is_students_over_the_draws():
    # t of 2 degrees of freedom at 97.5 %, from tables: 4.303.
    half_width = 4.3027 * 0.1 / np.sqrt(3)
    assert draw_interval(np.array([0.5, 0.6, 0.4])) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=1e-4)
    assert draw_interval(np.array([0.9, 1.0])) == (pytest.approx(0.95 - 12.706 * 0.05, abs=1e-3), 1.0)
    assert draw_interval(np.array([0.5])) is None


def test_separable_classes_need_one_label():
    features, labeled = clusters(spread=0.05)
    scores = curves(features, labeled, NUMBERS).scores["x"]
    for judge in ("linear", "k-NN"):
        assert [score.accuracy for score in scores[judge]] == [1.0] * 4


def test_more_labels_help_and_shuffled_ones_are_worth_chance():
    features, labeled = clusters(rows=480, spread=2.0)
    scores = curves(features, labeled, NUMBERS).scores["x"]
    for judge in ("linear", "k-NN"):
        accuracies = [score.accuracy for score in scores[judge]]
        assert accuracies == sorted(accuracies) and accuracies[-1] > accuracies[0] + 0.2
    rng = np.random.default_rng(0)
    shuffled = table(rng.permutation(labeled.labels).tolist(), folds=labeled.folds)
    task = curves(features, shuffled, NUMBERS)
    assert task.chance == 0.25
    assert all(abs(score.accuracy - 0.25) < 0.06 for of in task.scores["x"].values() for score in of)


def test_all_labels_give_the_scores_of_the_probe_command():
    features, labeled = clusters(spread=2.0)
    scores = curves(features, labeled, ["all"]).scores["x"]
    splits = make_splits(labeled)
    for name, probe in (("linear", linear_probe), ("k-NN", knn_probe)):
        whole = probe(features["x"], labeled.label_indices, splits)
        (score,) = scores[name]
        assert score.accuracies == [list(whole.accuracies)] and score.accuracy == pytest.approx(whole.mean)
        assert score.test_interval_95 == pytest.approx(whole.interval_95) and score.interval_95 is None


@pytest.mark.parametrize("n", [1, 3, 10])
def test_a_score_is_that_of_a_fit_to_the_drawn_clips_alone(n):
    # Two draws of 4 to 40 rows with 60 features: the time-saving turn of the axes must not show.
    features, labeled = clusters(dims=60, spread=2.0)
    rows, labels = features["x"], labeled.label_indices
    task = curves(features, labeled, [n], draws=2, seed=5)
    assert task.points[0].neighbors == min(10, n)
    for draw in range(2):
        for number, split in enumerate(make_splits(labeled)):
            train, test = standardize(rows[split.train], rows[split.test])
            drawn = draw_order(labels[split.train], None, np.random.default_rng((5, draw, number))) < n
            known, truth = labels[split.train][drawn], labels[split.test]
            exact = LogisticRegression(tol=1e-8, max_iter=10_000).fit(train[drawn].astype(np.float64), known)
            linear, nearest = (task.scores["x"][judge][0].accuracies[draw][number] for judge in ("linear", "k-NN"))
            assert linear == pytest.approx(np.mean(exact.predict(test) == truth), abs=1.5 / len(truth))
            votes = neighbor_votes(train[drawn], test, np.eye(4)[known], n)
            assert nearest == np.mean(votes.argmax(1) == truth)


def test_one_label_of_each_of_many_classes_is_no_reason_for_a_warning():
    features, labeled = clusters(classes=40, spread=0.05)
    (score,) = curves(features, labeled, [1]).scores["x"]["linear"]
    assert score.accuracy == 1.0


def test_mean_and_std_are_over_draws_of_means_over_splits():
    features, labeled = clusters(spread=2.0)
    (score,) = curves(features, labeled, [1], draws=3).scores["x"]["linear"]
    of_draws = np.array(score.accuracies).mean(1)
    assert np.shape(score.accuracies) == (3, 3) and len(set(of_draws)) > 1
    assert (score.accuracy, score.std) == pytest.approx((of_draws.mean(), of_draws.std(ddof=1)))
    assert score.interval_95 == draw_interval(of_draws)
    single = curves(features, labeled, [1], draws=1).scores["x"]["linear"][0]
    assert (single.std, single.interval_95) == (None, None)
    assert single.accuracies[0] == score.accuracies[0]


def test_valid_clips_play_no_part_and_every_representation_gets_the_same_draws():
    features, labeled = clusters(spread=2.0)
    labeled = table(labeled.labels, splits=["train"] * 120 + ["valid"] * 60 + ["test"] * 60)
    disturbed = features["x"].copy()
    disturbed[120:180] = 1e4
    scores = curves({**features, "disturbed": disturbed}, labeled, NUMBERS).scores
    assert scores["x"] == scores["disturbed"] and scores["x"]["linear"][0].std > 0


def test_classes_with_fewer_clips_and_numbers_beyond_every_class_are_reported():
    rng = np.random.default_rng(0)
    labels, splits = ["big"] * 40 + ["small"] * 12, (["train"] * 3 + ["test"]) * 13
    task = curves(
        {"x": rng.standard_normal((52, 8)).astype(np.float32)}, table(labels, splits=splits), ["50", 10, 2, 30, "2"]
    )
    assert task.same_as_all == [30, 50]
    points = [(point.per_class, point.mean_per_class, point.classes_with_fewer) for point in task.points]
    assert points == [(2, 2.0, []), (10, 9.5, ["small"]), ("all", 19.5, [])]
    text = curves_text({"sides": task})
    assert "* 1 of 2 classes have fewer than 10" in text and "\n10* " in text and "\nall (19.5) " in text
    assert "30, 50: no class has more training clips, so this is 'all'" in text


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Low and high tones, five speakers, and a file that is no sound."""
    folder = tmp_path_factory.mktemp("tones")
    lines = ["path,label,group"]
    for number in range(20):
        label = ("low", "high")[number % 2]
        pitch_hz = (300, 2500)[number % 2] + 10 * number
        soundfile.write(folder / f"{number}.wav", 0.3 * np.sin(np.arange(6400) * pitch_hz * 2 * np.pi / 16000), 16000)
        lines.append(f"{number}.wav,{label},speaker{number // 4}")
    (folder / "broken.wav").write_text("no sound")
    (folder / "tones.csv").write_text("\n".join([*lines, "broken.wav,low,speaker0"]))
    return folder / "tones.csv"


def test_a_task_is_probed_again_only_when_something_has_changed(encoder, tones, tmp_path, monkeypatch):
    labels, fitted, work = tones.parent / "whole.csv", [], probe_module.features_of_task
    labels.write_text("\n".join(tones.read_text().splitlines()[:-1]))
    monkeypatch.setattr(probe_module, "features_of_task", lambda *given: fitted.append(given[1]) or work(*given))
    first = probe_tasks(encoder, [labels], tmp_path)
    assert probe_tasks(encoder, [labels], tmp_path).tasks == first.tasks and fitted == ["whole"]
    labels.write_text(labels.read_text().replace("low", "deep"))
    probe_tasks(encoder, [labels], tmp_path)
    assert fitted == ["whole", "whole"]


@pytest.mark.parametrize("judge", [few_label_curves, probe_tasks])
def test_a_table_that_cannot_be_judged_costs_no_other(judge, encoder, tones, tmp_path, capsys):
    unreadable = tones.parent / f"unreadable-{judge.__name__}.csv"
    unreadable.write_text("path,label,split\nbroken.wav,low,train\nlabels.csv,high,train\nmore.csv,low,test\n")
    for name in ("labels.csv", "more.csv"):
        (tones.parent / name).touch()
    report = judge(encoder, [tones, unreadable], tmp_path)
    assert list(report.tasks) == ["tones"] and list(report.failed) == [unreadable.stem]
    (content,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert content["failed"] == report.failed and content["tasks"].keys() == report.tasks.keys()
    assert f"{unreadable.stem} is left out: none of 3 files" in capsys.readouterr().err


def test_the_command_writes_scores_rows_and_a_picture(encoder, tones, tmp_path):
    report = few_label_curves(
        encoder, [tones], tmp_path / "out", FewLabelsOptions(per_class=("1", "2", "all"), draws=2)
    )
    assert json.loads((tmp_path / "out" / "few-labels.json").read_text()) == json.loads(json.dumps(asdict(report)))
    task = report.tasks["tones"]
    assert list(task.scores) == ["log-mel mean+std", "untrained network", "pre-trained"]
    assert (task.clips, len(task.splits), task.leaking_groups) == (20, 5, 0)
    assert [name.split("/")[-1] for name in task.unreadable] == ["broken.wav"]
    assert task.scores["log-mel mean+std"]["linear"][-1].accuracy == 1.0, "two tones differ in their spectrum"
    with (tmp_path / "out" / "few-labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 3
    assert (rows[1]["representation"], rows[1]["per_class"], rows[1]["draws"]) == ("log-mel mean+std", "2", "2")
    assert float(rows[2]["accuracy"]) == 1.0 and rows[2]["low_95"] == ""
    assert "1 file could not be used, and left out" in curves_text(report.tasks)
    assert (tmp_path / "out" / "few-labels-tones.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_class": ("1", "many")}, "per_class has 'many'; expected whole numbers from 1, or 'all'"),
        ({"per_class": ("0",)}, "per_class has '0'"),
        ({"per_class": ("2.5",)}, "per_class has '2.5'"),
        ({"per_class": ("9" * 5000,)}, "expected whole numbers from 1"),
        ({"per_class": ()}, "per_class is empty"),
        ({"draws": 0}, "draws is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"scheme": "halves"}, "'halves' is not known"),
        ({"table": TableOptions(audio_root=Path("nowhere"))}, "below nowhere"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_any_file_is_read(options, message, encoder, tones, tmp_path):
    with pytest.raises((ConfigError, InputError), match=message) as error:
        few_label_curves(encoder, [tones], tmp_path / "out", FewLabelsOptions(**options))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_tables_and_folders_that_cannot_be_used_are_refused(encoder, tones, tmp_path):
    with pytest.raises(InputError, match="same name"):
        few_label_curves(encoder, [tones, tones], tmp_path / "out")
    with pytest.raises(OutputError, match="cannot write"):
        few_label_curves(encoder, [tones], tones)
    for name in "abcd":
        (tmp_path / f"{name}.wav").write_text("no sound")
    unreadable = tmp_path / "bad.csv"
    unreadable.write_text("path,label,split\na.wav,x,train\nb.wav,y,train\nc.wav,x,test\nd.wav,y,test\n")
    with pytest.raises(InputError, match="none of 4 files of task bad could be read"):
        few_label_curves(encoder, [unreadable], tmp_path / "out")


def test_features_that_are_not_finite_are_refused():
    features, labeled = clusters()
    features["x"][7, 3] = np.nan
    with pytest.raises(InputError, match=r"x features of 7\.wav and 0 other files hold NaN"):
        curves(features, labeled)


def test_a_missing_library_is_named_before_any_file_is_read(encoder, tones, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"melmask\[eval\]"):
        few_label_curves(encoder, [tones], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def drawable(numbers, positions, names, draws=5):
    """A task with made-up scores."""
    points = [
        CurvePoint(
            per_class=n,
            mean_per_class=position,
            draws=1 if n == "all" else draws,
            neighbors=10,
            classes_with_fewer=["small"] if n != "all" and position < n else [],
        )
        for n, position in zip(numbers, positions, strict=True)
    ]
    scores = [
        CurveScore(
            accuracy=0.4 + 0.1 * i,
            std=None,
            interval_95=None if point.draws == 1 else (0.3 + 0.1 * i, 0.6 + 0.1 * i),
            test_interval_95=(0.0, 1.0),
            accuracies=[],
        )
        for i, point in enumerate(points)
    ]
    of_names = {name: {"linear": scores, "k-NN": scores} for name in names}
    facts = {"clips": 100, "classes": 10, "splits": ["test"], "leaking_groups": 0, "chance": 0.1, "same_as_all": []}
    return TaskCurves(**facts, points=points, scores=of_names)


def picture_texts(folder, task):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        save_few_labels_picture(folder / "x.svg", "a $title", task)
    return re.findall(r"<text[^>]*>([^<]*)</text>", (folder / "x.svg").read_text())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_picture_names_its_curves_and_ticks(count, tmp_path):
    names = ["first", "second", "third", "a fourth $"]
    task = drawable([1, 2, 5, 10, "all"][-count:], [1.0, 2.0, 5.0, 9.0, 32.0][-count:], names)
    texts = picture_texts(tmp_path, task)
    assert texts.count("(32)") == texts.count("all") == texts.count("chance  10 %") == 2
    assert [texts.count(tick) for tick in ("1", "2", "5", "≤10")] == [2 * (count > k) for k in (4, 3, 2, 1)]
    assert all(texts.count(f"{name}  {40 + 10 * (count - 1)} %") == 2 for name in names)
    assert {"a $title", "linear probe", "k-NN, k = labels per class, at most 10"} <= set(texts)
    assert any(("over 5 draws" if count > 1 else "one draw") in text for text in texts)


def test_ticks_that_would_touch_are_left_out_from_the_left(tmp_path):
    texts = picture_texts(tmp_path, drawable([1, 5, 10, 20], [1.0, 3.0, 4.0, 4.1], ["x"]))
    assert "≤20" in texts and "≤5" in texts and "≤10" not in texts


def test_words_are_moved_apart_as_little_as_it_takes():
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread([0.1, 0.5, 0.52, 0.54], 0.1) == pytest.approx([0.1, 0.42, 0.52, 0.62])
