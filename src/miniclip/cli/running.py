"""Run of a command: its arguments, its exit code, and one line for each error.

Only the commands import torch, which takes seconds: help, the version and wrong arguments need none of it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)  # with CheckpointError and DataError
USER_ERROR = 2
INTERNAL_ERROR = 70  # EX_SOFTWARE; 1 belongs to `miniclip train --check`
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # libgomp reads them when torch is imported
SPIN_COUNT = "3000"  # a tenth of a millisecond; by default it is a hundred times as long
INTERRUPTED = 130  # the exit code of shells for Ctrl-C
BROKEN_PIPE = 141  # that of a program whose output nothing reads any more, as in `miniclip models | head -1`


def run_reporting(arguments: Sequence[str]) -> int:
    """Run a command, and print its error in one line; return its exit code."""
    try:
        code = run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        return BROKEN_PIPE
    except Exception as error:
        return report(error)
    return code


def run(arguments: Sequence[str]) -> int:
    """Run a command; return its exit code."""
    from miniclip.cli.parsing import flag_templates
    from miniclip.utils.option_names import flags

    options = parse(arguments)
    command, parser = options.pop("command"), options.pop("parser")
    log_to_stderr()
    with flags(flag_templates(parser)):
        if announce := options.pop("announce", None):
            announce(options)
        with interrupts_end_the_process():
            import torch  # noqa: F401
        code: int = command(**options) or 0
    return code


@contextlib.contextmanager
def interrupts_end_the_process() -> Iterator[None]:
    """Context in which Ctrl-C ends the process at once: an exception in the middle of an import can be lost."""

    def end(number: int, frame: Any) -> None:
        if os.environ.get("RANK", "0") == "0":  # torchrun sets it
            os.write(2, b"miniclip: stopped\n")
        os._exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the command, its parser and its options; exit with the nearest flag's name if a flag does not exist."""
    from miniclip.cli.parsing import suggested_flag

    main_parser, arguments = build_parser(), joined_names(arguments)
    if arguments and arguments[0].startswith("-") and arguments[0] not in main_parser._option_string_actions:
        main_parser.error(f"found {arguments[0]!r} before a command; expected it after one, as in `miniclip train`")
    options, unknown = main_parser.parse_known_args(arguments)
    values = vars(options)
    if unknown:
        parser, name = values["parser"], unknown[0].split("=")[0]
        near = suggested_flag(name, parser._option_string_actions) if name.startswith("-") else None
        parser.error(f"unknown argument {name!r}" + (f"; did you mean {near!r}?" if near else ""))
    return values


def joined_names(arguments: Sequence[str]) -> Sequence[str]:
    """Return the arguments with the name of a command of two words as one argument.

    The first argument of `miniclip index` is a model, so that argparse cannot have commands below it.
    """
    names = " ".join(arguments[:2])
    return [names, *arguments[2:]] if names == "index dupes" else arguments


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    from miniclip.cli import classify, data, evaluate, explain, export, models, recipes, search, train
    from miniclip.cli.finetuning import finetune, interpolate
    from miniclip.cli.parsing import Parser
    from miniclip.version import __version__

    parser = Parser(prog="miniclip", description="CLIP from first principles: train, evaluate and convert models.")
    parser.add_argument("--version", action="version", version=f"miniclip {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    use = (evaluate, classify, explain, *search.COMMANDS)
    for command in (train, finetune, interpolate, *use, models, recipes, export, data):
        command.add(commands)
    return parser


def report(error: Exception) -> int:
    """Print an error in one line, one of miniclip's own with its traceback too; return the exit code."""
    from miniclip.utils.system_errors import system_message

    ranks = sys.modules.get("miniclip.runtime.distributed")
    program = f"miniclip, rank {ranks.rank()}" if ranks and ranks.world_size() > 1 else "miniclip"
    message, code = system_message(error) if isinstance(error, OSError) else str(error), USER_ERROR
    if is_out_of_memory(error):
        message = "out of memory: use a smaller batch, `--micro-batch-size auto` or a smaller model"
    elif not isinstance(error, USER_ERRORS):
        traceback.print_exception(error)
        message, code = "this is an error in miniclip: please report it, with the lines above", INTERNAL_ERROR
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error is that of Python, of a GPU or of torch's allocator on the CPU for missing memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def prepare_process() -> None:
    """Prepare the process of a command, before torch is imported.

    Warnings are printed as one line, names of files that the terminal's encoding does not have with escapes. The
    threads of an operation spin for a short time while they wait for each other, and then sleep: beside other programs,
    those that spin hold the core that the last one needs (`python -m benchmarks.busy`). The user's setting remains.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ[WAITING[0]] = SPIN_COUNT
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def is_main() -> bool:
    """Return whether this process is rank 0, without an import of torch."""
    ranks = sys.modules.get("miniclip.runtime.distributed")
    return ranks is None or bool(ranks.is_main())


class StderrHandler(logging.Handler):
    """Write log records as plain lines to the current `sys.stderr`; only rank 0 writes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if is_main():
            print(f"miniclip: {record.getMessage()}", file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Send the package's log, from level INFO on, to stderr."""
    logger = logging.getLogger("miniclip")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
        logger.addHandler(StderrHandler())
