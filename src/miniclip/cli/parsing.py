"""Building blocks of the parsers: errors in one line, and flags generated from typed settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from miniclip.utils.checks import types_and_literals


class Parser(argparse.ArgumentParser):
    """ArgumentParser with errors of one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and the help command, then exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def add_command(commands: Any, name: str, run: Any, text: str, epilog: str) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: the subparsers of the command line or of a group.
        name: name of the command.
        run: function that gets the options as keyword arguments and returns an exit code or None.
        text: description of one line.
        epilog: examples.

    Returns:
        The parser of the command.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=run, parser=parser)
    return parser


def add_flag(parser: Any, name: str, hint: Any, text: str) -> None:
    """Add a flag `--name-with-dashes` for a typed setting; without the flag, the option is absent."""
    flag = "--" + name.replace("_", "-")
    types, literals = types_and_literals(hint)
    types = tuple(type_ for type_ in types if type_ is not type(None))
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if types == (bool,):
        options["action"] = argparse.BooleanOptionalAction
    elif not types:
        options["choices"] = literals
    else:
        metavar = {int: "N", float: "X", str: name.upper()}[types[0]]
        options |= {"type": _type_or_literal(types[0], literals), "metavar": "|".join([metavar, *literals])}
    parser.add_argument(flag, **options)


def _type_or_literal(type_: Any, literals: Sequence[str]) -> Any:
    """Return a converter of a flag's value to a type, which leaves the literals as they are."""
    if not literals:
        return type_

    def convert(text: str) -> Any:
        return text if text in literals else type_(text)

    convert.__name__ = " or ".join([type_.__name__, *literals])  # argparse prints it: "invalid … value"
    return convert
