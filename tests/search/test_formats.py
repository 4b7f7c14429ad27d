"""Formats of an index's images: rotated ones, those of phones and cameras, and images in archives and tables."""

import csv
import importlib.util
import io
import struct
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from miniclip import Index
from miniclip.data.shapes import Shapes

SIDE = 64


def photo() -> Image.Image:
    """Return a wide image whose halves differ."""
    image = Image.new("RGB", (48, 32), "red")
    image.paste("blue", (0, 0, 48, 12))
    return image


def write_dng(path, pixels: np.ndarray) -> None:
    """Write a RAW file: grey levels of 16 bits under a filter of red, green, green and blue."""
    height, width = pixels.shape
    rational = struct.pack("<18i", *(value for cell in (1, 0, 0, 0, 1, 0, 0, 0, 1) for value in (cell, 1)))
    neutral = struct.pack("<6I", 1, 1, 1, 1, 1, 1)
    model = b"Toy camera\0"
    tags = [
        (254, 4, 1, 0), (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1),
        (262, 3, 1, 32803), (271, 2, len(model), model), (272, 2, len(model), model), (273, 4, 1, None),
        (274, 3, 1, 1), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 2 * width * height),
        (33421, 3, 2, struct.pack("<2H", 2, 2)), (33422, 1, 4, bytes([0, 1, 1, 2])),
        (50706, 1, 4, bytes([1, 4, 0, 0])), (50708, 2, len(model), model), (50717, 4, 1, 65535),
        (50721, 10, 9, rational), (50728, 5, 3, neutral), (50778, 3, 1, 21),
    ]  # fmt: skip
    entries, extra = [], b""
    start = 8 + 2 + 12 * len(tags) + 4
    extra_size = sum(len(value) + len(value) % 2 for *_, value in tags if isinstance(value, bytes) and len(value) > 4)
    for tag, kind, count, value in tags:
        if value is None:
            value = start + extra_size
        if isinstance(value, bytes) and len(value) > 4:
            field = struct.pack("<I", start + len(extra))
            extra += value + b"\0" * (len(value) % 2)
        else:
            field = value if isinstance(value, bytes) else struct.pack("<H2x" if kind == 3 else "<I", value)
        entries.append(struct.pack("<HHI", tag, kind, count) + field)
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    path.write_bytes(header + b"".join(entries) + b"\0" * 4 + extra + pixels.astype("<u2").tobytes())


def test_orientation_is_respected(tmp_path, search_model):
    folder = tmp_path / "photos"
    folder.mkdir()
    photo().save(folder / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    photo().transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    photo().transpose(Image.Transpose.ROTATE_90).save(folder / "wrong.png")
    photo().transpose(Image.Transpose.ROTATE_90).save(folder / "a.jpg", exif=exif, quality=95, subsampling=0)
    index = Index.build(search_model, folder)
    jpeg, turned, upright, wrong = index.embeddings.astype(np.float32)
    assert (turned == upright).all()
    assert jpeg @ upright > 0.999 > wrong @ upright
    assert {(item.width, item.height) for item in index.snapshot.items()} == {(48, 32), (32, 48)}


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="needs pillow-heif")
def test_heic(tmp_path, search_model):
    from pillow_heif import from_pillow

    folder = tmp_path / "photos"
    folder.mkdir()
    from_pillow(photo()).save(folder / "phone.HEIC")
    index = Index.build(search_model, folder)
    assert [(item.name, item.width) for item in index.snapshot.items()] == [("phone.HEIC", 48)]


def test_raw_file(tmp_path, search_model, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    levels = np.full((SIDE, 2 * SIDE), 2_000)
    levels[:, SIDE:] = 50_000
    write_dng(folder / "camera.dng", levels)
    photo().save(folder / "both.jpg")
    write_dng(folder / "both.dng", levels)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rawpy", None)
        with pytest.warns(UserWarning, match=r"camera.dng: .*miniclip\[raw\]"):
            index = Index.build(search_model, folder)
    assert index.snapshot.names == ["both.jpg"]  # cameras write both
    pytest.importorskip("rawpy")
    index = Index.build(search_model, folder)
    assert index.snapshot.names == ["both.jpg", "camera.dng"]
    image = np.asarray(index.image(index.snapshot.items([1])[0]))
    assert image[:, :24].mean() < 100 < image[:, -24:].mean()


def test_tar_is_compared_by_content(tmp_path, search_model):
    path, images = (
        tmp_path / "photos.tar",
        [image for image, _ in (Shapes("train", 6, image_size=16)[i] for i in range(6))],
    )

    def write(chosen: list[int]) -> None:
        with tarfile.open(path, "w") as tar:
            for number in chosen:
                buffer = io.BytesIO()
                images[number].save(buffer, "png")
                for name, content in ((f"{number}.png", buffer.getvalue()), (f"{number}.txt", b"a shape")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))

    write([0, 1, 2, 3])
    index = Index.build(search_model, path)
    assert index.path.name == "photos.tar.index"
    assert index.report.encoded == 4
    assert np.asarray(index.image(index.snapshot.items([2])[0])).tolist() == np.asarray(images[2]).tolist()
    write([5, 0, 1, 2])
    report = Index.build(search_model, path).report
    assert (report.encoded, report.unchanged, report.removed) == (1, 3, 1)


def test_table_of_files(tmp_path, search_model, photos):
    with (tmp_path / "photos.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        rows.writerows([[f"photos/{number}.png", "a shape"] for number in range(5)])
    index = Index.build(search_model, tmp_path / "photos.csv")
    assert index.paths == [str(photos / f"{number}.png") for number in range(5)]
    assert Index.build(search_model, tmp_path / "photos.csv").report.encoded == 0
