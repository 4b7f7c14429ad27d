"""Model card: content, metadata, and escaping of values."""

import ast
import re

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from hypothesis import example, given
from hypothesis import strategies as st

from miniclip.config import PRESETS
from miniclip.hub.model_card import TAGS, model_card

CONFIG = PRESETS["vit_b_16"][1].to_dict()
METRICS = {"text_to_image": {"R@1": 66.6, "R@5": 88}, "image_to_text": {"R@1": 82.125, "R@10": 99.0}}
SPECIAL_TEXTS = [
    "a\nb",
    "---",
    "\n---\n# x",
    "a: b #c",
    '"quoted"',
    "back\\slash",
    "{% raw %}",
    "| pipe |",
    "\u2028\x85\x07",
    "😀",
    "`",
]
anything = st.text() | st.sampled_from(SPECIAL_TEXTS)


def tables(card: str) -> list[list[list[str]]]:
    """Return the cells of each table as GitHub renders them: `\\|` is not a border, `\\_` is `_`."""
    matches = re.findall(r"(?:^\|.*\|$\n?)+", card, re.MULTILINE)
    return [[cells(line) for line in table.splitlines()] for table in matches]


def cells(line: str) -> list[str]:
    parts = re.findall(r"(?:\\.|[^|\\])+", line.removeprefix("|").removesuffix("|"))
    return [re.sub(r"\\(.)", r"\1", part).strip() for part in parts]


def test_complete_card():
    card = model_card("org/clip_b", CONFIG, METRICS, parameters=149_620_737, license="mit", tags=["flickr30k"])
    header, body = card.split("---\n", 2)[1:]
    assert yaml.safe_load(header) == {
        "library_name": "miniclip",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": [*TAGS, "flickr30k"],
        "license": "mit",
    }
    assert body.startswith("\n# org/clip\\_b\n\nA CLIP model for `miniclip`")
    assert "one embedding space of 512 dimensions" in body
    assert "It has 149,620,737 parameters." in body
    assert (
        "bicubic interpolation; mean (0.4815, 0.4578, 0.4082) and standard deviation (0.2686, 0.2613, 0.2758)" in body
    )
    evaluation, model = tables(card)
    assert evaluation == [
        ["", "R@1", "R@5", "R@10"],
        ["---", "---:", "---:", "---:"],
        ["text_to_image", "66.60", "88", ""],
        ["image_to_text", "82.12", "", "99.00"],
    ]
    assert model[0] == ["", "image tower", "text tower"]
    assert ["layers", "12", "12"] in model
    assert ["width", "768", "512"] in model
    assert ["patch size (pixels)", "16", ""] in model
    assert ["vocabulary size", "", "49,408"] in model
    assert ["causal", "", "yes"] in model


def test_huggingface_hub_reads_it(tmp_path):
    card = model_card("org/name", CONFIG, METRICS, license="mit")
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    data = metadata_load(tmp_path / "README.md")
    assert data["library_name"] == "miniclip"
    parsed = ModelCard(card)
    assert parsed.data.to_dict() == data
    assert (parsed.data.license, parsed.data.pipeline_tag) == ("mit", "zero-shot-image-classification")
    assert parsed.text.strip() == card.split("---\n", 2)[2].strip()


def test_the_example_loads_the_model():
    (code,) = re.findall(r"```python\n(.*?)```", model_card("org/name", CONFIG), re.S)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert ast.unparse(calls[0]) == "miniclip.load('org/name')"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(name):
    config = PRESETS[name][1]
    (model,) = tables(model_card(name, config.to_dict()))
    assert ["image size (pixels)", str(config.image.image_size), ""] in model
    assert ["layers", str(config.image.layers), str(config.text.layers)] in model


def test_missing_values_are_left_out():
    card = model_card("org/name", {})
    assert "license" not in card
    assert "Evaluation" not in card
    assert "None" not in card
    assert "Preprocessing" not in card
    assert tables(card) == []
    assert model_card("org/name", {}, {}) == card


def test_flat_and_nested_metrics():
    flat, _ = tables(model_card("org/name", CONFIG, {"accuracy": 0.63214, "images": 1000, "model": "a_b", "top": True}))
    assert flat[0] == ["", "accuracy", "images", "model", "top"]
    assert flat[2:] == [["", "0.6321", "1,000", "a_b", "yes"]]
    deep, _ = tables(model_card("org/name", CONFIG, {"loss": 1.5, "flickr": {"n": 2, "t2i": {"R@1": float("nan")}}}))
    assert deep[0] == ["", "loss", "n", "R@1"]
    assert deep[2:] == [["", "1.50", "", ""], ["flickr", "", "2", ""], ["flickr, t2i", "", "", "nan"]]


@given(anything, anything, anything)
@example("\n---\nlicense: evil", '"\nlicense: evil', "\ud800")
def test_values_do_not_break_the_metadata(name, license, tag):
    card = model_card(name, CONFIG, license=license, tags=[tag])
    block = re.match(r"---\n(.*?)\n---\n", card, re.S)  # up to the first possible end, as on the Hub
    data = yaml.safe_load(block[1])
    assert data.get("license") == (license or None)
    assert data["tags"] == list(dict.fromkeys([*TAGS, tag]))
    assert set(data) == {"library_name", "pipeline_tag", "tags"} | ({"license"} if license else set())


@given(anything, anything, anything)
@example("a|b", "c\\", "|")
@example("a\nb", "`", "\\|")
def test_values_do_not_break_a_table(row, column, value):
    card = model_card("org/name", {}, {row: {column: value, "last": 1}})
    table = card.split("## Evaluation\n\n")[1].split("\n\n")[0].splitlines()
    assert len(table) == 3
    shown = [" ".join("".join(c for c in x if c.isprintable() or c.isspace()).split()) for x in (row, column, value)]
    if column != "last":
        assert [len(cells(line)) for line in table] == [3, 3, 3]
        assert [cells(table[2])[0], cells(table[0])[1], cells(table[2])[1]] == shown


@given(anything)
@example('"); import os; ("')
@example("\ud800\\N{DIGIT ONE}😀")
def test_names_do_not_break_the_code_or_the_title(name):
    card = model_card(name, {})
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.S | re.M)
    (call, *_) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert call.args[0].value == name
    assert len(re.findall(r"^#", card, re.M)) == 2
    card.encode()  # can be written to a file
