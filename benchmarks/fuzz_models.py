"""Read models, runs, stores, tables and tasks that were damaged at random: each gives a result or one line of error.

    python benchmarks/fuzz_models.py [--files 2000] [--seed 0] [--only KIND] [--keep FOLDER]

A toy model is trained, and everything that melmask writes is made with it. One file of a copy is then damaged: bytes
changed, parts cut out or repeated, and values of its JSON (also inside safetensors and Parquet) replaced by nasty
ones. A child process with bounds on memory and time runs the command that reads it. The last line counts what came out,
and the exit status is 1 if anything else than a result or one line did; such folders are kept in FOLDER.
"""

import argparse
import collections
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import soundfile
from bounded_worker import BoundedWorker

RATE_HZ = 16000
MEMORY_BYTES = 8 << 30
"""Of addresses; PyTorch alone takes three gigabytes."""
LIMIT_S = 120.0
TOY = [
    *("model.width=64", "model.depth=1", "model.heads=1", "model.frames=64", "model.decoder_width=64"),
    *("model.decoder_depth=1", "model.decoder_heads=1", "data.batch_size=4", "optimizer.steps=3"),
    *("optimizer.warmup_steps=1", "run.log_interval_steps=1", "run.picture_interval_steps=0", "hardware.device=cpu"),
    *("hardware.precision=fp32", "hardware.threads=1", "hardware.readers=1"),
]
# Texts that take the place of a value in JSON.
NASTY = [
    *("null", "true", "-1", "0", "1", "2", "0.5", "-0.0", "1e5", "100000", "10000000", "1000000000", "1e308", "1e999"),
    *("NaN", "Infinity", "-Infinity", '""', '"x"', '"\\ud800"', '"\\u0000"', "[]", "{}", "[null]", "9" * 18, "9" * 299),
    *("9" * 5000, "-" + "9" * 5000, "[" * 60 + "]" * 60, "[" * 100_000 + "]" * 100_000),
    *('{"a":' * 5000 + "1" + "}" * 5000, '"' + "y" * 100_000 + '"', '"/dev/zero"', "1e-300", "1e30"),
    '{"label": "low", "start": 0, "end": 1e300}',
]  # fmt: skip
EVALUATE = ["evaluate", "--model", "model", "--tasks", "tasks", "--protocol", "knn", "--out"]
EPOCHS = ["epochs=2", "batch_size=4"]
# Kind of file, the files of it that are damaged, and the command that reads them, in a copy of the folder.
COMMANDS = {
    "model": ("model/*", ["embed", "sounds", "--model", "model", "--out", "new.parquet"]),
    "run": ("run/*.* run/checkpoints/*/*", ["pretrain", "store", "--out", "run", "run.max_minutes=0"]),
    "store": ("store/*", ["pretrain", "store", "--out", "new", *TOY]),
    "store, prepared again": ("store/*", ["prepare", "sounds", "--out", "store"]),
    "classifier": ("classifier/classifier/*", ["predict", "sounds", "--model", "classifier", "--out", "new.csv"]),
    "fine-tuning": ("classifier/*.*", ["finetune", "run", "sounds/labels.csv", "--out", "classifier", *EPOCHS]),
    "table": ("table.parquet", ["embed", "sounds", "--model", "model", "--out", "table.parquet"]),
    "npz": ("table.npz", ["embed", "sounds", "--model", "model", "--out", "table.npz", "--frames"]),
    "parts": ("half.parquet.parts/*", ["embed", "sounds", "--model", "model", "--out", "half.parquet"]),
    "journal": (".half.csv.partial.jsonl", ["predict", "sounds", "--model", "classifier", "--out", "half.csv"]),
    "task": ("tasks/*/*.*", [*EVALUATE, "new"]),
    "results": ("results/*.* results/models/*/*/*/* results/cache/*", [*EVALUATE, "results", "--protocol", "hear"]),
    "pth": ("other.pth", ["convert", "other.pth", "new"]),
    "labels": ("sounds/labels.csv", ["make-task", "sounds/labels.csv", "--out", "new", "--name", "toy"]),
}  # fmt: skip


def melmask(*words: str) -> None:
    """Run a command that must succeed."""
    from melmask.cli import main

    status = main(list(words))
    assert status == 0, (words, status)


def make_files() -> None:
    """Write one of each kind into the current folder."""
    from melmask import FeatureChoice, embed_files, load
    from melmask.embedding import tables
    from melmask.embedding.folder import table_settings
    from melmask.labels.sources import find_sounds

    Path("sounds").mkdir()
    rng, rows = np.random.default_rng(0), ["path,label,split"]
    for number in range(12):
        label, pitch_hz = ("low", 200) if number % 2 else ("high", 1500)
        tone = 0.3 * np.sin(2 * np.pi * (pitch_hz + 10 * number) * np.arange(RATE_HZ // 2) / RATE_HZ)
        soundfile.write(f"sounds/{number:02d}.wav", tone + 0.01 * rng.standard_normal(len(tone)), RATE_HZ)
        rows.append(f"{number:02d}.wav,{label},{('train', 'train', 'train', 'train', 'valid', 'test')[number // 2]}")
    Path("sounds/labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    melmask("prepare", "sounds", "--out", "store")
    melmask("pretrain", "store", "--out", "run", *TOY, "run.max_minutes=0.00001")
    shutil.copytree(next(Path("run/checkpoints").iterdir()), "model")
    melmask("finetune", "run", "sounds/labels.csv", "--out", "classifier", *EPOCHS)
    melmask("embed", "sounds", "--model", "model", "--out", "table.parquet")
    melmask("embed", "sounds", "--model", "model", "--out", "table.npz", "--frames")
    melmask("make-task", "sounds/labels.csv", "--out", "tasks", "--name", "toy")
    melmask(*COMMANDS["results"][1])
    from melmask.checkpoint.convert import save_msm_mae

    model = load("model", "cpu")
    save_msm_mae(Path("other.pth"), model.model, model.card)
    # Jobs as a kill leaves them: all parts there, and nothing merged.
    paths = find_sounds([Path("sounds")])
    job = tables.TableJob(Path("half.parquet"), paths, table_settings(model, paths, FeatureChoice()))
    job.write(job.todo(), embed_files(model, paths))
    _half_a_journal(paths)


def _half_a_journal(paths: list[Path]) -> None:
    from melmask.classifier import predictions

    class StopError(Exception):
        pass

    write = predictions.Journal.add

    def add(self, path, rows):
        write(self, path, rows)
        if len(self.done) == len(paths) // 2:
            raise StopError

    predictions.Journal.add = add
    with contextlib.suppress(StopError):
        melmask(*COMMANDS["journal"][1])
    predictions.Journal.add = write


def with_nasty_value(text: str, chance: random.Random) -> str:
    """Put a nasty text in the place of one value of a JSON text, or of a line of JSON lines."""
    try:
        content = json.loads(text)
    except ValueError:
        lines = text.splitlines(keepends=True) or [""]
        at = chance.randrange(len(lines))
        with contextlib.suppress(ValueError):
            json.loads(lines[at])
            lines[at] = with_nasty_value(lines[at], chance) + "\n"
        return "".join(lines)
    nasty, place = chance.choice(NASTY), content
    if chance.random() < 0.05 or not isinstance(content, dict | list) or not content:
        return nasty
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.85:
            place = place[key]
            continue
        if isinstance(place, dict) and chance.random() < 0.1:
            place[f"{key}?"] = place.pop(key)
        place[key] = "<here>"
        return json.dumps(content).replace('"<here>"', nasty)


def with_nasty_parquet(content: bytes, chance: random.Random) -> bytes:
    """Change the JSON in a Parquet file's metadata, or a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    if chance.random() < 0.5 and table.schema.metadata:
        key = chance.choice(list(table.schema.metadata))
        text = with_nasty_value(table.schema.metadata[key].decode(), chance)
        table = table.replace_schema_metadata({**table.schema.metadata, key: text.encode()})
    else:
        at = chance.randrange(table.num_columns)
        name, kind = table.schema.names[at], table.schema.types[at]
        if chance.random() < 0.2:
            table = table.drop_columns([name])
        else:
            value = chance.choice([None, None, -1, 0, 10**9, 2**62, float("nan"), float("inf"), "x"])
            values = table[name].to_pylist()
            values[chance.randrange(max(1, len(values)))] = value
            with contextlib.suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
                kind = chance.choice([kind, kind, pa.string(), pa.float64(), None])
                table = table.set_column(at, name, pa.array(values, kind))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def damaged(path: Path, chance: random.Random) -> bytes:
    """Return the content of a file, damaged in a way that suits it."""
    content = path.read_bytes()
    if chance.random() < 0.7:
        if path.suffix in (".json", ".jsonl"):
            return with_nasty_value(content.decode(), chance).encode("utf-8", "surrogatepass")
        if path.suffix == ".parquet":
            return with_nasty_parquet(content, chance)
        if path.suffix == ".safetensors":
            size = int.from_bytes(content[:8], "little")
            header = with_nasty_value(content[8 : 8 + size].decode(), chance).encode()
            return len(header).to_bytes(8, "little") + header + content[8 + size :]
        if path.suffix == ".csv":
            lines = content.decode().splitlines()
            at = chance.randrange(len(lines))
            cells = lines[at].split(",")
            cells[chance.randrange(len(cells))] = chance.choice(
                ["9" * 5000, "", "\x1b[2J", "=1+1", "nan", '"', "x" * 200_000]
            )
            return "\n".join([*lines[:at], ",".join(cells), *lines[at + 1 :]]).encode()  # fmt: skip
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(changed) or 1)
        match chance.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                changed = changed[:at]
            case 2:
                del changed[at : at + chance.randrange(1, 500)]
            case 3:
                changed[at : at + 64] = chance.choice((b"\xff", b"\0", b"\x7f")) * min(64, len(changed) - at)
            case 4:
                changed[at:at] = changed[at : at + chance.randrange(1, 5000)]
    return bytes(changed)


def outcome_of(folder: Path, words: list[str]) -> str:
    """Run a command in `folder`: 'result', 'refused', or what should not be."""
    from melmask.cli import main

    errors = io.StringIO()
    try:
        with contextlib.chdir(folder), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = main(words)
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)
        own = next((frame for frame in reversed(place) if "melmask" in frame.filename), place[-1])
        return f"{type(error).__name__} in {Path(own.filename).name}:{own.lineno}: {str(error)[:200]}"
    found = [line for line in errors.getvalue().splitlines() if line.startswith("melmask: error:")]
    if "out of memory" in "".join(found):
        return "out of memory"
    if (status, len(found)) in ((0, 0), (2, 1)):
        return "refused" if found and len(found[0]) < 2000 else "error of over 2,000 letters" if found else "result"
    return f"status {status} with {len(found)} lines of error"


def main() -> int:
    """Make the files, damage, read, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=COMMANDS, help="damage files of one kind only")
    parser.add_argument("--keep", type=Path, help="where folders that are not read as they should be are kept")
    options = parser.parse_args()
    chance, counts = random.Random(options.seed), collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as place:
        # Some jobs belong to a folder, so that every copy lies where the good files were made.
        good, folder = Path(place) / "good", Path(place) / "files"
        folder.mkdir()
        with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
            make_files()
        folder.replace(good)
        worker, slowest = BoundedWorker(outcome_of, MEMORY_BYTES, LIMIT_S), (0.0, "")
        for number in range(options.files):
            kind = options.only or chance.choice(list(COMMANDS))
            pattern, words = COMMANDS[kind]
            shutil.copytree(good, folder)
            files = sorted(path for part in pattern.split() for path in folder.glob(part) if path.is_file())
            path = chance.choice(files)
            path.write_bytes(damaged(path, chance))
            start_s = time.monotonic()
            outcome = worker.outcome(folder, words)
            slowest = max(slowest, (time.monotonic() - start_s, f"{number} ({kind})")) if number else slowest
            counts[kind][outcome if outcome in ("result", "refused") else "bad"] += 1
            if outcome not in ("result", "refused"):
                print(f"{number} {kind}, {path.relative_to(folder)}: {outcome}", flush=True)
                if options.keep:
                    shutil.copytree(folder, options.keep / f"{number:05d}", dirs_exist_ok=True)
            shutil.rmtree(folder)
        worker.end()
    for kind, outcomes in counts.items():
        print(f"{kind}: {dict(sorted(outcomes.items()))}")
    total = sum(counts.values(), collections.Counter())
    print(f"{dict(total)}; the slowest, {slowest[1]}, took {slowest[0]:.1f} s")
    return int(total["bad"] > 0)


if __name__ == "__main__":
    sys.exit(main())
