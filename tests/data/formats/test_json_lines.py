"""JSONL files and JSON lists; errors have the line."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from miniclip.data import Captions
from miniclip.data.formats.cells import read_cell
from tests.data.formats.helpers import CAPTION, error_of, names, skipped


@given(rows=st.lists(st.tuples(st.sampled_from("abcd"), st.lists(CAPTION, min_size=1)), min_size=1))
@pytest.mark.parametrize("whole", [False, True])
def test_roundtrip(folder, rows, whole):
    assume(all(read_cell(text) == ([text], None) for _, texts in rows for text in texts))  # no lists in strings
    objects = [{"image": f"{name}.jpg", "caption": texts if len(texts) > 1 else texts[0]} for name, texts in rows]
    text = json.dumps(objects) if whole else "\n".join(json.dumps(row, ensure_ascii=False) for row in objects)
    (folder / "any.jsonl").write_text(text, encoding="utf-8", newline="")
    data = Captions.from_jsonl(folder / "any.jsonl")
    expected: dict[str, list[str]] = {}
    for name, texts in rows:
        expected.setdefault(f"{name}.jpg", []).extend(texts)
    assert dict(zip(names(data), data.captions, strict=True)) == expected


def test_chosen_keys(read):
    data = read('{"f": "a.jpg", "t": ["one", 2, null, " "]}\n\n', "x.jsonl", image="f", caption="t")
    assert data.captions == [["one", "2"]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"image": "b.jpg", "caption": ', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('"b.jpg"', "expected an object"),
        ('{"image": "b.jpg", "text": "two"}', "has no 'caption'; found 'image', 'text'"),
        ('{"image": 7, "caption": "two"}', "'image' is '7', a int; expected a path"),
        ('{"image": "b.jpg", "caption": true}', "the caption is 'True', a bool; expected text"),
        ('{"image": "b.jpg", "caption": {"en": "two"}}', "a dict; expected text"),
        ('{"image": "b.jpg", "caption": "\\ud83d"}', "half a surrogate pair"),
        ('{"image": "b.jpg", "caption": "a\\u0000b"}', "NUL"),
        ('{"image": "", "caption": "two"}', "names no image"),
        ('{"image": "http://x/b.jpg", "caption": "two"}', "img2dataset"),
    ],
)
def test_bad_line_raises_or_is_skipped(read, line, reason):
    text = f'{{"image": "a.jpg", "caption": "one"}}\n{line}\n'
    message = error_of(read, text, "x.jsonl")
    assert "line 2: " in message
    assert reason in message
    data = skipped(read, text, "x.jsonl")
    assert names(data) == ["a.jpg"]
    assert len(data.skip_log) == 1


def test_line_separator_inside_a_caption(read):
    assert read('{"image": "a.jpg", "caption": "one\u2028two\x85"}', "x.jsonl").captions == [["one\u2028two"]]


def test_objects_with_different_numbers_of_captions(read):
    text = '{"image": "a.jpg", "caption_1": "one"}\n{"image": "b.jpg", "caption_1": "two", "caption_2": "three"}\n'
    assert read(text, "x.jsonl").captions == [["one"], ["two", "three"]]
    assert read("".join(reversed(text.splitlines(keepends=True))), "x.jsonl").captions == [["two", "three"], ["one"]]
    assert "line 1: has no 'caption_2'" in error_of(read, text, "x.jsonl", caption=["caption_1", "caption_2"])
