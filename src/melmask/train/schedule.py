"""The steps that a run has: those of its configuration, or those that it plans to fill its minutes.

With `optimizer.minutes`, the first steps measure the speed, and the rest of the minutes gives the number of steps. The
plan is looked at again after each sixteenth of the minutes. If it would end early or late by more than a 64th of the
minutes, the rest is planned again from the newest speed: the decay continues from the rate that it has reached, and
falls to zero at the new end. The last look is when the minutes are over; what is left of the decay then is taken within
a 64th of the minutes. So the run ends late by at most about 2 % of the minutes, whatever happens to its speed before.
If the speed rises in the last sixteenth, the run ends early.

The rate is a pure function of the step and of the plan, which the snapshot holds, so a resumed run keeps both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from melmask.config import OptimizerConfig, PretrainConfig

LOOKS = 16
"""The plan is looked at after each of so many equal parts of the minutes."""
TOLERANCE = 1 / 64
"""A plan that ends early or late by this share of the minutes stays."""
# The first step allocates memory and may compile, so it says nothing about the speed.
_STEPS_UNMEASURED, _STEPS_MEASURED, _LEAST_MEASURED = 1, 8, 3
# A budget of a few steps is planned after this share of it, with however few steps were measured.
_LATEST_PLAN = 1 / 20


class Part(NamedTuple):
    """The plan from `first_step` on: the steps of the whole run and of its warm-up; 0 `steps`: not planned yet."""

    first_step: int
    warmup_steps: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many steps a run has, as far as it is planned; a part replaces the previous one from its first step on."""

    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, config: OptimizerConfig) -> "Schedule":
        """Return the schedule of a run that begins."""
        return cls(parts=(Part(0, config.warmup, 0 if config.minutes else config.steps),))

    @classmethod
    def read(cls, parts: Sequence[Sequence[int]]) -> "Schedule":
        """Return the schedule that a snapshot holds as lists of numbers."""
        return cls(parts=tuple(Part(*part) for part in parts))

    @property
    def steps(self) -> int:
        """Steps of the whole run; 0 if they are not planned yet."""
        return self.parts[-1].steps

    def warmup_at(self, step: int) -> int:
        """Return how many steps of warm-up the plan of a step has."""
        return self._parts_to(step)[-1].warmup_steps

    def progress(self, step: int) -> float:
        """Return how far the decay is at a step after the warm-up, 0 to 1."""
        reached, parts = 0.0, self._parts_to(step)
        for part, end in zip(parts, [*(part.first_step for part in parts[1:]), step], strict=True):
            # A part that begins during the warm-up decays from the end of the warm-up.
            start = max(part.first_step, part.warmup_steps)
            if part.steps and end > start:
                reached += (1 - reached) * (end - start) / max(1, part.steps - start)
        return min(1.0, reached)

    def revised(self, step: int, steps: int, warmup_share: float) -> "Schedule":
        """Return the schedule whose rest, from `step` on, ends with step `steps`."""
        warmup_steps = self.warmup_at(step)
        if step < warmup_steps or not self.steps:
            warmup_steps = min(round(warmup_share * steps), steps)
        # After a rollback, the run may be before a part that it has planned already.
        kept = tuple(part for part in self.parts if part.first_step < step)
        return Schedule(parts=(*kept, Part(step, warmup_steps, steps)))

    def _parts_to(self, step: int) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.first_step <= step) or self.parts[:1]


class Planner:
    """Plans the steps of a run with `optimizer.minutes`, and looks at the plan as time passes."""

    def __init__(self, config: OptimizerConfig, step: int, seconds: float):
        self._budget_s, self._share = 60 * config.minutes, config.warmup_share
        self._begin = step + _STEPS_UNMEASURED
        self._since = (step, seconds)
        self._next_s = self._look_after(seconds)

    def look(self, schedule: Schedule, step: int, seconds: float) -> Schedule:
        """Return the schedule to continue with after `step` steps and `seconds` of the run's training.

        It is the same object unless the rest was planned, or planned again. Several processes must give the same time.
        """
        if not self._budget_s or 0 < schedule.steps <= step:
            return schedule
        measured = step - self._since[0]
        if step <= self._begin or measured <= 0:
            # The first step does not count. After a rollback, the speed is measured anew.
            self._since = (step, seconds) if step == self._begin or measured < 0 else self._since
            return schedule
        if schedule.steps:
            due = seconds >= self._next_s and measured >= _LEAST_MEASURED
        else:
            due = measured >= _STEPS_MEASURED or seconds >= _LATEST_PLAN * self._budget_s
        if not due:
            return schedule
        step_s = max(1e-9, (seconds - self._since[1]) / measured)
        self._since, self._next_s = (step, seconds), self._look_after(seconds)
        left_s, tolerance_s = self._budget_s - seconds, TOLERANCE * self._budget_s
        if schedule.steps and abs((schedule.steps - step) * step_s - left_s) <= tolerance_s:
            return schedule
        # A run that is over its time still needs some steps for the end of its decay.
        return schedule.revised(step, step + max(1, math.floor(max(left_s, tolerance_s) / step_s)), self._share)

    def _look_after(self, seconds: float) -> float:
        # A run that is over its time is looked at no more.
        part = math.floor(LOOKS * seconds / self._budget_s) + 1 if self._budget_s else LOOKS + 1
        return part * self._budget_s / LOOKS if part <= LOOKS else math.inf


def scheduled(config: PretrainConfig, schedule: Schedule) -> PretrainConfig:
    """Return the configuration with the numbers of steps that a run has planned."""
    old, last = config.optimizer, schedule.parts[-1]
    steps = last.steps or old.steps
    optimizer = replace(old, steps=steps, warmup_steps=min(last.warmup_steps, steps))
    return replace(config, optimizer=optimizer)
