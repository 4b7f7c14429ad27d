"""transformers' layout: models saved by its own code give the same outputs here, and the exports there."""

import copy
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from miniclip.checkpoints.export import export
from miniclip.checkpoints.formats import transformers as layout
from miniclip.checkpoints.formats.transformers_export import export_plan
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError
from miniclip.hub import load
from miniclip.inference.model import CLIPModel

pytestmark = pytest.mark.peer
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

VISION = {
    "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 99,
    "max_position_embeddings": 12, "bos_token_id": 97, "eos_token_id": 98,
}  # fmt: skip


def clip(vision=(), text=(), **top):
    return "clip", {"projection_dim": 16, **top}, {**VISION, **dict(vision)}, {**TEXT, **dict(text)}


def siglip(vision=(), text=(), **top):
    text = {"projection_size": 32, **dict(text)}
    return "siglip", top, {**VISION, **dict(vision)}, {**TEXT, **text}


CASES = {
    "quick_gelu": clip(),
    "gelu": clip({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "tanh": clip({"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act": "gelu_new"}),
    "mixed": clip({"hidden_act": "gelu"}),
    "eps": clip({"layer_norm_eps": 1e-3}, {"layer_norm_eps": 1e-4}),
    "legacy_end": clip(text={"eos_token_id": 2}),
    "other_end": clip(text={"eos_token_id": 40}),
    "mlp": clip({"intermediate_size": 77}, {"intermediate_size": 50}),
    "layers": clip({"num_hidden_layers": 1, "num_attention_heads": 2}, {"num_hidden_layers": 3}),
    "sides": clip({"image_size": 35, "patch_size": 8}, {"max_position_embeddings": 7}),
    "scale": clip(logit_scale_init_value=2.0),
    "metaclip_2": ("metaclip_2", *clip(text={"eos_token_id": 2, "vocab_size": 120})[1:]),
    "metaclip_2_end": ("metaclip_2", *clip(text={"eos_token_id": 7})[1:]),
    "siglip": siglip(),
    "siglip_erf": siglip({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "siglip_sides": siglip({"image_size": 35}, {"max_position_embeddings": 6}),
    "siglip_eps": siglip({"layer_norm_eps": 1e-3, "intermediate_size": 60}, {"layer_norm_eps": 1e-4}),
    "siglip_widths": siglip(
        {"num_attention_heads": 2}, {"hidden_size": 32, "num_attention_heads": 2, "projection_size": None}
    ),
}
CLASSES = {
    "clip": (transformers.CLIPConfig, transformers.CLIPModel),
    "metaclip_2": (transformers.MetaClip2Config, transformers.MetaClip2Model),
    "siglip": (transformers.SiglipConfig, transformers.SiglipModel),
}


@pytest.fixture
def build(randomise):
    """A random model of transformers'."""

    def build(case):
        kind, top, vision, text = copy.deepcopy(case)
        config, model = CLASSES[kind]
        return randomise(model(config(vision_config=vision, text_config=text, **top)))

    return build


@pytest.fixture
def inputs(captions):
    def inputs(case):
        kind, _, vision, text = case
        side, vocabulary, end = vision["image_size"], text["vocab_size"], text["eos_token_id"]
        if kind == "clip" and end == 2:
            end = vocabulary - 1
        return torch.randn(3, 3, side, side), captions(text["max_position_embeddings"], vocabulary, end, pad=1)

    return inputs


@torch.no_grad()
def outputs(peer, pixels, ids):
    output = peer(pixel_values=pixels, input_ids=ids)
    return output.image_embeds, output.text_embeds, output.logits_per_image


@pytest.mark.parametrize("case", CASES)
def test_loads_and_exports_like_the_peer(case, build, inputs, compare, tmp_path):
    peer = build(CASES[case])
    peer.save_pretrained(tmp_path / "peer")
    pixels, ids = inputs(CASES[case])
    expected = outputs(peer, pixels, ids)
    model = load(tmp_path / "peer")
    compare(model, pixels, ids, expected)
    assert not model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    if case == "metaclip_2":  # CLIPModel treats its end token differently
        with pytest.raises(ValueError, match="pools at the highest id instead of an end token with the id 2"):
            export(model, tmp_path / "back", layout="transformers")
        return
    export(model, tmp_path / "back", layout="transformers")
    kind = transformers.SiglipModel if case.startswith("siglip") else transformers.CLIPModel
    back = kind.from_pretrained(tmp_path / "back").eval()
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "back")) is kind
    compare(model, pixels, ids, outputs(back, pixels, ids))
    before, after = (load_file(tmp_path / name / layout.WEIGHTS) for name in ("peer", "back"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype, key
        assert torch.equal(value, after[key]), key


# Misreadings of a setting that the comparison above must detect.
MISREADINGS = [
    ("quick_gelu", "image", {"activation": "gelu"}),
    ("quick_gelu", "text", {"activation": "gelu"}),
    ("gelu", "image", {"activation": "quickgelu"}),
    ("mixed", "text", {"activation": "gelu"}),
    ("tanh", "image", {"activation": "gelu"}),
    ("tanh", "text", {"activation": "gelu"}),
    ("eps", "image", {"norm_eps": 1e-5}),
    ("eps", "text", {"norm_eps": 1e-5}),
    ("legacy_end", "text", {"end_id": 2}),
    ("other_end", "text", {"end_id": 98}),
    ("metaclip_2", "text", {"end_id": 119}),
    ("layers", "image", {"heads": 4}),
    ("siglip", "image", {"activation": "gelu"}),
    ("siglip", "text", {"activation": "gelu"}),
    ("siglip", "text", {"padding": "masked", "pooling": "end"}),
    ("siglip_erf", "image", {"activation": "gelu_tanh"}),
    ("siglip_eps", "image", {"norm_eps": 1e-6}),
    ("siglip_eps", "text", {"norm_eps": 1e-6}),
]


@pytest.mark.parametrize(("case", "tower", "changes"), MISREADINGS)
def test_comparison_detects_a_misread_setting(case, tower, changes, build, inputs, differences, tmp_path):
    peer = build(CASES[case])
    peer.save_pretrained(tmp_path)
    pixels, ids = inputs(CASES[case])
    model = load(tmp_path)
    other = CLIPModel(getattr(model.config, f"replace_{tower}")(**changes)).eval()
    other.load_state_dict(model.state_dict())
    assert differences(other, pixels, ids, outputs(peer, pixels, ids))[tower] > 4e-5


@pytest.mark.parametrize("case", ["quick_gelu", "siglip"])
def test_every_weight_changes_the_outputs(case, build, inputs, differences, tmp_path):
    peer = build(CASES[case])
    peer.save_pretrained(tmp_path)
    pixels, ids = inputs(CASES[case])
    expected = outputs(peer, pixels, ids)
    model = load(tmp_path).requires_grad_(False)
    unused = []
    for name, parameter in model.named_parameters():
        original = parameter.clone()
        parameter.add_(0.1 * torch.randn_like(parameter))
        if max(differences(model, pixels, ids, expected).values()) < 4e-5:
            unused.append(name)
        parameter.copy_(original)
    assert unused == []


@pytest.mark.parametrize("case", ["quick_gelu", "siglip"])
def test_loads_shards(case, build, inputs, compare, tmp_path):
    peer = build(CASES[case])
    peer.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / layout.WEIGHTS).exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    pixels, ids = inputs(CASES[case])
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        compare(load(path), pixels, ids, outputs(peer, pixels, ids))


@pytest.mark.parametrize("case", ["quick_gelu", "siglip"])
def test_loads_files_of_older_versions(case, build, inputs, compare, tmp_path):
    peer = build(CASES[case])
    peer.config.save_pretrained(tmp_path)
    positions = {"text_model": TEXT["max_position_embeddings"], "vision_model": 16 + (case != "siglip")}
    buffers = {f"{key}.embeddings.position_ids": torch.arange(n)[None] for key, n in positions.items()}
    torch.save({**peer.state_dict(), **buffers}, tmp_path / "pytorch_model.bin")
    pixels, ids = inputs(CASES[case])
    compare(load(tmp_path), pixels, ids, outputs(peer, pixels, ids))


@pytest.mark.parametrize("case", ["quick_gelu", "siglip"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loads_half_precision(case, dtype, build, inputs, compare, tmp_path):
    peer = build(CASES[case]).to(dtype)
    peer.save_pretrained(tmp_path / "peer")
    pixels, ids = inputs(CASES[case])
    kept = load(tmp_path / "peer")
    assert {p.dtype for p in kept.parameters()} == {torch.float32 if dtype == torch.float16 else dtype}
    export(kept, tmp_path / "back", layout="transformers")
    model = load(tmp_path / "back", dtype=torch.float32)
    compare(model, pixels, ids, outputs(peer.float(), pixels, ids))


def defaults(config):
    return type(config)().to_dict()


@pytest.mark.parametrize("case", CASES)
def test_settings_default_to_those_of_the_classes(case, build, inputs, compare, tmp_path):
    peer = build(CASES[case])
    peer.save_pretrained(tmp_path)
    values = json.loads((tmp_path / layout.CONFIG).read_text())
    for tower in ("vision_config", "text_config"):
        usual = defaults(getattr(peer.config, tower))
        values[tower] = {key: value for key, value in values[tower].items() if usual.get(key) != value}
    kept = ("model_type", "projection_dim", "vision_config", "text_config")
    values = {key: value for key, value in values.items() if key in kept}
    (tmp_path / layout.CONFIG).write_text(json.dumps(values))
    pixels, ids = inputs(CASES[case])
    compare(load(tmp_path), pixels, ids, outputs(peer, pixels, ids))


@pytest.mark.parametrize("case", ["quick_gelu", "gelu", "mlp", "other_end"])
@pytest.mark.parametrize("others", [{}, {"layer_norm_eps": 1e-3, "hidden_act": "gelu_new"}])
def test_second_section_takes_precedence(case, others, build, inputs, compare, tmp_path):
    """Settings that the second section lacks are the class's defaults, not those of the first."""
    peer = build(CASES[case])
    peer.save_pretrained(tmp_path)
    values = json.loads((tmp_path / layout.CONFIG).read_text())
    for tower in ("vision_config", "text_config"):
        usual = defaults(getattr(peer.config, tower))
        values[f"{tower}_dict"] = {key: value for key, value in values[tower].items() if usual.get(key) != value}
        values[tower] |= {"hidden_size": 64, "num_hidden_layers": 5, **others}
    (tmp_path / layout.CONFIG).write_text(json.dumps(values))
    pixels, ids = inputs(CASES[case])
    again = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    expected = outputs(again, pixels, ids)
    assert torch.equal(expected[0], outputs(peer, pixels, ids)[0])
    compare(load(tmp_path), pixels, ids, expected)


def test_loads_added_tokens(build, inputs, compare, tmp_path):
    """Early files pool at OpenAI's end token, even if tokens were added."""
    case = clip({"num_hidden_layers": 1}, {"num_hidden_layers": 1, "vocab_size": 49411, "eos_token_id": 2})
    peer = build(case)
    peer.save_pretrained(tmp_path)
    pixels, ids = inputs(CASES["quick_gelu"])
    ids[ids == 98] = 49407
    compare(load(tmp_path), pixels, ids, outputs(peer, pixels, ids))


@pytest.fixture
def image():
    """Return an image of noise whose crop begins at half a pixel."""
    return Image.fromarray(torch.randint(0, 256, (40, 59, 3), dtype=torch.uint8).numpy())


def check_pixels(model, processor, image):
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    assert float((model.preprocess(image) - expected).abs().max()) < 1e-5


SQUARE = {"height": 32, "width": 32}
HALF = [0.5, 0.5, 0.5]
PROCESSORS = [
    ("quick_gelu", {"size": 32, "crop_size": 32, "feature_extractor_type": "CLIPFeatureExtractor"}),
    ("quick_gelu", {"size": {"shortest_edge": 32}, "crop_size": SQUARE}),
    ("quick_gelu", {"size": {"shortest_edge": 32}, "crop_size": SQUARE, "image_mean": HALF, "image_std": HALF}),
    ("quick_gelu", {"size": {"shortest_edge": 32}, "crop_size": SQUARE, "resample": 2, "rescale_factor": 1 / 255}),
    ("quick_gelu", {"size": SQUARE, "do_center_crop": False}),
    ("quick_gelu", {"size": SQUARE, "crop_size": SQUARE, "do_center_crop": True}),
    ("siglip", {"size": SQUARE}),
    ("siglip", {"size": SQUARE, "resample": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}),
    ("siglip", {"size": SQUARE, "do_center_crop": None, "crop_size": None, "do_convert_rgb": None}),
]


@pytest.mark.parametrize(("case", "values"), PROCESSORS)
def test_loads_and_exports_the_preprocessing(case, values, build, image, tmp_path):
    build(CASES[case]).save_pretrained(tmp_path / "peer")
    kind = "SiglipImageProcessor" if case == "siglip" else "CLIPImageProcessor"
    file = tmp_path / "peer" / layout.PREPROCESSOR
    file.write_text(json.dumps({"image_processor_type": kind, **values}))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "peer", backend="pil")
    model = load(tmp_path / "peer")
    check_pixels(model, processor, image)
    export(model, tmp_path / "back", layout="transformers")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "back", backend="pil")
    assert type(processor).__name__ == f"{kind}Pil"
    check_pixels(model, processor, image)


@pytest.mark.parametrize("case", ["quick_gelu", "siglip"])
def test_loads_the_saved_preprocessing(case, build, image, tmp_path):
    build(CASES[case]).save_pretrained(tmp_path)
    kind = transformers.SiglipImageProcessorPil if case == "siglip" else transformers.CLIPImageProcessorPil
    size = {"size": SQUARE} if case == "siglip" else {"size": {"shortest_edge": 32}, "crop_size": SQUARE}
    processor = kind(**size, image_mean=HALF, image_std=[0.3, 0.3, 0.3], resample=2)
    processor.save_pretrained(tmp_path)
    check_pixels(load(tmp_path), processor, image)


def test_loads_the_preprocessing_of_a_processor(build, image, toy_tokenizer, tmp_path):
    build(CASES["quick_gelu"]).save_pretrained(tmp_path)
    toy_tokenizer.save(tmp_path / "t" / "tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "t" / "tokenizer.json"))
    size = {"size": {"shortest_edge": 32}, "crop_size": SQUARE}
    processor = transformers.CLIPImageProcessorPil(**size, image_mean=HALF, image_std=HALF)
    transformers.CLIPProcessor(processor, tokenizer).save_pretrained(tmp_path / "processor")
    assert not (tmp_path / "processor" / layout.PREPROCESSOR).exists()
    (tmp_path / "processor" / layout.PROCESSOR).rename(tmp_path / layout.PROCESSOR)
    check_pixels(load(tmp_path), processor, image)


def test_uses_the_default_preprocessing(build, tmp_path):
    for case, resize, mean in (("quick_gelu", "shortest", 0.48145466), ("siglip", "squash", 0.5)):
        build(CASES[case]).save_pretrained(tmp_path / case)
        config = load(tmp_path / case).config
        assert (config.resize, config.mean[0], config.interpolation, config.crop_rounding) == (
            resize,
            mean,
            "bicubic",
            "floored",
        )


NOT_READ = [
    ({"size": {"shortest_edge": 40}, "crop_size": SQUARE}, "40"),
    ({"size": {"height": 40, "width": 40}, "crop_size": SQUARE}, "40"),
    ({"size": {"shortest_edge": 32}, "crop_size": {"height": 40, "width": 40}}, "the image tower takes 32"),
    ({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 24}}, "the image tower takes 32"),
    ({"size": {"shortest_edge": 32}, "do_center_crop": False}, "neither squashed nor cropped"),
    ({"size": {"longest_edge": 32}, "do_center_crop": False}, "expected a height and a width"),
    ({"do_resize": False}, "do_resize is False"),
    ({"do_normalize": False}, "do_normalize is False"),
    ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
    ({"resample": 0}, "resample is 0"),
    ({"image_mean": [0.5]}, "image_mean"),
]


@pytest.mark.parametrize(("values", "message"), NOT_READ)
def test_refuses_unsupported_preprocessing(values, message, one_line):
    _, top, vision, text = CASES["quick_gelu"]
    config = {"model_type": "clip", **top, "vision_config": vision, "text_config": text}
    layout.load_plan(config, {})
    with pytest.raises(ValueError, match=message) as caught:
        layout.load_plan(config, values)
    one_line(caught)


REFUSED = [
    ({"model_type": "blip"}, "model_type is 'blip'"),
    ({"model_type": None}, "model_type is None"),
    ({"vision_config": {**VISION, "hidden_act": "relu"}}, "vision_config.hidden_act is 'relu'"),
    ({"vision_config": {**VISION, "num_channels": 1}}, "vision_config.num_channels is 1"),
    ({"vision_config": {**VISION, "image_size": [32, 16]}}, "vision_config.image_size"),
    ({"vision_config": {**VISION, "hidden_size": "32"}}, "vision_config.hidden_size is '32'"),
    ({"text_config": {**TEXT, "eos_token_id": [97, 98]}}, "text_config.eos_token_id"),
    ({"text_config": {**TEXT, "eos_token_id": 99}}, "outside of the vocabulary"),
    ({"text_config": {**TEXT, "layer_norm_eps": None}}, "text_config.layer_norm_eps is None"),
    ({"model_type": "siglip", "vision_config": {**VISION, "vision_use_head": False}}, "vision_use_head is False"),
    ({"model_type": "siglip"}, "expected the two to be equal"),  # the towers differ in width
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refuses_unsupported_models(changes, message, one_line):
    _, top, vision, text = CASES["quick_gelu"]
    with pytest.raises(ValueError, match=message) as caught:
        layout.load_plan({"model_type": "clip", **top, "vision_config": vision, "text_config": text, **changes}, {})
    one_line(caught)


def test_errors_name_the_file(build, tmp_path, one_line):
    build(CASES["quick_gelu"]).save_pretrained(tmp_path)
    values = json.loads((tmp_path / layout.CONFIG).read_text())
    (tmp_path / layout.CONFIG).write_text(json.dumps({**values, "model_type": "blip"}))
    with pytest.raises(CheckpointError, match="model_type is 'blip'") as caught:
        load(tmp_path)
    one_line(caught, tmp_path)


IMAGE = ImageConfig(32, 8, 32, 2, 4)
CAUSAL = TextConfig(12, 99, 24, 2, 3, causal=True, pooling="end")
NOT_EXPORTED = [
    (CLIPConfig(IMAGE, TextConfig(12, 99, 24, 2, 3), 16), "text.causal is False, there True"),
    (CLIPConfig(IMAGE, CAUSAL, 16, logit_bias=-10.0), "logit_bias is True, there False"),
    (CLIPConfig(IMAGE, CAUSAL, 16).replace_image(patch_bias=True), "image.patch_bias is True"),
    (CLIPConfig(IMAGE, CAUSAL, 16).replace_image(pooling="mean"), "image.pooling is 'mean', there 'class'"),
    (CLIPConfig(IMAGE, CAUSAL, 16).replace_image(projection="bias"), "image.projection is 'bias'"),
    (CLIPConfig(IMAGE, CAUSAL, 16).replace_image(norm_before=False), "image.norm_before is False"),
    (CLIPConfig(IMAGE, CAUSAL, 16).replace_image(pooling="attention"), "SiglipModel is another model"),
    (CLIPConfig(IMAGE, CAUSAL, 16).replace_text(projection="bias"), "text.projection is 'bias'"),
    (CLIPConfig(IMAGE, CAUSAL, 16).replace_text(end_id=2), "an end token with the id 2"),
]


@pytest.mark.parametrize(("config", "message"), NOT_EXPORTED)
def test_refuses_to_export_other_models(config, message, tmp_path, one_line):
    with pytest.raises(ValueError, match=message) as caught:
        export(CLIPModel(config).initialise(), tmp_path / "back", layout="transformers")
    one_line(caught)
    assert not (tmp_path / "back").exists()


def test_refuses_to_export_siglip_that_crops(build, tmp_path):
    build(CASES["siglip"]).save_pretrained(tmp_path / "peer")
    model = load(tmp_path / "peer")
    config = CLIPConfig.from_dict({**model.config.to_dict(), "resize": "shortest"})
    with pytest.raises(ValueError, match="squashes images"):
        export_plan(config)
