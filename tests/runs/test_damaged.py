"""Damaged files of a run: each is refused in one line that names it."""

import json
import os

import pytest
import torch

from miniclip.checkpoints.formats.safetensors import write_tensors
from miniclip.errors import CheckpointError
from miniclip.runs.directory import FORMAT, read_run
from miniclip.runs.history import History
from miniclip.runs.state import FORMAT as STATE_FORMAT
from miniclip.runs.state import read_state

RUN = {"format": FORMAT, "train": {}, "model": {}, "data": {}, "about": {}, "changes": []}
STATE = {"format": STATE_FORMAT, "progress": "{}", "structure": "{}"}


def refusal(read, path, *words):
    with pytest.raises(CheckpointError) as caught:
        read()
    message = str(caught.value)
    assert message.isprintable()
    assert [word for word in (str(path), *words) if word not in message] == []


@pytest.mark.parametrize("name", ["train", "model", "data", "about", "changes"])
@pytest.mark.parametrize("value", [None, 3, "x", "absent"])
def test_refuses_a_run_without_a_part(name, value, tmp_path):
    content = {**RUN, name: value}
    if value == "absent":
        del content[name]
    (tmp_path / "config.json").write_text(json.dumps(RUN))
    assert read_run(tmp_path) == RUN
    (tmp_path / "config.json").write_text(json.dumps(content))
    refusal(lambda: read_run(tmp_path), tmp_path / "config.json", f"as {name}, expected a JSON")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "[]", '{"format": [[[[[[[[1]]]]]]]]}'], ids=["deep", "cut", "list", "format"]
)
def test_refuses_a_damaged_configuration(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    refusal(lambda: read_run(tmp_path), tmp_path / "config.json")


def test_refuses_a_configuration_that_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match=r"config\.json: a named pipe; expected a regular file"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"progress": "[" * 100_000}, "model.a"),
        ({"progress": "{"}, "model.a"),
        ({"progress": '{"step": "3"}'}, "model.a"),
        ({"progress": '{"steps": 3}'}, "model.a"),
        ({"progress": "[1]"}, "model.a"),
        ({"structure": '{"frozen": 3}'}, "model.a"),
        ({"structure": None}, "model.a"),
        ({}, "elsewhere.a"),
        ({}, "plain"),
    ],
    ids=["deep", "cut", "text", "unknown", "list", "number", "absent", "group", "name"],
)
def test_refuses_a_damaged_state(changes, key, tmp_path):
    path = tmp_path / "state.safetensors"
    metadata = {name: value for name, value in {**STATE, **changes}.items() if value is not None}
    write_tensors(path, {key: torch.zeros(1)}, metadata)
    refusal(lambda: read_state(path), path, "a damaged training state")


def test_refuses_deep_metrics(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: not a record of a run \(its brackets"):
        History.read(tmp_path)
