"""A budget in minutes: a run plans its steps from its speed, ends with the minutes, and keeps its plan."""

import json
import math

import pytest
import torch

from melmask.config import OptimizerConfig, PretrainConfig
from melmask.errors import ConfigError
from melmask.recipes import recipe, with_settings
from melmask.train import clock
from melmask.train.engine import Engine
from melmask.train.optimizer import learning_rate
from melmask.train.pretrain import pretrain
from melmask.train.resume import resolve_config
from melmask.train.schedule import Planner, Schedule

MINUTES = OptimizerConfig(learning_rate=1.0, steps=2800, warmup_share=0.1, minutes=10.0)


def train(step_s_at):
    """Follow the plan with a step that takes step_s_at(seconds); return the seconds at the end, and all rates."""
    schedule, seconds, step, rates = Schedule.of(MINUTES), 0.0, 0, []
    planner = Planner(MINUTES, 0, 0.0)
    while not schedule.steps or step < schedule.steps:
        rates.append(learning_rate(step, MINUTES, 1, schedule))
        seconds, step = seconds + step_s_at(seconds), step + 1
        schedule = planner.look(schedule, step, seconds)
    assert rates == [learning_rate(step, MINUTES, 1, schedule) for step in range(step)]
    return seconds, rates


@pytest.mark.parametrize(
    ("step_s_at", "latest_s"),
    [
        (lambda seconds: 0.25, 600),
        (lambda seconds: 0.25 if seconds else 20.0, 610),
        (lambda seconds: 0.25 if seconds < 200 else 0.5, 610),
        (lambda seconds: 0.5 if seconds < 400 else 0.1, 610),
        # Three busy programs begin just after the last look before the end.
        (lambda seconds: 0.25 if seconds < 565 else 1.0, 620),
        (lambda seconds: 50.0, 650),
    ],
)
def test_a_run_ends_with_its_minutes_and_its_rate_with_the_run(step_s_at, latest_s):
    seconds, rates = train(step_s_at)
    assert 0.95 * 600 <= seconds <= latest_s
    assert rates[-1] <= 0.1 * max(rates) or len(rates) < 15
    peak = rates.index(max(rates))
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))


def test_after_a_rollback_the_speed_is_measured_anew():
    schedule, planner, step, seconds = Schedule.of(MINUTES), Planner(MINUTES, 0, 0.0), 0, 0.0
    for step in [*range(1, 1200), *range(700, 1210)]:
        seconds += 0.25
        schedule = planner.look(schedule, step, seconds)
    # The 500 steps that were lost took 125 s, and say nothing about the speed of those to come.
    assert schedule.steps == pytest.approx(step + (600 - seconds) / 0.25, abs=2400 / 64)
    # A plan that the snapshot does not hold yet is made again only when the speed is known.
    planner, schedule = Planner(MINUTES, 0, 0.0), Schedule.of(MINUTES)
    for step, seconds in ((1, 1.0), (20, 31.0)):
        planned = planner.look(schedule, step, seconds)
    assert planned.steps and planner.look(schedule, 10, 32.0) is schedule


def test_an_even_speed_gives_the_schedule_of_as_many_steps():
    _, rates = train(lambda seconds: 0.5)
    steps = len(rates)
    plain = OptimizerConfig(learning_rate=1.0, steps=steps, warmup_steps=round(0.1 * steps))
    assert rates[9:] == [learning_rate(step, plain, 1) for step in range(9, steps)]


class FakeTime:
    now_s = 0.0

    def monotonic(self):
        return self.now_s


def test_a_stopped_run_keeps_its_plan(store, configure, tmp_path, monkeypatch):
    time, step = FakeTime(), Engine.step
    monkeypatch.setattr(clock, "time", time)

    def slow(*arguments):
        time.now_s += 1.0
        return step(*arguments)

    monkeypatch.setattr(Engine, "step", slow)
    settings = ("optimizer.minutes=1", "optimizer.warmup_share=0.2", "run.log_interval_steps=1")
    outcome = pretrain(store, tmp_path / "whole", configure(*settings))
    assert 57 <= outcome.step == outcome.steps <= 62
    for _ in range(4):
        outcome = pretrain(store, tmp_path / "parts", configure(*settings, "run.max_minutes=0.4"))
    whole, parts = (torch.load(tmp_path / name / "snapshot.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["schedule"] == parts["schedule"]
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())
    saved = json.loads((tmp_path / "parts" / "run.json").read_bytes())["pretrain"]["optimizer"]
    assert (saved["steps"], saved["minutes"]) == (outcome.steps, 1.0)
    # The same command resumes, although the record now has other steps than the recipe.
    settings = ["optimizer.minutes=1", "run.max_minutes=5"]
    assert resolve_config(tmp_path / "parts", None, settings, store).optimizer.minutes == 1
    with pytest.raises(ConfigError, match=r"began with optimizer\.minutes = 1\.0, not 2\.0"):
        resolve_config(tmp_path / "parts", None, ["optimizer.minutes=2"], store)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("tiny_025", [], 200),
        ("tiny", [], 286),
        ("demo", [], 60),
        ("small", [], 217),
        ("tiny", ["optimizer.steps=150"], 11),
        ("tiny", ["optimizer.steps=150", "optimizer.warmup_steps=3"], 3),
        ("tiny", ["optimizer.warmup_steps=0"], 0),
    ],
)
def test_the_warm_up_is_a_share_of_the_steps_unless_it_is_given(name, settings, expected, store, tmp_path):
    assert resolve_config(tmp_path / "run", name, settings, store).optimizer.warmup_steps == expected
    config = with_settings(recipe(name), settings)
    assert config.optimizer.warmup_steps == config.optimizer.warmup == expected


def test_minutes_and_steps_are_not_given_together(store, tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer\.steps=9 does not fit optimizer\.minutes"):
        resolve_config(tmp_path, "tiny", ["optimizer.minutes=1", "optimizer.steps=9"], store)
    planned = resolve_config(tmp_path, "msm_mae_208", ["optimizer.minutes=1"], store).optimizer
    assert (planned.epochs, planned.warmup_share) == (0, 0.1)
    with pytest.raises(ConfigError, match=r"warmup_share is 1\.0; give a share"):
        with_settings(PretrainConfig(), ["optimizer.warmup_share=1"])
    assert math.isclose(recipe("tiny").optimizer.warmup_share, 200 / 2800, rel_tol=1e-3)
