import base64
import copy
import io
import json
import re
import shutil
import wave

import numpy as np
import pytest
import soundfile
from web_page import Page, needs_browser, shown

from melmask.errors import InputError, OutputError
from melmask.evaluate.mistakes import confusion_counts, find_sound, worst_clips, worst_stretch
from melmask.evaluate.published import EVAR_MSM_MAE, HEAR_BEST, MSM_MAE, MW_MAE_B, PUBLISHED
from melmask.evaluate.records import Column
from melmask.evaluate.results import EventFile, Predictions, mean_ranks, ranks, read_report
from melmask.pages import sound
from melmask.pages.charts import COLORS, Bar, BarChart, ConfusionChart
from melmask.pages.evaluation import write_evaluation_page
from melmask.pages.images import png_data_uri
from melmask.pages.render import environment
from melmask.pages.sound import read_part, spectrogram_picture, wav_data_uri
from melmask.pages.task import most_confused

RATE_HZ = 16000
MODELS = {"tiny": 0.5, "big_one": 0.9, "other": 0.7}
FOLDS = ("fold00", "fold01", "fold02")
EVIL = '<script>boom("1")</script>&'


class Writer:
    """Builds a folder of results, task by task."""

    def __init__(self, folder, models):
        self.folder, self.models, self.rng = folder / "results", models, np.random.default_rng(0)
        self.tasks_folder = folder / "tasks"
        self.content = {"format": 1, "created": "2026-11-23T07:00:00+00:00", "melmask": "0.1.0"}
        self.content |= {"tasks_folder": str(self.tasks_folder), "tasks": [], "results": [], "failed": []}
        self.content["models"] = [
            {"name": name, "source": name, "scene_size": 96, "timestamp_size": 96, "sample_rate_hz": RATE_HZ}
            for name in models
        ]

    def task(self, title, name, embedding, prediction, labels, metrics, **more):
        facts = {"title": title, "name": name, "embedding_type": embedding, "prediction_type": prediction}
        facts |= {"classes": len(labels), "clips": 30, "labels": list(labels), "metrics": metrics}
        facts |= {"folder": str(self.tasks_folder / title), "leaking_files": 0, "leaking_groups": 0, **more}
        self.content["tasks"].append(facts)

    def sound(self, title, split, file, seconds=0.3):
        path = self.tasks_folder / title / str(RATE_HZ) / split / file
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = 0.1 * self.rng.standard_normal(round(seconds * RATE_HZ)).astype(np.float32)
        soundfile.write(path, noise, RATE_HZ, subtype="PCM_16")

    def result(self, model, title, metrics, scores, arrays, protocol="hear"):
        splits = []
        for (split, content), score in zip(arrays.items(), scores, strict=True):
            path = self.folder / "models" / model / title / protocol / f"{split}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, **content)
            splits.append(
                {
                    "name": split,
                    "scores": dict.fromkeys(metrics, score),
                    "validation_score": score,
                    "epoch": 33,
                    "setting": {"hidden_layers": len(splits) + 1, "lr": 0.001},
                    "predictions": str(path.relative_to(self.folder)),
                }
            )
        mean = float(np.mean(scores))
        several = len(scores) > 1
        self.content["results"].append(
            {
                "model": model,
                "task": title,
                "protocol": protocol,
                "primary": metrics[0],
                "mean": dict.fromkeys(metrics, mean),
                "std": dict.fromkeys(metrics, float(np.std(scores, ddof=1)) if several else None),
                "interval_95": dict.fromkeys(metrics, [mean - 0.1, mean + 0.05] if several else None),
                "splits": splits,
            }
        )

    def scene(self, title, name, prediction, labels, metrics, splits, clips=10, sounds=True):
        self.task(title, name, "scene", prediction, labels, metrics)
        for model, skill in self.models.items():
            arrays, scores = {}, []
            for split in splits:
                truth = self.rng.integers(len(labels), size=clips)
                targets = np.eye(len(labels), dtype=np.uint8)[truth]
                if prediction == "multilabel":
                    targets |= np.eye(len(labels), dtype=np.uint8)[self.rng.integers(len(labels), size=clips)]
                weights = np.exp(4 * skill * targets + 6 * self.rng.random(targets.shape))
                total = weights + 20 if prediction == "multilabel" else weights.sum(1, keepdims=True)
                shares = (weights / total).astype(np.float32)
                files = np.array([f"{split}_{i} <&>.wav" for i in range(clips)])
                arrays[split] = {"files": files, "split": np.array([split] * clips), "targets": targets}
                arrays[split]["probabilities"] = shares
                scores.append(skill - 0.01 * len(scores))
            self.result(model, title, metrics, scores, arrays)
        for split in splits if sounds else ():
            for i in range(clips):
                self.sound(title, split, f"{split}_{i} <&>.wav")

    def events(self, title):
        labels, metrics = ["knock", "cough", EVIL], ["event_onset_200ms_fms", "segment_1s_er"]
        self.task(title, "dcase2016_task2", "event", "multilabel", labels, metrics)
        reference = {f"scene{i}.wav": [["knock", 100, 400], [EVIL, 900, 1500]] for i in range(3)}
        for model, skill in self.models.items():
            late = round(300 * (1 - skill))
            predicted = {n: [[label, a + late, b] for label, a, b in events] for n, events in reference.items()}
            predicted["scene1.wav"].append(["cough", 100, 1900])
            texts = {"predicted": np.array(json.dumps(predicted)), "reference": np.array(json.dumps(reference))}
            self.result(model, title, metrics, [skill], {"test": texts})
        for name in reference:
            self.sound(title, "test", name, 2.0)

    def write(self):
        self.folder.mkdir(exist_ok=True)
        (self.folder / "results.json").write_text(json.dumps(self.content))
        return self.folder


@pytest.fixture
def make(tmp_path):
    return lambda models=MODELS: Writer(tmp_path, models)


@pytest.fixture
def four_tasks(make):
    writer = make()
    writer.scene("esc50-v2-small", "esc50", "multiclass", ["dog", EVIL, "rain"], ["top1_acc", "d_prime"], FOLDS)
    writer.scene("digits-v1-full", "digits", "multiclass", "0123", ["top1_acc"], ["test"])
    writer.scene("fsd50k-v1-full", "fsd50k", "multilabel", ["a", "b", "c", "d"], ["mAP", "top1_acc"], ["test"])
    writer.events("dcase2016_task2-v1-full")
    return writer


def written(folder):
    path = write_evaluation_page(folder)
    assert path == folder / "report.html" and not list(folder.glob(".*"))
    return Page(path.read_text(encoding="utf-8"))


def table(folder, name="scores"):
    """Texts of the cells of a table of scores, row by row."""
    page = write_evaluation_page(folder).read_text(encoding="utf-8")
    body = re.search(rf'id="{name}">(.*?)</table>', page, re.DOTALL)[1]
    cells = (
        [re.sub(r"<[^>]+>", " ", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", row)] for row in body.split("<tr>")
    )
    return [[" ".join(cell.split()) for cell in row] for row in cells if row]


def test_the_page_has_every_task_model_and_kind_of_picture(four_tasks):
    page = written(four_tasks.write())
    assert len(page.all("details", "task")) == 4
    assert len(page.all("svg", "bars")) == 4
    assert len(page.all("svg", "confusion")) == 2 * len(MODELS)
    assert len(page.all("svg", "roll")) == 1
    assert len(page.all("svg", "sound")) == len(page.all("audio")) - 1 > 6
    assert "big_one has the best mean rank, 1.00 of 3, over the 4 tasks that every model has a score on" in page.text
    for words in ("fold02", "epoch 33", "hidden_layers 1 | 2 | 3", "Hardest clips of big_one", "segment_1s_er ↓"):
        assert words in page.text


def test_the_table_gives_scores_spreads_places_and_what_was_published(four_tasks):
    rows = table(four_tasks.write())
    assert rows[1] == ["task", "tiny", "big_ one", "other", "best HEAR entry", "MSM-MAE", "MW-MAE-B"]
    esc50 = next(r for r in four_tasks.content["results"] if r["model"] == "big_one")
    mean, std = 100 * esc50["mean"]["top1_acc"], 100 * esc50["std"]["top1_acc"]
    assert rows[2][0] == "esc50 -v2-small top1_ acc"
    assert rows[2][2] == f"★ {mean:.1f} ± {std:.1f} · #1"
    assert rows[2][4:] == ["94.7", "85.6", "81.2"]
    assert rows[3][4:] == ["", "", ""]
    assert rows[4][4:] == ["64.1", "", "51.2"]
    assert rows[5][4:] == ["92.5", "", ""]
    assert rows[6][:4] == ["mean rank over 4 tasks", "3.00", "★ 1.00", "2.00"]
    page = written(four_tasks.folder)
    assert "cannot prove that" in page.text and "arXiv 2203.03022" in page.text


def test_the_page_asks_for_nothing_from_elsewhere(four_tasks):
    folder = four_tasks.write()
    page = written(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w+\.|@import|url\((?!#)", text)
    assert page.links and all(link.startswith(("data:", "#")) for link in page.links)


def test_names_and_reasons_from_files_are_escaped(make):
    writer = make({f"m{EVIL}": 0.9, "b": 0.5})
    writer.content["models"][0]["source"] = EVIL
    # A model's name is no folder's name here: results.json says where the predictions are.
    writer.models = {"b": 0.5}
    writer.scene("esc50-v2-full", "esc50", "multiclass", [EVIL, "x"], ["top1_acc"], ["test"])
    writer.content["failed"] = [{"model": f"m{EVIL}", "task": "esc50-v2-full", "reason": EVIL}]
    page = written(writer.write())
    assert page.text.count('boom("1")') > 5
    assert not page.all("script")[1:]
    assert "/fold" not in page.text


def test_an_undefined_score_has_no_place(four_tasks):
    for result in four_tasks.content["results"]:
        if result["model"] == "big_one":
            result["mean"] = dict.fromkeys(result["mean"])
            result["std"] = result["interval_95"] = None
    rows = table(four_tasks.write())
    assert [row[2] for row in rows[2:6]] == ["undefined"] * 4
    assert not any(row[0].startswith("mean rank") for row in rows)
    assert "there is no mean rank" in written(four_tasks.folder).text


def test_without_predictions_the_page_says_so(four_tasks):
    folder = four_tasks.write()
    shutil.rmtree(folder / "models")
    page = written(folder)
    assert not page.all("audio") and not page.all("svg", "confusion") and len(page.all("svg", "bars")) == 4
    assert page.text.count("are shown, because the predictions are missing") == 4


def test_damaged_predictions_are_skipped(four_tasks):
    folder = four_tasks.write()
    for path in folder.rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert written(folder).text.count("are shown, because the predictions are missing") == 4


def test_without_the_sounds_the_page_says_so(four_tasks):
    folder = four_tasks.write()
    shutil.rmtree(four_tasks.tasks_folder)
    page = written(folder)
    assert not page.all("audio") and len(page.all("svg", "roll")) == 1
    assert len(re.findall("The sound files? (?:is|are) missing", page.text)) == 4


@pytest.mark.parametrize("content", [b"", b"RIFF", "no samples"])
def test_sounds_that_cannot_be_used_do_not_break_the_page(four_tasks, content):
    folder = four_tasks.write()
    for path in four_tasks.tasks_folder.rglob("*.wav"):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            soundfile.write(path, np.zeros(0, np.float32), RATE_HZ)
    page = written(folder)
    assert not page.all("audio") and not page.all("svg", "sound") and len(page.all("svg", "roll")) == 1
    assert "scene1.wav" in page.text


def test_failures_and_leaks_are_listed(four_tasks):
    content = four_tasks.content
    content["results"] = [r for r in content["results"] if (r["model"], r["task"]) != ("tiny", "digits-v1-full")]
    content["failed"] = [{"model": "tiny", "task": "digits-v1-full", "protocol": "hear", "reason": "no memory"}]
    content["tasks"][0] |= {"leaking_files": 1234, "leaking_groups": 5}
    rows = table(four_tasks.write())
    assert rows[3][1] == "failed"
    assert rows[6][0] == "mean rank over 3 tasks"
    page = written(four_tasks.folder)
    for words in ("no memory", "1,234", "1 failed", "leaks in 1 task"):
        assert words in page.text


def test_different_settings_of_a_protocol_are_reported(four_tasks):
    for result in four_tasks.content["results"]:
        points = 1 if result["model"] == "tiny" else 8
        result["conditions"] = {"grid_points": points, "seed": 42, "head_precision": "bf16"}
    four_tasks.write()
    text = written(four_tasks.folder).text
    assert "Scores of the protocol hear were found in different ways" in text
    assert "1 point of the grid, seed 42, products in bf16 (tiny)" in text


def test_an_unknown_number_of_groups_is_a_dash(four_tasks):
    four_tasks.content["tasks"][0] |= {"leaking_files": 3, "leaking_groups": None}
    page_rows = table(four_tasks.write(), "leaks")
    assert page_rows[1][1:] == ["3", "–"]


def test_a_model_that_failed_everywhere_has_a_column(four_tasks):
    four_tasks.content["results"] = [r for r in four_tasks.content["results"] if r["model"] != "tiny"]
    four_tasks.content["failed"] = [{"model": "tiny", "task": "digits-v1-full", "reason": "gone"}]
    rows = table(four_tasks.write())
    assert [row[1] for row in rows[2:6]] == ["–", "failed", "–", "–"]


def test_one_model_has_neither_place_nor_star(make):
    writer = make({"alone": 0.7})
    writer.scene("digits-v1-full", "digits", "multiclass", "0123", ["top1_acc"], ["test"])
    rows = table(writer.write())
    assert rows[1][1] and "#" not in rows[1][1] and "★" not in rows[1][1] and len(rows) == 2
    page = written(writer.folder)
    assert "open" in page.all("details", "task")[0]
    assert "digits-v1-full" in page.text and "published numbers" not in page.text.lower()


def test_each_protocol_has_a_table_and_places_of_its_own(make):
    writer = make({"m": 0.7, "n": 0.5})
    writer.scene("esc50-v2-full", "esc50", "multiclass", ["a", "b"], ["top1_acc"], ["test"])
    for result in list(writer.content["results"]):
        mean = {"m": 0.1, "n": 0.2}[result["model"]]
        writer.content["results"].append({**copy.deepcopy(result), "protocol": "linear", "mean": {"top1_acc": mean}})
    writer.task("digits-v1-full", "digits", "scene", "multiclass", "01", ["top1_acc"])
    writer.content["failed"] = [{"model": "m", "task": "digits-v1-full", "protocol": "linear", "reason": "no"}]
    hear, linear = (table(writer.write(), f"scores-{name}") for name in ("hear", "linear"))
    assert hear[1][1:] == ["m", "n", "best HEAR entry", "MSM-MAE", "MW-MAE-B"]
    assert hear[2][1].startswith("★ 70.0") and hear[2][2].endswith("#2")
    assert [row[0].split()[0] for row in hear[2:]] == ["esc50", "mean"], "the failure is another protocol's"
    assert linear[1][1:] == ["m", "n", "MSM-MAE, linear"]
    assert linear[2][1].startswith("10.0") and linear[2][2].startswith("★ 20.0") and linear[2][3] == "89.2"
    assert linear[3][1:3] == ["failed", "–"]
    page = written(writer.folder)
    assert "By the protocol hear: m has the best mean rank, 1.00 of 2" in page.text
    assert "By the protocol linear: n has the best mean rank" in page.text
    assert "m, hear: 70.0 %" in next(tag.get("aria-label", "") for tag in page.all("svg", "bars"))


def test_two_hundred_classes_make_a_small_page(make):
    writer = make()
    labels = [f"class {i}" for i in range(200)]
    writer.scene("many-v1-full", "many", "multiclass", labels, ["top1_acc"], ["test"], clips=2000, sounds=False)
    page = written(writer.write())
    assert (writer.folder / "report.html").stat().st_size < 200_000
    assert len(page.all("image", "pixels")) == 3 and not page.all("rect", "cell")


def test_sound_that_is_too_much_is_left_out_and_counted(four_tasks, monkeypatch):
    folder = four_tasks.write()
    clips = len(written(folder).all("audio"))
    monkeypatch.setattr(sound, "_MAX_BYTES", 100_000)
    page = written(folder)
    played = page.all("audio")
    assert 3 < len(played) < clips and sum(len(audio["src"]) for audio in played) <= 100_000
    assert f"see but not hear {clips - len(played)} clips" in page.text
    assert page.text.count("This sound was left out") == clips - len(played)


def test_a_folder_without_usable_results_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"results\.json does not exist"):
        write_evaluation_page(tmp_path)
    for content, reason in (
        ("{", "cannot be read"),
        ('{"format": 2}', "not of format 1"),
        ('{"format": 1}', "'tasks'"),
    ):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(InputError, match=reason):
            write_evaluation_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_reported(four_tasks):
    folder = four_tasks.write()
    (folder / "report.html").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_evaluation_page(folder)


def test_equal_scores_share_a_place_and_lower_error_rates_are_better(four_tasks):
    content = four_tasks.content
    scores = {"tiny": 0.2, "big_one": 0.5, "other": 0.2}
    for result in content["results"]:
        result["primary"] = "segment_1s_er"
        result["mean"] = {"segment_1s_er": scores[result["model"]]}
    report = read_report(four_tasks.write())
    places = {column.model: place for column, place in ranks(report.of_task("digits-v1-full")).items()}
    assert places == {"tiny": 1, "other": 1, "big_one": 3}
    assert mean_ranks(report) == ({Column(m, "hear"): p for m, p in places.items()}, 4)


def test_the_hardest_clips_are_the_most_confident_mistakes():
    targets = np.eye(3, dtype=bool)[[0, 0, 1, 2]]
    shares = np.array([[0.9, 0.1, 0], [0.3, 0.6, 0.1], [0, 0.2, 0.8], [0.4, 0.1, 0.5]], np.float32)
    rows = Predictions(["a", "b", "c", "d"], ["s"] * 4, targets, shares)
    hardest = worst_clips(rows, ["x", "y", "z"], multiclass=True, most=6)
    assert [(clip.file, clip.predicted, clip.truth[0][0]) for clip in hardest] == [("c", "z", "y"), ("b", "y", "x")]
    assert hardest[0].probability == pytest.approx(0.8)
    assert [clip.file for clip in worst_clips(rows, ["x", "y", "z"], multiclass=True, most=1)] == ["c"]
    assert confusion_counts(rows).tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert most_confused(confusion_counts(rows), ["x", "y", "z"]) == [("x", "y", 1, 2), ("y", "z", 1, 1)]


def test_the_worst_stretch_is_where_most_is_wrong():
    right = [("a", 0.0, 500.0), ("b", 20_000.0, 23_000.0)]
    good = EventFile("good", ["test"], right, right)
    bad = EventFile("bad", ["test"], right, [("a", 0.0, 450.0), ("c", 21_000.0, 22_000.0)])
    found = worst_stretch([good, bad], 10.0)
    assert found.file is bad and found.wrong_s == pytest.approx(4.0)
    assert found.start_s <= 20.0 and found.end_s >= 23.0 and found.end_s - found.start_s == pytest.approx(10.0)
    assert worst_stretch([], 10.0) is None
    assert worst_stretch([EventFile("quiet", ["test"], [], [])], 10.0).wrong_s == 0


def test_sounds_are_found_at_the_rate_nearest_to_16_khz(tmp_path):
    for rate in (8000, 22050, 48000):
        (tmp_path / str(rate) / "test").mkdir(parents=True)
        (tmp_path / str(rate) / "test" / "a.wav").touch()
    assert find_sound(tmp_path, ["valid", "test"], "a.wav") == tmp_path / "22050" / "test" / "a.wav"
    assert find_sound(tmp_path, ["valid"], "a.wav") is None
    assert find_sound(tmp_path / "missing", ["test"], "a.wav") is None


def test_a_part_of_a_long_sound_is_read_and_played(tmp_path):
    ramp = np.linspace(-0.5, 0.5, 15 * 48000, dtype=np.float32)
    soundfile.write(tmp_path / "long.wav", ramp, 48000, subtype="FLOAT")
    part = read_part(tmp_path / "long.wav", 2.0)
    assert len(part) == 10 * RATE_HZ
    assert part[[100, -100]] == pytest.approx([-0.5 + 2 / 15, -0.5 + 12 / 15], abs=2e-3)
    content = base64.b64decode(wav_data_uri(part).removeprefix("data:audio/wav;base64,"))
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE_HZ, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert samples == pytest.approx(32767 * part, abs=1)


def test_pictures_are_png_files_of_the_right_pixels(tmp_path):
    from matplotlib.image import imread

    palette = np.array([[0, 0, 0, 0], [255, 0, 0, 255]], np.uint8)
    uri = png_data_uri(np.array([[0, 1, 1], [1, 0, 0]], np.uint8), palette)
    (tmp_path / "a.png").write_bytes(base64.b64decode(uri.removeprefix("data:image/png;base64,")))
    assert imread(tmp_path / "a.png")[..., 0].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert imread(tmp_path / "a.png")[..., 3].tolist() == [[0, 1, 1], [1, 0, 0]]


def test_a_tone_is_bright_at_its_frequency_and_silence_is_dark(tmp_path):
    from matplotlib.image import imread

    def brightness(samples):
        picture = spectrogram_picture(samples.astype(np.float32))
        (tmp_path / "a.png").write_bytes(base64.b64decode(picture.uri.removeprefix("data:image/png;base64,")))
        return imread(tmp_path / "a.png")[..., :3].sum(-1), {text: share for share, text in picture.ticks}

    pixels, ticks = brightness(0.5 * np.sin(2 * np.pi * 2000 * np.arange(12 * RATE_HZ) / RATE_HZ))
    assert pixels.shape == (80, 400)
    assert 1 - pixels[:, 200].argmax() / 80 == pytest.approx(ticks["2k"], abs=0.02)
    assert brightness(np.zeros(RATE_HZ))[0].max() < 1.5


def drawn(kind, chart):
    return Page(str(getattr(environment().get_template("charts.html.j2").module, kind)(chart, "title")))


def test_bars_end_at_their_values():
    bars = [Bar("a", 0.25, (0.2, 0.3), "25 %", 0), Bar("b", None, None, "failed", 1)]
    chart = drawn("bars", BarChart(bars=bars, percent=True))
    assert [rect["width"] for rect in chart.all("rect")] == ["85"] and "failed" in chart.text
    assert [path["d"] for path in chart.all("path")] == ["M68,21.5v8M102,21.5v8M68,25.5H102"]
    # An error rate may be above one.
    chart = BarChart(bars=[Bar("a", 2.0, None, "", 0), Bar("b", 1.0, None, "", 1)], percent=True)
    assert [rect["width"] for rect in drawn("bars", chart).all("rect")] == ["340", "170"]


def test_every_color_is_in_the_style_sheet(four_tasks):
    style = re.search("<style>(.*)</style>", write_evaluation_page(four_tasks.write()).read_text(), re.DOTALL)[1]
    assert set(re.findall(r"^\.(c\d+) ", style, re.MULTILINE)) == {f"c{i}" for i in range(COLORS)}


@pytest.mark.parametrize(("classes", "rectangles"), [(2, 2), (20, 20), (60, 60), (61, 0)])
def test_a_confusion_matrix_fits_its_classes(classes, rectangles):
    labels = [f"label {i}" for i in range(classes)]
    chart = drawn("confusion", ConfusionChart(counts=np.eye(classes, dtype=np.int64), labels=labels))
    assert len(chart.all("rect", "cell")) == rectangles
    assert len(chart.all("text", "label")) == (2 * classes if classes <= 60 else 0)
    assert len(chart.all("text", "on")) == (classes if classes <= 20 else 0)


def test_published_numbers_are_those_of_the_same_task_mode_and_metric():
    assert HEAR_BEST.score("nsynth_pitch", "nsynth_pitch-v2.2.3-5h", "pitch_acc") == 87.8
    assert HEAR_BEST.score("nsynth_pitch", "nsynth_pitch-v2.2.3-50h", "pitch_acc") == 90.0
    assert HEAR_BEST.score("nsynth_pitch", "nsynth_pitch-mine", "pitch_acc") is None
    assert HEAR_BEST.score("fsd50k", "fsd50k-v1.0-full", "top1_acc") is None
    assert MSM_MAE.score("esc50", "esc50-v2.0.0-full", "top1_acc") == 85.6
    assert MW_MAE_B.score("esc51", "esc51-v2.0.0-full", "top1_acc") is None
    assert "batch" in MSM_MAE.caveat("libricount") and MSM_MAE.caveat("esc50") is None
    assert np.mean(list(EVAR_MSM_MAE.scores.values())) == pytest.approx(79.1, abs=0.1)
    assert all(0 < score < 100 for one in PUBLISHED for score in one.scores.values())
    assert len(HEAR_BEST.scores) == 20


_PROBE = """<script>addEventListener('load', async () => {
  const count = document.querySelectorAll('details.task[open]').length;
  document.getElementById('all').click();
  const open = document.querySelectorAll('details.task[open]').length;
  for (const one of document.querySelectorAll('details')) one.open = true;
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const letters = atob(document.querySelector('audio').src.split(',')[1]);
  const bytes = Uint8Array.from(letters, letter => letter.charCodeAt(0));
  const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes.buffer);
  document.title = `${count} ${open} ${sound.duration} ${wide}`;
});</script>"""


@needs_browser
def test_a_browser_shows_the_page_without_an_error(four_tasks, tmp_path):
    path = write_evaluation_page(four_tasks.write())
    page = path.read_text(encoding="utf-8")
    path.write_text(page.replace("</body>", f"{_PROBE}</body>"), encoding="utf-8")
    text = shown(path, tmp_path, "--window-size=500,800")
    page = Page(text)
    assert page.all("table", "scores")[0]["id"] == "scores"
    assert len(page.all("audio")) > 6
    closed, opened, seconds, too_wide = re.search(r"<title>(.*?)</title>", text)[1].split()
    # Nothing is open at first, the button opens all, the sound plays, and no part is wider than the window.
    assert (closed, opened, float(seconds), int(too_wide)) == ("0", "4", 0.3, 0)
