"""Texts in every collection that users pass: one row for each text, in order, or one sentence."""

import numpy as np
import pytest
import torch

from miniclip.inference.model import CLIPModel

CAPTIONS = ["a red circle", "a blue star", "a dog", "a red circle"]


@pytest.fixture(scope="module")
def model(toy_config, toy_tokenizer) -> CLIPModel:
    return CLIPModel(toy_config.replace_text(end_id=toy_tokenizer.end_id), toy_tokenizer).initialise().eval()


@pytest.fixture(scope="module")
def rows(model) -> torch.Tensor:
    return model.encode_text(CAPTIONS)


def same(first, second) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, rtol=0, atol=1e-6)


def test_collections(model, rows):
    named = dict(zip("abcd", CAPTIONS, strict=True))
    forms = [tuple(CAPTIONS), iter(CAPTIONS), (text for text in CAPTIONS), map(str, CAPTIONS), named.values()]
    forms += [np.array(CAPTIONS), np.array(CAPTIONS, dtype=object)]
    for form in forms:
        assert same(model.encode_text(form), rows)
    assert same(model.encode_text(dict.fromkeys(CAPTIONS).keys()), rows[:3])
    for single in ("a red circle", np.str_("a red circle"), np.array("a red circle")):
        assert same(model.encode_text(single), rows[:1])
    for nothing in ([], (), iter([]), np.array([], dtype=str), np.array([])):
        assert model.encode_text(nothing).shape == (0, 8)


def test_columns_of_tables(model, rows):
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    series = pandas.Series(CAPTIONS, index=[9, 9, 0, 1])
    columns = [series, series.astype("string"), series.astype("category"), pandas.Index(CAPTIONS)]
    columns += [pyarrow.array(CAPTIONS), pyarrow.chunked_array([CAPTIONS[:1], CAPTIONS[1:]])]
    for column in columns:
        assert same(model.encode_text(column), rows)
        assert torch.equal(model.tokenizer(column), model.tokenizer(CAPTIONS))
    for table in (pandas.DataFrame({"t": CAPTIONS}), pandas.DataFrame(), pyarrow.table({"t": CAPTIONS})):
        for encode in (model.encode_text, model.tokenizer):
            with pytest.raises(TypeError, match=r"found a (DataFrame|Table) .*pass one of its columns|type Table"):
                encode(table)
    with pytest.raises(TypeError, match=r"texts: item 1 is a NoneType; expected a string: the cell is empty"):
        model.encode_text(pandas.Series(["a", None], dtype=object))


REFUSED = {
    "dict": ({"a": "a dog"}, r"texts: found a dict; .*list\(x\.values\(\)\)"),
    "set": ({"a dog", "a cat"}, "texts: found a set, which has no order"),
    "number": (3, "texts: found an int; expected a string"),
    "nothing": (None, "texts: found a NoneType"),
    "bytes": (b"a dog", "texts: item 0 is an int; expected a string"),
    "bytes in a list": ([b"a dog"], r"item 0 is a bytes; .*text\.decode"),
    "array of bytes": (np.array([b"a dog"]), "item 0 is a bytes_"),
    "empty cell": (["a dog", None], "item 1 is a NoneType; .*the cell is empty"),
    "NaN": (["a dog", float("nan")], "item 1 is a float; .*the cell is empty"),
    "number in a list": (["a dog", 3.5], "item 1 is a float; expected a string$"),
    "nested lists": ([["a dog"], ["a cat"]], "item 0 is a list; .*one flat list"),
    "token ids in lists": ([[1, 2], [3, 4]], r"item 0 is a list; .*token ids are one tensor"),
    "array of two dimensions": (np.array([["a dog"]]), r"texts: found an array \(1, 1\)"),
    "float array": (np.zeros((2, 4)), r"texts: found an array \(2, 4\) of float64"),
    "one row of ids": (torch.tensor([1, 2, 3]), r"a Tensor \(3,\) of int64; .*tokens\[None\]"),
    "float ids": (torch.zeros(2, 4), r"a Tensor \(2, 4\) of float32"),
    "bool ids": (torch.zeros(2, 4, dtype=torch.bool), "of bool"),
    "rows without tokens": (torch.zeros(2, 0, dtype=torch.int64), r"a Tensor \(2, 0\)"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_other_types_are_refused(model, kind):
    texts, message = REFUSED[kind]
    with pytest.raises(TypeError, match=message):
        model.encode_text(texts)


@pytest.mark.parametrize("captions", [{"a": 1}, {"a dog", "a cat"}], ids=["dict", "set"])
def test_tokenizer_refuses_unordered_captions(model, captions):
    with pytest.raises(TypeError, match=r"captions: found a (dict|set)"):
        model.tokenizer(captions)


def test_tokenizer_is_not_trained_on_the_names_of_columns():
    from miniclip import Tokenizer

    pandas = pytest.importorskip("pandas")
    for captions in (pandas.DataFrame({"t": CAPTIONS}), {"a dog": 1}):
        with pytest.raises(TypeError, match=r"captions: found a (DataFrame|dict)"):
            Tokenizer.train(captions, 600)
    assert Tokenizer.train(pandas.Series(CAPTIONS), 600).vocab == Tokenizer.train(CAPTIONS, 600).vocab


def test_sizes_of_the_tokenizer():
    from miniclip import Tokenizer

    tokenizer = Tokenizer.train(CAPTIONS, np.int64(520))
    for size in ("600", 600.0, True, None):
        with pytest.raises(TypeError, match=r"vocab_size is .*expected an integer"):
            Tokenizer.train(CAPTIONS, size)
        with pytest.raises(TypeError, match=r"context_length is .*expected an integer"):
            tokenizer(CAPTIONS, context_length=size)
    with pytest.raises(TypeError, match=r"captions: found a NoneType"):
        Tokenizer.train(None, 600)


def test_token_ids(model, rows):
    tokens = model.tokenizer(CAPTIONS, pad=True, context_length=12)
    for form in (tokens, tokens.int(), tokens.short(), tokens.numpy(), tokens.numpy().astype("uint16")):
        assert same(model.encode_text(form), rows)
    vocab_size = model.config.text.vocab_size
    for wrong, found in ((vocab_size, f"from 0 to {vocab_size}"), (-1, "from -1 to ")):
        bad = tokens.clone()
        bad[2, 1] = wrong
        for form in (bad, bad.numpy()):
            with pytest.raises(
                ValueError, match=rf"texts: found token ids {found}.*this model has {vocab_size} tokens"
            ):
                model.encode_text(form)


def test_rows_are_counted(model):
    class Tokenizer:
        vocab_size, end_id = model.tokenizer.vocab_size, model.tokenizer.end_id

        def __call__(self, texts, context_length=77, pad=False):
            return model.tokenizer(texts[:1])

    other = CLIPModel(model.config, Tokenizer())
    with pytest.raises(ValueError, match=r"the tokenizer returned 1 rows for 4 texts"):
        other.encode_text(CAPTIONS)

    class Last(torch.nn.Module):
        def forward(self, tokens):
            return torch.zeros(1, 8)

    other = CLIPModel(model.config, model.tokenizer)
    other.text = Last()
    with pytest.raises(ValueError, match=r"a tower returned \(1, 8\) for \d inputs"):
        other.encode_text(CAPTIONS)
