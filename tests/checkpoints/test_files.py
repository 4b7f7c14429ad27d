"""Folders that other programs write: shards, variants, other names, parents of checkpoints, subfolders."""

import json
import shutil
import warnings

import pytest
import torch

from miniclip.checkpoints.export import export
from miniclip.checkpoints.formats.safetensors import read_tensors
from miniclip.checkpoints.native import save_checkpoint
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError
from miniclip.hub import find_checkpoint, load
from miniclip.inference.model import CLIPModel

CONFIG = CLIPConfig(
    ImageConfig(16, 8, 64, 1, 1, activation="quickgelu"),
    TextConfig(8, 50, 64, 1, 1, activation="quickgelu", causal=True, pooling="end"),
    16,
    crop_rounding="floored",
)


@pytest.fixture
def model():
    return CLIPModel(CONFIG).initialise().eval()


def write(model, folder, layout="transformers"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning of the crop's rounding
        export(model, folder, layout=layout)
    return folder


def same(model, other):
    state, expected = model.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


@pytest.mark.peer
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", [False, True])
def test_variants_and_shards_of_transformers(variant, shards, model, tmp_path):
    transformers = pytest.importorskip("transformers")
    peer = transformers.CLIPModel.from_pretrained(write(model, tmp_path / "exported"))
    options = {"max_shard_size": "40KB"} if shards else {}
    peer.save_pretrained(tmp_path / "saved", variant=variant, **options)
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    expected = {
        (None, False): "model.safetensors",
        (None, True): "model.safetensors.index.json",
        ("fp16", False): "model.fp16.safetensors",
        ("fp16", True): "model.safetensors.index.fp16.json",
    }
    assert expected[variant, shards] in names
    assert same(load(tmp_path / "saved"), model)


def split_pickle(folder, count=3):
    """Write the weights of a folder as sharded pickles, as transformers 4 did, in place of the safetensors."""
    tensors, _ = read_tensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(count):
        name = f"pytorch_model-{i + 1:05d}-of-{count:05d}.bin"
        part = {key: tensors[key] for key in sorted(tensors)[i::count]}
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return index


@pytest.mark.peer
def test_sharded_pickles_open_as_in_transformers(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write(model, tmp_path / "sharded")
    split_pickle(folder)
    peer = transformers.CLIPModel.from_pretrained(folder)
    assert torch.equal(peer.visual_projection.weight, model.image.projection.weight)
    assert same(load(folder), model)
    assert same(load(folder / "pytorch_model.bin.index.json"), model)


def test_refuses_sharded_pickles_that_do_not_fit_the_index(model, tmp_path, one_line):
    folder = write(model, tmp_path / "sharded")
    index = split_pickle(folder)
    file = folder / "pytorch_model.bin.index.json"
    first = folder / "pytorch_model-00001-of-00003.bin"
    content = first.read_bytes()
    first.unlink()
    with pytest.raises(
        CheckpointError, match=r"pytorch_model-00001-of-00003\.bin is named in it, but cannot be read \(no such file"
    ) as e:
        load(folder)
    one_line(e, file)
    first.write_bytes(content[:100])
    with pytest.raises(CheckpointError, match="not a whole file") as caught:
        load(folder)
    one_line(caught, first)
    shutil.copy(folder / "pytorch_model-00002-of-00003.bin", first)
    with pytest.raises(CheckpointError, match=r"is in 'pytorch_model-00001-of-00003\.bin', expected") as caught:
        load(folder)
    one_line(caught, file)
    first.write_bytes(content)
    for name in ("../w.bin", "/etc/passwd", "w.safetensors", 3):
        weight_map = {**index["weight_map"], "logit_scale": name}
        file.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=r"expected the name of a \.bin file beside it"):
            load(folder)


@pytest.mark.parametrize("name", ["w.safetensors", "epoch_3.pt", "epoch_3.pth", "my weights.bin", "last.ckpt"])
def test_open_clip_weights_of_any_name(name, model, tmp_path):
    folder = write(model, tmp_path / "local-dir", "open_clip")
    file = folder / "open_clip_model.safetensors"
    if name.endswith("safetensors"):
        file.rename(folder / name)
    else:
        torch.save(read_tensors(file)[0], folder / name)
        file.unlink()
    torch.save({}, folder / "optimizer.pt")
    assert same(load(folder), model)
    assert find_checkpoint(folder) == folder


@pytest.mark.peer
def test_a_single_file_is_also_open_clips_choice(model, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    folder = write(model, tmp_path / "local-dir", "open_clip")
    (folder / "open_clip_model.safetensors").rename(folder / "mine.safetensors")
    peer = open_clip.create_model(f"local-dir:{folder}").eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = peer.encode_image(pixels, normalize=True)
    torch.testing.assert_close(load(folder).encode_image(pixels), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("layout", "names"), [
    ("open_clip", ["a.safetensors", "b.safetensors"]), ("open_clip", ["epoch_1.pt", "epoch_2.pt"]),
    ("transformers", ["model.fp16.safetensors", "model.ema.safetensors"]),
])  # fmt: skip
def test_several_files_are_refused(layout, names, model, tmp_path, one_line):
    folder = write(model, tmp_path / "folder", layout)
    file = next(folder.glob("*.safetensors"))
    for name in names:
        shutil.copy(file, folder / name)
    file.unlink()
    with pytest.raises(
        CheckpointError, match=f"several files of weights, {', '.join(sorted(names))}: load one"
    ) as caught:
        load(folder)
    one_line(caught, folder)
    if names[0].endswith(".safetensors"):
        assert same(load(folder / names[0]), model)


def test_the_parent_of_a_trainers_checkpoints(model, tmp_path):
    """The Trainer of transformers writes checkpoint-500/ and checkpoint-1000/, of which 1000 is the last."""
    old = CLIPModel(CONFIG).initialise().eval()
    write(old, tmp_path / "checkpoint-500")
    write(model, tmp_path / "checkpoint-1000")
    torch.save({}, tmp_path / "checkpoint-1000" / "optimizer.pt")
    (tmp_path / "checkpoint-2000").mkdir()  # stopped while it was written
    (tmp_path / "runs").mkdir()
    with pytest.warns(UserWarning, match="loaded checkpoint-1000, the last of its checkpoints"):
        assert same(load(tmp_path), model)
    for file in write(old, tmp_path / "saved").iterdir():  # by trainer.save_model()
        file.rename(tmp_path / file.name)
    assert same(load(tmp_path), old)


def test_the_parent_of_adapters_is_refused(tmp_path, one_line):
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="a peft adapter") as caught:
        load(tmp_path)
    one_line(caught, tmp_path / "checkpoint-10")


def test_the_parent_of_other_checkpoints_names_them(model, tmp_path, one_line):
    for name in ("first", "second"):
        save_checkpoint(model, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="its folders first, second hold weights: load one of them") as caught:
        load(tmp_path)
    one_line(caught, tmp_path)


@pytest.mark.parametrize("old", [True, False])
def test_a_folder_of_sentence_transformers(old, model, tmp_path, one_line):
    folder = write(model, tmp_path / "0_CLIPModel" if old else tmp_path)
    modules = [
        {"idx": 0, "name": "0", "path": folder.name if old else "", "type": "sentence_transformers.models.CLIPModel"}
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert same(load(tmp_path), model)
    if old:
        (tmp_path / "1_Dense").mkdir()
        with pytest.raises(CheckpointError, match="1_Dense: a layer after 0_CLIPModel, which a CLIP does not have"):
            load(tmp_path)
        assert same(load(tmp_path, subfolder="0_CLIPModel"), model)


def test_a_subfolder(model, tmp_path, one_line):
    save_checkpoint(model, tmp_path / "parts" / "clip")
    for subfolder in ("parts/clip", "parts/clip/"):
        assert same(load(tmp_path, subfolder=subfolder), model)
    for subfolder, kind in (
        ("absent", FileNotFoundError),
        ("../parts", ValueError),
        ("/tmp", ValueError),
        ("", ValueError),
    ):
        with pytest.raises(kind, match="absent" if kind is FileNotFoundError else "subfolder is "):
            load(tmp_path, subfolder=subfolder)
    with pytest.raises(FileNotFoundError, match="no folder clip in it"):
        load(tmp_path / "parts" / "clip" / "config.json", subfolder="clip")
    with pytest.raises(ValueError, match="remove config, revision, subfolder, prefix and adapter"):
        load("bert_vit_tiny", pretrained=False, subfolder="clip")


@pytest.mark.parametrize("folder", ["0_CLIPModel", "checkpoint-20", "best"])
def test_a_folder_of_a_repository(folder, model, tmp_path, hub_server):
    write(model, tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    other = {f"other/{name}": b"not needed" for name in files}
    hub_server.repos["me/mine"] = {
        "README.md": b"",
        **other,
        **{f"{folder}/{name}": data for name, data in files.items()},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(load("me/mine"), model)
    assert same(load("me/mine", subfolder=folder), model)
    assert not [request for request in hub_server.requests if "/other/" in request]
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in the subfolder absent of this repository"):
        load("me/mine", subfolder="absent")


def test_sharded_pickles_of_a_repository(model, tmp_path, hub_server):
    folder = write(model, tmp_path / "model")
    split_pickle(folder)
    hub_server.repos["me/mine"] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert same(load("me/mine"), model)


def test_a_folder_of_weights_without_a_configuration_names_them(model, tmp_path, one_line):
    folder = write(model, tmp_path / "checkpoints", "open_clip")
    (folder / "open_clip_config.json").unlink()
    (folder / "open_clip_model.safetensors").rename(folder / "epoch_32.safetensors")
    with pytest.raises(
        FileNotFoundError, match=r"epoch_32\.safetensors have no configuration: load one with config="
    ) as e:
        load(folder)
    one_line(e, folder)


@pytest.mark.parametrize("option", ["subfolder", "prefix"])
def test_options_of_another_type_are_refused(option, model, tmp_path):
    save_checkpoint(model, tmp_path)
    with pytest.raises(TypeError, match=f"{option}: found .*; expected a string"):
        load(tmp_path, **{option: 3})
