"""Numbers go to the boards of a run. A stand-in plays Weights & Biases, since tests have no network and no account."""

import sys
import types
from dataclasses import replace

import pytest

from melmask.config import PretrainConfig, RunConfig
from melmask.errors import ConfigError, MissingExtraError, OutputError
from melmask.train.boards import WANDB_ID, Board, open_boards
from melmask.train.metrics import MetricsLog

CONFIG = replace(PretrainConfig(), run=RunConfig(wandb_project="tones"))
ROW = {"step": 20, "loss": 0.5, "learning_rate": 1e-3, "crops_per_s": 300.0, "left_s": 9.0}


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
            raise WandbError(module.refusal)
        module.calls.append(("init", settings))
        return Run()

    vars(module).update(calls=[], refusal="", init=init, Error=WandbError, Settings=lambda **settings: settings)
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
    numbers = {f"train/{name}": value for name, value in ROW.items() if name != "step"}
    assert wandb.calls[-2:] == [("log", {"step": 20, **numbers}), ("finish",)]


def test_a_resumed_run_goes_on_as_the_same_run_there(wandb, tmp_path):
    log_a_row(tmp_path)
    log_a_row(tmp_path, 20, ROW | {"step": 40})
    first, second = (settings for name, *rest in wandb.calls if name == "init" for settings in rest)
    assert first["id"] == second["id"] == (tmp_path / WANDB_ID).read_text()
    assert second["resume"] == "allow"


def test_a_refusal_is_one_line(wandb, tmp_path):
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


def test_a_full_disk_behind_a_board_is_told_with_the_run(tmp_path):
    class Full(Board):
        def add(self, step, numbers):
            raise OSError(28, "No space left on device")

        def close(self):
            raise OSError(28, "No space left on device")

    log = MetricsLog(tmp_path, 0, [Full()])
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}: No space left on device; choose"):
        log.write(ROW, 40)
    log.close()
