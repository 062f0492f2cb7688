import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from melmask.audio.statistics import moments_of
from melmask.checkpoint.folder import load_checkpoint, read_card
from melmask.checkpoint.locate import load_any
from melmask.config import FrontEndConfig
from melmask.config_text import to_dict
from melmask.corpus.store import Store, StoreWriter
from melmask.errors import CheckpointError, ConfigError, OutputError, StoreError, TrainingError
from melmask.models.network import build_network
from melmask.train import pretrain as pretrain_module
from melmask.train import signals
from melmask.train.clock import Clock
from melmask.train.engine import Engine
from melmask.train.optimizer import build_optimizer, learning_rate
from melmask.train.pretrain import Outcome, pretrain
from melmask.train.record import read_metrics
from melmask.train.snapshot import checkpoints_of, set_aside_beyond

ONE_STEP = "run.max_minutes=1e-9"


def last_weights(run):
    return load_file(checkpoints_of(run)[-1] / "model.safetensors")


def assert_same_weights(run, other):
    ours, theirs = last_weights(run), last_weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def moments_of_snapshot(run):
    state = torch.load(run / "snapshot.pt", weights_only=True)["optimizer"]["state"]
    return {(number, name): tensor for number, of_one in state.items() for name, tensor in of_one.items()}


def logged(run, *keys):
    return [tuple(row[key] for key in keys) for row in read_metrics(run)]


@pytest.fixture(scope="module")
def whole_run(store, configure, tmp_path_factory):
    """Six uninterrupted steps."""
    run = tmp_path_factory.mktemp("whole") / "run"
    outcome = pretrain(store, run, configure())
    assert outcome == Outcome(6, 6, read_metrics(run)[-1]["loss"], 0)
    return run


def store_of(folder, blocks):
    """A store of log-mels (frames, 80) made up by a test."""
    folder.mkdir()
    writer = StoreWriter(folder, FrontEndConfig(), shard_mb=1)
    for number, block in enumerate(blocks):
        writer.add(f"/{number}.wav", [block.astype(np.float16)], len(block) / 100, moments_of(np.nan_to_num(block)))
    writer.finish()
    return Store(folder)


def test_the_loss_falls_below_what_can_be_had_without_looking_at_the_visible_patches(configure, tmp_path):
    # Half of the clips are loud and half are faint: not knowing which gives a loss of 1.
    store = store_of(tmp_path / "store", [np.full((64, 80), level) for level in (-3, -11)])
    config = configure("optimizer.steps=40", "optimizer.learning_rate=1e-2")
    outcome = pretrain(store, tmp_path / "run", config)
    losses = [loss for (loss,) in logged(tmp_path / "run", "loss")]
    assert len(losses) == 20
    assert losses[0] > 0.8
    assert outcome.loss == losses[-1] < 0.1


def test_another_seed_gives_other_weights(whole_run, store, configure, tmp_path):
    pretrain(store, tmp_path, configure("run.seed=1"))
    ours, theirs = last_weights(tmp_path), last_weights(whole_run)
    assert not torch.equal(ours["encoder.patch_embed.weight"], theirs["encoder.patch_embed.weight"])


def test_training_leaves_the_global_random_state_as_it_was(store, configure, tmp_path):
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    pretrain(store, tmp_path, configure("optimizer.steps=2"))
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)


def test_hardware_settings_do_not_change_the_loss(store, configure, tmp_path):
    short = ("optimizer.steps=2", "run.log_interval_steps=1")
    pretrain(store, tmp_path / "one", configure(*short))
    pretrain(store, tmp_path / "more", configure(*short, "hardware.readers=3", "hardware.threads=2"))
    torch.set_num_threads(1)
    np.testing.assert_allclose(logged(tmp_path / "more", "loss"), logged(tmp_path / "one", "loss"), rtol=1e-5)


def test_a_run_stopped_at_every_step_equals_an_uninterrupted_one(whole_run, store, configure, tmp_path):
    for step in range(1, 7):
        outcome = pretrain(store, tmp_path, configure(ONE_STEP, f"hardware.readers={1 + step % 3}"))
        assert (outcome.step, outcome.steps, outcome.stopped_by) == (step, 6, 0)
    assert_same_weights(tmp_path, whole_run)
    assert logged(tmp_path, "step") == [(2,), (4,), (6,)]
    ours, theirs = moments_of_snapshot(tmp_path), moments_of_snapshot(whole_run)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_with_a_snapshot_that_resumes_exactly(whole_run, store, configure, tmp_path, number):
    handlers = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    config = configure("run.picture_interval_steps=3")
    outcome = pretrain(store, tmp_path, config, [lambda state: os.kill(os.getpid(), number)])
    assert (outcome.step, outcome.stopped_by) == (4, number)
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert pretrain(store, tmp_path, configure("hardware.readers=2")).step == 6
    assert_same_weights(tmp_path, whole_run)
    assert logged(tmp_path, "step") == [(2,), (4,), (6,)]


def test_a_run_broken_off_by_an_error_resumes_from_its_last_snapshot(whole_run, store, configure, tmp_path):
    def fail_at_four(state):
        if state.step == 4:
            raise KeyboardInterrupt

    config = configure("run.picture_interval_steps=1", "run.snapshot_interval_s=0")
    with pytest.raises(KeyboardInterrupt):
        pretrain(store, tmp_path, config, [fail_at_four])
    pretrain(store, tmp_path, config)
    assert_same_weights(tmp_path, whole_run)
    assert logged(tmp_path, "step") == [(2,), (4,), (6,)]


_KILLED_AT_FIVE = """
import json, os, pathlib, signal, sys
from melmask.config import PretrainConfig
from melmask.corpus.store import Store
from melmask.config_text import from_dict
from melmask.train.pretrain import pretrain
def kill_at_five(state):
    if state.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
config = from_dict(PretrainConfig, json.loads(sys.argv[3]))
pretrain(Store(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]), config, [kill_at_five])
"""


def test_a_killed_run_resumes_from_its_last_snapshot(whole_run, store, configure, tmp_path):
    # A snapshot after each step's metrics and pictures: the kill comes between the snapshots of steps 4 and 5.
    config = configure("run.picture_interval_steps=1", "run.snapshot_interval_s=0", "run.log_interval_steps=1")
    arguments = [str(store.folder), str(tmp_path), json.dumps(to_dict(config))]
    killed = subprocess.run([sys.executable, "-c", _KILLED_AT_FIVE, *arguments], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-0000003", "step-0000004"]
    # As if the kill had come in the middle of writing the next ones.
    (tmp_path / ".snapshot.pt.1.partial").write_bytes(b"half")
    (tmp_path / "checkpoints" / ".step-0000006.partial").mkdir()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.5}\n{"step": 7, "lo')
    assert pretrain(store, tmp_path, config).step == 6
    assert_same_weights(tmp_path, whole_run)
    assert logged(tmp_path, "step") == [(step,) for step in range(1, 7)]


def test_resuming_a_finished_run_does_nothing(store, configure, tmp_path):
    first = pretrain(store, tmp_path, configure())
    weights = last_weights(tmp_path)
    assert pretrain(store, tmp_path, configure()) == first
    assert all(torch.equal(weights[name], tensor) for name, tensor in last_weights(tmp_path).items())


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_half_written_snapshot_is_not_taken_for_a_whole_one(store, configure, tmp_path, kept):
    pretrain(store, tmp_path, configure("optimizer.steps=1", "optimizer.warmup_steps=1"))
    snapshot = tmp_path / "snapshot.pt"
    snapshot.write_bytes(snapshot.read_bytes()[: int(kept * snapshot.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"snapshot.pt is damaged; delete it") as caught:
        pretrain(store, tmp_path, configure())
    assert "\n" not in str(caught.value)


def test_a_snapshot_of_another_network_is_not_called_damaged(store, configure, tmp_path):
    pretrain(store, tmp_path, configure(ONE_STEP))
    with pytest.raises(CheckpointError, match=r"is of another model; resume with the settings in .*run.json"):
        pretrain(store, tmp_path, configure("model.depth=3"))
    assert json.loads((tmp_path / "run.json").read_text())["pretrain"]["model"]["depth"] == 2


def test_a_store_that_is_cut_off_meanwhile_leaves_no_run_that_seems_to_go_on(configure, tmp_path):
    other = store_of(tmp_path / "store", [np.random.default_rng(0).normal(-7, 4, (640, 80))])
    os.truncate(next(other.folder.glob("shard-*.f16")), 0)
    with pytest.raises(StoreError):
        pretrain(other, tmp_path / "run", configure())
    assert json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])["event"] == "stop"


def test_a_full_disk_is_reported_in_one_line_and_keeps_the_last_snapshot(
    whole_run, store, configure, tmp_path, full_disk
):
    pretrain(store, tmp_path, configure(ONE_STEP))
    # Room for the checkpoint, but not for the snapshot, which holds the moments too.
    refused = pytest.raises(OutputError, match=r"cannot write .*snapshot.pt: .*; choose a writable place")
    with full_disk(250_000), refused as caught:
        pretrain(store, tmp_path, configure(ONE_STEP))
    assert "\n" not in str(caught.value)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-0000001"]
    last = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "stop" and "cannot write" in last["text"]
    pretrain(store, tmp_path, configure())
    assert_same_weights(tmp_path, whole_run)


def test_a_full_disk_at_the_first_snapshot_leaves_the_checkpoint(store, configure, tmp_path, full_disk):
    with full_disk(250_000), pytest.raises(OutputError, match=r"cannot write .*snapshot.pt"):
        pretrain(store, tmp_path, configure(ONE_STEP))
    (checkpoint,) = checkpoints_of(tmp_path)
    assert load_checkpoint(checkpoint)[1].training["step"] == 1


def test_an_event_cut_short_by_a_kill_does_not_take_the_next_one_with_it(store, configure, tmp_path):
    pretrain(store, tmp_path, configure(ONE_STEP))
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"step": 1, "eve')
    pretrain(store, tmp_path, configure())
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines if line.endswith("}")] == ["start", "stop", "resume", "done"]


def test_an_echo_of_a_signal_loses_nothing_and_a_later_one_ends_at_once(store, configure, tmp_path, monkeypatch):
    config = configure("run.picture_interval_steps=3")

    def signalled(_):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)

    assert pretrain(store, tmp_path / "echo", config, [signalled])[0::3] == (4, signal.SIGINT)
    assert (tmp_path / "echo" / "snapshot.pt").exists()
    monkeypatch.setattr(signals, "_ECHO_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        pretrain(store, tmp_path / "again", config, [signalled])


def test_a_run_under_nohup_goes_on_without_its_terminal(store, configure, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hook = [lambda state: os.kill(os.getpid(), signal.SIGHUP)]
        assert pretrain(store, tmp_path, configure("run.picture_interval_steps=3"), hook).step == 6
    finally:
        signal.signal(signal.SIGHUP, before)


def test_weights_that_the_last_step_broke_are_not_saved(store, configure, tmp_path, monkeypatch):
    step = Engine.step

    def breaking(self, crops, masked, rate):
        found = step(self, crops, masked, rate)
        with torch.no_grad():
            next(self.model.parameters())[0] = math.inf
        return found

    monkeypatch.setattr(Engine, "step", breaking)
    with pytest.raises(TrainingError, match=r"step 1: the step left weights that are not finite numbers .*nothing was"):
        pretrain(store, tmp_path, configure(ONE_STEP))
    assert not checkpoints_of(tmp_path)


def test_what_the_masks_and_the_rate_cannot_be_is_refused(store, configure, tmp_path):
    with pytest.raises(ConfigError, match=r"masking.ratio is 1e-12, which hides none of .* patches; give a larger one"):
        pretrain(store, tmp_path, configure("masking.ratio=1e-12"))
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate is 1e\+39; give a positive rate, at most 1000"):
        configure("optimizer.learning_rate=1e39")
    with pytest.raises(ConfigError, match=r"data.batch_size is 1000000000000000000; give 1 to"):
        configure("data.batch_size=1000000000000000000")
    with pytest.raises(ConfigError, match=r"masking.masks_per_crop is 5000; give 1 to 4096"):
        configure("masking.masks_per_crop=5000")


@pytest.mark.parametrize("state", [[], {"step": "x"}, {"step": 1, "model": {}, "optimizer": []}])
def test_a_snapshot_of_odd_content_is_refused_in_one_line(store, configure, tmp_path, state):
    torch.save(state, tmp_path / "snapshot.pt")
    with pytest.raises(CheckpointError, match=r"is damaged; delete it|is of another model; resume"):
        pretrain(store, tmp_path, configure(ONE_STEP))


def test_values_that_are_no_numbers_end_the_run_and_keep_the_last_snapshot(configure, tmp_path, monkeypatch):
    block = np.random.default_rng(0).normal(-7, 4, (64, 80))
    good = store_of(tmp_path / "good", [block])
    bad = store_of(tmp_path / "bad", [np.where(block > 0, np.nan, block)])
    run = tmp_path / "run"
    pretrain(good, run, configure(ONE_STEP))
    weights = last_weights(run)
    monkeypatch.setattr(pretrain_module, "check_store", lambda *_: None)
    # A snapshot is due after every step, but one of a broken model would be worse than none.
    with pytest.raises(
        TrainingError, match=r"step 2: the loss is not finite .*; the last good snapshot is in"
    ) as caught:
        pretrain(bad, run, configure("run.snapshot_interval_s=0", "run.log_interval_steps=5"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in checkpoints_of(run)] == ["step-0000001"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in last_weights(run).items())


def test_a_gradient_that_is_no_number_is_not_saved(store, configure, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.nan))
    with pytest.raises(TrainingError, match=r"step 1: the gradient is not finite .*gradient norm (nan|inf)"):
        pretrain(store, tmp_path, configure(ONE_STEP))
    assert not checkpoints_of(tmp_path)


def test_a_model_with_other_mel_bands_than_the_store_is_refused(store, configure, tmp_path):
    with pytest.raises(ConfigError, match=r"model.mels is 64 but .* has 80 mel bands; set model.mels=80"):
        pretrain(store, tmp_path, configure("model.mels=64"))


def test_a_checkpoint_holds_all_that_inference_needs_and_how_it_was_trained(whole_run, store, configure):
    card = read_card(checkpoints_of(whole_run)[-1])
    assert card.model == configure().model
    assert card.front_end == store.front_end
    assert card.statistics == store.statistics
    assert card.training["step"] == 6
    assert card.training["loss"] == read_metrics(whole_run)[-1]["loss"]
    assert card.training["config"] == to_dict(configure())
    assert set(last_weights(whole_run)) == set(build_network(configure().model).state_dict())


def test_a_checkpoint_before_the_first_metrics_is_plain_json(store, configure, tmp_path):
    pretrain(store, tmp_path, configure(ONE_STEP))
    text = (checkpoints_of(tmp_path)[-1] / "config.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["training"]["loss"] is None


def test_the_run_is_described_in_run_json(whole_run, store, configure):
    facts = json.loads((whole_run / "run.json").read_text())
    known = {"pretrain": to_dict(configure()), "store": str(store.folder), "store_sha256": store.sha256}
    assert facts == {**known, "frames": store.frames.sum(), "hop_ms": 10.0}


def test_another_store_is_refused_when_a_run_goes_on(store, configure, tmp_path):
    other = store_of(tmp_path / "other", [np.random.default_rng(0).normal(-7, 4, (640, 80))])
    pretrain(store, tmp_path / "run", configure(ONE_STEP))
    with pytest.raises(ConfigError, match=r"began with a store of \d+ frames; .* has 640 and other clips"):
        pretrain(other, tmp_path / "run", configure())
    values = [np.random.default_rng(seed).normal(-7, 4, (100 + seed, 80)) for seed in (0, 1)]
    forth, back = store_of(tmp_path / "forth", values), store_of(tmp_path / "back", values[::-1])
    pretrain(forth, tmp_path / "run2", configure(ONE_STEP))
    with pytest.raises(ConfigError, match="other clips or another front end"):
        pretrain(back, tmp_path / "run2", configure())


def test_checkpoints_of_a_training_that_went_further_are_set_aside(store, configure, tmp_path, capsys):
    pretrain(store, tmp_path, configure("optimizer.steps=4"))
    (tmp_path / "snapshot.pt").unlink()
    pretrain(store, tmp_path, configure("optimizer.steps=4", ONE_STEP))
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-0000001"]
    assert (tmp_path / "checkpoints" / "set-aside-step-0000004" / "model.safetensors").exists()
    assert "of a training that went further" in capsys.readouterr().err


def test_what_is_set_aside_makes_room_only_for_what_went_as_far(tmp_path):
    checkpoints = tmp_path / "checkpoints"

    def aside_after(*steps):
        for step in steps:
            (checkpoints / f"step-{step:07d}").mkdir(parents=True)
        set_aside_beyond(tmp_path, 5)
        return sorted(int(path.name[-7:]) for path in checkpoints.glob("set-aside-*"))

    assert aside_after(4, 8, 9) == [8, 9]
    assert aside_after(5) == [8, 9], "nothing to set aside"
    assert aside_after(7) == [7, 9], "the furthest stays"
    assert aside_after(6, 8) == [6, 8, 9]
    assert aside_after(9) == [9]
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-0000004", "step-0000005"]


def test_hooks_get_the_card_that_checkpoints_have(store, configure, tmp_path):
    """What a picture shows depends on how the targets were made."""
    cards = []
    config = configure("masking.normalize_target=true", "run.picture_interval_steps=1", ONE_STEP)
    pretrain(store, tmp_path, config, [lambda state: cards.append(state.card)])
    saved = load_checkpoint(checkpoints_of(tmp_path)[-1])[1]
    assert cards[0].training["config"] == saved.training["config"] == to_dict(config)


def test_what_is_done_beside_training_is_not_counted_as_throughput(monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr("melmask.train.clock.time.monotonic", lambda: now_s[0])
    clock = Clock(0, 50.0)
    now_s[0] += 4
    with clock.beside():
        now_s[0] += 30
    rates = clock.rates(2, 10, 8)
    assert (rates.crops_per_s, rates.seconds, rates.left_s) == (4.0, 84.0, 16.0)


def test_hooks_see_the_model_at_their_interval_and_at_the_end(store, configure, tmp_path):
    seen = []
    hooks = [lambda state: seen.append(("a", state.step)), lambda state: seen.append(("b", state.step))]
    pretrain(store, tmp_path, configure("optimizer.steps=5", "run.picture_interval_steps=2"), hooks)
    assert seen == [(name, step) for step in (2, 4, 5) for name in "ab"]


def test_metrics_have_a_row_an_interval_and_one_for_the_last_step(store, configure, tmp_path):
    config = configure("optimizer.steps=5")
    pretrain(store, tmp_path, config)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert [row["learning_rate"] for row in rows] == [learning_rate(step, config.optimizer, 8) for step in (1, 3, 4)]
    assert all(row["crops_per_s"] > 0 and row["gradient_norm"] > 0 for row in rows)
    assert all(0 < row["peak_share"] < 2 and 0 <= row["data_wait"] <= 1 and row["memory_mb"] > 50 for row in rows)


def test_the_loss_of_an_interval_is_the_mean_over_its_steps(whole_run, store, configure, tmp_path):
    pretrain(store, tmp_path, configure("run.log_interval_steps=1"))
    single = [loss for (loss,) in logged(tmp_path, "loss")]
    means = [sum(pair) / 2 for pair in zip(single[::2], single[1::2], strict=True)]
    np.testing.assert_allclose([loss for (loss,) in logged(whole_run, "loss")], means, rtol=1e-6)


def test_a_gradient_norm_limit_is_kept(store, configure, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def noted(self, *arguments):
        parameters = [p for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.stack([p.grad.norm() for p in parameters]).norm()))
        return step(self, *arguments)

    monkeypatch.setattr(pretrain_module.torch.optim.AdamW, "step", noted)
    pretrain(store, tmp_path, configure("optimizer.steps=3", "optimizer.max_gradient_norm=0.1"))
    assert norms == pytest.approx([0.1] * 3, rel=1e-3)


def test_the_learning_rate_rises_linearly_then_falls_as_half_a_cosine(configure):
    config = configure("optimizer.learning_rate=2", "optimizer.steps=110", "optimizer.warmup_steps=10")
    rates = [learning_rate(step, config.optimizer, 8) for step in range(110)]
    np.testing.assert_allclose(rates[:10], 2 * np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:], 1 + np.cos(np.pi * np.arange(100) / 100))
    assert max(rates) == 2
    assert rates[60] == pytest.approx(1)
    assert 0 < rates[-1] < 1e-3


def test_the_learning_rate_needs_no_warm_up(configure):
    config = configure("optimizer.learning_rate=1", "optimizer.steps=4", "optimizer.warmup_steps=0")
    rates = [learning_rate(step, config.optimizer, 8) for step in range(4)]
    assert rates == pytest.approx([1, 0.853553, 0.5, 0.146447], rel=1e-5)


def test_weight_decay_is_for_matrices_only(configure):
    model = build_network(configure().model)
    decayed, free = build_optimizer(model, configure().optimizer).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert all(names[id(parameter)].endswith("weight") for parameter in decayed["params"])
    free_names = {names[id(parameter)] for parameter in free["params"]}
    assert {
        "encoder.cls_token",
        "decoder.mask_token",
        "encoder.norm.weight",
        "encoder.blocks.0.attn.q_bias",
    } < free_names


def test_a_run_outlives_the_reader_of_its_log(store, configure, tmp_path, monkeypatch):
    class Closed(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    assert pretrain(store, tmp_path, configure("optimizer.steps=4")).step == 4
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-0000004"]


def test_a_copy_of_a_checkpoint_under_a_longer_name_is_not_the_runs(store, configure, tmp_path):
    pretrain(store, tmp_path, configure("optimizer.steps=4"))
    kept = tmp_path / "checkpoints" / "step-0000004-good"
    shutil.copytree(checkpoints_of(tmp_path)[0], kept)
    assert pretrain(store, tmp_path, configure("optimizer.steps=4")).step == 4
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-0000004"]
    assert load_any(tmp_path)[2].name == "step-0000004"
    # Eight digits come after seven, although as text they come before.
    newest = tmp_path / "checkpoints" / "step-0000004"
    shutil.copytree(newest, newest.with_name("step-9999999"))
    newest.rename(newest.with_name("step-10000000"))
    assert load_any(tmp_path)[2].name == "step-10000000"
    assert kept.exists()
