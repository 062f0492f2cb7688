"""Run every command of melmask on toy data in this process, without some of what it may find elsewhere.

    python every_command.py FOLDER extras|unix

FOLDER holds sounds, labels.csv (a label and a fold each) and several.csv (several labels and a split each). Prints
JSON: for each command its exit status, and its lines on standard error and on standard output.
"""

import contextlib
import io
import json
import os
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path

EXTRAS = ("sklearn", "scipy", "matplotlib", "tensorboard", "wandb", "huggingface_hub", "ray", "onnx", "onnxruntime")
UNIX_MODULES = ("resource", "fcntl", "termios", "pwd", "grp", "syslog", "pty")
UNIX_CALLS = (
    *("preadv", "pread", "pwritev", "pwrite", "sched_getaffinity", "fork", "forkpty", "getuid", "geteuid", "getgid"),
    *("killpg", "getpgid", "setsid", "nice", "chown", "fchmod", "fchown", "statvfs", "mkfifo", "getloadavg", "uname"),
    *("posix_fadvise", "posix_fallocate", "sysconf", "O_NONBLOCK", "O_DIRECTORY", "O_NOFOLLOW", "O_SYNC"),
)
UNIX_SIGNALS = ("SIGHUP", "SIGPIPE", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGKILL", "SIGQUIT", "SIGCHLD", "SIGTSTP")
SMALL = [
    *("model.width=32", "model.depth=2", "model.heads=2", "model.decoder_width=16", "model.decoder_depth=1"),
    *("model.decoder_heads=2", "model.frames=64", "data.batch_size=8", "optimizer.steps=4", "optimizer.warmup_steps=2"),
    *("run.picture_interval_steps=2", "hardware.device=cpu", "hardware.threads=1", "hardware.readers=1"),
]


def hide(what):
    if what == "unix":
        # NumPy and PyTorch have files of their own for each system, so they are imported as they are here.
        import_module("torch")
        for home, names in ((os, UNIX_CALLS), (signal, UNIX_SIGNALS)):
            for name in names:
                if hasattr(home, name):
                    delattr(home, name)
    for name in EXTRAS if what == "extras" else UNIX_MODULES:
        sys.modules[name] = None


STUDY = """recipe = "demo"
sounds = ["."]
labels = ["labels.csv"]
settings = [%s]
steps = 2

[[axes]]
setting = "masking.ratio"
values = [0.5]
"""


def commands(folder):
    own = [text for text in SMALL if not text.startswith("optimizer.")]
    (folder / "study.toml").write_text(STUDY % ", ".join(f'"{text}"' for text in own), encoding="utf-8")
    run, labels, several = folder / "run", folder / "labels.csv", folder / "several.csv"
    table, tasks = folder / "e.parquet", folder / "tasks"
    return {
        "settings": ["settings", "tiny"],
        "prepare": ["prepare", folder, "--out", folder / "store"],
        "pretrain": ["pretrain", folder / "store", "--out", run, *SMALL],
        "pretrain, watched": ["pretrain", folder / "store", "--out", folder / "run-2", "--monitor", labels, *SMALL],
        "pretrain, wandb": ["pretrain", folder / "store", "--out", folder / "run-3", *SMALL, "run.wandb_project=x"],
        "bench": ["bench", "tiny", "--seconds", "0.1", "--store", folder / "store", *SMALL],
        "embed": ["embed", folder, "--model", run, "--out", table],
        "embed, ray": ["embed", folder, "--model", run, "--out", folder / "f.parquet", "--engine", "ray"],
        "embed, hub": ["embed", folder, "--model", "hub:a/b", "--out", folder / "g.parquet"],
        "probe": ["probe", "--model", run, "--labels", labels, "--out", folder / "probe"],
        "few-labels": ["few-labels", "--model", run, "--labels", labels, "--out", folder / "few", "--draws", "1"],
        "make-task": ["make-task", labels, "--out", tasks, "--name", "toy"],
        "evaluate": ["evaluate", "--model", run, "--tasks", tasks, "--out", folder / "results", "--protocol", "knn"],
        "study": ["study", folder / "study.toml", "--out", folder / "study"],
        "finetune": ["finetune", run, labels, "--out", folder / "fine", "epochs=1"],
        "finetune, several": ["finetune", run, several, "--out", folder / "fine-2", "epochs=1"],
        "predict": ["predict", folder, "--model", folder / "fine", "--out", folder / "p.csv"],
        "convert": ["convert", run, folder / "converted"],
        "push": ["push", run, "hub:a/b"],
        "export": ["export", "--model", run, "--onnx", folder / "x.onnx"],
    }


def main():
    folder, what = Path(sys.argv[1]), sys.argv[2]
    hide(what)
    from melmask.cli import COMMANDS
    from melmask.cli import main as melmask

    chosen = commands(folder)
    # The demo takes minutes, and a page is served until somebody ends it.
    assert {arguments[0] for arguments in chosen.values()} >= set(COMMANDS) - {"demo", "explore"}
    if what == "extras":
        chosen["explore"] = ["explore", folder, "--out", folder / "explored"]
    found = {}
    for name, arguments in chosen.items():
        said, failed = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(failed):
            try:
                status = melmask(list(map(str, arguments)))
            except SystemExit as stop:
                status = stop.code
            except BaseException:
                status = traceback.format_exc()
        found[name] = [status, failed.getvalue().splitlines(), said.getvalue().splitlines()]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
