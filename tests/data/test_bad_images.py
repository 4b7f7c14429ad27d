"""Bad image files: each is read correctly or raises with its reason; nothing hangs."""

import contextlib
import os
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miniclip import DataError, Tokenizer
from miniclip.config import preset
from miniclip.data import decoding, open_data
from miniclip.data.decoding import open_image
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.preprocess import Preprocess
from miniclip.data.skipping import MAX_WARNINGS
from tests.data.bad_images import (
    NOT_FILES,
    READ,
    REFUSED,
    frames,
    grey_with_16_bits,
    noise,
    pages,
    palette_with_transparency,
    plain,
    png_with_16_bits,
    saved,
    two_halves,
)

pytestmark = pytest.mark.usefixtures("time_limit")


def check_colours(expected, image):
    colours = expected if isinstance(expected, dict) else {(image.width // 2, image.height // 2): expected}
    for (x, y), colour in colours.items():
        assert np.abs(np.subtract(image.getpixel((x, y)), colour)).max() <= 12  # a JPEG is not exact


@pytest.mark.parametrize("case", READ)
def test_file_is_read_correctly(tmp_path, case):
    name, make, colour = READ[case]
    path = tmp_path / name
    path.write_bytes(make())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Pillow, for broken EXIF
        image = open_image(path)
        assert image.mode == "RGB"
        check_colours(colour, image)
        assert np.array_equal(np.array(open_image(path.read_bytes())), np.array(image))


@pytest.mark.parametrize("case", REFUSED)
def test_file_is_refused_with_reason(tmp_path, case):
    name, make, message = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(make())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=message) as caught:
            open_image(path)
        with pytest.raises(DataError, match=message) as of_bytes:
            open_image(path.read_bytes(), name="shard.tar: 0.jpg")
    assert str(caught.value).startswith(f"{path}: cannot be read as an image: ")
    assert str(of_bytes.value).startswith("shard.tar: 0.jpg: cannot be read as an image: ")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes, sockets and links")
@pytest.mark.parametrize("case", NOT_FILES)
def test_path_without_regular_file_raises(tmp_path, case):
    make, message = NOT_FILES[case]
    path = tmp_path / "a.jpg"
    make(path)
    path, message = {
        "a file below a file": (tmp_path / "b" / "a.jpg", "not a directory"),
        "a name that is too long": (tmp_path / ("x" * 300 + ".jpg"), "name too long"),
        "a name with a NUL": (tmp_path / "a\0.jpg", "null"),
    }.get(case, (path, message))
    with pytest.raises(DataError, match=message):
        open_image(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can read everything")
def test_file_without_permission_raises(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(plain(), "PNG"))
    path.chmod(0)
    with pytest.raises(DataError, match="permission denied"):
        open_image(path)


def test_pillow_warning_about_large_images_is_not_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(saved(plain(size=(100, 10)), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    with pytest.warns(Image.DecompressionBombWarning):
        assert open_image(path).size == (100, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # users do this
    monkeypatch.setattr(decoding, "MAX_PIXELS", 999)
    with pytest.raises(DataError, match="100 x 10 pixels are more than 999"):
        open_image(path)


# Random damage

FORMATS = {
    "JPEG": noise("JPEG", (16, 12)),
    "progressive JPEG": noise("JPEG", (16, 12), progressive=True),
    "JPEG with EXIF": two_halves("JPEG", 6),
    "PNG": noise("PNG", (16, 12)),
    "16-bit PNG": png_with_16_bits(),
    "palette PNG": palette_with_transparency(),
    "GIF": frames("GIF"),
    "WebP": noise("WEBP", (16, 12)),
    "lossless WebP": frames("WEBP", lossless=True),
    "BMP": noise("BMP", (16, 12)),
    "TIFF": noise("TIFF", (16, 12)),
    "compressed TIFF": noise("TIFF", (16, 12), compression="tiff_lzw"),
    "16-bit TIFF": grey_with_16_bits("TIFF"),
    "ICO": saved(plain(size=(16, 16)), "ICO"),
    "TGA": noise("TGA", (16, 12)),
    "PPM": noise("PPM", (16, 12)),
    "MPO": pages("MPO"),
}  # fmt: skip


def damaged(content, changes, length, inserted):
    """Change some bytes, mostly in the header, insert one run of bytes, and cut the file."""
    content = bytearray(content)
    for place, value in changes:
        content[int(place**3 * (len(content) - 1))] = value
    if inserted:
        at = int(inserted[0] * len(content))
        content[at:at] = inserted[1]
    return bytes(content[: max(1, int(length * len(content)))])


DAMAGE = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.one_of(st.just(1.0), st.floats(0, 1)),
    st.one_of(st.none(), st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8))),
)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60)
@given(damage=DAMAGE)
def test_damaged_file_is_read_or_raises_data_error(kind, damage):
    content = damaged(FORMATS[kind], *damage)
    refusal = "an image: cannot be read as an image: -"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = open_image(content)
        except DataError as error:
            refusal, image = str(error), None
    assert refusal.startswith("an image: cannot be read as an image: ")
    assert "\n" not in refusal
    assert image is None or (image.mode == "RGB" and image.width * image.height > 0)


# Through dataset and loader


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["image number 0123456789", "a dog"] * 3, 600)


def write_dataset(folder):
    """Write all files above; return the captions of readable ones by path, and the paths of the others."""
    rows, good, bad = ["image,caption"], {}, set()
    for number, (name, make, _) in enumerate([*READ.values(), *REFUSED.values()]):
        path = folder / f"{number:03}-{name}"
        path.write_bytes(make())
        rows.append(f"{path.name},image number {number}")
        if number < len(READ):
            good[str(path)] = f"image number {number}"
        else:
            bad.add(str(path))
    for number, (make, _) in enumerate(list(NOT_FILES.values())[1:7]):
        path = folder / f"not-a-file-{number}.jpg"
        make(path)
        rows.append(f"{path.name},no image")
        bad.add(str(path))
    (folder / "all.csv").write_text("\n".join(rows), encoding="utf-8")
    return good, bad


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes, sockets and links")
@pytest.mark.filterwarnings("ignore")  # from Pillow, for broken EXIF
@pytest.mark.parametrize("num_workers", [None, 1])
def test_all_files_in_one_dataset(tmp_path, tokenizer, num_workers):
    good, bad = write_dataset(tmp_path)
    with warnings.catch_warnings(action="ignore"):
        data = open_data(tmp_path / "all.csv", "all", on_error="skip", max_skip_fraction=1.0)
    preprocess = Preprocess(preset("bert_vit_tiny"))
    options = LoaderOptions(len(data), 16, num_workers=num_workers)
    skip = replace(options, on_error="skip", max_skip_fraction=1.0)
    with warnings.catch_warnings(record=True, action="always") as shown:
        loader = ImageCaptionLoader(data, tokenizer, preprocess, skip)
        batches = [*loader.epoch(0), *loader.epoch(1)]
        loader.close()
    assert loader.skip_log.reasons.keys() | data.skip_log.reasons.keys() == bad
    warned = [warning for warning in shown if "(skipped)" in str(warning.message)]
    assert len(warned) == MAX_WARNINGS  # the rest is only counted
    read = set()
    for batch in batches:
        for index, pixels, tokens in zip(batch.indices.tolist(), batch.pixels, batch.tokens, strict=True):
            name = data.name(index)
            read.add(name)
            assert tokenizer.decode(tokens.tolist()).split()[2:] == list(good[name].split()[2])  # digits are tokens
            assert torch.equal(pixels, preprocess.pixels(open_image(name)))
    assert read == good.keys()

    def run_epoch(**skipping):
        with contextlib.closing(
            ImageCaptionLoader(data, tokenizer, preprocess, replace(options, **skipping))
        ) as loader:
            list(loader.epoch(0))

    with warnings.catch_warnings(action="ignore"):
        with pytest.raises(DataError, match="cannot be read as an image"):
            run_epoch()
        with pytest.raises(DataError, match=r"more than 5\.0%"):
            run_epoch(on_error="skip")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_file_removed_during_epoch(tmp_path, tokenizer, num_workers):
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(saved(plain((number, 0, 0)), "PNG"))
        (tmp_path / f"{number}.txt").write_text(f"image number {number}")
    data = open_data(tmp_path, "all")

    def epochs(**options):
        options = LoaderOptions(2, 16, num_workers=num_workers, **options)
        loader = ImageCaptionLoader(data, tokenizer, Preprocess(preset("bert_vit_tiny")), options)
        removed = int(loader._order(0)[0][-1, 0])
        first = loader.epoch(0)
        next(first)
        path = tmp_path / data.name(removed)
        content = path.read_bytes()
        path.unlink()
        try:
            return path, [*first, *loader.epoch(1)], loader.skip_log
        finally:
            loader.close()
            path.write_bytes(content)

    with pytest.raises(DataError, match=r"png: cannot be read as an image: no such file"):
        epochs()
    with pytest.warns(UserWarning, match="no such file") as warned:
        path, batches, skip_log = epochs(on_error="skip")
    assert len([warning for warning in warned if "no such file" in str(warning.message)]) == 1
    assert list(skip_log.reasons) == [str(path)]
    assert sorted(len(batch.indices) for batch in batches) == [1, 1, *[2] * 17]
    assert str(path) not in {data.name(k) for batch in batches for k in batch.indices.tolist()}
