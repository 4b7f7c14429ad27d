"""Features on disk: reused for the same model and data only."""

import pytest
import torch

from miniclip.evaluation import CachedEncoder, ClassFolders, LabelledImages, zero_shot
from miniclip.evaluation import features as module
from miniclip.evaluation.retrieval import LazyImages, retrieval
from tests.evaluation.test_zero_shot import folder


@pytest.fixture
def passes(monkeypatch):
    """Count the passes over images."""
    counted = []
    plain = module.without_projection
    monkeypatch.setattr(module, "without_projection", lambda model: counted.append(1) or plain(model))
    return counted


def test_embeddings_from_the_cache_are_those_of_the_model(shape_model, colors, tmp_path, passes):
    cached = CachedEncoder(shape_model, tmp_path)
    expected = shape_model.encode_image(LabelledImages(colors))
    for _ in range(2):
        images = LabelledImages(colors)
        torch.testing.assert_close(cached.encode_image(images), expected, atol=1e-5, rtol=0)
        assert images.labels.tolist() == [colors[i][1] for i in range(len(colors))]
    assert len(passes) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_tasks_give_the_same_results_with_a_cache(shape_model, colors, small_shapes, tmp_path):
    cached = CachedEncoder(shape_model, tmp_path)
    for _ in range(2):
        assert zero_shot(cached, colors) == pytest.approx(zero_shot(shape_model, colors), abs=1e-3)
        assert retrieval(cached, small_shapes) == retrieval(shape_model, small_shapes)


def test_without_a_folder_features_are_kept_in_memory(shape_model, colors, small_shapes, passes):
    encoder = CachedEncoder(shape_model)
    for _ in range(2):
        assert zero_shot(encoder, colors) == pytest.approx(zero_shot(shape_model, colors), abs=1e-3)
        encoder.encode_image(LabelledImages(colors))
        encoder.encode_image(LazyImages(small_shapes))
    assert len(passes) == 2  # one for each dataset
    encoder.encode_image([small_shapes[0][0]])
    encoder.encode_image([small_shapes[1][0]])
    assert len(passes) == 4


def test_a_changed_file_or_model_is_encoded_again(shape_model, tmp_path, passes):
    folder(tmp_path / "data", {"cat": 2})
    data, cache = ClassFolders(tmp_path / "data"), tmp_path / "cache"
    CachedEncoder(shape_model, cache).encode_image(LabelledImages(data))
    (tmp_path / "data" / "cat" / "0.png").write_bytes((tmp_path / "data" / "cat" / "1.png").read_bytes() + b" ")
    CachedEncoder(shape_model, cache).encode_image(LabelledImages(data))
    assert len(passes) == 2
    with torch.no_grad():
        shape_model.image.positions[0, 0] += 1
    try:
        CachedEncoder(shape_model, cache).encode_image(LabelledImages(data))
    finally:
        with torch.no_grad():
            shape_model.image.positions[0, 0] -= 1
    assert len(passes) == 3


class Own:
    """Labelled dataset of a user, whose labels are in no file."""

    class_names = ("a", "b")

    def __init__(self, paths, labels):
        self.paths, self.labels = paths, labels

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.paths[index], self.labels[index]


@pytest.mark.parametrize("kind", ["own", "class folders", "subclass"])
def test_corrected_labels_replace_those_of_the_cache(kind, shape_model, tmp_path):
    folder(tmp_path / "data", {"a": 1, "b": 1})

    def with_labels(labels):
        paths = ClassFolders(tmp_path / "data").paths
        if kind == "own":
            return Own(paths, labels)
        if kind == "class folders":
            data = ClassFolders(tmp_path / "data")
            data.samples = list(zip(paths, labels, strict=True))
            return data
        relabelled = {"__getitem__": lambda self, index: (self.samples[index][0], labels[index])}
        return type("Relabelled", (ClassFolders,), relabelled)(tmp_path / "data")

    cached = CachedEncoder(shape_model, tmp_path / "cache")
    for labels in ([0, 1], [1, 0]):
        images = LabelledImages(with_labels(labels))
        cached.encode_image(images)
        assert images.labels.tolist() == labels


def test_images_in_memory_are_not_cached(shape_model, small_shapes, tmp_path):
    images = [small_shapes[index][0] for index in range(3)]
    cached = CachedEncoder(shape_model, tmp_path / "cache")
    torch.testing.assert_close(cached.encode_image(images), shape_model.encode_image(images), atol=1e-5, rtol=0)
    assert not (tmp_path / "cache").exists()
    assert module.data_fingerprint(LazyImages(small_shapes)) is not None


def test_a_damaged_file_is_written_again(shape_model, tmp_path, passes):
    folder(tmp_path / "data", {"cat": 2})
    data, cache = ClassFolders(tmp_path / "data"), tmp_path / "cache"
    expected = CachedEncoder(shape_model, cache).encode_image(LabelledImages(data))
    (path,) = cache.iterdir()
    for content in (b"", b"garbage", path.read_bytes()[:-1]):
        path.write_bytes(content)
        torch.testing.assert_close(CachedEncoder(shape_model, cache).encode_image(LabelledImages(data)), expected)
    assert len(passes) == 4
