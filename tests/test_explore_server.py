"""The server of `melmask explore`: who is answered, what is refused, and what is answered."""

import base64
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from datetime import datetime
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
import soundfile

pytest.importorskip("starlette", reason="the explore extra is not installed")

with warnings.catch_warnings():
    # Later releases of Starlette prefer another library to httpx, which serves as well.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", UserWarning)
    from starlette.testclient import TestClient

from melmask.audio.files import find_audio
from melmask.audio.parts import Sound
from melmask.embedding.encoder import load
from melmask.embedding.folder import embed_table
from melmask.errors import ConfigError
from melmask.explore import projection
from melmask.explore import requests as explore_requests
from melmask.explore.collection import Collection
from melmask.explore.columns import column_of
from melmask.explore.explore import listening
from melmask.explore.labels import Labels
from melmask.explore.options import ExploreOptions
from melmask.explore.server import app_of
from melmask.labels.read import read_sheet
from melmask.labels.tables import read_labels

TOKEN, PORT = "the-token-of-this-start", 8765
HTML = "<img src=x onerror=alert(1)>"


def settled(collection):
    """The collection once its sounds are embedded."""
    collection.job.start()
    collection.job.wait()
    return collection


@pytest.fixture(scope="module")
def folder(sound_folder, sound, tmp_path_factory):
    """The sounds of other tests, one of which is no sound; one with HTML in its name; and eight of two kinds."""
    folder = tmp_path_factory.mktemp("explored")
    for path in sound_folder.rglob("*.*"):
        (folder / path.relative_to(sound_folder)).parent.mkdir(exist_ok=True)
        (folder / path.relative_to(sound_folder)).write_bytes(path.read_bytes())
    soundfile.write(folder / f"{HTML[:8]}.wav", sound(0.5, 3), 16000)
    rng = np.random.default_rng(0)
    for number in range(8):
        noise = rng.normal(0, 0.1, 12000)
        kind = "noise" if number % 2 else "tone"
        (folder / kind).mkdir(exist_ok=True)
        soundfile.write(folder / kind / f"{number}.wav", noise if number % 2 else sound(0.75, 6) + noise / 50, 16000)
    os.utime(folder / "a.wav", (1e9, 1e9))
    (folder / "tone" / "copy.wav").write_bytes((folder / "tone" / "0.wav").read_bytes())
    return folder


@pytest.fixture(scope="module")
def labels_table(folder):
    rows = [(path.name, len(path.name), HTML) for path in sorted(folder.rglob("*.wav"))]
    with (folder / "facts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "letters", "what"), *rows[:-1], (rows[-1][0], "", "plain")])
    return folder / "facts.csv"


@pytest.fixture(scope="module")
def model():
    return load(None, "cpu")


@pytest.fixture(scope="module")
def collection(folder, model, labels_table, tmp_path_factory):
    options = ExploreOptions(out=tmp_path_factory.mktemp("out") / "explore", labels=labels_table)
    return settled(Collection(folder, model, options))


@pytest.fixture(scope="module")
def stranger(collection):
    """A client without a token."""
    return TestClient(app_of(collection, TOKEN, PORT), base_url=f"http://127.0.0.1:{PORT}")


@pytest.fixture(scope="module")
def page(collection):
    """The client that the page is."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Sec-Fetch-Site": "same-origin"}
    return TestClient(app_of(collection, TOKEN, PORT), base_url=f"http://127.0.0.1:{PORT}", headers=headers)


def point_of(collection, ending):
    (point,) = [n for n, name in enumerate(collection.names(0, collection.count)) if name.endswith(ending)]
    return point


def array(text, kind=np.uint8):
    return np.frombuffer(base64.b64decode(text), kind)


# Who is answered

PLACES = ["/", "/api/collection", "/api/points", "/api/labels.csv", "/api/items/0/sound", "/api/no-such-thing"]


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_told_without_the_token_of_this_start(stranger, place):
    for wrong in ({}, {"Authorization": "Bearer of bad news"}, {"Authorization": TOKEN}):
        refused = stranger.get(place, headers=wrong)
        assert refused.status_code == 403 and "token" in refused.json()["error"]
    assert stranger.get(place, params={"token": TOKEN + "x"}).status_code == 403
    assert stranger.get(place, params={"token": TOKEN}).status_code == (404 if "no-such" in place else 200)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": f"evil.example:{PORT}"},
        {"Host": "127.0.0.1:1"},
        {"Host": f"127.0.0.1.evil.example:{PORT}"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{PORT + 1}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_other_sites_are_refused_even_with_the_token(stranger, headers):
    headers = {"Authorization": f"Bearer {TOKEN}", **headers}
    for method, place in (("GET", "/api/collection"), ("GET", "/"), ("GET", "/page/app.js"), ("PUT", "/api/labels")):
        refused = stranger.request(method, place, headers=headers, content=b"{}")
        assert refused.status_code in (403, 421) and list(refused.json()) == ["error"]
        assert "access-control-allow-origin" not in refused.headers


def test_localhost_and_the_page_itself_are_answered(stranger):
    usual = {"Authorization": f"Bearer {TOKEN}", "Host": f"localhost:{PORT}", "Origin": f"http://localhost:{PORT}"}
    assert stranger.get("/api/collection", headers=usual).status_code == 200
    assert stranger.get("/", params={"token": TOKEN}, headers={"Sec-Fetch-Site": "none"}).status_code == 200


def test_the_server_listens_on_this_computer_only():
    with listening(0) as first:
        host, port = first.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(ConfigError, match=f"port {port} cannot be used"):
            listening(port)


def test_answers_say_that_they_are_no_scripts_and_are_not_kept(page):
    for place in ("/", "/api/collection", "/api/labels.csv", "/api/items/0"):
        headers = page.get(place).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe-inline" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == ("no-cache" if place == "/" else "no-store")


@pytest.mark.parametrize(
    "path",
    [
        *("/page/../server.py", "/page/..%2fserver.py", "/page/%2e%2e/server.py", "/page/....//server.py"),
        *("/page//etc/passwd", "/page/%00", "/api/items/..%2f..%2fetc%2fpasswd/sound", "/api/items/-1/sound"),
        *("/api/items/1e3", "/api/items/%31%00", "/api/items/99999999999999999999", "/page/"),
    ],
)
def test_no_path_leads_out_of_the_page_and_the_collection(page, path):
    refused = page.get(path)
    assert refused.status_code == 404 and list(refused.json()) == ["error"]


# What is answered


def test_the_collection_describes_itself(page, collection):
    told = page.get("/api/collection").json()
    assert (
        told["count"] == collection.count == 17
        and told["kind"] == "files"
        and told["projections"][0] == "pca"
        and told["listen"]
    )
    assert told["embedding"] == {"done": 17, "total": 17, "failed": 1, "running": False, "error": ""}
    assert {column["name"]: column["kind"] for column in told["columns"]} == {
        "folder": "category",
        "modified": "time",
        "duration": "number",
        "cluster": "category",
        "letters": "category",
        "what": "category",
    }
    assert told["model"]["resolutions"] == 2 and told["model"]["rows"] == 5


def test_points_and_columns_are_binary_with_a_value_for_each_point(page, collection):
    points = np.frombuffer(page.get("/api/points?projection=pca").content, "<f4").reshape(-1, 2)
    broken = point_of(collection, "broken.wav")
    assert np.isnan(points[broken]).all() and np.abs(np.delete(points, broken, 0)).max() <= 1
    what = page.get("/api/column", params={"name": "what"}).json()
    names = [None if code < 0 else what["categories"][code] for code in array(what["codes"], "<i4")]
    assert what["categories"] == [HTML, "plain"] and names.count("plain") == 1 and names.count(None) == 2
    durations = array(page.get("/api/column", params={"name": "duration"}).json()["values"], "<f8")
    assert np.isnan(durations[broken]) and np.nanmax(durations) == pytest.approx(4.0)
    for wrong in ("no such", ""):
        assert page.get("/api/column", params={"name": wrong}).status_code == 404
    assert page.get("/api/points?projection=x").json()["error"].startswith("projection is 'x'; known are pca")


def test_names_and_items_are_text_and_no_paths(page, collection):
    names = page.get("/api/names?from=0&count=100").json()["names"]
    assert "deep/e.wav" in names and f"{HTML[:8]}.wav" in names and names[2:5] == collection.names(2, 3)
    item = page.get(f"/api/items/{point_of(collection, 'broken.wav')}").json()
    assert item["duration_s"] is None and "cannot be read as sound" in item["error"]
    item = page.get(f"/api/items/{point_of(collection, 'deep/e.wav')}").json()
    assert item["duration_s"] == 2.5 and item["columns"]["what"] == HTML and item["columns"]["folder"] == "deep"
    datetime.strptime(item["columns"]["modified"], "%Y-%m-%d %H:%M:%S")


def test_a_spectrogram_is_the_one_that_the_model_sees(page, collection):
    point = point_of(collection, "deep/f.wav")
    whole = page.get(f"/api/items/{point}/spectrogram").json()
    assert (whole["bands"], whole["frames"], whole["total_s"]) == (80, 401, 4.0)
    pixels = array(whole["data"]).reshape(80, 401)
    samples, rate_hz = soundfile.read(collection.sounds[point].path)
    logmel = collection.model.logmel(samples[None], rate_hz)[0]
    shown_db = pixels / 255 * (whole["high_db"] - whole["low_db"]) + whole["low_db"]
    true_db = np.clip(logmel[:80] * 10 / np.log(10), whole["low_db"], None)
    assert np.abs(shown_db - true_db).max() < 0.2
    # A piece from the middle has the frames of the whole.
    low, piece = (
        logmel[80:, 150:250],
        page.get(f"/api/items/{point}/spectrogram?from_s=1.5&length_s=1&resolution=1").json(),
    )
    assert piece["frames"] == 100 and piece["start_s"] == 1.5
    shown_db = array(piece["data"]).reshape(80, 100) / 255 * (piece["high_db"] - piece["low_db"]) + piece["low_db"]
    assert np.abs(shown_db - np.clip(low * 10 / np.log(10), piece["low_db"], None)).max() < 0.5
    assert piece["frequencies_hz"][0] == pytest.approx(78.75, abs=0.1)


def test_a_sound_is_given_whole_and_in_parts(page, collection):
    place = f"/api/items/{point_of(collection, 'b.flac')}/sound"
    whole = page.get(place)
    samples, rate_hz = soundfile.read(io.BytesIO(whole.content))
    assert (rate_hz, len(samples)) == (16000, 10240) and whole.headers["content-type"] == "audio/wav"
    for wanted, expected in (("bytes=10-19", whole.content[10:20]), ("bytes=-7", whole.content[-7:])):
        part = page.get(place, headers={"Range": wanted})
        assert part.status_code == 206 and part.content == expected
    assert page.get(place, headers={"Range": f"bytes={10**9}-"}).status_code == 416
    assert page.get(place, headers={"Range": "bytes=5-2,7-"}).content == whole.content


@pytest.mark.parametrize("what", ["sound", "spectrogram"])
def test_a_bad_sound_is_one_line(page, collection, what):
    refused = page.get(f"/api/items/{point_of(collection, 'broken.wav')}/{what}")
    assert refused.status_code == 422 and "cannot be read as sound" in refused.json()["error"]
    assert "\n" not in refused.json()["error"]


def test_hidden_patches_are_filled_in(page, collection):
    place = f"/api/items/{point_of(collection, 'deep/f.wav')}/reconstruct"
    drawn = page.post(place, json={"hidden": {"ratio": 0.75, "strategy": "random", "seed": 3}}).json()
    assert (drawn["rows"], drawn["columns"], sum(drawn["hidden"])) == (5, 13, 49)
    assert [error is None for error in drawn["error"]] == [not hidden for hidden in drawn["hidden"]]
    assert drawn["input"]["frames"] == drawn["reconstruction"]["frames"] == 208 and drawn["loss"] > 0
    leaked = page.post(place, json={"hidden": {"ratio": 0.75, "strategy": "random", "seed": 3}, "leak": True}).json()
    assert leaked["hidden"] == drawn["hidden"] and leaked["error"] != drawn["error"]
    painted = page.post(place, json={"start_frame": 300, "resolution": 1, "hidden": [1] * 7 + [0] * 28}).json()
    assert painted["columns"] == 7 and painted["input"]["frames"] == 101 and painted["input"]["start_s"] == 3.0


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({}, "hidden is missing"),
        ({"hidden": [1, 0]}, "hidden has 2 values; expected 65"),
        ({"hidden": [2] * 65}, "hidden is no list of numbers below 2"),
        ({"hidden": [0] * 65}, "hides all or none"),
        ({"hidden": {"ratio": 7}}, "ratio is 7; expected a number from 0.01 to 0.99"),
        ({"hidden": {"ratio": float("nan")}}, "ratio is nan"),
        ({"hidden": {"strategy": HTML}}, "strategy is '<img"),
        ({"hidden": {}, "resolution": 2}, "resolution is 2; expected a whole number from 0 to 1"),
        ({"hidden": {}, "start_frame": 10**7}, "ends at 4 s, before frame 10000000"),
        ({"hidden": {}, "start_frame": True}, "start_frame is True"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_request_is_refused_in_one_line(page, collection, request_, reason):
    place = f"/api/items/{point_of(collection, 'deep/f.wav')}/reconstruct"
    refused = page.post(place, content=json.dumps(request_))
    assert 400 <= refused.status_code < 500 and reason in refused.json()["error"]


@pytest.mark.parametrize("body", [b"[1]", b"{", b"\xff", b'{"id": 1, "id": 2}', b"[" * 100_000])
def test_what_is_no_json_is_refused(page, body):
    for place, method in (("/api/search", "POST"), ("/api/labels", "PUT"), ("/api/items/0/reconstruct", "POST")):
        assert page.request(method, place, content=body).status_code == 400


def test_what_is_hidden_is_heard_as_loud_as_the_input(page, collection):
    point = point_of(collection, "deep/f.wav")
    heard = {}
    for what in ("input", "visible", "reconstruction"):
        answer = page.post(f"/api/items/{point}/listen", json={"hidden": {"seed": 1}, "what": what})
        samples, rate_hz = soundfile.read(io.BytesIO(answer.content))
        assert (rate_hz, len(samples), answer.headers["content-type"]) == (16000, 207 * 160, "audio/wav")
        heard[what] = samples
    assert not np.allclose(heard["visible"], heard["reconstruction"], atol=0.01)
    levels = [20 * np.log10(np.sqrt(np.mean(samples**2))) for samples in heard.values()]
    assert max(levels) - min(levels) < 6


def test_attention_is_seen_from_anywhere(page, collection):
    place = f"/api/items/{point_of(collection, 'deep/f.wav')}/attention"
    maps = []
    for wanted in ({}, {"from": "mean", "layer": 12}, {"from": "rollout"}, {"from": 64, "layer": 3, "head": 2}):
        answer = page.post(place, json=wanted).json()
        maps.append(np.array(answer["weights"]))
        assert (answer["rows"], answer["columns"]) == (5, 13) and len(maps[-1]) == 65 and 0 < maps[-1].sum() <= 1.001
    assert not np.allclose(maps[0], maps[3], atol=1e-3)
    for wrong in ({"from": 65}, {"from": "x"}, {"layer": 13}, {"head": 0}, {"from": None}):
        assert page.post(place, json=wrong).status_code == 400


# Search


def test_the_most_similar_points_are_found(page, collection):
    tone, copy = point_of(collection, "tone/0.wav"), point_of(collection, "copy.wav")
    found = page.post("/api/search", json={"id": tone, "count": 3}).json()["results"]
    assert found[0]["id"] == copy and found[0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert all(collection.names(one["id"], 1)[0].startswith("tone") for one in found)
    # Half a second is compared with whole files.
    part = page.post("/api/search", json={"id": tone, "start_s": 0.1, "end_s": 0.6, "count": 5}).json()["results"]
    assert sum(collection.names(one["id"], 1)[0].startswith("tone") for one in part) >= 4
    body = collection.sounds[tone].path.read_bytes()
    sent = page.post("/api/search?count=2", content=body, headers={"Content-Type": "audio/wav"}).json()["results"]
    assert {one["id"] for one in sent} == {tone, copy}


@pytest.mark.parametrize("body", [b"", b"this is no sound", b"RIFF" + b"\0" * 60, b"\x1aE\xdf\xa3" + b"\xff" * 500])
def test_a_bad_upload_is_refused_in_one_line(page, body):
    refused = page.post("/api/search", content=body, headers={"Content-Type": "audio/webm"})
    assert 400 <= refused.status_code < 500
    assert "the sound" in refused.json()["error"] and "/tmp" not in refused.json()["error"]


def test_a_huge_upload_is_refused_while_it_arrives(page, monkeypatch):
    monkeypatch.setattr("melmask.explore.user_api.MOST_SOUND_BYTES", 1 << 20)
    monkeypatch.setattr(explore_requests, "MOST_JSON_BYTES", 1 << 20)

    def parts():
        # A length is not announced, and nothing but the count of what has come ends this.
        for _ in range(12):
            yield b"\0" * (1 << 18)

    for kind in ("audio/wav", "application/json"):
        refused = page.post("/api/search", content=parts(), headers={"Content-Type": kind})
        assert refused.status_code == 413 and "larger than 1 MB" in refused.json()["error"]


# Labels


@pytest.fixture
def labeled(page, collection):
    """Three tones and three noises are labeled."""
    for kind in ("tone", "noise"):
        points = [n for n, name in enumerate(collection.names(0, 17)) if name.startswith(kind)][:3]
        assert page.put("/api/labels", json={"ids": points, "label": f" {kind} "}).status_code == 200
    yield
    page.put("/api/labels", json={"ids": list(range(17)), "label": None})


def test_labels_are_saved_at_once_as_a_table_that_finetune_takes(page, collection, labeled):
    labels = page.get("/api/labels").json()["labels"]
    assert sorted(labels.values()) == ["noise"] * 3 + ["tone"] * 3
    table = read_labels(collection.labels.path)
    assert table.labels == [labels[str(point)] for point in sorted(map(int, labels))] and all(
        p.exists() for p in table.paths
    )
    assert page.get("/api/labels.csv").text == collection.labels.path.read_bytes().decode()
    point = point_of(collection, "a.wav")
    page.put("/api/labels", json={"ids": [point], "label": f'{HTML}, "quoted", =1+1'})
    assert page.get("/api/labels").json()["labels"][str(point)] == f'{HTML}, "quoted", =1+1'
    assert page.get("/api/labels.csv").headers["content-type"] == "text/csv; charset=utf-8"


def test_two_pages_on_one_table_of_labels_lose_nothing(tmp_path):
    sounds = [Sound(tmp_path / f"{number}.wav") for number in range(4)]
    one, other = (Labels(sounds[first : first + 3], tmp_path / "labels.csv") for first in (0, 1))
    one.put([0, 1], "a")
    other.put([1, 2], "b")
    one.put([0], None)
    assert one.all() == {1: "a", 2: "b"} and Labels(sounds, tmp_path / "labels.csv").all() == {1: "a", 2: "b", 3: "b"}


def test_cells_of_a_table_stay_what_they_are():
    dates = [str(20260101 + number) for number in range(25)]
    assert [column_of("day", dates).value(row) for row in range(25)] == list(map(float, dates))
    assert column_of("name", [f"{number}_01" for number in range(25)]).kind == "category"


@pytest.mark.parametrize("label", ["", "  ", "a;b", "a|b", "a\nb", "\x1b[2J", "x" * 201, 7, ["a"]])
def test_what_cannot_be_a_label_is_refused(page, label):
    assert 400 <= page.put("/api/labels", json={"ids": [0], "label": label}).status_code < 500
    assert page.get("/api/labels").json() == {"labels": {}}


@pytest.mark.parametrize("ids", [[17], [-1], ["0"], "0", None, [True], [0] * 18], ids=str)
def test_what_is_no_point_cannot_be_labeled(page, ids):
    assert page.put("/api/labels", json={"ids": ids, "label": "x"}).status_code == 400
    assert page.get("/api/labels").json() == {"labels": {}}


def test_a_probe_learns_from_the_labels_and_asks_for_more(page, collection, labeled):
    probe = page.post("/api/probe").json()
    assert (probe["labelled"], probe["classes"], probe["accuracy"]) == (6, ["noise", "tone"], 1.0)
    low, high = probe["interval"]
    assert 0.5 < low < 1.0 and high == 1.0
    guesses = array(probe["codes"], "<i4")
    for point, name in enumerate(collection.names(0, 17)):
        if name.startswith(("noise", "tone")):
            assert probe["classes"][guesses[point]] == name.partition("/")[0]
    assert guesses[point_of(collection, "broken.wav")] == -1
    asked = page.get("/api/suggestions?count=4").json()["items"]
    assert len({one["id"] for one in asked}) == 4 and all(" or " in one["why"] for one in asked)
    assert not {str(one["id"]) for one in asked} & set(page.get("/api/labels").json()["labels"])


def test_without_labels_unlike_points_are_suggested_and_nothing_is_learned(page):
    assert page.post("/api/probe").json()["error"] == "0 labeled points have 0 labels; label some with two"
    assert len({one["id"] for one in page.get("/api/suggestions").json()["items"]}) == 10


def test_mislabeled_points_and_duplicates_are_found(page, collection, labeled):
    wrong = point_of(collection, "tone/copy.wav")
    page.put("/api/labels", json={"ids": [wrong], "label": "noise"})
    (suspect, *_) = page.get("/api/suspects").json()["items"]
    assert suspect["id"] == wrong and "nearest labeled sounds are tone" in suspect["why"]
    (pair, *_) = page.get("/api/duplicates?count=1").json()["items"]
    assert {pair["id"], pair["other"]} == {point_of(collection, "tone/0.wav"), wrong}


def test_the_next_start_embeds_what_is_new_and_keeps_the_labels(collection, folder, labeled, sound):
    again = Collection(folder, collection.model, ExploreOptions(out=collection.labels.path.parent))
    assert again.vectors.known.sum() == 16 and again.labels.all() == collection.labels.all()
    assert np.array_equal(again.vectors.rows, collection.vectors.rows)
    late = folder / "late.wav"
    soundfile.write(late, sound(0.4, 1), 16000)
    try:
        later = settled(Collection(folder, collection.model, ExploreOptions(out=collection.labels.path.parent)))
        assert later.count == 18 and later.vectors.known.sum() == 17
        assert sorted(later.labels.all().values()) == sorted(collection.labels.all().values())
    finally:
        late.unlink()


def test_rows_with_times_are_points_of_their_own(folder, model, tmp_path):
    table = tmp_path / "segments.csv"
    path = folder / "deep" / "f.wav"
    table.write_text(f"path,start,end,kind\n{path},0,1,x\n{path},1,2.5,y\n{path},2.5,,x\n", encoding="utf-8")
    collection = settled(Collection(table, model, ExploreOptions(out=tmp_path / "out")))
    client = TestClient(app_of(collection, TOKEN, PORT), base_url=f"http://127.0.0.1:{PORT}")
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    assert client.get("/api/collection").json()["kind"] == "segments"
    assert client.get("/api/items/1").json()["columns"]["kind"] == "y"
    assert client.get("/api/items/1/spectrogram").json()["frames"] == 151
    assert client.get("/api/names").json()["names"][2].endswith("f.wav 2.5 s - end")
    client.put("/api/labels", json={"ids": [0, 2], "label": "early"})
    rows = list(csv.reader(io.StringIO(client.get("/api/labels.csv").text)))
    assert rows == [
        ["path", "label", "start", "end"],
        [str(path), "early", "0.0", "1.0"],
        [str(path), "early", "2.5", ""],
    ]
    assert Collection(table, model, ExploreOptions(out=tmp_path / "out")).labels.all() == {
        0: "early",
        2: "early",
    }


def test_an_embedded_table_brings_its_vectors_along(folder, model, collection, tmp_path, monkeypatch):
    """Its paths are relative, one of its files failed, and a long one has several rows of frames."""
    monkeypatch.setattr("melmask.embedding.extract._VALUES_PER_ROW", 960 * 20)
    monkeypatch.chdir(folder.parent)
    embed_table(model, find_audio([Path(folder.name)]), Path("x.parquet"), keep_frames=True)
    again = Collection(Path("x.parquet"), model, ExploreOptions(out=tmp_path / "out"))
    assert again.count == 16 and again.vectors.known.all()
    point = point_of(collection, "deep/f.wav")
    same = again.vectors.rows[point_of(again, "deep/f.wav")]
    assert np.abs(same - collection.vectors.rows[point]).max() < 1e-4


def test_the_command_serves_a_folder_and_ends_cleanly(sound_folder, run_folder, tmp_path):
    command = [sys.executable, "-m", "melmask", "explore", sound_folder, "--model", run_folder, "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, encoding="utf-8", **pipes)
    try:
        assert server.stdout.readline() == "7 files, of which 0 are embedded\n"
        address, _, token = server.stdout.readline().strip().partition("/?token=")

        def ask(place, **more):
            request = Request(f"{address}{place}", headers={"Authorization": f"Bearer {token}"}, **more)
            with urlopen(request, timeout=60) as answer:
                return json.load(answer)

        while ask("/api/collection")["embedding"]["running"]:
            time.sleep(0.1)
        ask("/api/labels", data=b'{"ids": [1, 2], "label": "kept"}', method="PUT")
        server.send_signal(signal.SIGINT)
        said, failed = server.communicate(timeout=60)
    finally:
        server.kill()
        server.communicate()
    assert server.returncode == 0 and "Traceback" not in failed and "melmask-explore/labels.csv: 2 labels" in said
    assert read_sheet(tmp_path / "melmask-explore" / "labels.csv").rows[0][1] == "kept"


def test_the_axes_of_the_map_are_those_of_largest_variance():
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((400, 60)) * np.linspace(3, 1, 60) @ rng.standard_normal((60, 60)) + 5).astype(
        np.float32
    )
    axes = projection.principal_axes(rows, np.arange(400), 2)
    centered = rows - rows.mean(0)
    exact = np.linalg.svd(centered)[2][:2]
    assert np.abs((axes.T * exact).sum(1)) == pytest.approx(1, abs=0.01)
    assert np.isfinite(projection.principal_axes(rows[:1], np.arange(1), 50)).all()


def test_a_map_by_umap_is_kept(collection, monkeypatch):
    """UMAP itself needs minutes to be compiled, so something else stands for it."""
    computed = []

    def placed(rows):
        computed.append(rows)
        return rows[:, :2]

    monkeypatch.setattr(projection, "find_spec", lambda name: name)
    monkeypatch.setattr(projection, "_by_umap", placed)
    for _ in range(2):
        maps = projection.Projections(collection.vectors, collection.labels.path.parent / "maps")
        points = maps.points("umap")
        assert np.array_equal(np.isfinite(points[:, 0]), collection.vectors.known) and np.nanmax(np.abs(points)) <= 1
    assert maps.names == ["pca", "umap"] and len(computed) == 1
