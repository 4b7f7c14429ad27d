"""miniclip's own layout: exact round trips, refusals in one line, atomic writing."""

import dataclasses
import json
import os
import stat
import sys

import pytest
import torch
from torch import nn

from miniclip.checkpoints.formats.safetensors import read_tensors, write_tensors
from miniclip.checkpoints.native import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    read_json,
    save_checkpoint,
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
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert state[key].dtype == dtype, key
        assert torch.equal(state[key], value), key
    assert {key for key, p in loaded.named_parameters() if p.requires_grad} == set(dict(model.named_parameters()))
    text = "a red DOG, 7"
    assert loaded.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert loaded.tokenizer.vocab == model.tokenizer.vocab
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded.encode_text(text), model.encode_text(text))
    assert torch.equal(loaded.encode_image(pixels), model.encode_image(pixels))


def test_writes_three_files_and_the_precision(model, saved):
    assert sorted(path.name for path in saved.iterdir()) == sorted([WEIGHTS, CONFIG, TOKENIZER])
    values = json.loads((saved / CONFIG).read_text())
    assert values["format"] == "miniclip"
    assert values["precision"] == "float32"
    save_checkpoint(model.to(torch.bfloat16), saved)
    assert json.loads((saved / CONFIG).read_text())["precision"] == "bfloat16"


def test_saves_and_loads_without_a_tokenizer(model, tmp_path, toy_tokenizer):
    model.tokenizer = None
    save_checkpoint(model, tmp_path)
    assert load(tmp_path).tokenizer is None
    assert load(tmp_path, tokenizer=toy_tokenizer).tokenizer is toy_tokenizer


def test_removes_the_tokenizer_of_an_earlier_model(model, saved):
    model.tokenizer = None
    save_checkpoint(model, saved)
    assert load(saved).tokenizer is None


def test_saving_over_a_loaded_checkpoint_keeps_the_loaded_model(model, saved):
    with torch.no_grad():
        model.log_scale.fill_(1.5)
    loaded = load(saved)
    before = loaded.log_scale.clone()
    save_checkpoint(model, saved)
    assert float(load(saved).log_scale) == 1.5
    assert torch.equal(loaded.log_scale, before)  # still mapped from the replaced file


def test_training_a_loaded_model_does_not_change_the_file(saved):
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
def test_refuses_truncated_weights(saved, keep):
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
def test_refuses_files_that_are_not_a_configuration(saved, content, message):
    (saved / CONFIG).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(saved)
    one_line(caught, saved / CONFIG)


@pytest.mark.parametrize(
    "changes", [{"embed_dmi": 4}, {"mean": None}, {"text": {}}, {"mean": "x"}, {"embed_dim": "eight"}, {"std": [1, 2]}]
)
def test_refuses_invalid_configurations(saved, changes):
    edit_config(saved, **changes)
    with pytest.raises(CheckpointError) as caught:
        load(saved)
    one_line(caught, saved)


def test_refuses_an_unknown_activation(saved):
    values = json.loads((saved / CONFIG).read_text())
    edit_config(saved, image={**values["image"], "activation": "relu"})
    with pytest.raises(CheckpointError, match="relu") as caught:
        load(saved)
    one_line(caught, saved / CONFIG)


def test_refuses_weights_of_another_shape(saved):
    edit_config(saved, embed_dim=16)
    with pytest.raises(CheckpointError) as caught:
        load(saved)
    one_line(caught, saved / WEIGHTS, "image.projection.weight has the shape (8, 24), expected (16, 24)")
    one_line(caught, "text.projection.weight has the shape (8, 16), expected (16, 16)")


def test_refuses_missing_and_unknown_weights(saved):
    tensors, _ = read_tensors(saved / WEIGHTS)
    del tensors["image.class_token"]
    write_tensors(saved / WEIGHTS, {**tensors, "image.class_tokens": torch.zeros(24)})
    with pytest.raises(CheckpointError) as caught:
        load(saved)
    one_line(caught, "image.class_token is missing", "image.class_tokens is unknown")


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_names_a_missing_file(saved, name):
    (saved / name).unlink()
    left = ({WEIGHTS, CONFIG} - {name}).pop()
    with pytest.raises(
        FileNotFoundError, match=f"no checkpoint in this directory, only {left}, tokenizer.json;"
    ) as caught:
        load(saved)
    one_line(caught, saved)


def test_loads_a_file_of_weights(model, saved):
    assert torch.equal(load(saved / WEIGHTS).log_scale, model.log_scale)
    (saved / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json beside it"):
        load(saved / WEIGHTS)
    assert torch.equal(load(saved / WEIGHTS, config=model.config).log_scale, model.log_scale)


def test_refuses_a_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load(tmp_path / "absent")


def test_refuses_a_damaged_tokenizer(saved):
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
def test_failed_write_keeps_the_old_file(tmp_path, error, existing):
    path = tmp_path / "file.txt"
    if existing:
        path.write_text("old")

    def write(temporary) -> None:
        assert temporary.parent == tmp_path
        temporary.write_text("half of the n")
        assert path.exists() == existing  # the partial file is not visible
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert [p.name for p in tmp_path.iterdir()] == (["file.txt"] if existing else [])
    assert not existing or path.read_text() == "old"


def test_successful_write_replaces_the_old_file(tmp_path):
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
        assert os.umask(umask) == umask  # unchanged
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys([WEIGHTS, CONFIG, TOKENIZER], mode)


def wrap_image_tower(model):
    model.image = torch.compile(model.image)
    return model


def wrap_both(model):
    model.text = nn.DataParallel(model.text)
    return torch.compile(nn.DataParallel(model))


WRAPPERS = {
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "compiled image tower": wrap_image_tower,
    "all of them": wrap_both,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_saves_wrapped_models_under_plain_names(model, tmp_path, wrapper):
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    save_checkpoint(WRAPPERS[wrapper](model), tmp_path)
    loaded = load(tmp_path)
    assert loaded.config == model.config
    assert loaded.tokenizer.vocab == model.tokenizer.vocab
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_loads_safetensors_with_a_prefix_before_every_name(model, saved, prefix):
    tensors, metadata = read_tensors(saved / WEIGHTS)
    write_tensors(saved / WEIGHTS, {prefix + key: value for key, value in tensors.items()}, metadata)
    loaded = load(saved)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_refuses_to_save_another_module(tmp_path):
    with pytest.raises(TypeError, match=r"the model is a Linear; expected a CLIPModel") as caught:
        save_checkpoint(nn.Linear(2, 2), tmp_path / "model")
    one_line(caught)
    assert not (tmp_path / "model").exists()


def test_refuses_to_save_a_model_with_replaced_modules(model, tmp_path):
    model.image.projection = nn.Sequential(model.image.projection)
    with pytest.raises(
        ValueError, match=r"image\.projection is a torch\.nn\.modules\.container\.Sequential; restore"
    ) as caught:
        save_checkpoint(model, tmp_path / "model")
    one_line(caught, "merge_and_unload()")
    assert not (tmp_path / "model").exists()


ADAPTER = '{"peft_type": "LORA", "r": 4, "target_modules": ["qkv"]}'


def test_refuses_a_peft_adapter_beside_base_weights(saved):
    (saved / "adapter_config.json").write_text(ADAPTER)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json, a peft adapter"):  # the file itself, too
        load(saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json, a peft adapter") as caught:
        load(saved)
    one_line(caught, saved, "merge it with merge_and_unload(), and save the merged model")


def test_refuses_a_peft_adapter_without_base_weights(tmp_path):
    (tmp_path / "adapter_config.json").write_text(ADAPTER)
    write_tensors(tmp_path / "adapter_model.safetensors", {"base_model.model.a": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="merge_and_unload") as caught:
        load(tmp_path)
    one_line(caught, tmp_path)
