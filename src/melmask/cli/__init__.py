"""The command `melmask`. Each command's work is imported when it runs, so that help is quick."""

import argparse
import sys
from collections.abc import Sequence

from melmask import __version__
from melmask.cli import judge, learn, use
from melmask.cli.options import EXIT_BAD_INPUT, EXIT_SIGNAL, AddOptions, Parser, Run
from melmask.errors import MelmaskError

# As help lists them: in the order of the work, which is not that of the files here.
_ORDER = (
    *("demo", "prepare", "pretrain", "bench", "embed", "probe", "few-labels", "evaluate", "make-task"),
    *("finetune", "predict", "convert", "push", "export", "settings"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 with one line on standard error."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        _take_settings(parser, options, rest)
        return options.run(options)
    except MelmaskError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("\nmelmask: stopped; the same command goes on where it was\n")
        return EXIT_SIGNAL + 2
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough.
        sys.stderr.close()
        return 0
    except OSError as error:
        return _fail(
            f"{error.filename or 'a file'}: {error.strerror or error}; check the path, its permissions and space"
        )


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
        sub.set_defaults(run=run)
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
    sys.stderr.write(f"melmask: error: {message}\n")
    return EXIT_BAD_INPUT
