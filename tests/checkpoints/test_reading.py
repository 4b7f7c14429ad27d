"""Opening checkpoints: the content decides, not the names; errors name the file in one line."""

import copy
import dataclasses
import gc
import json
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miniclip.checkpoints.export import export
from miniclip.checkpoints.files import CANDIDATES, best_weights, files_to_download, find_weights
from miniclip.checkpoints.formats.safetensors import read_tensors, write_tensors
from miniclip.checkpoints.native import save_checkpoint
from miniclip.checkpoints.reading import CheckpointReader
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError
from miniclip.hub import load
from miniclip.inference.model import CLIPModel

CLIP_CONFIG = CLIPConfig(
    ImageConfig(32, 8, 64, 2, 1, activation="quickgelu"),
    TextConfig(12, 99, 64, 2, 1, activation="quickgelu", causal=True, pooling="end", end_id=None),
    16,
)
ATTENTION = {"class_token": False, "norm_before": False, "patch_bias": True, "pooling": "attention"}
SIGLIP_CONFIG = CLIPConfig(
    ImageConfig(32, 8, 32, 2, 4, activation="gelu_tanh", projection="none", **ATTENTION),
    TextConfig(12, 99, 24, 2, 3, padding="attended", pooling="last", projection="bias"),
    32,
    logit_scale=10.0,
    logit_bias=-10.0,
    mean=(0.5, 0.5, 0.5),
    resize="squash",
    crop_rounding="floored",
)
CONFIGS = {
    "miniclip": CLIP_CONFIG,
    "openai": CLIP_CONFIG,
    "open_clip": CLIP_CONFIG,
    "transformers": dataclasses.replace(CLIP_CONFIG, crop_rounding="floored"),
    "siglip": SIGLIP_CONFIG,
}
FILES = {
    "miniclip": "model.safetensors",
    "openai": "model.pt",
    "open_clip": "open_clip_model.safetensors",
    "transformers": "model.safetensors",
    "siglip": "model.safetensors",
}


@pytest.fixture
def write(tmp_path):
    """Write a random model in a layout; return its directory and the model."""

    def write(layout, name="checkpoint", scale=None):
        model = CLIPModel(CONFIGS[layout]).initialise().eval()
        if scale is not None:
            torch.nn.init.constant_(model.log_scale, scale)
        if layout == "miniclip":
            save_checkpoint(model, tmp_path / name)
        else:
            kind = "transformers" if layout == "siglip" else layout
            export(model, tmp_path / name, layout=kind, overwrite=True)
        return tmp_path / name, model

    return write


def same(model, other):
    state, expected = model.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


def rounded(config):
    """Round the scale, of which some layouts store the logarithm."""
    return dataclasses.replace(config, logit_scale=round(config.logit_scale, 6))


@pytest.mark.parametrize("layout", CONFIGS)
def test_names_of_files_do_not_matter(layout, write, tmp_path):
    folder, model = write(layout)
    misleading = tmp_path / "openai" / "siglip-ViT-B-32-gelu-transformers"
    misleading.parent.mkdir()
    folder.rename(misleading)
    misled = misleading / "siglip2_quickgelu_vit_l_14.bin"
    loaded = load(misleading)
    (misleading / FILES[layout]).rename(misled)
    for again in (loaded, load(misled), load(str(misled))):
        assert rounded(again.config) == rounded(model.config)
        assert same(again, model)
        assert not again.training
        assert all(p.requires_grad and p.is_leaf for p in again.parameters())


@pytest.mark.parametrize("layout", CONFIGS)
def test_does_not_use_the_random_generator(layout, write):
    folder, _ = write(layout)
    before = torch.get_rng_state()
    load(folder)
    load(folder, dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layout", CONFIGS)
def test_a_loaded_checkpoint_may_be_replaced(layout, write):
    folder, model = write(layout)
    opened = load(folder)
    _, other = write(layout)
    assert same(opened, model)
    assert not same(opened, other)
    assert same(load(folder), other)
    opened.log_scale.data.fill_(9.0)
    assert same(load(folder), other)


@pytest.mark.parametrize("layout", CONFIGS)
def test_closes_all_files(layout, write):
    folder, _ = write(layout)
    gc.collect()
    files = Path("/proc/self/fd")
    before = len(list(files.iterdir())) if files.is_dir() else 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        load(folder)
        (folder / FILES[layout]).write_bytes(b"damaged")
        with pytest.raises(CheckpointError):
            load(folder)
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
    assert not files.is_dir() or len(list(files.iterdir())) == before


@pytest.mark.parametrize("layout", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_loads_in_the_given_precision(layout, dtype, write):
    folder, model = write(layout)
    loaded = load(folder, dtype=dtype)
    assert {value.dtype for value in loaded.state_dict().values()} == {dtype}
    assert same(loaded, model.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_precision_of_the_file(dtype, tmp_path):
    save_checkpoint(CLIPModel(CLIP_CONFIG).initialise().to(dtype), tmp_path)
    expected = torch.float32 if dtype == torch.float16 else dtype
    assert {p.dtype for p in load(tmp_path).parameters()} == {expected}
    assert {p.dtype for p in CheckpointReader(tmp_path).model(keep_half=True).parameters()} == {dtype}


def test_mixed_precision_becomes_float32(tmp_path):
    model = CLIPModel(CLIP_CONFIG).initialise()
    model.image.bfloat16()
    save_checkpoint(model, tmp_path)
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize("layout", CONFIGS)
def test_resizes_to_another_image_size(layout, write):
    folder, model = write(layout)
    with pytest.warns(UserWarning, match="4 x 4 patches were resized to 6 x 6") as caught:
        loaded = load(folder, image_size=48)
    assert [warning.category for warning in caught].count(UserWarning) == 1
    assert rounded(loaded.config) == rounded(model.config.replace_image(image_size=48))
    assert loaded.preprocess.size == 48
    assert loaded.encode_image(torch.randn(1, 3, 48, 48)).shape == (1, model.config.embed_dim)
    kept = [key for key, value in loaded.state_dict().items() if torch.equal(value, model.state_dict().get(key))]
    assert set(loaded.state_dict()) - set(kept) == {"image.positions"}


@pytest.mark.filterwarnings("error::UserWarning")
def test_does_not_resize_the_same_number_of_patches(write):
    folder, model = write("open_clip")
    assert same(load(folder, image_size=35), model)


def test_refuses_an_impossible_image_size(write):
    folder, _ = write("open_clip")
    with pytest.raises(ValueError, match="patch_size 8 with image_size 7: expected at least one patch"):
        load(folder, image_size=7)


def test_prefers_safetensors_and_a_projects_own_files():
    names = {name for candidate in CANDIDATES for name in candidate} | {"README.md", "training_args.bin"}
    for expected in (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "open_clip_pytorch_model.bin",
        "open_clip_pytorch_model.pt",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.pt",
    ):
        assert best_weights(names) == expected
        names.remove(expected)
    assert best_weights(names) is None


@pytest.mark.parametrize(("weights", "config"), CANDIDATES)
def test_weights_need_their_configuration(weights, config):
    assert best_weights({weights, config}) == weights
    if weights != config:  # OpenAI's have no settings
        assert best_weights({weights}) is None
        assert best_weights({config}) is None


def test_directory_with_several_checkpoints_loads_the_preferred_one(write, tmp_path):
    own, _ = write("open_clip", "own", scale=1.0)
    conversion, _ = write("transformers", "conversion", scale=2.0)
    pickle, _ = write("openai", "pickle", scale=3.0)
    for folder in (own, conversion, pickle):
        for file in folder.iterdir():
            file.rename(tmp_path / file.name)
    assert load(tmp_path).log_scale.item() == 1.0
    (tmp_path / "open_clip_model.safetensors").unlink()
    assert load(tmp_path).log_scale.item() == 2.0
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "open_clip_config.json").unlink()
    assert load(tmp_path).log_scale.item() == 3.0


def test_loads_open_clip_weights_under_the_name_of_transformers(write):
    folder, model = write("open_clip")
    (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
    assert same(load(folder), model)


LAION = [
    ".gitattributes", "README.md", "config.json", "merges.txt", "model.safetensors", "open_clip_config.json",
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "preprocessor_config.json", "pytorch_model.bin",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
]  # fmt: skip
APPLE = [".gitattributes", "LICENSE", "README.md", "open_clip_config.json", "open_clip_pytorch_model.bin"]
OPENAI = [
    ".gitattributes", "README.md", "config.json", "flax_model.msgpack", "merges.txt", "preprocessor_config.json",
    "pytorch_model.bin", "special_tokens_map.json", "tf_model.h5", "tokenizer.json", "tokenizer_config.json",
    "vocab.json",
]  # fmt: skip
GOOGLE = [
    ".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    "special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip
TIMM = [
    ".gitattributes", "README.md", "open_clip_config.json", "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip
GIANT = [
    ".gitattributes", "README.md", "config.json", "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors", "model.safetensors.index.json", "preprocessor_config.json",
    "pytorch_model-00001-of-00002.bin", "tokenizer.json", "other-00001-of-00002.safetensors",
    "onnx/model.onnx", "onnx/config.json",
]  # fmt: skip
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
REPOSITORIES = {
    "laion": (LAION, {"open_clip_model.safetensors", "open_clip_config.json", "config.json", "vocab.json"}),
    "apple": (APPLE, {"open_clip_pytorch_model.bin", "open_clip_config.json"}),
    "openai": (OPENAI, {"pytorch_model.bin", "config.json", "preprocessor_config.json", "vocab.json", "merges.txt"}),
    "google": (GOOGLE, {"model.safetensors", "config.json", "preprocessor_config.json"}),
    "timm": (TIMM, {"open_clip_model.safetensors", "open_clip_config.json"}),
    "giant": (
        GIANT,
        {"model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
        | {"config.json", "preprocessor_config.json"},
    ),
}


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_selects_the_files_to_download(repository):
    names, expected = REPOSITORIES[repository]
    if "vocab.json" in expected:
        expected = expected | {"merges.txt", "preprocessor_config.json"}
    files = files_to_download(names)
    assert set(files) == expected | (TOKENIZER & set(names))
    assert len(files) == len(set(files))
    assert best_weights(files) == files[0] == best_weights(names)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["README.md", "config.json", "tokenizer.json"],
        ["README.md", "model.safetensors"],
        ["open_clip_pytorch_model.bin", "config.json"],
        ["unet/model.safetensors", "unet/config.json"],
    ],
)
def test_selects_nothing_without_a_checkpoint(names):
    assert files_to_download(names) == []


def test_refuses_paths_without_a_checkpoint(tmp_path, one_line):
    with pytest.raises(FileNotFoundError, match="no such file or directory") as caught:
        find_weights(tmp_path / "absent")
    one_line(caught, tmp_path / "absent")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="no checkpoint in it; expected one of") as caught:
        find_weights(tmp_path)
    one_line(caught, tmp_path, *(f"{weights} with {config}" for weights, config in CANDIDATES if weights != config))


def test_a_directory_is_not_a_file_of_weights(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no checkpoint in it"):
        find_weights(tmp_path)


def test_open_clip_weights_need_a_configuration(write, tmp_path, one_line):
    folder, model = write("open_clip")
    bare = tmp_path / "bare" / "open_clip_model.safetensors"
    bare.parent.mkdir()
    (folder / bare.name).rename(bare)
    with pytest.raises(CheckpointError, match=r"without open_clip_config\.json beside them") as caught:
        load(bare)
    one_line(caught, bare, "another activation gives wrong numbers", "config='ViT-B-32'", "'ViT-B-32-quickgelu'")
    (tmp_path / "ours.json").write_text(json.dumps({"format": "miniclip", **model.config.to_dict()}))
    for config in (model.config, folder / "open_clip_config.json", str(tmp_path / "ours.json")):
        assert same(load(bare, config=config), model)
        assert rounded(load(bare, config=config).config) == rounded(model.config)
    with pytest.raises(CheckpointError, match=r"visual\.conv1\.weight has the shape \(64, 3, 8, 8\), expected \(768"):
        load(bare, config="vit_b_32")
    with pytest.raises(ValueError, match=r"unknown preset or configuration 'vit_b_33'; did you mean 'vit_b_32'\?"):
        load(bare, config="vit_b_33")


@pytest.mark.parametrize("layout", ["miniclip", "transformers", "siglip"])
def test_other_weights_need_a_configuration(layout, write, one_line):
    folder, model = write(layout)
    (folder / "config.json").unlink()
    bare = folder / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no config\.json beside it, which describes the model") as caught:
        load(bare)
    one_line(caught, bare)
    loaded = load(bare, config=model.config)
    assert same(loaded, model)
    assert loaded.config == model.config


def test_the_given_configuration_takes_precedence(write):
    folder, model = write("open_clip")
    config = model.config.replace_image(activation="gelu")
    assert load(folder, config=config).config == config


@pytest.mark.parametrize(
    ("layout", "name", "content", "message"),
    [
        ("open_clip", "open_clip_config.json", "{", "not JSON"),
        ("open_clip", "open_clip_config.json", "[]", "a JSON list"),
        ("open_clip", "open_clip_config.json", "{}", "model_cfg.embed_dim"),
        ("open_clip", "open_clip_config.json", '{"model_cfg": []}', "model_cfg is a list"),
        ("open_clip", "open_clip_config.json", '{"model_cfg": {"embed_dim": 16, "vision_cfg": 3}}', "vision_cfg is a"),
        ("transformers", "config.json", "", "not JSON"),
        ("transformers", "config.json", "{}", "model_type is None"),
        ("transformers", "config.json", '{"format": "miniclip"}', "model_type is None"),
        ("transformers", "config.json", '{"model_type": "clip", "text_config": 3}', ""),
        ("transformers", "preprocessor_config.json", "3", "a JSON int"),
        ("transformers", "preprocessor_config.json", '{"size": 64}', "64"),
        ("transformers", "preprocessor_config.json", '{"size": {}}', "a size is {}"),
        ("miniclip", "config.json", '{"model_type": "clip"}', '"format": "miniclip"'),
    ],
)
def test_refuses_invalid_configurations(layout, name, content, message, write, one_line):
    folder, _ = write(layout)
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    one_line(caught, folder, message)


def test_refuses_an_invalid_configuration_argument(write, tmp_path, one_line):
    folder, _ = write("open_clip")
    file = tmp_path / "given.json"
    for content in ("{", '{"model_cfg": {"vision_cfg": {"ls_init_value": 1}}}', '{"model_type": "bert"}'):
        file.write_text(content)
        with pytest.raises(CheckpointError) as caught:
            load(folder, config=file)
        one_line(caught, file)


EXTREME = [10**19, 1e19, 10**400, -(10**400), 1e308, float("nan"), float("inf"), 100_000]
JUNK = st.sampled_from(
    [None, True, False, 0, -1, 7, 2.5, 1e9, "", "x", [], [1], [3, 3], ["x", 3], {}, {"x": 1}, *EXTREME]
)


def paths(value, path=()):
    """Yield the paths of all values in nested objects."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from paths(inner, (*path, key))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("open_clip", "open_clip_config.json"),
        ("transformers", "config.json"),
        ("siglip", "config.json"),
        ("transformers", "preprocessor_config.json"),
        ("miniclip", "config.json"),
    ],
)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:the position embeddings")
def test_junk_in_the_configuration_loads_or_is_refused_in_one_line(layout, name, data, made):
    folder = made(layout)
    good = json.loads((folder / f"good-{name}").read_text())
    *path, last = data.draw(st.sampled_from([path for path in paths(good) if path]))
    bad = copy.deepcopy(good)
    inner = bad
    for key in path:
        inner = inner[key]
    inner[last] = data.draw(JUNK)
    (folder / name).write_text(json.dumps(bad))
    try:
        assert isinstance(load(folder), CLIPModel)
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017 (most of them load or fail by chance)
        assert str(folder) in str(error)  # noqa: PT017
    finally:
        (folder / name).write_text(json.dumps(good))


@pytest.fixture
def made(write):
    """Return a layout's directory, written once, with copies of its configuration under other names."""
    folders = {}

    def made(layout):
        if layout not in folders:
            folders[layout], _ = write(layout)
            for file in list(folders[layout].glob("*.json")):
                (folders[layout] / f"good-{file.name}").write_text(file.read_text())
        return folders[layout]

    return made


def test_refuses_weights_of_another_model(write, one_line):
    folder, _ = write("open_clip")
    values = json.loads((folder / "open_clip_config.json").read_text())
    values["model_cfg"]["text_cfg"]["layers"] = 3
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    one_line(caught, folder, "transformer.resblocks.2.ln_1.weight is missing", "and 8 more")


def test_refuses_weights_of_an_unknown_layout(write, one_line):
    folder, _ = write("miniclip")
    write_tensors(folder / "model.safetensors", {"encoder.weight": torch.zeros(2), "encoder.bias": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="of an unknown layout") as caught:
        load(folder)
    one_line(caught, folder, "encoder.bias, encoder.weight")


@pytest.mark.parametrize("layout", CONFIGS)
def test_refuses_truncated_files(layout, write, one_line):
    folder, _ = write(layout)
    file = folder / FILES[layout]
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    one_line(caught, file)


def test_loads_weights_that_are_nan(write):
    folder, _ = write("open_clip")
    tensors, _ = read_tensors(folder / "open_clip_model.safetensors")
    tensors["positional_embedding"].fill_(float("nan"))
    write_tensors(folder / "open_clip_model.safetensors", tensors)
    assert load(folder).text.positions.isnan().all()
