"""Run the command line `melmask`: find the command, read its options and settings, turn errors into exit statuses.

Each command is a module here with the command's name. It holds the dataclass `Options` (see `melmask.cli.options`) and
`run(options)`, which returns the exit status. To add a command, write its module and add its name to `COMMANDS`. `run`
imports what the command works with, so that help does not wait for PyTorch.
"""

import argparse
import dataclasses
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from melmask import __version__
from melmask.cli.options import EXIT_BAD_INPUT, EXIT_SIGNAL, CommandList, Parser, add_options, options_of
from melmask.errors import MelmaskError, unknown_name
from melmask.system.environment import let_threads_sleep
from melmask.system.terminal import note, note_below

# Help lists the commands in this order, which is the order of the work.
COMMANDS = (
    *("demo", "prepare", "pretrain", "bench", "embed", "explore", "index", "search", "duplicates", "probe"),
    *("few-labels", "evaluate", "make-task", "study", "show", "finetune", "predict", "convert", "push", "export"),
    "settings",
)
# When one of these is stopped, the same command resumes it.
_RESUMED = (
    *("demo", "prepare", "pretrain", "embed", "explore", "index", "probe", "evaluate", "study", "finetune", "predict"),
)
_SIGPIPE = 13
"""Number of the signal that ends a writer whose reader has gone, on all systems that have it."""
# CPU allocations fail with the first message and GPU allocations with the second.
_NO_MEMORY = ("can't allocate memory", "out of memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    That is 0 if it succeeded, 2 with one line on standard error if the input is bad, and 128 plus the signal's number
    if a signal stopped it.
    """
    if sys.stderr is None:
        # The process was started with standard error closed: messages are lost, but the work is not.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - as long as the process
    let_threads_sleep()
    for stream in (sys.stdout, sys.stderr):
        # A console of another code page cannot print every name of a file: it then shows the character's number. With
        # the default the last line of a job, which says where its result is, would be a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else list(arguments)
    # Options of melmask itself, such as --version, may stand before the command.
    called = next((word for word in words if not word.startswith("-")), None)
    parser = build_parser(called)
    # argparse would list all commands but not the nearest one.
    if words and words[0] == called and called not in COMMANDS:
        parser.error(str(unknown_name("command", called, COMMANDS)))
    values, rest = parser.parse_known_args(words)
    try:
        _take_settings(values, rest)
        with _sigterm_interrupts():
            return values.command_module.run(options_of(values.command_module.Options, vars(values)))
    except MelmaskError as error:
        return _fail(str(error))
    except KeyboardInterrupt as interrupt:
        how = "resume" if values.command in _RESUMED else "start over"
        note_below(f"melmask: stopped; run the same command again to {how}")
        return EXIT_SIGNAL + (signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough, so the command ends here.
        # Otherwise Python would print at its own end that it cannot flush the output.
        sys.stderr.close()
        # Windows has no such signal.
        return EXIT_SIGNAL + getattr(signal, "SIGPIPE", _SIGPIPE)
    except (MemoryError, RuntimeError) as error:
        # PyTorch raises a RuntimeError when memory runs out.
        if not (isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)):
            raise
        return _fail("out of memory; use a smaller batch (hardware.micro_batch or data.batch_size) or a smaller model")
    except OSError as error:
        return _fail(
            f"{error.filename or 'the output'}: {error.strerror or error}; check the path, its permissions and the "
            "free space"
        )


class _Terminated(KeyboardInterrupt):
    """SIGTERM came, perhaps from a scheduler. The job ends as with Ctrl-C, so that temporary files are removed."""


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM interrupt the work inside, and restore the handler afterwards."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise _Terminated

    # Python lets only the main thread set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def build_parser(called: str | None = None) -> Parser:
    """Build the parser of the command line, with the called command and its options, or with the names of all commands.

    Building the options of all commands would take 50 ms, about as long as the rest of `melmask --help`.
    """
    parser = Parser(
        prog="melmask",
        description="Learn and use audio representations by masked spectrogram modeling.",
        formatter_class=CommandList,
    )
    parser.add_argument("--version", action="version", version=f"melmask {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name in (called,) if called in COMMANDS else COMMANDS:
        module = import_module(f"melmask.cli.{name.replace('-', '_')}")
        about = module.Options.__doc__
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(command=name, command_module=module, command_parser=command)
        if called == name:
            add_options(command, module.Options)
    return parser


def _take_settings(values: argparse.Namespace, rest: Sequence[str]) -> None:
    """Add the words that no option claims to the settings: key=value, --key=value or --key value."""
    takes_settings = "settings" in {option.name for option in dataclasses.fields(values.command_module.Options)}
    words = values.command_parser.placed(values, rest)
    # argparse hands over `--key value` as two words.
    while words:
        word = words.pop(0)
        # Other commands have options of these names, and a setting of such a name would hide the mistake.
        places = values.command_parser.places()
        if word.startswith("--") and word[2:].partition("=")[0].lower() in map(str.lower, places):
            order = " ".join((values.command_parser.prog, *places))
            values.command_parser.error(f"{word.partition('=')[0]!r} is no option here; give it by its place: {order}")
        if "=" not in word and word.startswith("--") and words:
            word = f"{word}={words.pop(0)}"
        if not takes_settings or "=" not in word:
            known = re.findall(r"--[\w-]+", values.command_parser.format_usage())
            near = get_close_matches(word.partition("=")[0], known, 1)
            hint = f"; the nearest is {near[0]}" if near else ""
            values.command_parser.error(f"unrecognized argument {word!r}{hint}")
        values.settings.append(word.lstrip("-"))


def _fail(message: str) -> int:
    # Scripts read errors line by line, but file names and other libraries' messages may hold line breaks.
    note(f"melmask: error: {message}")
    return EXIT_BAD_INPUT
