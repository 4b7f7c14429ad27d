"""Loading by name: presets, checkpoints, run directories, and unknown names."""

import pytest
import torch

import miniclip
from miniclip.config import PRESETS
from miniclip.hub import find_checkpoint, fresh, list_models, load, save
from miniclip.hub.registry import PRETRAINED
from miniclip.inference.model import CLIPModel


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(toy_config, toy_tokenizer) -> CLIPModel:
    return fresh(toy_config, toy_tokenizer)


def with_scale(model: CLIPModel, value: float) -> CLIPModel:
    with torch.no_grad():
        model.log_scale.fill_(value)
    return model


def test_list_models():
    models = list_models()
    assert models.keys() == PRESETS.keys() | PRETRAINED.keys()
    assert all(models[name] == f"{description}; {repo}" for name, (repo, description) in PRETRAINED.items())
    assert all(models[name] == description for name, (description, _) in PRESETS.items() if name not in PRETRAINED)
    assert {"bert_vit_b_16", "vit_b_32", "vit_b_16", "vit_l_14", "vit_l_14_336"} <= models.keys()
    assert all(models.values())


def test_preset_with_fresh_weights():
    model = load("bert_vit_tiny", pretrained=False)
    assert model.config == PRESETS["bert_vit_tiny"][1]
    assert model.tokenizer is None
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert float(model.image.positions.std()) > 0.01  # drawn at random
    torch.manual_seed(0)
    first = load("bert_vit_tiny", pretrained=False)
    torch.manual_seed(0)
    second = load("bert_vit_tiny", pretrained=False)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(model.image.positions, load("bert_vit_tiny", pretrained=False).image.positions)


@pytest.mark.parametrize("form", ["object", "path", "str"])
def test_a_fresh_preset_with_a_tokenizer(toy_tokenizer, tmp_path, form):
    toy_tokenizer.save(tmp_path / "words.json")
    given = {"object": toy_tokenizer, "path": tmp_path / "words.json", "str": str(tmp_path / "words.json")}[form]
    model = load("bert_vit_tiny", pretrained=False, tokenizer=given)
    assert model.tokenizer.encode("a red dog") == toy_tokenizer.encode("a red dog")
    assert model.config.text.end_id == toy_tokenizer.end_id
    assert model.config.text.vocab_size == len(model.text.tokens.weight) == 8192
    assert model.text.config == model.config.text
    torch.testing.assert_close(model.encode_text("a dog"), model.encode_text(toy_tokenizer("a dog", 77, pad=True)))


def test_a_tokenizer_with_more_tokens_than_the_preset(toy_config, toy_tokenizer):
    model = fresh(toy_config.replace_text(vocab_size=100, end_id=99), toy_tokenizer)
    assert model.config.text.vocab_size == len(model.text.tokens.weight) == toy_tokenizer.vocab_size
    assert model.config.text.end_id == toy_tokenizer.end_id
    assert model.encode_text("a dog").shape == (1, 8)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_checkpoint_directory(model, tmp_path, kind):
    save(with_scale(model.train(), 1.25), kind(tmp_path / "model"))
    loaded = load(kind(tmp_path / "model"))
    assert float(loaded.log_scale) == 1.25
    assert not loaded.training
    assert loaded.tokenizer.vocab == model.tokenizer.vocab
    assert float(load("model").log_scale) == 1.25  # relative to the working directory


def test_a_run_directory_loads_best_before_last(model, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")  # settings of the run, not a checkpoint's
    save(with_scale(model, 1.0), run / "last")
    assert find_checkpoint(run) == run / "last"
    assert float(load(run).log_scale) == 1.0
    save(with_scale(model, 2.0), run / "best")
    assert find_checkpoint(run) == run / "best"
    assert float(load(run).log_scale) == 2.0
    assert float(load(run / "last").log_scale) == 1.0


@pytest.mark.parametrize("chosen", ["bfloat16", "float32"])
@pytest.mark.parametrize("options", [{"name": "bert_vit_tiny", "pretrained": False}, {"name": "half"}])
def test_dtype_auto_logs_its_choice(model, tmp_path, monkeypatch, caplog, chosen, options):
    save(model.to(torch.float16), tmp_path / "half")
    monkeypatch.setattr("miniclip.runtime.precision.resolve", lambda precision, device: chosen)
    loaded = load(**options, dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {getattr(torch, chosen)}
    assert caplog.messages == [f"dtype='auto': weights in {chosen} on cpu"]
    caplog.clear()
    load(**options, dtype=chosen)
    assert caplog.messages == []


def test_dtype_and_device(model, tmp_path):
    save(model, tmp_path / "model")
    for options in ({"name": "bert_vit_tiny", "pretrained": False}, {"name": "model"}):
        half = load(**options, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        assert {parameter.device.type for parameter in load(**options, device="meta").parameters()} == {"meta"}
        assert {str(parameter.device) for parameter in load(**options, device=torch.device("cpu")).parameters()} == {
            "cpu"
        }
    save(model.to(torch.float16), tmp_path / "half")
    assert {parameter.dtype for parameter in load("half").parameters()} == {torch.float32}  # float16 is slow on a CPU
    assert {parameter.dtype for parameter in load("half", dtype=torch.float16).parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in load("half", device="meta").parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in load("half", dtype="float16").parameters()} == {torch.float16}
    with pytest.raises(ValueError, match="unknown dtype 'half'"):
        load("half", dtype="half")
    save(model.to(torch.bfloat16), tmp_path / "bfloat16")
    assert {parameter.dtype for parameter in load("bfloat16").parameters()} == {torch.bfloat16}


def test_a_tokenizer_replaces_the_checkpoints(model, tmp_path):
    save(model, tmp_path / "model")
    other = miniclip.Tokenizer(model.tokenizer.vocab, model.tokenizer.merges)
    assert load("model", tokenizer=other).tokenizer is other


def test_a_tokenizer_that_does_not_fit_the_checkpoint(model, tmp_path):
    save(model, tmp_path / "model")
    other = miniclip.Tokenizer.train(["some quite different words, twice"] * 2, 550)
    assert other.end_id != model.config.text.end_id
    with pytest.raises(ValueError, match="tokenizer"):
        load("model", tokenizer=other)


def test_a_preset_without_published_weights():
    with pytest.raises(ValueError, match=r"'bert_vit_b_16' has no published weights.*pretrained=False"):
        load("bert_vit_b_16")


def test_unknown_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vit_b16: neither a path nor .*did you mean 'vit_b_16'\?"):
        load("vit_b16")
    with pytest.raises(ValueError, match=r"unknown preset 'bert_vit_tin'; did you mean 'bert_vit_tiny'\?"):
        load("bert_vit_tin", pretrained=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*, only no files; expected config\.json"):
        load("empty")
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        load("bert_vit_tiny", pretrained=False, tokenizer="absent.json")


def test_the_functions_are_the_methods(model):
    pixels = torch.randn(3, 3, 16, 16)
    assert torch.equal(miniclip.encode_image(model, pixels, batch_size=2), model.encode_image(pixels, batch_size=2))
    raw = miniclip.encode_text(model, ["a dog", "red"], normalize=False)
    assert torch.equal(raw, model.encode_text(["a dog", "red"], normalize=False))
    assert not torch.equal(raw, miniclip.encode_text(model, ["a dog", "red"]))
