"""Which labeled files train, validate and test a classifier."""

import numpy as np
import pytest
from hear_folders import PITCHES_HZ, write_fold_task, write_table

from melmask.classifier.examples import read_examples, table_examples, task_examples
from melmask.classifier.options import FinetuneOptions
from melmask.errors import InputError
from melmask.evaluate.tasks import read_task

LABELS = list(PITCHES_HZ)


def parts_of(folder, header, cells, fold=""):
    """The part of each of so many clips, a row each."""
    for i in range(len(cells)):
        (folder / f"{i}.wav").touch()
    table = write_table(folder, [header, *((f"{i}.wav", *own) for i, own in enumerate(cells))])
    files = table_examples(table, 0, FinetuneOptions(fold=fold))
    assert [sound.path.stem for sound in files.sounds] == [str(i) for i in range(len(cells))]
    return files.parts


def test_folds_of_a_table_and_of_a_task(tmp_path):
    task = read_task(write_fold_task(tmp_path, folds=4))
    examples = task_examples(task, "fold02")
    parts = {sound.path.parent.name: part for sound, part in zip(examples.sounds, examples.parts, strict=True)}
    assert parts == {"fold02": "test", "fold03": "valid", "fold00": "train", "fold01": "train"}
    with pytest.raises(InputError, match="--fold is 'x'; pitches-v1-full has fold00, fold01"):
        task_examples(task, "x")
    parts = parts_of(tmp_path, ("path", "label", "fold"), [(LABELS[i % 3], i % 5 + 1) for i in range(30)], fold="5")
    assert parts == ["valid", "train", "train", "train", "test"] * 6


def test_groups_stay_together_where_a_validation_set_is_made(tmp_path):
    cells = [(LABELS[i % 3], f"g{i // 6}") for i in range(60)]
    parts = parts_of(tmp_path, ("path", "label", "group"), cells)
    valid, train = ({cell[1] for cell, own in zip(cells, parts, strict=True) if own == p} for p in ("valid", "train"))
    assert valid and not valid & train


def test_groups_in_several_parts_are_reported(tmp_path, capsys):
    cells = [(LABELS[i % 2], ("train", "valid", "test")[i // 4], f"g{i % 3 if i < 8 else i}") for i in range(12)]
    parts_of(tmp_path, ("path", "label", "split", "group"), cells)
    assert "3 groups with clips in several parts of train, valid and test" in capsys.readouterr().err
    parts_of(tmp_path, ("path", "label", "split"), [cell[:2] for cell in cells])
    assert "groups" not in capsys.readouterr().err


def test_of_two_folds_one_is_tested_and_a_part_of_the_other_validates(tmp_path):
    cells = [(LABELS[i % 3], i % 2) for i in range(60)]
    parts = parts_of(tmp_path, ("path", "label", "fold"), cells)
    assert {part for part, (_, fold) in zip(parts, cells, strict=True) if fold == 0} == {"test"}
    assert [parts.count(part) for part in ("test", "valid", "train")] == [30, 3, 27]


def test_folds_follow_one_another_by_number(tmp_path):
    cells = [(LABELS[i % 3], i % 12 + 1) for i in range(36)]
    parts = parts_of(tmp_path, ("path", "label", "fold"), cells, fold="9")
    assert {cell[1] for cell, part in zip(cells, parts, strict=True) if part == "valid"} == {10}


def test_tested_rows_are_not_trained_on_where_a_fold_is_asked_for_in_vain(tmp_path):
    cells = [(LABELS[i % 3], "test" if i < 9 else "train") for i in range(36)]
    with pytest.raises(InputError, match=r"--fold is '3', but .* has no column `fold`; leave --fold out"):
        parts_of(tmp_path, ("path", "label", "split"), cells, fold="3")


@pytest.mark.parametrize("several", [False, True])
def test_a_tenth_validates_also_where_labels_are_rare(tmp_path, several):
    rng = np.random.default_rng(0)
    # Of several labels a clip most combinations occur once.
    cells = [(";".join(name for name in "abcdefg" if rng.random() < 0.5) if several else "ab"[i % 2],)
             for i in range(300)]  # fmt: skip
    parts = parts_of(tmp_path, ("path", "label"), [*((cell[0] or "a",) for cell in cells), ("rare",)])
    assert parts.count("valid") == 30
    assert parts[-1] == "train"


def test_what_validates_is_spread_over_the_labels_and_leaves_each_one_clip_or_group_to_train_on(tmp_path):
    header = ("path", "label")
    # Of two clips a label a fifth, not a half; of one clip a label nothing.
    cells = [(f"l{i % 50}",) for i in range(100)] + [(f"single{i}",) for i in range(5)]
    parts = parts_of(tmp_path, header, cells)
    assert parts.count("valid") == 21
    assert {label for (label,), part in zip(cells, parts, strict=True) if part == "train"} == {c for (c,) in cells}
    # One of each label where a tenth would do.
    cells = [(LABELS[i % 3],) for i in range(30)]
    held = [label for (label,), part in zip(cells, parts_of(tmp_path, header, cells), strict=True) if part == "valid"]
    assert sorted(held) == sorted(LABELS)
    # The group that only has a label trains, and the smaller of the others validates.
    cells = [("a", "g0")] * 5 + [("b", "g1")] * 5 + [("a", "g2")] * 9 + [("b", "g2")] * 9 + [("c", "g1")]
    parts = parts_of(tmp_path, ("path", "label", "group"), cells)
    assert [part for (_, group), part in zip(cells, parts, strict=True) if group == "g0"] == ["valid"] * 5
    assert parts.count("valid") == 5


def test_a_rare_label_is_validated_too(tmp_path):
    header = ("path", "label")
    for seed_of_order in range(5):
        order = np.random.default_rng(seed_of_order).permutation(100)
        cells = [("rare",) if row < 3 else ("common",) for row in order]
        held = [c for c, part in zip(cells, parts_of(tmp_path, header, cells), strict=True) if part == "valid"]
        assert (len(held), held.count(("rare",))) == (10, 1)
    # Most clips have no label at all.
    cells = [("a;b",)] * 2 + [("b",)] * 2 + [("",)] * 36
    held = [c for c, part in zip(cells, parts_of(tmp_path, header, cells), strict=True) if part == "valid"]
    assert len(held) == 4
    assert {name for (cell,) in held for name in cell.split(";")} == {"a", "b", ""}


def test_a_tiny_group_alone_does_not_validate(tmp_path):
    cells = [("ab"[i % 2], f"g{min(i // 2, 5)}") for i in range(8)] + [
        ("ab"[i % 2], f"h{i // 9}") for i in range(72)
    ]  # fmt: skip
    parts = parts_of(tmp_path, ("path", "label", "group"), cells)
    assert 8 <= parts.count("valid") <= 16
    # A group of a sixth follows a tiny one, though a tenth would be enough.
    cells = [("ab"[i % 2], "tiny") for i in range(2)] + [("ab"[i % 2], f"h{i // 10}") for i in range(60)]
    parts = parts_of(tmp_path, ("path", "label", "group"), cells)
    assert parts.count("valid") == 12


@pytest.mark.parametrize(
    ("header", "cells", "what"),
    [
        (("path", "label"), [("a",), ("b",), ("c",)], "clip"),
        (("path", "label", "group"), [("a", "g"), ("b", "g"), ("a", "g"), ("b", "g")], "group"),
    ],
)
def test_where_nothing_can_be_held_out_a_split_is_asked_for(tmp_path, header, cells, what):
    with pytest.raises(InputError, match=f"no {what} can be held out to validate, .* mark rows `valid` in a column"):
        parts_of(tmp_path, header, cells)


@pytest.mark.parametrize(
    ("splits", "labels", "message"),
    [
        (["valid", "test"], LABELS, "has no row to train on, only test and valid"),
        (["test"], LABELS, "has no row to train on, only test"),
        (["train", "valid"], ["low", "high"], "all rows to train on have label 'low'; a classifier needs two"),
    ],
)
def test_a_table_that_nothing_can_be_learned_from_is_refused(tmp_path, splits, labels, message):
    cells = [(labels[i % len(labels)], splits[i % len(splits)]) for i in range(12)]
    with pytest.raises(InputError, match=message):
        parts_of(tmp_path, ("path", "label", "split"), cells)


def test_a_folder_that_is_no_task_is_refused(tmp_path):
    (tmp_path / "pets-v1-full").mkdir()
    with pytest.raises(InputError, match=r"is no folder of labeled sounds; expected class folders"):
        read_examples(tmp_path, 0, FinetuneOptions())
