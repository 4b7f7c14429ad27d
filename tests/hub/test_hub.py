"""Models on a fake Hub: loading, offline use, tokenizers that are fetched later, and pushing."""

import json

import pytest
import torch
from huggingface_hub import constants

import miniclip
from miniclip.checkpoints.export import export
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.hub import fresh, load, push_to_hub, save, tokenizers
from miniclip.hub.registry import OPENAI_REPO, PRETRAINED
from miniclip.inference.model import CLIPModel

OPENAI_CONFIG = CLIPConfig(
    ImageConfig(16, 8, 64, 1, 1, activation="quickgelu"),
    TextConfig(12, 600, 64, 1, 1, activation="quickgelu", causal=True, pooling="end"),
    32,
)


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(toy_tokenizer) -> CLIPModel:
    return fresh(OPENAI_CONFIG, toy_tokenizer).eval()


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(first: CLIPModel, second: CLIPModel) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_loads_each_layout(model, hub_server, tmp_path):
    save(model, tmp_path / "miniclip")
    export(model, tmp_path / "open_clip", layout="open_clip")
    export(model, tmp_path / "transformers", layout="transformers")
    for layout in ("miniclip", "open_clip", "transformers"):
        repo = f"someone/{layout}"
        hub_server.repos[repo] = {**files(tmp_path / layout), "README.md": b"a card", "flax_model.msgpack": b"1" * 99}
        loaded = load(repo)
        assert same(loaded, model), layout
        assert torch.equal(loaded.encode_text("a red dog"), model.encode_text("a red dog"))
        assert not [r for r in hub_server.requests if "flax" in r or "README" in r]  # not needed


def test_loads_a_registered_name(model, hub_server, tmp_path, monkeypatch):
    save(model, tmp_path / "model")
    hub_server.repos["openai/clip-vit-base-patch16"] = files(tmp_path / "model")
    assert same(load("vit_b_16"), model)


def test_revision_and_cache_dir(model, hub_server, tmp_path):
    save(model, tmp_path / "model")
    hub_server.repos["me/mine"] = files(tmp_path / "model")
    load("me/mine", cache_dir=tmp_path / "cache")
    commit = next((tmp_path / "cache" / "models--me--mine" / "snapshots").iterdir()).name
    with torch.no_grad():
        model.log_scale.fill_(1.25)
    save(model, tmp_path / "model", overwrite=True)
    hub_server.repos["me/mine"] = files(tmp_path / "model")
    assert float(load("me/mine").log_scale) == 1.25
    assert float(load("me/mine", revision=commit).log_scale) != 1.25
    with pytest.raises(FileNotFoundError, match="no-such-branch"):
        load("me/mine", revision="no-such-branch")


def test_cached_models_load_without_a_network(model, hub_server, tmp_path):
    save(model, tmp_path / "model")
    hub_server.repos["me/mine"] = files(tmp_path / "model")
    load("me/mine")
    hub_server.close()
    assert same(load("me/mine"), model)
    with pytest.raises(ConnectionError, match=r"me/other is not a local path; as a repository on the Hub: me/other"):
        load("me/other")


def test_a_cache_that_another_library_filled(model, tmp_path, hub_server, monkeypatch):
    export(model, tmp_path / "model", layout="transformers")
    folder = tmp_path / "cache" / "models--me--mine"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "blobs").mkdir()
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for name, content in files(tmp_path / "model").items():
        (folder / "blobs" / name).write_bytes(content)
        (snapshot / name).symlink_to(folder / "blobs" / name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(load("me/mine", cache_dir=tmp_path / "cache"), model)


def test_a_repository_without_a_model(hub_server):
    hub_server.repos["me/resnet"] = {"config.json": b"{}", "weights.h5": b"1"}
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint in this repository .* its files: config\.json, weights\.h5"
    ):
        load("me/resnet")


def test_no_such_repository(hub_server):
    with pytest.raises(FileNotFoundError, match="me/typo is not a local path; as a repository on the Hub") as caught:
        load("me/typo")
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_fetched_at_the_first_text(model, hub_server, tmp_path, toy_tokenizer, monkeypatch):
    """The size of the vocabulary identifies OpenAI's tokenizer."""
    monkeypatch.setattr(tokenizers, "OPENAI_VOCAB_SIZE", toy_tokenizer.vocab_size)
    model = fresh(OPENAI_CONFIG.replace_text(
        vocab_size=toy_tokenizer.vocab_size, end_id=toy_tokenizer.end_id)).eval()  # fmt: skip
    export(model, tmp_path / "bare", layout="openai")
    toy_tokenizer.save(tmp_path / "openai")
    hub_server.repos[OPENAI_REPO] = {**files(tmp_path / "openai"), "model.safetensors": b"not needed"}
    loaded = load(tmp_path / "bare" / "model.pt")
    pixels, ids = torch.randn(1, 3, 16, 16), toy_tokenizer("a red dog")
    assert torch.equal(loaded.encode_image(pixels), model.encode_image(pixels))
    assert torch.equal(loaded.encode_text(ids), model.encode_text(ids))
    assert not hub_server.requests
    assert torch.equal(loaded.encode_text("a red dog"), model.encode_text(ids))
    assert hub_server.requests
    assert not [request for request in hub_server.requests if "model.safetensors" in request]


def test_a_checkpoint_without_a_tokenizer_loads_without_a_network(hub_server, tmp_path, toy_tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizers, "OPENAI_VOCAB_SIZE", toy_tokenizer.vocab_size)
    config = OPENAI_CONFIG.replace_text(vocab_size=toy_tokenizer.vocab_size, end_id=toy_tokenizer.end_id)
    model = fresh(config).eval()
    export(model, tmp_path / "bare", layout="openai")
    hub_server.close()
    loaded = load(tmp_path / "bare")
    assert loaded.encode_image(torch.randn(1, 3, 16, 16)).shape == (1, 32)
    assert loaded.encode_text(toy_tokenizer("a red dog")).shape == (1, 32)
    with pytest.raises(ConnectionError, match=r"has no tokenizer.*tokenizer='tokenizer\.json'") as caught:
        loaded.encode_text("a red dog")
    assert "\n" not in str(caught.value)
    toy_tokenizer.save(tmp_path / "words.json")
    given = load(tmp_path / "bare", tokenizer=tmp_path / "words.json")
    assert torch.equal(given.encode_text("a red dog"), loaded.encode_text(toy_tokenizer("a red dog")))


def test_push_then_load(model, hub_server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    metrics = {"text_to_image": {"R@1": 31.4}, "image_to_text": {"R@1": 33.4}}
    address = push_to_hub(model, "me/mine", metrics=metrics, message="the first")
    assert address.endswith("/me/mine")
    assert hub_server.messages == ["the first"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= hub_server.repos["me/mine"].keys()
    card = hub_server.repos["me/mine"]["README.md"].decode()
    assert "miniclip.load('me/mine')" in card
    assert "31.4" in card
    again = miniclip.load("me/mine")
    assert same(again, model)
    assert again.encode_text("a dog").shape == (1, 32)


def test_push_for_open_clip(model, hub_server, monkeypatch):
    """The settings of open_clip name the repository of the tokenizer."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    push_to_hub(model, "me/open-clip", layout="open_clip")
    settings = json.loads(hub_server.repos["me/open-clip"]["open_clip_config.json"])
    assert settings["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "me/open-clip"
    assert same(load("me/open-clip"), model)


OTHERS = {"README.md": b"old", ".gitattributes": b"mine", "onnx/model.safetensors": b"mine", "notes.json": b"mine"}
STALE = (
    "open_clip_pytorch_model.bin", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
    "pytorch_model.fp16-00001-of-00002.bin", "model.fp16.safetensors", "vocab.json",
)  # fmt: skip


@pytest.mark.parametrize("revision", [None, "try"])
@pytest.mark.parametrize("layout", ["miniclip", "openai", "transformers"])
def test_a_push_replaces_the_checkpoint_of_another_layout(hub_server, monkeypatch, layout, revision):
    """`load` would open the earlier weights, which come first."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    old, model = (fresh(OPENAI_CONFIG).eval() for _ in range(2))
    assert not same(old, model)
    push_to_hub(old, "me/mine", layout="open_clip")
    hub_server.repos["me/mine"] |= OTHERS | dict.fromkeys(STALE, b"old")
    before = dict(hub_server.repos["me/mine"])
    push_to_hub(model, "me/mine", layout=layout, revision=revision)
    assert len(hub_server.messages) == 2  # one commit a push
    names = hub_server.files("me/mine", revision or "main").keys()
    push_to_hub(model, "me/new", layout=layout)
    assert names == hub_server.repos["me/new"].keys() | OTHERS.keys()
    assert same(load("me/mine", revision=revision), model)
    assert revision is None or hub_server.repos["me/mine"] == before


def test_a_push_without_a_tokenizer_deletes_the_earlier_one(model, hub_server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    push_to_hub(model, "me/mine")
    assert "tokenizer.json" in hub_server.repos["me/mine"]
    model.tokenizer = None
    push_to_hub(model, "me/mine")
    assert "tokenizer.json" not in hub_server.repos["me/mine"]
    assert load("me/mine").tokenizer is None


def test_push_errors(model, hub_server, monkeypatch):
    with pytest.raises(ValueError, match=r"unknown layout 'openclip'; did you mean 'open_clip'\?"):
        push_to_hub(model, "me/mine", layout="openclip")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    with pytest.raises(PermissionError, match="hf auth login"):
        push_to_hub(model, "me/mine")
    assert "me/mine" not in hub_server.repos


def test_the_registry():
    assert all(repo.count("/") == 1 and description for repo, description in PRETRAINED.values())
    assert len({repo for repo, _ in PRETRAINED.values()}) == len(PRETRAINED)
    assert OPENAI_REPO in {repo for repo, _ in PRETRAINED.values()}


def test_save_and_export_without_the_tokenizer_when_it_cannot_be_fetched(
    hub_server, tmp_path, toy_tokenizer, monkeypatch
):
    monkeypatch.setattr(tokenizers, "OPENAI_VOCAB_SIZE", toy_tokenizer.vocab_size)
    config = OPENAI_CONFIG.replace_text(vocab_size=toy_tokenizer.vocab_size, end_id=toy_tokenizer.end_id)
    export(fresh(config).eval(), tmp_path / "bare", layout="openai")
    hub_server.close()
    loaded = load(tmp_path / "bare")
    with pytest.warns(UserWarning, match="written without a tokenizer: .*has no tokenizer"):
        save(loaded, tmp_path / "kept")
    assert same(load(tmp_path / "kept"), loaded)
    with pytest.warns(UserWarning, match="written without a tokenizer"):
        export(loaded, tmp_path / "open_clip", layout="open_clip")
    export(loaded, tmp_path / "again", layout="openai")  # needs no tokenizer
    assert same(load(tmp_path / "again"), loaded)


def test_export_warns_about_crop_rounding(model, tmp_path):
    export(model, tmp_path / "open_clip", layout="open_clip")
    with pytest.warns(UserWarning, match="transformers crops images at floored half pixels, this model at rounded"):
        export(model, tmp_path / "transformers", layout="transformers")
    reloaded = load(tmp_path / "transformers")
    with pytest.warns(UserWarning, match="open_clip crops images at rounded half pixels, this model at floored ones"):
        export(reloaded, tmp_path / "back", layout="open_clip")
    assert same(load(tmp_path / "back"), model)
