"""The engine and its tables: every key is used once, every parameter filled, and what does not fit is named."""

import collections
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.checkpoints import key_maps as tables
from miniclip.checkpoints.conversion import SHOWN, convert, expand, invert
from miniclip.checkpoints.formats import open_clip, openai
from miniclip.checkpoints.formats.safetensors import IN_PLACE
from miniclip.checkpoints.key_maps import Row, prefixed
from miniclip.checkpoints.reading import InMemoryTensors, own_rows
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
TIMM = (*tables.TIMM_IMAGE, *prefixed(tables.OPENAI_TEXT, "text."))
TEXT = prefixed(tables.OPENAI_TEXT + tables.TEXT_LINEAR, "text.")
LAYOUTS = {  # the rows, and a model that they are for
    "openai": (openai.ROWS, OPENAI),
    "openai with marks": ((*openai.ROWS, *tables.OPENAI_MARKS), OPENAI),
    "open_clip": (open_clip.rows(OPENAI), OPENAI),
    "open_clip, biased": (open_clip.rows(BIASED), BIASED),
    "open_clip, siglip": ((*tables.TIMM_IMAGE, *TEXT, *tables.SCALARS), SIGLIP),
    "open_clip, mobileclip": ((*TIMM, *prefixed(tables.TEXT_MATRIX, "text."), *tables.SCALARS), TIMM_CLIP),
    "transformers": (tables.TRANSFORMERS_CLIP, OPENAI),
    "transformers, siglip": (tables.TRANSFORMERS_SIGLIP, SIGLIP),
    "ours": (None, OPENAI),
}


def rows_of(layout):
    rows, config = LAYOUTS[layout]
    return own_rows(shapes(config)) if rows is None else rows


def shapes(config):
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in CLIPModel(config).state_dict().items()}


def weights(config):
    return {key: torch.randn(shape) for key, shape in shapes(config).items()}


class Watched(InMemoryTensors):
    """A source that counts what is done with it."""

    def __init__(self, tensors):
        super().__init__(Path("the file"), tensors)
        self.taken, self.released = collections.Counter(), collections.Counter()

    def take(self, key):
        self.taken[key] += 1
        return super().take(key)

    def release(self, key):
        self.released[key] += 1
        super().release(key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_key_is_used_once_and_every_parameter_filled(layout):
    rows, config = rows_of(layout), LAYOUTS[layout][1]
    ours = weights(config)
    theirs = invert(rows, config, ours)
    source = Watched(theirs)
    found = convert(source, rows, config, shapes(config), None)
    assert found.keys() == ours.keys()
    assert all(torch.equal(found[key], value) for key, value in ours.items())
    assert source.taken == collections.Counter(theirs.keys())
    assert max(source.released.values(), default=1) == 1
    again = invert(rows, config, found)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], value) for key, value in theirs.items())


TOWERS = st.fixed_dictionaries({"layers": st.integers(1, 3), "heads": st.sampled_from([1, 2])})


@settings(max_examples=25)
@pytest.mark.parametrize("layout", LAYOUTS)
@given(image=TOWERS, text=TOWERS, bias=st.booleans(), norm=st.booleans(), patch=st.booleans())
def test_sizes_and_parts_do_not_matter(layout, image, text, bias, norm, patch):
    config = LAYOUTS[layout][1].replace_image(**image, norm_before=norm, patch_bias=patch).replace_text(**text)
    ours = {key: value for key, value in weights(config).items() if bias or key != "bias"}
    rows = own_rows(ours) if layout == "ours" else rows_of(layout)
    source = InMemoryTensors(Path("the file"), invert(rows, config, ours))
    found = convert(source, rows, config, {key: tuple(value.shape) for key, value in ours.items()}, None)
    assert found.keys() == ours.keys()
    assert all(torch.equal(found[key], value) for key, value in ours.items())


@pytest.mark.parametrize("name", [*PRESETS, "siglip"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_key_and_no_parameter_twice(layout, name):
    config = PRESETS[name][1] if name in PRESETS else SIGLIP
    steps = list(expand(rows_of(layout), config))
    theirs = [key for step in steps for key in step.theirs]
    ours = [step.ours for step in steps if step.ours is not None]
    assert len(theirs) == len(set(theirs))
    assert len(ours) == len(set(ours))
    assert not any("{" in key for key in theirs + ours)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("vit")])
def test_the_presets_are_whole_in_every_layout_of_clip(name):
    config = PRESETS[name][1]
    for layout in ("openai", "open_clip", "transformers"):
        assert shapes(config).keys() <= {step.ours for step in expand(rows_of(layout), config)}, layout


def test_all_tables_are_looked_at():
    constants = (value for value in vars(tables).values() if isinstance(value, tuple) and isinstance(value[0], Row))
    assert {row.ours for rows in constants for row in rows} <= {row.ours for name in LAYOUTS for row in rows_of(name)}


def refused(theirs, expected=None, config=OPENAI, layout="openai"):
    """The message about these weights; not one of them was read."""
    source = Watched(theirs)
    with pytest.raises(CheckpointError) as caught:
        convert(source, rows_of(layout), config, expected or shapes(config), None)
    assert not source.taken
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("the file: the weights do not fit the configuration: ")
    return str(caught.value)


@pytest.fixture
def theirs():
    return invert(openai.ROWS, OPENAI, weights(OPENAI))


def test_a_missing_key_is_named(theirs):
    del theirs["visual.ln_pre.bias"]
    assert refused(theirs).endswith(": visual.ln_pre.bias is missing")


def test_an_unknown_key_is_named(theirs):
    theirs["visual.ln_pre.biases"] = torch.zeros(3)
    assert refused(theirs).endswith(": visual.ln_pre.biases is unknown")


def test_a_block_too_many_is_unknown(theirs):
    theirs["transformer.resblocks.3.ln_1.bias"] = torch.zeros(16)
    assert refused(theirs).endswith(": transformer.resblocks.3.ln_1.bias is unknown")


def test_a_part_that_the_model_has_not_is_unknown(theirs):
    theirs["logit_bias"] = torch.zeros(())
    assert refused(theirs).endswith(": logit_bias is unknown")


def test_a_parameter_that_the_layout_has_no_row_for_is_missing(theirs):
    assert refused(theirs, {**shapes(OPENAI), "image.gate": (3,)}).endswith(": image.gate is missing")


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
def test_another_shape_is_named_beside_ours(theirs, key, shape, message):
    theirs[key] = torch.zeros(shape)
    assert refused(theirs).endswith(message)


def test_all_parts_of_one_parameter_are_named():
    theirs = invert(tables.TRANSFORMERS_CLIP, OPENAI, weights(OPENAI))
    name = "text_model.encoder.layers.1.self_attn.{}_proj.bias"
    theirs[name.format("k")] = torch.zeros(15)
    message = refused(theirs, layout="transformers")
    for part, size in (("q", 16), ("k", 15), ("v", 16)):
        assert f"{name.format(part)} has the shape ({size},)" in message
    assert message.endswith("expected (48,) as text.blocks.1.attention.qkv.bias")
    del theirs[name.format("k")], theirs[name.format("v")]
    message = refused(theirs, layout="transformers")
    assert message.endswith(f"{name.format('k')} is missing; {name.format('v')} is missing")


@pytest.mark.parametrize("more", [0, 1, 5])
def test_the_first_problems_are_named_and_the_others_counted(theirs, more):
    for i in range(SHOWN + more):
        theirs[f"extra.{i}"] = torch.zeros(1)
    message = refused(theirs)
    assert message.count("is unknown") == SHOWN
    assert message.endswith(f"; and {more} more" if more else "is unknown")


def test_nothing_is_allocated_to_see_that_it_does_not_fit():
    class Endless:
        path, shapes = Path("the file"), {"visual.conv1.weight": (10**9, 10**9, 10**9)}

        def take(self, key):
            raise AssertionError(key)

    with pytest.raises(CheckpointError, match=re.escape(f"has the shape {(10**9,) * 3}, expected (24, 3, 4, 4)")):
        convert(Endless(), openai.ROWS, OPENAI, shapes(OPENAI), None)


def test_what_nobody_needs_may_be_there(theirs):
    theirs |= {row.theirs: torch.tensor(1) for row in tables.OPENAI_MARKS}
    found = convert(InMemoryTensors(Path("f"), theirs), rows_of("openai with marks"), OPENAI, shapes(OPENAI), None)
    assert found.keys() == shapes(OPENAI).keys()
    assert "input_resolution is unknown" in refused(theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_is_changed_on_the_way(theirs, dtype):
    found = convert(InMemoryTensors(Path("f"), theirs), openai.ROWS, OPENAI, shapes(OPENAI), dtype)
    assert {value.dtype for value in found.values()} == {dtype}
    assert torch.equal(found["image.projection.weight"], theirs["visual.proj"].T.to(dtype))


def test_what_was_copied_is_given_back_and_what_was_not_is_shared(theirs):
    source = Watched(theirs)
    found = convert(source, openai.ROWS, OPENAI, shapes(OPENAI), None)
    shared = found["text.tokens.weight"].data_ptr() == theirs["token_embedding.weight"].data_ptr()
    assert shared
    assert "token_embedding.weight" not in source.released
    assert source.released["visual.proj"] == source.released["text_projection"] == 1


def test_tensors_begin_where_torchs_own_do(theirs):
    storage = torch.zeros(theirs["ln_final.bias"].numel() + 1)
    theirs["ln_final.bias"] = storage[1:].copy_(theirs["ln_final.bias"])
    source = Watched(theirs)
    found = convert(source, openai.ROWS, OPENAI, shapes(OPENAI), None)
    assert all(value.data_ptr() % 64 == 0 for value in found.values())
    assert torch.equal(found["text.norm_after.bias"], theirs["ln_final.bias"])
    assert source.released["ln_final.bias"] == 1


def test_large_tensors_of_others_stay_where_they_are(theirs):
    wide = OPENAI.replace_text(vocab_size=IN_PLACE // OPENAI.text.width)
    theirs = invert(openai.ROWS, wide, weights(wide))
    embedding = theirs["token_embedding.weight"]
    theirs["token_embedding.weight"] = torch.zeros(embedding.numel() + 1)[1:].view(embedding.shape).copy_(embedding)
    found = convert(InMemoryTensors(Path("f"), theirs), openai.ROWS, wide, shapes(wide), None)["text.tokens.weight"]
    assert found.data_ptr() % 64 == 4
    assert found.data_ptr() == theirs["token_embedding.weight"].data_ptr()


def test_parts_of_several_precisions_become_the_finest():
    theirs = invert(tables.TRANSFORMERS_CLIP, OPENAI, weights(OPENAI))
    name = "text_model.encoder.layers.0.self_attn.{}_proj.weight"
    parts = [theirs[name.format(part)] for part in "qkv"]
    theirs[name.format("k")] = parts[1] = parts[1].half()
    found = convert(InMemoryTensors(Path("f"), theirs), tables.TRANSFORMERS_CLIP, OPENAI, shapes(OPENAI), None)
    assert torch.equal(found["text.blocks.0.attention.qkv.weight"], torch.cat([part.float() for part in parts]))


def test_a_layout_without_a_place_for_a_parameter():
    ours = weights(OPENAI) | {"bias": torch.zeros(())}
    with pytest.raises(ValueError, match="the layout has no place for bias"):
        invert(openai.ROWS, OPENAI, ours)
    ours |= {f"image.blocks.{i}.gate": torch.zeros(1) for i in range(SHOWN + 1)}
    with pytest.raises(ValueError, match=r"bias; image\.blocks\.0\.gate; .*; and 2 more"):
        invert(openai.ROWS, OPENAI, ours)


def test_rows_without_numbers_are_there_once():
    steps = list(expand([Row("a.{p}", "image.a.{p}"), Row(("b.{i}", "c.{i}"), "text.d.{i}"), Row("e", None)], OPENAI))
    assert [(step.theirs, step.ours) for step in steps] == [
        (("a.weight",), "image.a.weight"),
        (("a.bias",), "image.a.bias"),
        (("b.0", "c.0"), "text.d.0"),
        (("b.1", "c.1"), "text.d.1"),
        (("b.2", "c.2"), "text.d.2"),
        (("e",), None),
    ]


def test_a_prefix_stands_before_each_key():
    rows = prefixed((Row("a", "b"), Row(("c", "d"), "e")), "text.")
    assert [row.theirs for row in rows] == ["text.a", ("text.c", "text.d")]
    assert [row.ours for row in rows] == ["b", "e"]
