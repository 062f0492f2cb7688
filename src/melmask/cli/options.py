"""What the commands' command lines share: the parser, groups of options, exit statuses."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128

Run = Callable[[argparse.Namespace], int]
AddOptions = Callable[[argparse.ArgumentParser], None]
# Takes a command's name, what it runs, its line of help and what adds its options.
Command = Callable[[str, Run, str, AddOptions], None]


class Parser(argparse.ArgumentParser):
    """Reports a wrong call in one line."""

    def error(self, message: str) -> NoReturn:
        """Leave with status 2 and that line on standard error."""
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def add_model(sub: argparse.ArgumentParser) -> None:
    """Options of the commands that compute features: which model, where, and how its tokens become vectors."""
    sub.add_argument("--model", type=Path, required=True, help="a run, a checkpoint folder, or an MSM-MAE .pth file")
    add_choice(sub)
    sub.add_argument(
        "--normalization",
        choices=("checkpoint", "dataset"),
        default="checkpoint",
        help="mean and std of the log-mels: the model's own, or those of the files given (%(default)s)",
    )


def add_choice(sub: argparse.ArgumentParser) -> None:
    """Which of a model's features, and where they are computed."""
    sub.add_argument(
        "--layer", type=int, nargs="+", help="features after these blocks, 1 to depth (the last, with the final norm)"
    )
    sub.add_argument("--pooling", default="concat", help="concat, mean, mean+max or cls (%(default)s)")
    sub.add_argument("--scene", default="mean", help="over time: mean or mean+std, twice as long (%(default)s)")
    sub.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (a GPU if there is one)")
    sub.add_argument("--precision", default="fp32", help="fp32, fp32-fast or bf16 (%(default)s)")


def add_settings_help(sub: argparse.ArgumentParser, example: str, listing: str) -> None:
    """Let a command take settings: says so in its help, with an example and where all of them are listed."""
    # Not an argument of argparse's, which does not find positional ones after options: melmask.cli takes them itself.
    sub.set_defaults(settings=[])
    sub.usage = f"{sub.format_usage().removeprefix('usage: ').rstrip()} [KEY=VALUE ...]"
    sub.epilog = f"KEY=VALUE, last: change settings, as {example}; {listing}"


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number of a range."""

    def read(text: str) -> int:
        if not (text.isdecimal() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r}; give a whole number from {least} to {most}")
        return int(text)

    return read


SEED, THREADS = whole_number(0, 2**32 - 1), whole_number(1, 4096)


def source_path(text: str) -> Path:
    """A path on the command line; an empty word, of a variable that is not set, is not the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path; give a file or folder")
    return Path(text)
