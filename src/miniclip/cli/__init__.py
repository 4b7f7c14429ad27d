"""The command `miniclip`: one module a command. A user's error is one line, and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from miniclip.cli import data, evaluate, models, train
from miniclip.cli.parsing import Parser
from miniclip.errors import CheckpointError, DataError
from miniclip.runtime import distributed
from miniclip.utils.checks import did_you_mean

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, CheckpointError, DataError, FloatingPointError)
INTERRUPTED = 130  # as shells report a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 for a check that found errors, 2 for an error, 130 for Ctrl-C."""
    options = parse(arguments)
    command = options.pop("command")
    try:
        code: int | None = command(**options)
    except KeyboardInterrupt:
        if distributed.is_main():
            print("miniclip: stopped", file=sys.stderr)
        return INTERRUPTED
    except USER_ERRORS as error:
        who = f"miniclip, rank {distributed.rank()}" if distributed.world_size() > 1 else "miniclip"
        print(f"{who}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    return code or 0


def parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    """The command and its options; a flag that does not exist ends the program, and the nearest is named."""
    known, unknown = build_parser().parse_known_args(arguments)
    options = vars(known)
    parser = options.pop("parser")
    if unknown:
        flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
        parser.error(f"unknown argument {unknown[0]!r}{did_you_mean(unknown[0].split('=')[0], flags)}")
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    from miniclip import __version__

    parser = Parser(prog="miniclip", description="CLIP from first principles: train it, measure it, look at it.")
    parser.add_argument("--version", action="version", version=f"miniclip {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (train, evaluate, models, data):
        command.add(commands)
    return parser
