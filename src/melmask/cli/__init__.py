"""The command `melmask`. Each command's work is imported when it runs, so that help is quick."""

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from melmask import __version__
from melmask.cli import judge, learn, use
from melmask.cli.options import EXIT_BAD_INPUT, EXIT_SIGNAL, AddOptions, Parser, Run
from melmask.errors import MelmaskError

# As help lists them: in the order of the work, which is not that of the files here.
_ORDER = (
    *("demo", "prepare", "pretrain", "bench", "embed", "probe", "few-labels", "evaluate", "make-task"),
    *("finetune", "predict", "convert", "push", "export", "settings"),
)
_RESUMED = ("demo", "prepare", "pretrain", "embed", "evaluate", "finetune", "predict")


_NO_MEMORY = ("can't allocate memory", "out of memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 with one line on standard error."""
    if sys.stderr is None:
        # Started with it closed: what is said is lost, the work is not.
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - as long as the process
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        _take_settings(parser, options, rest)
        with _sigterm_interrupts():
            return options.run(options)
    except MelmaskError as error:
        return _fail(str(error))
    except KeyboardInterrupt as interrupt:
        how = "goes on where it was" if options.command in _RESUMED else "begins anew"
        sys.stderr.write(f"\nmelmask: stopped; the same command {how}\n")
        return EXIT_SIGNAL + (signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough; what is not done yet stays so.
        sys.stderr.close()
        return EXIT_SIGNAL + signal.SIGPIPE
    except (MemoryError, RuntimeError) as error:
        # PyTorch has a RuntimeError for it.
        if not (isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)):
            raise
        return _fail("out of memory; take a smaller batch (pretrain: hardware.micro_batch, data.batch_size) or model")
    except OSError as error:
        return _fail(
            f"{error.filename or 'the output'}: {error.strerror or error}; check the path, its permissions and space"
        )


class _Terminated(KeyboardInterrupt):
    """SIGTERM, from a scheduler say, ends a job as Ctrl-C does: temporary files go, and one line says what to do."""


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    def interrupt(_number: int, _frame: Any) -> None:
        raise _Terminated

    # Only the main thread may set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="melmask", description="Audio representations by masked spectrogram modelling.")
    parser.add_argument("--version", action="version", version=f"melmask {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    listed: list[tuple[str, Run, str, AddOptions]] = []

    def command(name: str, run: Run, help: str, add_options: AddOptions) -> None:
        listed.append((name, run, help, add_options))

    for module in (learn, use, judge):
        module.add(command)
    for name, run, help, add_options in sorted(listed, key=lambda entry: _ORDER.index(entry[0])):
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run, command=name)
        add_options(sub)
    return parser


def _take_settings(parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Read what no option claims as settings: key=value, --key=value or --key value."""
    words = list(rest)
    while words:
        word = words.pop(0)
        if "=" not in word and word.startswith("--") and words:
            word = f"{word}={words.pop(0)}"
        if "settings" not in options or "=" not in word:
            parser.error(f"unrecognized argument {word!r}")
        options.settings.append(word.lstrip("-"))


def _fail(message: str) -> int:
    # Names of files and what other libraries say may hold line breaks and the like.
    line = re.sub(r"[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1], message)
    sys.stderr.write(f"melmask: error: {line}\n")
    return EXIT_BAD_INPUT
