"""The downstream protocols on tasks small enough to search in a second, and the evaluation's files."""

import csv
import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hear_folders import RATE_HZ, write_event_task, write_fold_task, write_tag_task
from sklearn.model_selection import ParameterGrid

from melmask.embedding.choice import FeatureChoice
from melmask.errors import ConfigError, InputError
from melmask.evaluate import protocols as protocol
from melmask.evaluate.embeddings import SplitEmbeddings, embed_task
from melmask.evaluate.evaluation import evaluate, table_text
from melmask.evaluate.heads import StoppedError, Validation
from melmask.evaluate.models import open_client
from melmask.evaluate.options import EvaluateOptions
from melmask.evaluate.protocols import LINEAR_SEEDS, grid_of, run_splits
from melmask.evaluate.results import read_report, write_report
from melmask.evaluate.rows import TaskRows, postprocessings
from melmask.evaluate.tasks import read_task
from melmask.pages.evaluation import write_evaluation_page

CPU = EvaluateOptions(device="cpu")
RELEASE_0_1_0 = Path(__file__).parent / "reference" / "files-0.1.0" / "results"
TWIN = (
    "import torch\n"
    "class M: sample_rate, scene_embedding_size, timestamp_embedding_size = 16000, 1, 1\n"
    "def load_model(p=''): return M()\n"
    "def get_scene_embeddings(a, m): return a.std(1, keepdim=True)\n"
    "def get_timestamp_embeddings(a, m): raise NotImplementedError\n"
)


@pytest.fixture(scope="module")
def hear_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hear")
    for write in (write_fold_task, write_tag_task, write_event_task):
        write(folder)
    return folder


@pytest.fixture(scope="module")
def rows_of(hear_folder, tmp_path_factory):
    """The log-mel baseline's vectors of a task."""
    cache = tmp_path_factory.mktemp("cache")

    def rows(title):
        task = read_task(hear_folder / title)
        return TaskRows(task, embed_task(open_client("logmel", CPU), task, cache), torch.device("cpu"))

    return rows


def evaluated(models, tasks_folder, out, page=None, **options):
    return evaluate(models, tasks_folder, out, replace(CPU, **options), page)


def split_scores(report, number=0):
    return [split.scores for split in report.results[number].splits]


def run_first(data, protocol, grid, seed=0):
    """The result of a task's first split, and its predictions."""
    (result,) = run_splits(data, data.task.data_splits[:1], protocol, grid, seed)
    return result


def with_metadata(folder, **changes):
    path = folder / "task_metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return read_task(folder)


def kit_points(values):
    """The kit's grid: scikit-learn's, shuffled by Python's generator after the seed 42."""
    points = list(ParameterGrid(values))
    random.Random(42).shuffle(points)
    return points


def test_the_grid_is_the_kits_in_the_kits_order(tmp_path):
    task = with_metadata(write_fold_task(tmp_path), evaluation_params={})
    values = {
        "batch_size": [1024],
        "dropout": [0.1],
        "hidden_layers": [1, 2],
        "initialization": ["xavier_uniform", "xavier_normal"],
        "lr": [3.2e-3, 1e-3, 3.2e-4, 1e-4],
        "patience": [20],
    }
    found = grid_of(task)
    assert len(found) == 8
    for config, point in zip(found, kit_points(values), strict=False):
        assert (config.hidden_layers, config.initialization, config.learning_rate) == (
            point["hidden_layers"],
            point["initialization"],
            point["lr"],
        )
    assert (found[0].max_epochs, found[0].validate_every_epochs, found[0].patience) == (500, 3, 20)
    assert len(grid_of(task, 100)) == 16


def test_a_tasks_own_grid_comes_before_the_kits(tmp_path):
    values = {"hidden_layers": [1], "dropout": [0.2, 0.4], "check_val_every_n_epoch": [7]}
    task = with_metadata(write_fold_task(tmp_path), evaluation_params={"task_specific_param_grid": values})
    points = kit_points(values | {"lr": [3.2e-3, 1e-3, 3.2e-4, 1e-4], "initialization": ["u", "n"]})
    found = grid_of(task, 16)
    assert [(c.dropout, c.learning_rate) for c in found] == [(p["dropout"], p["lr"]) for p in points]
    assert {c.validate_every_epochs for c in found} == {7}
    wrong = with_metadata(task.folder, evaluation_params={"task_specific_param_grid": {"optim": ["SGD"]}})
    with pytest.raises(InputError, match="task_specific_param_grid has 'optim'; known are hidden_layers"):
        grid_of(wrong)


def blobs(task, clips):
    """Vectors that a linear layer tells apart, instead of a model's."""
    rng = np.random.default_rng(0)
    found = {}
    for split in task.splits:
        labels = rng.integers(3, size=clips)
        # Told apart by many dimensions at once: at the protocol's rate each weight moves little.
        vectors = np.tile(np.eye(3)[labels], 60) + rng.standard_normal((clips, 180))
        files = [f"{split}-{i}.wav" for i in range(clips)]
        targets = np.eye(3, dtype=bool)[labels]
        found[split] = SplitEmbeddings(files, vectors.astype(np.float32), targets, np.arange(clips), np.zeros(0))
    return found


def test_the_linear_protocol_has_three_seeds_and_a_linear_head(rows_of):
    task = rows_of("pitches-v1-full").task
    result, _ = run_first(TaskRows(task, blobs(task, 800), torch.device("cpu")), "linear", [])
    assert len(result.repeats) == len(LINEAR_SEEDS) == 3
    assert result.scores["top1_acc"] > 0.9
    assert (result.setting["hidden_layers"], result.setting["learning_rate"], result.setting["batch_size"]) == (
        0,
        3e-4,
        200,
    )


@pytest.mark.parametrize("name", ["hear", "hear-fixed", "knn"])
def test_each_protocol_tells_pitches_apart(rows_of, name):
    data = rows_of("pitches-v1-full")
    result, kept = run_first(data, name, grid_of(data.task))
    assert result.scores["top1_acc"] > 0.8
    assert not result.repeats
    names = [str(name) for name in kept["files"]]
    assert sorted(names) == sorted(data.task.files["fold00"])
    assert (kept["probabilities"].argmax(1) == kept["targets"].argmax(1)).mean() > 0.6
    np.testing.assert_allclose(kept["probabilities"].sum(1), 1, rtol=1e-4)


def test_the_mean_over_seeds_is_reported_with_each_seeds_scores(rows_of):
    data = rows_of("tags-v1-full")
    result, _ = run_first(data, "linear", [])
    for metric, score in result.scores.items():
        scores = [repeat[metric] for repeat in result.repeats]
        # A mean is infinite or undefined if one of its scores is, and then it is None.
        assert score == (None if None in scores else pytest.approx(np.mean(scores)))


@pytest.mark.parametrize("stop_on_score", [True, False])
def test_events_are_found(tmp_path, stop_on_score):
    task = read_task(write_event_task(tmp_path, stop_on_score=stop_on_score))
    data = TaskRows(task, embed_task(open_client("logmel", CPU), task, tmp_path / "cache"), torch.device("cpu"))
    result, kept = run_first(data, "hear", grid_of(task))
    assert result.scores["event_onset_200ms_fms"] > 0.8
    assert result.scores["segment_1s_er"] < 0.5
    assert result.scores["event_onset_200ms_fms_recall"] > 0.8
    assert result.setting["postprocessing"]["median_filter_ms"] == 100
    predicted, reference = (json.loads(str(kept[name])) for name in ("predicted", "reference"))
    assert predicted.keys() == reference.keys() == task.files["test"].keys()
    assert [tuple(event) for event in reference["test-0.wav"]] == task.files["test"]["test-0.wav"]


def test_a_head_is_chosen_by_validation_and_never_by_test(rows_of, monkeypatch):
    data = rows_of("pitches-v1-full")
    asked = []
    judge = TaskRows.judge
    monkeypatch.setattr(
        TaskRows, "judge", lambda self, splits, exact: asked.append(splits) or judge(self, splits, exact)
    )
    tests = []
    test = TaskRows.test
    monkeypatch.setattr(TaskRows, "test", lambda self, *rest: tests.append(rest[0]) or test(self, *rest))
    run_first(data, "hear", grid_of(data.task))
    assert (asked, tests) == ([("fold01",)], [("fold00",)])


def test_of_two_postprocessings_the_kit_takes_the_larger_score_even_of_an_error_rate(rows_of, monkeypatch):
    data = rows_of("bursts-v1-full")
    choices = postprocessings(data.task)
    assert choices == [{"median_filter_ms": 100, "min_duration": 50}, {"median_filter_ms": 100, "min_duration": 100}]
    assert choices == list(ParameterGrid(data.task.event_grid))
    scores = {50: 0.3, 100: 0.6}

    def found(metric, exact):
        object.__setattr__(data.task, "metrics", (metric,))
        monkeypatch.setattr(TaskRows, "_event_scores", lambda *a: {metric: scores[a[3]["min_duration"]]})
        return data.judge(("valid",), exact)(np.zeros((1, 3)), 0.0)

    assert found("event_onset_200ms_fms", True) == found("event_onset_200ms_fms", False) == Validation(0.6, choices[1])
    assert found("segment_1s_er", True) == Validation(0.6, choices[1])
    assert found("segment_1s_er", False) == Validation(0.3, choices[0])
    # Undefined counts as 0 in the choice, and stays undefined; of equals the kit takes the longer minimum.
    scores.update({50: float("nan"), 100: float("nan")})
    kit = found("event_onset_200ms_fms", True)
    assert np.isnan(kit.score)
    assert kit.detail == choices[1]


def test_the_whole_evaluation(hear_folder, run_folder, tmp_path):
    models = [str(run_folder), f"untrained:{run_folder}", "logmel"]
    report = evaluated(models, hear_folder, tmp_path, page=write_evaluation_page)
    assert report == read_report(tmp_path)
    assert [model.name for model in report.models] == ["run", "untrained run", "log-mel"]
    assert len(report.results) == 9
    assert not report.failed
    by_task = {r.title: r for r in report.results if r.column.model == "log-mel"}
    folds = by_task["pitches-v1-full"]
    assert [split.name for split in folds.splits] == ["fold00", "fold01", "fold02"]
    values = [split.scores["top1_acc"] for split in folds.splits]
    assert folds.score.mean == pytest.approx(np.mean(values))
    assert folds.score.std == pytest.approx(np.std(values, ddof=1))
    low, high = folds.score.interval_95
    assert low < folds.score.mean <= high
    assert len({json.dumps(split.setting) for split in folds.splits}) == 1
    assert by_task["tags-v1-full"].scores["mAP"].std is None
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(result.scores) for result in report.results)
    primary = {(r["model"], r["task"]): r["mean"] for r in rows if r["primary"] == "1"}
    assert float(primary["log-mel", "tags-v1-full"]) == by_task["tags-v1-full"].scores["mAP"].mean
    text = table_text(report)
    assert "pitches-v1-full  hear  top1_acc" in text
    assert f"{folds.score.mean:.3f} ±" in text
    assert "log-mel" in (tmp_path / "report.html").read_text()


def test_results_of_release_0_1_0_are_read_written_alike_and_extended(hear_folder, tmp_path):
    out = Path(shutil.copytree(RELEASE_0_1_0, tmp_path / "results"))
    files = (out / "results.json", out / "results.csv")
    before, report = [path.read_text() for path in files], read_report(out)
    assert [outcome.column.protocol for outcome in report.results[:3]] == ["linear", "knn", "hear"]
    write_report(out, report)
    assert [path.read_text() for path in files] == before
    # A field that a later version adds is no obstacle.
    content = json.loads(before[0])
    for entries in (content["models"], content["tasks"], content["results"], content["results"][0]["splits"]):
        entries[0]["later"] = 1
    files[0].write_text(json.dumps({**content, "later": [1]}))
    extended = evaluated(["logmel"], hear_folder, out, tasks=("tags",), protocols=("knn",))
    assert extended.results[:-1] == report.results
    assert (extended.results[-1].title, len(extended.tasks)) == ("tags-v1-full", 2)
    assert [model.name for model in extended.models] == ["run", "log-mel"]


def test_what_is_done_is_not_done_again(hear_folder, tmp_path, monkeypatch):
    calls = []
    search = protocol._Search
    monkeypatch.setattr(protocol, "_Search", lambda *a: calls.append(a[1].name) or search(*a))
    first = evaluated(["logmel"], hear_folder, tmp_path, tasks=("pitches",))
    assert calls == ["fold00", "fold01", "fold02"]
    folder = tmp_path / "models" / "log-mel" / "pitches-v1-full" / "hear"
    (folder / "fold01.json").unlink()
    (folder / "fold02.npz").unlink()
    again = evaluated(["logmel"], hear_folder, tmp_path, tasks=("pitches",))
    assert calls[3:] == ["fold01", "fold02"]
    assert split_scores(first) == split_scores(again)
    evaluated(["logmel"], hear_folder, tmp_path, tasks=("pitches",), seed=7)
    assert len(calls) == 8


def test_the_fixed_protocol_searches_on_each_split(hear_folder, tmp_path, monkeypatch):
    candidates = {}
    search = protocol._Search
    monkeypatch.setattr(protocol, "_Search", lambda *a: candidates.setdefault(a[2], []).append(len(a[3])) or search(*a))
    evaluated(["logmel"], hear_folder, tmp_path, tasks=("pitches",), protocols=("hear", "hear-fixed"))
    assert candidates == {"hear": [4, 1, 1], "hear-fixed": [4, 4, 4]}


def test_several_calls_come_together_in_one_report(hear_folder, run_folder, tmp_path):
    evaluated(["logmel"], hear_folder, tmp_path, tasks=("tags",))
    evaluated([str(run_folder)], hear_folder, tmp_path, tasks=("tags",), protocols=("knn",))
    report = evaluated(["logmel"], hear_folder, tmp_path, tasks=("tags",))
    assert [outcome.column for outcome in report.results] == [("log-mel", "hear"), ("run", "knn")]


def test_a_model_that_fails_on_a_task_stops_nothing(hear_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "half_model.py").write_text(
        "import torch\n"
        "class M: sample_rate, scene_embedding_size, timestamp_embedding_size = 16000, 1, 1\n"
        "def load_model(p=''): return M()\n"
        "def get_scene_embeddings(a, m): return a.std(1, keepdim=True)\n"
        "def get_timestamp_embeddings(a, m): raise NotImplementedError('no events\\nsorry')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out"
    report = evaluated(["python:half_model", "logmel"], hear_folder, out, tasks=("bursts", "pitches"))
    assert [(outcome.column.model, outcome.title) for outcome in report.results] == [
        ("half_model", "pitches-v1-full"),
        ("log-mel", "bursts-v1-full"),
        ("log-mel", "pitches-v1-full"),
    ]
    (failure,) = report.failed
    assert (failure.title, failure.reason) == ("bursts-v1-full", "NotImplementedError: no events")
    reason = "the knn protocol is for scene tasks; use hear or linear for events"
    with pytest.raises(InputError, match=f"nothing could be judged: {reason}"):
        evaluated(["logmel"], hear_folder, out, tasks=("bursts",), protocols=("knn",))
    report = read_report(out)
    assert len(report.results) == 3
    assert report.failed == [failure]
    assert f"log-mel on bursts-v1-full: skipped, because {reason}" in capsys.readouterr().err


def test_a_model_that_failed_and_was_repaired_keeps_its_name(hear_folder, tmp_path, monkeypatch):
    text = TWIN.replace("a.std(1, keepdim=True)", "a.std(1)")
    monkeypatch.syspath_prepend(str(tmp_path))
    calls = {"models": ["python:mended_model"], "tasks_folder": hear_folder, "out": tmp_path / "out"}
    (tmp_path / "mended_model.py").write_text(text)
    with pytest.raises(InputError, match="nothing could be judged: python:mended_model gave scene embeddings"):
        evaluated(**calls, tasks=("tags",), protocols=("knn",))
    (tmp_path / "mended_model.py").write_text(text.replace("a.std(1)", "a.std(1, keepdim=True)"))
    monkeypatch.delitem(sys.modules, "mended_model")
    report = evaluated(**calls, tasks=("tags",), protocols=("knn",))
    assert [model.name for model in report.models] == ["mended_model"]
    assert ([outcome.column.model for outcome in report.results], report.failed) == (["mended_model"], [])


def test_scores_of_a_task_that_was_replaced_go(tmp_path, capsys):
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    folder = write_tag_task(tasks)
    (tmp_path / "twin_model.py").write_text(TWIN)
    sys.path.insert(0, str(tmp_path))
    try:
        models = ["logmel", "python:twin_model"]
        assert len(evaluated(models, tasks, out, protocols=("knn",)).results) == 2
        again = evaluated(["logmel"], tasks, out, protocols=("knn",))
        assert len(again.results) == 2 and "removed" not in capsys.readouterr().err
        (split,) = [path for path in folder.glob("*.json") if path.name in ("test.json",)]
        content = json.loads(split.read_text())
        split.write_text(json.dumps(dict(zip(content, list(content.values())[::-1], strict=True))))
        changed = evaluated(["logmel"], tasks, out, protocols=("knn",))
    finally:
        sys.path.remove(str(tmp_path))
    assert [outcome.column.model for outcome in changed.results] == ["log-mel"]
    assert "has other labels or sounds than before: 2 scores of it removed" in capsys.readouterr().err


def test_a_failure_keeps_the_score_of_an_earlier_call(hear_folder, tmp_path, monkeypatch):
    arguments = {"tasks_folder": hear_folder, "out": tmp_path, "tasks": ("tags",), "protocols": ("knn",)}
    (before,) = evaluated(["logmel"], **arguments).results
    with monkeypatch.context() as context:

        def leave(*_):
            raise SystemExit(0)

        context.setattr("melmask.evaluate.evaluation.embed_task", leave)
        with pytest.raises(InputError, match=r"nothing could be judged: SystemExit: 0 .the score is from an earlier"):
            evaluated(["logmel"], **arguments)
    report = read_report(tmp_path)
    assert report.results == [before] and len(report.failed) == 1
    assert evaluated(["logmel"], **arguments).failed == []


def test_results_say_how_their_heads_were_found(hear_folder, tmp_path):
    arguments = {"tasks_folder": hear_folder, "out": tmp_path, "tasks": ("tags",), "head_precision": "fp32"}
    evaluated(["logmel"], **arguments, protocols=("hear", "knn"), grid_points=1, seed=7, page=write_evaluation_page)
    conditions = {
        r["protocol"]: r["conditions"] for r in json.loads((tmp_path / "results.json").read_text())["results"]
    }
    assert conditions == {"hear": {"grid_points": 1, "seed": 7, "head_precision": "fp32"}, "knn": {}}
    assert "protocol hear were found with 1 point of the grid, seed 7" in (tmp_path / "report.html").read_text()


def test_one_model_by_two_paths_is_judged_once(hear_folder, run_folder, tmp_path):
    models = [str(run_folder), f"{run_folder}/", f"untrained:{run_folder}"]
    report = evaluated(models, hear_folder, tmp_path, tasks=("tags",), protocols=("knn",))
    assert [model.name for model in report.models] == ["run", "untrained run"]


def test_a_model_with_other_settings_is_another_one_in_the_report(hear_folder, run_folder, tmp_path):
    def judged(scene):
        options = {"tasks": ("tags",), "protocols": ("knn",), "choice": FeatureChoice(scene=scene)}
        return evaluated([str(run_folder)], hear_folder, tmp_path, **options)

    first, both, again = judged("mean"), judged("mean+std"), judged("mean")
    assert [model.name for model in both.models] == ["run", "run 2"]
    assert [model.settings for model in both.models] == [
        "last layer, concat, mean, each 40 ms, fp32",
        "last layer, concat, mean+std, each 40 ms, fp32",
    ]
    assert both.results[0] == first.results[0] == again.results[0]
    assert both.results[1].column.model == "run 2"
    assert again.models == both.models


def test_wrong_calls_are_refused_before_any_work(hear_folder, tmp_path):
    out = tmp_path / "out"
    for words, error, message in [
        ({"protocols": ("heer",)}, ConfigError, "unknown protocol 'heer'; the nearest is 'hear'"),
        ({"tasks": ("pitch",)}, ConfigError, "unknown task 'pitch'; the nearest is 'pitches'"),
        ({"grid_points": 0}, ConfigError, "0 points of the grid were asked for; give at least 1"),
    ]:
        with pytest.raises(error, match=message):
            evaluated(["logmel"], hear_folder, out, **words)
    assert not out.exists()
    out.mkdir()
    (out / "results.json").write_text('{"something": 1}')
    with pytest.raises(InputError, match="is not a report of melmask evaluate"):
        evaluated(["logmel"], hear_folder, out)


def test_sounds_on_both_sides_of_a_split_are_counted(tmp_path):
    folder = write_fold_task(tmp_path / "tasks")
    sounds = folder / str(RATE_HZ)
    (sounds / "fold01" / "1-0.wav").write_bytes((sounds / "fold00" / "0-0.wav").read_bytes())
    (folder / "groups.json").write_text(json.dumps({"0-1.wav": "ann", "1-1.wav": "ann", "2-1.wav": "ben"}))
    report = evaluated(["logmel"], tmp_path / "tasks", tmp_path / "out", protocols=("knn",))
    assert (report.tasks[0].leaking_files, report.tasks[0].leaking_groups) == (1, 1)


def test_equal_calls_give_equal_scores(rows_of):
    data = rows_of("pitches-v1-full")
    results = [run_first(data, "hear", grid_of(data.task), 3) for _ in range(2)]
    np.testing.assert_array_equal(*(kept["probabilities"] for _, kept in results))


@pytest.mark.parametrize("name", ["hear", "linear"])
def test_one_thread_or_several_train_the_same_heads_in_any_order(rows_of, name):
    data, found = rows_of("pitches-v1-full"), []
    threads = torch.get_num_threads()
    for workers in (1, 4):
        torch.set_num_threads(workers)
        try:
            results = run_splits(data, data.task.data_splits, name, grid_of(data.task)[:2], 0)
            found.append([kept["probabilities"] for _, kept in results])
            assert torch.get_num_threads() == workers
        finally:
            torch.set_num_threads(threads)
    assert len(found[0]) == 3
    for alone, beside in zip(*found, strict=True):
        np.testing.assert_allclose(alone, beside, atol=1e-6)


def test_what_interrupts_a_search_ends_its_heads(rows_of, monkeypatch):
    data, ended = rows_of("pitches-v1-full"), []
    train_head = protocol.train_head

    def endless(*words):
        """As long as nobody asks for an end."""
        config = replace(words[2], max_epochs=10**9, patience=10**9)
        try:
            return train_head(*words[:2], config, *words[3:])
        except StoppedError as stopped:
            ended.append(stopped)
            raise

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(protocol, "train_head", endless)
    monkeypatch.setattr(protocol._Search, "result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(run_splits(data, data.task.data_splits, "hear-fixed", grid_of(data.task), 0))
    assert 1 <= len(ended) <= torch.get_num_threads()


def test_a_head_that_fails_is_its_tasks_failure(rows_of, monkeypatch):
    def fails(*_):
        raise ValueError("no such row")

    monkeypatch.setattr(protocol, "train_head", fails)
    with pytest.raises(ValueError, match="no such row"):
        run_first(rows_of("pitches-v1-full"), "hear", grid_of(rows_of("pitches-v1-full").task))


def test_the_precision_of_the_heads_is_recorded(hear_folder, tmp_path):
    for precision in ("fp32", "bf16"):
        report = evaluated(["logmel"], hear_folder, tmp_path / precision, tasks=("pitches",), head_precision=precision)
        (outcome,) = report.results
        assert {split.setting["precision"] for split in outcome.splits} == {precision}
        assert outcome.score.mean > 0.8
    with pytest.raises(ConfigError, match="unknown head precision 'fp16'; the nearest is 'bf16'"):
        evaluated(["logmel"], hear_folder, tmp_path / "x", head_precision="fp16")
