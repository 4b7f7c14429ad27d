"""CLIPModel: encodes paths, images, arrays and strings, and classifies without training."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from miniclip.errors import DataError
from miniclip.inference import batching
from miniclip.inference.model import CLIPModel


@pytest.fixture
def model(toy_config, toy_tokenizer) -> CLIPModel:
    config = dataclasses.replace(
        toy_config, text=dataclasses.replace(toy_config.text, end_id=toy_tokenizer.end_id), logit_scale=10.0
    )
    return CLIPModel(config, toy_tokenizer).initialise().eval()


@pytest.fixture
def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8) for i in range(5)]


def test_encode_image_accepts_many_types(model, arrays, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(len(arrays))]
    pictures = [Image.fromarray(array) for array in arrays]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    pixels = torch.stack([model.preprocess(picture) for picture in pictures])
    rows = model.encode_image(pixels)
    assert rows.shape == (5, 8)
    assert rows.dtype == torch.float32
    assert not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    assert float((rows[0] - rows[1]).abs().max()) > 1e-4
    mixed = [paths[0], str(paths[1]), pictures[2], arrays[3], paths[4]]
    for images in (paths, [str(path) for path in paths], pictures, arrays, tuple(pictures), mixed):
        torch.testing.assert_close(model.encode_image(images), rows, rtol=0, atol=1e-6)
    for single in (paths[1], str(paths[1]), pictures[1], arrays[1], pixels[1:2]):
        torch.testing.assert_close(model.encode_image(single), rows[1:2], rtol=0, atol=1e-6)
    for batch_size in (1, 2, 4, 5):  # uneven batches too, in the order given
        for images in (paths, pixels):
            torch.testing.assert_close(model.encode_image(images, batch_size=batch_size), rows, rtol=0, atol=1e-6)


def test_jpeg_paths_are_read_fast_and_close_to_the_image(model, arrays, tmp_path):
    from miniclip.data.decoding import open_image
    from miniclip.data.decoding.jpeg import read_pixels

    paths = [tmp_path / f"{i}.jpg" for i in range(len(arrays))]
    for array, path in zip(arrays, paths, strict=True):
        Image.fromarray(array).resize((90, 70)).save(path)
    fast = model.preprocess.normalise(torch.stack([read_pixels(path, model.preprocess) for path in paths]))
    rows = model.encode_image(paths)
    assert torch.equal(rows, model.encode_image(fast))
    pictures = model.encode_image([open_image(path) for path in paths])
    assert float((rows * pictures).sum(dim=1).min()) > 0.9999


def test_encode_text_accepts_many_types(model):
    texts = ["a dog", "a red circle above a blue square", "", "a blue square", "circle"]
    tokens = model.tokenizer(texts, context_length=12, pad=True)
    rows = model.encode_text(texts)
    assert rows.shape == (5, 8)
    assert not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    assert float((rows[0] - rows[1]).abs().max()) > 1e-4
    for batch_size in (1, 2, 5):
        for form in (texts, tuple(texts), tokens):
            torch.testing.assert_close(model.encode_text(form, batch_size=batch_size), rows, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.encode_text("a dog"), rows[:1], rtol=0, atol=1e-6)


def test_not_normalised_on_request(model, arrays):
    pixels = torch.stack([model.preprocess(Image.fromarray(array)) for array in arrays])
    tokens = model.tokenizer(["a dog", "a red circle"])
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(pixels, normalize=False), model.image(pixels), rtol=0, atol=1e-6)
        torch.testing.assert_close(model.encode_text(tokens, normalize=False), model.text(tokens), rtol=0, atol=1e-6)


def test_nothing_to_encode(model):
    assert model.encode_image([]).shape == (0, 8)
    assert model.encode_image(torch.empty(0, 3, 16, 16)).shape == (0, 8)
    assert model.encode_text([]).shape == (0, 8)
    assert model.encode_text(torch.empty(0, 5, dtype=torch.int64)).shape == (0, 8)


def test_a_bar_on_request(model, capsys):
    model.encode_text(["a", "b"], batch_size=1, progress=True)
    assert "texts" in capsys.readouterr().err
    model.encode_text(["a", "b"], batch_size=1)
    assert capsys.readouterr().err == ""


def test_long_texts_are_cut_with_a_warning(model):
    model.tokenizer._warned = False
    with pytest.warns(UserWarning, match="cut to context_length=12"):
        assert model.encode_text("circle square triangle dog " * 20).shape == (1, 8)


def test_half_precision_gives_float32(model, arrays):
    half = CLIPModel(model.config, model.tokenizer).initialise().to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    for rows, whole in (
        (half.encode_image(arrays), model.encode_image(arrays)),
        (half.encode_text(["a dog", "a circle"]), model.encode_text(["a dog", "a circle"])),
    ):
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
        assert float((rows * whole).sum(dim=1).min()) > 0.99


def test_without_a_tokenizer(model):
    bare = CLIPModel(model.config)
    bare.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="no tokenizer"):
        bare.encode_text("a dog")
    tokens = model.tokenizer("a dog")
    assert torch.equal(bare.encode_text(tokens), model.encode_text(tokens))


@pytest.mark.parametrize("images", [3, None, [None], torch.zeros(16, 16, 3), np.zeros((16, 16)), {"a": 1}])
def test_wrong_images(model, images):
    with pytest.raises(TypeError, match="expected a path, a PIL image"):
        model.encode_image(images)


@pytest.mark.parametrize("texts", [3, [3], ["a", None], None])
def test_wrong_texts(model, texts):
    with pytest.raises(TypeError):
        model.encode_text(texts)


@pytest.mark.parametrize("tokens", [torch.tensor([1, 2, 3]), torch.zeros(1, 4)])
def test_tensors_that_are_not_tokens(model, tokens):
    with pytest.raises((TypeError, ValueError)):
        model.encode_text(tokens)


def test_unreadable_images(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        model.encode_image(tmp_path / "absent.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    with pytest.raises(DataError, match=r"broken\.png"):
        model.encode_image([str(broken)])


def test_pixels_of_another_size(model):
    with pytest.raises(ValueError, match="pixels have the shape"):
        model.encode_image(torch.zeros(1, 3, 20, 20))


def test_few_images_at_once_on_a_cpu(model, monkeypatch):
    monkeypatch.setitem(batching.MAX_TOKENS, "cpu", 3 * (model.config.image.patches + 1) + 1)
    pixels, seen = torch.randn(10, 3, *[model.config.image.image_size] * 2), []
    hook = model.image.register_forward_pre_hook(lambda tower, args: seen.append(len(args[0])))
    found = model.encode_image(pixels, batch_size=7)
    hook.remove()
    assert seen == [3, 2, 2, 3]  # 7 in equal parts of 3 at most, then the rest
    torch.testing.assert_close(found, torch.nn.functional.normalize(model.image(pixels).detach(), dim=1))
    monkeypatch.setitem(batching.MAX_TOKENS, "cpu", 1)
    assert model.encode_image(pixels).shape == found.shape
    assert model.encode_image(pixels[:0]).shape == (0, found.shape[1])


def test_batch_size_below_one(model):
    with pytest.raises(ValueError, match="batch_size 0"):
        model.encode_text("a", batch_size=0)


def test_classify(model, arrays):
    labels = ["dog", "red circle", "blue square"]
    probabilities = model.classify(arrays, labels)
    assert probabilities.shape == (5, 3)
    assert not probabilities.requires_grad
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))
    classes = model.encode_text([f"a photo of a {label}." for label in labels])
    expected = (10.0 * model.encode_image(arrays) @ classes.T).softmax(dim=1)
    torch.testing.assert_close(probabilities, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.classify(arrays[0], labels), probabilities[:1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.classify(arrays, labels[::-1]).flip(1), probabilities, rtol=1e-5, atol=1e-6)


def test_classify_averages_its_templates(model, arrays):
    labels, templates = ["dog", "circle"], ["a {}", "the red {}", "{}"]
    classes = torch.stack([model.encode_text([t.format(label) for t in templates]).mean(0) for label in labels])
    classes = classes / classes.norm(dim=1, keepdim=True)
    expected = (10.0 * model.encode_image(arrays) @ classes.T).softmax(dim=1)
    torch.testing.assert_close(model.classify(arrays, labels, templates), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labels", [[], "cat", ()])
def test_classify_without_labels(model, arrays, labels):
    with pytest.raises(ValueError, match="labels"):
        model.classify(arrays[0], labels)
