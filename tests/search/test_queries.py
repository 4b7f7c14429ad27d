"""Expressions of queries: what they mean, and where a wrong one is wrong."""

import os

import pytest
import torch
from PIL import Image

from miniclip.search import Query, Term
from miniclip.search.queries import parse, query_vectors


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, color in (
        ("sunset.jpg", "red"),
        ("my photo - 2.jpg", "blue"),
        ("straße + ü.png", "green"),
        ("dog", "gray"),
    ):
        Image.new("RGB", (20, 20), color).save(name, "PNG")
    return tmp_path


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("a red bicycle", [(1, "a red bicycle")]),
        ("  beach  ", [(1, "beach")]),
        ("2*beach + sunset.jpg - \"people\"", [(2, "beach"), (1, "image:sunset.jpg"), (-1, "people")]),
        ("- people + .5 * sea", [(-1, "people"), (0.5, "sea")]),
        ("a t-shirt - a+b", [(1, "a t-shirt"), (-1, "a+b")]),
        ('"sunset.jpg" + "a + b" - 1.5*"say \\"hi\\""', [(1, "sunset.jpg"), (1, "a + b"), (-1.5, 'say "hi"')]),
        ("text:sunset.jpg + text: \"x\"", [(1, "sunset.jpg"), (1, "x")]),
        ("dog", [(1, "image:dog")]),
        ("text:dog - 3*image:dog", [(1, "dog"), (-3, "image:dog")]),
        ("my photo - 2.jpg", [(1, "image:my photo - 2.jpg")]),
        ('image:"straße + ü.png" - x', [(1, "image:straße + ü.png"), (-1, "x")]),
        ("2 dogs * 3", [(1, "2 dogs * 3")]),
        ("C++ - C", [(1, "C++"), (-1, "C")]),
        ("a photo of v2.0", [(1, "a photo of v2.0")]),
        ("日本 + 猫", [(1, "日本"), (1, "猫")]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("folder")
def test_expression_has_these_terms(expression, terms):
    found = [
        (term.weight, term.text if term.image is None else f"image:{term.image}") for term in parse(expression).terms
    ]
    assert found == terms


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "found the end at position 1: expected a text or an image"),
        ("   ", "position 4"),
        ("a +", "found the end at position 4"),
        ("a + + b", r"found '\+ b' at position 5"),
        ('a "b"', "found '\"b\"' at position 3: a quote opens or ends"),
        ('"a" b', "found 'b' at position 5: expected \\+ or -"),
        ('"a"b', "position 4: expected a space after the closing quote"),
        ('"a', "position 1: a quote"),
        ("-people", "position 1: expected a space after -"),
        ("0*a", "position 1: a weight of zero"),
        ("2*", "found the end at position 3"),
        ('""', "position 1: expected a text"),
        ("image:.", "is a folder"),
        ("./", "is a folder"),
    ],
)
def test_wrong_expression_is_refused_with_its_position(expression, message, folder):
    with pytest.raises(ValueError, match=message):
        parse(expression)


def test_image_name_without_a_file_is_refused(folder):
    with pytest.raises(FileNotFoundError, match=r"sunrise\.jpg: no such image file; to search for this text"):
        parse("beach + sunrise.jpg")


def test_expressions_of_other_people_open_no_files(folder):
    assert parse("sunset.jpg + dog", files=False) == Query((Term(1.0, "sunset.jpg"), Term(1.0, "dog")))
    with pytest.raises(ValueError, match="files are not opened here"):
        parse("image:sunset.jpg", files=False)


def test_vector_is_the_normalised_weighted_sum(folder, search_model):
    texts = search_model.encode_text(["beach", "people"])
    image = search_model.encode_image(["sunset.jpg"])[0]
    expected = 2 * texts[0] + image - texts[1]
    found = parse("2*beach + sunset.jpg - people").vector(search_model)
    torch.testing.assert_close(found, expected / expected.norm(), rtol=1e-5, atol=1e-5)
    queries = [
        Query.of("people"),
        Query.of(folder / "sunset.jpg"),
        Query.of(Image.open("sunset.jpg")),
        Query.of("beach"),
    ]
    vectors = query_vectors(search_model, queries)
    torch.testing.assert_close(vectors, torch.stack([texts[1], image, image, texts[0]]), rtol=1e-5, atol=1e-5)


def test_templates_are_averaged(search_model):
    prompts = search_model.encode_text(["a photo of a {dog}", "{dog}"]).sum(0)
    found = Query.of("{dog}").vector(search_model, ["a photo of a {}", "{}"])
    torch.testing.assert_close(found, prompts / prompts.norm(), rtol=1e-5, atol=1e-5)


def test_terms_that_cancel_are_refused(search_model):
    with pytest.raises(ValueError, match="its terms cancel"):
        parse("beach - beach").vector(search_model)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="found an int; expected a string"):
        Query.of(3)
    assert not os.path.exists("a\0b")  # noqa: PTH110
    assert parse("a\0b").terms[0].text == "a\0b"
