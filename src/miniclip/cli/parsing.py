"""What the commands' parsers are made of: one-line errors, flags made from typed settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from miniclip.utils.checks import kinds_and_words


class Parser(argparse.ArgumentParser):
    """argparse, its errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and how to get help; exit with 2."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def add_command(commands: Any, name: str, run: Any, text: str, epilog: str) -> argparse.ArgumentParser:
    """A command that calls `run` with its options, and its parser."""
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
    """A flag `--name-with-dashes` of a setting's type, absent unless it is given."""
    flag = "--" + name.replace("_", "-")
    kinds, words = kinds_and_words(hint)
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if kinds == (bool,):
        options["action"] = argparse.BooleanOptionalAction
    elif not kinds:
        options |= {"choices": words}
    else:
        metavar = {int: "N", float: "X", str: name.upper()}[kinds[0]]
        options |= {"type": _or_a_word(kinds[0], words), "metavar": "|".join([metavar, *words])}
    parser.add_argument(flag, **options)


def _or_a_word(kind: Any, words: Sequence[str]) -> Any:
    """What reads a flag's value: the kind itself, unless it is one of the words."""
    if not words:
        return kind

    def read(text: str) -> Any:
        return text if text in words else kind(text)

    read.__name__ = " or ".join([kind.__name__, *words])  # argparse says "invalid … value" with it
    return read
