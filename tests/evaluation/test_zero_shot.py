"""Zero-shot classification against CLIP_benchmark's and open_clip's own code."""

import math

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from miniclip.errors import DataError
from miniclip.evaluation import ClassFolders, LabelledImages, ShapeClasses, zero_shot
from miniclip.evaluation.zero_shot import confusion, metrics, predict, predictions
from miniclip.inference.zero_shot import class_embeddings
from miniclip.losses.reference import l2_normalize

NAMES = [f"class {number}" for number in range(7)]


def random_predictions(images: int = 200, classes: int = 7):
    x, c = l2_normalize(torch.randn(images, 16)), l2_normalize(torch.randn(classes, 16))
    labels = torch.randint(classes, (images,))
    return x, c, labels, predictions(x, c, labels, 100.0, NAMES[:classes])


@pytest.mark.parametrize("classes", [3, 7])
def test_metrics_match_clip_benchmark(classes, monkeypatch):
    peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    # CLIP_benchmark 1.6 calls float() on an array of one number, which numpy 2.4 refuses
    as_float = lambda value: value.item() if hasattr(value, "item") else float(value)  # noqa: E731
    monkeypatch.setattr(peer, "float", as_float, raising=False)
    x, c, labels, predicted = random_predictions(classes=classes)

    class Model:
        def encode_image(self, images):
            return x[images]

        def encode_text(self, tokens):
            return c[tokens]

    class Batches:
        dataset = type("Dataset", (), {"classes": NAMES[:classes]})

        def __iter__(self):
            return iter(zip(torch.arange(200).split(64), labels.split(64), strict=True))

    expected = peer.evaluate(
        Model(),
        Batches(),
        lambda texts: torch.tensor([int(t.split()[-1]) for t in texts]),
        NAMES[:classes],
        ["{c}"],
        "cpu",
        False,
    )
    ours = metrics(predicted)
    assert ours["top1"] == pytest.approx(100 * expected["acc1"])
    assert ours["top5"] == pytest.approx(100 * expected["acc5"], nan_ok=True)
    assert ours["mean_per_class_recall"] == pytest.approx(100 * expected["mean_per_class_recall"])


def test_class_embeddings_match_open_clip(shape_model):
    templates = ["a {} shape", lambda name: f"the {name} circle is left of a blue star"]
    names = ["red", "blue", "green"]

    class Peer:
        def encode_text(self, tokens, normalize):
            return shape_model.encode_text(tokens, normalize=normalize)

    theirs = [template.format if isinstance(template, str) else template for template in templates]
    expected = open_clip.build_zero_shot_classifier(Peer(), shape_model.tokenizer, names, theirs)
    ours = class_embeddings(shape_model.encode_text, names, templates)
    torch.testing.assert_close(ours, expected.T, atol=1e-5, rtol=0)


def test_zero_shot_of_shapes_gives_metrics_in_percent(shape_model, colors):
    result = zero_shot(shape_model, colors)
    assert set(result) == {"top1", "top5", "mean_per_class_recall", "calibration_error", "calibration_error_equal_mass"}
    assert all(0 <= value <= 100 for value in result.values())
    predicted = predict(shape_model, colors)
    assert int(confusion(predicted).sum()) == len(colors)
    assert confusion(predicted).diagonal().sum() == predicted.correct.sum()


def test_classify_and_zero_shot_agree(shape_model, colors):
    predicted = predict(shape_model, colors)
    images = [colors[index][0] for index in range(len(colors))]
    probabilities = shape_model.classify(images, colors.class_names, colors.templates)
    assert probabilities.argmax(dim=1).tolist() == predicted.predicted.tolist()
    torch.testing.assert_close(probabilities.amax(dim=1), predicted.confidence, atol=1e-5, rtol=0)


def test_other_class_names_and_templates_of_the_dataset_are_used(shape_model, colors):
    images = LabelledImages(colors)
    assert torch.equal(predict(shape_model, images).confidence, predict(shape_model, colors).confidence)
    names = [f"very {name}" for name in colors.class_names]
    assert predict(shape_model, images, names).class_names == names


def test_ties_count_against_the_model():
    same = torch.ones(5, 1)
    predicted = predictions(same, torch.ones(3, 1), torch.zeros(5, dtype=torch.int64), 1.0, NAMES[:3])
    assert metrics(predicted)["top1"] == 0


def test_classes_without_images_are_left_out_of_the_mean_recall():
    x = torch.eye(4)
    predicted = predictions(x[:2], x, torch.tensor([0, 3]), 100.0, NAMES[:4])
    assert metrics(predicted)["mean_per_class_recall"] == 50
    assert math.isnan(metrics(predicted)["top5"])


def test_nan_embeddings_are_refused():
    x = torch.eye(3)
    with pytest.raises(ValueError, match="2 of 3 image embeddings are NaN"):
        predictions(x * torch.tensor([[1.0], [torch.nan], [torch.inf]]), x, torch.arange(3), 1.0, NAMES[:3])


class TestLabelledImages:
    def test_notes_the_class_of_each_image_that_is_read(self):
        images = LabelledImages([("a", 1), ("b", 0)], ["cat", "dog"])
        assert images.labels.tolist() == [-1, -1]
        assert images[0:2] == ["a", "b"]
        assert images.labels.tolist() == [1, 0]

    def test_classes_may_be_names_or_tensors(self):
        images = LabelledImages([("a", "dog"), ("b", torch.tensor(0))], ["cat", "dog"])
        assert images[:] == ["a", "b"]
        assert images.labels.tolist() == [1, 0]

    @pytest.mark.parametrize("label", [2, -1, "bird", True, None, 0.0], ids=repr)
    def test_unknown_classes_are_refused(self, label):
        with pytest.raises(DataError, match=r"image 0: its class is .*; expected one of the 2 class names"):
            LabelledImages([("a", label)], ["cat", "dog"])[0]

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["cat", "dog", "cat"], "'cat' stands for two classes, 0 and 2"),
            (["cat", ""], "name 1 is ''"),
            (["cat", 5], "name 1 is 5"),
            ([], "expected a list of at least one name"),
            ("cat", "expected a list of at least one name"),
            (None, "expected a list of at least one name"),
        ],
        ids=["equal", "empty name", "number", "none", "string", "missing"],
    )
    def test_class_names_are_checked(self, names, message):
        with pytest.raises(ValueError, match=message):
            LabelledImages([("a", 0)], names)

    @pytest.mark.parametrize("names", [{"cat", "dog"}, {"dog": 1, "cat": 0}], ids=["set", "dict"])
    def test_class_names_without_an_order_are_refused(self, names):
        with pytest.raises(TypeError, match="class_names: found a "):
            LabelledImages([("a", 0)], names)

    def test_an_empty_split_is_refused(self):
        with pytest.raises(ValueError, match="has no images"):
            LabelledImages([], ["cat"])

    def test_an_item_that_is_not_a_pair_is_refused(self):
        with pytest.raises(DataError, match="image 0: found a str, expected a pair"):
            LabelledImages(["a"], ["cat"])[0]

    def test_takes_datasets_of_torchvision(self, tmp_path):
        from torchvision.datasets import FakeData, ImageFolder

        folder(tmp_path, {"cat": 2, "dog": 1})
        images = LabelledImages(ImageFolder(tmp_path))
        assert [image.size for image in images[:]] == [(8, 8)] * 3
        assert (images.class_names, images.labels.tolist()) == (["cat", "dog"], [0, 0, 1])
        fake = LabelledImages(FakeData(3, (3, 8, 8), num_classes=2), ["a", "b"])
        assert len(fake[:]) == 3

    def test_takes_a_dataset_of_hugging_face(self):
        datasets = pytest.importorskip("datasets")
        features = datasets.Features(
            {
                "picture": datasets.Image(),
                "note": datasets.Value("string"),
                "kind": datasets.ClassLabel(names=["cat", "dog"]),
            }
        )
        rows = {"picture": [Image.new("RGB", (4, 4))] * 2, "note": ["", ""], "kind": [1, 0]}
        images = LabelledImages(datasets.Dataset.from_dict(rows, features=features))
        assert images[1].size == (4, 4)
        assert (images.class_names, images.labels.tolist()) == (["cat", "dog"], [-1, 0])


def folder(root, counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (9 * number, 0, 0)).save(root / name / f"{number}.png")


class TestClassFolders:
    def test_reads_a_folder_per_class(self, tmp_path):
        folder(tmp_path, {"red_fox": 2, "cat": 1, "empty": 0})
        (tmp_path / ".hidden").mkdir()
        data = ClassFolders(tmp_path)
        assert data.class_names == ["cat", "empty", "red fox"]
        assert [(path.name, label) for path, label in data.samples] == [("0.png", 0), ("0.png", 2), ("1.png", 2)]

    def test_names_in_place_of_the_folders(self, tmp_path):
        folder(tmp_path, {"1": 1, "2": 1})
        assert ClassFolders(tmp_path, np.array(["cat", "dog"])).class_names == ["cat", "dog"]
        with pytest.raises(ValueError, match="class_names: found"):
            ClassFolders(tmp_path, [])

    def test_messages_name_the_folder(self, tmp_path):
        with pytest.raises(DataError, match="not a folder"):
            ClassFolders(tmp_path / "none")
        with pytest.raises(DataError, match="holds no folders"):
            ClassFolders(tmp_path)
        folder(tmp_path, {"cat": 0})
        with pytest.raises(DataError, match="hold no images"):
            ClassFolders(tmp_path)

    def test_an_image_in_a_format_that_is_not_read_is_named(self, tmp_path):
        folder(tmp_path, {"cat": 1, "dog": 1})
        (tmp_path / "cat" / "0.dng").write_bytes(b"?")  # the camera's raw file beside its image
        (tmp_path / "dog" / "notes.txt").write_text("no image")
        assert len(ClassFolders(tmp_path)) == 2
        (tmp_path / "dog" / "1.dng").write_bytes(b"?")
        with pytest.raises(DataError, match=r"dog.1\.dng: is an image in a format that is not read \(\.dng\)"):
            ClassFolders(tmp_path)


def test_shape_classes_are_balanced_and_right():
    data = ShapeClasses("shape", "val", image_size=16)
    labels = torch.tensor([data[index][1] for index in range(len(data))])
    assert torch.bincount(labels, minlength=8).min() >= 8
    index, label = data._rows[5]
    scene = data.shapes.scene(index)
    assert scene.first.shape == scene.second.shape == data.class_names[label]
    with pytest.raises(ValueError, match="'color' or 'shape'"):
        ShapeClasses("size")
