"""Configurations: round trip through JSON, and errors that name the field and the nearest choice."""

import copy
import dataclasses
import json

import pytest

from miniclip.config import OPENAI_MEAN, PRESETS, CLIPConfig, ImageConfig, TextConfig, did_you_mean, preset

TINY = CLIPConfig(ImageConfig(8, 4, 6, 1, 2), TextConfig(5, 10, 6, 1, 3), 4)


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_of_every_preset(name):
    config = preset(name)
    assert CLIPConfig.from_dict(config.to_dict()) == config
    assert CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_round_trip_of_all_fields():
    config = CLIPConfig(
        ImageConfig(
            8, 4, 6, 1, 2, activation="quickgelu", mlp_ratio=3.5, norm_eps=1e-6, patch_bias=True, class_token=False,
            norm_before=False, pooling="attention", projection="bias", stem="conv",
            stem_residual_layers=1,
        ),
        TextConfig(
            5, 10, 6, 1, 3, activation="gelu_tanh", mlp_ratio=3.0, norm_eps=1e-6, causal=True, pooling="end", end_id=2,
            projection="bias",
        ),
        4, logit_scale=10.0, logit_bias=-10.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bilinear",
        resize="squash", crop_rounding="floored",
    )  # fmt: skip
    assert CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    fields = dataclasses.asdict(config)
    for section, values in (("image", fields["image"]), ("text", fields["text"])):
        defaults = dataclasses.asdict(getattr(TINY, section))
        changed = {f.name for f in dataclasses.fields(getattr(TINY, section)) if f.default is not dataclasses.MISSING}
        assert all(values[name] != defaults[name] for name in changed - {"padding"})  # causal text has no other
    attended = TINY.replace_text(padding="attended", pooling="last")
    assert CLIPConfig.from_dict(json.loads(json.dumps(attended.to_dict()))) == attended


def test_missing_fields_have_their_defaults():
    values = {
        "image": {"image_size": 8, "patch_size": 4, "width": 6, "layers": 1, "heads": 2},
        "text": {"context_length": 5, "vocab_size": 10, "width": 6, "layers": 1, "heads": 3},
        "embed_dim": 4,
    }
    before = copy.deepcopy(values)
    assert CLIPConfig.from_dict(values) == TINY
    assert values == before
    assert TINY.mean == OPENAI_MEAN


def test_end_token_is_the_last_one_by_default():
    assert TINY.text.end_id == 9
    assert TextConfig(5, 10, 6, 1, 3, end_id=0).end_id == 0


def test_replace_text():
    changed = TINY.replace_text(vocab_size=20, end_id=19)
    assert (changed.text.vocab_size, changed.text.end_id, changed.text.width) == (20, 19, 6)
    assert changed.image == TINY.image
    assert TINY.text.vocab_size == 10


def test_replace_image():
    changed = TINY.replace_image(image_size=16, width=8)
    assert (changed.image.image_size, changed.image.grid, changed.image.patches) == (16, 4, 16)
    assert changed.image.mlp_width == 32  # follows the width
    assert changed.text == TINY.text


def test_partial_patches_are_ignored():
    assert ImageConfig(384, 14, 6, 1, 2).patches == 27 * 27


def test_mlp_width_is_rounded():
    assert ImageConfig(384, 14, 1152, 27, 16, mlp_ratio=4304 / 1152).mlp_width == 4304
    assert TINY.text.mlp_width == 24


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.embed_dim = 5


@pytest.mark.parametrize(
    ("section", "wrong", "right"),
    [("image", "widht", "width"), ("text", "end", "end_id"), (None, "embed", "embed_dim")],
)
def test_an_unknown_key_names_the_nearest(section, wrong, right):
    values = TINY.to_dict()
    (values[section] if section else values)[wrong] = 1
    full = f"{section}.{wrong}" if section else wrong
    with pytest.raises(ValueError, match=rf"unknown configuration key '{full}'; did you mean '{right}'\?"):
        CLIPConfig.from_dict(values)


@pytest.mark.parametrize(("section", "key"), [("image", "patch_size"), ("text", "vocab_size"), (None, "embed_dim")])
def test_a_missing_key(section, key):
    values = TINY.to_dict()
    del (values[section] if section else values)[key]
    with pytest.raises(ValueError, match=f"no key '{section + '.' if section else ''}{key}'"):
        CLIPConfig.from_dict(values)


@pytest.mark.parametrize("section", ["image", "text"])
@pytest.mark.parametrize("value", [None, 3, [], "absent"])
def test_a_missing_section(section, value):
    values = TINY.to_dict()
    if value == "absent":
        del values[section]
    else:
        values[section] = value
    with pytest.raises(ValueError, match=f"no section '{section}'"):
        CLIPConfig.from_dict(values)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("image", {"image_size": 3}, "patch_size 4 with image_size 3"),
        ("image", {"patch_size": 0}, "patch_size 0"),
        ("image", {"mlp_ratio": 0.0}, "mlp_ratio 0.0"),
        ("image", {"norm_eps": 0.0}, "norm_eps 0.0"),
        ("image", {"class_token": False}, "pooling 'class' without a class token"),
        ("image", {"projection": "none"}, "projection 'none' with width 6 and embed_dim 4"),
        ("text", {"projection": "none"}, "text.projection 'none' with width 6"),
        ("text", {"pooling": "last"}, "pooling 'last' needs text.padding 'attended'"),
        ("text", {"causal": True, "pooling": "end", "padding": "attended"}, "padding 'attended' with text.causal"),
        ("image", {"heads": 4}, "image tower: width 6, layers 1, heads 4"),
        ("image", {"layers": 0}, "image tower"),
        ("text", {"heads": 4}, "text tower: width 6, layers 1, heads 4"),
        ("text", {"heads": 0}, "text tower"),
        ("text", {"width": -6}, "text tower"),
        ("text", {"causal": True, "pooling": "first"}, "pooling"),
        ("text", {"end_id": 10}, "end_id 10 is outside of the vocabulary of 10"),
        ("text", {"end_id": -2}, "end_id -2"),
    ],
)
def test_values_out_of_their_range(section, changes, message):
    values = TINY.to_dict()
    values[section].update(changes)
    with pytest.raises(ValueError, match=message):
        CLIPConfig.from_dict(values)


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("image", {"activation": "relu"}),
        ("text", {"activation": "relu"}),
        ("text", {"pooling": "middle"}),
        (None, {"resize": "longest"}),
        ("text", {"context_length": 0}),
        (None, {"interpolation": "cubic"}),
        (None, {"embed_dim": 0}),
        (None, {"logit_scale": -1.0}),
        (None, {"mean": [0.5, 0.5]}),
        (None, {"std": [0.5, 0.5, 0.0]}),
    ],
)
def test_values_that_no_model_can_be_built_from(section, changes):
    values = TINY.to_dict()
    (values[section] if section else values).update(changes)
    with pytest.raises(ValueError, match=next(iter(changes))):
        CLIPConfig.from_dict(values)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown preset 'vit_b16'; did you mean 'vit_b_16'\?"):
        preset("vit_b16")
    with pytest.raises(ValueError, match="unknown preset 'zzz'; known: bert_vit_b_16, ") as caught:
        preset("zzz")
    assert all(name in str(caught.value) for name in PRESETS)


def test_did_you_mean():
    assert did_you_mean("appel", ["pear", "apple"]) == "; did you mean 'apple'? known: pear, apple"
    assert did_you_mean("xyz", ["pear", "apple"]) == "; known: pear, apple"
    assert did_you_mean("appel", ["apple"], listed_by="fruits()") == "; did you mean 'apple'? fruits() lists them"
