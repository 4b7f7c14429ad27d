"""OpenAI's layout: state dicts and TorchScript archives, compared with open_clip's reader of OpenAI's models."""

import pytest
import torch

from miniclip.checkpoints.export import export
from miniclip.checkpoints.formats import openai as layout
from miniclip.checkpoints.key_maps import OPENAI_SIZES
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError
from miniclip.hub import load
from miniclip.inference.model import CLIPModel

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")]  # the peer uses it
open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
peers = pytest.importorskip("open_clip.model")

CASES = {  # image side, patch, width, layers; context, vocabulary, width, layers; embed_dim
    "plain": ((32, 8, 64, 2), (12, 99, 64, 2), 32),
    "wide": ((32, 16, 192, 1), (9, 60, 128, 3), 48),
    "heads": ((24, 4, 128, 2), (12, 99, 192, 1), 64),
    "resnet": ((64, None, 16, [1, 2, 1, 1]), (12, 99, 64, 2), 32),
}


@pytest.fixture
def build(randomise):
    """Return a random model in the precision of OpenAI's archives: matrices in float16, the rest in float32."""

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
        pixels = torch.randn(3, 3, side, side) + (2 * torch.randn(3, 3, 1, 1) if case == "resnet" else 0)
        return pixels, captions(context, vocabulary, vocabulary - 1)

    return inputs


def size_tensors(case):
    (side, *_), (context, vocabulary, *_), _ = CASES[case]
    numbers = {"input_resolution": side, "context_length": context, "vocab_size": vocabulary}
    assert numbers.keys() == {row.keys for row in OPENAI_SIZES}
    return {name: torch.tensor(number) for name, number in numbers.items()}


@torch.no_grad()
def outputs(peer, pixels, ids):
    peer = peer.float().eval()
    image, text = peer.encode_image(pixels, normalize=True), peer.encode_text(ids, normalize=True)
    return image, text, peer.get_logits(pixels, ids)[0]


def full(tensors):
    return {key: value.float() for key, value in tensors.items()}


KINDS = {
    "mixed with sizes": lambda tensors, case: {**tensors, **size_tensors(case)},
    "mixed": lambda tensors, case: tensors,
    "float32 with sizes": lambda tensors, case: {**full(tensors), **size_tensors(case)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_loads_and_exports_state_dicts(case, kind, build, inputs, compare, tmp_path):
    tensors = KINDS[kind](build(case).state_dict(), case)
    torch.save(tensors, tmp_path / "weights")
    peer = peers.build_model_from_openai_state_dict(dict(tensors))
    pixels, ids = inputs(case)
    expected = outputs(peer, pixels, ids)
    model = load(tmp_path / "weights")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())
    compare(model, pixels, ids, expected)
    export(model, tmp_path / "back", layout="openai")
    back = open_clip.load_openai_model(str(tmp_path / "back" / layout.WEIGHTS), precision="fp32", device="cpu")
    compare(model, pixels, ids, outputs(back, pixels, ids))
    tensors = {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    before, after = full(tensors), full(torch.load(tmp_path / "back" / layout.WEIGHTS))
    names = size_tensors(case).keys()
    assert before.keys() - names == after.keys() - names
    assert all(torch.equal(before[key], after[key]) for key in before.keys() & after.keys())
    compare(load(tmp_path / "back" / layout.WEIGHTS), pixels, ids, expected)


def traced(peer, inputs, numbers):
    """Return a TorchScript archive of a model, as OpenAI's: with three integers, and the mask as a constant."""
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
def test_loads_torchscript_archives(case, numbers, build, inputs, compare, tmp_path):
    pixels, ids = inputs(case)
    script = traced(build(case), (pixels, ids), size_tensors(case) if numbers else {})
    assert {"input_resolution"} & script.state_dict().keys() == ({"input_resolution"} if numbers else set())
    assert {value.dtype for value in script.parameters()} == {torch.float16, torch.float32}
    script.save(tmp_path / "archive")
    peer = open_clip.load_openai_model(str(tmp_path / "archive"), precision="fp32", device="cpu")
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
def test_comparison_detects_a_misread_setting(tower, changes, build, inputs, differences, tmp_path):
    tensors = KINDS["mixed"](build("heads").state_dict(), "heads")
    torch.save(tensors, tmp_path / "weights")
    pixels, ids = inputs("heads")
    model = load(tmp_path / "weights")
    other = CLIPModel(getattr(model.config, f"replace_{tower}")(**changes)).eval()
    other.load_state_dict(model.state_dict())
    peer = peers.build_model_from_openai_state_dict(dict(tensors))
    assert differences(other, pixels, ids, outputs(peer, pixels, ids))[tower] > 4e-5


def test_pools_at_the_highest_id_as_openais_code(inputs, build, compare, tmp_path, monkeypatch, one_line):
    """With another vocabulary than OpenAI's the end token is not known; the highest id may be an added token."""
    monkeypatch.setitem(CASES, "added", ((32, 8, 64, 1), (12, 49411, 64, 1), 32))
    tensors = build("added").state_dict()
    torch.save(tensors, tmp_path / "weights")
    pixels, ids = inputs("plain")
    ids[ids == 98] = 49407
    model = load(tmp_path / "weights")
    peer = peers.build_model_from_openai_state_dict(dict(tensors))
    compare(model, pixels, ids, outputs(peer, pixels, ids))
    ids[1:, 1] = 49410
    compare(model, pixels, ids, outputs(peer, pixels, ids))
    export(model, tmp_path / "back", layout="openai")
    compare(load(tmp_path / "back"), pixels, ids, outputs(peer, pixels, ids))
    with pytest.raises(ValueError, match=r"text\.end_id is 49407, there 49410") as caught:
        layout.export_plan(model.config.replace_text(end_id=49407))
    one_line(caught)


def test_resizes_to_another_image_size(build, inputs, tmp_path):
    torch.save(build("plain").state_dict(), tmp_path / "weights")
    with pytest.warns(UserWarning, match="4 x 4 patches were resized to 3 x 3"):
        model = load(tmp_path / "weights", image_size=24)
    _, ids = inputs("plain")
    assert model(torch.randn(2, 3, 24, 24), ids).image_embeddings.shape == (2, 32)


def test_refuses_float32_weights_without_sizes(build, inputs, compare, tmp_path, one_line):
    peer = build("plain").float()
    torch.save(peer.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights without open_clip_config\.json beside them") as caught:
        load(tmp_path / "weights.pt")
    one_line(caught, tmp_path / "weights.pt", "config='ViT-B-32'", "or a CLIPConfig")
    config = layout.load_plan({key: tuple(value.shape) for key, value in peer.state_dict().items()}).config
    pixels, ids = inputs("plain")
    compare(load(tmp_path / "weights.pt", config=config), pixels, ids, outputs(peer, pixels, ids))


def test_refuses_a_damaged_resnet(tmp_path, one_line):
    names = ("visual.conv1.weight", "visual.layer1.0.conv1.weight", "visual.attnpool.positional_embedding")
    torch.save({name: torch.zeros(2, 2, 2, 2) for name in names} | size_tensors("plain"), tmp_path / "RN50.pt")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "RN50.pt")
    one_line(caught, tmp_path / "RN50.pt")


def shapes(**changes):
    shapes = {key: tuple(value.shape) for key, value in CLIP_SHAPES.items()}
    return {key: shape for key, shape in (shapes | changes).items() if shape}


with torch.device("meta"):
    CLIP_SHAPES = peers.CLIP(32, peers.CLIPVisionCfg(layers=1), peers.CLIPTextCfg(layers=1)).state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual.positional_embedding": (196, 768)}, "196 position embeddings are not a square of patches"),
        ({"visual.positional_embedding": ()}, r"visual\.positional_embedding: found no such key"),
        ({"text_projection": (512, 32, 1)}, r"text_projection: found \(512, 32, 1\), expected a tensor of 2"),
        ({"visual.conv1.weight": (32, 3, 16, 16)}, "image tower: width 32, layers 1, heads 0"),
    ],
)
def test_refuses_shapes_of_other_models(changes, message, one_line):
    assert layout.load_plan(shapes()).config.image == ImageConfig(224, 16, 768, 1, 12, activation="quickgelu")
    with pytest.raises(ValueError, match=message) as caught:
        layout.load_plan(shapes(**changes))
    one_line(caught)


OPENAI = CLIPConfig(
    ImageConfig(32, 8, 64, 2, 1, activation="quickgelu"),
    TextConfig(12, 99, 128, 2, 2, activation="quickgelu", causal=True, pooling="end"),
    32,
)
NOT_EXPORTED = [
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


@pytest.mark.parametrize(("config", "message"), NOT_EXPORTED)
def test_refuses_to_export_other_models(config, message, tmp_path, one_line):
    with pytest.raises(ValueError, match=message) as caught:
        export(CLIPModel(config).initialise(), tmp_path / "back", layout="openai")
    one_line(caught, "OpenAI's layout has no configuration, and its code builds another model")
    assert not (tmp_path / "back").exists()


def test_requires_heads_of_width_64(one_line):
    config = OPENAI.replace_image(width=32)
    with pytest.raises(ValueError, match=r"image\.width is 32|image\.width 32") as caught:
        layout.export_plan(config)
    one_line(caught)


def test_refuses_another_tokenizer(toy_tokenizer, tmp_path):
    config = OPENAI.replace_text(vocab_size=toy_tokenizer.vocab_size, end_id=toy_tokenizer.end_id)
    with pytest.raises(ValueError, match="OpenAI's code contains its own vocabulary"):
        export(CLIPModel(config, toy_tokenizer).initialise(), tmp_path / "back", layout="openai")
