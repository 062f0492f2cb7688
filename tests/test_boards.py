"""Numbers go to the boards of a run. A stand-in plays Weights & Biases, since tests have no network and no account."""

import sys
import types
from dataclasses import asdict, replace

import pytest

from melmask.config import PretrainConfig, RunConfig
from melmask.errors import ConfigError, MissingExtraError
from melmask.train.boards import WANDB_ID, Board, open_boards
from melmask.train.log import MetricsLog
from melmask.train.record import MetricsRow, read_metrics

CONFIG = replace(PretrainConfig(), run=RunConfig(wandb_project="tones"))
ROW = MetricsRow(
    step=20,
    loss=0.5,
    learning_rate=1e-3,
    gradient_norm=1.0,
    crops_per_s=300.0,
    data_wait=0.0,
    seconds=5.0,
    left_s=9.0,
    peak_share=0.5,
    memory_mb=100.0,
)


class WandbError(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch):
    """Weights & Biases in a list of calls; `refusal` set: what `init` raises."""
    module = types.ModuleType("wandb")

    class Run:
        def define_metric(self, name, step_metric=None):
            module.calls.append(("metric", name, step_metric))

        def log(self, numbers):
            module.calls.append(("log", numbers))

        def finish(self):
            module.calls.append(("finish",))

    def init(**settings):
        if module.refusal:
            raise module.error(module.refusal)
        module.calls.append(("init", settings))
        return Run()

    vars(module).update(
        calls=[], refusal="", error=WandbError, init=init, Error=WandbError, Settings=lambda **settings: settings
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def log_a_row(run, first_step=0, row=ROW):
    log = MetricsLog(run, first_step, open_boards(run, first_step, CONFIG))
    log.write(row, 40)
    log.close()


def test_numbers_go_to_weights_and_biases_under_their_step(wandb, tmp_path):
    log_a_row(tmp_path)
    settings = wandb.calls[0][1]
    assert settings["project"] == "tones" and settings["name"] == tmp_path.name
    assert settings["config"]["optimizer"]["steps"] == CONFIG.optimizer.steps
    assert ("metric", "train/*", "step") in wandb.calls
    numbers = {f"train/{name}": value for name, value in asdict(ROW).items() if name != "step"}
    assert wandb.calls[-2:] == [("log", {"step": 20, **numbers}), ("finish",)]


def test_a_resumed_run_goes_on_as_the_same_run_there(wandb, tmp_path):
    log_a_row(tmp_path)
    log_a_row(tmp_path, 20, replace(ROW, step=40))
    first, second = (settings for name, *rest in wandb.calls if name == "init" for settings in rest)
    assert first["id"] == second["id"] == (tmp_path / WANDB_ID).read_text()
    assert second["resume"] == "allow"


def test_an_identity_that_was_not_written_is_made_anew(wandb, tmp_path):
    (tmp_path / WANDB_ID).write_text("")
    log_a_row(tmp_path)
    assert wandb.calls[0][1]["id"] == (tmp_path / WANDB_ID).read_text() != ""


@pytest.mark.parametrize("error", [WandbError, OSError, ValueError])
def test_a_refusal_is_one_line(error, wandb, tmp_path):
    wandb.error = error
    wandb.refusal = "No API key configured.\nUse `wandb login`."
    with pytest.raises(ConfigError, match=r"'tones', but wandb says: No API key configured. Use .*WANDB_MODE=offline"):
        open_boards(tmp_path, 0, CONFIG)


def test_a_missing_library_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"melmask\[wandb\]"):
        open_boards(tmp_path, 0, CONFIG)


def test_without_a_project_nothing_is_asked_of_weights_and_biases(wandb, tmp_path):
    for board in open_boards(tmp_path, 0, PretrainConfig()):
        board.close()
    assert wandb.calls == [] and not (tmp_path / WANDB_ID).exists()


class Broken(Board):
    """Takes one row, then fails at everything."""

    name = "A board"

    def __init__(self, error):
        self.rows, self.error = [], error

    def add(self, step, numbers):
        if self.rows:
            raise self.error
        self.rows.append(step)

    def close(self):
        raise self.error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("no\nnetwork")])
def test_a_board_that_fails_is_dropped_with_one_warning_and_the_run_goes_on(tmp_path, capsys, error):
    class Whole(Broken):
        def add(self, step, numbers):
            self.rows.append(step)

    broken, whole = Broken(error), Whole(error)
    log = MetricsLog(tmp_path, 0, [broken, whole])
    for step in (20, 40, 60):
        log.write(replace(ROW, step=step), 80)
    log.close()
    assert (broken.rows, whole.rows) == ([20], [20, 40, 60])
    assert [row["step"] for row in read_metrics(tmp_path)] == [20, 40, 60]
    told = [line for line in capsys.readouterr().err.splitlines() if "takes no more numbers" in line]
    reason = " ".join(str(error).split())
    assert told == [f"melmask: A board takes no more numbers ({reason}); the run continues without it"]


def test_tensorboard_reads_what_a_resumed_run_wrote(tmp_path):
    """By TensorBoard's own reader: values behind the point of resumption are those of the second time."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError)
    for first_step, loss in ((0, 0.5), (20, 0.25)):
        log = MetricsLog(tmp_path, first_step, open_boards(tmp_path, first_step, PretrainConfig()))
        for step in range(first_step + 20, 61, 20):
            log.write(replace(ROW, step=step, loss=loss), 60)
        log.close()
    reader = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("train/loss")] == [(20, 0.5), (40, 0.25), (60, 0.25)]


def test_a_broken_tensorboard_is_told_and_done_without(monkeypatch, tmp_path, capsys):
    def broken(*_):
        raise TypeError("Descriptors cannot\nbe created directly")

    monkeypatch.setattr("melmask.train.boards._TensorBoard", broken)
    assert open_boards(tmp_path, 0, PretrainConfig()) == []
    assert "TensorBoard takes no numbers (Descriptors cannot be created directly)" in capsys.readouterr().err


def test_a_full_disk_behind_tensorboard_costs_the_board_alone(tmp_path, capfd, full_disk):
    pytest.importorskip("tensorboard")
    log = MetricsLog(tmp_path, 0, open_boards(tmp_path, 0, PretrainConfig()))
    (events,) = (tmp_path / "tensorboard").iterdir()
    # The metrics are shorter as yet.
    with full_disk(events.stat().st_size):
        log.note(20, {"rank": 1.0})
    log.close()
    said = capfd.readouterr().err
    assert "TensorBoard takes no more numbers" in said and "Traceback" not in said
    assert read_metrics(tmp_path) == [{"step": 20, "rank": 1.0}]
