"""Models behind the HEAR API, and the embeddings of a task by them: computed once, in the kit's order."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hear_folders import RATE_HZ, write_event_task, write_fold_task, write_tag_task

from melmask.audio.files import read_audio
from melmask.embedding.choice import FeatureChoice
from melmask.errors import CheckpointError, ConfigError, InputError
from melmask.evaluate import embeddings as embeddings_module
from melmask.evaluate.embeddings import batch_size, embed_task
from melmask.evaluate.models import name_apart, open_client, slug
from melmask.evaluate.options import EvaluateOptions
from melmask.evaluate.tasks import read_task
from melmask.labels.tables import Event


def chosen(**features):
    return EvaluateOptions(choice=FeatureChoice(**features), device="cpu")


CPU = chosen()
MODULE = """
import torch
CALLS = []
class Model:
    sample_rate, scene_embedding_size, timestamp_embedding_size = 16000, 3, 2
def load_model(path=""):
    CALLS.append(path)
    return Model()
def get_scene_embeddings(audio, model):
    CALLS.append(tuple(audio.shape))
    return torch.stack([audio.mean(1), audio.std(1), audio.abs().amax(1)], 1)
def get_timestamp_embeddings(audio, model):
    parts = audio.unfold(1, 1600, 800)
    times = (torch.arange(parts.shape[1]) * 50.0 + 50.0).expand(len(audio), -1)
    return torch.stack([parts.mean(2), parts.std(2)], 2), times
"""


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Put a HEAR module on the path: (name, text) -> its source for `open_client`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text=MODULE):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return f"python:{name}"

    return write


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hear")
    return {task.name: task for task in map(read_task, (write_fold_task(folder), write_tag_task(folder)))} | {
        "bursts": read_task(write_event_task(folder, clips=4))
    }


def test_a_melmask_model_gives_its_scene_vectors(encoder, run_folder, sound):
    client = open_client(str(run_folder), CPU)
    audio = np.stack([sound(1.0, seed) for seed in range(3)])
    assert (client.sample_rate_hz, client.scene_size) == (RATE_HZ, encoder.embedding_size())
    np.testing.assert_allclose(client.scenes(audio), encoder.embed(audio, RATE_HZ).scene, rtol=0, atol=0)
    frames, times_ms = client.timestamps(audio)
    assert frames.shape == (3, times_ms.shape[1], client.timestamp_size)
    np.testing.assert_allclose(np.diff(times_ms, axis=1), 40)


def test_models_are_those_that_release_0_1_0_judged():
    released = Path(__file__).parent / "reference" / "files-0.1.0"
    known = json.loads((released / "results" / "results.json").read_text())["models"]
    for model, source in zip(known, (str(released / "run"), "logmel"), strict=True):
        client = open_client(source, CPU)
        assert (client.name, client.identity, client.settings) == (model["name"], model["identity"], model["settings"])


def test_layers_and_scenes_can_be_chosen_and_make_another_identity(run_folder):
    plain, wide = (
        open_client(str(run_folder), CPU),
        open_client(str(run_folder), chosen(layers=(1, 2), scene="mean+std")),
    )
    assert wide.scene_size == 4 * plain.scene_size
    assert (
        plain.identity
        != wide.identity
        == open_client(str(run_folder), chosen(layers=(1, 2), scene="mean+std")).identity
    )
    with pytest.raises(ConfigError, match="layer is 9; this model has layers 1 to 2"):
        open_client(str(run_folder), chosen(layers=(9,)))


def test_the_untrained_network_is_another_one_of_the_same_shape(run_folder, sound):
    trained, fresh = open_client(str(run_folder), CPU), open_client(f"untrained:{run_folder}", CPU)
    audio = sound(1.0, 0)[None]
    assert fresh.name == f"untrained {trained.name}"
    assert fresh.identity != trained.identity
    assert np.abs(fresh.scenes(audio) - trained.scenes(audio)).max() > 0.01


def test_the_log_mel_baseline_is_mean_and_deviation_of_each_band(encoder, sound):
    client = open_client("logmel", CPU)
    audio = np.stack([sound(1.0, seed) for seed in range(2)])
    logmel = encoder.front_end(torch.from_numpy(audio)).numpy()
    expected = np.concatenate([logmel.mean(2), logmel.std(2)], 1)
    np.testing.assert_allclose(client.scenes(audio), expected, rtol=1e-5, atol=1e-5)
    frames, times_ms = client.timestamps(audio)
    assert frames.shape == (2, times_ms.shape[1], 160)
    assert times_ms[0, -1] <= 1000
    # Step 10 is the 16 frames around frame 40.
    np.testing.assert_allclose(frames[0, 10, :80], logmel[0, :, 32:48].mean(1), rtol=1e-5)


def test_somebody_elses_module_is_called_as_the_kit_would(write_module, sound):
    client = open_client(write_module("their_model") + "=weights.bin", CPU)
    audio = np.stack([sound(0.5, seed) for seed in range(2)])
    assert (client.name, client.scene_size, client.timestamp_size) == ("their_model", 3, 2)
    np.testing.assert_allclose(client.scenes(audio)[:, 1], audio.std(1, ddof=1), rtol=1e-5)
    assert ["weights.bin", audio.shape] == sys.modules["their_model"].CALLS


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("import nothing_of_the_kind", InputError, "cannot be imported .ModuleNotFoundError: No module named"),
        ("x = 1", InputError, "has no function load_model; expected the HEAR 2021 API"),
        (
            MODULE.replace("return Model()", "raise OSError('no weights\\nhere')"),
            CheckpointError,
            "OSError: no weights$",
        ),
        (MODULE.replace("sample_rate, scene", "rate, scene"), InputError, "does not follow the HEAR API"),
    ],
)
def test_a_module_that_is_no_hear_model_is_refused_in_one_line(write_module, text, error, message):
    with pytest.raises(error, match=message) as caught:
        open_client(write_module("wrong_model", text), CPU)
    assert "\n" not in str(caught.value)


def test_answers_that_cannot_be_used_are_refused(write_module, sound):
    nan = open_client(
        write_module("nan_model", MODULE.replace("audio.mean(1), audio.std", "audio.mean(1) / 0 * 0, audio.std")), CPU
    )
    with pytest.raises(InputError, match="scene embeddings with NaN or infinity; expected finite numbers of shape"):
        nan.scenes(sound(0.5, 0)[None])
    short = open_client(write_module("short_model", MODULE.replace("audio.abs().amax(1)", "")), CPU)
    with pytest.raises(InputError, match=r"scene embeddings with the shape \(1, 2\); expected"):
        short.scenes(sound(0.5, 0)[None])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("parts", "gave timestamp embeddings as Tensor; expected a pair"),
        (
            "torch.stack([parts.mean(2), parts.std(2)], 2), times[0]",
            r"times with the shape \(9,\); expected .* \(1, 9\)",
        ),
        ("torch.stack([parts.mean(2), parts.std(2)], 2), times.flip(1)", "gave times that do not increase"),
        ("torch.stack([parts.mean(2), parts.std(2)], 2), times / 0", "gave times with NaN or infinity"),
        ("torch.stack([parts.mean(2), parts.std(2)], 2), times.numpy()", "gave times as ndarray; expected a torch"),
        ("torch.stack([parts.mean(2), parts.std(2)], 2).numpy(), times", "timestamp embeddings as ndarray"),
        ("parts[:, :0, :2], times[:, :0]", "gave times that do not increase; expected one or more steps"),
        ("parts.mean(2), times", r"timestamp embeddings with the shape \(1, 9\); expected finite numbers of shape"),
    ],
)
def test_time_stamps_that_cannot_be_used_are_refused(write_module, sound, answer, message):
    text = MODULE.replace("torch.stack([parts.mean(2), parts.std(2)], 2), times", answer)
    client = open_client(write_module("wrong_times", text), CPU)
    with pytest.raises(InputError, match=message):
        client.timestamps(sound(0.5, 0)[None])


def test_a_buffer_that_is_used_again_changes_no_earlier_vectors(write_module, sound):
    text = MODULE.replace("    return torch.stack([audio.mean(1)", "    BUFFER[:] = torch.stack([audio.mean(1)")
    text = text.replace("amax(1)], 1)", "amax(1)], 1)\n    return BUFFER") + "BUFFER = torch.empty(1, 3)\n"
    client = open_client(write_module("thrifty_model", text), CPU)
    first = client.scenes(sound(0.5, 0)[None])
    before = first.copy()
    assert not np.array_equal(client.scenes(sound(0.5, 1)[None]), before)
    np.testing.assert_array_equal(first, before)


def test_what_a_module_does_to_the_process_is_undone(write_module, sound):
    unruly = "import os, torch; os.chdir('/'); torch.set_default_dtype(torch.float64); torch.set_num_threads(1)\n"
    text = MODULE.replace("    CALLS.append(path)\n", f"    {unruly}").replace("import torch\n", unruly, 1)
    before = Path.cwd(), torch.get_default_dtype(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        client = open_client(write_module("unruly_model", text), CPU)
        assert client.scenes(sound(0.5, 0)[None]).shape == (1, 3)
        assert (Path.cwd(), torch.get_default_dtype(), torch.get_num_threads()) == (*before[:2], 2)
    finally:
        torch.set_num_threads(before[2])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("    CALLS.append(path)\n", "    raise SystemExit('no GPU')\n"), CheckpointError, "SystemExit: no GPU"),
        (("CALLS = []\n", "raise SystemExit(3)\n"), InputError, "cannot be imported .SystemExit: 3."),
        (("= 16000, 3, 2", "= 0, 3, 2"), InputError, "sample_rate 0, scene_embedding_size 3 .*expected numbers from 1"),
        (("= 16000, 3, 2", "= 16000, -1, 2"), InputError, "scene_embedding_size -1"),
    ],
)
def test_a_module_that_ends_the_process_or_has_no_size_is_refused(write_module, change, error, message):
    with pytest.raises(error, match=message):
        open_client(write_module("bad_model", MODULE.replace(*change)), CPU)


@pytest.mark.parametrize(("times", "told"), [("times", False), ("times / 1000", True), ("times * 100", True)])
def test_times_that_cannot_be_ms_are_told_once(write_module, sound, capsys, times, told):
    text = MODULE.replace("parts.std(2)], 2), times", f"parts.std(2)], 2), {times}")
    client = open_client(write_module("slow_clock", text), CPU)
    for _ in range(2):
        client.timestamps(sound(0.5, 0)[None])
    assert capsys.readouterr().err.count("for clips of 500 ms: HEAR's are in ms") == told


def test_a_model_given_as_the_current_folder_has_its_name(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder)
    assert open_client(".", CPU).name == run_folder.name


def test_names_tell_models_of_a_report_apart_and_are_fit_for_a_folder(run_folder):
    def opened(*choices):
        return [open_client(str(run_folder), choice) for choice in choices]

    wide = chosen(scene="mean+std")
    first = opened(CPU, wide)
    name_apart(first, {})
    assert [client.name for client in first] == ["run", "run 2"]
    report = {client.name: client.identity for client in first}
    # Of a further call, in another order: what is known keeps its name, what is new takes the next.
    later = opened(wide, chosen(layers=(1,)), CPU)
    name_apart(later, report)
    assert [client.name for client in later] == ["run 2", "run 3", "run"]
    (unknown,) = opened(wide)
    name_apart([unknown], {"run": None})
    assert unknown.name == "run"
    # "run-2" and "run 2" would share a folder.
    (other,) = opened(chosen(layers=(1,)))
    name_apart([other], {"run": "x", "run-2": "y"})
    assert other.name == "run 3"
    assert slug("untrained a/b: c") == "untrained-a-b-c"
    assert slug("..") == "model"


def test_a_model_is_the_same_wherever_its_weights_lie(tmp_path, write_module):
    source = write_module("their_moved_model")
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(b"the same")
    first, second = (open_client(f"{source}={tmp_path / name}", CPU) for name in ("a.bin", "b.bin"))
    assert first.identity == second.identity


def test_a_module_may_put_something_else_in_its_place(write_module):
    text = f"{MODULE}\nimport sys, types\nsys.modules[__name__] = types.SimpleNamespace(**globals())\n"
    assert open_client(write_module("odd_model", text), CPU).scene_size == 3


def test_a_module_is_another_one_when_code_it_imports_or_its_weights_change(tmp_path, write_module):
    package, weights = tmp_path / "their_package", tmp_path / "weights"
    for folder in (package, weights):
        folder.mkdir()
    (package / "__init__.py").touch()
    (package / "api.py").write_text("from their_helper import *\n" + MODULE)
    (package / "network.py").write_text("WIDTH = 3")
    (tmp_path / "their_helper.py").write_text("DEPTH = 4")
    (tmp_path / "unrelated.py").write_text("x = 1")
    (weights / "model.bin").write_bytes(b"1")
    source = f"python:their_package.api={weights}"
    write_module("their_flat_model", "import their_helper\n" + MODULE)
    identities = [open_client(source, CPU).identity]
    for path, content in [
        (package / "network.py", "WIDTH = 4"),
        (tmp_path / "their_helper.py", "DEPTH = 5"),
        (weights / "model.bin", "2"),
    ]:
        path.write_text(content)
        identities.append(open_client(source, CPU).identity)
    assert len(set(identities)) == 4
    flat = open_client("python:their_flat_model", CPU).identity
    (tmp_path / "unrelated.py").write_text("x = 2")
    assert (open_client(source, CPU).identity, open_client("python:their_flat_model", CPU).identity) == (
        identities[-1], flat,
    )  # fmt: skip
    (tmp_path / "their_helper.py").write_text("DEPTH = 6")
    assert open_client("python:their_flat_model", CPU).identity != flat


def test_a_batch_is_as_large_as_the_kits(run_folder, tasks):
    client = open_client(str(run_folder), CPU)
    # 0.7 * 120 s / clip length, at 16 kHz; one clip where lengths differ.
    assert [batch_size(client, tasks[name]) for name in ("pitches", "tags", "bursts")] == [168, 1, 28]


def test_scenes_come_in_the_order_in_which_the_kit_shuffles_them(run_folder, tasks, tmp_path):
    client, task = open_client(str(run_folder), CPU), tasks["pitches"]
    found = embed_task(client, task, tmp_path)
    order = random.Random(0)
    for split in task.splits:
        names = list(task.files[split])
        order.shuffle(names)
        assert found[split].files == names
        sounds = np.stack([read_audio(task.audio_folder(split, RATE_HZ) / name, RATE_HZ) for name in names])
        np.testing.assert_allclose(found[split].vectors, client.scenes(sounds), atol=1e-5)
        labels = [task.labels[i] for i in found[split].targets.argmax(1)]
        assert [[label] for label in labels] == [task.files[split][name] for name in names]


def test_a_step_has_the_labels_of_the_events_around_its_time(run_folder, tasks, tmp_path):
    client, task = open_client(str(run_folder), CPU), tasks["bursts"]
    found = embed_task(client, task, tmp_path)["valid"]
    assert len(found.vectors) == len(found.times_ms) == len(found.clip_of) == len(found.targets)
    for row in range(0, len(found.times_ms), 7):
        events = task.files["valid"][found.files[found.clip_of[row]]]
        during = {e.label for e in events if e.start_ms <= found.times_ms[row] <= e.end_ms}
        assert {task.labels[i] for i in np.flatnonzero(found.targets[row])} == during
    assert found.targets.any(1).mean() == pytest.approx(0.5, abs=0.1)


def test_the_ends_of_an_event_belong_to_it():
    targets = np.zeros((4, 2), dtype=bool)
    embeddings_module._mark(targets, [Event("b", 100.0, 200.0)], np.array([99.99, 100, 200, 200.001]), {"a": 0, "b": 1})
    assert targets.tolist() == [[False, False], [False, True], [False, True], [False, False]]


def test_what_was_computed_is_read_again_and_only_that(run_folder, tasks, tmp_path, monkeypatch):
    task = tasks["tags"]
    monkeypatch.setattr(embeddings_module, "_SCENES_PER_PART", 5)
    first = embed_task(open_client(str(run_folder), CPU), task, tmp_path)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 3 * 5
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    client, calls = open_client(str(run_folder), CPU), []
    scenes = client.scenes
    monkeypatch.setattr(client, "scenes", lambda audio: calls.append(len(audio)) or scenes(audio))
    again = embed_task(client, task, tmp_path)
    assert 8 <= len(calls) <= 10
    assert all(np.array_equal(again[split].vectors, first[split].vectors) for split in task.splits)
    embed_task(open_client(f"untrained:{run_folder}", CPU), task, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * len(parts)


def test_damaged_parts_of_the_cache_are_computed_anew(run_folder, tmp_path):
    task = read_task(write_fold_task(tmp_path / "tasks"))
    client = open_client(str(run_folder), CPU)
    first = embed_task(client, task, tmp_path / "cache")
    for damaged in (b"", b"PK\x03\x04"):
        for part in (tmp_path / "cache").glob("*.npz"):
            part.write_bytes(damaged)
        again = embed_task(client, task, tmp_path / "cache")
        assert np.array_equal(again["fold00"].vectors, first["fold00"].vectors)


def test_a_changed_sound_is_computed_anew(run_folder, tmp_path):
    task = read_task(write_fold_task(tmp_path / "tasks"))
    client = open_client(str(run_folder), CPU)
    first = embed_task(client, task, tmp_path / "cache")
    name = first["fold01"].files[0]
    soundfile.write(task.audio_folder("fold01", RATE_HZ) / name, np.full(RATE_HZ // 2, 0.1), RATE_HZ)
    again = embed_task(client, task, tmp_path / "cache")
    changed = np.abs(again["fold01"].vectors - first["fold01"].vectors).max(1) > 1e-3
    assert changed.tolist() == [True] + [False] * (len(changed) - 1)
    assert np.array_equal(again["fold00"].vectors, first["fold00"].vectors)


def test_sounds_at_another_rate_are_resampled_and_missing_ones_named(run_folder, tmp_path):
    task = read_task(write_fold_task(tmp_path / "tasks"))
    client = open_client(str(run_folder), CPU)
    expected = embed_task(client, task, tmp_path / "cache")["fold00"].vectors
    for path in (task.folder / str(RATE_HZ)).rglob("*.wav"):
        other = task.folder / "48000" / path.parent.name / path.name
        other.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(other, np.repeat(read_audio(path, RATE_HZ), 3), 48000)
        path.unlink()
    with pytest.raises(InputError, match=r"16000/fold00/0-0\.wav: No such file or directory; unpack the whole task"):
        embed_task(client, task, tmp_path / "cache")
    for split in task.splits:
        (task.folder / str(RATE_HZ) / split).rmdir()
    found = embed_task(client, task, tmp_path / "cache")["fold00"].vectors
    assert np.abs(found - expected).mean() < 0.2 * np.abs(expected).mean()


def test_clips_of_several_lengths_in_a_task_of_one_are_refused(run_folder, tmp_path):
    folder = write_fold_task(tmp_path)
    soundfile.write(folder / str(RATE_HZ) / "fold00" / "0-3.wav", np.zeros(4000), RATE_HZ)
    with pytest.raises(InputError, match="clips of 4000 to 8000 samples in the batch of"):
        embed_task(open_client(str(run_folder), CPU), read_task(folder), tmp_path / "cache")


def test_the_json_of_a_task_decides_what_is_embedded(run_folder, tmp_path):
    folder = write_fold_task(tmp_path)
    kept = json.loads((folder / "fold00.json").read_text())
    (folder / "fold00.json").write_text(json.dumps(dict(list(kept.items())[:5])))
    found = embed_task(open_client(str(run_folder), CPU), read_task(folder), tmp_path / "cache")
    assert [len(found[split].vectors) for split in ("fold00", "fold01")] == [5, 12]
