"""The settings that a study tries, and the run of each with each seed."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from melmask.config import FrontEndConfig, PretrainConfig
from melmask.config_text import to_dict, with_overrides
from melmask.recipes import recipe, with_settings
from melmask.study.description import Axis, Study, Value, value_text
from melmask.train.record import flat

_FRONT_END = "front_end."
_FURTHER, _RESOLUTIONS = "further_resolutions", "model.resolutions"
_LONGEST_NAME = 100


class Point(NamedTuple):
    """One setting of a study: what it is called, its value on each axis as text, and what differs from the recipe."""

    name: str
    values: dict[str, str]
    settings: tuple[str, ...]

    @property
    def front_end(self) -> FrontEndConfig:
        """The front end of the store that it needs.

        Raises:
            ConfigError: a setting is unknown, or its value is refused.
        """
        return front_end_of(self.settings)


class Run(NamedTuple):
    """One run of a study."""

    name: str
    """The name of its folder."""
    point: Point
    seed: int


def runs_of(study: Study) -> list[Run]:
    """Return all runs, seed by seed, so that a study that is stopped early has tried every setting once.

    Raises:
        ConfigError: the recipe or a setting that all runs share cannot be used.
    """
    points = points_of(study)
    return [Run(_folder_name(f"{point.name} seed {seed}"), point, seed) for seed in study.seeds for point in points]


def points_of(study: Study) -> list[Point]:
    """Return the settings that the study tries, the reference first where there is one.

    Raises:
        ConfigError: the recipe or a setting that all runs share cannot be used.
    """
    usual = [reference_of(study, axis) for axis in study.axes]
    if study.search == "one":
        chosen = [tuple(usual)]
        for index, axis in enumerate(study.axes):
            others = (value for value in axis.values if value != usual[index])
            chosen += [(*usual[:index], value, *usual[index + 1 :]) for value in others]
        return [_point(study, values, usual) for values in chosen]
    lengths = [len(axis.values) for axis in study.axes]
    numbers: Sequence[int] = range(math.prod(lengths))
    if study.search == "random" and study.random_runs < len(numbers):
        numbers = _drawn(len(numbers), study.random_runs)
    found = []
    for number in numbers:
        places = np.unravel_index(number, lengths)
        found.append(tuple(axis.values[int(place)] for axis, place in zip(study.axes, places, strict=True)))
    return [_point(study, values, None) for values in found]


def reference_of(study: Study, axis: Axis) -> tuple[Value, ...]:
    """Return the value that the others of an axis are compared with: the recipe's, or else the first.

    Raises:
        ConfigError: the recipe or a setting that all runs share cannot be used.
    """
    config, front_end = base_of(study)
    known = flat(to_dict(config)) | flat({"front_end": to_dict(front_end)})
    own = tuple(known.get(setting) for setting in axis.settings)
    single = tuple(value for value in own if isinstance(value, bool | int | float | str))
    if study.search == "one" and len(single) == len(own):
        # The recipe's value counts even where the axis does not list it.
        return single
    return next((value for value in axis.values if value == own), axis.values[0])


def base_of(study: Study) -> tuple[PretrainConfig, FrontEndConfig]:
    """Return the configuration and the front end that all runs share.

    Raises:
        ConfigError: the recipe or a setting cannot be used.
    """
    settings = _with_resolutions(study, study.settings)
    return with_settings(recipe(study.recipe), pretrain_settings(settings)), front_end_of(settings)


def front_end_of(settings: Sequence[str]) -> FrontEndConfig:
    """Return the front end that some settings ask for.

    Raises:
        ConfigError: a setting is unknown, or its value is refused.
    """
    own = [text.removeprefix(_FRONT_END) for text in settings if text.startswith(_FRONT_END)]
    return with_overrides(FrontEndConfig(), own)


def pretrain_settings(settings: Sequence[str]) -> list[str]:
    """Return the settings that are not the front end's.

    The network gets as many mel bands and resolutions as the front end has.

    Raises:
        ConfigError: a setting of the front end is unknown, or its value is refused.
    """
    own = [text for text in settings if not text.startswith(_FRONT_END)]
    front_end = front_end_of(settings)
    for of_front_end, name, value in (
        ("mels", "model.mels", front_end.mels),
        (_FURTHER, _RESOLUTIONS, front_end.resolutions),
    ):
        if _value_of(f"{_FRONT_END}{of_front_end}", settings) and not _value_of(name, own):
            own.append(f"{name}={value}")
    return own


def axis_text(value: tuple[Value, ...]) -> str:
    """Write a value of an axis: (16, 8) -> "16x8"."""
    return "x".join(map(value_text, value))


def digest_of(front_end: FrontEndConfig) -> str:
    """Return a short name for a front end, the same on every machine."""
    return hashlib.sha256(json.dumps(to_dict(front_end), sort_keys=True).encode()).hexdigest()[:8]


def _drawn(count: int, most: int) -> list[int]:
    """Return `most` of the numbers below `count`, the same ones in every process."""
    return sorted(np.random.default_rng(0).choice(count, most, replace=False).tolist())


def _point(study: Study, values: Sequence[tuple[Value, ...]], usual: Sequence[tuple[Value, ...]] | None) -> Point:
    texts = {axis.name: axis_text(value) for axis, value in zip(study.axes, values, strict=True)}
    pairs = list(zip(study.axes, values, strict=True))
    # Around a reference, only what differs is named. It also comes last, as another axis may hold the same setting.
    varied = [pair for number, pair in enumerate(pairs) if usual is None or pair[1] != usual[number]]
    named = [f"{axis.name} {axis_text(value)}" for axis, value in varied]
    usually = [pair for pair in pairs if pair not in varied]
    settings = itertools.chain.from_iterable(itertools.starmap(_settings, [*usually, *varied]))
    return Point(", ".join(named) or "base", texts, _with_resolutions(study, (*study.settings, *settings)))


def _with_resolutions(study: Study, settings: Sequence[str]) -> tuple[str, ...]:
    """Return settings whose front end has two resolutions if the network wants two, as `melmask prepare` gives."""
    wanted = _value_of(_RESOLUTIONS, settings) or str(recipe(study.recipe).model.resolutions)
    if wanted != "2" or _value_of(f"{_FRONT_END}{_FURTHER}", settings):
        return tuple(settings)
    return (*settings, f"{_FRONT_END}{_FURTHER}=[{{}}]")


def _value_of(name: str, settings: Sequence[str]) -> str:
    """Return the text of a setting, the last one if there are several; empty if it is not given."""
    return next((text.partition("=")[2] for text in reversed(settings) if text.startswith(f"{name}=")), "")


def _settings(axis: Axis, value: tuple[Value, ...]) -> Iterator[str]:
    yield from (f"{name}={value_text(one)}" for name, one in zip(axis.settings, value, strict=True))


def _folder_name(text: str) -> str:
    plain = re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII).strip("-.")
    if len(plain) <= _LONGEST_NAME and len(re.findall(r"[^\w.+ ,-]", text, flags=re.ASCII)) == 0:
        return plain
    # Names of other scripts, or long ones, could fall together.
    return f"{plain[:_LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
