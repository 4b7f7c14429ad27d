"""Checkpoints: read back to the last bit, refused in one line, never half written."""

import dataclasses
import json
import os
import stat
import sys

import pytest
import torch

from miniclip.checkpoints import save_checkpoint
from miniclip.checkpoints.formats.safetensors import read_tensors, write_tensors
from miniclip.checkpoints.native import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    read_json,
    write_atomically,
    write_json,
)
from miniclip.errors import CheckpointError
from miniclip.hub import load
from miniclip.inference.model import CLIPModel


@pytest.fixture
def model(toy_config, toy_tokenizer) -> CLIPModel:
    return CLIPModel(dataclasses.replace(toy_config, logit_bias=-10.0), toy_tokenizer).initialise().eval()


@pytest.fixture
def saved(model, tmp_path):
    save_checkpoint(model, tmp_path / "model")
    return tmp_path / "model"


def one_line(caught: pytest.ExceptionInfo, *names: object) -> str:
    message = str(caught.value)
    assert "\n" not in message
    assert all(str(name) in message for name in names), message
    return message


def edit_config(saved, **changes) -> None:
    values = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_round_trip_is_exact(model, tmp_path, dtype):
    model = model.to(dtype)
    save_checkpoint(model, tmp_path / "new" / "model")
    loaded = load(tmp_path / "new" / "model", dtype=dtype)
    assert loaded.config == model.config
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert theirs[key].dtype == dtype, key
        assert torch.equal(theirs[key], value), key
    assert {key for key, p in loaded.named_parameters() if p.requires_grad} == set(dict(model.named_parameters()))
    text = "a red DOG, 7"
    assert loaded.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert loaded.tokenizer.vocab == model.tokenizer.vocab
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded.encode_text(text), model.encode_text(text))
    assert torch.equal(loaded.encode_image(pixels), model.encode_image(pixels))


def test_what_is_in_the_directory(model, saved):
    assert sorted(path.name for path in saved.iterdir()) == sorted([WEIGHTS, CONFIG, TOKENIZER])
    values = json.loads((saved / CONFIG).read_text())
    assert values["format"] == "miniclip"
    assert values["precision"] == "float32"
    save_checkpoint(model.to(torch.bfloat16), saved)
    assert json.loads((saved / CONFIG).read_text())["precision"] == "bfloat16"


def test_without_a_tokenizer(model, tmp_path, toy_tokenizer):
    model.tokenizer = None
    save_checkpoint(model, tmp_path)
    assert load(tmp_path).tokenizer is None
    assert load(tmp_path, tokenizer=toy_tokenizer).tokenizer is toy_tokenizer


def test_the_tokenizer_that_was_there_before_goes_with_the_model_that_it_was_for(model, saved):
    model.tokenizer = None
    save_checkpoint(model, saved)
    assert load(saved).tokenizer is None


def test_saving_over_what_was_there(model, saved):
    with torch.no_grad():
        model.log_scale.fill_(1.5)
    loaded = load(saved)
    before = loaded.log_scale.clone()
    save_checkpoint(model, saved)
    assert float(load(saved).log_scale) == 1.5
    assert torch.equal(loaded.log_scale, before)  # mapped from the file that was there


def test_training_what_was_loaded_leaves_the_file_alone(saved):
    data = (saved / WEIGHTS).read_bytes()
    first, second = load(saved), load(saved)
    kept = {key: value.clone() for key, value in second.state_dict().items()}
    optimizer = torch.optim.SGD(first.parameters(), lr=1.0)
    output = first(torch.randn(2, 3, 16, 16), torch.tensor([[1, 2], [3, 4]]))
    (output.image_embeddings * output.text_embeddings).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    assert float((first.image.class_token - kept["image.class_token"]).detach().abs().min()) > 0.01
    assert (saved / WEIGHTS).read_bytes() == data
    for model in (second, load(saved)):
        assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("keep", [0.5, 0.99, 20, 4, 0])
def test_weights_cut_short(saved, keep):
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="not a whole safetensors file") as caught:
        load(saved)
    one_line(caught, saved / WEIGHTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": "mini', "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1, 2]", "a JSON list; expected an object"),
        (b"{}", '"format": "miniclip"'),
        (b'{"format": "open_clip", "embed_dim": 4}', '"format": "miniclip"'),
        (b'{"format": "miniclip", "embed_dim": 4}', "no section 'image'"),
    ],
)
def test_a_configuration_that_is_none(saved, content, message):
    (saved / CONFIG).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(saved)
    one_line(caught, saved / CONFIG)


@pytest.mark.parametrize(
    "changes", [{"embed_dmi": 4}, {"mean": None}, {"text": {}}, {"mean": "x"}, {"embed_dim": "eight"}, {"std": [1, 2]}]
)
def test_a_configuration_that_does_not_hold(saved, changes):
    edit_config(saved, **changes)
    with pytest.raises(CheckpointError) as caught:
        load(saved)
    one_line(caught, saved)


def test_an_activation_that_nobody_knows(saved):
    values = json.loads((saved / CONFIG).read_text())
    edit_config(saved, image={**values["image"], "activation": "relu"})
    with pytest.raises(CheckpointError, match="relu") as caught:
        load(saved)
    one_line(caught, saved / CONFIG)


def test_weights_of_another_shape(saved):
    edit_config(saved, embed_dim=16)
    with pytest.raises(CheckpointError) as caught:
        load(saved)
    one_line(caught, saved / WEIGHTS, "image.projection.weight has the shape (8, 24), expected (16, 24)")
    one_line(caught, "text.projection.weight has the shape (8, 16), expected (16, 16)")


def test_weights_that_are_missing_or_unknown(saved):
    tensors, _ = read_tensors(saved / WEIGHTS)
    del tensors["image.class_token"]
    write_tensors(saved / WEIGHTS, {**tensors, "image.class_tokens": torch.zeros(24)})
    with pytest.raises(CheckpointError) as caught:
        load(saved)
    one_line(caught, "image.class_token is missing", "image.class_tokens is unknown")


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_file(saved, name):
    (saved / name).unlink()
    left = ({WEIGHTS, CONFIG} - {name}).pop()
    with pytest.raises(FileNotFoundError, match=f"no checkpoint there, only {left}, tokenizer.json;") as caught:
        load(saved)
    one_line(caught, saved)


def test_weights_by_their_file(model, saved):
    assert torch.equal(load(saved / WEIGHTS).log_scale, model.log_scale)
    (saved / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json beside it"):
        load(saved / WEIGHTS)
    assert torch.equal(load(saved / WEIGHTS, config=model.config).log_scale, model.log_scale)


def test_a_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load(tmp_path / "absent")


def test_a_damaged_tokenizer(saved):
    (saved / TOKENIZER).write_text("{")
    with pytest.raises(CheckpointError) as caught:
        load(saved)
    one_line(caught, saved / TOKENIZER)


def test_tensors_round_trip(tmp_path):
    tensors = {
        "turned": torch.arange(6).view(2, 3).T,
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 2),
        "half": torch.randn(3).bfloat16().requires_grad_(),
        "flags": torch.tensor([True, False]),
    }
    write_tensors(tmp_path / "t.safetensors", tensors, {"step": "12"})
    found, metadata = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"step": "12"}
    assert found.keys() == tensors.keys()
    for key, value in tensors.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "absent.safetensors")


def test_json_round_trip(tmp_path):
    value = {"name": "café 猫", "list": [1, 2.5, None, True], "nested": {"a": {}}}
    write_json(tmp_path / "deep" / "er" / "v.json", value)
    assert read_json(tmp_path / "deep" / "er" / "v.json") == value
    assert "café 猫" in (tmp_path / "deep" / "er" / "v.json").read_text(encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent.json")


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [True, False])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path, error, existing):
    path = tmp_path / "file.txt"
    if existing:
        path.write_text("old")

    def write(temporary) -> None:
        assert temporary.parent == tmp_path
        temporary.write_text("half of the n")
        assert path.exists() == existing  # nobody sees the half
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert [p.name for p in tmp_path.iterdir()] == (["file.txt"] if existing else [])
    assert not existing or path.read_text() == "old"


def test_a_writer_that_succeeds_replaces_it(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    seen = []
    write_atomically(path, lambda temporary: (temporary.write_text("new"), seen.append(path.read_text())))
    assert seen == ["old"]
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(model, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_checkpoint(model, tmp_path / "model")
        assert os.umask(umask) == umask  # and it is left as it was
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys([WEIGHTS, CONFIG, TOKENIZER], mode)
