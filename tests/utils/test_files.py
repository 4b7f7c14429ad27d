"""Guarded reading: regular files only, of limited size, and JSON of limited depth."""

import os
import socket
import threading
from pathlib import Path

import pytest

from miniclip.utils.files import open_regular, parse_json, read_limited

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of POSIX")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a directory with a file and with paths that are not files."""
    (tmp_path / "file").write_bytes(b'{"a": 1}')
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("elsewhere")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "kernel").symlink_to("/proc/self/status")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize("name", ["file", "link"])
def test_opens_regular_files(place, name):
    with open_regular(place / name) as file:
        assert file.read() == b'{"a": 1}'
    assert read_limited(str(place / name)) == b'{"a": 1}'


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "no such file"),
        ("directory", "a directory; expected a regular file"),
        ("file/below", "a part of the path is not a directory"),
        ("dangling", "a link to elsewhere, which does not exist"),
        ("circle", "links in a circle"),
        ("pipe", "a named pipe; expected a regular file"),
        ("zero", "a device; expected a regular file"),
        ("n" * 300, "the name is too long"),
        ("a\nb", "no such file"),
        ("a\0b", "not a path of this system"),
    ],
    ids=lambda value: ascii(value[:10]).replace("\\", "_"),
)
def test_refuses_other_paths_at_once(place, name, words):
    with pytest.raises(FileNotFoundError, match=words) as caught:
        open_regular(place / name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="files of Linux")
def test_refuses_files_of_the_kernel(place):
    for path in (place / "kernel", "/proc/self/status", "/proc/kmsg"):
        with pytest.raises((FileNotFoundError, PermissionError), match=r"kernel|may not read"):
            open_regular(path)


def test_refuses_sockets(place, monkeypatch):
    monkeypatch.chdir(place)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(FileNotFoundError, match="socket: a socket; expected a regular file"):
            open_regular("socket")


def test_refuses_large_files(place):
    assert read_limited(place / "file", 8) == b'{"a": 1}'
    with pytest.raises(ValueError, match="KiB long, expected at most"):
        read_limited(place / "file", 7)
    with (place / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="GiB long, expected at most 16"):
        read_limited(place / "sparse")


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2]}', b'{"a": [1, 2]}', b'\xef\xbb\xbf{"a": [1, 2]}'], ids=["str", "utf-8", "bom"]
)
def test_parses_json(text):
    assert parse_json(text) == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (b"[" * 2000 + b"]" * 2000, "nested too deeply"),
        ("{", "Expecting property name"),
        (b"\xff", "invalid start byte"),
        ("1" * 5000, "4300 digits"),
    ],
    ids=["open", "objects", "closed", "cut", "latin", "digits"],
)
def test_refuses_other_text(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_refuses_deep_json_in_threads():
    caught = []

    def parse() -> None:
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json("[" * 1_000_000)
        caught.append(True)

    thread = threading.Thread(target=parse)
    thread.start()
    thread.join()
    assert caught == [True]
