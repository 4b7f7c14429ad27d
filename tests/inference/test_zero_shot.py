"""Labels and templates: one field, or a function, in each template; anything else is refused by its name."""

import numpy as np
import pytest
import torch

from miniclip.inference.model import CLIPModel

LABELS = ["dog", "red circle", "blue square"]


@pytest.fixture(scope="module")
def model(toy_config, toy_tokenizer) -> CLIPModel:
    config = toy_config.replace_text(end_id=toy_tokenizer.end_id)
    return CLIPModel(config, toy_tokenizer).initialise().eval()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_equal_forms_of_templates(model, image):
    expected = model.classify(image, LABELS, ["a photo of a {}.", "{}"])
    forms = [
        ("a photo of a {}.", "{}"),
        iter(["a photo of a {}.", "{}"]),
        np.array(["a photo of a {}.", "{}"]),
        ["a photo of a {0}.", lambda c: c],
        [lambda c: f"a photo of a {c}.", str],
        ["a photo of a {}.".format, "{}".format],
    ]
    for form in forms:
        assert torch.equal(model.classify(image, LABELS, form), expected)
    default = model.classify(image, LABELS)
    for form in (
        "a photo of a {}.",
        np.array("a photo of a {}."),
        ["a photo of a {}."],
        lambda c: f"a photo of a {c}.",
    ):
        assert torch.equal(model.classify(image, LABELS, form), default)
    assert model.classify(image, LABELS, ["{{curly}} {}", "{} at 100%"]).shape == (1, 3)


@pytest.mark.peer
def test_templates_of_open_clip(model, image):
    open_clip = pytest.importorskip("open_clip")
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES[:5]
    assert callable(templates[0])
    plain = [template("{}") for template in templates]
    assert torch.equal(model.classify(image, LABELS, templates), model.classify(image, LABELS, plain))


TEMPLATES = {
    "percent": ("a photo of a %s.", r"template 'a photo of a %s\.': found no field; expected exactly one \{\}"),
    "escaped": ("a photo of a {{}}.", "found no field"),
    "plain": ("a photo", "template 'a photo': found no field"),
    "empty": ("", "template '': found no field"),
    "named": ("a photo of a {c}.", r"found \{c\}; expected exactly one \{\}"),
    "second": ("a photo of a {1}.", r"found \{1\}"),
    "two": ("a {} or a {}", r"found \{\}, \{\}"),
    "repeated": ("a {0} or a {0}", r"found \{0\}, \{0\}"),
    "attribute": ("a {.name}", r"found \{\.name\}"),
    "conversion": ("a {!r}", "expected exactly one"),
    "width": ("a {:>10}", "expected exactly one"),
    "open": ("a photo of a {.", "template 'a photo of a {.'"),
    "closed": ("a photo of a }.", "template 'a photo of a }.'"),
}


@pytest.mark.parametrize("kind", sorted(TEMPLATES))
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_wrong_templates_are_named(model, image, kind, several):
    template, message = TEMPLATES[kind]
    with pytest.raises(ValueError, match=message):
        model.classify(image, LABELS, ["a {}", template] if several else template)


def test_wrong_collections_of_templates(model, image):
    with pytest.raises(ValueError, match=r"templates: found none, expected at least one"):
        model.classify(image, LABELS, [])
    for templates, message in (
        ({"a {}"}, "templates: found a set"),
        ({"a": "a {}"}, "templates: found a dict"),
        (3, "templates: found an int"),
        ([None], "template None: found a NoneType"),
        (["a {}", 3], "template 3: found an int"),
        (b"a {}", "template b'a {}': found a bytes"),
        ([lambda c: None], "template .*lambda.*: it returned a NoneType; expected a string"),
    ):
        with pytest.raises(TypeError, match=message):
            model.classify(image, LABELS, templates)
    with pytest.raises(ValueError, match=r"it returned 'a photo' for every label"):
        model.classify(image, LABELS, [lambda c: "a photo"])
    assert model.classify(image, ["dog"], [lambda c: "a photo"]).shape == (1, 1)


def test_collections_of_labels(model, image):
    expected = model.classify(image, LABELS)
    named = dict(enumerate(LABELS))
    for labels in (tuple(LABELS), np.array(LABELS), np.array(LABELS, dtype=object), iter(LABELS), named.values()):
        assert torch.equal(model.classify(image, labels), expected)
    pandas = pytest.importorskip("pandas")
    assert torch.equal(model.classify(image, pandas.Series(LABELS, index=[5, 5, 5])), expected)


REFUSED = {
    "numbers": ([0, 1], TypeError, "labels: item 0 is an int; expected a string"),
    "tensor": (torch.tensor([0, 1]), TypeError, "labels: item 0 is a Tensor"),
    "bytes": ([b"dog"], TypeError, "labels: item 0 is a bytes"),
    "empty cell": (["dog", None], TypeError, "labels: item 1 is a NoneType"),
    "dict": ({0: "dog"}, TypeError, "labels: found a dict"),
    "set": ({"dog", "cat"}, TypeError, "labels: found a set, which has no order"),
    "number": (2, TypeError, "labels: found an int"),
    "nothing": (None, TypeError, "labels: found a NoneType"),
    "one string": ("dog", ValueError, "labels: found 'dog', expected a list"),
    "empty array": (np.array([], dtype=str), ValueError, "labels: found .*, expected a list of at least one name"),
    "empty generator": (iter(()), ValueError, "labels: found .*, expected a list of at least one name"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_wrong_labels(model, image, kind):
    labels, error, message = REFUSED[kind]
    with pytest.raises(error, match=message):
        model.classify(image, labels)
