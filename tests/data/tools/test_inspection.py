"""Inspection of datasets with known content; the contact sheet; the command."""

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
from miniclip.data.tools.contact_sheet import IMAGE_SIDE, MAX_CAPTION_LINES, _font, wrapped
from miniclip.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path) -> Path:
    """Eight images: two identical files, a third with the same pixels, an elongated one, three that cannot be read."""
    root = tmp_path / "ein Ordner"
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
    def test_counts_sizes_duplicates_and_unreadable_images(self, folder):
        inspection = inspect(Captions.from_folder(folder), tokenizer=Tokenizer.train(["x"], 514))
        assert (inspection.images, inspection.captions) == (8, 9)
        assert (inspection.captions_per_image.min, inspection.captions_per_image.max) == (1, 2)
        assert inspection.words.max == 100
        assert inspection.tokens.min == 2 + len("one")
        assert (inspection.truncated, inspection.context_length) == (1, 77)
        assert inspection.widths == (20, 40, pytest.approx((40 * 3 + 90 + 20) / 5), 90)
        assert inspection.heights.min == 10
        assert inspection.elongated == {"long.png": (90, 10)}
        assert inspection.duplicate_files == [["a.png", "b.png"]]
        assert inspection.duplicate_pixels == [["a.png", "c.bmp"]]
        assert inspection.repeated_captions == {"one": 3}
        assert list(inspection.unreadable) == ["cut.png", "empty.png", "page.jpg"]
        assert "the file is empty" in inspection.unreadable["empty.png"]
        assert all("\n" not in reason and str(folder) not in reason for reason in inspection.unreadable.values())
        assert len(inspection.readable) == 5
        assert inspection.folder == str(folder)

    def test_identical_images_in_different_splits(self, folder):
        for split, names in (("train", ["a", "long"]), ("val", ["b", "e"]), ("test", ["c"])):
            (folder / split).mkdir()
            for name in names:
                for path in list(folder.glob(f"{name}.*")):
                    path.rename(folder / split / path.name)
        for path in folder.glob("*.*"):
            path.unlink()
        inspection = inspect(Captions.from_folder(folder))
        assert sorted(inspection.split_leaks[0]) == ["test/c.bmp (test)", "train/a.png (train)", "val/b.png (val)"]
        assert inspect(Captions.from_folder(folder, split="train")).split_leaks == []

    def test_a_dataset_without_files(self):
        data = Shapes("val", 12)
        inspection = inspect(data, threads=2)
        assert (inspection.images, inspection.captions, inspection.folder, inspection.layout) == (
            12,
            60,
            "",
            repr(data),
        )
        assert inspection.widths.min == inspection.widths.max == 64
        assert inspection.duplicate_files == inspection.duplicate_pixels == []
        assert "learned from them" in inspection.tokenizer

    def test_images_skipped_by_the_reader(self, folder):
        (folder / "e.txt").unlink()
        data = open_data_quietly(folder)
        inspection = inspect(data)
        assert list(inspection.skipped) == [str(folder / "e.png")]
        assert "e.png: has no e.txt beside it" in str(inspection)

    def test_a_dataset_without_readable_images(self, folder):
        data = Captions([folder / "empty.png"], [["nothing"]])
        inspection = inspect(data)
        assert inspection.widths is None
        assert "widths       unknown" in str(inspection)
        with pytest.raises(ValueError, match="no image can be read"):
            contact_sheet(data, folder / "sheet.png", indices=inspection.readable)

    def test_an_empty_dataset_is_refused(self):
        with pytest.raises(ValueError, match="empty"):
            inspect(Captions([], []))

    def test_long_lists_are_truncated_and_counted(self, folder):
        report = inspect(Captions.from_folder(folder)).report(max_lines=2)
        assert re.search(r"^3 +images that cannot be read:\n  cut.*\n  empty.*\n  … and 1 more$", report, re.M)
        assert "none         groups of identical images in different splits" in report


def open_data_quietly(folder: Path) -> Captions:
    with pytest.warns(UserWarning, match="skipped"):
        return open_data(folder, "all", on_error="skip", max_skip_fraction=1.0)


class TestSheet:
    def test_each_image_and_caption_is_drawn(self, tmp_path):
        data = Shapes("val", 7)
        contact_sheet(data, tmp_path / "sheet.png", columns=4)
        sheet = Image.open(tmp_path / "sheet.png")
        assert sheet.width == 4 * (IMAGE_SIDE + 12) + 12
        corner = data[0][0].getpixel((1, 1))
        left = 12 + (IMAGE_SIDE - 128) // 2
        assert all(abs(a - b) < 25 for a, b in zip(sheet.getpixel((left + 3, left + 3)), corner, strict=True))
        letters = sheet.crop((12, 12 + IMAGE_SIDE + 2, 12 + IMAGE_SIDE, 12 + IMAGE_SIDE + 30)).convert("L")
        assert letters.getextrema()[0] < 80  # dark pixels of the caption

    def test_few_images_of_odd_sizes(self, tmp_path):
        for k, size in enumerate([(1, 1), (3000, 2), (2, 900)]):
            Image.new("RGB", size).save(tmp_path / f"{k}.png")
        data = Captions([tmp_path / f"{k}.png" for k in range(3)], [["one"], ["w" * 5000], ["drei Bäume 🐻 狗"]])
        contact_sheet(data, tmp_path / "sheet.png")
        assert Image.open(tmp_path / "sheet.png").width == 3 * (IMAGE_SIDE + 12) + 12

    @pytest.mark.parametrize("caption", ["short", "some words " * 40, "w" * 400, "a " + "w" * 60 + " b", "x\ny\tz"])
    def test_captions_fit(self, caption):
        font = _font()
        assert isinstance(font, ImageFont.FreeTypeFont)
        lines = wrapped(caption, font)
        assert 1 <= len(lines) <= MAX_CAPTION_LINES
        assert all(font.getlength(line) <= IMAGE_SIDE for line in lines)
        whole = "".join("".join(lines).split()) == "".join(caption.split())
        assert whole != lines[-1].endswith("…")


class TestCommand:
    def test_prints_the_report_and_draws_the_sheet(self, folder, tmp_path, capsys):
        assert main(["data", "inspect", str(folder), "--sheet", str(tmp_path / "s.png"), "--max-lines", "1"]) == 0
        out, err = capsys.readouterr()
        assert "layout       images with text files beside them\n             the split is drawn by a hash" in out
        assert "images       8" in out
        assert "  cut.png: " in out
        assert "… and 2 more" in out
        assert err == ""
        assert Image.open(tmp_path / "s.png").height > IMAGE_SIDE

    def test_shapes_and_a_split(self, small_shapes, capsys):
        assert main(["data", "inspect", "shapes", "--split", "val"]) == 0
        assert "images       24" in capsys.readouterr().out
        assert main(["data", "inspect", "shapes"]) == 0
        assert capsys.readouterr().out.startswith("shapes, train\n")  # Shapes has no split "all"

    def test_the_sheet_replaces_only_a_sheet(self, folder, tmp_path, capsys):
        photo, sheet = tmp_path / "photo.png", tmp_path / "sheet.png"
        Image.new("RGB", (9, 9)).save(photo)
        before = photo.read_bytes()
        assert main(["data", "inspect", str(folder), "--sheet", str(photo)]) == 2
        assert "photo.png exists and is not a contact sheet" in capsys.readouterr().err
        assert photo.read_bytes() == before
        for _ in range(2):
            assert main(["data", "inspect", str(folder), "--sheet", str(sheet)]) == 0

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
            (["shapes", "--sheet", "no/such/sheet.png"], "does not exist"),
            (["shapes", "--tokenizer", "no/such"], "no tokenizer"),
            (["shapes", "--max-lines", "0"], "expected 1 or more"),
        ],
    )
    def test_errors_are_one_line(self, arguments, reason, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["data", "inspect", *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert reason in lines[0]

    def test_ctrl_c_stops_the_command(self, tmp_path):
        code = "import os, signal, sys, time, miniclip.data.tools.inspection as i; from miniclip.cli import main\n"
        # a script's background processes ignore Ctrl-C, and so do their children
        code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        # one write, since several threads read at the same time
        code += (
            "read = i._read_image\ndef slow(*a):\n    os.write(1, b'reading\\n'); time.sleep(0.2); return read(*a)\n"
        )
        code += "i._read_image = slow; sys.exit(main(['data', 'inspect', 'shapes']))"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        killer = threading.Timer(60, process.kill)
        killer.start()
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1].strip() == "miniclip: stopped"
        killer.cancel()
        assert process.returncode == 130
