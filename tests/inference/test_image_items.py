"""Images of every type that users pass: the same embeddings as from PIL images, or one sentence."""

import io
import os
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageSequence

from miniclip.data.decoding import open_image
from miniclip.errors import DataError
from miniclip.inference.image_items import image_items
from miniclip.inference.model import CLIPModel


@pytest.fixture(scope="module")
def model(toy_config, toy_tokenizer) -> CLIPModel:
    return CLIPModel(toy_config.replace_text(end_id=toy_tokenizer.end_id), toy_tokenizer).initialise().eval()


@pytest.fixture(scope="module")
def arrays() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def rows(model, arrays) -> torch.Tensor:
    return model.encode_image([Image.fromarray(array) for array in arrays])


@pytest.fixture(scope="module")
def paths(arrays, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


def same(first, second) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, rtol=0, atol=1e-6)


COLLECTIONS = {
    "tuple": tuple,
    "deque": deque,
    "generator": lambda items: (item for item in items),
    "map": lambda items: map(lambda item: item, items),  # noqa: C417 -- an object of the type map
    "values of a dict": lambda items: dict(enumerate(items)).values(),
    "keys of a dict": lambda items: dict.fromkeys(items).keys(),
    "array of objects": lambda items: np.array(items, dtype=object),
}


@pytest.mark.parametrize("kind", sorted(COLLECTIONS))
def test_collections_of_paths(model, rows, paths, kind):
    assert same(model.encode_image(COLLECTIONS[kind](paths)), rows)
    assert same(model.encode_image(COLLECTIONS[kind](list(map(str, paths)))), rows)


@pytest.mark.parametrize("kind", ["array of objects", "deque", "generator", "map", "tuple", "values of a dict"])
def test_collections_of_images(model, rows, arrays, kind):
    images = np.empty(3, dtype=object)
    images[:] = [Image.fromarray(array) for array in arrays]
    assert same(model.encode_image(images if kind == "array of objects" else COLLECTIONS[kind](list(images))), rows)
    if kind != "array of objects":
        assert same(model.encode_image(COLLECTIONS[kind](list(arrays))), rows)


def test_columns_of_tables(model, rows, paths):
    pandas = pytest.importorskip("pandas")
    names = list(map(str, paths))
    series = pandas.Series(names, index=[7, 7, 1])  # labels that are not positions
    for column in (series, series.astype("string"), series.astype("category"), pandas.Index(names)):
        assert same(model.encode_image(column), rows)
    assert same(model.encode_image(pandas.Series(paths)), rows)
    for table in (pandas.DataFrame({"path": names}), pandas.DataFrame({"a": names, "b": names})):
        with pytest.raises(TypeError, match=r"a DataFrame \(3, .*a table.*pass one of its columns"):
            model.encode_image(table)
    with pytest.raises(TypeError, match=r"image 1: found a NAType; expected .*the cell is empty; drop it"):
        model.encode_image(pandas.Series([names[0], pandas.NA], dtype="string"))
    with pytest.raises(TypeError, match=r"image 1: found a float; .*the cell is empty"):
        model.encode_image(pandas.Series([names[0], np.nan]))


def test_columns_of_arrow_and_datasets(model, rows, paths):
    pyarrow = pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    names = list(map(str, paths))
    assert same(model.encode_image(pyarrow.array(names)), rows)
    assert same(model.encode_image(pyarrow.chunked_array([names[:1], names[1:]])), rows)
    table = datasets.Dataset.from_dict({"image": names}, features=datasets.Features({"image": datasets.Image()}))
    assert same(model.encode_image(table["image"]), rows)
    for whole in (table, pyarrow.table({"image": names}), datasets.DatasetDict({"train": table})):
        with pytest.raises(TypeError, match=r"pass one of its columns|pass its values"):
            model.encode_image(whole)


def test_bytes_and_open_files(model, rows, paths):
    contents = [path.read_bytes() for path in paths]
    for kind in (bytes, bytearray, memoryview, io.BytesIO):
        assert same(model.encode_image([kind(content) for content in contents]), rows)
        assert same(model.encode_image(kind(contents[1])), rows[1:2])
    with paths[1].open("rb") as file:
        assert same(model.encode_image(file), rows[1:2])
        assert same(model.encode_image([file, paths[0], file], num_workers=2), rows[[1, 0, 1]])
    with pytest.raises(DataError, match=r"image 1: the file is closed"):
        model.encode_image([paths[0], file])
    with paths[1].open() as text, pytest.raises(TypeError, match=r"found a TextIOWrapper .*mode 'rb'"):
        model.encode_image(text)
    with pytest.raises(TypeError, match=r"image 0: found a StringIO .*mode 'rb'"):
        model.encode_image(io.StringIO("text"))


def test_generator_may_close_its_files_and_reuse_its_arrays(model, rows, paths, arrays):
    def files():
        for path in paths:
            with path.open("rb") as file:
                yield file

    def frames():
        buffer = np.empty_like(arrays[0])
        for array in arrays:
            buffer[:] = array
            yield buffer

    assert same(model.encode_image(files()), rows)
    assert same(model.encode_image(frames()), rows)
    assert same(model.encode_image(torch.from_numpy(frame).permute(2, 0, 1) for frame in frames()), rows)


class Film:
    """Reader that yields its frames in one array."""

    def __init__(self, arrays):
        self.arrays, self.buffer = arrays, np.empty_like(arrays[0])

    def __iter__(self):
        for array in self.arrays:
            self.buffer[:] = array
            yield self.buffer


class FilmOfKnownLength(Film):
    def __len__(self):
        return len(self.arrays)


@pytest.mark.parametrize("film", [Film, FilmOfKnownLength])
def test_reader_of_films_may_reuse_its_array(model, rows, arrays, film):
    assert same(model.encode_image(film(arrays)), rows)


def test_generator_may_change_and_close_its_images(model, rows, paths, arrays):
    def files():
        for path in paths:
            with Image.open(path) as image:
                yield image

    def canvas():
        image = Image.new("RGB", (30, 20))
        for array in arrays:
            image.paste(Image.fromarray(array))
            yield image

    def drawn_on():
        for path in paths:
            with path.open("rb") as file, Image.open(file) as image:
                image.load()
                image.paste("red", (0, 0, 30, 20))
                yield image

    assert same(model.encode_image(files()), rows)
    assert same(model.encode_image(canvas()), rows)
    assert same(model.encode_image(drawn_on()), model.encode_image([Image.new("RGB", (30, 20), "red")] * 3))


@pytest.mark.parametrize("suffix", ["gif", "tif", "png"])
def test_frames_of_an_animation(model, paths, tmp_path, suffix):
    path = tmp_path / f"film.{suffix}"
    first, *others = (open_image(path) for path in paths)
    first.save(path, save_all=True, append_images=others)
    with Image.open(path) as film:
        frames = [frame.copy() for frame in ImageSequence.Iterator(film)]
        film.seek(0)
        assert same(model.encode_image(ImageSequence.Iterator(film)), model.encode_image(frames))
    assert not same(model.encode_image(frames[:1]), model.encode_image(frames[2:]))


def test_generator_of_unread_images_keeps_them_unread(paths, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    kept = image_items(Image.open(path) for path in paths)
    assert [image.size for image in kept] == [(30, 20)] * 3


def test_generator_with_a_damaged_image_names_it(model, paths, tmp_path):
    (tmp_path / "cut.png").write_bytes(paths[1].read_bytes()[:600])
    with pytest.raises(DataError, match="image 1: "):
        model.encode_image(Image.open(path) for path in (paths[0], tmp_path / "cut.png"))


def test_bytes_of_a_jpeg_are_read_as_its_path(model, tmp_path, arrays):
    Image.fromarray(arrays[0]).resize((90, 70)).save(tmp_path / "a.jpg")
    assert torch.equal(model.encode_image((tmp_path / "a.jpg").read_bytes()), model.encode_image(tmp_path / "a.jpg"))


def test_paths_of_other_types(model, rows, paths):
    assert same(model.encode_image(sorted(os.scandir(paths[0].parent), key=lambda entry: entry.name)), rows)
    assert same(model.encode_image(np.str_(paths[1])), rows[1:2])
    assert same(model.encode_image(np.array(str(paths[1]))), rows[1:2])
    assert same(model.encode_image(np.array(list(map(str, paths)))), rows)


def test_batches(model, rows, arrays):
    tensor = torch.from_numpy(arrays)
    for batch in (arrays, arrays.transpose(0, 3, 1, 2), tensor, tensor.permute(0, 3, 1, 2), arrays[::1].copy()):
        assert same(model.encode_image(batch), rows)
        assert same(model.encode_image(batch[:1]), rows[:1])
        assert model.encode_image(batch[:0]).shape == (0, 8)
    for single in (tensor[1].permute(2, 0, 1), tensor[1], arrays[1], tensor[1:2], arrays[1:2]):
        assert same(model.encode_image(single), rows[1:2])
        assert same(model.encode_image([single, single]), rows[[1, 1]])
    assert same(model.encode_image(list(tensor.permute(0, 3, 1, 2))), rows)
    assert same(model.encode_image(arrays[..., ::-1]), model.encode_image(list(arrays[..., ::-1].copy())))


def test_grey_and_transparent_arrays(model, arrays):
    grey, alpha = arrays[..., 0], np.concatenate([arrays, arrays[..., :1]], axis=3)
    expected = model.encode_image([Image.fromarray(array) for array in grey])
    for form in (
        list(grey),
        list(grey[..., None]),
        grey[..., None],
        torch.from_numpy(grey)[:, None],
        list(grey[:, None]),
    ):
        assert same(model.encode_image(form), expected)
    assert same(model.encode_image(grey[0]), expected[:1])
    assert same(model.encode_image(torch.from_numpy(grey[0])), expected[:1])
    expected = model.encode_image([Image.fromarray(array) for array in alpha])
    for form in (alpha, list(alpha), torch.from_numpy(alpha).permute(0, 3, 1, 2)):
        assert same(model.encode_image(form), expected)
    hidden = np.dstack([arrays[0], np.zeros((20, 30), np.uint8)])
    assert same(model.encode_image(hidden), model.encode_image(Image.new("RGB", (30, 20), "white")))


UNCERTAIN = {
    "channels first": (
        np.zeros((3, 20, 30), np.uint8),
        r"an array \(3, 20, 30\) of uint8.*x\[None\].*x\[\.\.\., None\]",
    ),
    "grey batch": (np.zeros((5, 28, 28), np.uint8), r"not certain; .*pass x\[\.\.\., None\]"),
    "grey or RGBA tensor": (torch.zeros(4, 28, 28, dtype=torch.uint8), r"not certain.*x\[None\]"),
    "int32": (np.full((8, 8, 3), 200, np.int32), "of int32 with values from 200 to 200; expected .*uint8, 0 to 255"),
    "int64 tensor": (torch.arange(192).view(3, 8, 8), "of int64 with values from 0 to 191; expected"),
    "int64 batch": (np.zeros((2, 8, 8, 3), np.int64), "images: found an array .*from 0 to 0"),
    "uint16": (np.full((8, 8), 65535, np.uint16), "of uint16 with values from 65535 to 65535"),
    "float array": (np.random.default_rng(0).random((8, 8, 3)), r"of float64 with values from 0\.\d+ to 0\.\d+"),
    "float array batch": (np.zeros((2, 3, 16, 16), np.float32), "of float32 with values from 0 to 0.*float tensor"),
    "bool": (np.ones((8, 8), bool), "of bool; expected"),
    "two channels": (np.zeros((8, 8, 2), np.uint8), r"not certain; expected"),
    "five dimensions": (np.zeros((1, 1, 8, 8, 3), np.uint8), r"found an array \(1, 1, 8, 8, 3\)"),
    "empty array": (np.zeros((0, 8, 3), np.uint8), "has no pixels"),
    "numbers": (np.arange(3), "image 0: found an? int"),
    "array of bytes": (np.array([b"\x89PNG"]), "an array of bytes, which loses zeros"),
    "masked": (np.ma.masked_array(np.zeros((8, 8, 3), np.uint8), mask=True), r"a masked array; .*expected|x\.filled"),
    "sparse": (torch.zeros(2, 3, 16, 16).to_sparse(), r"that is sparse; pass x\.to_dense"),
    "float8": (torch.zeros(1, 3, 16, 16).to(torch.float8_e4m3fn), "of float8_e4m3fn with values from 0 to 0"),
    "meta": (torch.zeros(2, 3, 16, 16, dtype=torch.uint8, device="meta"), "on the meta device, without data"),
    "float image": (torch.rand(16, 16, 3), r"a Tensor \(16, 16, 3\) of float32"),
}


@pytest.mark.parametrize("kind", sorted(UNCERTAIN))
def test_uncertain_arrays_are_refused(model, kind):
    images, message = UNCERTAIN[kind]
    with pytest.raises(TypeError, match=message):
        model.encode_image(images)
    if kind not in ("numbers", "float image") and images.ndim in (2, 3):
        with pytest.raises(TypeError, match=r"image 1: found"):
            model.encode_image([Image.new("RGB", (8, 8)), images])


def test_advice_for_uncertain_arrays_works(model, arrays):
    first, grey = arrays[0].transpose(2, 0, 1), arrays[..., 0]
    assert same(model.encode_image(first[None]), model.encode_image(arrays[:1]))
    assert same(model.encode_image(grey[..., None]), model.encode_image([Image.fromarray(array) for array in grey]))
    four = torch.from_numpy(np.concatenate([arrays[0], arrays[0, ..., :1]], axis=2)).permute(2, 0, 1)
    assert same(model.encode_image(four[None]), model.encode_image(four.permute(1, 2, 0).numpy()))
    scaled = arrays / 255.0
    assert same(model.encode_image((255 * scaled).round().astype("uint8")), model.encode_image(arrays))


def test_normalised_tensors(model, rows, arrays):
    pixels = torch.stack([model.preprocess(array) for array in arrays])
    forms = [pixels, list(pixels), tuple(pixels), list(pixels[:, None]), iter(pixels), pixels.double(), deque(pixels)]
    for form in forms:
        assert same(model.encode_image(form), rows)
    assert same(model.encode_image(pixels[1]), rows[1:2])
    with pytest.raises(ValueError, match=r", 0 to 255; expected normalised pixels, -1\.8 to 2\.1"):
        model.encode_image(torch.arange(256.0).repeat(3).view(1, 3, 16, 16))
    with pytest.raises(TypeError, match=r"image 0 is a Tensor .*image 1 is an? .*for all of them, or for none"):
        model.encode_image([pixels[0], arrays[0]])
    with pytest.raises(TypeError, match=r"image 0 is a Tensor \(3, 3, 16, 16\).*torch\.cat"):
        model.encode_image([pixels, pixels])
    with pytest.raises(ValueError, match=r"image 1 is a Tensor \(3, 8, 8\).*the same shape"):
        model.encode_image([pixels[0], pixels[0, :, :8, :8]])
    with pytest.raises(ValueError, match=r"pixels have the shape"):
        model.encode_image(torch.zeros(3, 20, 20))


REFUSED = {
    "number": (3.5, "images: found a float; expected a path"),
    "nothing": (None, "images: found a NoneType; expected a path"),
    "dict": ({"pixel_values": torch.zeros(1, 3, 16, 16)}, r"images: found a dict; expected .*list\(x\.values\(\)\)"),
    "set": ({"a.png", "b.png"}, "images: found a set, which has no order"),
    "frozenset": (frozenset(["a.png"]), "images: found a frozenset, which has no order"),
    "number in a list": ([3], "image 0: found an int; expected a path"),
    "nested lists": ([["a.png"], ["b.png"]], "image 0: found a list; .*pass each image by itself"),
    "pairs": ([(Image.new("RGB", (8, 8)), ["a dog"])], "image 0: found a tuple; .*pass each image by itself"),
    "rows of dicts": ([{"image": "a.png"}], "image 0: found a dict; .*pass each image by itself"),
    "range": (range(3), "image 0: found an int"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_other_types_are_refused(model, kind):
    images, message = REFUSED[kind]
    with pytest.raises(TypeError, match=message):
        model.encode_image(images)


TEXTS = {
    "URL": ("https://example.com/cat.jpg", "is a URL; download the image"),
    "bucket": ("s3://bucket/cat.jpg", "is a URL"),
    "data URL": ("data:image/png;base64,aGVsbG8=", "is a data URL; pass its bytes"),
    "pattern": ("photos/*.jpg", r"no such image file; patterns are not expanded: pass sorted\(glob\.glob"),
    "home": ("~/cat.jpg", r"~ is not expanded: pass Path\(path\)\.expanduser\(\)"),
    "base64": ("iVBORw0KGgo" * 2000, r"iVBORw0KGgo.*… \(22,000 characters\): no such image file; .*base64\.b64decode"),
    "empty": ("", "'': no such image file"),
    "zero byte": ("a\0b.jpg", "no such image file"),
    "missing": ("missing.jpg", r"missing\.jpg: no such image file$"),
}


@pytest.mark.parametrize("kind", sorted(TEXTS))
def test_texts_that_are_not_paths_have_a_hint(model, kind):
    text, message = TEXTS[kind]
    with pytest.raises(FileNotFoundError, match=message) as caught:
        model.encode_image(text)
    assert len(str(caught.value)) < 500
    with pytest.warns(UserWarning, match=r"1 of 1 images"):
        assert model.encode_image([text], on_error="skip").isnan().all()


def test_url_as_a_path_has_the_same_hint(model):
    with pytest.raises(FileNotFoundError, match=r"is a URL"):
        model.encode_image(Path("https://example.com/cat.jpg"))


def test_folder_has_a_hint(model, tmp_path):
    for folder in (tmp_path, str(tmp_path), [tmp_path]):
        with pytest.raises(DataError, match=r"is a folder; pass its images, as in sorted\(Path\('photos'\)"):
            model.encode_image(folder)


def test_unreadable_bytes_are_named_by_index(model, paths):
    with pytest.raises(DataError, match=r"image 1: cannot be read as an image: no image format"):
        model.encode_image([paths[0], b"no image at all"])
    with pytest.warns(UserWarning, match=r"1 of 2 images .*image 1: cannot be read"):
        result = model.encode_image([paths[0], b"no image at all"], on_error="skip")
    assert result.isnan().all(dim=1).tolist() == [False, True]


def test_preprocess_takes_every_type(model, paths, arrays):
    expected = model.preprocess(Image.fromarray(arrays[0]))
    tensor = torch.from_numpy(arrays[0]).permute(2, 0, 1)
    with paths[0].open("rb") as file:
        for image in (
            paths[0],
            str(paths[0]),
            paths[0].read_bytes(),
            file,
            arrays[0],
            tensor,
            arrays[:1],
            tensor[None],
        ):
            assert torch.equal(model.preprocess(image), expected)
    grey = model.preprocess(arrays[0, ..., 0])
    assert torch.equal(grey[0] * 0 + grey[0], grey[0])
    refused = [[arrays[0]], arrays, None, 3, arrays[0] / 255.0, arrays[0].astype(int), tensor.float(), {"a": 1}]
    for image in refused:
        with pytest.raises(TypeError, match=r"found .*expected a path|a batch inside of a list"):
            model.preprocess(image)
    with pytest.raises(FileNotFoundError, match=r"no such image file"):
        model.preprocess("missing.jpg")


def test_normalise_refuses_integers_of_another_scale(model):
    pixels = torch.full((3, 16, 16), 200, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"of int64 with values from 200 to 200"):
        model.preprocess.normalise(pixels)
    with pytest.raises(TypeError, match=r"found an array .*; expected a tensor"):
        model.preprocess.normalise(pixels.numpy())


def test_closed_and_empty_images_are_named(model, paths):
    image = Image.open(paths[0])
    image.close()
    with pytest.raises(ValueError, match="image 1: Operation on closed image"):
        model.encode_image([paths[0], image])
    dark = Image.fromarray(np.full((8, 8), 200, np.uint16))  # 16 bits, or 8 of them
    with pytest.raises(DataError, match=r"image 1: its grey levels are from 200 to 200"):
        model.encode_image([paths[0], dark])
    with pytest.raises(TypeError, match=r"image 0: found an image of 0 x 5 pixels"):
        model.encode_image(Image.new("RGB", (0, 5)))


def test_upright_images_are_those_of_open_image(model, paths, rows):
    assert same(model.encode_image([open_image(path) for path in paths]), rows)


@pytest.mark.parametrize("size", ["32", 2.0, 1.5, True, np.bool_(True), [4]])
@pytest.mark.parametrize("name", ["batch_size", "num_workers"])
def test_sizes_that_are_not_integers(model, arrays, name, size):
    for images in (arrays, torch.zeros(2, 3, 16, 16)):
        with pytest.raises(TypeError, match=f"{name} is .*expected an integer"):
            model.encode_image(images, **{name: size})
    if name == "batch_size":
        with pytest.raises(TypeError, match=r"batch_size is .*expected an integer"):
            model.encode_text(["a dog"], batch_size=size)


def test_sizes_of_numpy_are_taken(model, arrays, rows):
    assert same(model.encode_image(arrays, batch_size=np.int64(2), num_workers=np.int32(0)), rows)
    assert same(model.encode_text(["a", "b"], batch_size=np.uint8(1)), model.encode_text(["a", "b"]))


def test_tower_with_another_number_of_rows_is_refused(model, arrays, toy_config, toy_tokenizer):
    class Last(torch.nn.Module):
        def __init__(self, tower):
            super().__init__()
            self.tower, self.patches = tower, tower.patches

        def forward(self, x):
            return self.tower(x)[-1:]

    config = toy_config.replace_text(end_id=toy_tokenizer.end_id)
    other = CLIPModel(config, toy_tokenizer).initialise().eval()
    other.image = Last(other.image)
    with pytest.raises(ValueError, match=r"a tower returned \(1, 8\) for 3 inputs; expected \(3, 8\)"):
        other.encode_image(arrays)
    with pytest.raises(ValueError, match=r"a tower returned"):
        other.encode_image([*arrays, "missing.png"], on_error="skip")
