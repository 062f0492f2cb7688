"""Folders of published data sets, and of users' own, read as the tables that they are."""

import json
import re

import pytest

from melmask.errors import InputError
from melmask.labels.options import TableOptions
from melmask.labels.splits import make_splits
from melmask.labels.tables import Event, read_clips, read_labels


@pytest.fixture
def made(tmp_path):
    """made({"a.csv": "text", "b.wav": ""}) -> a folder with these files."""

    def make(files):
        folder = tmp_path / "data-set"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")
        return folder

    return make


def test_esc_50_has_its_folds(made, capsys):
    rows = "".join(f"1-{i}-A-0.wav,{i % 5 + 1},{i % 2},{'dog' if i % 2 else 'rain'},True,s{i},A\n" for i in range(20))
    files = {f"audio/1-{i}-A-0.wav": "" for i in range(20)}
    folder = made({**files, "meta/esc50.csv": "filename,fold,target,category,esc10,src_file,take\n" + rows})
    table = read_labels(folder)
    assert table.paths[3] == folder / "audio" / "1-3-A-0.wav" and table.class_names == ["dog", "rain"]
    assert [split.name for split in make_splits(table)] == [f"fold {i}" for i in range(1, 6)]
    assert "takes path from `filename`, label from `category`, group from `src_file`" in capsys.readouterr().err
    assert read_labels(folder / "meta" / "esc50.csv") == table
    assert read_labels(folder, TableOptions(label_column="target")).class_names == ["0", "1"]


def test_urbansound8k_has_whole_slices(made, capsys):
    rows = "1-3-0-0.wav,1,0.5,4.5,1,1,3,dog_bark\n2-2-0-0.wav,2,7,11,1,2,2,children_playing\n"
    files = {"audio/fold1/1-3-0-0.wav": "", "audio/fold2/2-2-0-0.wav": ""}
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    folder = made({**files, "metadata/UrbanSound8K.csv": header + rows})
    table = read_labels(folder)
    assert [path.relative_to(folder).as_posix() for path in table.paths] == list(files)
    assert (table.labels, table.folds, table.groups) == (["dog_bark", "children_playing"], ["1", "2"], ["1", "2"])
    assert "which are times in the original recordings: whole files are taken" in capsys.readouterr().err
    assert read_clips(folder / "metadata" / "UrbanSound8K.csv").kind == "multiclass"


def test_fsd50k_has_several_labels_and_the_evaluation_set_as_test(made):
    ground = "FSD50K.ground_truth"
    folder = made(
        {
            **{f"FSD50K.dev_audio/{i}.wav": "" for i in (64, 65)},
            "FSD50K.eval_audio/37.wav": "",
            f"{ground}/dev.csv": 'fname,labels,mids,split\n64,"Bark,Dog","/m/1,/m/2",train\n65,Rain,/m/3,val\n',
            f"{ground}/eval.csv": 'fname,labels,mids\n37,"Dog,Rain","/m/2,/m/3"\n',
            f"{ground}/vocabulary.csv": "0,Bark,/m/1\n1,Dog,/m/2\n2,Rain,/m/3\n",
        }
    )
    table = read_clips(folder)
    assert (table.kind, table.splits) == ("multilabel", ["train", "valid", "test"])
    assert table.targets == [["Bark", "Dog"], ["Rain"], ["Dog", "Rain"]]
    assert [path.relative_to(folder).as_posix() for path in table.paths] == [
        "FSD50K.dev_audio/64.wav",
        "FSD50K.dev_audio/65.wav",
        "FSD50K.eval_audio/37.wav",
    ]
    assert read_clips(folder / ground / "dev.csv").splits == ["train", "valid"]


def test_speech_commands_has_its_lists(made, capsys):
    names = [f"{word}/{who}_nohash_{i}.wav" for word in ("no", "yes") for who in ("ab", "cd", "ef") for i in (0, 1)]
    folder = made(
        {
            **dict.fromkeys(names, ""),
            "_background_noise_/pink_noise.wav": "",
            "testing_list.txt": "no/ab_nohash_0.wav\nyes/ab_nohash_0.wav\n",
            "validation_list.txt": "yes/cd_nohash_1.wav\n",
        }
    )
    table = read_labels(folder)
    assert table.class_names == ["no", "yes"] and table.groups is not None and set(table.groups) == {"ab", "cd", "ef"}
    parts = {f"{path.parent.name}/{path.name}": part for path, part in zip(table.paths, table.splits, strict=True)}
    assert parts == dict.fromkeys(names, "train") | {
        "no/ab_nohash_0.wav": "test",
        "yes/ab_nohash_0.wav": "test",
        "yes/cd_nohash_1.wav": "valid",
    }
    said = capsys.readouterr().err
    assert "leaves out 1 sounds in _background_noise_" in said
    assert "takes the names of its 2 folders for labels" in said and "testing_list.txt" in said


@pytest.mark.parametrize("metadata", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("layout", ["flat", "splits in names", "splits in folders", "data"])
def test_audiofolder(made, metadata, layout):
    def text(names):
        if metadata.endswith(".csv"):
            return "file_name,label\n" + "".join(f"{name},{name[-5]}\n" for name in names)
        return "".join(json.dumps({"file_name": name, "label": name[-5]}) + "\n" for name in names)

    names = ["train/a.wav", "train/b.wav", "validation/a.wav", "test/b.wav"]
    if layout == "flat":
        files = {name.replace("/", "_"): "" for name in names}
        files[metadata] = text(list(files))
    elif layout == "splits in names":
        files = {**dict.fromkeys(names, ""), metadata: text(names)}
    else:
        top = "data/" if layout == "data" else ""
        files = {top + name: "" for name in names}
        for part in ("train", "validation", "test"):
            own = [name.partition("/")[2] for name in names if name.startswith(part)]
            files[f"{top}{part}/{metadata}"] = text(own)
    table = read_labels(made(files))
    found = dict(zip((path.stem[-1] + path.parent.name for path in table.paths), table.labels, strict=False))
    assert sorted(table.labels) == ["a", "a", "b", "b"] and all(key[0] == label for key, label in found.items())
    splits = None if layout == "flat" else ["test", "train", "train", "valid"]
    assert (table.splits and sorted(table.splits)) == splits


def test_parts_of_files_in_one_split_stay_parts(made, capsys):
    train = "file_name,label,start_s,end_s,group\na.wav,x,0.5,1.5,g\n"
    files = {"train/a.wav": "", "test/b.wav": "", "train/metadata.csv": train}
    table = read_labels(made({**files, "test/metadata.csv": "file_name,label\nb.wav,y\n"}))
    assert sorted((sound.start_s, sound.end_s) for sound in table.sounds) == [(0.0, None), (0.5, 1.5)]
    assert table.groups is None and "some of its tables have no `group`, so it is not used" in capsys.readouterr().err


def test_folders_of_classes(made, capsys):
    files = ["top/cat/1.wav", "top/cat/more/2.flac", "top/dog/1.wav", "top/dog/.hidden.txt", "top/readme.txt"]
    folder = made(dict.fromkeys(files, ""))
    table = read_labels(folder)
    assert table.labels == ["cat", "cat", "dog"] and table.splits is None
    made({"top/loose.wav": ""})
    assert read_labels(folder) == table
    assert "leaves out 1 sounds that are in no folder of a class" in capsys.readouterr().err


def test_folders_of_classes_below_folders_of_splits(made):
    table = read_labels(
        made(dict.fromkeys(["Train/cat/1.wav", "Train/dog/2.wav", "test/cat/3.wav", "test/dog/4.wav"], ""))
    )
    assert (table.labels, table.splits) == (["cat", "dog", "cat", "dog"], ["train", "train", "test", "test"])


def test_annotations_beside_the_sounds(made, capsys):
    raven = "Selection\tView\tBegin Time (s)\tEnd Time (s)\tSpecies\n1\tSpectrogram 1\t1.0\t2.0\trobin\n"
    folder = made(
        {
            **dict.fromkeys(["one.wav", "two.wav", "three.wav", "four.wav"], ""),
            "one.txt": "0.5\t1.25\twren\n",
            "two.Table.1.selections.txt": raven,
            "three.txt": "what was said in three.wav\n",
            "notes.txt": "0.5\t1.25\twren\n",
        }
    )
    table = read_clips(folder)
    events = dict(zip((path.name for path in table.paths), table.targets, strict=True))
    assert events == {"one.wav": [Event("wren", 500.0, 1250.0)], "two.wav": [Event("robin", 1000.0, 2000.0)]}
    said = capsys.readouterr().err
    assert "leaves out 1 texts that are no such table" in said and "leaves out 2 sounds that no table is about" in said


def test_a_folder_with_a_single_table_is_that_table(made, capsys):
    folder = made({"x/1.wav": "", "y/2.wav": "", "labels.csv": "filename,label\nx/1.wav,b\ny/2.wav,a\n"})
    assert read_labels(folder).labels == ["b", "a"]
    assert "labels.csv: takes path from `filename`" in capsys.readouterr().err
    # A table about something else does not hide the folders.
    made({"labels.csv": "length,rate\n1,2\n"})
    assert read_labels(folder).labels == ["x", "y"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.md": ""}, "is no folder of labeled sounds; expected class folders, a table"),
        ({"cat/1.wav": ""}, "is no folder of labeled sounds"),
        ({"1.wav": "", "a.csv": "path\n", "b.csv": "path\n"}, "holds 2 tables, a.csv and others; give one of them"),
        ({"FSD50K.ground_truth/vocabulary.csv": ""}, "has no dev.csv or eval.csv; unpack the data set whole"),
        ({"train/1.wav": "", "test/2.wav": ""}, "has neither metadata.csv nor a folder for each class"),
    ],
)
def test_a_folder_that_is_none_of_these_is_refused(made, files, message):
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        read_labels(made(files))
    assert "\n" not in str(refusal.value)
