"""The structure of the package in numbers, and the reading walk of a command.

    python benchmarks/structure.py count src/melmask
    python benchmarks/structure.py walk embed          # or evaluate: of the melmask that Python imports

A walk runs the command on toy data and lists the package's functions in the order in which they are first called. That
is the path of a reader who opens each function when it is called for the first time. Functions that call nothing in
another file are left out, because their names say enough. `files` is how many files the path enters, and `returns` is
how often it goes back to a file that it had left. Templates, other threads and generated methods do not count.
"""

import argparse
import ast
import contextlib
import io
import re
import statistics
import sys
import tempfile
import tokenize
from pathlib import Path

TAG = re.compile(r"</?[a-z][a-z0-9]*(\s[^<>]*)?/?>", re.IGNORECASE)
FEWEST_PARAMETERS = 8


def docstrings_of(tree: ast.AST) -> set[int]:
    """Return the ids of the nodes that are docstrings or document a field."""
    found = set()
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                found.add(id(statement.value))
    return found


def count(source: Path) -> dict[str, float]:
    """Count what a reader of the tree below `source` meets."""
    paths = sorted(source.rglob("*.py"))
    totals = dict.fromkeys(
        ("files", "lines", "lines without docstrings", "comment lines", "functions", "functions over 7 parameters"), 0
    )
    totals |= dict.fromkeys(("Any", "dict[str, Any]", "strings with tags", "template lines"), 0)
    lengths: list[int] = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        tree, documented = ast.parse(text), 0
        docstrings = docstrings_of(tree)
        totals["files"] += 1
        totals["lines"] += len(text.splitlines())
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        totals["comment lines"] += sum(token.type == tokenize.COMMENT for token in tokens)
        totals["dict[str, Any]"] += text.count("dict[str, Any]")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append((node.end_lineno or 0) - node.lineno + 1)
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                own = [argument for argument in arguments if argument.arg not in ("self", "cls")]
                totals["functions over 7 parameters"] += len(own) >= FEWEST_PARAMETERS
            elif isinstance(node, ast.Name) and node.id == "Any":
                totals["Any"] += 1
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) in docstrings:
                    documented += (node.end_lineno or 0) - node.lineno + 1
                else:
                    totals["strings with tags"] += bool(TAG.search(node.value))
        totals["lines without docstrings"] += len(text.splitlines()) - documented
    for path in source.rglob("*"):
        if path.suffix in (".j2", ".css", ".js"):
            totals["template lines"] += len(path.read_text(encoding="utf-8").splitlines())
    totals["functions"] = len(lengths)
    numbers: dict[str, float] = dict(totals)
    numbers["median function, lines"] = statistics.median(lengths)
    numbers["comments per 1000 lines"] = round(1000 * totals["comment lines"] / totals["lines"])
    return numbers


def walk(command: str) -> list[str]:
    """Return the files in the order in which the command's path enters them, again where it comes back."""
    import numpy as np
    import soundfile

    import melmask
    from melmask.cli import main

    package = str(Path(melmask.__file__).parent)

    def of_package(code):
        # Compiled templates carry the name of their .j2 file, and comprehensions have names such as <listcomp>.
        python = code.co_filename.startswith(package) and code.co_filename.endswith(".py")
        named = not code.co_name.startswith("<")
        return (code.co_filename, code.co_name, code.co_firstlineno) if python and named else None

    # The smallest network and run that the commands accept, so that a walk takes seconds.
    model = ("model.width=16", "model.depth=1", "model.heads=2", "model.decoder_width=8", "model.decoder_depth=1")
    model += ("model.decoder_heads=2", "model.frames=64", "optimizer.steps=2", "optimizer.warmup_steps=1")
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        Path("sounds").mkdir()
        rng = np.random.default_rng(0)
        rows = ["path,label,split"]
        for number in range(6):
            soundfile.write(f"sounds/{number}.wav", rng.normal(0, 0.1, 16000), 16000)
            rows.append(f"{number}.wav,{'ab'[number % 2]},{('train', 'valid', 'test')[number // 2]}")
        Path("sounds/labels.csv").write_text("\n".join(rows))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(["prepare", "sounds", "--out", "store"])
            main(["pretrain", "store", "--out", "run", "--recipe", "tiny", *model, "data.batch_size=4"])
            main(["make-task", "sounds/labels.csv", "--out", "tasks"])
            words = {
                "embed": ["embed", "sounds", "--model", "run", "--out", "x.parquet"],
                "evaluate": ["evaluate", "--tasks", "tasks", "--model", "run", "--protocol", "linear"],
            }[command]
            order: dict[tuple[str, str, int], None] = {}
            leads_on: set[tuple[str, str, int]] = set()

            def called(frame, event, _argument):
                function = of_package(frame.f_code)
                if event != "call" or function is None:
                    return
                # The path begins with the command's own function; all commands share what parses the command line.
                if not order and not ("/cli/" in function[0] and function[1] in ("run", command)):
                    return
                # A dictionary keeps the order of the first calls.
                order.setdefault(function)
                # Calls through a library, such as a template or a decorator, count for the nearest function of ours.
                caller = frame.f_back
                while caller is not None and of_package(caller.f_code) is None:
                    caller = caller.f_back
                if caller is not None and caller.f_code.co_filename != function[0]:
                    leads_on.add(of_package(caller.f_code))

            sys.setprofile(called)
            try:
                main(words)
            finally:
                sys.setprofile(None)
    names = [function[0].removeprefix(package + "/") for function in order if function in leads_on]
    return [name for name, previous in zip(names, ["", *names], strict=False) if name != previous]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("count", "walk"))
    parser.add_argument("of")
    options = parser.parse_args()
    if options.what == "count":
        for name, value in count(Path(options.of)).items():
            print(f"{name:32} {value:g}")
    else:
        path = walk(options.of)
        for file in path:
            print(file)
        print(f"{len(set(path))} files, {len(path) - len(set(path))} returns")
