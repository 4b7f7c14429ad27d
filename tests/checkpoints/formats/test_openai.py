"""OpenAI's layout: bare state dicts and TorchScript archives, held to open_clip's reader of OpenAI's models."""

import pytest
import torch

from miniclip.checkpoints.export import export
from miniclip.checkpoints.formats import openai as layout
from miniclip.checkpoints.key_maps import OPENAI_MARKS
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError
from miniclip.hub import load
from miniclip.inference.model import CLIPModel

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")]  # the peer uses it
open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
peers = pytest.importorskip("open_clip.model")

CASES = {  # picture side, patch, width, layers; context, vocabulary, width, layers; embed_dim
    "plain": ((32, 8, 64, 2), (12, 99, 64, 2), 32),
    "wide": ((32, 16, 192, 1), (9, 60, 128, 3), 48),
    "heads": ((24, 4, 128, 2), (12, 99, 192, 1), 64),
}


@pytest.fixture
def build(randomise):
    """A random model, rounded as OpenAI's archives are: matrices to float16, what is left in float32."""

    def build(case):
        (side, patch, width, layers), (context, vocabulary, text_width, text_layers), embed_dim = CASES[case]
        vision = peers.CLIPVisionCfg(image_size=side, patch_size=patch, width=width, layers=layers)
        heads = text_width // 64
        text = peers.CLIPTextCfg(context, vocabulary, width=text_width, heads=heads, layers=text_layers)
        peer = randomise(peers.CLIP(embed_dim, vision, text, quick_gelu=True))
        peers.convert_weights_to_fp16(peer)
        return peer

    return build


@pytest.fixture
def inputs(captions):
    def inputs(case):
        (side, *_), (context, vocabulary, *_), _ = CASES[case]
        return torch.randn(3, 3, side, side), captions(context, vocabulary, vocabulary - 1)

    return inputs


def marks(case):
    (side, *_), (context, vocabulary, *_), _ = CASES[case]
    numbers = {"input_resolution": side, "context_length": context, "vocab_size": vocabulary}
    assert numbers.keys() == {row.theirs for row in OPENAI_MARKS}
    return {name: torch.tensor(number) for name, number in numbers.items()}


@torch.no_grad()
def outputs(peer, pixels, ids):
    peer = peer.float().eval()
    image, text = peer.encode_image(pixels, normalize=True), peer.encode_text(ids, normalize=True)
    return image, text, peer.get_logits(pixels, ids)[0]


def full(tensors):
    return {key: value.float() for key, value in tensors.items()}


KINDS = {
    "mixed with marks": lambda tensors, case: {**tensors, **marks(case)},
    "mixed": lambda tensors, case: tensors,
    "whole with marks": lambda tensors, case: {**full(tensors), **marks(case)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_both_ways(case, kind, build, inputs, compare, tmp_path):
    tensors = KINDS[kind](build(case).state_dict(), case)
    torch.save(tensors, tmp_path / "weights")
    peer = peers.build_model_from_openai_state_dict(dict(tensors))
    pixels, ids = inputs(case)
    theirs = outputs(peer, pixels, ids)
    model = load(tmp_path / "weights")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())
    compare(model, pixels, ids, theirs)
    export(model, tmp_path / "back", layout="openai")
    back = open_clip.load_openai_model(str(tmp_path / "back" / layout.WEIGHTS), precision="fp32")
    compare(model, pixels, ids, outputs(back, pixels, ids))
    before, after = full(tensors), full(torch.load(tmp_path / "back" / layout.WEIGHTS))
    names = marks(case).keys()
    assert before.keys() - names == after.keys() - names
    assert all(torch.equal(before[key], after[key]) for key in before.keys() & after.keys())
    compare(load(tmp_path / "back" / layout.WEIGHTS), pixels, ids, theirs)


def traced(peer, inputs, numbers):
    """A TorchScript archive of a model; OpenAI's has three numbers among its weights, and the mask is a constant."""
    halves = {key for key, value in peer.state_dict().items() if value.dtype == torch.float16}
    mask = peer.attn_mask
    del peer.attn_mask
    peer.attn_mask = mask
    for name, number in numbers.items():
        vars(peer).pop(name, None)
        peer.register_buffer(name, number)
    script = torch.jit.trace(peer.float().eval(), inputs, check_trace=False)
    for key, value in script.named_parameters():
        value.data = value.data.half() if key in halves else value.data
    return script


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("numbers", [True, False])
def test_torchscript_archives(case, numbers, build, inputs, compare, tmp_path):
    pixels, ids = inputs(case)
    script = traced(build(case), (pixels, ids), marks(case) if numbers else {})
    assert {"input_resolution"} & script.state_dict().keys() == ({"input_resolution"} if numbers else set())
    assert {value.dtype for value in script.parameters()} == {torch.float16, torch.float32}
    script.save(tmp_path / "archive")
    peer = open_clip.load_openai_model(str(tmp_path / "archive"), precision="fp32")
    model = load(tmp_path / "archive")
    compare(model, pixels, ids, outputs(peer, pixels, ids))


MISREADINGS = [
    ("image", {"activation": "gelu"}),
    ("text", {"activation": "gelu"}),
    ("image", {"heads": 1}),
    ("text", {"heads": 1}),
    ("text", {"pooling": "first", "causal": False}),
    ("image", {"norm_eps": 1e-2}),
]


@pytest.mark.parametrize(("tower", "changes"), MISREADINGS)
def test_a_setting_read_as_another_is_noticed(tower, changes, build, inputs, differences, tmp_path):
    tensors = KINDS["mixed"](build("heads").state_dict(), "heads")
    torch.save(tensors, tmp_path / "weights")
    pixels, ids = inputs("heads")
    model = load(tmp_path / "weights")
    other = CLIPModel(getattr(model.config, f"replace_{tower}")(**changes)).eval()
    other.load_state_dict(model.state_dict())
    peer = peers.build_model_from_openai_state_dict(dict(tensors))
    assert differences(other, pixels, ids, outputs(peer, pixels, ids))[tower] > 4e-5


def test_words_that_were_added(inputs, build, compare, tmp_path, monkeypatch, one_line):
    """They are read; written they cannot be, for the code would take one of them for the end, the highest id."""
    monkeypatch.setitem(CASES, "added", ((32, 8, 64, 1), (12, 49411, 64, 1), 32))
    tensors = build("added").state_dict()
    torch.save(tensors, tmp_path / "weights")
    pixels, ids = inputs("plain")
    ids[ids == 98] = 49407
    model = load(tmp_path / "weights")
    compare(model, pixels, ids, outputs(peers.build_model_from_openai_state_dict(dict(tensors)), pixels, ids))
    with pytest.raises(ValueError, match=r"text\.end_id is 49407, there 49410") as caught:
        layout.written(model.config)
    one_line(caught)


def test_another_size_of_pictures(build, inputs, tmp_path):
    torch.save(build("plain").state_dict(), tmp_path / "weights")
    with pytest.warns(UserWarning, match="4 x 4 patches were resized to 3 x 3"):
        model = load(tmp_path / "weights", image_size=24)
    _, ids = inputs("plain")
    assert model(torch.randn(2, 3, 24, 24), ids).image_embeddings.shape == (2, 32)


def test_without_marks_it_could_be_anybodys(build, inputs, compare, tmp_path, one_line):
    peer = build("plain").float()
    torch.save(peer.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights without open_clip_config\.json beside them") as caught:
        load(tmp_path / "weights.pt")
    one_line(caught, tmp_path / "weights.pt", "config='vit_b_32'", "config=CLIPConfig(…)")
    config = layout.plan({key: tuple(value.shape) for key, value in peer.state_dict().items()}).config
    pixels, ids = inputs("plain")
    compare(load(tmp_path / "weights.pt", config=config), pixels, ids, outputs(peer, pixels, ids))


def test_a_resnet_is_none_of_ours(tmp_path, one_line):
    names = ("visual.conv1.weight", "visual.layer1.0.conv1.weight", "visual.attnpool.positional_embedding")
    torch.save({name: torch.zeros(2, 2, 2, 2) for name in names} | marks("plain"), tmp_path / "RN50.pt")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "RN50.pt")
    one_line(caught, tmp_path / "RN50.pt")


def shapes(**changes):
    found = {key: tuple(value.shape) for key, value in CLIP_SHAPES.items()}
    return {key: shape for key, shape in (found | changes).items() if shape}


with torch.device("meta"):
    CLIP_SHAPES = peers.CLIP(32, peers.CLIPVisionCfg(layers=1), peers.CLIPTextCfg(layers=1)).state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual.positional_embedding": (196, 768)}, "196 position embeddings are no square of patches"),
        ({"visual.positional_embedding": ()}, r"visual\.positional_embedding: found no such key"),
        ({"text_projection": (512, 32, 1)}, r"text_projection: found \(512, 32, 1\), expected a tensor of 2"),
        ({"visual.conv1.weight": (32, 3, 16, 16)}, "image tower: width 32, layers 1, heads 0"),
    ],
)
def test_shapes_that_are_no_model(changes, message, one_line):
    assert layout.plan(shapes()).config.image == ImageConfig(224, 16, 768, 1, 12, activation="quickgelu")
    with pytest.raises(ValueError, match=message) as caught:
        layout.plan(shapes(**changes))
    one_line(caught)


OPENAI = CLIPConfig(
    ImageConfig(32, 8, 64, 2, 1, activation="quickgelu"),
    TextConfig(12, 99, 128, 2, 2, activation="quickgelu", causal=True, pooling="end"),
    32,
)
NOT_WRITTEN = [
    (OPENAI.replace_image(activation="gelu"), "image.activation is 'gelu', there 'quickgelu'"),
    (OPENAI.replace_image(heads=2), "image.heads is 2, there 1"),
    (OPENAI.replace_image(pooling="mean"), "image.pooling is 'mean', there 'class'"),
    (OPENAI.replace_image(norm_eps=1e-6), "image.norm_eps is 1e-06, there 1e-05"),
    (OPENAI.replace_image(pooling="attention", class_token=False), "image.class_token is False, there True"),
    (OPENAI.replace_text(activation="gelu_tanh"), "text.activation is 'gelu_tanh', there 'quickgelu'"),
    (OPENAI.replace_text(causal=False, pooling="first"), "text.causal is False, there True; text.pooling is 'first'"),
    (OPENAI.replace_text(end_id=2), "text.end_id is 2, there 98"),
    (CLIPConfig(OPENAI.image, OPENAI.text, 32, logit_bias=-10.0), "logit_bias is -10.0, there None"),
    (CLIPConfig(OPENAI.image, OPENAI.text, 32, mean=(0.5, 0.5, 0.5)), r"mean is \(0.5, 0.5, 0.5\), there"),
    (CLIPConfig(OPENAI.image, OPENAI.text, 32, resize="squash"), "resize is 'squash', there 'shortest'"),
]


@pytest.mark.parametrize(("config", "message"), NOT_WRITTEN)
def test_what_it_cannot_be_told(config, message, tmp_path, one_line):
    with pytest.raises(ValueError, match=message) as caught:
        export(CLIPModel(config).initialise(), tmp_path / "back", layout="openai")
    one_line(caught, "OpenAI's layout has no settings, and its code builds another model")
    assert not (tmp_path / "back").exists()


def test_its_heads_are_64_wide(one_line):
    config = OPENAI.replace_image(width=32)
    with pytest.raises(ValueError, match=r"64 .*image\.width is 32") as caught:
        layout.written(config)
    one_line(caught)


def test_another_tokenizer_cannot_be_told(toy_tokenizer, tmp_path):
    config = OPENAI.replace_text(vocab_size=toy_tokenizer.vocab_size, end_id=toy_tokenizer.end_id)
    with pytest.raises(ValueError, match="OpenAI's code has its own vocabulary built in"):
        export(CLIPModel(config, toy_tokenizer).initialise(), tmp_path / "back", layout="openai")
