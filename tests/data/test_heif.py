"""HEIC images of phones: read with pillow-heif, which is registered by itself; named without it."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from miniclip.data import Captions, decoding, open_data
from miniclip.data.decoding import open_image
from miniclip.errors import DataError

ADVICE = r'pip install "miniclip\[heif\]"'
HEADER = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


@pytest.fixture
def without_reader(monkeypatch):
    monkeypatch.setattr(decoding, "register_heif", lambda: False)


def write_heic(path, image, **options):
    pytest.importorskip("pillow_heif").from_pillow(image).save(path, quality=-1, **options)


def halves():
    """Left half red, right half blue."""
    image = Image.new("RGB", (64, 48), "blue")
    image.paste((255, 0, 0), (0, 0, 32, 48))
    return image


class TestWithReader:
    def test_a_file_is_read(self, tmp_path):
        write_heic(tmp_path / "a.HEIC", halves())
        image = open_image(tmp_path / "a.HEIC")
        assert (image.mode, image.size) == ("RGB", (64, 48))
        assert np.abs(np.asarray(image, int) - np.asarray(halves(), int)).max() <= 12

    @pytest.mark.parametrize("orientation", [3, 6, 8])
    def test_it_is_turned_upright_once(self, tmp_path, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        write_heic(tmp_path / "a.heic", halves(), exif=exif.tobytes())
        image = open_image(tmp_path / "a.heic")
        corners = {3: ((48, 24), (16, 24)), 6: ((24, 16), (24, 48)), 8: ((24, 48), (24, 16))}[orientation]
        red, blue = (image.getpixel(corner) for corner in corners)
        assert (red[0] > 200, blue[2] > 200) == (True, True)

    def test_a_phones_folder(self, tmp_path):
        write_heic(tmp_path / "IMG_1.HEIC", halves())
        halves().save(tmp_path / "IMG_2.JPG")
        halves().save(tmp_path / "IMG_3.HEIC", "JPEG")  # some phones write JPEGs under this name
        for number in (1, 2, 3):
            (tmp_path / f"IMG_{number}.txt").write_text(f"number {number}")
        data = open_data(tmp_path, "all")
        assert data.captions == [["number 1"], ["number 2"], ["number 3"]]
        assert [data[k][0].size for k in range(3)] == [(64, 48)] * 3

    def test_it_is_registered_in_a_new_process(self, tmp_path):
        write_heic(tmp_path / "a.heic", halves())
        code = f"from miniclip.data.decoding import open_image; print(open_image({str(tmp_path / 'a.heic')!r}).size)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "(64, 48)"


@pytest.mark.usefixtures("without_reader")
class TestWithoutReader:
    def test_the_extra_is_named(self, tmp_path):
        (tmp_path / "a.heic").write_bytes(HEADER)
        with pytest.raises(DataError, match=rf"a\.heic: cannot be read as an image: it is HEIC.*{ADVICE}"):
            open_image(tmp_path / "a.heic")

    @pytest.mark.parametrize("name", ["a.HEIC", "a.heif"])
    def test_a_folder_names_the_files(self, tmp_path, name):
        (tmp_path / name).write_bytes(HEADER)
        (tmp_path / "a.txt").write_text("one")
        for k in range(4):
            halves().save(tmp_path / f"b{k}.jpg")
            (tmp_path / f"b{k}.txt").write_text("two")
        with pytest.raises(DataError, match=rf"{name}: it is HEIC.*{ADVICE}"):
            open_data(tmp_path, "all")
        with pytest.warns(UserWarning, match="it is HEIC"):
            data = open_data(tmp_path, "all", on_error="skip", max_skip_fraction=0.3)
        assert len(data) == 4
        assert list(data.skip_log.reasons) == [str(tmp_path / name)]

    def test_a_jpeg_of_that_name_is_read(self, tmp_path):
        halves().save(tmp_path / "a.HEIC", "JPEG")
        (tmp_path / "a.txt").write_text("one")
        assert Captions.from_folder(tmp_path)[0][0].size == (64, 48)


@pytest.mark.parametrize("suffix", [".dng", ".CR2", ".jxl", ".svg"])
def test_other_formats_that_are_not_read_are_named(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"?")
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(DataError, match=rf"no images.*1 images in formats that are not read, such as a\{suffix}"):
        open_data(tmp_path, "all")
    halves().save(tmp_path / "b.jpg")
    (tmp_path / "b.txt").write_text("two")
    with pytest.raises(DataError, match=rf"a\{suffix}: is an image in a format that is not read"):
        open_data(tmp_path, "all")
    halves().save(tmp_path / "a.jpg")  # the camera's JPEG beside its raw file
    assert open_data(tmp_path, "all").captions == [["one"], ["two"]]
