"""Prompt templates from files."""

import pytest

from miniclip.evaluation.templates import PHOTO_TEMPLATES, one_field, read_templates


def test_own_templates_have_one_field():
    assert all(one_field(template, "") == template for template in PHOTO_TEMPLATES)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "a {}\n\n  the {}  \n", ["a {}", "the {}"]),
        ("a.json", '["a {c}", "b {}"]', ["a {}", "b {}"]),
        ("a.py", 'T = [\n    lambda c: f"a {c}.",\n    lambda c: f"{c}",\n    "b {}",\n]\n', ["a {}.", "{}", "b {}"]),
        ("a.py", '"""Templates."""\n[lambda name: f"a {name}"]', ["a {}"]),
    ],
    ids=["text", "json", "lambdas", "expression"],
)
def test_formats(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    assert read_templates(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "holds no templates"),
        ("a.txt", "a photo", "template 1: 'a photo' has 0 fields"),
        ("a.txt", "a {} and {}", "2 fields"),
        ("a.txt", "a {{}}", "0 fields"),
        ("a.json", '{"cars": ["a {}"]}', "found a dict, expected a list of texts; it has cars"),
        ("a.json", "[", "not JSON"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.py", "[lambda c: open('x')]", "line 1: expected a text, or a lambda"),
        ("a.py", "[lambda c: f'{c.upper()}']", "line 1: expected a text, or a lambda"),
        ("a.py", "[lambda c: f'{c!r}']", "line 1: expected a text, or a lambda"),
        ("a.py", "[lambda c: f'{c:>9}']", "line 1: expected a text, or a lambda"),
        ("a.py", "x = (", "not Python"),
        ("a.py", "x = 5", "found 0 lists"),
    ],
    ids=[
        "empty",
        "no field",
        "two",
        "escaped",
        "dict",
        "broken",
        "deep",
        "call",
        "method",
        "conversion",
        "width",
        "syntax",
        "no list",
    ],
)
def test_other_content_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_templates(tmp_path / name)


def test_lambdas_of_open_clip_are_read(tmp_path):
    import inspect

    from open_clip import zero_shot_metadata as peer

    source = inspect.getsource(peer)
    start = source.index("OPENAI_IMAGENET_TEMPLATES")
    (tmp_path / "a.py").write_text(source[start : source.index("\n)\n", start) + 3])
    ours = read_templates(tmp_path / "a.py")
    assert [template.format("cat") for template in ours] == [f("cat") for f in peer.OPENAI_IMAGENET_TEMPLATES]


def test_a_device_is_refused(tmp_path):
    (tmp_path / "t.txt").symlink_to("/dev/zero")
    with pytest.raises(FileNotFoundError, match="a device; expected a regular file"):
        read_templates(tmp_path / "t.txt")


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("un café {}".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt: is not text in UTF-8"):
        read_templates(tmp_path / "a.txt")
