"""Fine-tuning and prediction from the files a user has to the table a user gets."""

import contextlib
import csv
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hear_folders import PITCHES_HZ, RATE_HZ, tone, write_event_task, write_table
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

import melmask
from melmask.checkpoint.folder import save_checkpoint
from melmask.classifier import network as network_module
from melmask.classifier import training as training_module
from melmask.classifier.examples import Clips, frames_of_event, read_logmels
from melmask.classifier.finetune import finetune
from melmask.classifier.model import AudioClassifier, ClassifierCard, load_classifier, validation_score
from melmask.classifier.network import ClassifierNetwork, Head, fit_head
from melmask.classifier.options import FinetuneConfig, FinetuneOptions, PredictOptions
from melmask.classifier.predict import predict_files
from melmask.classifier.predictions import Prediction, _line, _read
from melmask.classifier.training import Finetuning
from melmask.cli import main
from melmask.config_text import with_overrides
from melmask.downstream.linear_and_knn import standardize
from melmask.errors import CheckpointError, ConfigError, InputError, OutputError, TrainingError
from melmask.labels.tables import Event
from melmask.system.cores import Cores
from melmask.system.files import atomic_write, locked
from melmask.train import snapshot

LABELS = list(PITCHES_HZ)
OLD = Path(__file__).parent / "reference" / "files-0.1.0"


def configured(*overrides):
    quick = ("epochs=8", "head_epochs=3", "batch_size=12", "learning_rate=5e-3", "patience_epochs=20")
    return with_overrides(FinetuneConfig(), [*quick, *overrides])


def tune(source, labels, out, *overrides):
    return finetune(str(source), labels, out, configured(*overrides), FinetuneOptions(device="cpu"))


def training_of(encoder, *overrides, kind="multiclass", classes=3, crop_frames=64):
    """A fresh copy of the encoder with a head, ready to be trained."""
    config, model = configured(*overrides), melmask.load(encoder.name, "cpu").model
    return Finetuning(ClassifierNetwork(model, kind, classes, config.scene), config, crop_frames, hop_ms=10.0)


def write_tones(folder, labels, *columns, header=("path", "label")):
    """Half a second of each label; in the table, further columns may follow."""
    rng = np.random.default_rng(0)
    for number, label in enumerate(labels):
        soundfile.write(folder / f"{number}.wav", tone(label, 0.5, rng), RATE_HZ)
    rows = zip((f"{number}.wav" for number in range(len(labels))), *(columns or [labels]), strict=True)
    return write_table(folder, [header, *rows])


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics_of(out):
    return read_lines(out / "metrics.jsonl")


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def killed_at(monkeypatch, at, saved):
    """Expect a kill when the state after (epochs, batches) is written: just after it is saved, or just before."""
    save = Finetuning._save

    def killed(self, path, epoch, losses):
        if saved or (epoch, len(losses)) != at:
            save(self, path, epoch, losses)
        if (epoch, len(losses)) == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Finetuning, "_save", killed)
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Thirty-six tones of three pitches, a broken file among them, with a split."""
    folder = tmp_path_factory.mktemp("labeled")
    rng, rows = np.random.default_rng(0), [("path", "label", "split")]
    for i in range(36):
        label, part = LABELS[i % 3], ("train", "train", "valid", "test")[i // 3 % 4]
        soundfile.write(folder / f"{i}.wav", tone(label, rng.uniform(0.3, 1.2), rng), RATE_HZ)
        rows.append((f"{i}.wav", label, part))
    (folder / "broken.wav").write_text("no sound")
    return write_table(folder, [*rows, ("broken.wav", "low", "train")])


@pytest.fixture(scope="module")
def trained(run_folder, table, tmp_path_factory):
    out = tmp_path_factory.mktemp("finetuned") / "out"
    return out, tune(run_folder, table, out)


# What the network hears and starts from.


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "frames"),
    [(0, 5, 300), (100, 110, 300), (1440, 1460, 300), (2960, 3000, 300), (700, 705, 300), (100, 110, 10)],
)
def test_an_event_shorter_than_a_step_counts_as_one(start_ms, end_ms, frames):
    """Wherever it lies, and wherever the crop begins, the center of one step is in it."""
    first, end = frames_of_event(Event("a", start_ms, end_ms), 10.0, frames, 16)
    assert first >= 0 and end - first == 16
    if frames == 300:
        assert end <= frames and first <= start_ms / 10 + 1 and end_ms / 10 - 1 <= end
        assert all(sum(first <= center < end for center in range(offset, frames, 16)) == 1 for offset in range(16))
    assert frames_of_event(Event("a", 1000, 1500), 10.0, 300, 16) == (100, 151)


def test_it_begins_with_the_linear_probe(encoder, table, monkeypatch):
    monkeypatch.setattr(network_module, "_PENALTIES", (1.0,))
    model = melmask.load(encoder.name, "cpu")
    rows = [row for row in read_table(table) if row["path"] != "broken.wav"]
    logmels, *_ = read_logmels(model, [table.parent / row["path"] for row in rows])
    numbers = np.array([LABELS.index(row["label"]) for row in rows])
    clips = Clips(list(logmels.values()), list(np.eye(3, dtype=np.float32)[numbers]))
    network = ClassifierNetwork(model.model, "multiclass", 3, "mean+std")
    network.start_head(clips, clips)
    scenes = np.stack([model.embed(table.parent / row["path"], scene="mean+std").scene for row in rows])
    train, *_ = standardize(scenes)
    expected = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(train, numbers).predict_proba(train)
    np.testing.assert_allclose(network.predict(clips)[0], expected, atol=0.01)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_the_probe_is_no_surer_than_validation_bears(kind):
    """What cannot be learned is answered with the classes' shares, what can be learned is learned."""
    generator = torch.Generator().manual_seed(0)
    vectors, noise = torch.randn(40, 20, generator=generator), torch.randn(40, 20, generator=generator)
    targets = torch.eye(2)[torch.arange(40) % 2]
    told = vectors.clone()
    told[:, 0] = 10 * targets[:, 0]
    sure = []
    for rows, checked in ((told, told), (vectors, noise)):
        head = Head(20, 2)
        fit_head(head, kind, (rows, targets), (checked, targets))
        with torch.no_grad():
            logits = head(rows)
        sure.append((logits.softmax(1) if kind == "multiclass" else logits.sigmoid())[:, 0])
    assert (sure[0] - targets[:, 0]).abs().mean() < 0.1
    assert (sure[1] - 0.5).abs().max() < 0.2


def test_a_head_ignores_what_did_not_vary_in_training(encoder, tmp_path, monkeypatch):
    """Clips of one patch have no deviation over time; of longer ones it is large."""
    training = training_of(encoder, "epochs=4", "head_epochs=0", classes=2, crop_frames=16)
    rng = np.random.default_rng(0)
    clips = [(rng.standard_normal((16, 80)) + 2 * (i % 2)).astype(np.float16) for i in range(24)]
    short = Clips(clips, [np.eye(2, dtype=np.float32)[i % 2] for i in range(24)])
    scores = iter(np.arange(5.0).tolist())
    monkeypatch.setattr(training_module, "validation_score", lambda *_: next(scores))
    training.run(short, short, tmp_path / "finetune.pt", lambda *_: None)
    long = Clips([np.concatenate([c, d]) for c, d in zip(clips[:-2], clips[2:], strict=True)], short.targets[:-2])
    sure, longer = (training.network.predict(part)[0][:22] for part in (short, long))
    assert (sure.argmax(1) == longer.argmax(1)).mean() > 0.9
    assert np.abs(longer - sure).max() < 0.3


@pytest.mark.parametrize("most", [10_000, 50])
def test_an_event_classifier_begins_with_a_probe_of_the_steps(run_folder, tmp_path, monkeypatch, most):
    monkeypatch.setattr(network_module, "_HEAD_STEPS", most)
    rows, head_rows = [], ClassifierNetwork.head_rows

    def counted(self, train):
        found = head_rows(self, train)
        rows.append([len(part) for part in found])
        return found

    monkeypatch.setattr(ClassifierNetwork, "head_rows", counted)
    settings = ("epochs=1", "learning_rate=1e-9")
    tune(run_folder, write_event_task(tmp_path), tmp_path / "out", *settings)
    first = metrics_of(tmp_path / "out")[0]
    assert first["epoch"] == 0
    assert first["score"] > 0.7
    (vectors, targets), _ = rows
    assert vectors == targets
    assert vectors > 50 if most > 50 else 25 < vectors <= 50


@pytest.mark.parametrize("normed", [True, False])
def test_vectors_in_training_are_those_of_prediction(encoder, normed):
    """Units of a long crop together, mean and deviation, and a share of patches left out that is none."""
    model = melmask.load(encoder.name, "cpu").model
    network = ClassifierNetwork(model, "multiclass", 3, "mean+std", normed=normed)
    unit = encoder.card.model.frames
    for frames in (64, 2 * unit, 2 * unit + 16):
        crops = torch.randn(2, 80, frames, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            kept = network.draw_kept(crops, np.random.default_rng(0), patch_dropout=0.001)
            dropped = network.vectors_of_crops(crops, kept)
        whole = [network._scene(network._steps_of(crop.T.numpy()), frames) for crop in crops.half()]
        torch.testing.assert_close(dropped, torch.stack(whole).detach(), rtol=2e-3, atol=2e-3)


def test_the_deviation_of_patches_that_are_there(encoder):
    network = training_of(encoder).network
    crops = torch.randn(2, 80, 2 * encoder.card.model.frames, generator=torch.Generator().manual_seed(0))
    kept = network.draw_kept(crops, np.random.default_rng(0), patch_dropout=0.5)
    vectors, rows, width = network.vectors_of_crops(crops, kept), network.rows, encoder.card.model.width
    units = crops.split(encoder.card.model.frames, dim=2)
    parts = [network._kept_tokens(unit, ids) for unit, ids in zip(units, kept, strict=True)]
    tokens, row = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    for clip, r in [(0, 0), (1, rows - 1)]:
        there = tokens[clip][row[clip] == r]
        mean, std = vectors[clip].view(2, rows, width)[:, r]
        torch.testing.assert_close(mean, there.mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(std, there.std(0, correction=0), rtol=1e-3, atol=1e-3)
    vectors.sum().backward()
    assert all(p.grad.isfinite().all() for p in network.encoder.parameters() if p.grad is not None)


# Training.


@pytest.mark.parametrize(
    "setting", ["crop_s", "time_mask_ms", "mixup", "weight_decay", "warmup_epochs", "learning_rate"]
)
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_settings_are_finite(setting, value):
    with pytest.raises(ConfigError, match=f"{setting} is {value}; give a finite number"):
        configured(f"{setting}={value}")


def test_settings_that_cannot_be_used_are_refused():
    for setting, message in [
        ("epochs=0", "epochs is 0; give at least 1"),
        ("patch_dropout=1", "patch_dropout is 1.0; give a share from 0 to below 1"),
        ("seed=-1", "seed is -1; give a whole number from 0"),
        ("layer_decay=0", "layer_decay is 0.0; give a share above 0"),
        ("mixupp=0.1", "the nearest is 'mixup'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            configured(setting)


def test_a_blanked_stretch_leaves_three_quarters_of_a_crop():
    x = np.ones((200, 80, 16), np.float32)
    training_module._blank(x, 20, 2, np.random.default_rng(0))
    blank = (x == 0).all(1).sum(1)
    assert set(blank.tolist()) == {0, 1, 2, 3, 4}


def test_layers_below_learn_more_slowly(encoder):
    training = training_of(encoder, "layer_decay=0.5")
    network = training.network
    shares = {id(p): group["share"] for group in training.optimizer.param_groups for p in group["params"]}
    depth = encoder.card.model.depth
    assert shares[id(network.head.linear.weight)] == 1
    assert shares[id(network.encoder.blocks[depth - 1].mlp.fc1.weight)] == 0.5
    assert shares[id(network.encoder.blocks[0].mlp.fc1.weight)] == 0.5**depth
    assert shares[id(network.encoder.patch_embed.weight)] == 0.5 ** (depth + 1)
    assert len(shares) == len(list(network.parameters()))


@pytest.mark.parametrize(("kind", "expected"), [("multiclass", [4 / 6, 2.0]), ("multilabel", [1 / 3, 3.0])])
def test_rare_classes_weigh_more_where_balanced(encoder, kind, expected):
    clips = Clips([np.zeros((64, 80), np.float16)] * 4, [np.eye(2, dtype=np.float32)[int(i == 0)] for i in range(4)])
    weights = training_of(encoder, kind=kind, classes=2)._class_weights(clips)
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_a_class_that_does_not_occur_does_not_count():
    probabilities = np.array([[0.9, 0.1, 0.5], [0.1, 0.8, 0.4]])
    targets = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert validation_score("multilabel", probabilities, targets) == 1.0
    with pytest.raises(InputError, match="nothing to validate on has a label; mark clips with labels `valid`"):
        validation_score("multilabel", probabilities, 0 * targets)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_a_training_that_breaks_down_ends_in_one_line_and_leaves_no_classifier(encoder, tmp_path, kind):
    training = training_of(encoder, "learning_rate=1e30", "head_epochs=0", kind=kind, classes=2)
    rng = np.random.default_rng(0)
    clips = Clips([rng.standard_normal((64, 80)).astype(np.float16) for _ in range(24)],
                  [np.eye(2, dtype=np.float32)[i % 2] for i in range(24)])  # fmt: skip
    with pytest.raises(TrainingError, match=r"diverged in epoch 1 .* below 1e\+30, or a weight_decay below 0\.05"):
        training.run(clips, clips, tmp_path / "finetune.pt", lambda *_: None)
    kept = torch.load(tmp_path / "finetune.pt", weights_only=True)
    assert kept["epoch"] == 0 and all(tensor.isfinite().all() for tensor in kept["network"].values())


@pytest.mark.parametrize(("head_epochs", "learning"), [(0, "encoder and head"), (1, "head")])
def test_a_batch_computed_in_shares_teaches_the_same(encoder, head_epochs, learning):
    rng = np.random.default_rng(0)
    clips = Clips([rng.standard_normal((64, 80)).astype(np.float16) for _ in range(7)],
                  [np.eye(3, dtype=np.float32)[i % 3] for i in range(7)])  # fmt: skip
    found = []
    for count in (1, 3):
        training = training_of(encoder, "epochs=1", f"head_epochs={head_epochs}", "batch_size=7")
        training.network.cores = Cores(count)
        torch.nn.init.normal_(training.network.head.linear.weight, generator=torch.Generator().manual_seed(0))
        loss = training._epoch(0, clips, [], Path("unused"))
        found.append((loss, {name: p.grad for name, p in training.network.named_parameters() if p.grad is not None}))
    (loss, whole), (other_loss, shared) = found
    assert loss == pytest.approx(other_loss, rel=1e-5) and whole.keys() == shared.keys()
    assert any(name.startswith("encoder.") for name in whole) == (learning == "encoder and head")
    for name, gradient in whole.items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-3, atol=1e-5)


def test_only_the_head_learns_where_so_configured(run_folder, table, tmp_path, sound):
    tune(run_folder, table, tmp_path, "epochs=2", "head_epochs=2")
    audio = sound(1.0, 0)
    tuned = melmask.load(tmp_path / "classifier", "cpu").embed(audio, RATE_HZ).scene
    np.testing.assert_array_equal(tuned, melmask.load(run_folder, "cpu").embed(audio, RATE_HZ).scene)


@pytest.mark.parametrize(
    ("scores", "best", "epochs"),
    [
        # Three epochs after the best one, training ends.
        ([0.1, 0.2, 0.9, 0.5, 0.9, 0.1, 0.3], 2, 5),
        # As long as the probe is best, three epochs after half of the eight.
        ([0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 1.0], 0, 7),
    ],
)
def test_the_best_epoch_is_kept_and_patience_ends_training(
    run_folder, table, tmp_path, monkeypatch, scores, best, epochs
):
    left = iter(scores)
    monkeypatch.setattr(training_module, "validation_score", lambda *_: next(left))
    assert tune(run_folder, table, tmp_path, "patience_epochs=3").epoch == best
    assert len(metrics_of(tmp_path)) == 1 + epochs


# The job.


def test_a_classifier_is_learned(trained):
    out, report = trained
    assert report.test.value > 0.7
    assert report.unreadable == 1
    assert set(report.test.per_class) == set(LABELS)
    assert load_classifier(out, "cpu").card.scores == report
    assert "broken.wav" in (out / "failed.csv").read_text()
    lines = metrics_of(out)
    assert [line["epoch"] for line in lines] == list(range(9))
    assert all(0 < line["loss"] < 2 for line in lines[1:])


def test_a_model_whose_users_get_a_layer_is_trained_up_to_it(encoder, table, tmp_path, sound):
    save_checkpoint(tmp_path / "middle", encoder.model, replace(encoder.card, layers=(1,)))
    report = tune(tmp_path / "middle", table, tmp_path / "out", "epochs=1", "learning_rate=1e-9")
    found = melmask.load(tmp_path / "out" / "classifier", "cpu")
    assert (found.card.model.depth, found.card.layers) == (1, (1,))
    expected = encoder.embed(sound(1, 0), RATE_HZ, layer=1).frames
    assert np.allclose(found.embed(sound(1, 0), RATE_HZ).frames, expected, atol=1e-5)
    # The saved classifier says what training said of the same clips.
    rows = [row for row in read_table(table) if row["split"] == "test"]
    paths = [table.parent / row["path"] for row in rows]
    predict_files(load_classifier(tmp_path / "out", "cpu"), paths, tmp_path / "x.csv")
    right = [p["label"] == row["label"] for p, row in zip(read_table(tmp_path / "x.csv"), rows, strict=True)]
    assert np.mean(right) == pytest.approx(report.test.value)


def test_the_finetuned_encoder_is_an_encoder_as_any_other(table, run_folder, tmp_path, sound, monkeypatch):
    scores = iter(np.arange(10.0).tolist())
    monkeypatch.setattr(training_module, "validation_score", lambda *_: next(scores))
    tune(run_folder, table, tmp_path, "epochs=2", "head_epochs=0")
    audio = sound(1.0, 0)
    tuned = melmask.load(tmp_path / "classifier", "cpu").embed(audio, RATE_HZ).scene
    before = melmask.load(run_folder, "cpu").embed(audio, RATE_HZ).scene
    assert tuned.shape == before.shape
    assert np.abs(tuned - before).max() > 0.01


@pytest.mark.parametrize("at", [(0, 0), (5, 0), (5, 1)], ids=["after the probe", "between epochs", "in an epoch"])
def test_a_killed_training_resumes_as_if_it_had_not_been(run_folder, table, tmp_path, monkeypatch, trained, at):
    monkeypatch.setattr(training_module, "_SNAPSHOT_INTERVAL_S", 0.0)
    with killed_at(monkeypatch, at, saved=True):
        tune(run_folder, table, tmp_path)
    tune(run_folder, table, tmp_path)
    ours, theirs = (torch.load(out / "finetune.pt", weights_only=True) for out in (tmp_path, trained[0]))
    assert all(torch.equal(value, theirs["network"][name]) for name, value in ours["network"].items())
    assert ours["best"]["score"] == theirs["best"]["score"]
    with pytest.raises(InputError, match="was begun with another config; choose another --out"):
        tune(run_folder, table, tmp_path, "seed=1")


def test_a_line_per_epoch_survives_a_kill_before_it_is_saved(run_folder, table, tmp_path, monkeypatch):
    with killed_at(monkeypatch, (2, 0), saved=False):
        tune(run_folder, table, tmp_path, "epochs=3")
    tune(run_folder, table, tmp_path, "epochs=3")
    assert [line["epoch"] for line in metrics_of(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_and_a_stop_while_it_saves_are_reported_as_such(run_folder, table, tmp_path, monkeypatch, stop):
    class Broken:
        def write(self, _):
            raise stop

    @contextlib.contextmanager
    def broken(path):
        with atomic_write(path):
            yield Broken()

    monkeypatch.setattr(snapshot, "atomic_write", broken)
    error, message = (KeyboardInterrupt, None) if isinstance(stop, KeyboardInterrupt) else (OutputError, "No space")
    with pytest.raises(error, match=message):
        tune(run_folder, table, tmp_path, "epochs=1")


def test_a_damaged_record_of_the_job_is_refused_in_one_line(run_folder, table, tmp_path):
    (tmp_path / "finetune.json").write_text('{"model": ')
    (tmp_path / "finetune.pt").touch()
    with pytest.raises(CheckpointError, match=r"finetune\.json is damaged .* delete .* to start over"):
        tune(run_folder, table, tmp_path)


@pytest.mark.parametrize("name", ["classifier/thesis.txt", "metrics.jsonl", "notes.csv"])
def test_files_of_somebody_else_are_not_written_over(run_folder, table, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(OutputError, match=f"holds {name.partition('/')[0]}, which would be lost"):
        tune(run_folder, table, tmp_path, "epochs=1")
    assert path.read_text() == "mine"


def test_an_attempt_that_trained_nothing_does_not_bind_the_next(run_folder, table, tmp_path):
    rows = [["path", "label", "split"], *([row["path"], row["label"], row["split"]] for row in read_table(table))]
    unreadable = [["broken.wav", "low", "train"], ["gone.wav", "high", "train"]]
    first = write_table(table.parent, [rows[0], *unreadable, *(row for row in rows if row[2] == "valid")], "first.csv")
    with pytest.raises(InputError, match="no readable file is left to train on; 2 of"):
        tune(run_folder, first, tmp_path, "epochs=1")
    tune(run_folder, table, tmp_path, "epochs=1")
    with pytest.raises(InputError, match="was begun with another labels"):
        tune(run_folder, first, tmp_path, "epochs=1")


def test_a_table_named_by_another_path_is_the_same_job(run_folder, table, tmp_path, monkeypatch):
    tune(run_folder, table, tmp_path, "epochs=1")
    monkeypatch.chdir(table.parent.parent)
    tune(run_folder, table.relative_to(table.parent.parent), tmp_path, "epochs=1")


def test_a_file_repaired_since_does_not_pass_for_learned_from(run_folder, tmp_path):
    table, out = write_tones(tmp_path, LABELS[:2] * 6), tmp_path / "out"
    kept = (tmp_path / "3.wav").read_bytes()
    (tmp_path / "3.wav").write_bytes(b"no sound")
    tune(run_folder, table, out, "epochs=1")
    (tmp_path / "3.wav").write_bytes(kept)
    with pytest.raises(InputError, match=r"3\.wav can be read now, but could not when .* was begun \(1 such files\)"):
        tune(run_folder, table, out, "epochs=1")
    (tmp_path / "3.wav").write_bytes(b"no sound")
    (tmp_path / "5.wav").unlink()
    with pytest.raises(InputError, match=r"5\.wav cannot be read now, but could"):
        tune(run_folder, table, out, "epochs=1")


def test_damaged_lines_of_metrics_go(run_folder, table, tmp_path):
    (tmp_path / "finetune.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": 0}\n{"epo\n[]\n\xff\n')
    tune(run_folder, table, tmp_path, "epochs=1")
    assert [line["epoch"] for line in metrics_of(tmp_path)] == [0, 1]


def test_a_finetuned_model_is_one_to_go_on_with(trained):
    out, _ = trained
    assert melmask.load(out, "cpu").sha256 == melmask.load(out / "classifier", "cpu").sha256


def test_a_test_part_without_labels_has_no_score(run_folder, tmp_path, capsys):
    labels, splits = LABELS[:2] * 12, ["train"] * 12 + ["valid"] * 6 + ["test"] * 6
    table = write_tones(tmp_path, labels, labels[:18] + [""] * 6, splits, header=("path", "labels", "split"))
    arguments = ["finetune", str(run_folder), str(table)]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--device", "cpu", "epochs=1"]) == 0
    assert "test  mAP unknown, as no label occurs on 6 clips" in capsys.readouterr().out


def test_several_labels_a_clip(run_folder, tmp_path):
    rng, rows = np.random.default_rng(1), [("path", "label")]
    for i in range(40):
        chosen = [label for label in LABELS if rng.random() < 0.6] or ["low"]
        soundfile.write(tmp_path / f"{i}.wav", sum(tone(label, 0.6, rng) for label in chosen) / 3, RATE_HZ)
        rows.append((f"{i}.wav", ";".join(chosen)))
    table = write_table(tmp_path, rows)
    settings = ("epochs=12", "head_epochs=12", "mixup=0", "class_weights=balanced")
    report = tune(run_folder, table, tmp_path / "out", *settings)
    assert report.valid.value > 0.6
    classifier = load_classifier(tmp_path / "out", "cpu")
    assert (classifier.card.kind, classifier.card.labels) == ("multilabel", sorted(LABELS))
    predict_files(classifier, [tmp_path / "0.wav"], tmp_path / "x.jsonl", PredictOptions(threshold=0.0))
    lines = read_lines(tmp_path / "x.jsonl")
    assert {line["label"] for line in lines} == set(LABELS)
    values = [line["probability"] for line in lines]
    assert values == sorted(values, reverse=True)


def test_events_are_learned_and_told_with_times(run_folder, tmp_path):
    folder = write_event_task(tmp_path, clips=12)
    settings = ("epochs=20", "head_epochs=20", "time_mask_ms=0", "frequency_mask_mels=0", "learning_rate=2e-2")
    report = tune(run_folder, folder, tmp_path / "out", *settings)
    assert report.test.value > 0.7
    classifier = load_classifier(tmp_path / "out", "cpu")
    paths = sorted((folder / str(RATE_HZ) / "test").glob("*.wav"))
    predict_files(
        classifier, paths, tmp_path / "x.parquet", PredictOptions(events=True, hop_ms=40.0, median_filter_ms=0.0)
    )
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert {"path", "start_s", "end_s", "label", "probability", "error"} == set(rows[0])
    types = {field.name: str(field.type) for field in pq.read_schema(tmp_path / "x.parquet")}
    assert (types["error"], types["start_s"]) == ("string", "double")
    assert all(0 <= row["start_s"] < row["end_s"] <= 3.1 for row in rows)
    truth = json.loads((folder / "test.json").read_text())
    near = [
        any(row["label"] == e["label"] and abs(row["start_s"] - e["start"] / 1000) < 0.25 for e in truth[name])
        for row in rows
        for name in [row["path"].rsplit("/", 1)[1]]
    ]
    assert np.mean(near) > 0.6


def test_labels_that_no_readable_clip_teaches_are_named_or_refused(run_folder, table, tmp_path, capsys):
    rows = [("path", "label", "split"), *([row["path"], row["label"], row["split"]] for row in read_table(table))]
    missing = ("gone.wav", "unheard", "train")
    several = write_table(table.parent, [*rows, missing], "several.csv")
    tune(run_folder, several, tmp_path / "a", "epochs=1")
    told = capsys.readouterr().err
    assert "train 18, valid 9, test 9 clips\nno clip to train on has unheard (1 of 4 labels): not learned\n" in told
    # Of two labels, one has no file that can be read.
    lows = [row for row in rows[1:] if row[1] == "low" and row[0] != "broken.wav"]
    single = write_table(table.parent, [rows[0], *lows, missing], "single.csv")
    with pytest.raises(InputError, match="the readable files to train on have 'low'; expected 2 or more labels"):
        tune(run_folder, single, tmp_path / "b", "epochs=1")


def test_a_table_of_events_is_learned_as_a_task_of_events_is(run_folder, tmp_path, capsys):
    rng, rows = np.random.default_rng(3), [("path", "label", "start_s", "end_s", "split")]
    for i in range(6):
        soundfile.write(tmp_path / f"{i}.wav", np.concatenate([tone(label, 0.5, rng) for label in LABELS]), RATE_HZ)
        part = ("train", "train", "valid")[i % 3]
        rows += [(f"{i}.wav", label, 0.5 * k, 0.5 * k + 0.5, part) for k, label in enumerate(LABELS)]
    rows += [("0.wav", LABELS[0], 20, 20.01, "train"), ("1.wav", LABELS[0], 20, 21, "train")]
    settings = ("epochs=2", "head_epochs=2")
    report = tune(run_folder, write_table(tmp_path, rows), tmp_path / "out", *settings)
    assert report.valid.clips == 2
    assert (
        f"2 events to train on begin after the end of their file and do not count, such as '{LABELS[0]}' at 20 s"
        in (capsys.readouterr().err)
    )
    modes = {(tmp_path / "out" / "classifier" / name).stat().st_mode for name in ("head.safetensors", "config.json")}
    assert len(modes) == 1
    assert load_classifier(tmp_path / "out", "cpu").card.kind == "event"


# Classifiers and jobs of release 0.1.0.


@pytest.fixture
def old_job(tmp_path):
    """Release 0.1.0's own classifier job, with its twelve tones (`reference/make_files_0_1_0.py`) at hand again."""
    rng, rows = np.random.default_rng(0), []
    for number in range(12):
        label, pitch_hz = ("low", 200) if number % 2 else ("high", 1500)
        time_s = np.arange(RATE_HZ // 2) / RATE_HZ
        sound = 0.3 * np.sin(2 * np.pi * (pitch_hz + 10 * number) * time_s) + 0.01 * rng.standard_normal(len(time_s))
        soundfile.write(tmp_path / f"{number:02d}.wav", sound, RATE_HZ)
        rows.append((f"{number:02d}.wav", label, ("train", "train", "train", "train", "valid", "test")[number // 2]))
    shutil.copytree(OLD / "classifier", tmp_path / "out")
    # The job holds a digest of absolute paths, and its sounds were elsewhere.
    own = [[str((tmp_path / name).resolve()), [label], part] for name, label, part in rows]
    job = json.loads((tmp_path / "out" / "finetune.json").read_text())
    job["labels"] = hashlib.sha256(json.dumps(["multiclass", ["high", "low"], own]).encode()).hexdigest()
    (tmp_path / "out" / "finetune.json").write_text(json.dumps(job, indent=2) + "\n")
    return write_table(tmp_path, [("path", "label", "split"), *rows]), tmp_path / "out"


def tune_old(labels, out, **changes):
    config = with_overrides(FinetuneConfig(), ["epochs=2", *(f"{name}={value}" for name, value in changes.items())])
    return finetune(str(OLD / "run"), labels, out, config, FinetuneOptions(device="cpu"))


def test_a_classifier_of_release_0_1_0_predicts(old_job, tmp_path):
    classifier = load_classifier(OLD / "classifier", "cpu")
    card, scores = classifier.card, classifier.card.scores
    assert (card.labels, card.kind, card.scene) == (["high", "low"], "multiclass", "mean+std")
    assert (scores.epoch, scores.unreadable, scores.valid.clips, scores.test.value) == (0, 0, 2, 1.0)
    assert scores.test.per_class == {"high": 1.0, "low": 1.0}
    written = json.loads((OLD / "classifier" / "classifier" / "classifier.json").read_text())
    assert card.to_dict() == written
    predict_files(classifier, [tmp_path / "10.wav", tmp_path / "11.wav"], tmp_path / "x.csv")
    assert [row["label"] for row in read_table(tmp_path / "x.csv")] == ["high", "low"]


def test_a_job_of_release_0_1_0_is_recognized_and_resumed(old_job):
    labels, out = old_job
    begun, metrics = json.loads((out / "finetune.json").read_text()), (out / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match="was begun with another config; choose another --out"):
        tune_old(labels, out, seed=1)
    # Its training is done; what is made of the snapshot is what release 0.1.0 made of it.
    kept = torch.load(out / "finetune.pt", weights_only=True)
    report = tune_old(labels, out)
    assert (report.epoch, report.test.value) == (0, 1.0)
    assert json.loads((out / "finetune.json").read_text()) == begun
    assert (out / "metrics.jsonl").read_text() == metrics
    assert set(torch.load(out / "finetune.pt", weights_only=True)) == set(kept)
    for name in ("head.safetensors", "model.safetensors"):
        ours, theirs = (load_file(folder / "classifier" / name) for folder in (out, OLD / "classifier"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_new_job_writes_the_files_of_release_0_1_0(old_job, tmp_path, monkeypatch):
    labels, old = old_job
    # That release knew no whitened vectors for the first head.
    monkeypatch.setattr(network_module, "_DIRECTIONS", 0)
    tune_old(labels, tmp_path / "new")
    for name in ("finetune.json", "failed.csv", "classifier/classifier.json"):
        assert (tmp_path / "new" / name).read_text() == (old / name).read_text()
    for ours, theirs in zip(metrics_of(tmp_path / "new"), metrics_of(old), strict=True):
        assert list(ours) == list(theirs)
        assert ours == pytest.approx(theirs, rel=1e-3)
    weights = (torch.load(out / "finetune.pt", weights_only=True)["network"] for out in (tmp_path / "new", old))
    for ours, theirs in zip(*(state.items() for state in weights), strict=True):
        assert ours[0] == theirs[0]
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-4)


# A classifier in use.


def test_what_is_no_classifier_is_refused_in_one_line(run_folder, trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no classifier \(classifier\.json is missing\)"):
        load_classifier(run_folder)
    folder = trained[0] / "classifier"
    for name, content, message in [
        ("classifier.json", "{}", "is damaged or of a newer melmask"),
        ("head.safetensors", "x", "is cut off or damaged"),
    ]:
        copy = tmp_path / name
        copy.mkdir()
        for path in folder.iterdir():
            (copy / path.name).write_bytes(content.encode() if path.name == name else path.read_bytes())
        with pytest.raises(CheckpointError, match=message):
            load_classifier(copy, "cpu")


def test_probabilities_are_those_of_the_head(encoder):
    dims = encoder.embedding_size()
    rng = np.random.default_rng(0)
    weights = {
        "mean": torch.from_numpy(rng.standard_normal(dims)),
        "std": torch.from_numpy(rng.uniform(0.5, 2, dims)),
        "linear.weight": torch.from_numpy(rng.standard_normal((3, dims)) / 10),
        "linear.bias": torch.from_numpy(rng.standard_normal(3)),
    }
    vectors = rng.standard_normal((5, dims))
    logits = ((torch.from_numpy(vectors) - weights["mean"]) / weights["std"]) @ weights["linear.weight"].T
    logits = logits + weights["linear.bias"]
    for kind, expected in [("multiclass", logits.softmax(1)), ("multilabel", logits.sigmoid())]:
        classifier = AudioClassifier(encoder, ClassifierCard(labels=LABELS, kind=kind), weights)
        np.testing.assert_allclose(classifier.probabilities(vectors), expected, rtol=1e-5)


def test_steps_of_a_head_of_deviations_see_a_second_around_them(encoder):
    """Part by part as at once, and at the middle of a long sound the moments of just that second."""
    rng, dims = np.random.default_rng(0), 2 * encoder.embedding_size()
    weights = {name: torch.zeros(dims) if name == "mean" else torch.ones(dims) for name in ("mean", "std")}
    weights |= {"linear.weight": torch.from_numpy(rng.standard_normal((3, dims)) / 10), "linear.bias": torch.zeros(3)}
    classifier = AudioClassifier(encoder, ClassifierCard(labels=LABELS, kind="multiclass", scene="mean+std"), weights)
    frames = rng.standard_normal((40, dims // 2)).astype(np.float32)
    whole = np.concatenate(list(classifier.of_steps([frames], 160.0)))
    parts = list(classifier.of_steps(np.split(frames, [1, 4, 20, 21, 38]), 160.0))
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5)
    # Three steps of 160 ms on either side.
    for step, window in [(20, frames[17:24]), (0, frames[:4]), (39, frames[36:])]:
        moments = np.concatenate([window.mean(0), window.std(0)])[None]
        np.testing.assert_allclose(whole[step], classifier.probabilities(moments)[0], rtol=1e-4)


# Predictions.


def test_the_saved_classifier_says_what_training_said(trained, table, tmp_path):
    out, finetuned = trained
    rows = [row for row in read_table(table) if row["split"] == "test"]
    paths = [table.parent / row["path"] for row in rows]
    report = predict_files(load_classifier(out, "cpu"), paths, tmp_path / "x.csv")
    predicted = read_table(tmp_path / "x.csv")
    assert (report.files, report.failed, report.rows) == (len(rows), 0, len(rows))
    right = [p["label"] == row["label"] for p, row in zip(predicted, rows, strict=True)]
    assert np.mean(right) == pytest.approx(finetuned.test.value)
    assert all(0.3 < float(p["probability"]) <= 1 for p in predicted)


def test_a_prediction_depends_on_the_sound_alone(trained, table, tmp_path):
    classifier = load_classifier(trained[0], "cpu")
    paths = [table.parent / f"{i}.wav" for i in (3, 4, 5)]
    predict_files(classifier, paths, tmp_path / "all.jsonl")
    predict_files(classifier, paths[1:2], tmp_path / "one.jsonl")
    every, one = ((tmp_path / name).read_text().splitlines() for name in ("all.jsonl", "one.jsonl"))
    assert one == [every[1]]


def test_a_file_given_twice_is_labeled_once(trained, table, tmp_path):
    path = table.parent / "0.wav"
    classifier = load_classifier(trained[0], "cpu")
    settings = {"events": True, "threshold": 0.0, "median_filter_ms": 0.0, "min_duration_ms": 0.0}
    predict_files(classifier, [path], tmp_path / "once.csv", PredictOptions(**settings))
    predict_files(classifier, [path, path], tmp_path / "twice.csv", PredictOptions(**settings))
    assert (tmp_path / "once.csv").read_text() == (tmp_path / "twice.csv").read_text()
    with pytest.raises(InputError, match="no files were given"):
        predict_files(classifier, [], tmp_path / "none.csv")


def events_told(classifier, folder, monkeypatch, active, seconds, **settings):
    """(start_s, end_s) of the events of a file whose first class sounds at these steps, the last one if negative."""

    def of_steps(self, parts, step_ms):
        steps = np.zeros((sum(map(len, parts)), len(self.card.labels)), np.float32)
        steps[active, 0] = 0.9
        yield steps

    monkeypatch.setattr(AudioClassifier, "of_steps", of_steps)
    soundfile.write(folder / "x.wav", tone("low", seconds, np.random.default_rng(0)), RATE_HZ)
    predict_files(classifier, [folder / "x.wav"], folder / "x.jsonl", PredictOptions(events=True, **settings))
    rows = read_lines(folder / "x.jsonl")
    return [(row["start_s"], row["end_s"]) for row in rows if row["label"]], rows


def test_an_event_is_as_long_as_the_steps_it_covers(trained, tmp_path, monkeypatch):
    classifier = load_classifier(trained[0], "cpu")

    def told(active, seconds=3.0, **settings):
        return events_told(classifier, tmp_path, monkeypatch, active, seconds, **{"hop_ms": 160.0} | settings)[0]

    # Steps are centered at 75 + 160 k ms; five of 160 ms are 0.8 s, with filters of one, two and three steps alike.
    five = [(0.475, 1.275)]
    assert told([3, 4, 5, 6, 7], median_filter_ms=0.0) == five
    assert told([3, 4, 5, 6, 7]) == told([3, 4, 5, 6, 7], median_filter_ms=330.0) == five
    assert told([3, 4, 5, 6, 7], median_filter_ms=500.0) == five
    assert told([3], median_filter_ms=500.0) == []
    # The least duration is of what is written.
    assert told([3, 4, 5, 6, 7], min_duration_ms=800.0) == five
    assert told([3, 4, 5, 6, 7], min_duration_ms=801.0) == []
    assert told([3], min_duration_ms=160.0) == [(0.475, 0.635)]
    assert told([0]) == [(0.0, 0.155)]
    # The first step stands for the beginning, too, and the last for the end, where steps are shorter.
    assert told([0, 1, 2, 3, 4], hop_ms=40.0) == [(0.0, 0.215)]
    assert told([-5, -4, -3, -2, -1], hop_ms=40.0)[0][1] == 3.0
    # At the end of the file an event ends, though the step goes on; also where there is but one step.
    assert told([-1], 2.0, min_duration_ms=0.0)[0][1] == 2.0
    assert told([0], 0.12, min_duration_ms=0.0) == [(0.0, 0.12)]
    # Steps of 40 ms are the default.
    (event,) = told(list(range(20, 40)), hop_ms=None)
    assert event[1] - event[0] == pytest.approx(0.8)


def test_a_file_without_events_has_a_row(trained, tmp_path, monkeypatch):
    events, rows = events_told(load_classifier(trained[0], "cpu"), tmp_path, monkeypatch, [], 1.0)
    assert not events
    assert rows == [{"path": str(tmp_path / "x.wav"), "label": None, "probability": None}]


def test_a_bad_file_is_a_row_with_its_error(trained, table, tmp_path):
    classifier = load_classifier(trained[0], "cpu")
    broken = table.parent / "broken.wav"
    report = predict_files(classifier, [broken, table.parent / "0.wav"], tmp_path / "x.csv")
    assert (report.files, report.failed) == (1, 1)
    rows = read_table(tmp_path / "x.csv")
    assert "cannot be read as sound" in rows[0]["error"]
    assert (rows[0]["label"], rows[1]["error"]) == ("", "")
    with pytest.raises(InputError, match="none of 1 file could be labeled"):
        predict_files(classifier, [broken], tmp_path / "y.csv")
    assert list(tmp_path.glob(".y*")) == []
    with pytest.raises(ConfigError, match=r"a file that ends in \.csv, \.jsonl, \.parquet"):
        predict_files(classifier, [broken], tmp_path / "y.txt")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.csv cannot be the table"):
        predict_files(classifier, [broken], tmp_path / "folder.csv")
    with pytest.raises(ConfigError, match="min_duration_ms is nan; give 0 to an hour"):
        PredictOptions(min_duration_ms=float("nan"))
    with pytest.raises(ConfigError, match="median_filter_ms is -1; give 0 to an hour"):
        PredictOptions(median_filter_ms=-1.0)
    with pytest.raises(ConfigError, match=r"median_filter_ms is 1e\+15; give 0 to an hour, in milliseconds"):
        PredictOptions(median_filter_ms=1e15)
    with pytest.raises(ConfigError, match="threshold is 1; give a probability from 0 to below 1"):
        PredictOptions(threshold=1.0)
    # Before what an earlier job has done is replaced.
    (tmp_path / ".y.csv.partial.jsonl").write_text("of an earlier job")
    with pytest.raises(ConfigError, match="hop_ms is 7; this model's steps allow"):
        predict_files(classifier, [broken], tmp_path / "y.csv", PredictOptions(events=True, hop_ms=7.0))
    assert (tmp_path / ".y.csv.partial.jsonl").read_text() == "of an earlier job"


def test_one_table_of_predictions_is_one_jobs(trained, table, tmp_path):
    classifier, paths, out = load_classifier(trained[0], "cpu"), [table.parent / "0.wav"], tmp_path / "x.csv"
    with locked(tmp_path / ".x.csv.partial.lock", out), pytest.raises(OutputError, match=r"is writing to .*x\.csv"):
        predict_files(classifier, paths, out)
    predict_files(classifier, paths, out)
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predictions_replace_earlier_ones_and_no_other_table(suffix, trained, table, tmp_path):
    classifier, paths, out = load_classifier(trained[0], "cpu"), [table.parent / "0.wav"], tmp_path / f"x{suffix}"
    for _ in range(2):
        predict_files(classifier, paths, out)
    precious = {
        ".csv": b"path,label\na.wav,x\n",
        ".jsonl": b'{"path": "a.wav", "label": "x"}\n',
        ".parquet": b"no Parquet",
    }[suffix]
    out.write_bytes(precious)
    with pytest.raises(OutputError, match=f"x{suffix} is there and holds no predictions"):
        predict_files(classifier, paths, out)
    assert out.read_bytes() == precious


def test_a_killed_prediction_resumes_after_what_is_done(trained, table, tmp_path, monkeypatch):
    classifier = load_classifier(trained[0], "cpu")
    paths = [table.parent / f"{i}.wav" for i in range(6)]
    predict_files(classifier, paths, tmp_path / "whole.csv")
    probabilities, calls = AudioClassifier.probabilities, []

    def dying(self, vectors):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return probabilities(self, vectors)

    monkeypatch.setattr(AudioClassifier, "probabilities", dying)
    with pytest.raises(KeyboardInterrupt):
        predict_files(classifier, paths, tmp_path / "parts.csv")
    journal = tmp_path / ".parts.csv.partial.jsonl"
    journal.write_text(journal.read_text() + '{"path": "cut o')
    # One of the three that are done changes before the job resumes.
    before = paths[1].stat()
    os.utime(paths[1], (journal.stat().st_mtime + 10,) * 2)
    predict_files(classifier, paths, tmp_path / "parts.csv")
    os.utime(paths[1], (before.st_atime, before.st_mtime))
    assert len(calls) == 4 + 4
    assert (tmp_path / "parts.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert not journal.exists()


def test_a_journal_keeps_every_row(tmp_path):
    rows = [
        Prediction(label="a", probability=0.5, channel=1, note="clipped"),
        Prediction(label="b", probability=0.25, start_s=0.0, end_s=1.5, channel=2),
        Prediction(),
    ]
    path = tmp_path / "journal.jsonl"
    path.write_text("[]\n" + _line("x.wav", rows))
    assert _read(path, "[]") == {"x.wav": rows}


def test_what_failed_is_tried_again_and_other_jobs_failures_are_not_counted(trained, table, tmp_path):
    classifier = load_classifier(trained[0], "cpu")
    good, bad, out = tmp_path / "good.wav", tmp_path / "bad.wav", tmp_path / "made" / "x.csv"
    good.write_bytes((table.parent / "0.wav").read_bytes())
    bad.write_text("no sound")
    predict_files(classifier, [good], out)
    whole = out.read_text()

    # What a killed job left behind: a failure, and one of a file that is no longer asked for.
    settings = {"median_filter_ms": 250.0, "min_duration_ms": 125.0, "threshold": 0.5}
    lines = [[classifier.sha256, False, None, settings],
             *({"path": str(path), "rows": [{"error": "then"}]} for path in (good, bad))]  # fmt: skip
    journal = out.with_name(".x.csv.partial.jsonl")
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert predict_files(classifier, [good], out)[:3] == (1, 0, 1)
    assert out.read_text() == whole
    # A journal that cannot be used, or that another version wrote, starts the job over.
    head = json.dumps(lines[0])
    strange = (
        "5",
        "{}",
        json.dumps({"path": str(good), "rows": []}),
        json.dumps({"path": str(good), "rows": [{"x": 1}]}),
    )
    for damaged in ("no journal\n", *(f"{head}\n{line}\n" for line in strange)):
        journal.write_text(damaged)
        assert predict_files(classifier, [good, bad], out)[:3] == (1, 1, 2)


# The command line.


def test_the_commands(run_folder, table, tmp_path, capsys):
    words = ["epochs=1", "head_epochs=1", "batch_size=12"]
    assert main(["finetune", str(run_folder), str(table), "--out", str(tmp_path / "c"), "--device", "cpu", *words]) == 0
    assert "test  accuracy" in capsys.readouterr().out
    out = tmp_path / "x.csv"
    assert main(["predict", str(table.parent / "0.wav"), "--model", str(tmp_path / "c"), "--out", str(out)]) == 0
    assert "1 row of 1 file" in capsys.readouterr().out
    assert main(["finetune", str(run_folder), str(tmp_path / "no.csv"), "--out", str(tmp_path / "d")]) == 2
    assert main(["predict", str(table.parent / "0.wav"), "--model", str(run_folder), "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") >= 2
