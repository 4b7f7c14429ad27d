"""Arguments of the metrics: wrong types get one sentence."""

import numpy as np
import pytest
import torch

from miniclip.evaluation import retrieval
from miniclip.evaluation.retrieval import Embeddings, recalls


class Data:
    def __init__(self, captions):
        self.captions = captions

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return index, self.captions[index]


class Model:
    def __init__(self, images=2, texts=3, convert=lambda rows: rows):
        self.images, self.texts, self.convert = images, texts, convert

    def encode_image(self, images):
        return self.convert(torch.eye(4)[: self.images])

    def encode_text(self, texts):
        return self.convert(torch.eye(4)[: self.texts])


GOOD = Data([["a", "b"], ["c"]])
WRONG = {
    "list": (Model(), [("a.jpg", ["a"])], TypeError, "the dataset is a list; expected"),
    "path": (Model(), "photos", TypeError, "the dataset is a str"),
    "nothing": (Model(), None, TypeError, "the dataset is a NoneType"),
    "dict": (Model(), {"a.jpg": ["a"]}, TypeError, "the dataset is a dict"),
    "swapped": (GOOD, Model(), TypeError, "model: found a Data; expected a model with encode_image and encode_text"),
    "name": ("vit_b_16", GOOD, TypeError, "model: found a str; .*miniclip.load"),
    "strings": (Model(), Data(["a dog", "a cat"]), TypeError, "image 0 .*the captions are the string"),
    "no caption": (Model(), Data([["a"], []]), ValueError, "image 1 .*has no caption"),
    "too few lists": (Model(), Data([["a"]]), ValueError, "has 2 images, and Data.captions has 1 lists"),
    "fewer images": (Model(images=1), GOOD, ValueError, r"encode_image returned a Tensor \(1, 4\) .*tensor \(2, E\)"),
    "more texts": (Model(texts=4), GOOD, ValueError, r"encode_text returned a Tensor \(4, 4\) .*tensor \(3, E\)"),
    "numpy": (Model(convert=np.asarray), GOOD, ValueError, r"encode_image returned an array \(2, 4\)"),
}


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_wrong_arguments(kind):
    model, data, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        retrieval(model, data)


def test_ks():
    embeddings = Embeddings(torch.eye(2), torch.eye(2), torch.arange(2))
    assert recalls(embeddings, [np.int64(1)]) == {"image_to_text": {"R@1": 100.0}, "text_to_image": {"R@1": 100.0}}
    for k, error in ((0, ValueError), (1.0, TypeError), ("1", TypeError)):
        with pytest.raises(error, match=r"k "):
            recalls(embeddings, [k])
    with pytest.raises(TypeError, match=r"ks: found an int; expected values of K in a list"):
        recalls(embeddings, 5)


EYE, INDICES = torch.eye(2), torch.arange(2)
EMBEDDINGS = {
    "tuple": ((EYE, EYE, INDICES), TypeError, "embeddings: found a tuple; expected Embeddings"),
    "numpy": (Embeddings(np.eye(2), EYE, INDICES), TypeError, "expected Embeddings of three tensors"),
    "widths": (Embeddings(EYE, torch.eye(3), torch.arange(3)), ValueError, r"\(2, 2\), \(3, 3\), \(3,\); expected"),
    "indices": (Embeddings(EYE, EYE, torch.arange(1)), ValueError, r"expected \(N, E\), \(M, E\) and \(M,\)"),
    "no image": (Embeddings(EYE, EYE, torch.tensor([0, 5])), ValueError, "images 0 to 5 of captions; there are 0 to 1"),
    "negative": (Embeddings(EYE, EYE, torch.tensor([-1, 0])), ValueError, "images -1 to 0 of captions"),
    "empty": (Embeddings(EYE[:0], EYE[:0], INDICES[:0]), ValueError, "N and M at least 1"),
}


@pytest.mark.parametrize("kind", sorted(EMBEDDINGS))
def test_wrong_embeddings(kind):
    embeddings, error, message = EMBEDDINGS[kind]
    with pytest.raises(error, match=message):
        recalls(embeddings)


def test_captions_of_other_collections():
    expected = retrieval(Model(), GOOD)
    assert retrieval(Model(), Data((("a", "b"), ("c",)))) == expected
    assert retrieval(Model(), Data([np.array(["a", "b"]), np.array(["c"])])) == expected
