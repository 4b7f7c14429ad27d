"""The whole model: its size, what it takes and gives back, and that OpenAI's architecture is one of its settings."""

import copy
import dataclasses
import math
import re

import numpy as np
import pytest
import torch

from miniclip.config import PRESETS, CLIPConfig, ImageConfig, TextConfig
from miniclip.inference.model import CLIPModel
from miniclip.losses import contrastive_loss, sigmoid_loss
from miniclip.losses.reference import l2_normalize
from miniclip.models.clip import CLIP, CLIPOutput
from miniclip.tokenizer import Tokenizer

OPENAI = {"vit_b_32": 151_277_313, "vit_b_16": 149_620_737, "vit_l_14": 427_616_513, "vit_l_14_336": 427_944_193}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def blocks(width: int, layers: int) -> int:
    """Attention 4 D^2 + 4 D, MLP 8 D^2 + 5 D, two norms 4 D."""
    return layers * (12 * width**2 + 13 * width)


def image_tower(c: ImageConfig, embed_dim: int) -> int:
    patches = (c.image_size // c.patch_size) ** 2
    embedding = 3 * c.patch_size**2 * c.width + c.width + (1 + patches) * c.width
    return embedding + 2 * c.width + blocks(c.width, c.layers) + 2 * c.width + c.width * embed_dim


def text_tower(c: TextConfig, embed_dim: int) -> int:
    embedding = (c.vocab_size + c.context_length) * c.width
    return embedding + blocks(c.width, c.layers) + 2 * c.width + c.width * embed_dim


def on_meta(config: CLIPConfig) -> CLIP:
    with torch.device("meta"):
        return CLIP(config)


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


def test_the_reference_system_has_the_parameters_of_its_paper():
    config = PRESETS["bert_vit_b_16"][1]
    assert dataclasses.astuple(config.image)[:5] == (224, 16, 768, 12, 12)
    assert config.image.patches == 196
    assert (config.text.layers, config.text.heads, config.text.width) == (12, 8, 512)
    assert (config.text.context_length, config.text.vocab_size, config.embed_dim) == (77, 49408, 512)
    assert (config.text.causal, config.text.pooling) == (False, "first")
    model = on_meta(config)
    assert count(model.image) == image_tower(config.image, 512) == pytest.approx(86e6, rel=0.01)
    assert count(model.text) == text_tower(config.text, 512) == pytest.approx(63e6, rel=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_every_preset(name):
    description, config = PRESETS[name]
    model = on_meta(config)
    assert count(model.image) == image_tower(config.image, config.embed_dim)
    assert count(model.text) == text_tower(config.text, config.embed_dim)
    assert count(model) == count(model.image) + count(model.text) + 1  # and the scale
    assert round(count(model) / 1e6) == int(re.search(r"(\d+)M$", description)[1])


@pytest.mark.parametrize("name", OPENAI)
def test_openais_models_have_their_published_size(name):
    assert count(on_meta(PRESETS[name][1])) == OPENAI[name]


def test_forward(model):
    pixels, tokens = torch.randn(3, 3, 16, 16), model.tokenizer(["a dog", "a red circle", "a blue square"])
    output = model(pixels, tokens)
    assert isinstance(output, CLIPOutput)
    for embeddings, tower in (
        (output.image_embeddings, model.image(pixels)),
        (output.text_embeddings, model.text(tokens)),
    ):
        assert embeddings.shape == (3, 8)
        torch.testing.assert_close(embeddings, tower)
    assert output.logit_scale.item() == pytest.approx(10.0, rel=1e-6)
    assert output.logit_bias is None
    with torch.no_grad():
        model.log_scale.fill_(math.log(3.0))
    assert model(pixels, tokens).logit_scale.item() == pytest.approx(3.0, rel=1e-6)


def test_the_scale_starts_where_clips_does(toy_config):
    assert CLIPModel(toy_config).log_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-6)


def test_a_bias_where_the_configuration_has_one(toy_config):
    model = CLIPModel(dataclasses.replace(toy_config, logit_bias=-10.0)).initialise()
    assert model(torch.zeros(1, 3, 16, 16), torch.tensor([[0]])).logit_bias.item() == -10.0
    assert "logit_bias" in dict(model.named_parameters())
    assert "logit_bias" not in CLIPModel(toy_config).state_dict()


@pytest.mark.parametrize("bias", [None, -10.0])
def test_backward_reaches_every_parameter(toy_config, toy_tokenizer, bias):
    model = CLIPModel(dataclasses.replace(toy_config, logit_bias=bias), toy_tokenizer).initialise()
    image, text, scale, bias = model(
        torch.randn(4, 3, 16, 16), toy_tokenizer(["a dog", "a circle", "red", "a red dog"])
    )
    loss = contrastive_loss(image, text, scale) if bias is None else sigmoid_loss(image, text, scale, bias)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert float(parameter.grad.abs().max()) > 0, name


# A key of miniclip to the keys of open_clip and OpenAI; `.` stands for the number of a block.
OPENAI_KEYS = {
    "image.patches.weight": "visual.conv1.weight",
    "image.class_token": "visual.class_embedding",
    "image.positions": "visual.positional_embedding",
    "image.norm_before.": "visual.ln_pre.",
    "image.blocks.": "visual.transformer.resblocks.",
    "image.norm_after.": "visual.ln_post.",
    "image.projection.weight": "visual.proj",
    "text.tokens.weight": "token_embedding.weight",
    "text.positions": "positional_embedding",
    "text.blocks.": "transformer.resblocks.",
    "text.norm_after.": "ln_final.",
    "text.projection.weight": "text_projection",
    "log_scale": "logit_scale",
}
BLOCK_KEYS = {
    ".norm1.": ".ln_1.", ".norm2.": ".ln_2.", ".attention.qkv.": ".attn.in_proj_", ".attention.out.": ".attn.out_proj.",
    ".mlp.up.": ".mlp.c_fc.", ".mlp.down.": ".mlp.c_proj.",
}  # fmt: skip


@pytest.mark.peer
def test_equals_open_clip():
    open_clip = pytest.importorskip("open_clip")
    theirs = open_clip.CLIP(
        24,
        {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8},
        {"context_length": 10, "vocab_size": 40, "width": 32, "heads": 4, "layers": 3},
        quick_gelu=True,
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            noise = torch.randn_like(parameter)
            parameter.add_(0.2 * noise if parameter.dim() else 0)  # biases, gains and positions that tell
    text = TextConfig(10, 40, 32, 3, 4, activation="quickgelu", causal=True, pooling="end")
    ours = CLIPModel(CLIPConfig(ImageConfig(32, 8, 48, 2, 3, activation="quickgelu"), text, 24)).eval()
    source, state = theirs.state_dict(), {}
    for key in ours.state_dict():
        prefix = next(name for name in OPENAI_KEYS if key.startswith(name))
        name = key.replace(prefix, OPENAI_KEYS[prefix])
        for part, theirs_part in BLOCK_KEYS.items():
            name = name.replace(part, theirs_part)
        value = source.pop(name)
        state[key] = value.T if key.endswith("projection.weight") else value
    assert not source
    ours.load_state_dict(state)

    pixels, tokens = torch.randn(5, 3, 32, 32), torch.randint(1, 38, (5, 10))
    tokens[:, 0] = 38
    for row, length in enumerate((2, 4, 7, 9, 10)):
        tokens[row, length - 1 :] = 0
        tokens[row, length - 1] = 39
    with torch.no_grad():
        image, caption, scale = theirs(pixels, tokens)
        output = ours(pixels, tokens)
        torch.testing.assert_close(l2_normalize(output.image_embeddings), image, rtol=0, atol=2e-5)
        torch.testing.assert_close(l2_normalize(output.text_embeddings), caption, rtol=0, atol=2e-5)
        torch.testing.assert_close(output.logit_scale, scale)
        raw = theirs.encode_image(pixels)
        torch.testing.assert_close(ours.encode_image(pixels, normalize=False), raw, rtol=1e-4, atol=2e-5)
    assert float((image[0] - image[1]).abs().max()) > 1e-2
    assert float((caption[0] - caption[1]).abs().max()) > 1e-2


def test_lazy_tokenizer_is_fetched_on_first_use(toy_config, toy_tokenizer):
    calls = []

    def source():
        calls.append(1)
        return toy_tokenizer

    model = CLIPModel(toy_config).initialise()
    model.tokenizer_source = source
    model.encode_image(torch.zeros(1, 3, 16, 16))
    model.encode_text(torch.tensor([[1, 2, toy_tokenizer.end_id]]))
    assert not calls
    expected = CLIPModel(toy_config, toy_tokenizer)
    expected.load_state_dict(model.state_dict())
    assert torch.equal(model.encode_text("a dog"), expected.encode_text("a dog"))
    assert model.tokenizer is toy_tokenizer
    assert len(calls) == 1


def test_a_tokenizer_that_cannot_be_fetched_is_tried_again(toy_config, toy_tokenizer):
    answers = [ConnectionError("no network"), toy_tokenizer]

    def source():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    model = CLIPModel(toy_config).initialise()
    model.tokenizer_source = source
    with pytest.raises(ConnectionError, match="no network"):
        model.encode_text("a dog")
    assert model.encode_text("a dog").shape == (1, 8)


def test_a_tokenizer_given_later_has_to_fit(toy_config, toy_tokenizer):
    model = CLIPModel(toy_config)
    with pytest.raises(ValueError, match="do not belong together"):
        model.tokenizer = Tokenizer.train(["quite other words"] * 2, 550)
    assert model.tokenizer is None


@pytest.mark.parametrize("change", ["no end", "end before the text", "padding first"])
def test_a_tokenizer_has_to_end_its_rows(toy_config, toy_tokenizer, change):
    toy_tokenizer = copy.copy(toy_tokenizer)
    if change == "no end":
        toy_tokenizer.after = ()
    elif change == "padding first":
        toy_tokenizer.pad_left = True
    else:
        toy_tokenizer.before = toy_tokenizer.after
    with pytest.raises(ValueError, match=r"takes the first id \d+ as the end of a text"):
        CLIPModel(toy_config, toy_tokenizer)
    CLIPModel(toy_config.replace_text(padding="attended", pooling="last"), toy_tokenizer)


def test_text_that_attends_to_its_padding_is_padded(toy_config, toy_tokenizer):
    config = toy_config.replace_text(padding="attended", pooling="last")
    model = CLIPModel(config, toy_tokenizer).initialise().eval()
    ids = toy_tokenizer(["a dog", "a red circle"], context_length=12, pad=True)
    assert torch.equal(model.encode_text(["a dog", "a red circle"]), model.encode_text(ids))
    assert model.encode_text([]).shape == (0, 8)
