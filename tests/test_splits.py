import re
from pathlib import Path

import numpy as np
import pytest

from melmask.errors import InputError
from melmask.labels.options import TableOptions
from melmask.labels.splits import leaking_groups, make_splits
from melmask.labels.tables import LabelTable, read_labels, sorted_names


def table(labels, groups=None, folds=None, splits=None):
    return LabelTable([Path(f"{i}.wav") for i in range(len(labels))], labels, groups, folds, splits)


def csv_file(folder, text, clips=("a.wav", "b.wav")):
    folder.mkdir(exist_ok=True)
    for clip in clips:
        (folder / clip).touch()
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def grouped_table(rows=120, groups=12):
    rng = np.random.default_rng(0)
    labels = [f"class {i}" for i in rng.integers(0, 3, rows)]
    return table(labels, groups=[f"speaker {i}" for i in rng.integers(0, groups, rows)])


def roles(split):
    return split.train.tolist(), split.valid.tolist(), split.test.tolist()


def test_fold_scheme_equals_the_column():
    folds = ["10", "2", "1", "2", "10", "1"]
    splits = make_splits(table(list("ababab"), folds=folds), "fold")
    assert [split.name for split in splits] == ["fold 1", "fold 2", "fold 10"]
    for split in splits:
        fold = split.name.removeprefix("fold ")
        assert split.test.tolist() == [i for i, name in enumerate(folds) if name == fold]
        assert split.train.tolist() == [i for i, name in enumerate(folds) if name != fold]


def test_split_scheme_keeps_valid_rows_out_of_training_and_test():
    (split,) = make_splits(table(list("abab"), splits=["train", "train", "valid", "test"]), "split")
    assert roles(split) == ([0, 1], [2], [3])


def test_no_group_is_both_trained_and_tested_on():
    grouped = grouped_table()
    splits = make_splits(grouped, "auto", folds=4)
    assert [leaking_groups(grouped, split) for split in splits] == [[]] * 4
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(120))


def test_random_scheme_tests_each_row_once_and_depends_on_the_seed():
    labels = table(list("abc") * 20)
    first, again, other = (make_splits(labels, "random", seed=seed) for seed in (0, 0, 1))
    assert sorted(np.concatenate([split.test for split in first])) == list(range(60))
    assert [roles(split) for split in first] == [roles(split) for split in again]
    assert [roles(split) for split in first] != [roles(split) for split in other]


def test_a_class_rarer_than_the_folds_is_allowed():
    splits = make_splits(table(["common"] * 20 + ["other"] * 20 + ["rare"]), "random")
    assert sum(40 in split.test for split in splits) == 1


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"folds": list("1122"), "splits": ["train", "train", "test", "test"], "groups": list("xyzw")},
            "fold 1",
        ),
        ({"splits": ["train", "train", "test", "test"], "groups": list("xyzw")}, "split"),
        ({"splits": ["train"] * 4, "groups": list("xyzw")}, "group 1 of 2"),
        ({}, "random 1 of 2"),
    ],
)
def test_auto_prefers_folds_then_split_then_groups(columns, expected):
    assert make_splits(table(list("abab"), **columns), "auto", folds=2)[0].name == expected


def test_leaking_groups_are_named():
    leaky = table(list("abab"), groups=["x", "y", "z", "x"], folds=list("1122"))
    assert [leaking_groups(leaky, split) for split in make_splits(leaky)] == [["x"], ["x"]]


@pytest.mark.parametrize(
    ("labels", "scheme", "folds", "message"),
    [
        (table(list("abab")), "folds", 2, "'folds' is not known; expected one of auto, fold"),
        (table(list("abab")), "fold", 2, "no `fold` column"),
        (table(list("abab")), "split", 2, "no `split` column"),
        (table(list("abab")), "group", 2, "no `group` column"),
        (table(list("abab")), "random", 3, "3 folds were asked for, but there are 2 rows"),
        (table(list("abab")), "random", 1, "expected at least 2"),
        (table(list("abab"), groups=list("xyxy")), "group", 3, "there are 2 groups"),
        (table(list("abab"), folds=list("1111")), "fold", 2, "all rows are in fold '1'"),
        (table(list("abab"), splits=["train"] * 4), "split", 2, "no row's split is 'test'"),
        (table(list("aabb"), folds=list("1122")), "fold", 2, "fold 1 trains on 1 class"),
    ],
)
def test_splits_that_cannot_be_made_are_refused(labels, scheme, folds, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make_splits(labels, scheme, folds=folds)


def test_labels_that_are_numbers_of_any_length_are_ordered_by_value():
    long, longer = "9" * 5000, "1" + "0" * 5000
    assert sorted_names([longer, "10", long, "2"]) == ["2", "10", long, longer]


def test_labels_are_read_with_their_columns(tmp_path):
    path = csv_file(tmp_path, "\ufeffPath,label,group,fold,split\na.wav,10,x,1,val\n\nb.wav, 9,y,2,test\n")
    labels = read_labels(path)
    assert labels == LabelTable(
        [tmp_path / "a.wav", tmp_path / "b.wav"], ["10", "9"], ["x", "y"], ["1", "2"], ["valid", "test"]
    )
    assert labels.class_names == ["9", "10"]
    assert labels.label_indices.tolist() == [1, 0]


def test_an_empty_column_counts_as_absent(tmp_path):
    labels = read_labels(csv_file(tmp_path, "path,label,group,fold\na.wav,x,,\nb.wav,y,,\n"))
    assert labels.groups is None and labels.folds is None


def test_a_fold_column_of_split_names_is_a_split(tmp_path):
    labels = read_labels(csv_file(tmp_path, "path,label,fold\na.wav,x,train\nb.wav,y,test\n"))
    assert labels.folds is None and labels.splits == ["train", "test"]


def test_paths_start_from_the_first_root_that_has_the_clip(tmp_path):
    text = f"path,label\nb.wav,x\n{tmp_path / 'a.wav'},y\n"
    path = csv_file(tmp_path / "tasks", text, clips=())
    (tmp_path / "b.wav").touch()
    assert read_labels(path).paths == [tmp_path / "b.wav", tmp_path / "a.wav"]
    (tmp_path / "tasks" / "b.wav").touch()
    assert read_labels(path).paths[0] == tmp_path / "tasks" / "b.wav"
    assert read_labels(path, TableOptions(audio_root=tmp_path)).paths[0] == tmp_path / "b.wav"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("path,label\n", "a header but no rows"),
        ("path,lable\na.wav,x\n", "no column `label`; columns are path, lable; nearest is `lable`"),
        (
            "path,labels\na.wav,x;y\n",
            "has several labels in a cell, separated by ';', and here each clip has one; melmask probe",
        ),
        ("path,label,Label\na.wav,x,y\n", "2 columns are called `label`; keep or rename one"),
        ("path,label\na.wav,x\nb.wav\n", "line 3: 1 values for 2 columns"),
        ("path,label\na.wav,x\nb.wav,\n", "`label` is empty in 1 of 2 rows, first in row 2"),
        ("path,label,fold\na.wav,x,1\nb.wav,y,\n", "`fold` is empty in 1 of 2 rows"),
        ("path,label,split\na.wav,x,train\nb.wav,y,trial\n", "split 'trial' is not known"),
        ("path,label\na.wav,x\nb.wav,x\n", "all 2 rows have label 'x'"),
        ("path,label\na.wav,x\n./a.wav,y\n", "a.wav is listed twice"),
        ("path,label\nmissing.wav,x\ngone.wav,y\n", "neither 'missing.wav' nor any other"),
        ("path,label\na.wav,x\0\nb.wav,y\n", "not a CSV table"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        read_labels(csv_file(tmp_path, text))
    assert "\n" not in str(refusal.value)


def test_a_missing_file_and_a_binary_file_are_refused(tmp_path):
    (tmp_path / "sound.csv").write_bytes(b"OggS\0\xff\xfe")
    for name, message in (("none.csv", "no such file"), ("sound.csv", "UTF-8")):
        with pytest.raises(InputError, match=message):
            read_labels(tmp_path / name)
