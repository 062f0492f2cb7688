"""Pre-train a model on a folder of sound, on a laptop, with the commands that a terminal would take.

    python examples/03_pretrain_on_a_laptop.py                       # synthetic sounds, about two minutes
    python examples/03_pretrain_on_a_laptop.py FOLDER --out work --recipe tiny
    python examples/03_pretrain_on_a_laptop.py FOLDER --out work optimizer.steps=8000 run.seed=1

Stop it with Ctrl-C and start it again: it resumes. `work/run/index.html` shows how the training goes.
"""

import argparse
import sys
from pathlib import Path

from melmask.cli import main
from melmask.datasets.synthetic import write_sound_set

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path)
parser.add_argument("--out", type=Path, default=Path("melmask-example"))
parser.add_argument("--recipe", default="demo")
parser.add_argument("--clips-per-class", type=int, default=40, help="how many synthetic sounds to make")
# Words with an equals sign are settings of the recipe, as on melmask's own command line.
settings = [word for word in sys.argv[1:] if "=" in word]
options = parser.parse_args([word for word in sys.argv[1:] if "=" not in word])

folder = options.folder or write_sound_set(options.out / "sounds", options.clips_per_class).parent
store, run = options.out / "store", options.out / "run"

# Each call returns the exit status of the command: 0, or 2 after one line that says what to do.
for command in (
    ["prepare", str(folder), "--out", str(store)],
    ["pretrain", str(store), "--recipe", options.recipe, "--out", str(run), *settings],
):
    print("melmask", *command)
    status = main(command)
    if status:
        sys.exit(status)
print(f"next: python examples/02_embed_a_folder.py --model {run} {folder}")
