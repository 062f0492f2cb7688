"""The options of every command; the output for release 0.1.0 is command_line.json.

    PYTHONPATH=src python tests/reference/make_command_line.py     # in a checkout of 0.1.0, before `cli` was split

The test that reads the file describes today's parsers with `options_of` below.
"""

import argparse
import json
import re
from pathlib import Path


def plain(default):
    """A default as JSON holds it; paths are texts."""
    if isinstance(default, (list, tuple)):
        return [plain(value) for value in default]
    return str(default) if isinstance(default, Path) else default


def options_of(command):
    """What each option of a command's parser is called, takes, and is without a word about it."""
    options = {}
    for action in command._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = " ".join(action.option_strings) or action.metavar or action.dest.upper()
        metavar = None if isinstance(action, argparse._StoreTrueAction) or action.choices else action.metavar
        facts = {
            "required": action.required,
            "default": plain(action.default),
            "choices": plain(action.choices),
            "takes": action.nargs,
            "metavar": plain(metavar) or (None if action.nargs == 0 or action.choices else action.dest.upper()),
        }
        options[name] = {fact: value for fact, value in facts.items() if value not in (None, [])}
    positional = [name for name in options if not name.startswith("-")]
    return {"positional": positional, "options": options, "settings": "KEY=VALUE" in command.format_usage()}


def commands_of(parser):
    """Each command's parser by its name."""
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return commands.choices


if __name__ == "__main__":
    from melmask.cli import _parser

    found = {name: options_of(command) for name, command in commands_of(_parser()).items()}
    text = re.sub(r"\{\n {4}[^{}]*\}", lambda group: re.sub(r"\s*\n\s*", " ", group[0]), json.dumps(found, indent=1))
    Path(__file__).with_name("command_line.json").write_text(text + "\n")
