"""Errors of the operating system as a sentence: "[Errno 28] No space left on device" becomes "the disk is full"."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from miniclip.utils.atomic import TEMPORARY

REASONS = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: "no permission; choose another place, or change its permissions",
    errno.EPERM: "the system does not allow it",
    errno.EEXIST: "exists already",
    errno.ENOTDIR: "a part of this path is a file; expected folders",
    errno.EISDIR: "is a folder; expected a file",
    errno.ENOTEMPTY: "the folder is not empty",
    errno.ENOSPC: "the disk is full; free some space, then run the command again",
    errno.EDQUOT: "your quota of the disk is used; free some space, then run the command again",
    errno.EFBIG: "the file is larger than the system allows; see `ulimit -f`",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its links form a loop",
    errno.EMFILE: "too many files are open; raise the limit with `ulimit -n 4096`",
    errno.ENFILE: "too many files are open on this machine",
    errno.EIO: "the disk or the network folder failed to read or write it",
    errno.ENOMEM: "the machine is out of memory",
    errno.ESTALE: "the network folder has changed; open it again",
}


def system_message(error: OSError) -> str:
    """Return the path and the reason of an error, without its number; a message without a number stays as it is."""
    if error.errno is None or error.strerror is None:
        return str(error)
    reason = REASONS.get(error.errno, str(error.strerror).lower())
    if error.filename is None or isinstance(error.filename, int):
        return reason
    path = Path(os.fsdecode(error.filename))
    while temporary := TEMPORARY.fullmatch(path.name):  # `write_atomically` chose this name, not the user
        path = path.with_name(temporary[1])
    return f"{path}: {reason}"
