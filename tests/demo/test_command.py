"""`miniclip demo`: its errors in one line, the page on Shapes at once, and Ctrl-C."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import miniclip
from miniclip.cli import main

pytest.importorskip("fastapi", reason="needs the extra demo")


@pytest.fixture(scope="module")
def checkpoint(demo_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "toy"
    miniclip.save(demo_model, path)
    return path


def error_of(capsys, *arguments):
    assert main(["demo", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_errors_are_one_line(checkpoint, demo_index, tmp_path, capsys):
    index = ["--index", demo_index.path]
    assert "build one with `miniclip index" in error_of(capsys, checkpoint)
    assert "no such index" in error_of(capsys, checkpoint, "--index", tmp_path / "none.index")
    assert "is not an index" in error_of(capsys, checkpoint, "--index", tmp_path)
    assert "none" in error_of(capsys, tmp_path / "none", *index)
    assert "expected 12 to 200 letters" in error_of(capsys, checkpoint, *index, "--port", "0", "--token", "short")
    assert "--host 203.0.113.7: is not an address" in error_of(capsys, checkpoint, *index, "--host", "203.0.113.7")
    assert "--port 70000: expected 0 to 65535" in error_of(capsys, checkpoint, *index, "--port", "70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: another program uses it" in error_of(capsys, checkpoint, *index, "--port", port)


def test_other_model_is_refused(checkpoint, demo_index, tmp_path, tokenizer, capsys):
    from tests.toys import make_model

    other = make_model(tokenizer)
    other.log_scale.data.add_(0.1)
    miniclip.save(other, tmp_path / "other")
    message = error_of(capsys, tmp_path / "other", "--index", demo_index.path, "--port", "0")
    assert "another model" in message


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_page_on_shapes_starts_at_once_and_ends_with_ctrl_c(demo_model, tmp_path):
    run = tmp_path / "run"  # as `miniclip train` leaves it
    miniclip.save(demo_model, run / "best")
    config = {
        "format": "miniclip run 1",
        "train": {},
        "model": {},
        "data": {},
        "about": {"data": "shapes"},
        "changes": [],
    }
    (run / "config.json").write_text(json.dumps(config))
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "miniclip", "demo", str(run), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        address = re.search(r"http://\S+", "".join(lines))[0]
        answer = httpx.post(f"{address}api/search", json={"text": "a green heart", "count": 3}, timeout=60).json()
        assert answer["total"] == 500
        thumbnail = httpx.get(f"{address}api/images/{answer['hits'][0]['id']}?side=320", timeout=60)
        assert thumbnail.headers["content-type"] == "image/jpeg"
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, error) == (0, "stopped\n", "")
    assert not list(Path(tmp_path).glob("miniclip-demo-*"))
