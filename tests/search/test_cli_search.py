"""`miniclip search` and `miniclip index dupes` from end to end."""

import json
import shutil

import pytest
from PIL import Image

import miniclip
from miniclip import Index, cli
from miniclip.cli.search.terminal import encoded, require_protocol
from miniclip.hub import save
from tests.search.conftest import write_images


@pytest.fixture(scope="module")
def saved(tmp_path_factory, search_model):
    """A folder with a checkpoint, images and their index, which tests only read."""
    folder = tmp_path_factory.mktemp("saved")
    save(search_model, folder / "model")
    write_images(folder / "photos", 6)
    shutil.copy(folder / "photos" / "2.png", folder / "photos" / "übung 2.png")
    Index.build(miniclip.load(str(folder / "model")), folder / "photos").close()
    return folder


@pytest.fixture
def place(saved, monkeypatch):
    monkeypatch.chdir(saved)
    return saved


@pytest.fixture
def fails(capsys):
    def check(*arguments):
        try:
            code = cli.main(list(arguments))
        except SystemExit as exit_:  # argparse
            code = exit_.code
        lines = capsys.readouterr().err.strip().splitlines()
        assert code == 2
        assert len(lines) == 1
        return lines[0]

    return check


def test_table_has_scores_and_paths(place, capsys):
    assert cli.main(["search", "photos.index", "a", "red", "heart", "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    with Index.open("photos.index") as index:
        hits = index.search("a red heart", 3)
    assert [line.split(maxsplit=1) for line in lines] == [[f"{h.score:.4f}", f"photos/{h.item.name}"] for h in hits]


def test_json_has_the_properties(place, capsys):
    assert cli.main(["search", "photos.index", "photos/2.png", "-", '"red"', "--json", "--path", "[0-9].png"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["query"] == 'photos/2.png - "red"'
    assert {hit["name"] for hit in found["hits"]} == {f"{number}.png" for number in range(6)}
    assert found["hits"][0]["width"] == 16
    assert found["hits"][0]["modified"].endswith("+00:00")


def test_engine_gives_the_same_table(place, capsys):
    pytest.importorskip("usearch")
    tables = []
    for engine in ("exact", "usearch"):
        assert cli.main(["search", "photos.index", "a ring", "--engine", engine]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]


def test_null_prints_paths_only(place, capfdbinary):
    assert cli.main(["search", "photos.index", "photos/übung 2.png", "-k", "2", "-0"]) == 0
    paths = capfdbinary.readouterr().out.split(b"\0")
    assert sorted(paths) == sorted([b"", *(str(place / "photos" / n).encode() for n in ("2.png", "übung 2.png"))])


def test_words_with_spaces_that_are_files_are_images(place, capsys):
    assert cli.main(["search", "photos.index", "photos/übung 2.png", "+", "2*red", "--json", "-k", "1"]) == 0
    assert 'image:"photos/übung 2.png" + 2*red' in json.loads(capsys.readouterr().out)["query"]


def test_sheet_is_a_png(place, tmp_path, capsys):
    sheet = tmp_path / "hits.png"
    assert cli.main(["search", "photos.index", "a ring", "--sheet", str(sheet)]) == 0
    assert Image.open(sheet).size[0] > 1000
    assert f"wrote {sheet}" in capsys.readouterr().err


def test_no_hits_are_not_an_error(place, capsys):
    assert cli.main(["search", "photos.index", "a ring", "--threshold", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "no image matches\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.index", "x"], "nothing.index: no such index"),
        (["photos", "x"], "photos: is not an index"),
        (["photos.index", "a +"], "at position 4"),
        (["photos.index", "sunrise.jpg"], "no such image file"),
        (["photos.index", "x", "--after", "May"], "after: found 'May'"),
        (["photos.index", "x", "--engine", "fais"], "did you mean 'faiss'"),
        (["photos.index", "x", "--sheet", "a.jpg"], "is a PNG"),
        (["photos.index", "x", "--show"], "the output is not a terminal"),
        (["photos.index", "x", "-k", "0"], "k"),
        (["photos.index", "x", "--json", "-0"], "not allowed with"),
    ],
)
@pytest.mark.usefixtures("place")
def test_errors_are_one_line(fails, arguments, message):
    assert message in fails("search", *arguments)


def test_moved_model_is_given_again(saved, tmp_path, fails, capsys, monkeypatch):
    shutil.copytree(saved, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    save(miniclip.load("model"), "elsewhere")
    Index.build(miniclip.load(str(tmp_path / "copy" / "elsewhere")), "photos", "other.index").close()
    shutil.move("elsewhere", "moved")
    assert "--model PLACE" in fails("search", "other.index", "x")
    assert cli.main(["search", "other.index", "x", "--model", "moved"]) == 0
    assert cli.main(["index", "moved", "photos", "-o", "other.index"]) == 0
    assert cli.main(["search", "other.index", "x"]) == 0  # the update has recorded the new place
    assert capsys.readouterr().out


def test_dupes_lists_equal_files(place, capsys):
    assert cli.main(["index", "dupes", "photos.index", "--threshold", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "equal files:"
    assert "photos/2.png  16 × 16" in captured.out
    assert "2 images in 1 group" in captured.err
    assert cli.main(["index", "dupes", "photos.index", "--threshold", "1", "--json", "--rest"]) == 0
    (group,) = json.loads(capsys.readouterr().out)
    assert group["equal"]
    assert [image["name"] for image in group["images"]] == ["übung 2.png"]


def test_dupes_null_prints_paths(place, capfdbinary):
    assert cli.main(["index", "dupes", "photos.index", "--threshold", "1", "-0", "--rest"]) == 0
    assert capfdbinary.readouterr().out == str(place / "photos" / "übung 2.png").encode() + b"\0"


def test_terminals_are_recognised():
    assert require_protocol({"TERM": "xterm-kitty"}, True) == "kitty"
    assert require_protocol({"TERM_PROGRAM": "ghostty"}, True) == "kitty"
    assert require_protocol({"TERM_PROGRAM": "WezTerm"}, True) == "iterm2"
    for environment in ({"TERM": "xterm"}, {"TERM": "xterm-kitty", "TMUX": "1"}):
        with pytest.raises(ValueError, match="not known to show images"):
            require_protocol(environment, True)


def test_kitty_gets_an_image_in_parts():
    text = encoded(bytes(7000), "kitty")
    parts = [part for part in text.split("\x1b\\") if part]
    assert [part.split(";")[0] for part in parts] == ["\x1b_Gf=100,a=T,r=8,m=1", "\x1b_Gm=1", "\x1b_Gm=0"]
    assert encoded(b"abc", "iterm2") == "\x1b]1337;File=inline=1;size=3;height=8;preserveAspectRatio=1:YWJj\x07"
