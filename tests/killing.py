"""Work in a process of its own that is killed at an exact moment."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable


def attempt(work: Callable[[], object], events: int | None = None) -> int:
    """Call a function in a fork, which kills itself after a number of events.

    An event is the call or the return of a function, in any thread.

    Returns:
        The exit status of the fork: 0, or minus the number of the signal that ended it.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if events is not None:
                _kill_after(events)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _kill_after(events: int) -> None:
    """Make this process kill itself after a number of events in all of its threads."""
    left = [events]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    sys.setprofile(count)
