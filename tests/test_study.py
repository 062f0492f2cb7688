"""`melmask study`: what it tries, how it resumes, what it chooses by, and what it says."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from melmask.audio.parts import Sound
from melmask.cli import main
from melmask.errors import ConfigError, InputError
from melmask.labels.tables import LabelTable
from melmask.pages.study import write_study_page
from melmask.recipes import recipe, with_settings
from melmask.study import judging
from melmask.study import study as work
from melmask.study.description import BUNDLED, read_study, study_from
from melmask.study.effects import effects_of, summary
from melmask.study.judging import TaskScore, judge, rows_of
from melmask.study.options import StudyOptions
from melmask.study.outcomes import (
    Outcome,
    check_same_study,
    failed_outcome,
    read_begun,
    run_folder,
    write_outcome,
    write_study,
)
from melmask.study.results import read_results, write_tables
from melmask.study.settings import points_of, pretrain_settings, runs_of
from melmask.study.study import Pages, judge_winner

RATE_HZ = 16000
PATCH = {"name": "patch", "settings": ["model.patch_mels", "model.patch_frames"], "values": [[16, 16], [8, 16]]}
RATIO = {"settings": "masking.ratio", "values": [0.5, 0.75]}


def study_of(**content):
    return study_from({"recipe": "demo", "axes": [PATCH, RATIO], **content}, "toy", Path("/x"))


def names(study):
    return [point.name for point in points_of(study)]


def test_the_axes_become_settings():
    grid = ["patch 16x16, ratio 0.5", "patch 16x16, ratio 0.75", "patch 8x16, ratio 0.5", "patch 8x16, ratio 0.75"]
    assert names(study_of()) == grid
    # Around the recipe, whose ratio is .75 and whose patches are 16x16.
    assert names(study_of(search="one")) == ["base", "patch 8x16", "ratio 0.5"]
    drawn = names(study_of(search="random", random_runs=2))
    assert len(drawn) == 2 and set(drawn) < set(grid) and drawn == names(study_of(search="random", random_runs=2))
    assert len(names(study_of(search="random", random_runs=9))) == 4
    study = study_of(seeds=[0, 3], settings={"front_end": {"mels": 64}})
    runs = runs_of(study)
    assert [run.seed for run in runs] == [0] * 4 + [3] * 4
    assert runs[0].name == "patch-16x16-ratio-0.5-seed-0" and len({run.name for run in runs}) == 8
    assert runs[0].point.front_end.mels == 64
    assert "model.mels=64" in pretrain_settings(runs[0].point.settings)


def test_settings_whose_names_differ_late_or_in_other_letters_have_folders_of_their_own():
    values = ["鳥", "犬", "a" * 150 + "1", "a" * 150 + "2"]
    runs = runs_of(study_of(axes=[{"setting": "run.wandb_project", "values": values}]))
    assert len({run.name for run in runs}) == 4 and all(run.name.isascii() for run in runs)


def test_a_setting_of_two_axes_has_the_value_that_is_tried():
    tokens = {"name": "tokens", "settings": ["model.patch_frames", "masking.ratio"], "values": [[8, 0.85]]}
    found = {
        point.name: with_settings(recipe("demo"), pretrain_settings(point.settings)).masking.ratio
        for point in points_of(study_of(search="one", axes=[RATIO, tokens]))
    }
    assert found == {"base": 0.75, "ratio 0.5": 0.5, "tokens 8x0.85": 0.85}


@pytest.mark.parametrize(
    ("content", "resolutions"),
    [
        ({"recipe": "tiny"}, {2}),
        ({"axes": [{"setting": "model.resolutions", "values": [1, 2]}]}, {1, 2}),
        ({"axes": [{"setting": "front_end.further_resolutions", "values": ["[]", '[{"window_ms": 64}]']}]}, {1, 2}),
        ({"settings": {"front_end": {"further_resolutions": [{"window_ms": 64}, {}]}}}, {3}),
    ],
)
@pytest.mark.parametrize("search", ["grid", "one"])
def test_a_store_has_the_resolutions_that_the_network_reads(content, resolutions, search):
    study = study_of(search=search, **content)
    found = set()
    for point in points_of(study):
        config = with_settings(recipe(study.recipe), pretrain_settings(point.settings))
        assert config.model.resolutions == point.front_end.resolutions
        found.add(config.model.resolutions)
    assert found == resolutions


@pytest.mark.parametrize("name", BUNDLED)
def test_every_setting_of_a_bundled_study_can_be_trained(name):
    study = read_study(name)
    points = points_of(study)
    for point in points:
        with_settings(recipe(study.recipe), [*pretrain_settings(point.settings), *study.budget])
        assert point.front_end.mels == 80
    assert points[0].name == "base"
    assert len(points) == {"paper": 23, "mine": 11}[name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"axis": []}, "unknown part of a study 'axis'; the nearest is 'axes'"),
        ({"axes": []}, "the axes are []; give at least one"),
        ({"axes": RATIO}, r"axes is one table; write \[\[axes\]\] with two brackets"),
        ({"axes": [{"settings": ["a.b", "a.c"], "values": [1]}]}, r"has the value \[1\] for 2 settings"),
        ({"axes": [{"setting": "a.b", "valeus": [1]}]}, "unknown part of an axis 'valeus'; the nearest is 'values'"),
        ({"axes": [{"setting": "a.b", "values": [{}]}]}, r"has the value \{\}; give numbers, words"),
        ({"minutes": 1, "steps": 2}, "minutes is 1.0 and steps 2; give one of them"),
        ({"minutes": "long"}, "minutes is 'long'; give a number"),
        ({"search": "all"}, "unknown search 'all'"),
        ({"axes": [RATIO, {**RATIO, "name": "b"}]}, "search is 'grid', and masking.ratio is on two axes"),
        ({"clips": -1}, "and clips from 0"),
        ({"settings": {"run.max_minutes": 5}}, "run.max_minutes would end runs before their budget"),
        ({"seeds": [1, 1]}, r"seeds are \[1, 1\]; give whole numbers, each once"),
        ({"sounds": "x"}, "sounds is 'x'; give a list"),
        ({"table": {"root": "x"}}, "unknown part of a table 'root'"),
    ],
)
def test_a_study_that_cannot_be_done_is_refused(content, message):
    with pytest.raises(ConfigError, match=message.replace("[]", r"\[\]")):
        study_of(**content)


def test_a_value_is_tried_as_it_is_written():
    values = [0.999999, 0.9999991, 1e-7, 0.004, 1234567.0]
    study = study_of(axes=[{"setting": "optimizer.ema_decay", "values": values}])
    found = [setting.partition("=") for point in points_of(study) for setting in point.settings]
    assert [float(value) for name, _, value in found if name == "optimizer.ema_decay"] == values
    assert len(set(names(study))) == 5 and names(study)[3] == "ema_decay 0.004"


def test_a_study_is_read_back_from_its_folder_and_may_only_grow(tmp_path):
    study = study_of(minutes=2.5, sounds=["a"], labels=["b.csv"], table={"audio_root": "r"}, seeds=[0, 1])
    write_study(tmp_path, study)
    assert read_begun(tmp_path) == study
    write_study(tmp_path, replace(study, seeds=(0, 1, 2)))
    with pytest.raises(ConfigError, match=r"began with minutes = 2\.5, not 3\.0; use another --out"):
        write_study(tmp_path, replace(study, minutes=3.0))


@pytest.mark.parametrize(
    ("columns", "chosen", "tested"),
    [
        # Train rows are fitted, valid rows judged, and the test rows stay closed.
        ({"splits": ["train", "valid", "test"] * 4}, {"a0", "a1", "a3", "a4"}, {"a2", "a5", "a8", "a11"}),
        ({"folds": ["1", "1", "2", "2", "3", "3"] * 2}, {"a2", "a3", "a4", "a5"}, {"a0", "a1", "a6", "a7"}),
        ({"splits": ["train", "train", "test"] * 4, "folds": ["1", "2"] * 6}, {"a0", "a1"}, {"a2", "a5", "a8", "a11"}),
    ],
)
def test_rows_that_choose_are_never_test_rows(columns, chosen, tested):
    table = LabelTable([Path(f"a{k}") for k in range(12)], ["x", "x", "x", "y", "y", "y"] * 2, **columns)
    valid, _ = rows_of(table, "valid")
    test, scheme = rows_of(table, "test")
    held = {str(path) for path, role in zip(test.paths, test.splits, strict=True) if role == "test"}
    shown = {str(path) for path in valid.paths}
    assert chosen <= shown and held == tested and not shown & held and scheme == "split"
    with pytest.raises(InputError, match="only test rows"):
        rows_of(replace(table, splits=["test"] * 12), "valid")


def test_rows_that_chose_are_neither_trained_nor_tested_on_at_the_end():
    splits = ["train", "valid", "test"] * 4
    table = LabelTable([Path(f"a{k}") for k in range(12)], ["x", "x", "x", "y", "y", "y"] * 2, splits=splits)
    assert rows_of(table, "test")[0].splits == splits


def test_few_clips_choose_but_all_test_rows_are_read(encoder, monkeypatch):
    splits = (["train"] * 4 + ["valid"] * 4 + ["test"] * 4) * 10
    table = LabelTable([Path(f"a{k}") for k in range(120)], ["x", "y"] * 60, splits=splits)
    read = []

    def unreadable(model, sounds, choice):
        read.append([sound.path for sound in sounds])
        return [SimpleNamespace(scene=None, error="gone")] * len(sounds)

    monkeypatch.setattr(judging, "embed_files", unreadable)
    for rows in ("valid", "valid", "test"):
        with pytest.raises(InputError, match="none of"):
            judge(encoder, "toy", table, study_of(clips=30), rows)
    assert [len(paths) for paths in read] == [30, 30, 120] and read[0] == read[1]


def test_the_parts_of_a_file_are_judged_apart(sound, encoder, tmp_path):
    soundfile.write(tmp_path / "a.wav", sound(2.0, 0), RATE_HZ)
    parts = [Sound(tmp_path / "a.wav", k / 4, (k + 1) / 4) for k in range(8)]
    roles = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2
    table = LabelTable([part.path for part in parts], ["x", "y"] * 4, splits=roles, parts=parts)
    for rows, tested in (("valid", parts[4:6]), ("test", parts[6:])):
        held, _ = rows_of(table, rows)
        assert [part for part, role in zip(held.sounds, held.splits, strict=True) if role == "test"] == tested
    assert judge(encoder, "toy", table, study_of(), "valid")["linear"].tested == 2


def outcomes(folder, study, score_of):
    """Write made-up outcomes: score_of(values, seed) -> score by task, or None for a failure."""
    write_study(folder, study)
    for run in runs_of(study):
        found = score_of(run.point.values, run.seed)
        outcome = Outcome(setting=run.point.name, seed=run.seed, status="failed", reason="<it> broke")
        if found is not None:
            scores = {
                task: {"linear": TaskScore(score=score, low_95=0.0, high_95=1.0, tested=100),
                       "k-NN": TaskScore(score=score - 0.1, low_95=0.0, high_95=1.0, tested=100)}
                for task, score in found.items()
            }  # fmt: skip
            outcome = Outcome(setting=run.point.name, seed=run.seed, steps=5, loss=0.5, minutes=1.0 + run.seed,
                              crops_per_s=9.0, scores=scores)  # fmt: skip
        write_outcome(run_folder(folder, run.name), outcome)
    return read_results(study, folder)


def made_up(values, seed):
    if values["patch"] == "8x16" and values["ratio"] == "0.5":
        return None
    gain = 0.05 if values["patch"] == "8x16" else 0.0
    return {"pitch": 0.7 + gain + 0.001 * seed, "words": 0.8 - 0.0005 * (-1) ** seed}


def test_an_effect_is_the_difference_of_pairs_with_an_interval_over_seeds(tmp_path):
    study = study_of(seeds=[0, 1, 2], labels=["pitch.csv", "words.csv"])
    results = outcomes(tmp_path, study, lambda values, seed: {
        "pitch": 0.7 + (values["patch"] == "8x16") * (0.01 * (seed + 1) + 0.02 * (values["ratio"] == "0.75")),
        "words": 0.8 + (0.1 if values["ratio"] == "0.5" else 0.0),
    })  # fmt: skip
    effects = {(one.probe, one.task): one for one in effects_of(results, study.axes[0])}
    pitch = effects["linear", "pitch"]
    assert (pitch.value, pitch.reference) == ("8x16", "16x16")
    # Student's interval of .02, .03, .04, each the mean of two pairs: 4.303 * .01 / sqrt(3).
    assert pitch.difference == pytest.approx(0.03) and pitch.half_width == pytest.approx(0.02484, abs=1e-5)
    assert effects["k-NN", "words"].difference == pytest.approx(0.0)
    assert effects["linear", None].difference == pytest.approx(0.015)
    # The same difference of two seeds has an interval of zero width, but it may be one clip in all.
    even = replace(pitch, half_width=0.0)
    assert even.tested == 100 and not even.measured and replace(even, tested=200).measured


def test_a_random_search_without_pairs_compares_the_means_of_all_runs_with_a_value(tmp_path):
    depth = {"setting": "model.depth", "values": [1, 2, 3]}
    ratio = {"setting": "masking.ratio", "values": [0.5, 0.6, 0.75]}
    study = study_of(search="random", random_runs=2, seeds=[0, 1], labels=["pitch.csv"], axes=[depth, ratio])
    results = outcomes(tmp_path, study, lambda values, seed: {"pitch": float(values["ratio"]) + 0.01 * seed})
    assert [one.values for one in results.points] == [{"depth": "2", "ratio": "0.75"}, {"depth": "3", "ratio": "0.5"}]
    (effect,) = [one for one in effects_of(results, study.axes[1]) if (one.probe, one.task) == ("linear", "pitch")]
    # Student's interval of two values .01 apart is 12.706 * .01 / 2 to either side, for both means.
    assert effect.difference == pytest.approx(-0.25) and effect.half_width == pytest.approx(0.0635 * 2**0.5, rel=1e-3)


def test_the_winner_has_every_seed_and_every_task(tmp_path):
    study = study_of(seeds=[0, 1], labels=["pitch.csv", "words.csv"], axes=[RATIO])

    def lucky(values, seed):
        failed = (values["ratio"], seed) == ("0.5", 1)
        return None if failed else {"pitch": 0.9 if values["ratio"] == "0.5" else 0.7, "words": 0.2}

    def half(values, seed):
        return {"pitch": 0.6} if values["ratio"] == "0.5" else {"pitch": 0.7, "words": 0.2}

    assert outcomes(tmp_path / "seeds", study, lucky).winner.name == "ratio 0.75"
    assert outcomes(tmp_path / "tasks", study, half).winner.name == "ratio 0.75"


@pytest.mark.parametrize(("probe", "chosen"), [("linear", "ratio 0.5"), ("k-NN", "ratio 0.75")])
def test_the_winner_is_the_best_by_the_probe_that_chooses(tmp_path, probe, chosen):
    study = study_of(labels=["pitch.csv"], axes=[RATIO], choose_by=probe)
    write_study(tmp_path, study)
    for run in runs_of(study):
        linear = 0.9 if run.point.values["ratio"] == "0.5" else 0.8
        scores = {
            name: TaskScore(score=score, low_95=0.0, high_95=1.0)
            for name, score in (("linear", linear), ("k-NN", 1 - linear))
        }
        write_outcome(run_folder(tmp_path, run.name), Outcome(setting=run.point.name, seed=0, scores={"pitch": scores}))
    assert read_results(study, tmp_path).winner.name == chosen


def test_the_summary_names_the_winner_the_gains_and_the_failures(tmp_path):
    study = study_of(seeds=[0, 1], labels=["pitch.csv", "words.csv"])
    results = outcomes(tmp_path, study, made_up)
    assert results.winner.name == "patch 8x16, ratio 0.75"
    text = "\n".join(summary(results))
    assert "1 of 4 settings failed, in part or as a whole: patch 8x16, ratio 0.5." in text
    assert "best setting is patch 8x16, ratio 0.75: linear 77.5" in text
    assert "patch 8x16 gains 2.5 ± 0.0 points against 16x16" in text
    assert "it gains on pitch (+5.0 ± 0.0), and no task loses measurably." in text
    write_tables(results)
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file).fieldnames) == list(rows[0])
    assert len(rows) == 6 * 4 + 2 and {row["status"] for row in rows} == {"done", "failed"}
    page = write_study_page(results).read_text(encoding="utf-8")
    assert "&lt;it&gt; broke" in page and "<it>" not in page
    assert "http" not in page.replace("http-equiv", "") and page.count("<svg") >= 4


def test_a_task_without_a_score_is_shown_by_the_other_task(tmp_path):
    study = study_of(labels=["pitch.csv", "words.csv"], axes=[PATCH])
    scores = {"16x16": {"pitch": 0.7, "words": 0.8}, "8x16": {"pitch": 0.75}}
    page = write_study_page(outcomes(tmp_path, study, lambda values, seed: scores[values["patch"]]))
    assert "+5.0" in page.read_text(encoding="utf-8")


def test_a_run_that_fails_when_the_study_has_grown_keeps_its_scores(tmp_path):
    results = outcomes(tmp_path, study_of(labels=["pitch.csv", "words.csv"]), made_up)
    grown = study_of(labels=["pitch.csv", "words.csv", "birds.csv"])
    run = next(run for run in results.runs if results.outcomes[run.name].status == "done")
    failed = failed_outcome(tmp_path, grown, run, "no GPU")
    assert failed == replace(results.outcomes[run.name], failed_tasks={"birds": "no GPU"})
    assert failed_outcome(tmp_path / "other", grown, run, "no GPU").status == "failed"


def test_only_shards_of_the_same_study_are_merged(tmp_path):
    study = study_of(labels=["pitch.csv"], steps=5)
    whole = outcomes(tmp_path / "one", study, made_up)
    # Here the first run was stopped, so the other folder has it to its end.
    (run_folder(tmp_path / "two", whole.runs[0].name)).mkdir(parents=True)
    assert (
        read_results(study, tmp_path / "two", [tmp_path / "one"]).path(whole.runs[0]).is_relative_to(tmp_path / "one")
    )
    write_study(tmp_path / "three", replace(study, steps=6))
    for folder, message in (("none", "which is no folder of a study"), ("three", "began with steps = 6, not 5; leave")):
        with pytest.raises((ConfigError, InputError), match=message):
            check_same_study(tmp_path / folder, study)
    check_same_study(tmp_path / "one", replace(study, seeds=(0, 1), sounds=(Path("/elsewhere"),)))


def test_a_study_without_labels_or_runs_has_a_page(tmp_path):
    study = study_of()
    write_study(tmp_path, study)
    results = read_results(study, tmp_path)
    assert results.winner is None and "no setting is chosen" in summary(results)[-1]
    write_tables(results)
    assert "not ended" in write_study_page(results).read_text(encoding="utf-8")


def test_test_rows_are_opened_once(tmp_path, monkeypatch):
    study = study_of(seeds=[0, 1], labels=["pitch.csv", "words.csv"])
    results, pages = outcomes(tmp_path, study, made_up), Pages(print, print)
    opened = []
    monkeypatch.setattr(work, "load", lambda path: path.name)
    monkeypatch.setattr(work, "read_tables", lambda *_: {"pitch": None})
    monkeypatch.setattr(work, "judge", lambda model, *_: opened.append(model) or {
        "linear": TaskScore(score=0.5, low_95=0.0, high_95=1.0, tested=100)})  # fmt: skip
    results = judge_winner(results, pages)
    assert results.final.scores == {"pitch": {"linear": [0.5, 0.5]}} and len(opened) == 2
    assert judge_winner(results, pages).final == results.final and len(opened) == 2
    other = outcomes(tmp_path, study, lambda values, seed: {"pitch": float(values["ratio"]), "words": 0.5})
    with pytest.raises(ConfigError, match=r"test rows were read already, on .*; the winner is now patch 16x16, ratio"):
        judge_winner(other, pages)
    (tmp_path / "final.json").unlink()
    (run_folder(tmp_path, runs_of(study)[0].name) / "outcome.json").unlink()
    with pytest.raises(ConfigError, match="1 run left; run the study to its end"):
        judge_winner(read_results(study, tmp_path), pages)


def test_the_reading_of_test_rows_is_recorded_before_it_begins_and_is_finished_later(tmp_path, monkeypatch):
    study = study_of(labels=["pitch.csv"], axes=[RATIO])
    results = outcomes(tmp_path, study, lambda values, seed: {"pitch": float(values["ratio"])})
    asked = []

    def broken_off_once(model, task, table, study, rows):
        asked.append(rows)
        known = json.loads((tmp_path / "final.json").read_text())
        assert (known["setting"], known["scores"]) == ("ratio 0.75", {})
        if len(asked) == 1:
            raise KeyboardInterrupt
        return {"linear": TaskScore(score=0.5, low_95=0.0, high_95=1.0)}

    monkeypatch.setattr(work, "load", lambda path: path.name)
    monkeypatch.setattr(work, "read_tables", lambda *_: {"pitch": None})
    monkeypatch.setattr(work, "judge", broken_off_once)
    with pytest.raises(KeyboardInterrupt):
        judge_winner(results, Pages(str, str))
    again = judge_winner(read_results(study, tmp_path), Pages(str, str))
    assert again.final.scores == {"pitch": {"linear": [0.5]}} and asked == ["test", "test"]


@pytest.fixture(scope="module")
def toy(sound, tmp_path_factory):
    """Sounds of three classes, their labels, and a study of them that takes seconds."""
    folder = tmp_path_factory.mktemp("study")
    rows = [("path", "label", "split")]
    for number in range(24):
        soundfile.write(folder / f"{number}.wav", sound(0.75, number % 3), RATE_HZ)
        rows.append((f"{number}.wav", "xyz"[number % 3], ("train", "valid", "test")[number // 3 % 3]))
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    study = folder / "toy.toml"
    study.write_text(
        'recipe = "demo"\nsounds = ["."]\nlabels = ["labels.csv"]\nsteps = 3\n\n[settings]\n'
        "model = {width = 32, depth = 1, heads = 2, decoder_width = 16, decoder_depth = 1, decoder_heads = 2, "
        "frames = 64}\ndata.batch_size = 4\nrun.picture_interval_steps = 0\nhardware.readers = 1\n"
        "run.snapshot_interval_s = 0\n\n[[axes]]\nsetting = 'masking.ratio'\nvalues = [0.5, 0.75, 1.5]\n",
        encoding="utf-8",
    )
    return study


def test_shards_and_a_killed_study_give_one_result(toy, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["study", str(toy), "--out", str(out), "--shard", "1/3"]) == 0
    assert "1 of 3 runs have ended" in capsys.readouterr().out
    arguments = [sys.executable, "-m", "melmask", "study", str(toy), "--out", str(tmp_path / "other")]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env=environment) as other:
        deadline_s = time.monotonic() + 120
        while not list((tmp_path / "other").glob("runs/*/run.json")) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        other.send_signal(signal.SIGKILL)
    # The run under way ends with its study; it resumes when the study does.
    time.sleep(2.5)
    assert main(["study", str(toy), "--out", str(tmp_path / "other"), "--merge", str(out), "--final"]) == 0
    assert "Test rows, opened once for ratio 0." in capsys.readouterr().out
    rows = pq.read_table(tmp_path / "other" / "results.parquet").to_pylist()
    assert [(row["setting"], row["status"]) for row in rows if row["probe"] in (None, "linear")] == [
        ("ratio 0.5", "done"), ("ratio 0.75", "done"), ("ratio 1.5", "failed")]  # fmt: skip
    assert rows[-1]["reason"].startswith("masking.ratio is 1.5; give a share")
    assert all(np.isfinite(row["score"]) for row in rows if row["status"] == "done")
    done = [json.loads(path.read_bytes()) for path in tmp_path.glob("*/runs/*/outcome.json")]
    assert sorted(one["steps"] for one in done) == [0, 3, 3]


def test_a_stopped_run_has_not_failed(toy, tmp_path, monkeypatch, capsys):
    study = read_study(str(toy))
    statuses = iter([128 + signal.SIGTERM, -signal.SIGKILL])
    monkeypatch.setattr(work, "do_runs", lambda _, runs, *rest: [rest[-1](name, next(statuses)) for name in runs])
    results = work.run_study(study, tmp_path, StudyOptions(), Pages(str, str))
    assert [run.name for run, _ in results.failed()] == ["ratio-0.75-seed-0", "ratio-1.5-seed-0"]
    assert "ratio-0.5-seed-0 was stopped; run the study again" in capsys.readouterr().err
    assert "ended by signal 9, perhaps for lack of memory" in results.failed()[0][1]


def test_a_study_that_got_a_table_judges_its_runs_again(toy, tmp_path, monkeypatch):
    study, asked = read_study(str(toy)), []
    more = shutil.copyfile(study.labels[0], toy.parent / "more.csv")

    def judged(folder, names, side_by_side, threads, ended):
        asked.append(names)
        for name in names:
            scores = {"labels": {"linear": TaskScore(score=0.5, low_95=0.0, high_95=1.0)}}
            write_outcome(run_folder(folder, name), Outcome(setting=name, seed=0, scores=scores))
            ended(name, 0)

    monkeypatch.setattr(work, "do_runs", judged)
    options = (tmp_path / "out", StudyOptions(), Pages(str, str))
    done = ["ratio-0.5-seed-0", "ratio-0.75-seed-0"]
    for labels in (study.labels, study.labels, (*study.labels, more)):
        work.run_study(replace(study, labels=labels), *options)
    assert asked == [done, [], done]


def test_ray_does_the_runs_of_a_study(monkeypatch):
    from melmask.study import on_ray

    asked = {}

    def remote(**resources):
        asked.update(resources)
        return lambda work: SimpleNamespace(remote=lambda *arguments: work(*arguments))

    ray = SimpleNamespace(remote=remote, wait=lambda refs, num_returns: (refs[:1], refs[1:]), get=lambda ref: ref[1])
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(on_ray, "do_run", lambda folder, name, threads: (name, int(folder.is_absolute())))
    ended = []
    on_ray.do_runs_on_ray(Path("x"), ["a", "b"], 2, 0, lambda name, status: ended.append((name, status)))
    assert ended == [("a", 1), ("b", 1)] and asked == {"num_cpus": 2, "num_gpus": 0}
