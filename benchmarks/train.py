"""Measure how fast pre-training is: melmask's step and the literal one, in alternating rounds of one run.

    python benchmarks/train.py [--size base] [--frames 208] [--batch 64] [--rounds 5] [--device cpu] [--out RESULT.json]

On a GPU both 80x208 and 80x608 are measured, compiled and not compiled. All steps start from the same weights and train
on the same random crops, because speed does not depend on them. Ratios and shares of the peak are those of the best
rounds. The peak is the fastest matrix product in the step's own precision. For both steps, the operations are counted
that melmask's step needs, although the literal step does more.
"""

import argparse
import copy
import json
import multiprocessing
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

import torch
from literal import LiteralStep, literal_loss

from melmask.config import DataConfig, HardwareConfig, MaskingConfig, PretrainConfig, Statistics
from melmask.models.flops import step_flops
from melmask.models.network import build_network
from melmask.models.presets import preset
from melmask.objectives.mae import predict_hidden
from melmask.system.hardware import keep_freed_memory, matmul_peak, pick_device, seconds_of, use_threads, wait_for
from melmask.train.bench import TrainingStep, device_name, steps_per_reading

_remote: list[LiteralStep] = []


def _build_remote(threads, *arguments):
    use_threads(threads)
    _remote.append(LiteralStep(*arguments))


def _call_remote(device):
    _remote[0]()
    wait_for(device)


class LiteralElsewhere:
    """The literal step in a process of its own, because `keep_freed_memory` would change every step of this process."""

    def __init__(self, threads, model, *arguments):
        self.model, self._device = model, arguments[-1]
        context = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, context, _build_remote, (threads, model, *arguments))

    def __call__(self):
        """Run one step and wait for it."""
        self._process.submit(_call_remote, self._device).result()


NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def steps_of(model, options, device, batch):
    """Return the steps to compare by their names, each with its precision."""

    def ours(precision, compiled=False):
        hardware = HardwareConfig(device=options.device, precision=precision, compile=compiled)
        config = PretrainConfig(model=model, data=DataConfig(batch_size=batch), hardware=hardware)
        step = TrainingStep(config)
        return step, step.engine.precision

    steps = {"fp32": ours("fp32"), "auto": ours("auto")}
    if options.compile:
        steps |= {"fp32 compiled": ours("fp32", compiled=True), "auto compiled": ours("auto", compiled=True)}
    crops, masked = steps["fp32"][0].batch()
    visible = int((~masked[0]).sum())
    literal = LiteralElsewhere(options.threads, build_network(model), normalized(crops), visible, device)
    return {"literal": (literal, torch.float16 if device.type == "cuda" else torch.float32)} | steps


def normalized(crops) -> torch.Tensor:
    """Return a batch, as it is read, as normalized float32 (crops, mels, frames)."""
    statistics = Statistics()
    return (torch.from_numpy(crops).float().transpose(1, 2) - statistics.mean) / statistics.std


@torch.no_grad()
def loss_difference(ours, literal) -> float:
    """Return the difference of both losses with the same weights, crops and masks, in float32."""
    crops, masked = ours.batch()
    logmel, masked = normalized(crops).to(ours.device), masked.to(ours.device)
    visible = int((~masked[0]).sum())
    # The literal step's process will get the model from the host, so a copy goes to the device.
    model = copy.deepcopy(literal.model).to(ours.device)
    theirs = literal_loss(model, logmel, masked.float(), visible)
    return abs(float(theirs) - float(predict_hidden(ours.engine.model, logmel, masked, MaskingConfig()).loss))


def measure(model, batch, options, device) -> dict:
    """Run all rounds of one input size and batch."""
    # Without this, PyTorch would see a second size and compile slower code for sizes that vary.
    torch.compiler.reset()
    steps = steps_of(model, options, device, batch)
    difference = loss_difference(steps["fp32"][0], steps["literal"][0])
    times = steps_per_reading(device)
    kinds = {kind for _, kind in steps.values()}
    peaks = {kind: matmul_peak(device, kind) for kind in kinds}
    for step, _ in steps.values():
        # The first steps choose kernels, allocate buffers and compile, so they are not measured.
        seconds_of(step, 2, device)
    all_s = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, (step, _) in steps.items():
            all_s[name].append(seconds_of(step, times, device))
    peaks = {kind: max(peak, matmul_peak(device, kind)) for kind, peak in peaks.items()}
    flops = step_flops(model, 0.75, batch)
    best_s = {name: min(rounds_s) for name, rounds_s in all_s.items()}
    return {
        "input": f"{model.mels}x{model.frames}",
        "batch": batch,
        "step_gflop": round(flops / 1e9, 3),
        "loss_difference": difference,
        "matmul_peak_gflops": {NAMES[kind]: round(peak / 1e9) for kind, peak in peaks.items()},
        "steps": {
            name: {
                "precision": NAMES[kind],
                "step_ms": [round(1000 * s, 2) for s in all_s[name]],
                "crops_per_s": round(batch / best_s[name], 1),
                "times_faster_than_literal": round(best_s["literal"] / best_s[name], 3),
                "share_of_peak": round(flops / best_s[name] / peaks[kind], 4),
            }
            for name, (_, kind) in steps.items()
        },
    }


def main() -> None:
    """Measure all cases, print the result and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--frames", type=int, nargs="+", help="default: 208; on a GPU 208 and 608")
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU only")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; default: all")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    use_threads(options.threads)
    keep_freed_memory()
    device = pick_device(options.device)
    gpu = device.type == "cuda"
    options.frames = options.frames or ([208, 608] if gpu else [208])
    options.compile = gpu if options.compile is None else options.compile
    cases = [
        measure(preset(options.size, frames=frames), batch, options, device)
        for frames in options.frames
        for batch in options.batch
    ]
    result = {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "device": device_name(device),
        "command": " ".join(["python benchmarks/train.py", *sys.argv[1:]]),
        "cases": cases,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
