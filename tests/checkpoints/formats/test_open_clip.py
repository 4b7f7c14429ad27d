"""open_clip's layout: models saved by its own code give the same outputs here, and the exports there."""

import functools
import json
import math
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from miniclip.checkpoints import conversion
from miniclip.checkpoints.conversion import expand
from miniclip.checkpoints.export import export
from miniclip.checkpoints.formats import open_clip as layout
from miniclip.checkpoints.formats.timm_towers import TIMM_TOWERS
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError
from miniclip.hub import load
from miniclip.inference.model import CLIPModel

pytestmark = pytest.mark.peer
open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
timm = pytest.importorskip("timm", reason="timm is not installed")
hub = pytest.importorskip("open_clip.push_to_hf_hub")
transform = pytest.importorskip("open_clip.transform")
pytest.importorskip("tests.timm_toys")  # registers convnext_toy, fastvit_toy and eva_toy

NOTICED = 4e-5  # twice what the comparison allows
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8}
TEXT = {"context_length": 12, "vocab_size": 99, "width": 24, "heads": 3, "layers": 2}
BIDIRECTIONAL = {"no_causal_mask": True, "pool_type": "last"}
CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
SMALL = {"eps": 1e-6}
TANH = {"approximate": "tanh"}
SIGLIP_TEXT = {**TEXT, **BIDIRECTIONAL, "width": 32, "heads": 4, "proj_bias": True, "norm_kwargs": SMALL}


def own(vision=(), text=(), **model):
    return {"embed_dim": 16, "vision_cfg": {**VISION, **dict(vision)}, "text_cfg": {**TEXT, **dict(text)}, **model}


def named(name, pool, proj, text, **model):
    vision = {"image_size": 32, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}
    return {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text, "custom_text": True, **model}


CASES = {
    "gelu": own(),
    "quick_gelu": own(quick_gelu=True),
    "mlp_ratios": own({"mlp_ratio": 4.9231, "width": 26, "head_width": 13}, {"mlp_ratio": 3.7362}),
    "other_sides": own({"image_size": 34, "layers": 1}, {"context_length": 7, "layers": 3}),
    "clipa": own(CLIPA, {**BIDIRECTIONAL, "vocab_size": 64}),
    "worldwide": own({"head_width": 16}, {"pool_type": "eos", "eos_id": 2}),
    "eos": own(text={"pool_type": "eos", "eos_id": 40}),
    "first": own(text={"no_causal_mask": True, "pool_type": "first"}),
    "bidirectional_argmax": own(text={"no_causal_mask": True}),
    "custom_text": own(custom_text=True),
    "proj_bias": own(text={"proj_bias": True}),
    "proj_none": own(text={"proj_type": "none", "width": 16, "heads": 2}),
    "eps": own({"norm_kwargs": {"eps": 1e-3}}, {"norm_kwargs": {"eps": 1e-4}}),
    "tanh": own({"act_kwargs": TANH}, {"act_kwargs": TANH}),
    "bias": own(init_logit_bias=-10, init_logit_scale=math.log(10)),
    "nonscalar": own(init_logit_bias=-10.0, nonscalar_logit_scale=True),
    "siglip": named("vit_toy_siglip", "map", "none", SIGLIP_TEXT, init_logit_bias=-10),
    "siglip2": named("vit_toy_siglip_tanh", "map", "none", {**SIGLIP_TEXT, "act_kwargs": TANH}, init_logit_bias=-10),
    "mobileclip2": named("vit_toy_clip", "token", None, {**TEXT, "no_causal_mask": True}),
}
RESNET = {"layers": [1, 2, 1, 1], "width": 8, "head_width": 32, "image_size": 64}
OTHER = {  # towers that are not vision transformers of miniclip's
    "resnet": own(RESNET),
    "resnet_quick_gelu": own({**RESNET, "layers": [1, 1, 1, 1], "head_width": 64}, quick_gelu=True),
    "convnext": own({"timm_model_name": "convnext_toy", "timm_pool": "", "timm_proj": "linear"}),
    "convnext_mlp": own(
        {"timm_model_name": "convnext_toy", "timm_pool": "", "timm_proj": "mlp", "timm_proj_bias": True}
    ),
    "attention_pool": own({"timm_model_name": "convnext_toy", "timm_pool": "abs_attn", "timm_proj": ""}),
    "rotary_pool": named("convnext_toy", "rot_attn", "linear", TEXT),
    "fastvit": named("fastvit_toy", "avg", None, TEXT),
    "eva": named("eva_toy", "token", None, TEXT),
    "other_pool": named("vit_toy_clip", "avg", None, TEXT),
}
CASES |= OTHER
SIGLIP_TOWER = {
    "norm_eps": 1e-4,  # timm has 1e-6, which is hard to tell from 1e-5
    "patch_bias": True,
    "class_token": False,
    "norm_before": False,
    "pooling": "attention",
    "projection": "none",
}
TOWERS = {
    "vit_toy_siglip": ImageConfig(32, 8, 32, 2, 4, "gelu", **SIGLIP_TOWER),
    "vit_toy_siglip_tanh": ImageConfig(32, 8, 32, 2, 4, "gelu_tanh", **SIGLIP_TOWER),
    "vit_toy_clip": ImageConfig(32, 8, 32, 2, 4, projection="bias"),
}


def toy_tower(**options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    ignored = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    options = {key: value for key, value in options.items() if key not in ignored}
    return timm.models.VisionTransformer(**sizes, **options)


@timm.models.register_model
def vit_toy_siglip(**options):
    norm = functools.partial(timm.layers.LayerNorm, eps=1e-4)
    return toy_tower(class_token=False, norm_layer=norm, **options)


@timm.models.register_model
def vit_toy_siglip_tanh(**options):
    return vit_toy_siglip(act_layer="gelu_tanh", **options)


@timm.models.register_model
def vit_toy_clip(**options):
    norm = functools.partial(timm.layers.LayerNorm, eps=1e-5)
    return toy_tower(pre_norm=True, norm_layer=norm, **options)


@pytest.fixture(autouse=True)
def _toy_towers(monkeypatch):
    """Add small towers, built by timm's code, to the table."""
    for name, tower in TOWERS.items():
        monkeypatch.setitem(TIMM_TOWERS, name, tower)


@pytest.fixture
def save(tmp_path, randomise):
    """Save a random model as open_clip pushes one to the Hub; return the directory and the model."""

    def save(config, preprocess=None, safe=True, dtype=None):
        folder = tmp_path / "peer"
        folder.mkdir()
        (folder / layout.CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess or {}}))
        peer = randomise(open_clip.create_model(f"local-dir:{folder}", load_weights=False))
        unused = SimpleNamespace(save_pretrained=lambda _: None)
        hub.save_for_hf(peer.to(dtype), unused, config, folder, safe_serialization=safe)
        return folder, peer.float()

    return save


@pytest.fixture
def inputs(captions):
    def inputs(config):
        text, side = config["text_cfg"], config["vision_cfg"]["image_size"]
        end = text.get("eos_id", 2) if text.get("pool_type") == "eos" else text["vocab_size"] - 1
        pixels = torch.randn(3, 3, side, side)
        if config in OTHER.values():
            pixels = pixels + 2 * torch.randn(3, 3, 1, 1)  # else their means over the positions are alike
        return pixels, captions(text["context_length"], text["vocab_size"], end)

    return inputs


@torch.no_grad()
def outputs(peer, pixels, ids):
    image, text = peer.encode_image(pixels, normalize=True), peer.encode_text(ids, normalize=True)
    return image, text, peer.get_logits(pixels, ids)[0]


def read(folder):
    return load_file(folder / layout.WEIGHTS)


@pytest.mark.parametrize("case", CASES)
def test_loads_and_exports_like_the_peer(case, save, inputs, compare, tmp_path):
    config = CASES[case]
    folder, peer = save(config)
    pixels, ids = inputs(config)
    expected = outputs(peer, pixels, ids)
    model = load(folder)
    compare(model, pixels, ids, expected)
    assert not model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    export(model, tmp_path / "back", layout="open_clip")
    back, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'back'}")
    compare(model, pixels, ids, outputs(back.eval(), pixels, ids))
    assert_same_weights(read(folder), read(tmp_path / "back"), case)


def assert_same_weights(before, after, case):
    if case in ("custom_text", *OTHER):  # a prefix of the text tower is optional
        before, after = ({key.removeprefix("text."): x for key, x in tensors.items()} for tensors in (before, after))
    before = {key: value for key, value in before.items() if not key.endswith(".num_batches_tracked")}
    assert before.keys() == after.keys()
    for key, value in before.items():
        value = value.reshape(()) if case == "nonscalar" and key.startswith("logit_") else value
        assert value.dtype == after[key].dtype, key
        assert torch.equal(value, after[key]), key


# Misreadings of a setting that the comparison above must detect.
MISREADINGS = [
    ("gelu", "image", {"activation": "quickgelu"}),
    ("gelu", "text", {"activation": "quickgelu"}),
    ("gelu", "image", {"heads": 8}),
    ("gelu", "text", {"causal": False, "padding": "attended"}),
    ("quick_gelu", "image", {"activation": "gelu"}),
    ("quick_gelu", "text", {"activation": "gelu"}),
    ("mlp_ratios", "image", {"heads": 1}),
    ("clipa", "image", {"pooling": "class"}),
    ("clipa", "text", {"pooling": "end"}),
    ("worldwide", "text", {"end_id": 98}),
    ("eos", "text", {"end_id": 2}),
    ("first", "text", {"pooling": "end"}),
    ("first", "text", {"padding": "masked"}),
    ("bidirectional_argmax", "text", {"padding": "masked"}),
    ("bidirectional_argmax", "text", {"causal": True, "padding": "masked"}),
    ("eps", "image", {"norm_eps": 1e-5}),
    ("eps", "text", {"norm_eps": 1e-5}),
    ("tanh", "image", {"activation": "gelu"}),
    ("tanh", "text", {"activation": "gelu"}),
    ("siglip", "image", {"activation": "gelu_tanh"}),
    ("siglip", "image", {"norm_eps": 1e-5}),
    ("siglip2", "image", {"activation": "gelu"}),
    ("siglip2", "text", {"activation": "gelu"}),
    ("mobileclip2", "text", {"causal": True, "padding": "masked"}),
    ("resnet", "image", {"pool_heads": 4}),
    ("resnet_quick_gelu", "text", {"activation": "gelu"}),
]


@pytest.mark.parametrize(("case", "tower", "changes"), MISREADINGS)
def test_comparison_detects_a_misread_setting(case, tower, changes, save, inputs, differences):
    folder, peer = save(CASES[case])
    pixels, ids = inputs(CASES[case])
    model = load(folder)
    config = getattr(model.config, f"replace_{tower}")(**changes)
    other = CLIPModel(config).eval()
    other.load_state_dict(model.state_dict())
    assert differences(other, pixels, ids, outputs(peer, pixels, ids))[tower] > NOTICED


@pytest.mark.parametrize("case", OTHER)
def test_gradients_of_other_towers_equal_the_peers(case, save, inputs):
    folder, peer = save(CASES[case])
    pixels, _ = inputs(CASES[case])
    model = load(folder).train()
    weights = torch.randn(3, model.config.embed_dim)
    for tower in (model.image, peer.visual):
        (tower(pixels) * weights).sum().backward()
    gradients = dict(peer.visual.named_parameters())
    assert gradients.keys() == dict(model.image.named_parameters()).keys()
    for name, parameter in model.image.named_parameters():
        expected = gradients[name].grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5 * float(expected.abs().max()) + 1e-7, rtol=1e-4)


@pytest.mark.parametrize("case", ["custom_text", "proj_bias", "clipa", "siglip", "mobileclip2", "resnet", "eva"])
def test_every_weight_changes_the_outputs(case, save, inputs, differences):
    folder, peer = save(CASES[case])
    pixels, ids = inputs(CASES[case])
    expected = outputs(peer, pixels, ids)
    model = load(folder).requires_grad_(False)
    unused = []
    for name, parameter in model.named_parameters():
        original = parameter.clone()
        parameter.add_(0.1 * torch.randn_like(parameter))
        if max(differences(model, pixels, ids, expected).values()) < NOTICED:
            unused.append(name)
        parameter.copy_(original)
    assert unused == (["image.attnpool.k_proj.bias"] if case == "resnet" else [])  # the softmax cancels it


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loads_half_precision(safe, dtype, save, inputs, compare):
    folder, peer = save(CASES["gelu"], safe=safe, dtype=dtype)
    assert (folder / layout.WEIGHTS).exists() == safe
    pixels, ids = inputs(CASES["gelu"])
    model = load(folder, dtype=torch.float32)
    compare(model, pixels, ids, outputs(peer, pixels, ids))
    assert load(folder).log_scale.dtype == (torch.float32 if dtype == torch.float16 else dtype)


def test_bfloat16_outputs_equal_the_peers(save, inputs, compare):
    folder, _ = save(CASES["siglip"], dtype=torch.bfloat16)
    pixels, ids = inputs(CASES["siglip"])
    peer = open_clip.create_model(f"local-dir:{folder}", precision="pure_bf16").eval()
    expected = tuple(x.float() for x in outputs(peer, pixels.bfloat16(), ids))
    model = load(folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    embeddings = model.encode_image(pixels.bfloat16()), model.encode_text(ids)
    for value, other in zip(embeddings, expected, strict=False):
        assert float((value - other).abs().max()) < 0.03  # bfloat16 has 8 bits


@pytest.mark.parametrize("case", ["gelu", "siglip"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_loads_a_training_checkpoint(case, prefix, save, inputs, compare, tmp_path):
    folder, peer = save(CASES[case])
    tensors = {prefix + key: value for key, value in peer.state_dict().items()}
    torch.save({"epoch": 7, "name": "run", "state_dict": tensors}, tmp_path / "epoch_7.pt")
    pixels, ids = inputs(CASES[case])
    model = load(tmp_path / "epoch_7.pt", config=folder / layout.CONFIG)
    compare(model, pixels, ids, outputs(peer, pixels, ids))
    (folder / layout.WEIGHTS).unlink()
    (tmp_path / "epoch_7.pt").rename(folder / "open_clip_pytorch_model.pt")
    compare(load(folder), pixels, ids, outputs(peer, pixels, ids))


def test_resizes_the_positions_of_a_resnet(save, inputs, compare):
    folder, _ = save(CASES["resnet"])
    _, ids = inputs(CASES["resnet"])
    with pytest.warns(UserWarning, match="of 2 x 2 patches were resized to 3 x 3"):
        model = load(folder, image_size=96)
    assert model.image.attnpool.positional_embedding.shape == (10, 256)
    assert model(torch.randn(2, 3, 96, 96), ids).image_embeddings.shape == (2, 16)


def test_positions_of_a_resnet_are_resized_only_on_request(save):
    folder, _ = save(CASES["resnet"])
    settings = json.loads((folder / layout.CONFIG).read_text())
    settings["model_cfg"]["vision_cfg"]["image_size"] = 96
    (folder / layout.CONFIG).write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="expected 10 rows for images of 96 pixels"):
        load(folder)
    with pytest.warns(UserWarning, match="of 2 x 2 patches were resized to 3 x 3"):
        assert load(folder, image_size=96).config.image.image_size == 96


def test_towers_of_timm_have_their_own_size(save):
    folder, _ = save(CASES["eva"])
    assert load(folder, image_size=32).config.image.image_size == 32
    with pytest.raises(ValueError, match="image_size=48: the image tower is timm's eva_toy, which loads only at its"):
        load(folder, image_size=48)


def test_without_timm(save, monkeypatch):
    folder, _ = save(CASES["eva"])
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"timm's eva_toy needs the extra timm .* pip install 'miniclip\[timm\]'"):
        load(folder)


@pytest.mark.parametrize("case", ["gelu", "clipa", "siglip", "mobileclip2"])
@pytest.mark.parametrize("size", [16, 48])
def test_resizes_to_another_image_size(case, size, save, inputs, compare):
    config = CASES[case]
    folder, _ = save(config)
    _, ids = inputs(config)
    pixels = torch.randn(3, 3, size, size)
    peer = open_clip.create_model(f"local-dir:{folder}", force_image_size=size).eval()
    with pytest.warns(UserWarning, match=f"of 4 x 4 patches were resized to {size // 8} x {size // 8}"):
        model = load(folder, image_size=size)
    assert model.config.image.image_size == model.preprocess.size == size
    compare(model, pixels, ids, outputs(peer, pixels, ids))


@pytest.mark.parametrize("case", ["gelu", "siglip"])
def test_exports_another_image_size(case, save, inputs, compare, tmp_path):
    folder, _ = save(CASES[case])
    _, ids = inputs(CASES[case])
    pixels = torch.randn(3, 3, 48, 48)
    with pytest.warns(UserWarning, match="resized to 6 x 6"):
        model = load(folder, image_size=48)
    if case == "siglip":  # timm's name of the tower implies its size
        with pytest.raises(ValueError, match="none of timm's equals it"):
            export(model, tmp_path / "back", layout="open_clip")
        return
    export(model, tmp_path / "back", layout="open_clip")
    back = open_clip.create_model(f"local-dir:{tmp_path / 'back'}").eval()
    compare(model, pixels, ids, outputs(back, pixels, ids))


def test_loads_added_tokens(save, inputs, compare, tmp_path):
    """Added tokens have higher ids than the end token."""
    folder, peer = save(own(text={"vocab_size": 49411, "layers": 1}))
    pixels, ids = inputs(CASES["gelu"])
    ids[ids == 98] = 49407
    model = load(folder)
    compare(model, pixels, ids, outputs(peer, pixels, ids))
    export(model, tmp_path / "back", layout="open_clip")
    back = open_clip.create_model(f"local-dir:{tmp_path / 'back'}").eval()
    ids[1:, 1] = 49410
    compare(model, pixels, ids, outputs(back, pixels, ids))


@pytest.mark.parametrize("vocabulary", [1024, 49416])
@pytest.mark.parametrize("changes", [{}, {"no_causal_mask": True}])
def test_pools_at_the_highest_id_of_a_padded_vocabulary(vocabulary, changes, save, captions, compare, tmp_path):
    """The end token, 999, is not the last of the vocabulary, and another token may have a higher id."""
    folder, peer = save(own(text={"vocab_size": vocabulary, **changes}))
    pixels, ids = torch.randn(3, 3, 32, 32), captions(12, 1000, 999)
    model = load(folder)
    assert model.config.text.end_id is None
    export(model, tmp_path / "back", layout="open_clip")
    back = open_clip.create_model(f"local-dir:{tmp_path / 'back'}").eval()
    for other in (False, True):
        if other:
            ids[1:, 1] = 1010
        expected = outputs(peer, pixels, ids)
        compare(model, pixels, ids, expected)
        compare(load(tmp_path / "back"), pixels, ids, expected)
        compare(model, pixels, ids, outputs(back, pixels, ids))
        torch.testing.assert_close(model.encode_text(ids), expected[1], atol=2e-5, rtol=0)


def test_a_tokenizer_with_any_end_fits_a_padded_vocabulary(save, toy_tokenizer):
    folder, peer = save(own(text={"vocab_size": 1024}))
    model = load(folder, tokenizer=toy_tokenizer)
    texts = ["a red circle", "a dog", "a blue square above a dog"] * 3
    ids = torch.nn.functional.pad(toy_tokenizer(texts), (0, 12))[:, :12]
    with torch.no_grad():
        expected = peer.encode_text(ids, normalize=True)
    torch.testing.assert_close(model.encode_text(texts), expected, atol=2e-5, rtol=0)


def test_crop_rounding_does_not_matter_without_cropping(tmp_path):
    text = TextConfig(12, 99, 24, 2, 3, padding="attended", pooling="last", projection="bias")
    config = CLIPConfig(TOWERS["vit_toy_siglip"], text, 32, logit_bias=-10.0, resize="squash", crop_rounding="floored")
    export(CLIPModel(config).initialise(), tmp_path, layout="open_clip")
    assert load(tmp_path).config.resize == "squash"


PREPROCESS = [
    {},
    {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.75], "interpolation": "bilinear", "resize_mode": "squash"},
    {"size": 32, "mode": "RGB", "interpolation": "random", "fill_color": 0, "resize_mode": "shortest"},
    {"mean": 0.5, "std": 0.5},
]


@pytest.mark.parametrize("preprocess", PREPROCESS)
def test_exports_the_preprocessing(preprocess, save, tmp_path):
    folder, peer = save(CASES["gelu"], preprocess)
    (folder / layout.CONFIG).write_text(json.dumps({"model_cfg": CASES["gelu"], "preprocess_cfg": preprocess}))
    export(load(folder), tmp_path / "back", layout="open_clip")
    back, _, made = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'back'}")
    expected = dict(peer.visual.preprocess_cfg)
    expected["interpolation"] = expected["interpolation"].replace("random", "bicubic")  # that is what it computes
    for name in ("mean", "std"):
        expected[name] = list(expected[name]) if isinstance(expected[name], tuple | list) else [expected[name]] * 3
    assert back.visual.preprocess_cfg == expected
    assert repr(made) == repr(transform.image_transform_v2(transform.PreprocessCfg(**expected), is_train=False))
    written = json.loads((tmp_path / "back" / layout.CONFIG).read_text())["preprocess_cfg"]
    assert written == {key: expected[key] for key in ("mean", "std", "interpolation", "resize_mode")}


def test_exports_the_initial_scale(save, tmp_path):
    folder, _ = save(CASES["bias"])
    model = load(folder)
    assert model.config.logit_scale == pytest.approx(10)
    assert model.config.logit_bias == -10
    export(model, tmp_path / "back", layout="open_clip")
    assert load(tmp_path / "back").config == model.config


@pytest.mark.parametrize(
    ("text", "options", "repo"),
    [
        ({}, {"clean": "lower"}, None),  # OpenAI's tokenizer
        ({"hf_tokenizer_name": "org/name"}, {"clean": "whitespace"}, "org/name"),
        ({"hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"clean": "canonicalize"}}, {"clean": "canonicalize"}, "a/b"),
        (
            {"hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"strip_sep_token": True}},
            {"clean": "whitespace", "strip_sep_token": True},
            "a/b",
        ),
    ],
)
def test_reads_the_tokenizer_of_the_configuration(text, options, repo):
    plan = layout.load_plan({"model_cfg": own(text=text)}, {"visual.conv1.weight": (1,)})
    assert (plan.tokenizer_options, plan.tokenizer_repo) == (options, repo)


REFUSED = [
    (own({"layers": [1, 1, 1]}), r"image.blocks is \(1, 1, 1\); expected 4 numbers"),
    (own({"layers": [1, 0, 1, 1]}), "not those of a ResNet"),
    (own({"layers": [1, 1, 1, 1], "image_size": 40}), "expected a multiple of 32 for a ResNet"),
    (own({"ls_init_value": 1e-4}), "vision_cfg.ls_init_value is 0.0001"),
    (own({"attentional_pool": True}), "vision_cfg.attentional_pool is True"),
    (own({"pool_type": "avg"}), "miniclip normalises only their mean"),
    (own({"pool_type": "none"}), "vision_cfg.pool_type is 'none'"),
    (own({"qk_norm": True}), "vision_cfg.qk_norm is True"),
    (own({"image_size": [32, 48]}), "vision_cfg.image_size is"),
    (own({"norm_kwargs": {"elementwise_affine": False}}), "vision_cfg.norm_kwargs is"),
    (own({"act_kwargs": {"approximate": "sigmoid"}}), "vision_cfg.act_kwargs is"),
    (own({"act_kwargs": TANH}, quick_gelu=True), "vision_cfg.act_kwargs is"),
    (own({"widht": 3}), "vision_cfg.widht"),
    (own({"timm_model_name": 7}), "vision_cfg.timm_model_name is 7"),
    (named("convnext_toy", "avg", "bilinear", TEXT), "vision_cfg.timm_proj is 'bilinear'"),
    (own(text={"hf_model_name": "roberta-base"}), "text_cfg.hf_model_name is 'roberta-base'"),
    (own(text={"embed_cls": True}), "text_cfg.embed_cls is True"),
    (own(text={"pool_type": "last"}), "text.pooling 'last'"),
    (own(text={"pool_type": "first"}), "text.causal with text.pooling 'first'"),
    (own(text={"proj_type": "mlp"}), "text_cfg.proj_type is 'mlp'"),
    (own(text={"use_pad_mask": True}), "text_cfg.use_pad_mask"),
    (own(multimodal_cfg={"layers": 2}), "model_cfg.multimodal_cfg is"),
    (own(quick_glue=True), "model_cfg.quick_glue"),
    (own(embed_dim="16"), "model_cfg.embed_dim is '16'"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_refuses_unsupported_models(config, message, one_line):
    with pytest.raises(ValueError, match=message) as caught:
        layout.model_config(config, {})
    one_line(caught)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"resize_mode": "longest"}, "preprocess_cfg.resize_mode is 'longest'"),
        ({"interpolation": "nearest"}, "preprocess_cfg.interpolation is 'nearest'"),
        ({"mode": "L"}, "preprocess_cfg.mode is 'L'"),
        ({"mean": [0.5]}, r"preprocess_cfg.mean is \[0.5\]"),
        ({"gamma": 2}, "preprocess_cfg.gamma"),
    ],
)
def test_refuses_unsupported_preprocessing(preprocess, message, one_line):
    with pytest.raises(ValueError, match=message) as caught:
        layout.model_config(own(), preprocess)
    one_line(caught)


IMAGE, BERT = ImageConfig(32, 8, 32, 2, 4), TextConfig(12, 99, 24, 2, 3)
CAUSAL = TextConfig(12, 99, 24, 2, 3, causal=True, pooling="end")
NOT_EXPORTED = [
    (CLIPConfig(IMAGE, BERT, 16), "no bidirectional text tower with masked padding"),
    (CLIPConfig(IMAGE, CAUSAL, 16).replace_text(activation="quickgelu"), "QuickGELU in both towers or in none"),
    (CLIPConfig(IMAGE, CAUSAL, 16).replace_image(patch_bias=True), "open_clip cannot build this image tower"),
    (
        CLIPConfig(IMAGE, CAUSAL, 16).replace_image(projection="bias", heads=2),
        "open_clip cannot build this image tower",
    ),
    (CLIPConfig(IMAGE, CAUSAL, 16).replace_image(pooling="mean", class_token=False), "cannot build this image tower"),
]


@pytest.mark.parametrize(("config", "message"), NOT_EXPORTED)
def test_refuses_to_export_other_models(config, message, tmp_path, one_line):
    with pytest.raises(ValueError, match=message) as caught:
        export(CLIPModel(config).initialise(), tmp_path / "back", layout="open_clip")
    one_line(caught)
    assert not (tmp_path / "back").exists()


def is_supported(config):
    """Return whether miniclip should support an architecture of open_clip's table."""
    unsupported = {**config["vision_cfg"], **config["text_cfg"], **config}.keys()
    return unsupported.isdisjoint({"ls_init_value", "hf_model_name", "multimodal_cfg"})


def known_architectures():
    """Return open_clip's configurations, and the names of those whose towers are both miniclip's own."""
    configs = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    supported = {name: layout.model_config(config, {}) for name, config in configs.items() if is_supported(config)}
    return configs, supported, {name for name, config in supported.items() if isinstance(config.image, ImageConfig)}


def test_supports_the_architectures_of_open_clip(one_line):
    configs, supported, own_towers = known_architectures()
    assert len(supported) >= 130
    assert len(own_towers) >= 71
    for name in configs.keys() - supported.keys():
        with pytest.raises(ValueError, match="which miniclip does not support") as caught:
            layout.model_config(configs[name], {})
        one_line(caught)


def anatomy(model, heads):
    """Return what shapes do not show: the norms' epsilons, the heads, the activations."""
    modules = list(model.modules())
    norms = sorted(module.eps for module in modules if isinstance(module, nn.LayerNorm))
    counts = sorted(getattr(module, heads) for module in modules if hasattr(module, heads))
    kinds = [(type(module).__name__.lower(), getattr(module, "approximate", "none")) for module in modules]
    tanh = {"gelutanh": ("gelu", "tanh")}  # timm's class
    return norms, counts, sorted(tanh.get(kind, (kind, how)) for kind, how in kinds if "gelu" in kind)


def built(config):
    """Build open_clip's model of a configuration, without memory."""
    config = dict(config)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    keep = mock.patch.object(timm.models.vision_transformer, "trunc_normal_", lambda tensor, **_: tensor)
    with torch.device("meta"), keep:  # to draw values without memory would take most of the time
        return kind(**config)


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.slow
def test_architectures_equal_those_of_open_clip():
    configs, _, names = known_architectures()
    for name in sorted(names):
        config = configs[name]
        for tower in ("vision_cfg", "text_cfg"):  # all blocks are equal; timm's towers keep expected
            config[tower]["layers"] = min(config[tower].get("layers", 12), 2)
        parsed, peer = layout.model_config(config, {}), built(config)
        with torch.device("meta"):
            model = CLIPModel(parsed)
        assert all(value.is_meta for value in (*peer.state_dict().values(), *model.state_dict().values()))
        source, expected = SimpleNamespace(path=name, shapes=shapes(peer)), shapes(model)
        source.dtypes = dict.fromkeys(source.shapes, torch.float32)
        steps = expand(layout.key_map(parsed, source.shapes), parsed)
        conversion._check(
            source, [step for step in steps if step.parameter is None or step.parameter in expected], expected
        )
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in peer.parameters()), name
        assert anatomy(model, "heads") == anatomy(peer, "num_heads"), name


@pytest.mark.slow
def test_loads_a_full_size_siglip(tmp_path, inputs, compare):
    text = {**SIGLIP_TEXT, "width": 768, "heads": 12, "layers": 1}
    vision = {"image_size": 224, "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map"}
    config = {"embed_dim": 768, "vision_cfg": {**vision, "timm_proj": "none"}, "text_cfg": text}
    config |= {"custom_text": True, "init_logit_bias": -10}
    peer = built(config).to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(std=0.03)
    torch.save(peer.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / layout.CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    pixels, ids = inputs(config)
    model = load(tmp_path)
    compare(model, pixels[:2], ids, outputs(peer, pixels[:2], ids))
    export(model, tmp_path / "back", layout="open_clip")
    with pytest.raises(CheckpointError, match="fit"):
        load(tmp_path / "back", config=model.config.replace_image(layers=11))
    assert_same_weights(peer.state_dict(), read(tmp_path / "back"), "siglip")
