import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from jaxtyping import config as jaxtyping_config

from melmask.errors import ConfigError, InputError, OutputError
from melmask.evaluate.make_task import make_task as write_task
from melmask.evaluate.new_splits import divide, spread
from melmask.evaluate.options import TaskOptions
from melmask.evaluate.sounds import wav_names
from melmask.evaluate.tasks import DataSplit, read_task
from melmask.labels.tables import Event, read_clips
from melmask.system.files import ensure_folder, locked

RATE_HZ = 8000


def make_task(labels, out, **options):
    return write_task(labels, out, TaskOptions(**options))


def write_sounds(folder, names, seconds=0.5):
    rng = np.random.default_rng(len(names))
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, round(seconds * RATE_HZ)), RATE_HZ)


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


@pytest.fixture
def labeled(tmp_path):
    """labeled(header, rows) -> a table of twelve clips c00.wav to c11.wav of half a second; rows(i) gives row i."""
    names = [f"c{i:02d}.wav" for i in range(12)]
    write_sounds(tmp_path / "sounds", names)

    def write(header, values):
        return write_csv(tmp_path / "sounds" / "pets.csv", header, [[n, *values(i)] for i, n in enumerate(names)])

    return write


def animals(i):
    return ["dog" if i % 2 else "cat"]


def test_given_folds_become_the_tasks(labeled, tmp_path):
    table = labeled("path,label,group,fold", lambda i: [*animals(i), f"g{i // 4}", ["1", "2", "10"][i // 4]])
    report = make_task(table, tmp_path / "tasks", threads=1)
    task = read_task(tmp_path / "tasks" / "pets-v1-full")
    assert report.folder == task.folder
    assert (report.split_mode, report.sizes) == ("presplit_kfold", {"fold00": 4, "fold01": 4, "fold02": 4})
    assert task.files["fold02"] == {f"c{i:02d}.wav": animals(i) for i in range(8, 12)}
    assert task.metrics == ("top1_acc", "mAP", "d_prime", "aucroc")
    assert task.groups["c11.wav"] == "g2"
    assert report.notes == ()
    assert str(report).endswith("12 clips of 0.5 s, 2 classes; presplit_kfold: fold00 4, fold01 4, fold02 4")


def test_sounds_are_16_bit_mono_at_each_rate_and_unchanged_at_their_own(labeled, tmp_path):
    make_task(labeled("path,label", animals), tmp_path, folds=3, rates_hz=(RATE_HZ, 16000))
    task = read_task(tmp_path / "pets-v1-full")
    for split in task.splits:
        for name in task.files[split]:
            original, _ = soundfile.read(tmp_path / "sounds" / name, dtype="int16")
            written, rate_hz = soundfile.read(task.audio_folder(split, RATE_HZ) / name, dtype="int16")
            assert rate_hz == RATE_HZ and np.array_equal(written, original)
            double = soundfile.info(task.audio_folder(split, 16000) / name)
            assert (double.samplerate, double.frames, double.channels, double.subtype) == (16000, 8000, 1, "PCM_16")


def test_a_rate_asked_for_twice_is_written_once(labeled, tmp_path):
    folder = make_task(labeled("path,label", animals), tmp_path, rates_hz=(RATE_HZ, RATE_HZ)).folder
    assert [path.name for path in folder.iterdir() if path.is_dir()] == [str(RATE_HZ)]


def test_labels_of_which_some_are_numbers_stay_as_they_are(labeled, tmp_path):
    names = ["007", "7", "dog"]
    task = read_task(make_task(labeled("path,label", lambda i: [names[i % 3]]), tmp_path, folds=3).folder)
    assert set(task.labels) == set(names)
    assert {label for clips in task.files.values() for (label,) in clips.values()} == set(names)


def test_two_jobs_do_not_make_one_task(labeled, tmp_path):
    table = labeled("path,label", animals)
    lock = ensure_folder(tmp_path / ".pets-v1-full.partial") / ".lock"
    busy = pytest.raises(OutputError, match=r"another melmask is writing to .*pets-v1-full; wait")
    with locked(lock, tmp_path), busy:
        make_task(table, tmp_path)
    # What a killed one left is cleared away.
    (tmp_path / ".pets-v1-full.partial" / "8000").mkdir()
    (tmp_path / ".pets-v1-full.partial" / "train.json").touch()
    folder = make_task(table, tmp_path).folder
    assert not list(tmp_path.glob(".pets*")) and not list(folder.glob(".*"))
    assert not (folder / "train.json").exists()


def test_the_metadata_have_every_key_the_kit_reads(labeled, tmp_path):
    table = labeled("path,label", animals)
    folder = make_task(table, tmp_path, name="zoo", version="v2", mode="small").folder
    assert folder.name == "zoo-v2-small"
    metadata = json.loads((folder / "task_metadata.json").read_text())
    assert metadata == {
        "task_name": "zoo",
        "version": "v2",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "default_mode": "small",
        "mode": "small",
        "tmp_dir": "_workdir",
        "split_mode": "new_split_kfold",
        "splits": [f"fold{i:02d}" for i in range(5)],
        "nfolds": 5,
        "max_task_duration_by_fold": None,
        "sample_duration": 0.5,
        "evaluation": ["top1_acc", "mAP", "d_prime", "aucroc"],
    }
    assert (folder / "labelvocabulary.csv").read_text() == "idx,label\n0,cat\n1,dog\n"


def test_given_splits_are_kept_and_valid_is_made_of_whole_groups_of_train(labeled, tmp_path):
    table = labeled("path,label,group,split", lambda i: [*animals(i), f"g{i // 2}", "test" if i > 9 else "train"])
    report = make_task(table, tmp_path)
    assert report.sizes == {"train": 8, "valid": 2, "test": 2}
    assert report.notes == ("the table has no validation rows: 2 of 10 training clips became valid, groups kept whole",)
    task = read_task(report.folder)
    assert task.data_splits == (DataSplit(("train",), ("valid",), ("test",)),)
    assert len({task.groups[name] for name in task.files["valid"]}) == 1
    assert sorted(task.files["test"]) == ["c10.wav", "c11.wav"]


def test_few_groups_make_a_larger_valid(labeled, tmp_path):
    table = labeled("path,label,group,split", lambda i: [*animals(i), f"g{i % 3}", "test" if i > 8 else "train"])
    assert make_task(table, tmp_path).sizes == {"train": 6, "valid": 3, "test": 3}


def test_a_group_that_is_tested_and_trained_on_is_reported(labeled, tmp_path):
    splits = ["train"] * 6 + ["valid"] * 3 + ["test"] * 3
    table = labeled("path,label,group,split", lambda i: [*animals(i), f"g{i % 6}", splits[i]])
    assert "3 groups both tested and trained on, because the table says so" in make_task(table, tmp_path).notes


@pytest.mark.parametrize("column", ["labels", "label"])
def test_labels_apart_by_semicolons_make_a_multilabel_task(labeled, tmp_path, column):
    table = labeled(f"path,{column}", lambda i: [["dog; cat", "cat;cat", ""][i % 3]])
    task = read_task(make_task(table, tmp_path, folds=3).folder)
    assert (task.embedding_type, task.prediction_type) == ("scene", "multilabel")
    assert task.metrics == ("mAP", "d_prime", "aucroc")
    labels = {name: items for files in task.files.values() for name, items in files.items()}
    assert [labels[f"c{i:02d}.wav"] for i in range(3)] == [["dog", "cat"], ["cat"], []]
    table = labeled("path,label", lambda i: [["dog; cat", "cat"][i % 2]])
    task = read_task(make_task(table, tmp_path / "one", kind="multiclass", folds=3).folder)
    assert task.labels == ("cat", "dog; cat")


def test_rows_with_times_make_an_event_task(tmp_path):
    write_sounds(tmp_path, ["a.wav", "b.wav", "c.wav"], seconds=1.0)
    rows = [["a.wav", "dog", 0.1, 0.3], ["b.wav", "", "", ""], ["a.wav", "cat", 0.2, 7], ["c.wav", "dog", 0.0, 1.1]]
    rows += [["c.wav", "dog", 1.5, 2.0]]
    report = make_task(write_csv(tmp_path / "barks.csv", "path,label,start_s,end_s", rows), tmp_path / "out", folds=3)
    task = read_task(report.folder)
    assert (task.embedding_type, task.prediction_type) == ("event", "multilabel")
    assert task.event_grid == {"median_filter_ms": [150], "min_duration": [50]} and not task.stop_on_score
    assert {name: items for files in task.files.values() for name, items in files.items()} == {
        "a.wav": [Event("dog", 100.0, 300.0), Event("cat", 200.0, 1000.0)],
        "b.wav": [],
        "c.wav": [Event("dog", 0.0, 1000.0)],
    }
    assert "1 events begin after the end of their clip and were dropped" in report.notes


def test_clips_are_cut_and_padded_at_their_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("melmask.audio.files._BLOCK_FRAMES", 1000)  # The cut is inside the fourth block.
    write_sounds(tmp_path, ["a.wav", "b.wav"], seconds=0.3)
    write_sounds(tmp_path, ["long.wav"], seconds=0.9)
    rows = [["a.wav", "x"], ["b.wav", "y"], ["long.wav", "y"]]
    table = write_csv(tmp_path / "t.csv", "path,label", rows)
    report = make_task(table, tmp_path, folds=3, duration_s=0.4, rates_hz=(RATE_HZ,))
    assert "1 clip cut to 0.4 s, and 2 padded to it" in report.notes
    for name in ("a", "long"):
        (written,) = report.folder.glob(f"8000/*/{name}.wav")
        original = soundfile.read(tmp_path / f"{name}.wav", dtype="int16")[0][:3200]
        expected = np.pad(original, (0, 3200 - len(original)))
        assert np.array_equal(soundfile.read(written, dtype="int16")[0], expected)


@pytest.mark.parametrize(
    ("lengths_s", "duration_s", "expected"),
    [
        ([0.5, 0.502, 0.499], "auto", 0.51),
        ([0.5] * 24 + [2.0], "auto", 0.5),
        ([0.5, 0.5, 0.7], "auto", None),
        ([0.5, 0.5, 0.5], "native", None),
    ],
)
def test_the_length_of_clips(tmp_path, lengths_s, duration_s, expected):
    for i, seconds in enumerate(lengths_s):
        write_sounds(tmp_path, [f"{i}.wav"], seconds)
    rows = [[f"{i}.wav", "xy"[i % 2]] for i in range(len(lengths_s))]
    report = make_task(write_csv(tmp_path / "t.csv", "path,label", rows), tmp_path, folds=3, duration_s=duration_s)
    assert report.sample_duration_s == read_task(report.folder).sample_duration_s == expected


def test_files_that_cannot_be_read_are_left_out_and_listed(labeled, tmp_path):
    table = labeled("path,label", animals)
    (tmp_path / "sounds" / "c05.wav").write_text("this is no sound\n" * 50)
    (tmp_path / "sounds" / "c06.wav").unlink()
    report = make_task(table, tmp_path)
    assert (report.clips, report.failed) == (10, 2)
    assert "2 files could not be read and skipped; failed.csv in the task folder has the reasons" in report.notes
    rows = list(csv.reader((report.folder / "failed.csv").read_text().splitlines()))
    assert [Path(row[0]).name for row in rows] == ["path", "c05.wav", "c06.wav"]
    assert rows[2][1].endswith("does not exist; check the path")
    assert not list(report.folder.rglob("c05.wav"))


def test_nothing_is_left_where_no_file_can_be_read(tmp_path):
    for name in ("a.wav", "b.wav", "c.wav"):
        (tmp_path / name).touch()
    table = write_csv(tmp_path / "t.csv", "path,label", [["a.wav", "x"], ["b.wav", "y"], ["c.wav", "y"]])
    with pytest.raises(InputError, match=r"none of 3 files could be read; the first: .*a\.wav is empty"):
        make_task(table, tmp_path / "out", folds=3)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_task_is_replaced_only_if_that_is_wanted(labeled, tmp_path):
    table = labeled("path,label", animals)
    folder = make_task(table, tmp_path / "out").folder
    with pytest.raises(OutputError, match="pets-v1-full exists; choose another --name"):
        make_task(table, tmp_path / "out", folds=3)
    assert len(read_task(folder).splits) == 5
    make_task(table, tmp_path / "out", folds=3, overwrite=True)
    assert len(read_task(folder).splits) == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pets-v1-full"]


def test_a_folder_that_is_no_task_is_never_replaced(labeled, tmp_path):
    precious = tmp_path / "pets-v1-full" / "precious.txt"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(OutputError, match="is no task folder"):
        make_task(labeled("path,label", animals), tmp_path, overwrite=True)
    assert precious.exists()


def test_names_are_different_and_come_from_the_path():
    paths = "/d/x/a.wav /d/x/a.flac /d/x/A.ogg /d/y/z/b c.wav /d/y_z_b_c.wav /d/.hidden.wav"
    names = wav_names([Path(path) for path in re.split(r" (?=/)", paths)])
    assert names == ["x_a.wav", "x_a_2.wav", "x_A_3.wav", "y_z_b_c.wav", "y_z_b_c_2.wav", "hidden.wav"]
    long = wav_names([Path("/d") / ("ä" * 300 + end) for end in ("1.wav", "2.wav")])
    assert all(len(name.encode()) < 200 for name in long) and [name[-5] for name in long] == ["1", "2"]


def test_new_folds_keep_groups_whole_and_classes_even(tmp_path):
    rng = np.random.default_rng(0)
    rows = [[f"{i}.wav", "abc"[rng.integers(3)], f"g{rng.integers(60)}"] for i in range(600)]
    (tmp_path / "0.wav").touch()
    table = read_clips(write_csv(tmp_path / "t.csv", "path,label,group", rows))
    division, again, other = (divide(table, TaskOptions(folds=4, seed=seed)) for seed in (0, 0, 1))
    assert division == again and division.split_of != other.split_of
    folds_of_group = {}
    for group, fold in zip(table.groups or [], division.split_of, strict=True):
        folds_of_group.setdefault(group, set()).add(fold)
    assert all(len(folds) == 1 for folds in folds_of_group.values())
    counts = Counter(zip(division.split_of, [names[0] for names in table.names], strict=True))
    total = Counter(names[0] for names in table.names)
    assert all(abs(counts[fold, name] / total[name] - 0.25) < 0.03 for fold in division.splits for name in "abc")


def test_single_clips_are_spread_exactly(tmp_path):
    (tmp_path / "0.wav").touch()
    rows = [[f"{i}.wav", "rare" if i % 10 == 0 else "common"] for i in range(100)]
    table = read_clips(write_csv(tmp_path / "t.csv", "path,label", rows))
    part_of = spread(table, list(range(100)), 5, seed=3)
    assert Counter(part_of[::10]) == dict.fromkeys(range(5), 2)
    assert Counter(part_of) == dict.fromkeys(range(5), 20)


@pytest.mark.parametrize(
    ("header", "row", "scheme", "mode"),
    [
        ("path,label,fold,split", lambda i: [str(i % 3), ["train", "test"][i % 2]], None, "presplit_kfold"),
        ("path,label,fold,split", lambda i: [str(i % 3), ["train", "test"][i % 2]], "split", "trainvaltest"),
        ("path,label,fold,split", lambda i: [str(i % 3), ["train", "test"][i % 2]], "new", "new_split_kfold"),
        ("path,label,fold,split", lambda i: [str(i % 2), ["train", "test"][i % 2]], None, "trainvaltest"),
        ("path,label,fold", lambda i: [["train", "val", "test"][i % 3]], None, "trainvaltest"),
        ("path,label,split", lambda i: ["train"], None, "new_split_kfold"),
    ],
)
def test_which_division_a_table_gets(labeled, header, row, scheme, mode):
    table = read_clips(labeled(header, lambda i: [*animals(i), *row(i)]))
    assert divide(table, TaskOptions(scheme=scheme)).mode == mode


def test_numbers_are_labels_as_the_kit_reads_them(labeled, tmp_path):
    report = make_task(labeled("path,label", lambda i: [f"0{i % 2}"]), tmp_path)
    assert read_task(report.folder).labels == ("0", "1")
    assert report.notes == ("labels are written as the HEAR kit reads them, '00' as '0'",)


def test_classes_that_a_split_lacks_are_named(labeled, tmp_path):
    table = labeled("path,label,fold", lambda i: ["rare" if i == 0 else animals(i)[0], str(i % 3)])
    notes = make_task(table, tmp_path).notes
    gap = "has no clip of 1 of 3 classes (rare), so a mean over classes says little about it"
    assert notes == (f"fold01 {gap}", f"fold02 {gap}")


def pets(i):
    return [*animals(i), "1"]


@pytest.mark.parametrize(
    ("header", "row", "options", "error", "message"),
    [
        ("path,label", animals, {"folds": 2}, ConfigError, "2 folds were asked for; expected 3 or more"),
        ("path,label", animals, {"folds": 13}, InputError, "13 splits need 13 clips or more, found 12"),
        ("path,label,group", pets, {}, InputError, "5 splits need 5 groups or more, found 1"),
        ("path,label,fold", pets, {"scheme": "fold"}, InputError, "has 1 as folds; expected 3 or more"),
        ("path,label", animals, {"scheme": "split"}, InputError, "splits are none; expected train and test"),
        ("path,label", animals, {"name": "a/b"}, ConfigError, "the task's name is 'a/b'"),
        ("path,label", animals, {"duration_s": -1.0}, ConfigError, "duration is -1.0; expected seconds, auto or"),
        ("path,label", animals, {"duration_s": "long"}, ConfigError, "duration is 'long'"),
        ("path,label", animals, {"rates_hz": ()}, ConfigError, "sample rates are none"),
        ("path,label,labels", pets, {}, InputError, "has columns `label` and `labels`; say which counts"),
        ("path,lables", animals, {}, InputError, "no column `label`"),
        ("path,labels", lambda i: [""], {}, InputError, "no clip has a label"),
        ("path,label,start_s", pets, {}, InputError, "no column `end_s`"),
        (
            "path,label,start_s,end_s",
            lambda i: ["dog", "2", "1"],
            {},
            InputError,
            "row 1 after the header: label 'dog'",
        ),
        ("path,label,start_s,end_s", lambda i: ["dog", "", "1"], {}, InputError, "from '' to '1'; expected a label"),
        ("path,label", lambda i: ["None" if i else "dog"], {}, InputError, "reads label 'None' as a missing value"),
        ("path,label", lambda i: ["01" if i else "1"], {}, InputError, "the HEAR kit reads some of"),
    ],
)
def test_what_cannot_become_a_task_is_refused_in_one_line(labeled, tmp_path, header, row, options, error, message):
    with pytest.raises(error, match=re.escape(message)) as refusal:
        make_task(labeled(header, row), tmp_path / "out", **options)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_words_that_are_no_kind_or_scheme_are_refused():
    # Without the tests' own type check, as for a user.
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        for options, message in (
            ({"scheme": "random"}, "scheme is 'random'; expected one of fold, split, new"),
            ({"kind": "scene"}, "kind of labels is 'scene'; expected one of multiclass, multilabel, event"),
        ):
            with pytest.raises(ConfigError, match=message):
                TaskOptions(**options)
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


def test_the_rows_of_a_clip_have_to_agree(tmp_path):
    write_sounds(tmp_path, ["a.wav"])
    rows = [["a.wav", "dog", 0, 1, "train"], ["a.wav", "dog", 2, 3, "test"]]
    table = write_csv(tmp_path / "t.csv", "path,label,start_s,end_s,split", rows)
    with pytest.raises(InputError, match=r"a\.wav has split 'train' and 'test' in different rows"):
        read_clips(table)
