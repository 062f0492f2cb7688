"""Tables in the forms, with the columns and with the paths that programs and data sets write."""

import json
import math
import os
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from melmask.audio.parts import Sound
from melmask.errors import ConfigError, InputError
from melmask.labels.options import TableOptions
from melmask.labels.segments import files_as_groups
from melmask.labels.sources import find_sounds
from melmask.labels.tables import Event, keep_rows, read_clips, read_labels

ROWS = "path,label\na.wav,x\nb.wav,y\n"


@pytest.fixture
def folder(tmp_path):
    """A folder that holds a.wav, b.wav and c.wav."""
    for name in "abc":
        (tmp_path / f"{name}.wav").touch()
    return tmp_path


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def names(table):
    return [path.name for path in table.paths]


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("t.csv", ROWS, ""),
        ("t.csv", ROWS.replace(",", ";"), ""),
        ("t.csv", ROWS.replace(",", "\t"), ""),
        ("t.tsv", ROWS.replace(",", "\t"), ""),
        ("t.txt", ROWS.replace(",", "\t"), ""),
        ("t.TSV", ROWS, ""),
        ("t.csv", ROWS.replace("\n", "\r\n").encode("utf-8-sig"), ""),
        ("t.csv", ROWS.replace("\n", "\r"), ""),
        ("t.csv", ROWS.encode("utf-16"), ""),
        ("t.csv", b"\xfe\xff" + ROWS.replace(",", "\t").encode("utf-16-be"), ""),
        ("t.csv", ROWS.encode("utf-16-le"), "has no byte order mark, and is read as UTF-16-LE"),
        ("t.csv", ROWS.encode("utf-16-be"), "has no byte order mark, and is read as UTF-16-BE"),
        ("t.csv", ("sep=;\r\n" + ROWS.replace(",", ";")).encode("utf-8-sig"), ""),
        ("t.csv", '"sep=\t"\n' + ROWS.replace(",", "\t"), ""),
        ("t.csv", "\r\n" + ROWS.replace("\n", "\n,\n \t,\n\n"), ""),
        ("t.csv", ROWS.replace("\n", ",,\n").replace("label,,", "label"), ""),
        ("t.csv", '"path","label"\n"a.wav","x"\n"b.wav","y"\n', ""),
        ("t.csv", "a.wav,x\nb.wav,y\n", "has no header, so its columns are taken for path and label"),
        ("t.jsonl", "".join(json.dumps({"file_name": f"{n}.wav", "label": v}) + "\n\n" for n, v in ("ax", "by")), ""),
    ],
)
def test_every_form_gives_the_same_table(folder, capsys, name, content, note):
    table = read_labels(written(folder / name, content))
    assert (names(table), table.labels) == (["a.wav", "b.wav"], ["x", "y"])
    said = capsys.readouterr().err
    assert note in said and said.count("\n") == bool(note or "jsonl" in name)


def test_lists_as_pandas_writes_them_are_several_labels(folder):
    rows = 'a.wav,"[\'x\', ""it\'s""]"\nb.wav,[]\nc.wav,[\'y\']\n'
    table = read_clips(written(folder / "t.csv", f"path,label\n{rows}"))
    assert (table.kind, table.targets) == ("multilabel", [["x", "it's"], [], ["y"]])
    # Cells that only look like lists keep their brackets, and are judged in no time.
    like_lists = "path,label\na.wav,[x]\nb.wav,[" + "'a'  " * 1000 + "\n"
    table = read_clips(written(folder / "t.csv", like_lists))
    assert table.class_names[0].startswith("['a'")


def test_a_code_page_of_windows_is_read_with_a_word(folder, capsys):
    table = read_labels(written(folder / "t.csv", "path;label\r\na.wav;Möwe\r\nb.wav;Star\r\n".encode("cp1252")))
    assert table.labels == ["Möwe", "Star"]
    assert "not UTF-8, so it is read as Windows text (cp1252)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sentences", [['"Never closed', "plain", "last"], ['"One', 'two"', "last"], ['a "b', "c", '"']]
)
def test_a_quotation_mark_in_a_tsv_swallows_no_row(folder, sentences):
    rows = "".join(f"{n}.wav\t{s}\t{n}\n" for n, s in zip("abc", sentences, strict=True))
    table = read_labels(written(folder / "t.tsv", "path\tsentence\tlabel\n" + rows))
    assert (names(table), table.labels) == (["a.wav", "b.wav", "c.wav"], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", 'path,label\na.wav,x\nb.wav,"y\nc.wav,z\n', "line 3 cannot be split"),
        ("t.csv", "path,label\n\n\na.wav,x,z\n", "t.csv, line 4: 3 values for 2 columns"),
        ("t.csv", "sep=;\npath;label\na.wav\n", "t.csv, line 3: 1 values for 2 columns"),
        ("t.csv", "path,label\na.wav,\x1b[2J\n", "it holds the byte 27"),
        ("t.csv", b"path,label\na.wav,\x81\n", "not a CSV table in UTF-8"),
        ("t.csv", "p" * 200_000, "line 1 cannot be split (field larger than field limit"),
        ("t.csv", b"PK\x03\x04rest", "is a spreadsheet file or an archive; save the sheet as CSV"),
        ("t.jsonl", "[1]\n", "line 1: is no JSON object"),
        ("t.jsonl", "{}\n" + "[" * 100_000, "line 2: is not JSON"),
        ("t.csv", "path,filename\n", "a header but no rows"),
        ("t.csv", "filename,file\na.wav,b.wav\n", "`filename` or `file` could be the paths; say which: --path-column"),
        ("t.csv", "path,species,category\na.wav,x,y\n", "`category` or `species` could be the label; say which"),
        (
            "t.csv",
            "path,Code\na.wav,x\n",
            "no column `label`; columns are path, Code; add or rename one to `label`, or",
        ),
        (
            "t.csv",
            "name,label\na.wav,x\n",
            "no column `path`; columns are name, label; add or rename one to `path`, or",
        ),
    ],
)
def test_what_is_no_such_table_is_refused_in_one_line(folder, name, content, message):
    path = written(folder / name, content)
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        read_labels(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(InputError, match="is a pipe or device"):
        read_labels(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("header", "note"),
    [
        ("path,label", ""),
        ("Path,LABEL", ""),
        ("filename,category", "takes path from `filename`, label from `category`"),
        ("slice_file_name,class", "takes path from `slice_file_name`, label from `class`"),
        ("Begin File,Species", "takes path from `Begin File`, label from `Species`"),
        ("file name,Class Name", "takes path from `file name`, label from `Class Name`"),
        ("audio,tag", "takes path from `audio`, label from `tag`"),
    ],
)
def test_known_names_of_columns_are_taken_with_a_word(folder, capsys, header, note):
    table = read_labels(written(folder / "t.csv", ROWS.replace("path,label", header)))
    assert (names(table), table.labels) == (["a.wav", "b.wav"], ["x", "y"])
    said = capsys.readouterr().err
    assert note in said and bool(said) == bool(note)


def test_columns_are_named_where_their_names_are_not_known(folder):
    path = written(folder / "t.csv", "Recording,species,Quality\na.wav,wren,good\nb.wav,wren,bad\n")
    table = read_labels(path, TableOptions(path_column="recording", label_column="quality"))
    assert (names(table), table.labels) == (["a.wav", "b.wav"], ["good", "bad"])
    with pytest.raises(InputError, match="no column `Rec`, as --path-column says; columns are Recording, species"):
        read_labels(path, TableOptions(path_column="Rec"))


def test_groups_and_splits_under_other_names(folder, capsys):
    rows = "a.wav,x,ann,train\nb.wav,y,bob,Validation\nc.wav,x,ann,testing\n"
    table = read_labels(written(folder / "t.csv", "path,label,speaker_id,subset\n" + rows))
    assert (table.groups, table.splits) == (["ann", "bob", "ann"], ["train", "valid", "test"])
    assert "takes group from `speaker_id`, split from `subset`" in capsys.readouterr().err
    rows = rows.replace("ann", "").replace("testing", "C")
    table = read_labels(written(folder / "t.csv", "path,label,speaker_id,set\n" + rows))
    assert (table.groups, table.splits) == (None, None) and not capsys.readouterr().err


def test_only_columns_that_say_so_hold_several_labels(folder, capsys):
    def read(header, *cells):
        rows = "".join(f"{n}.wav{cell}\n" for n, cell in zip("abc", cells, strict=True))
        return read_clips(written(folder / "t.csv", f"path,{header}\n{rows}"))

    table = read("labels", ',"dog,animal"', ',"cat, animal"', ",dog")
    assert table.kind == "multilabel" and table.targets == [["dog", "animal"], ["cat", "animal"], ["dog"]]
    assert "holds several labels in a cell, separated by ','" in capsys.readouterr().err
    assert read("category", ",dog|animal", ",cat", ",dog").targets == [["dog", "animal"], ["cat"], ["dog"]]
    # A name with a comma in it is one label, unless its parts come back in other company.
    assert read("label", ',"Crying, sobbing"', ",dog", ',"Crying, sobbing"').kind == "multiclass"
    assert read("label", ',"dog,animal"', ',"cat,animal"', ",dog").kind == "multilabel"
    table = read_labels(folder / "t.csv", several=True)
    assert (table.labels, table.class_names) == (["dog", "cat", "dog"], ["animal", "cat", "dog"])
    assert table.targets.tolist() == [[True, False, True], [True, True, False], [False, False, True]]
    assert keep_rows(table, np.array([False, True, True])).names == [["cat", "animal"], ["dog"]]
    with pytest.raises(InputError, match="several labels in a cell, separated by ',', and here each clip has one"):
        read_labels(folder / "t.csv")


RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "path,label,start_s,end_s\na.wav,wren,0.5,1.25\n"),
        ("t.csv", "file;event_label;start;end\na.wav;wren;0,5;1,25\n"),
        ("t.tsv", "filename\tonset\toffset\tevent_label\na.wav\t0.5\t1.25\twren\n"),
        ("t.csv", "path,label,onset_ms,offset_ms\na.wav,wren,500,1250\n"),
        ("a.txt", "0.500000\t1.250000\twren\n"),
        ("a.txt", "0,500000\t1,250000\twren\n\\\t300.0\t4000.0\n"),
        ("a.Table.1.selections.txt", f"{RAVEN}\tSpecies\n1\tSpectrogram 1\t1\t0.5\t1.25\t300\t900\twren\n"),
        ("t.txt", f"{RAVEN}\tBegin File\tAnnotation\n1\tSpectrogram 1\t1\t0.5\t1.25\t300\t900\ta.wav\twren\n"),
        # A selection has a row for each view, and its times count over all files of a sequence.
        (
            "t.txt",
            f"{RAVEN}\tBegin Path\tBegin File\tFile Offset (s)\tSpecies\n"
            + "".join(
                f"1\t{view} 1\t1\t60.5\t61.25\t300\t900\tC:\\rec\\a.wav\ta.wav\t0.5\twren\n"
                for view in ("Waveform", "Spectrogram")
            ),
        ),
    ],
)
def test_tables_of_annotation_programs_are_events(folder, name, content):
    table = read_clips(written(folder / name, content))
    assert (table.kind, names(table)) == ("event", ["a.wav"])
    assert table.targets == [[Event("wren", 500.0, 1250.0)]]


@pytest.mark.parametrize(
    ("header", "cells", "note"),
    [
        ("start,end", "1,2", "takes each of its 2 rows for a segment"),
        ("start,end", "2020-01-01,2020-01-02", "has `start` and `end`, which are no times in seconds"),
        ("start_time,duration", "10:00:00,5", "has `start_time` and `duration`, which are no times in seconds"),
        ("offset,rate", "3,8000", "has `offset` without its counterpart, so it is not used"),
        ("score,presence", "2,0", "has `score`, `presence`, not used here: every row counts in full"),
        ("Channel", "2", "has `Channel`, which is not used: every row is about all channels"),
        ("start,end", ",", ""),
    ],
)
def test_a_column_that_changes_what_a_row_means_is_never_ignored_in_silence(folder, capsys, header, cells, note):
    path = written(folder / "t.csv", f"path,label,{header}\na.wav,x,{cells}\nb.wav,y,{cells}\n")
    try:
        read_labels(path)
        said = capsys.readouterr().err
    except InputError as error:
        said = str(error)
    assert note in said and bool(said) == bool(note)


def paths_of(*sources, options=TableOptions()):
    sounds = find_sounds(sources, options)
    assert not any(sound.is_part for sound in sounds)
    return [sound.path for sound in sounds]


@pytest.mark.parametrize(
    ("header", "times", "found"),
    [
        ("start_s,end_s", "0.5,1.25", (0.5, 1.25)),
        ("start,end", "1,2", (1.0, 2.0)),
        ("onset,offset", ",2", (0.0, 2.0)),
        ("start_ms,end_ms", "500,", (0.5, None)),
        ("offset,duration", "0.5,1.5", (0.5, 2.0)),
        ("start,duration_s", "0.5,", (0.5, None)),
        ("Begin Time (s),End Time (s)", '"0,5","1,25"', (0.5, 1.25)),
        ("onset,duration", '"0,5","0,75"', (0.5, 1.25)),
    ],
)
def test_rows_with_times_are_parts_of_files(folder, capsys, header, times, found):
    table = written(folder / "t.csv", f"path,{header},label\na.wav,{times},x\na.wav,7,9,y\na.wav,7,9,y\n")
    first, _ = find_sounds([table])
    assert (first.path, first.start_s, first.end_s) == (folder / "a.wav", *found)
    assert "takes each of its 3 rows for a segment of its file, of which there are 1" in capsys.readouterr().err


@pytest.mark.parametrize("times", ["2,1", "1,1", "-1,2", "x,2", "1,nan", "1,1e999"])
def test_a_row_with_wrong_times_fails_alone(folder, times):
    table = written(folder / "t.csv", f"path,start,end\na.wav,{times}\na.wav,1,2\n")
    wrong, right = find_sounds([table])
    assert "a segment cannot be from" in wrong.fault and not right.fault
    assert wrong.path == right.path == folder / "a.wav"


@pytest.mark.parametrize(
    ("header", "kind", "of_clips"),
    [
        ("path,label,start,end", None, True),
        ("path,label,start_s,end_s", None, False),
        ("path,event_label,start,end", None, False),
        ("path,label,onset,offset", None, False),
        ("path,label,start,end", "event", False),
        ("path,label,onset,offset", "multiclass", True),
        ("path,label,onset,offset", "multilabel", True),
    ],
)
def test_one_rule_says_whether_rows_with_times_are_clips_or_events(folder, capsys, header, kind, of_clips):
    table = read_clips(written(folder / "t.csv", f"{header}\na.wav,x,0,1\na.wav,y,1,2\n"), kind)
    assert (table.kind != "event") == of_clips and len(table.sounds) == (2 if of_clips else 1)
    said = capsys.readouterr().err
    assert ("takes each row for a clip of its own; with --kind event" in said) == (of_clips and kind is None)
    assert ("takes its rows for events within whole files; with --kind multiclass" in said) == (
        not of_clips and kind is None
    )


def test_segments_of_one_file_stay_on_one_side_of_a_split(folder, capsys):
    rows = "".join(f"{n % 5}.wav,{'xy'[n % 2]},{n},{n + 1}\n" for n in range(20))
    for name in range(5):
        written(folder / f"{name}.wav", b"")
    table = read_labels(written(folder / "t.csv", f"path,label,start,end\n{rows}"))
    assert len(set(table.groups)) == 5 and "segments of one file stay on one side" in capsys.readouterr().err
    table = read_labels(written(folder / "t.csv", "path,label,start,end\na.wav,x,0,1\na.wav,y,1,2\n"))
    assert table.groups is None and "too few files to hold whole ones out (1)" in capsys.readouterr().err


def test_of_segments_of_four_files_no_fifth_fold_could_be_held_out(folder, capsys):
    for name in range(4):
        written(folder / f"{name}.wav", b"")
    rows = "".join(f"{n % 4}.wav,{'xy'[n % 2]},{n},{n + 1}\n" for n in range(20))
    assert read_labels(written(folder / "t.csv", f"path,label,start,end\n{rows}")).groups is None
    assert "too few files to hold whole ones out (4)" in capsys.readouterr().err


def test_segments_of_files_of_one_name_in_two_folders_are_two_groups():
    paths = [*(f"{number}.wav" for number in range(4)), "other/0.wav"]
    groups, _ = files_as_groups([Sound(Path(path), start_s, start_s + 1) for path in paths for start_s in (0.0, 1.0)])
    assert len(set(groups)) == 5


@pytest.mark.parametrize(
    ("on_disk", "in_table"),
    [
        ("a.wav", "./a.wav"),
        ("wavs/a.wav", "wavs\\a.wav"),
        ("wavs/a.WAV", "Wavs/A.wav"),
        ("clips/a.wav", "a.wav"),
        ("audio/fold1/a.wav", "a.wav"),
        ("audio/fold1/a.wav", "fold1/a.wav"),
        ("a.flac", "a"),
        ("clips/1234.5.wav", "1234.5"),
        (unicodedata.normalize("NFD", "Möwe.wav"), unicodedata.normalize("NFC", "Möwe.wav")),
        ("wavs/a.wav", "C:\\Users\\me\\wavs\\a.wav"),
        ("a.wav", "D:/a.wav"),
        ("a.wav", "\\\\server\\share\\a.wav"),
        ("wavs/a.wav", "/home/somebody/wavs/a.wav"),
    ],
)
@pytest.mark.parametrize("root", ["", "meta", "root"])
def test_a_path_is_found_however_it_is_written(tmp_path, capsys, on_disk, in_table, root):
    written(tmp_path / on_disk, b"")
    # The table lies beside the sounds, in a folder beside them, or far away.
    table = written(tmp_path / root / ("far/t.csv" if root == "root" else "t.csv"), f"path\n{in_table}\n")
    options = TableOptions(audio_root=tmp_path if root == "root" else None)
    assert paths_of(table, options=options) == [tmp_path / on_disk]
    assert ("not found as written" in capsys.readouterr().err) == (in_table != "./a.wav")


@pytest.mark.parametrize(
    ("first", "second", "in_table"), [("a.wav", "A.wav", "A.WAV"), ("x/a.wav", "y/a.wav", "a.wav")]
)
def test_a_path_that_could_be_two_files_is_refused(tmp_path, first, second, in_table):
    for name in (first, second):
        written(tmp_path / name, b"")
    with pytest.raises(
        InputError, match=f"{in_table}' could be .* or .*; write its path in full, or give --audio-root"
    ):
        find_sounds([written(tmp_path / "t.csv", f"path\n{in_table}\n")])


def test_two_ways_to_one_file_are_one_clip(tmp_path):
    written(tmp_path / "good" / "a.wav", b"")
    (tmp_path / "link").symlink_to("good")
    (tmp_path / "other.wav").symlink_to("good/a.wav")
    for other in ("link/a.wav", "link/../good/a.wav", "other.wav"):
        table = written(tmp_path / "t.csv", f"path,label\ngood/a.wav,x\n{other},y\n")
        with pytest.raises(InputError, match="is listed twice"):
            read_labels(table)
        events = f"path,label,start_s,end_s\ngood/a.wav,x,0,1\n{other},y,2,3\n"
        assert len(read_clips(written(tmp_path / "e.csv", events)).targets) == 1


def test_sources_keep_their_order_and_give_each_file_once(folder):
    a, b, c = (folder / f"{name}.wav" for name in "abc")
    table = written(folder / "list.csv", "path\na.wav\nb.wav\na.wav\n")
    assert paths_of(b, table, folder, b) == [b, a, c]


@pytest.mark.parametrize(("name", "separator"), [("list.csv", ","), ("list.tsv", "\t")])
def test_a_list_of_files_may_have_rows_without_any(folder, name, separator):
    rows = [("label", " Path"), ("dog", "a.wav"), ("cat", " /far/b.wav "), ("none", "")]
    text = "\ufeff" + "".join(separator.join(row) + "\n" for row in rows)
    assert paths_of(written(folder / name, text)) == [folder / "a.wav", Path("/far/b.wav")]


def test_names_reach_the_terminal_without_control_characters(folder, capsys):
    header = "filename,cat\u202eegory".replace("cat\u202eegory", "Label (\u202e)")
    read_labels(written(folder / "t.csv", f"{header}\na.wav,x\nb.wav,y\n"), TableOptions(label_column="Label (\u202e)"))
    said = capsys.readouterr().err
    assert "\\u202e" in said and "\u202e" not in said


def test_files_of_other_folders_are_not_taken_for_missing_ones(tmp_path):
    for name in ("other/a.wav", "another/a.wav", "mine/b.wav"):
        written(tmp_path / name, b"")
    table = written(tmp_path / "mine" / "t.csv", "path\na.wav\nb.wav\n")
    assert paths_of(table) == [tmp_path / "mine" / "a.wav", tmp_path / "mine" / "b.wav"]
    gone = "/gone/far/a.wav"
    assert paths_of(written(table, f"path\n{gone}\n")) == [Path(gone)]


_WHOLE = (
    ROWS,
    "filename\tonset\toffset\tevent_label\na.wav\t0\t1\tx\n",
    f"{RAVEN}\tFile Offset (s)\tBegin File\tSpecies\n1\tS\t1\t1\t2\t3\t4\t0\ta.wav\tw\n",
    '{"file_name":"a.wav","label":["x","y"]}\n{"file_name":"b.wav","label":"z"}\n',
    "0.5\t1\tw\n",
    "sep=;\npath;labels\na.wav;x,y\n",
)
_BITS = (b",", b"\t", b'"', b"\n", b"\r", b"\\", b"..", b"nan", b"1e999", b"C:\\", b"\xef\xbb\xbf", b"[[", b"9" * 5000)


def test_damaged_tables_are_read_or_refused(folder, capsys):
    chance = random.Random(0)
    for _ in range(400):
        content = chance.choice(_WHOLE).encode()
        for _ in range(chance.randrange(1, 5)):
            at, cut = chance.randrange(len(content) + 1), chance.randrange(3)
            content = content[:at] + chance.choice((*_BITS, b"", chance.randbytes(1))) + content[at + cut :]
        path = written(folder / f"a{chance.choice(('.csv', '.tsv', '.txt', '.jsonl'))}", content)
        for read in (read_labels, read_clips, lambda path: find_sounds([path])):
            try:
                read(path)
            except InputError as error:
                assert str(folder) in str(error)
        path.unlink()
    said = capsys.readouterr().err
    assert all(line.startswith(str(folder)) and line.isprintable() for line in said.splitlines())


def test_parquet_tables_are_read_without_their_vectors(folder, capsys):
    columns = {"path": ["a.wav", "b.wav"], "label": [["x", "y"], ["z"]], "take": [1.0, math.nan], "scene": [[0.5], [1]]}
    pq.write_table(pa.table(columns), folder / "t.parquet")
    table = read_clips(folder / "t.parquet")
    assert table.targets == [["x", "y"], ["z"]] and names(table) == ["a.wav", "b.wav"]
    assert "has `scene`: lists or other data, which are left out" in capsys.readouterr().err
    (folder / "t.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_clips(folder / "t.parquet")


def test_code_pages_can_be_named(folder):
    path = written(folder / "t.csv", "path,label\na.wav,зяблик\nb.wav,x\n".encode("cp1251"))
    assert read_labels(path, TableOptions(encoding="cp1251")).labels[0] == "зяблик"
    assert read_labels(path).labels[0] != "зяблик"
    for wrong in ("klingon", "base64", "cp\0"):
        with pytest.raises(ConfigError, match=r"--encoding is .* which is none"):
            read_labels(path, TableOptions(encoding=wrong))


def test_labels_without_text_are_left_out_with_a_word(folder, capsys):
    path = written(folder / "a.txt", "0.5\t1\twren\n2\t3\t\n4\t4\n")
    assert read_clips(path).targets == [[Event("wren", 500.0, 1000.0)]]
    assert "leaves out 2 labels without text" in capsys.readouterr().err
    # They are parts of the file all the same.
    assert len(find_sounds([path])) == 3
    with pytest.raises(InputError, match="none of its 1 labels has a text"):
        read_clips(written(folder / "b.txt", "2\t3\t\n"))


def test_videos_are_found_by_their_names_where_there_is_no_other_sound(folder):
    for name in ("v.mp4", "w.mp4", "w.wav"):
        written(folder / name, b"")
    assert paths_of(written(folder / "t.csv", "path\nv\nw\n")) == [folder / "v.mp4", folder / "w.wav"]


def test_spreadsheets_are_refused_with_what_to_do(folder):
    with pytest.raises(InputError, match="is a spreadsheet file or an archive; save the sheet as CSV in UTF-8"):
        find_sounds([written(folder / "t.xlsx", b"PK\3\4...")])
