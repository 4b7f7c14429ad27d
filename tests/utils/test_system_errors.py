"""Errors of the operating system as sentences."""

import errno
import os

import pytest

from miniclip.utils.atomic import write_atomically
from miniclip.utils.system_errors import REASONS, system_message


def raised(function, *arguments):
    with pytest.raises(OSError) as caught:  # noqa: PT011
        function(*arguments)
    return system_message(caught.value)


def test_real_errors(tmp_path):
    (tmp_path / "file").write_text("")
    assert raised((tmp_path / "none").read_text) == f"{tmp_path}/none: no such file or folder"
    assert raised((tmp_path / "file").mkdir) == f"{tmp_path}/file: exists already"
    assert raised((tmp_path / "file" / "x").mkdir) == (
        f"{tmp_path}/file/x: a part of this path is a file; expected folders"
    )
    assert raised(tmp_path.read_text) == f"{tmp_path}: is a folder; expected a file"
    assert raised((tmp_path / ("x" * 300)).touch).endswith("x: the name is too long")


def test_the_target_is_named_in_place_of_its_temporary_file(tmp_path):
    def write(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    expected = f"{tmp_path}/config.json: the disk is full; free some space, then run the command again"
    assert raised(write_atomically, tmp_path / "config.json", write) == expected
    nested = raised(write_atomically, tmp_path / "config.json", lambda path: write_atomically(path, write))
    assert nested == expected


def test_other_errors():
    assert system_message(OSError("the library's own message")) == "the library's own message"
    assert system_message(OSError(errno.EXDEV, "Cross-device link")) == "cross-device link"
    assert all(not reason.startswith("[") for reason in REASONS.values())
