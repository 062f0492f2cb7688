"""How fast a configuration pre-trains on this machine, how close that is to the machine's peak, and where time goes.

Readings of whole steps alternate with steps that are timed part by part. A reading on a GPU has several steps and waits
for the device once at its end, as training does. A step in parts waits for the device after each part, so on a GPU the
parts together take longer than a step.
"""

import itertools
import math
import platform
import threading
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from melmask.config import PretrainConfig, Statistics
from melmask.config_text import to_dict
from melmask.corpus.store import Corpus
from melmask.corpus.stream import CropStream
from melmask.corpus.synthetic import synthetic_corpus
from melmask.errors import ConfigError
from melmask.geometry import grid_of
from melmask.models.network import Decoder
from melmask.objectives.base import build_objective
from melmask.system.hardware import (
    keep_freed_memory,
    matmul_peak,
    pick_device,
    pick_precision,
    seconds_of,
    use_threads,
    wait_for,
)
from melmask.system.memory import current_bytes, peak_bytes
from melmask.train.engine import Engine
from melmask.train.optimizer import learning_rate
from melmask.train.pretrain import build_card
from melmask.train.processes import Processes

# The first steps allocate memory, choose kernels and compile.
_WARM_UP_STEPS = 2
_LEAST_READINGS = 3
# Enough steps for the one wait at their end not to count.
_GPU_STEPS_PER_READING = 10
# More steps than anybody waits for.
_ENDLESS = 2**40


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What was measured, in seconds, bytes and operations per second; `str` gives a page of text."""

    config: PretrainConfig
    device: str
    precision: str
    threads: int
    data: str
    """Where the crops came from."""
    views_per_crop: int
    encoded_patches: int
    """Patches of a view that the encoder sees."""
    peaks: tuple[float, float]
    """Operations per second of the fastest matrix product, before and after the steps."""
    steps_s: tuple[float, ...]
    """Time of a step in each reading."""
    parts_s: dict[str, float]
    """Median time of each part of a step."""
    memory_bytes: dict[str, int]
    """Memory by what it is: now in use, at most in use."""
    step_flops: int
    """Operations of a step's matrix products."""

    @property
    def step_s(self) -> float:
        """Median time of a step."""
        return median(self.steps_s)

    @property
    def crops_per_s(self) -> float:
        """Crops trained on per second."""
        return self.config.data.batch_size / self.step_s

    @property
    def views_per_s(self) -> float:
        """Views of crops trained on per second."""
        return self.crops_per_s * self.views_per_crop

    @property
    def share_of_peak(self) -> float:
        """Operations per second of a step, as a share of the larger of the two peaks."""
        # The larger one: what disturbs a measurement of the peak can only lower it.
        return self.step_flops / self.step_s / max(self.peaks)

    def as_dict(self) -> dict[str, object]:
        """Return all of it, ready for JSON."""
        return {
            "config": to_dict(self.config),
            "device": self.device,
            "precision": self.precision,
            "threads": self.threads,
            "torch": torch.__version__,
            "data": self.data,
            "matmul_peak_gflops": [round(peak / 1e9, 1) for peak in self.peaks],
            "step_gflop": round(self.step_flops / 1e9, 3),
            "step_ms": _ms(self.step_s),
            "step_ms_readings": [_ms(s) for s in self.steps_s],
            "crops_per_s": round(self.crops_per_s, 2),
            "patches_per_s": round(self.views_per_s * grid_of(self.config.model).patches, 1),
            "visible_patches_per_s": round(self.views_per_s * self.encoded_patches, 1),
            "share_of_peak": round(self.share_of_peak, 4),
            "parts_ms": {name: _ms(s) for name, s in self.parts_s.items()},
            "memory_mib": {name: round(size / 2**20, 1) for name, size in self.memory_bytes.items()},
        }

    def __str__(self) -> str:
        m, patches = self.config.model, grid_of(self.config.model).patches
        resolutions = f" of {m.resolutions} resolutions" if m.resolutions > 1 else ""
        low, high = min(self.steps_s), max(self.steps_s)
        # On a GPU this is more than a step takes, because each part waits for the device.
        whole_s = sum(self.parts_s.values())
        return "\n".join(
            [
                f"network      {m.width} x {m.depth}, decoder {m.decoder_width} x {m.decoder_depth}",
                f"input        {m.mels} x {m.frames}, patches {m.patch_mels} x {m.patch_frames}{resolutions}, "
                f"{self.encoded_patches} of {patches} visible; {self.config.data.batch_size} crops a step, {self.data}",
                f"device       {self.device}, {self.precision}, {self.threads} threads, torch {torch.__version__}",
                f"products     {max(self.peaks) / 1e9:.0f} GFLOP/s at best "
                f"({self.peaks[0] / 1e9:.0f} before, {self.peaks[1] / 1e9:.0f} after)",
                f"step         {_ms(self.step_s)} ms ({_ms(low)} to {_ms(high)} in {len(self.steps_s)} readings), "
                f"{self.step_flops / 1e9:.0f} GFLOP",
                f"speed        {self.crops_per_s:.1f} crops/s, {self.views_per_s * patches:.0f} patches/s, of which "
                f"{self.views_per_s * self.encoded_patches:.0f} visible",
                f"of the peak  {self.share_of_peak:.1%}",
                "memory       " + ", ".join(f"{n / 2**20:.0f} MiB {name}" for name, n in self.memory_bytes.items()),
                "",
                f"{'part':<18}{'ms':>9}{'%':>7}",
                *(f"{name:<18}{_ms(s):>9}{s / whole_s:>7.1%}" for name, s in self.parts_s.items()),
                f"{'all parts':<18}{_ms(whole_s):>9}",
            ]
        )


def run_bench(config: PretrainConfig, store: Corpus | None = None, seconds: float = 20.0) -> BenchReport:
    """Measure steps of `config` for about `seconds`, on crops of `store` or, without one, on random numbers.

    If some crops are synthetic, they are drawn; without a store all must be.

    Raises:
        ConfigError: `seconds` is no time, the machine lacks the device, or the model does not fit the store.
    """
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"the time to measure for is {seconds:g} seconds; give 0 or more")
    if store is None and config.data.synth_crops:
        store = synthetic_corpus(config)
    device = pick_device(config.hardware.device)
    precision = pick_precision(config.hardware, device)
    use_threads(config.hardware.threads)
    keep_freed_memory()
    # The peak is measured before and after the steps: a machine that heats up, or is shared, slows down in between.
    before = matmul_peak(device, precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step = TrainingStep(config, store)
    with closing(step):
        steps_s, parts = _measure(step, seconds)
    memory = memory_bytes(device)
    return BenchReport(
        config=config,
        device=device_name(device),
        precision={torch.bfloat16: "bf16", torch.float16: "fp16"}.get(precision, "fp32"),
        threads=torch.get_num_threads(),
        data=_data_text(config, store),
        views_per_crop=step.objective.views_per_crop,
        encoded_patches=step.objective.encoded_patches,
        peaks=(before, matmul_peak(device, precision)),
        steps_s=tuple(steps_s),
        parts_s={name: median(part[name] for part in parts) for name in parts[0]},
        memory_bytes=memory,
        step_flops=step.objective.step_flops(config.data.batch_size),
    )


class TrainingStep:
    """The step of `train/pretrain.py` on one process: call it to take one, or time its parts.

    The encoder and the decoder of a compiled network are one part, as compilation joins them.
    """

    def __init__(self, config: PretrainConfig, store: Corpus | None = None):
        self.config = config
        self.device = pick_device(config.hardware.device)
        statistics = build_card(store, config).statistics if store else Statistics()
        self.objective = build_objective(config)
        self.engine = Engine(self.objective, config, statistics, Processes(0, 1, self.device))
        self.done = 0
        self._views = config.data.batch_size * self.objective.views_per_crop
        self._crops = _crops(config, store)

    def __call__(self) -> Tensor:
        """Take one step and return its loss, which the device may not have computed yet."""
        loss, _ = self.engine.step(*self.batch(), learning_rate(self.done, self.config.optimizer, self._views))
        self.done += 1
        return loss

    def timed(self) -> dict[str, float]:
        """Take one step and return the seconds of each of its parts."""
        watch = _Stopwatch(self.device)
        self.engine.lap, nothing = watch.lap, self.engine.lap
        compiled = self.config.hardware.compile
        # The encoder ends where the decoder begins, which a hook on its first layer notices. An objective may keep the
        # decoder for itself.
        decoder = next((part for part in self.objective.module.modules() if isinstance(part, Decoder)), None)
        hook = None
        if decoder is not None and not compiled:
            hook = decoder.embed.register_forward_pre_hook(lambda *_: watch.lap("encoder"))
        self()
        self.engine.lap = nothing
        if hook is not None:
            hook.remove()
        if compiled:
            # The hook was left out, so this lap holds the encoder, too.
            return {name.replace("decoder and loss", "forward"): s for name, s in watch.laps_s.items()}
        return watch.laps_s

    def batch(self) -> tuple[np.ndarray, Tensor]:
        """Return the next crops, and what the objective draws for them."""
        return next(self._crops), self.objective.draw(self.done, 0, 1)

    def close(self) -> None:
        """Stop reading ahead."""
        self._crops.close()


def memory_bytes(device: torch.device) -> dict[str, int]:
    """Return the most memory in use on the GPU; on CPU that of the process now and at most, if the system says."""
    if device.type == "cuda":
        return {"at most on the GPU": torch.cuda.max_memory_allocated(device)}
    sizes = {"now": current_bytes(), "at most": peak_bytes()}
    return {name: size for name, size in sizes.items() if size is not None}


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the CPU's architecture and widest instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def steps_per_reading(device: torch.device) -> int:
    """Return the number of steps between two waits for the device: 1 on CPU; on a GPU more, as in training."""
    return 1 if device.type == "cpu" else _GPU_STEPS_PER_READING


class _Stopwatch:
    """Seconds by name; laps of the same name are added up."""

    def __init__(self, device: torch.device):
        self.laps_s: dict[str, float] = {}
        self._device, self._thread = device, threading.get_ident()
        # A GPU works in the background; its earlier work must not count.
        wait_for(device)
        self._last_s = time.perf_counter()

    def lap(self, name: str) -> None:
        # Several threads compute a step on CPU, and their parts overlap. Those of the first one are measured.
        if threading.get_ident() != self._thread:
            return
        wait_for(self._device)
        now_s = time.perf_counter()
        self.laps_s[name] = self.laps_s.get(name, 0.0) + now_s - self._last_s
        self._last_s = now_s


def _measure(step: TrainingStep, seconds: float) -> tuple[list[float], list[dict[str, float]]]:
    for _ in range(_WARM_UP_STEPS):
        step()
    end_s = time.perf_counter() + seconds
    steps_s: list[float] = []
    parts: list[dict[str, float]] = []
    # Whole steps and steps in parts alternate, so that a change of the machine's speed affects both.
    while len(steps_s) < _LEAST_READINGS or time.perf_counter() < end_s:
        steps_s.append(seconds_of(step, steps_per_reading(step.device), step.device))
        parts.append(step.timed())
    return steps_s, parts


def _crops(config: PretrainConfig, store: Corpus | None) -> Generator[np.ndarray, None, None]:
    # Yield (crops, frames, mels) float16, read ahead from the store as in training, or the same random ones forever.
    if store is not None:
        stream = CropStream(store, config.data, config.model.frames, config.run.seed)
        return stream.batches(0, _ENDLESS, config.hardware.readers)
    shape = (config.data.batch_size, config.model.frames, config.model.bands)
    normal = np.random.default_rng(config.run.seed).standard_normal(shape, np.float32)
    made_up = (Statistics().mean + Statistics().std * normal).astype(np.float16)
    return (made_up for _ in itertools.count())


def _data_text(config: PretrainConfig, store: Corpus | None) -> str:
    if store is None:
        return "random numbers"
    synthetic = config.data.synth_crops
    names = [f"{synthetic} of them synthetic"] if synthetic and store.folder else ["synthetic"] if synthetic else []
    return ", ".join([f"from {store.folder}"] * (store.folder is not None) + names)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)
