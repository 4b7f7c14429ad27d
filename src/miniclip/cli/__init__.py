"""The command line `miniclip`: one module a command. An error of the user is one line on stderr and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence

INTERRUPTED = 130  # the exit code of shells for a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: None: those of the process.

    Returns:
        The exit code: 0, 1 for a check that found errors, 2 for an error of the user, 70 for an error in miniclip, 130
        for Ctrl-C.
    """
    try:
        from miniclip.cli import running  # here, because Ctrl-C can come at any time

        if arguments is None:
            running.prepare_process()
        return running.run_reporting(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        if arguments is None:  # a second Ctrl-C ends the process at once, without a traceback of Python's shutdown
            import signal

            signal.signal(signal.SIGINT, signal.SIG_DFL)
        ranks = sys.modules.get("miniclip.runtime.distributed")
        if ranks is None or ranks.is_main():
            print("miniclip: stopped", file=sys.stderr)
        return INTERRUPTED
