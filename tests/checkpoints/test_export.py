"""Export: refusals, the check of the written files, atomicity, and results of other libraries."""

import dataclasses
import json

import pytest
import torch

from miniclip.checkpoints import export as module
from miniclip.checkpoints.export import LAYOUTS, export
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError
from miniclip.hub import load, save
from miniclip.inference.model import CLIPModel
from miniclip.tokenizer.library import LibraryTokenizer

FILES = {
    "openai": {"model.pt"},
    "open_clip": {"open_clip_model.safetensors", "open_clip_config.json"},
    "transformers": {"model.safetensors", "config.json", "preprocessor_config.json"},
}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
WITH_SETTINGS = ("open_clip", "transformers")
TEXTS = ["a red circle above a blue square", "a dog", "A green  triangle!", ""]


def build(config, tokenizer=None):
    model = CLIPModel(config, tokenizer).initialise().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def config():
    """Return a model that all layouts can represent."""
    return CLIPConfig(
        ImageConfig(16, 4, 64, 2, 1, activation="quickgelu"),
        TextConfig(12, 99, 64, 2, 1, activation="quickgelu", causal=True, pooling="end", end_id=None),
        8,
    )


@pytest.fixture
def model(config):
    return build(config)


@pytest.fixture
def model_with_tokenizer(config, toy_tokenizer):
    """Return a model with a tokenizer other than OpenAI's."""
    text = {"vocab_size": toy_tokenizer.vocab_size, "end_id": toy_tokenizer.end_id, "context_length": 20}
    return build(config.replace_text(**text), toy_tokenizer)


ATTENTION = {"class_token": False, "norm_before": False, "patch_bias": True, "pooling": "attention"}
SIGLIP = CLIPConfig(
    ImageConfig(16, 4, 64, 2, 1, projection="none", **ATTENTION),
    TextConfig(12, 99, 64, 2, 1, padding="attended", pooling="last", projection="bias"),
    64,
    logit_bias=-10.0,
    resize="squash",
    crop_rounding="floored",
)


def names(path):
    return {file.name for file in path.iterdir()}


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_writes_the_files_of_the_layout(layout, model, tmp_path):
    export(model, tmp_path / "new" / "folder", layout=layout)
    assert names(tmp_path / "new" / "folder") == FILES[layout]
    assert {p.name for p in tmp_path.iterdir()} == {"new"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_keeps_the_precision(layout, dtype, model, tmp_path):
    model = model.to(dtype)
    export(model, str(tmp_path), layout=layout)
    loaded = load(tmp_path, dtype=dtype).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
    assert {value.dtype for value in loaded.values()} == {dtype}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_does_not_change_the_model(layout, model, tmp_path):
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    chance = torch.get_rng_state()
    export(model, tmp_path, layout=layout)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_over_the_files_it_was_loaded_from(layout, model, tmp_path):
    export(model, tmp_path, layout=layout)
    opened = load(tmp_path)
    opened.log_scale.data.add_(0.25)
    export(opened, tmp_path, layout=layout, overwrite=True)
    again = load(tmp_path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in opened.state_dict().items())
    assert again.log_scale.item() != model.log_scale.item()


def test_siglip_of_any_size_exports_to_transformers_only(tmp_path):
    model = build(SIGLIP)
    export(model, tmp_path / "export", layout="transformers")
    assert json.loads((tmp_path / "export" / "config.json").read_text())["model_type"] == "siglip"
    for layout, message in (
        ("openai", "image.class_token is False, there True"),
        ("open_clip", "floored|none of timm's equals it"),
    ):
        with pytest.raises(ValueError, match=message):
            export(model, tmp_path / layout, layout=layout)
        assert not (tmp_path / layout).exists()
    with pytest.raises(ValueError, match="none of timm's equals it"):
        export(build(dataclasses.replace(SIGLIP, crop_rounding="rounded")), tmp_path / "open_clip", layout="open_clip")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_refuses_bert_style_models(layout, config, tmp_path, one_line):
    with pytest.raises(ValueError, match=r"bidirectional|text\.causal is False") as caught:
        export(build(config.replace_text(causal=False, pooling="first")), tmp_path / "export", layout=layout)
    one_line(caught)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("openclip", r"unknown layout 'openclip'; did you mean 'open_clip'\?"),
        ("transformer", r"unknown layout 'transformer'; did you mean 'transformers'\?"),
        ("OpenAI", "unknown layout 'OpenAI'"),
        ("", "unknown layout ''"),
        ("onnx", r"unknown layout 'onnx'.*openai, open_clip, transformers"),
    ],
)
def test_refuses_an_unknown_layout(layout, message, model, tmp_path, one_line):
    with pytest.raises(ValueError, match=message) as caught:
        export(model, tmp_path / "export", layout=layout)
    one_line(caught)
    assert not (tmp_path / "export").exists()


def corrupt(monkeypatch, change):
    """Change the tensors that the conversion writes."""
    original = module.invert

    def invert(*arguments):
        tensors = {key: value.clone() for key, value in original(*arguments).items()}
        change(tensors)
        return tensors

    monkeypatch.setattr(module, "invert", invert)


CHANGES = {
    "a patch's weight": ("visual.conv1.weight", 0),
    "a projection turned": ("visual.proj", None),
    "a text block": ("transformer.resblocks.1.mlp.c_fc.bias", 3),
    "the scale": ("logit_scale", 0),
    "the bias": ("logit_bias", 0),
    "a token outside of the check's texts": ("token_embedding.weight", 0),
    "not a number": ("ln_final.weight", 5),
}


@pytest.mark.parametrize("case", CHANGES)
def test_detects_wrong_weights_in_the_written_files(case, config, tmp_path, monkeypatch, one_line):
    key, index = CHANGES[case]

    def change(tensors):
        flat = tensors[key].view(-1)
        if index is None:
            tensors[key] = tensors[key].flip(0)
        else:
            flat[index] = float("nan") if case == "not a number" else flat[index] + 0.5

    model = build(dataclasses.replace(config, logit_bias=-10.0))
    export(model, tmp_path / "old", layout="open_clip")
    before = contents(tmp_path / "old")
    corrupt(monkeypatch, change)
    for folder in ("old", "new"):
        with pytest.raises(CheckpointError, match="the export was checked and refused") as caught:
            export(model, tmp_path / folder, layout="open_clip", overwrite=True)
        one_line(caught)
    assert contents(tmp_path / "old") == before
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_detects_a_wrong_configuration_in_the_written_files(layout, model, tmp_path, monkeypatch, one_line):
    original = module._export_plan

    def export_plan(*arguments):
        plan = original(*arguments)
        text = (
            json.dumps(plan.config_files).replace("quick_gelu", "gelu").replace('"gelu": true', '"quick_gelu": false')
        )
        return plan._replace(config_files=json.loads(text))

    monkeypatch.setattr(module, "_export_plan", export_plan)
    if layout == "openai":  # which has no configuration
        export(model, tmp_path, layout=layout)
        return
    with pytest.raises(CheckpointError, match="images differ by") as caught:
        export(model, tmp_path, layout=layout)
    one_line(caught)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failed_export_keeps_the_earlier_one(layout, error, model, config, tmp_path, monkeypatch):
    export(model, tmp_path, layout=layout)
    before = contents(tmp_path)

    def fail(*_):
        raise error

    monkeypatch.setattr(module, "_verify", fail)  # after all files have been written
    with pytest.raises(type(error)):
        export(build(config), tmp_path, layout=layout, overwrite=True)
    assert contents(tmp_path) == before


def test_keeps_other_files_of_the_directory(model, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "config.json").write_text("{}")
    export(model, tmp_path, layout="transformers", overwrite=True)
    assert names(tmp_path) == FILES["transformers"] | {"README.md"}
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("layout", WITH_SETTINGS)
def test_exports_the_tokenizer(layout, model_with_tokenizer, tmp_path):
    export(model_with_tokenizer, tmp_path, layout=layout)
    assert names(tmp_path) == FILES[layout] | TOKENIZER
    loaded = load(tmp_path)
    assert loaded.tokenizer.vocab == model_with_tokenizer.tokenizer.vocab
    torch.testing.assert_close(loaded.encode_text(TEXTS), model_with_tokenizer.encode_text(TEXTS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", WITH_SETTINGS)
def test_removes_the_tokenizer_of_an_earlier_export(layout, model_with_tokenizer, tmp_path):
    export(model_with_tokenizer, tmp_path, layout=layout)
    model_with_tokenizer.tokenizer = None
    export(model_with_tokenizer, tmp_path, layout=layout, overwrite=True)
    assert names(tmp_path) == FILES[layout]
    assert load(tmp_path).tokenizer is None


@pytest.mark.parametrize("layout", WITH_SETTINGS)
def test_removes_the_tokenizer_files_of_other_programs(layout, model_with_tokenizer, tmp_path):
    for name in ("special_tokens_map.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_text('{"pad_token": "!"}')
    export(model_with_tokenizer, tmp_path, layout=layout, overwrite=True)
    assert names(tmp_path) == FILES[layout] | TOKENIZER


def test_saved_tokenizer_does_not_use_files_of_another_checkpoint(tmp_path):
    library = pytest.importorskip("tokenizers")
    words = library.Tokenizer(library.models.WordLevel({"<unk>": 0, "</s>": 1, "<pad>": 2, "dog": 3}, "<unk>"))
    words.add_special_tokens(["<pad>", "</s>"])
    tokenizer = LibraryTokenizer(json.loads(words.to_str()), pad_token="<pad>")
    text = dataclasses.replace(SIGLIP.text, vocab_size=4, end_id=None)
    model = build(dataclasses.replace(SIGLIP, text=text), tokenizer)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text('{"pad_token": "</s>"}')
    save(model, tmp_path, overwrite=True)
    loaded = load(tmp_path)
    assert torch.equal(loaded.tokenizer("dog", 5, pad=True), tokenizer("dog", 5, pad=True))
    assert torch.equal(loaded.encode_text("dog"), model.encode_text("dog"))


def test_openais_weights_do_not_use_the_configuration_of_others(model, config, tmp_path):
    export(build(config.replace_image(activation="gelu").replace_text(activation="gelu")), tmp_path, layout="open_clip")
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "epoch_1.safetensors")
    with pytest.raises(
        FileExistsError, match=r"holds open_clip_config\.json, which would be used with the new weights"
    ):
        export(model, tmp_path, layout="openai", overwrite=True)
    export(model, tmp_path / "own", layout="openai")
    (tmp_path / "own" / "model.pt").rename(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"OpenAI's own weights, which have QuickGELU; .* has gelu: move"):
        load(tmp_path / "model.pt")


def test_openai_refuses_another_tokenizer(model_with_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="OpenAI's code contains its own vocabulary"):
        export(model_with_tokenizer, tmp_path / "export", layout="openai")
    assert not (tmp_path / "export").exists()


def test_open_clip_config_names_the_tokenizer(model_with_tokenizer, tmp_path):
    for repo, expected in ((None, "tokenizer.json"), ("org/name", "org/name")):
        export(model_with_tokenizer, tmp_path, layout="open_clip", overwrite=True, repo=repo)
        settings = json.loads((tmp_path / "open_clip_config.json").read_text())
        assert settings["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == expected
    model_with_tokenizer.tokenizer = None
    export(model_with_tokenizer, tmp_path, layout="open_clip", overwrite=True)
    assert "hf_tokenizer_name" not in (tmp_path / "open_clip_config.json").read_text()


@pytest.mark.peer
@torch.no_grad()
def test_open_clip_embeds_texts_equally(model_with_tokenizer, tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    export(model_with_tokenizer, tmp_path, layout="open_clip")
    peer = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    expected = peer.encode_text(ids, normalize=True)
    torch.testing.assert_close(expected, model_with_tokenizer.encode_text(TEXTS), rtol=0, atol=2e-5)


@pytest.mark.peer
@torch.no_grad()
def test_transformers_embeds_texts_equally(model_with_tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    export(model_with_tokenizer, tmp_path, layout="transformers")
    peer = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}  # transformers 4 would add token_type_ids by itself
    loaded = peer(pixel_values=torch.zeros(1, 3, 16, 16), **batch).text_embeds
    torch.testing.assert_close(loaded, model_with_tokenizer.encode_text(TEXTS), rtol=0, atol=2e-5)


def test_round_trip_through_all_layouts(model, tmp_path):
    """Only the crop's rounding changes, which transformers does in its own way."""
    loaded = model
    for i, layout in enumerate((*LAYOUTS, "miniclip")):
        folder = tmp_path / f"{i}"
        if layout == "miniclip":
            save(loaded, folder)
        else:
            export(loaded, folder, layout=layout)
        loaded = load(folder)
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    config = dataclasses.replace(
        loaded.config, crop_rounding=model.config.crop_rounding, logit_scale=model.config.logit_scale
    )
    assert config == model.config


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_wrapped_models(layout, model, tmp_path):
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    model.image = torch.compile(model.image, backend="eager")  # the check of the files calls it; inductor takes longer
    export(torch.nn.DataParallel(model), tmp_path, layout=layout)
    assert all(torch.equal(value, expected[key]) for key, value in load(tmp_path).state_dict().items())


@pytest.mark.peer
@torch.no_grad()
def test_the_tokenizer_of_a_model_that_attends_to_padding_gives_no_mask(toy_tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    file = tmp_path / "words" / "tokenizer.json"
    toy_tokenizer.save(file)
    values = json.loads(file.read_text())
    values["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0,
        "pad_token": next(token for token, i in toy_tokenizer.vocab.items() if i == 1),
    }  # fmt: skip
    file.write_text(json.dumps(values))
    config = SIGLIP.replace_text(vocab_size=toy_tokenizer.vocab_size, end_id=toy_tokenizer.end_id)
    model = build(config, LibraryTokenizer.load(file))
    export(model, tmp_path / "export", layout="transformers")
    peer = transformers.SiglipModel.from_pretrained(tmp_path / "export").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    batch = tokenizer(["a dog", "a red circle"], padding="max_length", truncation=True, return_tensors="pt")
    assert set(batch) == {"input_ids"}
    loaded = torch.nn.functional.normalize(peer.get_text_features(**batch).pooler_output, dim=-1)
    torch.testing.assert_close(loaded, model.encode_text(batch["input_ids"]), rtol=0, atol=2e-5)
