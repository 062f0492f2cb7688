import json
import re

import pytest

from melmask.errors import ConfigError, InputError
from melmask.evaluate.tasks import METRICS, DataSplit, find_tasks, read_task
from melmask.labels.tables import Event

SCENE = {
    "task_name": "pets",
    "version": "v1",
    "mode": "full",
    "embedding_type": "scene",
    "prediction_type": "multiclass",
    "split_mode": "trainvaltest",
    "splits": ["train", "valid", "test"],
    "sample_duration": 2.5,
    "evaluation": ["top1_acc", "mAP"],
}
EVENT = SCENE | {
    "embedding_type": "event",
    "prediction_type": "multilabel",
    "evaluation": ["event_onset_200ms_fms", "segment_1s_er"],
}
SPLITS = {"train": {"a.wav": ["dog"], "b.wav": ["cat"]}, "valid": {"c.wav": ["dog"]}, "test": {"d.wav": ["cat"]}}
BARK = {"label": "dog", "start": 100, "end": 450.5}
EVENTS = {"train": {"a.wav": [BARK, BARK | {"label": "cat"}]}, "valid": {"c.wav": []}, "test": {"d.wav": [BARK]}}


def write_task(folder, metadata=SCENE, splits=SPLITS, vocabulary="idx,label\n0,cat\n1,dog\n"):
    folder.mkdir(parents=True)
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    (folder / "labelvocabulary.csv").write_text(vocabulary)
    for split, content in splits.items():
        (folder / f"{split}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def folds(names):
    return {name: {f"{name}.wav": ["dog"]} for name in names}


def test_a_scene_task_is_read(tmp_path):
    task = read_task(write_task(tmp_path / "pets-v1-full"))
    assert (task.title, task.name, task.labels) == ("pets-v1-full", "pets", ("cat", "dog"))
    assert task.files == SPLITS
    assert task.data_splits == (DataSplit(("train",), ("valid",), ("test",)),)
    assert task.data_splits[0].name == "test"
    assert task.metrics == ("top1_acc", "mAP")
    assert task.sample_duration_s == 2.5
    assert task.stop_on_score and task.parameter_grid == {} and task.groups == {}
    assert task.audio_folder("train", 48000) == task.folder / "48000" / "train"


def test_an_event_task_is_read(tmp_path):
    task = read_task(write_task(tmp_path / "task", EVENT | {"sample_duration": None}, EVENTS))
    assert task.files["train"] == {"a.wav": [Event("dog", 100.0, 450.5), Event("cat", 100.0, 450.5)]}
    assert task.files["valid"] == {"c.wav": []}
    assert task.sample_duration_s is None
    assert task.event_grid == {"median_filter_ms": [250], "min_duration": [125, 250]}


def test_labels_that_are_numbers_are_texts_and_follow_idx(tmp_path):
    splits = {"train": {"a.wav": [7]}, "valid": {"b.wav": ["7"]}, "test": {"c.wav": [12]}}
    task = read_task(write_task(tmp_path / "task", splits=splits, vocabulary="idx,label\n1,07\n0,12\n"))
    assert task.labels == ("12", "7")
    assert task.files == {"train": {"a.wav": ["7"]}, "valid": {"b.wav": ["7"]}, "test": {"c.wav": ["12"]}}


def test_a_label_of_thousands_of_digits_is_one_like_others(tmp_path):
    long = "9" * 5000
    splits = {"train": {"a.wav": [long]}, "valid": {"b.wav": ["0" + long]}, "test": {"c.wav": ["12"]}}
    task = read_task(write_task(tmp_path / "task", splits=splits, vocabulary=f"idx,label\n1,{long}\n0,12\n"))
    assert task.labels == ("12", long)
    assert task.files["valid"] == {"b.wav": [long]}


def test_each_fold_is_tested_and_the_next_one_validates(tmp_path):
    names = ["fold02", "fold00", "fold03", "fold01"]
    metadata = SCENE | {"split_mode": "presplit_kfold", "splits": names}
    task = read_task(write_task(tmp_path / "task", metadata, folds(names)))
    assert task.splits == tuple(names)
    assert task.data_splits == (
        DataSplit(("fold02", "fold03"), ("fold01",), ("fold00",)),
        DataSplit(("fold00", "fold03"), ("fold02",), ("fold01",)),
        DataSplit(("fold00", "fold01"), ("fold03",), ("fold02",)),
        DataSplit(("fold01", "fold02"), ("fold00",), ("fold03",)),
    )


def test_grids_of_the_metadata_and_of_the_kits_source(tmp_path):
    parameters = {"task_specific_param_grid": {"lr": [0.1]}, "event_postprocessing_grid": {"median_filter_ms": [99]}}
    metadata = EVENT | {
        "task_name": "dcase2016_task2",
        "evaluation_params": parameters,
        "use_scoring_for_early_stopping": False,
    }
    task = read_task(write_task(tmp_path / "task", metadata, EVENTS))
    assert task.parameter_grid == {"check_val_every_n_epoch": [10], "lr": [0.1]}
    assert task.event_grid == {"median_filter_ms": [99], "min_duration": [60]}
    assert not task.stop_on_score


def test_groups_are_read_where_there_are_some(tmp_path):
    folder = write_task(tmp_path / "task")
    (folder / "groups.json").write_text('{"a.wav": 3}')
    assert read_task(folder).groups == {"a.wav": "3"}


def test_the_names_of_the_metrics_are_those_that_are_computed():
    from melmask.downstream.events import EVENT_METRICS
    from melmask.downstream.metrics import SCENE_METRICS

    assert {"scene": tuple(SCENE_METRICS), "event": tuple(EVENT_METRICS)} == METRICS


def without(key):
    return {name: value for name, value in SCENE.items() if name != key}


def with_train(items):
    return {"splits": SPLITS | {"train": {"a.wav": items}}}


def with_event(**changes):
    return {"metadata": EVENT, "splits": EVENTS | {"train": {"a.wav": [BARK | changes]}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"train": SPLITS["train"], "valid": SPLITS["valid"]}}, "test.json is missing"),
        ({"splits": SPLITS | {"test": "{"}}, "test.json cannot be read"),
        ({"splits": SPLITS | {"test": []}}, "test.json holds a list; expected a JSON object"),
        ({"splits": SPLITS | {"test": {}}}, "test.json lists no files"),
        ({"splits": SPLITS | {"test": {"deep/a.wav": ["dog"]}}}, "'deep/a.wav' is not the plain name"),
        (with_train("dog"), 'a.wav has "dog"; expected a list of labels'),
        (with_train([]), "a.wav has 0 labels; expected exactly one"),
        (with_train(["dog", "cat"]), "a.wav has 2 labels"),
        (with_train(["dgo"]), "label 'dgo', which labelvocabulary.csv does not list; the nearest there is 'dog'"),
        (with_event(label="cow"), "a.wav has label 'cow'"),
        (with_event(start=500), "an event from 500 to 450.5; expected times in ms, the start first"),
        (with_event(end=float("nan")), "an event from 100 to NaN"),
        (with_event(start="1"), 'an event from "1" to'),
        ({"metadata": EVENT, "splits": EVENTS | {"test": {"a.wav": [BARK]}}}, "a.wav is in both train and test"),
        ({"metadata": EVENT}, 'a.wav has "dog"; expected label, start and end'),
        ({"vocabulary": "idx,label\n0,cat\n2,dog\n"}, "idx is 0, 2; expected 0 to 1"),
        ({"vocabulary": "idx,label\n0,cat\n0,dog\n"}, "idx is 0; expected 0 to 1"),
        ({"vocabulary": "idx,label\n0,dog\n1,dog\n"}, "label 'dog' is listed twice"),
        ({"vocabulary": "cat,dog\n"}, "no rows under idx,label"),
        ({"metadata": without("sample_duration")}, "has no 'sample_duration'"),
        ({"metadata": SCENE | {"sample_duration": 0}}, "sample_duration is 0; expected seconds, or null"),
        ({"metadata": SCENE | {"embedding_type": "clip"}}, 'embedding_type is "clip"; expected scene or event'),
        ({"metadata": EVENT | {"prediction_type": "multiclass"}}, "expected multilabel"),
        ({"metadata": SCENE | {"split_mode": "kfold"}}, "expected trainvaltest or new_split_kfold"),
        ({"metadata": SCENE | {"split_mode": "new_split_kfold", "splits": ["train", "test"]}}, "at least 3 folds"),
        ({"metadata": SCENE | {"splits": ["train", "test"]}}, "expected valid too with split_mode trainvaltest"),
        ({"metadata": SCENE | {"splits": ["train", "train"]}}, "a list of different names"),
        ({"metadata": SCENE | {"evaluation": ["mAP", "accuracy"]}}, 'is "accuracy"; expected some of top1_acc, pitch'),
        ({"metadata": SCENE | {"evaluation": ["segment_1s_er"]}}, 'evaluation is "segment_1s_er"'),
        ({"metadata": SCENE | {"use_scoring_for_early_stopping": "no"}}, "expected true or false"),
        ({"metadata": SCENE | {"evaluation_params": {"task_specific_param_grid": {"lr": 1}}}}, "lists of values"),
        (
            {"metadata": EVENT | {"use_scoring_for_early_stopping": False}, "splits": EVENTS},
            "expected one value each, as nothing is chosen by score",
        ),
    ],
)
def test_what_the_kit_could_not_use_is_refused_in_one_line(tmp_path, changes, message):
    folder = write_task(tmp_path / "task", **changes)
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        read_task(folder)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def tasks_folder(tmp_path):
    folder = tmp_path / "tasks"
    write_task(folder / "pets-v2-full")
    write_task(folder / "pets-v1-full")
    write_task(folder / "birds-v1-full", SCENE | {"task_name": "birds"})
    write_task(folder / ".half-v1-full.partial")
    (folder / "notes").mkdir()
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ["birds-v1-full", "pets-v1-full", "pets-v2-full"]),
        (["pets"], ["pets-v1-full", "pets-v2-full"]),
        (["pets-v2-full", "birds"], ["birds-v1-full", "pets-v2-full"]),
    ],
)
def test_tasks_are_found_by_either_name(tasks_folder, names, expected):
    assert [task.title for task in find_tasks(tasks_folder, names)] == expected


def test_a_task_folder_itself_is_one_task(tasks_folder):
    assert [task.title for task in find_tasks(tasks_folder / "pets-v1-full")] == ["pets-v1-full"]


def test_a_damaged_task_matters_only_if_it_is_wanted(tasks_folder, capsys):
    (tasks_folder / "birds-v1-full" / "task_metadata.json").write_text("{")
    assert len(find_tasks(tasks_folder, ["pets"])) == 2
    with pytest.raises(InputError, match="birds-v1-full"):
        find_tasks(tasks_folder, ["birds-v1-full"])
    assert "birds-v1-full" not in {task.title for task in find_tasks(tasks_folder)}
    assert "a task is skipped: " in capsys.readouterr().err
    with pytest.raises(InputError, match="birds-v1-full"):
        find_tasks(tasks_folder / "birds-v1-full")


def test_tasks_that_are_not_there_are_refused(tasks_folder):
    with pytest.raises(ConfigError, match="unknown task 'bird'; the nearest is 'birds'"):
        find_tasks(tasks_folder, ["bird"])
    with pytest.raises(InputError, match=re.escape(f"there are some in {tasks_folder}, give that")):
        find_tasks(tasks_folder.parent)
    with pytest.raises(InputError, match="melmask make-task makes one"):
        find_tasks(tasks_folder / "notes")
    with pytest.raises(InputError, match="is not a folder"):
        find_tasks(tasks_folder / "none")
