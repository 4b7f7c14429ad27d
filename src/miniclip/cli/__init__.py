"""The command line `miniclip`: one module a command. An error of the user is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from miniclip.cli import data, evaluate, models, train
from miniclip.cli.parsing import Parser
from miniclip.errors import CheckpointError, DataError
from miniclip.runtime import distributed
from miniclip.utils.checks import did_you_mean

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, CheckpointError, DataError, FloatingPointError)
INTERRUPTED = 130  # the exit code of shells for a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 1 for a check that found errors, 2 for an error of the user, 130 for Ctrl-C.
    """
    options = parse(arguments)
    command = options.pop("command")
    log_to_stderr()
    try:
        code: int | None = command(**options)
    except KeyboardInterrupt:
        if distributed.is_main():
            print("miniclip: stopped", file=sys.stderr)
        return INTERRUPTED
    except USER_ERRORS as error:
        program = f"miniclip, rank {distributed.rank()}" if distributed.world_size() > 1 else "miniclip"
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    return code or 0


def parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Return the command and its options; exit with the nearest flag's name if a flag does not exist."""
    options, unknown = build_parser().parse_known_args(arguments)
    values = vars(options)
    parser = values.pop("parser")
    if unknown:
        flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
        parser.error(f"unknown argument {unknown[0]!r}{did_you_mean(unknown[0].split('=')[0], flags)}")
    return values


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    from miniclip import __version__

    parser = Parser(prog="miniclip", description="CLIP from first principles: train, evaluate and convert models.")
    parser.add_argument("--version", action="version", version=f"miniclip {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (train, evaluate, models, data):
        command.add(commands)
    return parser


class StderrHandler(logging.Handler):
    """Write log records as plain lines to the current `sys.stderr`; only rank 0 writes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if distributed.is_main():
            print(f"miniclip: {record.getMessage()}", file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Send the package's log, from level INFO on, to stderr."""
    logger = logging.getLogger("miniclip")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
        logger.addHandler(StderrHandler())
