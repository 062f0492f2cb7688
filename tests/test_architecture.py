"""What the tree promises (docs/design.md): one direction of imports, a short public surface, bounded sizes."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import takewhile
from pathlib import Path

import pytest

import melmask

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "melmask"
TREES = {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}

DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def _layers() -> tuple[list[set[str]], dict[str, set[str]]]:
    """The table of docs/design.md: the parts of each layer, and for some parts those they may not import even so."""
    layers, not_even_so = [], {}
    for row in re.findall(r"^\| *\d+ *\| (.*) \|$", DESIGN, re.MULTILINE):
        parts = re.findall(r"`(\w+)`(?: \(not `(\w+)`\))?", row)
        layers.append({part for part, _ in parts})
        not_even_so |= {part: {other} for part, other in parts if other}
    return layers, not_even_so


# A part may import from the parts in earlier layers, and from itself.
LAYERS, NOT_EVEN_SO = _layers()

# Third-party libraries that one part of the package hides from the others.
HOMES = {
    "matplotlib": {"figures"},
    "sklearn": {"downstream", "explore", "labels"},
    "starlette": {"explore"},
    "uvicorn": {"explore"},
    "soxr": {"audio", "embedding"},
    "safetensors": {"checkpoint"},
    "tensorboard": {"train"},
    "wandb": {"train"},
    "tqdm": {"system"},
    "pyarrow": {"classifier", "corpus", "embedding", "labels", "search", "study", "system"},
    "sounddevice": {"audio"},
    "usearch": {"search"},
    "jinja2": {"pages"},
    # Text that it marks as safe would not be escaped.
    "markupsafe": set(),
    # Of PyTorch's family, PyTorch alone is used.
    "lightning": set(),
    "pytorch_lightning": set(),
    "timm": set(),
    "torchaudio": set(),
    "torchvision": set(),
    "transformers": set(),
}

# Lines of code, docstrings left out: documentation must never be a reason to split a file.
LONGEST_FILE = 500
LONGEST_FUNCTION = 60
LONGEST_LOOP = {"pretrain": 120}
MOST_PARAMETERS = 7
# Functions that take more, with the reason.
MANY_PARAMETERS: dict[str, str] = {}


def module_name(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): tree for path, tree in TREES.items()}


def part_of(module):
    """melmask.audio.files -> audio; melmask itself -> ''."""
    return [*module.split("."), ""][1]


def imports(tree, *, for_types=False) -> Iterator[str]:
    """Dotted names that a module imports, anywhere in it; those for type checkers alone only if asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in whole)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(node) if for_types else ()
        else:
            yield from imports(node, for_types=for_types)


def own_imports(module):
    return {name for name in imports(MODULES[module]) if name in MODULES}


def functions(tree) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def public_definitions(tree) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Classes, functions and methods whose names, and whose class's name, have no leading underscore."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node)


def everywhere(found):
    """'file:line' of each node that `found` gives for a tree."""
    return [f"{path.relative_to(ROOT)}:{node.lineno}" for path, tree in TREES.items() for node in found(tree)]


def run_python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout


def test_every_part_is_in_one_layer():
    placed = sorted(part for parts in LAYERS for part in parts)
    assert placed == sorted({part_of(module) for module in MODULES} - {""})


def test_imports_point_one_way():
    def upward():
        for module in MODULES:
            part = part_of(module)
            # The parts before the layer of this one; `melmask` itself is in none, and may import all.
            below = takewhile(lambda parts, part=part: part not in parts, LAYERS)
            allowed = set().union(*below) - NOT_EVEN_SO.get(part, set()) | {part, ""}
            yield from (f"{module} -> {name}" for name in own_imports(module) if part_of(name) not in allowed)

    assert list(upward()) == []


def test_there_are_no_import_cycles():
    TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()


def test_the_design_page_lists_every_file():
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", DESIGN, re.MULTILINE)
    # A package's own file is listed where it holds something.
    present = {
        str(path.relative_to(SOURCE))
        for path, tree in TREES.items()
        if len(tree.body) > 1 or path.name != "__init__.py"
    }
    assert len(listed) == len(set(listed))
    assert present - set(listed) <= {"recipes/__init__.py"}
    assert set(listed) <= present


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_in_its_home_only(library):
    users = {
        part_of(module)
        for module, tree in MODULES.items()
        if library in {name.split(".")[0] for name in imports(tree, for_types=True)}
    }
    assert users == HOMES[library]


def test_the_public_names_are_the_documented_ones():
    assert melmask.__all__ == [
        "FRONT_END_32_KHZ",
        "POOLINGS",
        "SCENES",
        "AudioEncoder",
        "Embedding",
        "EmbeddingStream",
        "FeatureChoice",
        "FrontEndConfig",
        "MelmaskError",
        "Reconstruction",
        "SearchIndex",
        "Sound",
        "Statistics",
        "__version__",
        "build_index",
        "embed_files",
        "load",
    ]
    for name in melmask.__all__:
        assert getattr(melmask, name) is not None
    with pytest.raises(AttributeError, match="module 'melmask' has no attribute 'embeddings'"):
        melmask.embeddings  # noqa: B018


@pytest.mark.parametrize("modules", ["melmask", "melmask.config", "melmask.config_text"])
def test_torch_is_not_imported_with(modules):
    assert run_python(f"import sys, {modules}; print('torch' in sys.modules)") == "False\n"


_HELP = """
import contextlib, io, sys
from melmask.cli import main
with contextlib.redirect_stdout(io.StringIO()) as page, contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print(len(page.getvalue()) > 100, "torch" in sys.modules)
"""


@pytest.mark.parametrize("arguments", [["embed", "--help"], ["settings"]])
def test_help_does_not_wait_for_torch(arguments):
    assert run_python(_HELP, *arguments) == "True False\n"


_TAG = re.compile(
    r"</?(a|audio|b|body|br|button|circle|code|dd|details|div|dl|dt|figcaption|figure|g|h[1-6]|head|header|html|image|img"
    r"|li|line|link|main|meta|ol|output|p|path|polygon|pre|rect|script|section|small|span|style|summary|sup|svg|table"
    r"|tbody|td|text|tfoot|th|thead|time|title|tr|ul|wbr)(?=[\s/>])"
)


def _docstrings(tree):
    """The strings that only document a module, class, function or attribute."""
    return {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def test_tags_of_pages_are_in_templates_only():
    def tags(tree):
        words = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
        return [node for node in words if _TAG.search(node.value) and node not in _docstrings(tree)]

    assert everywhere(tags) == []


def test_templates_escape_everything():
    templates = [path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.j2")]
    assert templates and not any(re.search(r"\|\s*safe\b|autoescape", text) for text in templates)


def test_only_the_command_line_prints():
    def prints(tree):
        return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"]

    assert {Path(place.split(":")[0]).parent for place in everywhere(prints)} <= {Path("src/melmask/cli")}


# What opens, reads or parses a file that may be anything, and the one module that does so for all others.
READERS = {
    **dict.fromkeys(("json.load", "json.loads", "np.load", "numpy.load"), "system/reading.py"),
    **dict.fromkeys(("torch.load", "safe_open", "load_file"), "checkpoint/weights.py"),
}
# Files of the operating system, and of melmask's own package.
MAY_READ = ("system/memory.py", "system/reading.py", "study/description.py")


def test_files_are_read_by_the_functions_that_expect_anything():
    """A pipe makes `open` wait forever, and crafted JSON or arrays fill the memory: see system/reading.py."""

    def found():
        for path, tree in TREES.items():
            place = path.relative_to(SOURCE).as_posix()
            for node in ast.walk(tree):
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func)
                    bare = name.endswith((".read_text", ".read_bytes")) and place not in MAY_READ
                    if READERS.get(name, place) != place or bare:
                        yield f"{place}:{node.lineno} {name}"

    assert list(found()) == []


def test_text_files_are_opened_with_an_encoding():
    def bare(tree):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and "encoding" not in {keyword.arg for keyword in node.keywords}:
                name = ast.unparse(node.func)
                mode = next((a.value for a in node.args if isinstance(a, ast.Constant) and a.value != ""), "")
                # The functions of this name in `av`, `wave`, `os`, of a web browser and of a zip archive know no text.
                bytes_only = (
                    *("av.open", "wave.open", "os.open", "archive.open", "safe_open", "subprocess.Popen"),
                    "browser.open",
                )
                opens = name.endswith("open") and name not in bytes_only and "b" not in str(mode)
                if name.endswith((".read_text", ".write_text")) or (opens and not name.endswith("_open")):
                    yield node

    # Without one, Windows takes the code page of the country, and the same table reads differently elsewhere.
    assert everywhere(bare) == []


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"torch\.distributed", {"train/engine.py", "train/processes.py"}),
        (
            r"os\.environ|os\.getenv",
            {"adapters/environment.py", "system/hardware.py", "system/environment.py", "train/processes.py"},
        ),
        # Conversions between samples, frames and ms are made in one place.
        (
            r"\.hop_samples",
            {
                "config/sound.py",
                "geometry.py",
                "audio/logmel.py",
                "embedding/export.py",
                "inspection/sound.py",
                "synth/draw.py",
            },
        ),
        (r"(?<![.\w])eval\(", set()),
        (r"pickle\.loads?\(", set()),
        # Elsewhere, Arrow could be given a file object of Python, with which a program may crash at its end.
        (r"ParquetFile\(|pq\.read_", {"system/parquet.py"}),
    ],
)
def test_some_things_are_done_in_their_place_only(pattern, allowed):
    assert {str(path.relative_to(SOURCE)) for path in TREES if re.search(pattern, path.read_text())} == allowed


def docstring_lines(tree) -> set[int]:
    """The numbers of the lines that docstrings fill, those of dataclass fields included."""
    found: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                found |= set(range(statement.lineno, statement.end_lineno + 1))
    return found


def code_lines(tree, first, last):
    return len(set(range(first, last + 1)) - docstring_lines(tree))


def test_no_file_is_long():
    lengths = {
        str(path.relative_to(SOURCE)): code_lines(tree, 1, len(path.read_text(encoding="utf-8").splitlines()))
        for path, tree in TREES.items()
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_function_is_long():
    def long(tree):
        return [
            node
            for node in functions(tree)
            if code_lines(tree, node.lineno, node.end_lineno) > LONGEST_LOOP.get(node.name, LONGEST_FUNCTION)
        ]

    assert everywhere(long) == []


def test_no_function_takes_many_parameters():
    def crowded(tree):
        for node in functions(tree):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = [argument for argument in arguments if argument.arg not in ("self", "cls")]
            if len(own) > MOST_PARAMETERS and node.name not in MANY_PARAMETERS:
                yield node

    assert everywhere(crowded) == []


def test_everything_public_has_a_docstring():
    assert all(ast.get_docstring(tree) for tree in TREES.values())

    def bare(tree):
        return [node for node in public_definitions(tree) if not ast.get_docstring(node)]

    assert everywhere(bare) == []


def test_every_public_function_is_annotated():
    def unannotated(tree):
        for node in public_definitions(tree):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                missing = [a for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
                if missing or node.returns is None:
                    yield node

    assert everywhere(unannotated) == []
