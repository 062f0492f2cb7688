"""Do runs of a study as processes of this machine, several side by side."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from melmask.study.outcomes import LOG_FILE, run_folder
from melmask.system.files import ensure_folder
from melmask.system.hardware import environment_with
from melmask.system.reading import read_bytes
from melmask.system.terminal import note

Ended = Callable[[str, int], None]
"""Called with the name of a run that has ended, and its exit status (`melmask.study.worker`)."""
_POLL_S = 0.2
# What the runs under way say is shown so often.
_REPORT_S = 30.0
# A run saves its snapshot after the step under way, which may take a while.
_PATIENCE_S = 120.0


def command(folder: Path, name: str, threads: int) -> list[str]:
    """Return the command of a run's process."""
    return [sys.executable, "-m", "melmask.study.worker", str(folder), name, str(threads)]


def do_runs(folder: Path, names: Sequence[str], at_once: int, threads: int, ended: Ended) -> None:
    """Do the runs in their order, `at_once` side by side with `threads` threads each.

    If this is interrupted, the runs under way save their snapshots and end.
    """
    waiting, active = list(names), dict[str, "subprocess.Popen[bytes]"]()
    said_s = time.monotonic()
    try:
        while waiting or active:
            while waiting and len(active) < at_once:
                name = waiting.pop(0)
                active[name] = _start(folder, name, threads)
            for name, process in list(active.items()):
                status = process.poll()
                if status is not None:
                    del active[name]
                    ended(name, status)
            if active and time.monotonic() - said_s >= _REPORT_S:
                said_s = time.monotonic()
                for name in active:
                    note(f"{name}: {_last_line(folder, name)}")
            time.sleep(_POLL_S)
    finally:
        for process in active.values():
            process.terminate()
        for process in active.values():
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def do_run(folder: Path, name: str, threads: int) -> int:
    """Do one run and return its exit status."""
    return _start(folder, name, threads).wait()


def _last_line(folder: Path, name: str) -> str:
    """Return the newest line of a run's log, such as its step and its loss."""
    lines = read_bytes(run_folder(folder, name) / LOG_FILE).decode(errors="replace").splitlines()
    return lines[-1] if lines else "starting"


def _start(folder: Path, name: str, threads: int) -> "subprocess.Popen[bytes]":
    with (ensure_folder(run_folder(folder, name)) / LOG_FILE).open("ab") as log:
        return subprocess.Popen(
            command(folder, name, threads),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment_with(threads),
        )
