"""Explanations: the recorded attention is the model's, and maps and words have the right shape and range."""

import dataclasses

import pytest
import torch
from PIL import Image

from miniclip.config import ImageConfig, TextConfig
from miniclip.data import Shapes
from miniclip.explanation import explain, faithfulness, plot_explanation, pointing_game, sanity, word_faithfulness
from miniclip.explanation.patches import enlarge, keep_patches, to_unit_range, top_patches
from miniclip.explanation.recording import RecordingAttention, recording
from miniclip.explanation.relevance import METHODS, image_relevance, text_relevance
from miniclip.explanation.words import group_words
from miniclip.fast import accelerate
from miniclip.models.text import TextTransformer
from miniclip.models.vision import VisionTransformer
from tests.toys import CONFIG, make_model

IMAGE_TOWERS = {
    "class token": ImageConfig(16, 4, 24, 2, 3),
    "mean": ImageConfig(16, 4, 24, 2, 3, pooling="mean"),
    "mean without class token": ImageConfig(16, 4, 24, 2, 3, pooling="mean", class_token=False),
    "attention": ImageConfig(16, 4, 24, 2, 3, pooling="attention", class_token=False),
}
TEXT_TOWERS = {
    "causal": TextConfig(12, 40, 16, 2, 2),
    "masked, first": TextConfig(12, 40, 16, 2, 2, causal=False, padding="masked", pooling="first"),
    "attended, last": TextConfig(12, 40, 16, 2, 2, causal=False, padding="attended", pooling="last"),
}


def randomised(tower):
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return accelerate(tower).requires_grad_(False)


@pytest.fixture(params=IMAGE_TOWERS)
def image_tower(request):
    return randomised(VisionTransformer(IMAGE_TOWERS[request.param], 8))


@pytest.fixture(params=TEXT_TOWERS)
def text_tower(request):
    return randomised(TextTransformer(TEXT_TOWERS[request.param], 8))


def tokens_of(tower):
    tokens = torch.tensor([[1, 5, 6, 7, 39], [1, 9, 39, 0, 0]])
    length = tower.config.context_length if tower.config.padding == "attended" else 5
    return torch.nn.functional.pad(tokens, (0, length - 5))


def test_recorded_towers_compute_the_same(image_tower):
    pixels = torch.randn(2, 3, 16, 16)
    expected, classes = image_tower(pixels), {type(module) for module in image_tower.modules()}
    with recording(image_tower):
        torch.testing.assert_close(image_tower(pixels), expected, atol=1e-5, rtol=1e-5)
        assert any(isinstance(module, RecordingAttention) for module in image_tower.modules())
    assert {type(module) for module in image_tower.modules()} == classes
    assert not any("record" in module.__dict__ for module in image_tower.modules())


def test_recorded_text_towers_compute_the_same(text_tower):
    tokens = tokens_of(text_tower)
    expected = text_tower(tokens)
    with recording(text_tower):
        torch.testing.assert_close(text_tower(tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_relevance_of_patches(image_tower, method):
    pixels, texts = torch.randn(3, 3, 16, 16), torch.randn(3, 8)
    relevance = image_relevance(image_tower, pixels, texts, method)
    assert relevance.shape == (3, 16)
    assert (relevance >= 0).all()
    assert float(relevance.max()) > 0
    alone = image_relevance(image_tower, pixels[1:2], texts[1:2], method)  # pairs are independent
    torch.testing.assert_close(relevance[1:2], alone, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(relevance, image_relevance(image_tower, pixels, texts.flip(0), method))


@pytest.mark.parametrize("method", METHODS)
def test_relevance_of_tokens(text_tower, method):
    tokens, images = tokens_of(text_tower), torch.randn(2, 8)
    items = torch.zeros_like(tokens, dtype=torch.bool)
    items[0, 1:4], items[1, 1] = True, True
    relevance = text_relevance(text_tower, tokens, items, images, method)
    assert (relevance >= 0).all()
    assert (relevance[~items] == 0).all()
    assert float(relevance[0].max()) > 0


def test_legrad_of_one_layer_is_the_gradient_of_the_attention_weights():
    """With one block, LeGrad is the positive gradient by finite differences in the attention weights."""
    tower = randomised(VisionTransformer(dataclasses.replace(IMAGE_TOWERS["class token"], layers=1), 8)).double()
    pixels, text = torch.randn(1, 3, 16, 16).double(), torch.randn(1, 8).double()
    relevance = image_relevance(tower, pixels, text, "legrad")
    block, change = tower.blocks[0], 1e-6
    x = tower.norm_before(tower.embed(pixels, None))
    q, k, v = block.attention.qkv(block.norm1(x)).view(1, 17, 3, 3, 8).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(2, 3) * 8**-0.5).softmax(dim=3)

    def similarity(weights):
        y = x + block.attention.out((weights @ v).transpose(1, 2).reshape(1, 17, 24))
        y = y + block.mlp(block.norm2(y))
        return torch.cosine_similarity(tower.projection(tower.norm_after(y[:, 0])), text).item()

    for patch in (0, 7, 15):
        total = 0.0
        for head in range(3):
            moved = weights.clone()
            moved[0, head, 0, 1 + patch] += change  # rows of other tokens do not reach the class token
            total += max(0.0, (similarity(moved) - similarity(weights)) / change)
        assert float(relevance[0, patch]) == pytest.approx(total / 3 / 17, abs=1e-6)


def test_grad_eclip_is_the_weighted_sum_of_values():
    tower = randomised(VisionTransformer(dataclasses.replace(IMAGE_TOWERS["class token"], layers=1), 8))
    pixels, text = torch.randn(1, 3, 16, 16), torch.randn(1, 8)
    block = tower.blocks[0]
    x = tower.norm_before(tower.embed(pixels, None))
    q, k, v = (part[0] for part in block.attention.qkv(block.norm1(x)).split(24, dim=2))
    output = (
        torch.nn.functional.scaled_dot_product_attention(
            *(part.view(17, 3, 8).transpose(0, 1)[None] for part in (q, k, v))
        )[0]
        .transpose(0, 1)
        .reshape(17, 24)
        .requires_grad_()
    )
    y = x + block.attention.out(output)
    y = y + block.mlp(block.norm2(y))
    score = torch.cosine_similarity(tower.projection(tower.norm_after(y[:, 0])), text)
    gradient = torch.autograd.grad(score.sum(), output)[0][0]  # gradient of the class token
    cosine = torch.cosine_similarity(q[:1], k[1:], dim=1)
    weight = (cosine - cosine.min()) / (cosine.max() - cosine.min())
    expected = (weight * (v[1:] @ gradient)).relu()
    torch.testing.assert_close(image_relevance(tower, pixels, text, "grad_eclip")[0], expected, atol=1e-6, rtol=1e-4)


def test_words_have_all_their_tokens(tokenizer):
    text = "A red circle, zebra ünï"
    tokens = tokenizer(text)[0]
    words = group_words(tokenizer, text, tokens)
    assert [word.text for word in words] == tokenizer.normalize(text).split()
    positions = [position for word in words for position in word.positions]
    assert positions == list(range(1, len(tokens) - 1))
    cut = group_words(tokenizer, text, tokenizer(text, context_length=6)[0])
    assert [position for word in cut for position in word.positions] == [1, 2, 3, 4]
    assert group_words(tokenizer, "", tokenizer("")[0]) == []


def test_patches():
    relevance = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    assert top_patches(relevance, 0.5).tolist() == [[False, True, False, True]]
    pixels = torch.ones(1, 3, 5, 5)
    removed = keep_patches(pixels, top_patches(relevance, 0.25), 2, keep=False)
    assert removed[0, 0].tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0] * 5]
    assert to_unit_range(torch.zeros(3)).tolist() == [0, 0, 0]
    assert enlarge(torch.eye(2), 8).shape == (8, 8)


def test_patches_that_leave_a_rest_of_the_image(tokenizer):
    model = make_model(tokenizer, image=dataclasses.replace(CONFIG.image, image_size=30))  # 3 x 3 patches of 8 pixels
    pixels = torch.randn(1, 3, 30, 30)
    last = torch.arange(9)[None] == 8
    kept = keep_patches(pixels, last, 8, keep=True)
    assert torch.equal(kept[..., 16:24, 16:24], pixels[..., 16:24, 16:24])
    assert int(kept.count_nonzero()) == 3 * 8 * 8
    with torch.no_grad():
        complete, without = (model.image.patches(x) for x in (pixels, keep_patches(pixels, last, 8, keep=False)))
    changed = (complete != without).any(dim=1).flatten()
    assert changed.tolist() == last[0].tolist()
    result = explain(model, Image.new("RGB", (30, 30), "red"), "a red circle")
    assert result.heat_map.shape == (30, 30)
    assert torch.equal(result.heat_map[:24, :24], enlarge(result.patches, 24))
    assert not result.heat_map[24:].any()
    assert not result.heat_map[:, 24:].any()
    assert 0 <= pointing_game(model, "random", images=2) <= 100


class TestExplain:
    @pytest.mark.parametrize("method", METHODS)
    def test_returns_a_map_and_words(self, model, method):
        image = Shapes("test", 1, image_size=40)[0][0]
        result = explain(model, image, "a red circle above a blue square", method=method)
        assert result.heat_map.shape == (16, 16)
        assert result.patches.shape == (2, 2)
        assert float(result.patches.max()) == 1
        assert [word.text for word in result.words] == ["a", "red", "circle", "above", "a", "blue", "square"]
        assert max(word.relevance for word in result.words) == 1
        expected = model.encode_image(image) @ model.encode_text(result.text).T
        assert result.similarity == pytest.approx(float(expected), abs=1e-5)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_takes_models_in_16_bits(self, model, method, dtype, tmp_path):
        image, text = Shapes("test", 1, image_size=40)[0][0], "a red circle"
        expected = explain(model, image, text, method=method)
        result = explain(model.to(dtype), image, text, method=method)
        assert result.patches.dtype == result.heat_map.dtype == torch.float32
        torch.testing.assert_close(result.patches, expected.patches, atol=0.1, rtol=0)
        assert result.similarity == pytest.approx(expected.similarity, abs=0.02)
        assert result.similarity_without_top == pytest.approx(expected.similarity_without_top, abs=0.02)
        plot_explanation(result, tmp_path / "a.png")

    def test_draws_a_plot(self, model, tmp_path):
        plot_explanation(explain(model, Image.new("RGB", (20, 30), "red"), "a $red$ circle"), tmp_path / "a.png")
        assert Image.open(tmp_path / "a.png").size[0] > 800

    def test_bad_arguments_are_named(self, model):
        image = Image.new("RGB", (20, 20))
        with pytest.raises(ValueError, match="method 'gradcam'"):
            explain(model, image, "a", method="gradcam")
        with pytest.raises(TypeError, match="model: found a NoneType, expected a CLIPModel"):
            explain(None, image, "a")
        with pytest.raises(TypeError, match="text: found a list"):
            explain(model, image, ["a"])
        model.tokenizer = None
        with pytest.raises(ValueError, match="no tokenizer"):
            explain(model, image, "a")


class TestFaithfulness:
    def test_curves_start_and_end_at_the_complete_or_empty_image(self, model, small_data):
        images, texts = small_data
        scores = {method: faithfulness(model, images, texts, method) for method in (*METHODS, "random")}
        for each in scores.values():
            assert each.deletion_curve[0] == pytest.approx(float(each.insertion_curve[-1]), abs=1e-5)
            assert each.deletion_curve[-1] == pytest.approx(float(each.insertion_curve[0]), abs=1e-5)

    @pytest.mark.parametrize("method", METHODS)
    def test_curves_of_a_model_in_bfloat16_are_near(self, model, small_data, method):
        expected = faithfulness(model, *small_data, method), word_faithfulness(model, *small_data, method)
        model.bfloat16()
        results = faithfulness(model, *small_data, method), word_faithfulness(model, *small_data, method)
        for near, exact in zip(results, expected, strict=True):
            ends = [0, -1]  # near ties can change the order between them
            torch.testing.assert_close(near.deletion_curve[ends], exact.deletion_curve[ends], atol=0.03, rtol=0)
        assert 0 <= pointing_game(model, method, images=2) <= 100

    def test_pointing_and_sanity_are_in_range(self, model, small_data):
        assert 0 <= pointing_game(model, "legrad", images=6) <= 100
        assert -1 <= sanity(model, *small_data, "grad_eclip") <= 1

    def test_numbers_must_agree(self, model):
        with pytest.raises(ValueError, match="1 images and 2 texts"):
            faithfulness(model, [Image.new("RGB", (9, 9))], ["a", "b"], "random")


@pytest.fixture
def small_data():
    data = Shapes("test", 4, image_size=16)
    return [data[i][0] for i in range(4)], [data[i][1][0] for i in range(4)]
