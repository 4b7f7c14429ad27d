"""What `inspect` says of a set, against sets of which it is known; the sheet; the command."""

import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from miniclip.cli import main
from miniclip.data import Captions, Shapes, contact_sheet, inspect, open_data
from miniclip.data.tools.contact_sheet import LINES, SIDE, _font, wrapped
from miniclip.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path) -> Path:
    """Eight pictures: two with the same bytes, a third with the same pixels, a long one, three that cannot be read."""
    root = tmp_path / "ein Satz"
    root.mkdir()
    noise = Image.effect_noise((40, 30), 60).convert("RGB")
    noise.save(root / "a.png")
    shutil.copy(root / "a.png", root / "b.png")
    noise.save(root / "c.bmp")
    Image.new("RGB", (90, 10), "red").save(root / "long.png")
    Image.new("RGB", (20, 60), "blue").save(root / "e.png")
    (root / "empty.png").touch()
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:900])
    (root / "page.jpg").write_text("<html>")
    captions = {
        "a.png": "one\ntwo words", "b.png": "one", "c.bmp": "one", "long.png": "a red bar", "e.png": "x " * 100,
        "empty.png": "nothing", "cut.png": "half", "page.jpg": "a page",
    }  # fmt: skip
    for name, text in captions.items():
        (root / name).with_suffix(".txt").write_text(text)
    return root


class TestInspect:
    def test_what_it_finds(self, folder):
        found = inspect(Captions.from_folder(folder), tokenizer=Tokenizer.train(["x"], 514))
        assert (found.pictures, found.captions) == (8, 9)
        assert (found.per_picture.least, found.per_picture.most) == (1, 2)
        assert found.words.most == 100
        assert found.tokens.least == 2 + len("one")
        assert (found.cut, found.context_length) == (1, 77)
        assert found.widths == (20, 40, pytest.approx((40 * 3 + 90 + 20) / 5), 90)
        assert found.heights.least == 10
        assert found.long == {"long.png": (90, 10)}
        assert found.same_bytes == [["a.png", "b.png"]]
        assert found.same_pixels == [["a.png", "c.bmp"]]
        assert found.repeated == {"one": 3}
        assert list(found.unreadable) == ["cut.png", "empty.png", "page.jpg"]
        assert "the file is empty" in found.unreadable["empty.png"]
        assert all("\n" not in reason and str(folder) not in reason for reason in found.unreadable.values())
        assert len(found.readable) == 5
        assert found.folder == str(folder)

    def test_pictures_that_lie_in_several_splits(self, folder):
        for split, names in (("train", ["a", "long"]), ("val", ["b", "e"]), ("test", ["c"])):
            (folder / split).mkdir()
            for name in names:
                for path in list(folder.glob(f"{name}.*")):
                    path.rename(folder / split / path.name)
        for path in folder.glob("*.*"):
            path.unlink()
        found = inspect(Captions.from_folder(folder))
        assert sorted(found.across[0]) == ["test/c.bmp (test)", "train/a.png (train)", "val/b.png (val)"]
        assert inspect(Captions.from_folder(folder, split="train")).across == []

    def test_a_set_of_no_files(self):
        data = Shapes("val", 12)
        found = inspect(data, threads=2)
        assert (found.pictures, found.captions, found.folder, found.layout) == (12, 60, "", repr(data))
        assert found.widths.least == found.widths.most == 64
        assert found.same_bytes == found.same_pixels == []
        assert "learned from them" in found.tokenizer

    def test_what_was_left_out_before(self, folder):
        (folder / "e.txt").unlink()
        data = open_data_quietly(folder)
        found = inspect(data)
        assert list(found.skip_log) == [str(folder / "e.png")]
        assert "e.png: has no e.txt beside it" in str(found)

    def test_nothing_can_be_read(self, folder):
        data = Captions([folder / "empty.png"], [["nothing"]])
        found = inspect(data)
        assert found.widths is None
        assert "widths       unknown" in str(found)
        with pytest.raises(ValueError, match="no picture can be read"):
            contact_sheet(data, folder / "sheet.png", indices=found.readable)

    def test_an_empty_set(self):
        with pytest.raises(ValueError, match="empty"):
            inspect(Captions([], []))

    def test_lists_are_shown_up_to_a_number_and_counted(self, folder):
        report = inspect(Captions.from_folder(folder)).report(at_most=2)
        assert re.search(r"^3 +pictures that cannot be read:\n  cut.*\n  empty.*\n  … and 1 more$", report, re.M)
        assert "none         groups of the same picture in several splits" in report


def open_data_quietly(folder: Path) -> Captions:
    with pytest.warns(UserWarning, match="skipped"):
        return open_data(folder, "all", on_error="skip", max_skip_fraction=1.0)


class TestSheet:
    def test_it_shows_each_picture_in_its_place(self, tmp_path):
        data = Shapes("val", 7)
        contact_sheet(data, tmp_path / "sheet.png", columns=4)
        sheet = Image.open(tmp_path / "sheet.png")
        assert sheet.width == 4 * (SIDE + 12) + 12
        corner = data[0][0].getpixel((1, 1))
        left = 12 + (SIDE - 128) // 2
        assert all(abs(a - b) < 25 for a, b in zip(sheet.getpixel((left + 3, left + 3)), corner, strict=True))
        letters = sheet.crop((12, 12 + SIDE + 2, 12 + SIDE, 12 + SIDE + 30)).convert("L")
        assert letters.getextrema()[0] < 80  # there is writing below it

    def test_a_few_and_odd_sizes(self, tmp_path):
        for k, size in enumerate([(1, 1), (3000, 2), (2, 900)]):
            Image.new("RGB", size).save(tmp_path / f"{k}.png")
        data = Captions([tmp_path / f"{k}.png" for k in range(3)], [["one"], ["w" * 5000], ["drei Bäume 🐻 狗"]])
        contact_sheet(data, tmp_path / "sheet.png")
        assert Image.open(tmp_path / "sheet.png").width == 3 * (SIDE + 12) + 12

    @pytest.mark.parametrize("caption", ["short", "some words " * 40, "w" * 400, "a " + "w" * 60 + " b", "x\ny\tz"])
    def test_captions_fit(self, caption):
        font = _font()
        assert isinstance(font, ImageFont.FreeTypeFont)
        lines = wrapped(caption, font)
        assert 1 <= len(lines) <= LINES
        assert all(font.getlength(line) <= SIDE for line in lines)
        whole = "".join("".join(lines).split()) == "".join(caption.split())
        assert whole != lines[-1].endswith("…")


class TestCommand:
    def test_it_says_what_it_found_and_draws(self, folder, tmp_path, capsys):
        assert main(["data", "inspect", str(folder), "--sheet", str(tmp_path / "s.png"), "--at-most", "1"]) == 0
        out, err = capsys.readouterr()
        assert "layout       images with text files beside them\n             the split is drawn by a hash" in out
        assert "pictures     8" in out
        assert "  cut.png: " in out
        assert "… and 2 more" in out
        assert err == ""
        assert Image.open(tmp_path / "s.png").height > SIDE

    def test_the_drawn_set_and_a_split(self, capsys):
        assert main(["data", "inspect", "shapes", "--split", "val"]) == 0
        assert "pictures     500" in capsys.readouterr().out
        assert main(["data", "inspect", "shapes"]) == 0
        assert capsys.readouterr().out.startswith("shapes, train\n")  # there is no "all" of it

    def test_a_tokenizer(self, folder, tmp_path, capsys):
        Tokenizer.train(["x"], 514).save(tmp_path)
        assert main(["data", "inspect", str(folder), "--tokenizer", str(tmp_path)]) == 0
        assert "the given tokenizer (514 tokens)" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["no/such/folder"], "does not exist"),
            (["shapes", "--split", "dev"], "train, val, test"),
            (["shapes", "--sheet", "sheet.jpg"], "call it sheet.png"),
            (["shapes", "--sheet", "no/such/sheet.png"], "there is no folder"),
            (["shapes", "--tokenizer", "no/such"], "no tokenizer"),
            (["shapes", "--at-most", "0"], "expected 1 or more"),
        ],
    )
    def test_one_line_for_what_is_wrong(self, arguments, reason, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["data", "inspect", *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert reason in lines[0]

    def test_ctrl_c_stops_it(self, tmp_path):
        code = "import os, signal, sys, time, miniclip.data.tools.inspection as i; from miniclip.cli import main\n"
        # as in a terminal: of what a script starts in the background, Ctrl-C is ignored, and of its children as well
        code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        # in one piece, since several threads look at once
        code += "look = i._look\ndef slow(*a):\n    os.write(1, b'looking\\n'); time.sleep(0.2); return look(*a)\n"
        code += "i._look = slow; sys.exit(main(['data', 'inspect', 'shapes']))"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        killer = threading.Timer(60, process.kill)
        killer.start()
        assert process.stdout.readline() == "looking\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1].strip() == "miniclip: stopped"
        killer.cancel()
        assert process.returncode == 130
