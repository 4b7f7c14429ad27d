"""Adapters on disk: the same model again on its base, and a refusal of any other."""

import copy
import json

import pytest
import torch

import miniclip
from miniclip import cli
from miniclip.checkpoints.formats.safetensors import read_tensors, write_tensors
from miniclip.errors import CheckpointError
from miniclip.finetuning import add_lora, load_adapter, merge, save_adapter
from miniclip.finetuning.adapters import base_fingerprint
from miniclip.finetuning.lora import lora_layers
from miniclip.inference.model import CLIPModel
from tests.finetuning.test_lora import adapted
from tests.toys import make_model


@pytest.fixture
def saved(model, tmp_path):
    """A model with adapters, its base in `base/` and its adapters in `adapter/`."""
    miniclip.save(model, tmp_path / "base")
    adapted(model, ("q", "v", "out", "mlp"), rank=2, alpha=3.0)
    save_adapter(model, tmp_path / "adapter")
    return model.eval()


def embeddings(model):
    pixels = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
    return torch.cat([model.encode_image(pixels), model.encode_text(["a red circle", "a dog"])])


def assert_close(model, other):
    assert (embeddings(model) - embeddings(other)).abs().max() < 1e-6


def test_load_merges_an_adapter_into_its_base(saved, tmp_path):
    loaded = miniclip.load(tmp_path / "base", adapter=tmp_path / "adapter")
    assert not lora_layers(loaded)
    assert loaded.source is None
    assert_close(loaded, saved)
    assert (embeddings(loaded) - embeddings(miniclip.load(tmp_path / "base"))).abs().max() > 0.01


def test_convert_merges_an_adapter(saved, tmp_path, capsys):
    command = ["convert", str(tmp_path / "base"), str(tmp_path / "merged"), "--adapter"]
    assert cli.main([*command, str(tmp_path / "adapter")]) == 0
    assert_close(miniclip.load(tmp_path / "merged"), saved)
    assert cli.main([*command, str(tmp_path / "base"), "--overwrite"]) == 2
    assert "adapter" in capsys.readouterr().err


def test_export_merges_an_adapter(saved, tmp_path, monkeypatch, capsys):
    exported = []
    monkeypatch.setattr("miniclip.deployment.onnx_files.require_onnx", lambda: None)
    monkeypatch.setattr(miniclip, "export", lambda model, target, **options: exported.append(model))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "visual.onnx").touch()
    command = ["export", str(tmp_path / "base"), str(tmp_path / "onnx"), "--overwrite", "--adapter"]
    assert cli.main([*command, str(tmp_path / "adapter")]) == 0
    assert not lora_layers(exported[0])
    assert_close(exported[0], saved)
    assert cli.main([*command, str(tmp_path / "base")]) == 2
    assert "adapter" in capsys.readouterr().err


def test_load_adapter_continues_its_training(saved, tmp_path):
    loaded = load_adapter(miniclip.load(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(embeddings(loaded), embeddings(saved))
    expected = {name for name, parameter in saved.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == expected
    with pytest.raises(ValueError, match="has LoRA adapters already: merge them first"):
        load_adapter(loaded, tmp_path / "adapter")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_base_is_rounded_after_merging(saved, tmp_path, dtype):
    loaded = miniclip.load(tmp_path / "base", adapter=tmp_path / "adapter", dtype=dtype)
    expected = merge(copy.deepcopy(saved)).to(getattr(torch, dtype))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in expected.state_dict().items())


def test_save_and_export_write_merged_weights(saved, tmp_path):
    miniclip.save(saved, tmp_path / "saved")
    assert_close(miniclip.load(tmp_path / "saved"), saved)
    causal = make_model(
        saved.tokenizer, text=saved.config.replace_text(causal=True, pooling="end", width=64, heads=1).text
    )
    adapted(causal).eval()
    miniclip.export(causal, tmp_path / "transformers", layout="transformers")
    assert_close(miniclip.load(tmp_path / "transformers"), causal)
    assert lora_layers(causal)


def test_an_adapter_is_small_and_names_its_base(model, tmp_path):
    miniclip.save(model, tmp_path / "base")
    base = miniclip.load(tmp_path / "base")
    save_adapter(add_lora(base), tmp_path / "adapter")
    files = {path.name: path.stat().st_size for path in (tmp_path / "adapter").iterdir()}
    assert files.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    tensors, metadata = read_tensors(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(map(torch.numel, tensors.values())) == sum(p.numel() for p in base.parameters() if p.requires_grad)
    assert json.loads(metadata["miniclip"])["base"] == base_fingerprint(model.config, model.state_dict())
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "base"
    )


def test_refuses_another_base(saved, tmp_path, tokenizer):
    changed = make_model(tokenizer)
    changed.text.projection.weight.data[0, 0] += 1e-3
    miniclip.save(changed, tmp_path / "changed")
    with pytest.raises(
        CheckpointError, match=r"belongs to a base with the digest .*, and the weights of .*changed have"
    ):
        miniclip.load(tmp_path / "changed", adapter=tmp_path / "adapter")
    other = CLIPModel(saved.config.replace_image(activation="quickgelu"), tokenizer).eval()
    other.load_state_dict(miniclip.load(tmp_path / "base").state_dict())
    with pytest.raises(CheckpointError, match="belongs to a base"):  # the same weights compute something else
        load_adapter(other, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="belongs to a base"):  # merged twice
        load_adapter(merge(copy.deepcopy(saved)), tmp_path / "adapter")
    message = "was trained at image_size 16, and the model has 24: load the base with image_size=16"
    with pytest.warns(UserWarning, match="resized"), pytest.raises(CheckpointError, match=message):
        miniclip.load(tmp_path / "base", adapter=tmp_path / "adapter", image_size=24)


def test_adapter_of_a_resized_base(tmp_path, model):
    """Positions are resized again at each load; they do not belong to the digest."""
    miniclip.save(model, tmp_path / "base")
    with pytest.warns(UserWarning, match="resized"):
        base = miniclip.load(tmp_path / "base", image_size=24)
    save_adapter(add_lora(base), tmp_path / "adapter")
    with pytest.warns(UserWarning, match="resized"):
        loaded = miniclip.load(tmp_path / "base", adapter=tmp_path / "adapter", image_size=24)
    assert torch.equal(loaded.image.positions, base.image.positions)
    with pytest.raises(CheckpointError, match="was trained at image_size 24, and the model has 16"):
        miniclip.load(tmp_path / "base", adapter=tmp_path / "adapter")


def test_refuses_incomplete_and_foreign_adapters(saved, tmp_path):
    folder = tmp_path / "adapter"
    load = lambda: miniclip.load(tmp_path / "base", adapter=folder)  # noqa: E731
    with pytest.raises(FileNotFoundError, match=r"base: no adapter_config\.json there"):
        miniclip.load(tmp_path / "base", adapter=tmp_path / "base")
    with pytest.raises(CheckpointError, match="a peft adapter, which is not a whole model: if miniclip wrote it"):
        miniclip.load(folder)
    with pytest.raises(ValueError, match="fresh weights: remove config, revision, subfolder, prefix and adapter"):
        miniclip.load("bert_vit_tiny", pretrained=False, adapter=folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    for changes, message in (
        ({"use_dora": True}, "use_dora is True, expected False: apply it to its base with peft"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
        ({"r": 3}, r"have the shapes .*; r is 3"),
        ({"r": "4"}, "found r '4'"),
        ({"lora_alpha": None}, "lora_alpha None, expected numbers"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(CheckpointError, match=message):
            load()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    path = folder / "adapter_model.safetensors"
    tensors, metadata = read_tensors(path)
    write_tensors(path, {**tensors, "base_model.model.logit_scale": torch.ones(1)}, metadata)
    with pytest.raises(CheckpointError, match=r"base_model\.model\.logit_scale has no place in the model"):
        load()
    half = {name: value for name, value in tensors.items() if "lora_B" not in name or "k_proj" in name}
    write_tensors(path, half, metadata)
    with pytest.raises(CheckpointError, match="has no place in the model"):
        load()
    write_tensors(path, tensors)
    with pytest.raises(CheckpointError, match="no digest of the base model in its metadata"):
        load()


def test_refuses_to_save_what_an_adapter_does_not_hold(model, tmp_path):
    with pytest.raises(ValueError, match=r"has no LoRA adapters; miniclip\.save"):
        save_adapter(model, tmp_path / "a")
    add_lora(model, towers=["image"])
    with pytest.raises(ValueError, match=r"\d+ other parameters of the model are trained, such as log_scale"):
        save_adapter(model, tmp_path / "a")
    model.text.requires_grad_(False)
    add_lora(model, towers=["text"], rank=2)
    with pytest.raises(ValueError, match="several ranks and alphas"):
        save_adapter(model, tmp_path / "a")
