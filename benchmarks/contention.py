"""Measure how training and embedding get on beside other programs: the former way and the new way, in turns.

    python benchmarks/contention.py [--recipe tiny] [--settings data.batch_size=64 ...] [--jobs train embed]
        [--loops 0 2 6] [--seconds 6] [--pairs 3] [--out X.md]

former   All threads share every operation, and wait for each other by spinning.
asleep   The same in the environment that the command `melmask` sets, in which they wait asleep.
new      In this environment, shares of a batch are computed side by side, as `melmask pretrain` and `embed` do.

Each way is a process of its own, which sleeps while another one is measured. Beside it run so many busy `loops`, each a
program of one thread.

A fair share: the system gives every thread that can run as much time as any other. With t threads of ours and n busy
loops on t cores, t of t + n threads are ours, so a fair share is the idle rate of the new way times t / (t + n).
"""

import argparse
import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from statistics import median

UNITS = {"train": "crops/s", "embed": "s of sound/s"}
WAYS = ("former", "asleep", "new")
LOOP = "while True: pass"


class Way:
    """One way to do a job, in a process of its own: `rate(seconds)` measures it."""

    def __init__(self, way: str, job: str, recipe: str, settings: list[str]):
        environment = dict(os.environ)
        if way != "former":
            # In a process of its own, because it must be set before PyTorch is loaded.
            from melmask.system.environment import thread_environment

            environment |= thread_environment(environment)
        command = [sys.executable, __file__, "--worker", way, "--jobs", job, "--recipe", recipe]
        command += ["--settings", *settings]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._answer()

    def rate(self, seconds: float) -> float:
        """Return units per second over at least one step."""
        print(seconds, file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a worker has ended; its message is above")
        return line


def work(way: str, job: str, recipe: str, settings: list[str]) -> None:
    """Answer each number of seconds on standard input with a rate."""
    from melmask.system.hardware import keep_freed_memory, use_threads

    use_threads(0)
    keep_freed_memory()
    step, units = (training if job == "train" else embedding)(way == "new", recipe, settings)
    step()
    print("ready", flush=True)
    for line in sys.stdin:
        start_s, done = time.monotonic(), 0
        while time.monotonic() - start_s < float(line) or not done:
            step()
            done += 1
        print(done * units / (time.monotonic() - start_s), flush=True)


def training(in_shares: bool, recipe: str, settings: list[str]):
    """Return a function that takes a step, and the crops in a step."""
    from melmask.config_text import with_overrides
    from melmask.recipes import recipe as recipe_of
    from melmask.train.bench import TrainingStep

    config = with_overrides(recipe_of(recipe), [*settings, *([] if in_shares else ["hardware.shares=1"])])
    return TrainingStep(config), config.data.batch_size


def embedding(in_shares: bool, recipe: str, settings: list[str]):
    """Return a function that encodes ten clips of 10 s, and the seconds of sound in them."""
    import torch

    from melmask.checkpoint.folder import ModelCard
    from melmask.config import FrontEndConfig, Statistics
    from melmask.config_text import with_overrides
    from melmask.embedding import encoder
    from melmask.recipes import recipe as recipe_of

    if not in_shares:
        cores = encoder.Cores
        encoder.Cores = lambda threads, **_: cores(threads, 1)
    model = with_overrides(recipe_of(recipe), settings).model
    card = ModelCard(model=model, front_end=FrontEndConfig(), statistics=Statistics(), training={})
    network = encoder.untrained(card)
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(80, 1000, generator=generator) * 4 - 7 for _ in range(10)]
    return lambda: network.embed_segments(clips), 100


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """Run busy loops while the work inside is measured."""
    running = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(loops)]
    try:
        yield
    finally:
        for loop in running:
            loop.kill()
            loop.wait()


def measured(job: str, options: argparse.Namespace) -> list[str]:
    """Return the rows of a job's table."""
    ways = {name: Way(name, job, options.recipe, options.settings) for name in WAYS}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows: list[str] = []
    idle: float | None = None
    for loops in options.loops:
        rates: dict[str, list[float]] = {name: [] for name in WAYS}
        with busy(loops):
            for pair in range(options.pairs):
                # The first one goes last in every other pair.
                for name in WAYS if pair % 2 else WAYS[::-1]:
                    rates[name].append(ways[name].rate(options.seconds))
        former, asleep, new = (median(rates[name]) for name in WAYS)
        if not loops:
            idle = new
        fair = "-" if idle is None else f"{idle * cores / (cores + loops):.1f}"
        of_fair = "-" if idle is None else f"{new / (idle * cores / (cores + loops)):.0%}"
        spread = ", ".join(f"{name} {min(of):.1f} to {max(of):.1f}" for name, of in rates.items())
        cells = [
            job,
            str(loops),
            f"{former:.1f}",
            f"{asleep:.1f}",
            f"{new:.1f}",
            f"{new / former:.2f}",
            fair,
            of_fair,
            spread,
        ]
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    for way in ways.values():
        way.close()
    return rows


def main() -> None:
    """Measure, print a table and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--settings", nargs="*", default=[], help="settings of the recipe")
    parser.add_argument("--jobs", nargs="+", choices=UNITS, default=list(UNITS))
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 2, 6])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.jobs[0], options.recipe, options.settings)
        return
    head = [
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, load before: {os.getloadavg()[0]:.2f}",
        "",
        f"    {' '.join(['python benchmarks/contention.py', *sys.argv[1:]])}",
        "",
        f"Recipe {options.recipe}. Rates are medians of {options.pairs} pairs: "
        + ", ".join(f"{job} in {UNITS[job]}" for job in options.jobs)
        + ".",
        "",
        "| job | busy loops | former | asleep | new | new / former | fair share | of the fair share | least and most |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    print("\n".join(head), flush=True)
    rows = [row for job in options.jobs for row in measured(job, options)]
    if options.out:
        options.out.write_text("\n".join(["# Beside other programs", "", *head, *rows]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
