"""Split by a column of groups in CSV, JSONL, parquet and Hugging Face datasets: a product is in one split."""

import json

import pytest

from miniclip.data import Shapes, open_data
from miniclip.errors import DataError

PRODUCTS = 12


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Folder with images, and the rows of a table: four photos of each product, in no order."""
    root = tmp_path_factory.mktemp("products")
    image = Shapes("train", 1, image_size=16)[0][0]
    entries = []
    for i in range(4):
        for k in range(PRODUCTS):
            image.save(root / f"{k}-{i}.png")
            entries.append({"image": f"{k}-{i}.png", "caption": f"photo {i} of {k}", "product id": f"p{k}"})
    return root, entries


def write(kind, root, entries):
    path = root / f"table.{kind}"
    if kind == "csv":
        lines = [",".join(entries[0]), *(",".join(entry.values()) for entry in entries)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, entries)) + "\n", encoding="utf-8")
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(entries), path)
    else:
        datasets = pytest.importorskip("datasets")
        path = root / "saved"
        datasets.Dataset.from_list([entry | {"image": str(root / entry["image"])} for entry in entries]).save_to_disk(
            path
        )
    return path


def products(data):
    return {captions[0].split()[-1] for captions in data.captions}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "saved"])
def test_products_are_in_one_split(kind, rows, tmp_path):
    root, entries = rows
    spec = f"{write(kind, root, entries)}?group=product id"
    parts = [open_data(spec, split) for split in ("train", "val", "test")]
    assert [len(data) for data in parts] == [40, 4, 4]
    assert sum(len(products(data)) for data in parts) == len(set.union(*map(products, parts))) == PRODUCTS
    assert "drawn by a hash of the 12 groups (seed 0)" in parts[0].about


def test_formats_draw_the_same_split(rows):
    root, entries = rows
    held = [products(open_data(f"{write(kind, root, entries)}?group=product id", "val")) for kind in ("csv", "jsonl")]
    assert held[0] == held[1]


def test_missing_column_is_named(rows):
    root, entries = rows
    with pytest.raises(DataError, match=r"no column 'produkt id'.*'product id'"):
        open_data(f"{write('csv', root, entries)}?group=produkt id", "val")


def test_layout_without_columns_is_refused(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Shapes("train", 1)[0][0].save(tmp_path / split / "a.png")
        (tmp_path / split / "a.txt").write_text("a caption")
    with pytest.raises(ValueError, match="group="):
        open_data(f"{tmp_path}?group=product&layout=folder", "val")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_empty_column_is_refused_and_missing_values_are_named(kind, rows, tmp_path):
    root, entries = rows
    empty = [entry | {"product id": " "} for entry in entries]
    with pytest.raises(DataError, match="the column of groups is empty in every row"):
        open_data(f"{write(kind, root, empty)}?group=product id", "train")
    some = [entry | ({"product id": ""} if entry["image"] in ("3-0.png", "3-1.png") else {}) for entry in entries]
    with pytest.warns(UserWarning, match=r"2 of 48 images have no group, such as 3-0\.png"):
        data = open_data(f"{write(kind, root, some)}?group=product id", "train")
    assert "hash of the 14 groups" in data.about
