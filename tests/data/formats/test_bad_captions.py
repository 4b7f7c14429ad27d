"""Bad captions in each layout: each is read correctly or raises with its reason."""

import io
import json
import tarfile

import pytest

from miniclip import DataError
from miniclip.data import open_data
from tests.data.bad_images import plain, saved

pytestmark = pytest.mark.usefixtures("time_limit")

# Captions: the caption in JSON (for JSONL and tars), its bytes (for .txt and CSV), and the expected captions or error.
CAPTIONS = {
    "plain": ('"a dog"', b"a dog", ["a dog"]),
    "umlauts": ('"ein B\\u00e4r \\ud83d\\udc3b"', "ein Bär 🐻".encode(), ["ein Bär 🐻"]),
    "empty": ('""', b"", "has no caption"),
    "blank": ('" \\n\\t "', b"   ", "has no caption"),
    "a number": ("1984", b"1984", ["1984"]),
    "a fraction": ("0.5", b"0.5", ["0.5"]),
    "null": ("null", b"", "has no caption"),
    "a list": ('["a dog", "", "two dogs"]', None, ["a dog", "two dogs"]),
    "a list of null": ("[null]", None, "has no caption"),
    "an object": ('{"en": "a dog"}', None, "expected|is a dict"),
    "true": ("true", None, "expected"),
    "half a surrogate pair": ('"a \\ud800"', None, "half a surrogate pair"),
    "a NUL character": ('"a\\u0000dog"', b"a\0dog", "NUL"),
    "another encoding": (None, "café".encode("latin-1"), "is not UTF-8"),
    "long": (f'"{"word " * 10_000}"', b"word " * 10_000, [("word " * 10_000).strip()]),
    "megabytes": (f'"{"a" * 3_000_000}"', b"a" * 3_000_000, "characters|bytes"),
}
GOOD = 19


def make_jsonl(folder, value, _):
    lines = [f'{{"image": "{k}.png", "caption": "number {k}"}}' for k in range(GOOD)]
    (folder / "a.jsonl").write_text("\n".join([*lines, f'{{"image": "x.png", "caption": {value}}}']))
    return folder / "a.jsonl"


def make_csv(folder, _, value):
    lines = [f"{k}.png,number {k}".encode() for k in range(GOOD)]
    (folder / "a.csv").write_bytes(b"\n".join([b"image,caption", *lines, b"x.png," + value]))
    return folder / "a.csv"


def make_texts(folder, _, value):
    for k in range(GOOD):
        (folder / f"{k}.txt").write_text(f"number {k}")
    (folder / "x.txt").write_bytes(value)
    return folder


def make_tar(folder, value, text):
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name in [*map(str, range(GOOD)), "x"]:
            text_json = json.dumps({"caption": f"number {name}"}) if name != "x" else f'{{"caption": {value}}}'
            parts = {"png": (folder / f"{name}.png").read_bytes(), "json": text_json.encode()}
            if name == "x" and value is None:
                parts = {"png": parts["png"], "txt": text}
            for ending, content in parts.items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder / "a.tar"


@pytest.mark.parametrize(
    ("make", "case"),
    [
        pytest.param(make, case, id=f"{make.__name__}-{case}")
        for make in (make_jsonl, make_csv, make_texts, make_tar)
        for case, (value, text, _) in CAPTIONS.items()
        if (value if make is make_jsonl else value or text if make is make_tar else text) is not None
    ],
)
def test_caption_is_read_or_raises(tmp_path, make, case):
    value, text, expected = CAPTIONS[case]
    for number, name in enumerate([*map(str, range(GOOD)), "x"]):
        (tmp_path / f"{name}.png").write_bytes(saved(plain((number, 0, 0)), "PNG"))
    spec = make(tmp_path, value, text)
    if isinstance(expected, list):
        data = open_data(spec, "all")
        index = next(k for k in range(len(data)) if "x.png" in data.name(k))
        assert data.captions[index] == expected
        assert data[index][0].getpixel((0, 0)) == (GOOD, 0, 0)
    else:
        with pytest.raises(DataError, match=expected) as caught:
            open_data(spec, "all")
        assert len(str(caught.value)) < 1_000
        with pytest.warns(UserWarning, match=expected) as warned:
            data = open_data(spec, "all", on_error="skip")
        assert len(warned) == len(data.skip_log) == 1
    rest = {captions[0]: image.getpixel((0, 0)) for image, captions in data if captions[0].startswith("number")}
    assert rest == {f"number {k}": (k, 0, 0) for k in range(GOOD)}
