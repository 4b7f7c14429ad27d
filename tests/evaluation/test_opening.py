"""Labelled datasets by a spec: tables of Hugging Face, datasets of torchvision, and their splits."""

import struct
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from miniclip.data import open_data
from miniclip.errors import DataError
from miniclip.evaluation import CachedEncoder, LabelledImages, open_labelled, zero_shot
from miniclip.evaluation.features import data_fingerprint

COLORS = ("red", "blue")


def table(images: int, **changes):
    datasets = pytest.importorskip("datasets")
    features = {
        "image": datasets.Image(),
        "kind": datasets.ClassLabel(names=list(COLORS)),
        "number": datasets.Value("int64"),
    }
    labels = [number % 2 for number in range(images)]
    rows = {"image": [Image.new("RGB", (8, 8), COLORS[label]) for label in labels], "kind": labels, "number": labels}
    return datasets.Dataset.from_dict(rows | changes, features=datasets.Features(features))


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A DatasetDict and a Dataset on disk, and parquet files with and without splits."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("tables")
    train, test = table(6), table(4)
    datasets.DatasetDict(train=train, validation=test).save_to_disk(root / "splits")
    test.save_to_disk(root / "one")
    (root / "parquet").mkdir()
    train.to_parquet(root / "parquet" / "train-00000-of-00001.parquet")
    test.to_parquet(root / "parquet" / "test-00000-of-00001.parquet")
    test.to_parquet(root / "some.parquet")
    test.remove_columns("kind").to_parquet(root / "numbers.parquet")
    table(2, kind=[0, -1]).to_parquet(root / "unlabelled.parquet")
    return root


@pytest.mark.parametrize(
    ("spec", "split", "count"),
    [
        ("splits", "train", 6),
        ("splits", "val", 4),
        ("one", "val", 4),
        ("one", "all", 4),
        ("parquet", "test", 4),
        ("parquet", "all", 10),
        ("parquet/*.parquet", "train", 6),
        ("some.parquet?label=kind&image=image", "val", 4),
    ],
)
def test_tables_with_class_labels(tables, spec, split, count):
    ((_, data),) = open_labelled(str(tables / spec), split).items()
    images = LabelledImages(data)
    pixels = [torch.from_numpy(np.array(Image.open(BytesIO(image)).convert("RGB"))) for image in images[:]]
    assert (len(images), images.class_names) == (count, list(COLORS))
    assert images.labels.tolist() == [int(each[0, 0, 2] > 0) for each in pixels]


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        ("splits", "test", "found the splits train, val, expected test"),
        ("parquet", "val", "found the splits test, train, expected val"),
        ("one", "train", "has no splits, and train is needed"),
        ("some.parquet?label=number", "val", "'number' has no names of classes; expected class labels with names"),
        ("some.parquet?label=knd", "val", "no column 'knd'; did you mean 'kind'"),
        ("some.parquet?image=img", "val", "no column 'img'; did you mean 'image'"),
        ("numbers.parquet", "val", "none of image, number has names of classes"),
        ("unlabelled.parquet", "val", "1 images of val have no class"),
        ("none.parquet", "val", "does not exist; expected 'shapes', a folder"),
    ],
)
def test_uncertain_classes_are_refused(tables, spec, split, message):
    with pytest.raises(DataError, match=message):
        open_labelled(str(tables / spec), split)


def test_several_classes_of_an_image_are_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Sequence(datasets.ClassLabel(names=list(COLORS)))
    features = datasets.Features({"image": datasets.Image(), "kind": kinds})
    rows = {"image": [Image.new("RGB", (8, 8))] * 2, "kind": [[0, 1], [1]]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "some.parquet")
    with pytest.raises(DataError, match="'kind' holds lists of classes; expected one class per image"):
        open_labelled(str(tmp_path / "some.parquet"))


def test_two_label_columns_need_a_choice(tmp_path):
    datasets = pytest.importorskip("datasets")
    table(2).cast_column("number", datasets.ClassLabel(names=["even", "odd"])).to_parquet(tmp_path / "two.parquet")
    with pytest.raises(DataError, match=r"found the class labels kind, number; choose one with \?label=kind"):
        open_labelled(str(tmp_path / "two.parquet"))
    ((_, data),) = open_labelled(f"{tmp_path / 'two.parquet'}?label=number").items()
    assert data.class_names == ["even", "odd"]


@pytest.mark.parametrize("spec", ["a?label=", "a?label=x&label=y", "a?caption=x", "https://a.b/c"])
def test_a_wrong_spec_is_named(spec):
    with pytest.raises(ValueError, match=r"expected one value|unknown 'caption'|are read from disk"):
        open_labelled(spec)


def test_features_of_a_table_are_cached_by_its_file(shape_model, tables, tmp_path):
    ((_, data),) = open_labelled(str(tables / "some.parquet")).items()
    expected = zero_shot(shape_model, data)
    for _ in range(2):
        assert zero_shot(CachedEncoder(shape_model, tmp_path), data) == pytest.approx(expected, abs=1e-3, nan_ok=True)
    assert len(list(tmp_path.iterdir())) == 1
    ((_, train),) = open_labelled(str(tables / "parquet"), "train").items()
    ((_, test),) = open_labelled(str(tables / "parquet"), "test").items()
    assert data_fingerprint(LabelledImages(train)) != data_fingerprint(LabelledImages(test))


def test_each_image_column_has_its_own_features(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = table(4)
    second = data.select_columns("image").rename_column("image", "picture")
    datasets.concatenate_datasets([data, second], axis=1).to_parquet(tmp_path / "two.parquet")
    columns = [open_labelled(f"{tmp_path / 'two.parquet'}?image={name}")["two"] for name in ("image", "picture")]
    first, second = (data_fingerprint(LabelledImages(each)) for each in columns)
    assert first != second


@pytest.fixture
def mnist(tmp_path):
    """Files of torchvision's MNIST: 20 training and 10 test images."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 20), ("t10k", 10)):
        pixels = np.arange(count * 28 * 28, dtype=np.int64).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return tmp_path


class TestTorchvision:
    def test_opens_a_dataset_by_name(self, mnist, shape_model):
        ((name, data),) = open_labelled(f"torchvision:MNIST?root={mnist}", "test").items()
        images = LabelledImages(data)
        assert (name, len(images[:]), images.class_names[3]) == ("MNIST", 10, "3 - three")
        assert images.labels.tolist() == list(range(10))
        assert data_fingerprint(images) is not None
        assert 0 <= zero_shot(shape_model, data)["top1"] <= 100

    def test_a_dataset_without_splits_is_taken_as_a_whole(self, tmp_path):
        write_images(tmp_path, "hot_dog/0.png", "cat/0.png")
        ((_, data),) = open_labelled(f"torchvision:ImageFolder?root={tmp_path}", "val").items()
        assert data.class_names == ["cat", "hot dog"]
        with pytest.raises(DataError, match="has no splits, and train is needed"):
            open_labelled(f"torchvision:ImageFolder?root={tmp_path}", "train")

    @pytest.mark.parametrize(
        ("name", "split", "message"),
        [
            ("MNIST", "val", "found the splits test, train, expected val"),
            ("CIFAR10", "test", r"is not complete in .*download it once with torchvision.datasets.CIFAR10\("),
            ("CIFAR11", "test", "no such dataset in a folder; did you mean 'CIFAR10'"),
            ("DTD", "dev", "has no split 'dev': Unknown value 'dev'"),
        ],
    )
    def test_messages_name_the_dataset(self, mnist, name, split, message):
        with pytest.raises(DataError, match=message):
            open_labelled(f"torchvision:{name}?root={mnist}", split)

    def test_nothing_is_downloaded(self, tmp_path, monkeypatch):
        from torchvision.datasets import CIFAR10

        monkeypatch.setattr(CIFAR10, "download", lambda self: pytest.fail("a download"))
        with pytest.raises(DataError, match="is not complete"):
            open_labelled(f"torchvision:CIFAR10?root={tmp_path}", "test")

    def test_names_of_classes_must_be_certain(self, tmp_path, monkeypatch):
        from torchvision import datasets

        class SVHN(datasets.VisionDataset):
            def __init__(self, root, split="train", download=False):
                super().__init__(root)

        monkeypatch.setattr(datasets, "SVHN", SVHN)
        with pytest.raises(DataError, match="no certain names of its classes; evaluate it in Python"):
            open_labelled(f"torchvision:SVHN?root={tmp_path}", "test")

    def test_the_folder_is_needed(self, tmp_path):
        with pytest.raises(ValueError, match=r"expected the folder .*torchvision:MNIST\?root=data"):
            open_labelled("torchvision:MNIST")
        with pytest.raises(FileNotFoundError, match="none does not exist"):
            open_labelled(f"torchvision:MNIST?root={tmp_path / 'none'}")
        with pytest.raises(ValueError, match="has classes and no captions"):
            open_data("torchvision:MNIST?root=data")


def test_folders_with_images_and_tables_are_refused(tables, tmp_path):
    write_images(tmp_path, "cat/0.png")
    (tmp_path / "some.parquet").write_bytes((tables / "some.parquet").read_bytes())
    with pytest.raises(DataError, match="holds parquet files and images; give the files"):
        open_labelled(str(tmp_path))


def test_equal_names_of_class_folders_are_refused(tmp_path):
    write_images(tmp_path, "red_fox/0.png", "red fox/0.png")
    with pytest.raises(ValueError, match=r"the names of the class folders.*'red fox' stands for two classes"):
        open_labelled(str(tmp_path))


def write_images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)


def test_usual_names_of_splits_are_not_classes(tmp_path):
    write_images(tmp_path, "training/cat/0.png", "training/dog/0.png", "Validation/cat/0.png", "Validation/dog/0.png")
    ((_, data),) = open_labelled(str(tmp_path), "val").items()
    assert (data.class_names, [path.parts[-3] for path in data.paths]) == (["cat", "dog"], ["Validation"] * 2)
    write_images(tmp_path, "valid/cat/0.png")
    with pytest.raises(DataError, match="Validation and valid both stand for val"):
        open_labelled(str(tmp_path), "val")


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    write_images(tmp_path, "bus/0.png", "train/0.png", "train/1.png")
    ((_, data),) = open_labelled(str(tmp_path)).items()
    assert (data.class_names, [label for _, label in data.samples]) == (["bus", "train"], [0, 1, 1])


def test_hidden_folders_hold_no_images(tmp_path):
    write_images(tmp_path, "cat/0.png", "cat/.checkpoints/0.png", "dev/0.png", "__MACOSX/0.png")
    ((_, data),) = open_labelled(str(tmp_path)).items()
    assert (data.class_names, len(data)) == (["cat", "dev"], 2)
