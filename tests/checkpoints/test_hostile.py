"""Damaged or hostile checkpoints: each is refused in one line, before it costs time or memory."""

import dataclasses
import json
import os
import resource
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from miniclip.checkpoints.export import export
from miniclip.checkpoints.formats.safetensors import read_tensors, write_tensors
from miniclip.checkpoints.native import save_checkpoint
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError
from miniclip.hub import load
from miniclip.inference.model import CLIPModel

CLIP = CLIPConfig(
    ImageConfig(32, 8, 64, 2, 1, activation="quickgelu"),
    TextConfig(12, 99, 64, 2, 1, activation="quickgelu", causal=True, pooling="end"),
    16,
)
SIGLIP = dataclasses.replace(
    CLIP,
    image=ImageConfig(
        32, 8, 32, 2, 4, activation="gelu_tanh", projection="none", class_token=False, norm_before=False,
        patch_bias=True, pooling="attention",
    ),
    text=TextConfig(12, 99, 24, 2, 3, padding="attended", pooling="last", projection="bias"),
    embed_dim=32, logit_scale=10.0, logit_bias=-10.0, mean=(0.5,) * 3, resize="squash", crop_rounding="floored",
)  # fmt: skip
LAYOUTS = ("miniclip", "openai", "open_clip", "transformers", "siglip")
FILES = {"openai": "model.pt", "open_clip": "open_clip_model.safetensors"}

# configuration file, and the settings in it that are numbers
NUMBERS = {
    "miniclip": (
        "config.json",
        "image.image_size image.patch_size image.width image.layers image.heads image.mlp_ratio image.norm_eps "
        "text.context_length text.vocab_size text.width text.layers text.heads text.mlp_ratio text.norm_eps "
        "text.end_id embed_dim logit_scale mean.0 std.1",
    ),
    "open_clip": (
        "open_clip_config.json",
        "model_cfg.embed_dim model_cfg.init_logit_scale model_cfg.vision_cfg.image_size model_cfg.vision_cfg.layers "
        "model_cfg.vision_cfg.width model_cfg.vision_cfg.patch_size model_cfg.vision_cfg.head_width "
        "model_cfg.vision_cfg.mlp_ratio model_cfg.text_cfg.context_length model_cfg.text_cfg.vocab_size "
        "model_cfg.text_cfg.width model_cfg.text_cfg.heads model_cfg.text_cfg.layers model_cfg.text_cfg.mlp_ratio "
        "preprocess_cfg.mean.0 preprocess_cfg.std.2",
    ),
    "transformers": (
        "config.json",
        "projection_dim logit_scale_init_value vision_config.hidden_size vision_config.intermediate_size "
        "vision_config.num_hidden_layers vision_config.num_attention_heads vision_config.image_size "
        "vision_config.patch_size vision_config.num_channels vision_config.layer_norm_eps text_config.vocab_size "
        "text_config.hidden_size text_config.intermediate_size text_config.num_hidden_layers "
        "text_config.num_attention_heads text_config.max_position_embeddings text_config.layer_norm_eps "
        "text_config.eos_token_id",
    ),
    "siglip": (
        "preprocessor_config.json",
        "rescale_factor size.height size.width resample image_mean.0 image_std.1 do_resize do_rescale",
    ),
}
MAY_BE_NEGATIVE = "mean.0 preprocess_cfg.mean.0 image_mean.0 model_cfg.init_logit_scale logit_scale_init_value"
EXTREMES = {
    "1e19": 1e19, "10**19": 10**19, "10**400": 10**400, "1e308": 1e308, "-10**400": -(10**400), "-1e308": -1e308,
    "nan": float("nan"), "inf": float("inf"), "negative": -7, "true": True, "text": "64", "list": [[[1]]],
    "object": {"x": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Return a directory for each layout, written once."""
    folders = {}
    for layout in LAYOUTS:
        folders[layout] = tmp_path_factory.mktemp("made") / layout
        model = CLIPModel(SIGLIP if layout == "siglip" else CLIP).initialise()
        if layout == "miniclip":
            save_checkpoint(model, folders[layout])
        else:
            export(model, folders[layout], layout="transformers" if layout == "siglip" else layout)
    return folders


@pytest.fixture
def copied(made, tmp_path):
    """Return a function that copies a layout's directory."""
    return lambda layout: Path(shutil.copytree(made[layout], tmp_path / layout))


def refusal(folder: Path, *words: object) -> str:
    """Assert that the checkpoint is refused in one short line; return it."""
    with pytest.raises((CheckpointError, FileNotFoundError)) as caught:
        load(folder)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1500
    assert [word for word in words if str(word) not in message] == [], message
    return message


def change(file: Path, path: str, value: object) -> None:
    """Set one value in a JSON file; numbers in the path are places in a list."""
    content = json.loads(file.read_text())
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    inner = content
    for part in parents:
        inner = inner[part]
    inner[last] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("value", EXTREMES.values(), ids=EXTREMES)
@pytest.mark.parametrize("layout", NUMBERS)
def test_refuses_numbers_out_of_range(layout, value, copied):
    folder = copied(layout)
    name, settings = NUMBERS[layout]
    original = (folder / name).read_text()
    for setting in settings.split():
        if (setting.startswith("do_") and value is True) or (setting in MAY_BE_NEGATIVE and value == -7):
            continue
        (folder / name).write_text(original)
        change(folder / name, setting, value)
        refusal(folder)


@pytest.mark.parametrize(
    ("layout", "setting", "value", "words"),
    [
        ("miniclip", "image.layers", 100_000, "image.layers is 100000; expected at most 1,024"),
        ("miniclip", "text.layers", 1000, "text.layers is 1,000, and there are 62 tensors"),
        ("open_clip", "model_cfg.text_cfg.layers", 900, "text.layers is 900"),
        ("transformers", "vision_config.num_hidden_layers", 10**9, "layers is 1000000000"),
        ("miniclip", "image.image_size", 96_000, "at most"),
        ("miniclip", "image.image_size", 4096, "expected 262145 rows for images of 4096 pixels"),
        ("open_clip", "model_cfg.vision_cfg.image_size", 4096, "pass image_size=4096"),
        ("transformers", "vision_config.image_size", 4096, "4096"),
        ("siglip", "vision_config.image_size", 4096, "4096"),
    ],
    ids=lambda value: str(value).rpartition(".")[2][:30],
)  # fmt: skip
def test_refuses_sizes_that_the_weights_contradict(layout, setting, value, words, copied):
    folder = copied(layout)
    change(folder / ("open_clip_config.json" if layout == "open_clip" else "config.json"), setting, value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(folder, words)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_refuses_an_image_size_that_would_take_gigabytes(copied):
    with pytest.raises(ValueError, match=r"image_size is 96000; expected at most 16,384"):
        load(copied("openai"), image_size=96_000)


@pytest.mark.parametrize("flag", ["quick_gelu", "vision_cfg.no_ln_pre", "text_cfg.proj_bias"])
def test_refuses_text_for_a_switch(flag, copied):
    folder = copied("open_clip")
    change(folder / "open_clip_config.json", f"model_cfg.{flag}", "false")
    refusal(folder, flag.rpartition(".")[2], "'false'; expected true or false")


JSON_FILES = [
    ("miniclip", "config.json"), ("open_clip", "open_clip_config.json"), ("transformers", "config.json"),
    ("transformers", "preprocessor_config.json"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "name"), JSON_FILES, ids=[f"{layout}-{name}" for layout, name in JSON_FILES])
@pytest.mark.parametrize(
    "text", ["[" * 1000, '{"a":' * 100_000, '{"size":' * 900 + "1" + "}" * 900], ids=["1000", "open", "900"]
)
def test_refuses_deep_json(layout, name, text, copied):
    folder = copied(layout)
    (folder / name).write_text(text)
    refusal(folder)


def test_refuses_large_json(copied):
    folder = copied("miniclip")
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 40)
    refusal(folder, folder / "config.json", "GiB long, expected at most 16.0 MiB")


NOT_FILES = ["pipe", "directory", "zero", "kernel", "dangling"]


def replace(file: Path, kind: str) -> None:
    """Replace a file by something that is not a regular file."""
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    else:
        file.symlink_to({"zero": "/dev/zero", "kernel": "/proc/kmsg", "dangling": "absent"}[kind])


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="files of Linux")
@pytest.mark.parametrize("kind", NOT_FILES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_refuses_files_that_are_not_regular(layout, kind, copied):
    folder = copied(layout)
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        replace(file, kind)
        with pytest.raises((CheckpointError, FileNotFoundError, PermissionError)) as caught:
            load(folder)
        assert str(caught.value).isprintable()
        with pytest.raises((CheckpointError, FileNotFoundError, PermissionError, ValueError)):
            load(file)
        file.rmdir() if kind == "directory" else file.unlink()
        file.write_bytes(data)
    load(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("layout", ["miniclip", "open_clip", "transformers", "openai"])
@pytest.mark.parametrize("every", [True, False], ids=["all", "scale"])
def test_refuses_weights_that_are_not_floats(layout, dtype, every, copied):
    folder = copied(layout)
    file = folder / FILES.get(layout, "model.safetensors")
    is_pt = file.suffix == ".pt"
    tensors = torch.load(file) if is_pt else read_tensors(file)[0]
    scale = "log_scale" if layout == "miniclip" else "logit_scale"
    changed = {key: value.to(dtype) if every or key == scale else value for key, value in tensors.items()}
    if is_pt:
        torch.save(changed, file)
    elif dtype.is_complex:
        from safetensors.torch import save_file

        save_file(changed, file)
    else:
        write_tensors(file, changed)
    refusal(folder, "expected floats", dtype)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("layout", ["miniclip", "openai"])
def test_widens_float8(layout, dtype, copied):
    folder = copied(layout)
    expected = {key: value.clone() for key, value in load(folder).state_dict().items()}
    file = folder / FILES.get(layout, "model.safetensors")
    tensors = torch.load(file) if layout == "openai" else read_tensors(file)[0]
    narrow = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    file.unlink()
    torch.save(narrow, file) if layout == "openai" else write_tensors(file, narrow)
    model = load(folder)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key].to(dtype).float()), key
    assert model.encode_image(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e4])
@pytest.mark.parametrize("layout", ["miniclip", "open_clip", "transformers", "siglip"])
def test_refuses_a_scale_that_is_not_a_number(layout, value, copied):
    folder = copied(layout)
    file = folder / FILES.get(layout, "model.safetensors")
    tensors, _ = read_tensors(file)
    tensors["log_scale" if layout == "miniclip" else "logit_scale"].fill_(value)
    write_tensors(file, tensors)
    refusal(folder, "log_scale is", "use an earlier checkpoint")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_refuses_tensors_that_grow(zipped, copied):
    folder = copied("openai")
    tensors = torch.load(folder / "model.pt")
    tensors["token_embedding.weight"] = torch.zeros(64).expand(10_000_000, 64)
    torch.save(tensors, folder / "model.pt", _use_new_zipfile_serialization=zipped)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(folder, "token_embedding.weight", "much larger than the file")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_keeps_tied_weights(copied):
    folder = copied("openai")
    tensors = torch.load(folder / "model.pt")
    tensors["transformer.resblocks.1.ln_1.weight"] = tensors["transformer.resblocks.0.ln_1.weight"]
    torch.save(tensors, folder / "model.pt")
    load(folder)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["key", "inner", "ordered"])
def test_refuses_keys_that_hash_forever(zipped, where, tmp_path):
    nested: object = (1, 2)
    for _ in range(16):
        nested = (nested, nested)
    key = nested
    value = {"key": {key: torch.zeros(1)}, "inner": {"state_dict": {key: 1}}, "ordered": OrderedDict([(key, 1)])}[where]
    torch.save(value, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"describes no state dict: it is damaged, or made to exhaust") as caught:
        load(tmp_path / "model.pt")
    assert str(caught.value).isprintable()
