"""Conversion by key maps: every key is used once, every parameter is filled, and errors name what does not fit."""

import collections
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.checkpoints import key_maps
from miniclip.checkpoints.conversion import MAX_PROBLEMS, convert, expand, invert
from miniclip.checkpoints.formats import open_clip, openai
from miniclip.checkpoints.key_maps import Row, identity_rows, prefixed
from miniclip.checkpoints.weights import InMemoryWeights
from miniclip.config import PRESETS, CLIPConfig, ImageConfig, TextConfig
from miniclip.errors import CheckpointError
from miniclip.inference.model import CLIPModel

CAUSAL = {"causal": True, "pooling": "end"}
OPENAI = CLIPConfig(ImageConfig(16, 4, 24, 2, 3), TextConfig(8, 50, 16, 3, 2, **CAUSAL), 8)
ATTENTION = {"class_token": False, "norm_before": False, "patch_bias": True, "pooling": "attention"}
SIGLIP = CLIPConfig(
    ImageConfig(16, 4, 24, 2, 3, projection="none", **ATTENTION),
    TextConfig(8, 50, 16, 3, 2, padding="attended", pooling="last", projection="bias"),
    24,
    logit_bias=-10.0,
)
BIASED = OPENAI.replace_text(projection="bias")
TIMM_CLIP = OPENAI.replace_image(projection="bias")
TIMM = (*key_maps.TIMM_IMAGE, *prefixed(key_maps.OPENAI_TEXT, "text."))
TEXT = prefixed(key_maps.OPENAI_TEXT + key_maps.TEXT_LINEAR, "text.")
LAYOUTS = {  # the key map, and a model for it
    "openai": (openai.key_map(OPENAI), OPENAI),
    "openai with sizes": ((*openai.key_map(OPENAI), *key_maps.OPENAI_SIZES), OPENAI),
    "open_clip": (open_clip.key_map(OPENAI), OPENAI),
    "open_clip, biased": (open_clip.key_map(BIASED), BIASED),
    "open_clip, siglip": ((*key_maps.TIMM_IMAGE, *TEXT, *key_maps.SCALARS), SIGLIP),
    "open_clip, mobileclip": ((*TIMM, *prefixed(key_maps.TEXT_MATRIX, "text."), *key_maps.SCALARS), TIMM_CLIP),
    "transformers": (key_maps.TRANSFORMERS_CLIP, OPENAI),
    "transformers, siglip": (key_maps.TRANSFORMERS_SIGLIP, SIGLIP),
    "miniclip": (None, OPENAI),
}


def rows_of(layout):
    rows, config = LAYOUTS[layout]
    return identity_rows(shapes(config)) if rows is None else rows


def shapes(config):
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in CLIPModel(config).state_dict().items()}


def weights(config):
    return {key: torch.randn(shape) for key, shape in shapes(config).items()}


class CountingWeights(InMemoryWeights):
    """Weights that count how often each tensor is read to be kept, and to be copied."""

    def __init__(self, tensors):
        super().__init__(Path("the file"), tensors)
        self.kept, self.copied = collections.Counter(), collections.Counter()

    def get(self, key):
        self.kept[key] += 1
        return super().get(key)

    def take(self, key):
        self.copied[key] += 1
        return super().take(key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_uses_every_key_once_and_fills_every_parameter(layout):
    rows, config = rows_of(layout), LAYOUTS[layout][1]
    parameters = weights(config)
    file_tensors = invert(rows, config, parameters)
    source = CountingWeights(file_tensors)
    converted = convert(source, rows, config, shapes(config), None)
    assert converted.keys() == parameters.keys()
    assert all(torch.equal(converted[key], value) for key, value in parameters.items())
    assert source.kept + source.copied == collections.Counter(file_tensors.keys())
    again = invert(rows, config, converted)
    assert again.keys() == file_tensors.keys()
    assert all(torch.equal(again[key], value) for key, value in file_tensors.items())


TOWERS = st.fixed_dictionaries({"layers": st.integers(1, 3), "heads": st.sampled_from([1, 2])})


@settings(max_examples=25)
@pytest.mark.parametrize("layout", LAYOUTS)
@given(image=TOWERS, text=TOWERS, bias=st.booleans(), norm=st.booleans(), patch=st.booleans())
def test_converts_any_sizes_and_parts(layout, image, text, bias, norm, patch):
    config = LAYOUTS[layout][1].replace_image(**image, norm_before=norm, patch_bias=patch).replace_text(**text)
    parameters = {key: value for key, value in weights(config).items() if bias or key != "bias"}
    rows = identity_rows(parameters) if layout == "miniclip" else rows_of(layout)
    source = InMemoryWeights(Path("the file"), invert(rows, config, parameters))
    converted = convert(source, rows, config, {key: tuple(value.shape) for key, value in parameters.items()}, None)
    assert converted.keys() == parameters.keys()
    assert all(torch.equal(converted[key], value) for key, value in parameters.items())


@pytest.mark.parametrize("name", [*PRESETS, "siglip"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_key_or_parameter_appears_twice(layout, name):
    config = PRESETS[name][1] if name in PRESETS else SIGLIP
    steps = list(expand(rows_of(layout), config))
    keys = [key for step in steps for key in step.keys]
    parameters = [step.parameter for step in steps if step.parameter is not None]
    assert len(keys) == len(set(keys))
    assert len(parameters) == len(set(parameters))
    assert not any("{" in name for name in keys + parameters)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("vit")])
def test_clip_presets_fit_every_layout_of_clip(name):
    config = PRESETS[name][1]
    for layout in ("openai", "open_clip", "transformers"):
        assert shapes(config).keys() <= {step.parameter for step in expand(rows_of(layout), config)}, layout


def test_all_key_maps_are_tested():
    constants = (value for value in vars(key_maps).values() if isinstance(value, tuple) and isinstance(value[0], Row))
    assert {row.parameter for rows in constants for row in rows} <= {
        row.parameter for name in LAYOUTS for row in rows_of(name)
    }


def refusal(tensors, expected=None, config=OPENAI, layout="openai"):
    """Return the error message about these weights, of which none was read."""
    source = CountingWeights(tensors)
    with pytest.raises(CheckpointError) as caught:
        convert(source, rows_of(layout), config, expected or shapes(config), None)
    assert not source.kept + source.copied
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("the file: the weights do not fit the configuration: ")
    return str(caught.value)


@pytest.fixture
def tensors():
    return invert(openai.key_map(OPENAI), OPENAI, weights(OPENAI))


def test_names_a_missing_key(tensors):
    del tensors["visual.ln_pre.bias"]
    assert refusal(tensors).endswith(": visual.ln_pre.bias is missing")


def test_names_an_unknown_key(tensors):
    tensors["visual.ln_pre.biases"] = torch.zeros(3)
    assert refusal(tensors).endswith(": visual.ln_pre.biases is unknown")


def test_refuses_an_additional_block(tensors):
    tensors["transformer.resblocks.3.ln_1.bias"] = torch.zeros(16)
    assert refusal(tensors).endswith(": transformer.resblocks.3.ln_1.bias is unknown")


def test_refuses_a_tensor_without_parameter(tensors):
    tensors["logit_bias"] = torch.zeros(())
    assert refusal(tensors).endswith(": logit_bias is unknown")


def test_refuses_a_parameter_without_row(tensors):
    assert refusal(tensors, {**shapes(OPENAI), "image.gate": (3,)}).endswith(": image.gate is missing")


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("visual.ln_pre.bias", (25,), "visual.ln_pre.bias has the shape (25,), expected (24,)"),
        ("visual.proj", (8, 24), "visual.proj has the shape (8, 24), expected (8, 24) as image.projection.weight"),
        ("visual.positional_embedding", (16, 24), "has the shape (16, 24), expected (17, 24) as image.positions"),
        ("positional_embedding", (9, 16), "positional_embedding has the shape (9, 16), expected (8, 16)"),
        ("logit_scale", (2,), "logit_scale has the shape (2,), expected () as log_scale"),
        ("visual.conv1.weight", (24, 3, 4, 5), "has the shape (24, 3, 4, 5), expected (24, 3, 4, 4)"),
    ],
)
def test_names_the_shape_and_the_expected_shape(tensors, key, shape, message):
    tensors[key] = torch.zeros(shape)
    assert refusal(tensors).endswith(message)


def test_names_all_tensors_of_one_parameter():
    tensors = invert(key_maps.TRANSFORMERS_CLIP, OPENAI, weights(OPENAI))
    name = "text_model.encoder.layers.1.self_attn.{}_proj.bias"
    tensors[name.format("k")] = torch.zeros(15)
    message = refusal(tensors, layout="transformers")
    for part, size in (("q", 16), ("k", 15), ("v", 16)):
        assert f"{name.format(part)} has the shape ({size},)" in message
    assert message.endswith("expected (48,) as text.blocks.1.attention.qkv.bias")
    del tensors[name.format("k")], tensors[name.format("v")]
    message = refusal(tensors, layout="transformers")
    assert message.endswith(f"{name.format('k')} is missing; {name.format('v')} is missing")


@pytest.mark.parametrize("more", [0, 1, 5])
def test_names_the_first_problems_and_counts_the_others(tensors, more):
    for i in range(MAX_PROBLEMS + more):
        tensors[f"extra.{i}"] = torch.zeros(1)
    message = refusal(tensors)
    assert message.count("is unknown") == MAX_PROBLEMS
    assert message.endswith(f"; and {more} more" if more else "is unknown")


def test_checks_shapes_without_allocating():
    class Endless:
        path, shapes = Path("the file"), {"visual.conv1.weight": (10**9, 10**9, 10**9)}

        def take(self, key):
            raise AssertionError(key)

    with pytest.raises(CheckpointError, match=re.escape(f"has the shape {(10**9,) * 3}, expected (24, 3, 4, 4)")):
        convert(Endless(), openai.key_map(OPENAI), OPENAI, shapes(OPENAI), None)


def test_ignores_tensors_of_rows_without_parameter(tensors):
    tensors |= {row.keys: torch.tensor(1) for row in key_maps.OPENAI_SIZES}
    converted = convert(InMemoryWeights(Path("f"), tensors), rows_of("openai with sizes"), OPENAI, shapes(OPENAI), None)
    assert converted.keys() == shapes(OPENAI).keys()
    assert "input_resolution is unknown" in refusal(tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_converts_the_precision(tensors, dtype):
    converted = convert(InMemoryWeights(Path("f"), tensors), openai.key_map(OPENAI), OPENAI, shapes(OPENAI), dtype)
    assert {value.dtype for value in converted.values()} == {dtype}
    assert torch.equal(converted["image.projection.weight"], tensors["visual.proj"].T.to(dtype))


def test_keeps_unchanged_tensors_and_copies_the_others(tensors):
    source = CountingWeights(tensors)
    converted = convert(source, openai.key_map(OPENAI), OPENAI, shapes(OPENAI), None)
    assert converted["text.tokens.weight"].data_ptr() == tensors["token_embedding.weight"].data_ptr()
    assert set(source.copied) == {"visual.proj", "text_projection"}


def test_concatenates_tensors_of_several_precisions():
    tensors = invert(key_maps.TRANSFORMERS_CLIP, OPENAI, weights(OPENAI))
    name = "text_model.encoder.layers.0.self_attn.{}_proj.weight"
    parts = [tensors[name.format(part)] for part in "qkv"]
    tensors[name.format("k")] = parts[1] = parts[1].half()
    converted = convert(InMemoryWeights(Path("f"), tensors), key_maps.TRANSFORMERS_CLIP, OPENAI, shapes(OPENAI), None)
    assert torch.equal(converted["text.blocks.0.attention.qkv.weight"], torch.cat([part.float() for part in parts]))


def test_invert_refuses_a_parameter_without_row():
    parameters = weights(OPENAI) | {"bias": torch.zeros(())}
    with pytest.raises(ValueError, match="the layout has no place for bias"):
        invert(openai.key_map(OPENAI), OPENAI, parameters)
    parameters |= {f"image.blocks.{i}.gate": torch.zeros(1) for i in range(MAX_PROBLEMS + 1)}
    with pytest.raises(ValueError, match=r"bias; image\.blocks\.0\.gate; .*; and 2 more"):
        invert(openai.key_map(OPENAI), OPENAI, parameters)


def test_expands_rows_to_blocks_weights_and_biases():
    steps = list(expand([Row("a.{p}", "image.a.{p}"), Row(("b.{i}", "c.{i}"), "text.d.{i}"), Row("e", None)], OPENAI))
    assert [(step.keys, step.parameter) for step in steps] == [
        (("a.weight",), "image.a.weight"),
        (("a.bias",), "image.a.bias"),
        (("b.0", "c.0"), "text.d.0"),
        (("b.1", "c.1"), "text.d.1"),
        (("b.2", "c.2"), "text.d.2"),
        (("e",), None),
    ]


def test_prefixed_adds_the_prefix_to_each_key():
    rows = prefixed((Row("a", "b"), Row(("c", "d"), "e")), "text.")
    assert [row.keys for row in rows] == ["text.a", ("text.c", "text.d")]
    assert [row.parameter for row in rows] == ["b", "e"]
