"""Retrieval recall against two plain loops, on embeddings of whole numbers: exact, and full of ties."""

import importlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from miniclip.evaluation import retrieval
from miniclip.evaluation.retrieval import Embedded, Pictures, image_to_text_ranks, recalls, text_to_image_ranks

module = importlib.import_module("miniclip.evaluation.retrieval")  # the package has a function of that name
seeds = st.integers(0, 2**32 - 1)
counts = st.lists(st.integers(1, 5), min_size=1, max_size=9)  # captions of each picture


def degrees(*angles: float) -> Tensor:
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles])


def example(captions: list[int], seed: int, dims: int = 3, highest: int = 3) -> Embedded:
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        torch.randint(-highest, highest + 1, (n, dims), generator=generator).float()
        for n in (len(captions), sum(captions))
    )
    return Embedded(images, texts, torch.arange(len(captions)).repeat_interleave(torch.tensor(captions)))


def plain_recalls(embedded: Embedded, ks: tuple[int, ...]) -> dict[str, dict[str, float]]:
    images, texts, owner = (value.tolist() for value in embedded)

    def similarity(i: int, j: int) -> float:
        return sum(a * b for a, b in zip(images[i], texts[j], strict=True))

    found = {way: dict.fromkeys(ks, 0) for way in ("image_to_text", "text_to_image")}
    for i in range(len(images)):
        best = max(similarity(i, j) for j in range(len(texts)) if owner[j] == i)
        ahead = sum(1 for j in range(len(texts)) if owner[j] != i and similarity(i, j) >= best)
        for k in ks:
            found["image_to_text"][k] += ahead < k
    for j in range(len(texts)):
        own = similarity(owner[j], j)
        ahead = sum(1 for i in range(len(images)) if i != owner[j] and similarity(i, j) >= own)
        for k in ks:
            found["text_to_image"][k] += ahead < k
    totals = {"image_to_text": len(images), "text_to_image": len(texts)}
    return {way: {f"R@{k}": 100 * hits / totals[way] for k, hits in row.items()} for way, row in found.items()}


def same(one: dict[str, dict[str, float]], other: dict[str, dict[str, float]]) -> bool:
    return one.keys() == other.keys() and all(one[way] == pytest.approx(other[way], abs=1e-9) for way in one)


def test_the_worked_example_of_the_docstring():
    result = recalls(Embedded(degrees(0, 90), degrees(10, 20), torch.tensor([0, 1])))
    assert result["text_to_image"] == {"R@1": 50.0, "R@5": 100.0, "R@10": 100.0}
    assert result["image_to_text"] == {"R@1": 100.0, "R@5": 100.0, "R@10": 100.0}


def test_ranks_by_hand():
    embedded = Embedded(degrees(0, 40, 100), degrees(5, 39, 0, 60, 130), torch.tensor([0, 0, 1, 1, 2]))
    assert text_to_image_ranks(embedded).tolist() == [0, 1, 1, 0, 0]
    assert image_to_text_ranks(embedded).tolist() == [1, 1, 0]  # 0: the caption at 0; 40: the one at 39; 100: none


@given(counts, seeds)
def test_equals_two_plain_loops(captions, seed):
    embedded = example(captions, seed)
    assert same(recalls(embedded, (1, 2, 5)), plain_recalls(embedded, (1, 2, 5)))


@given(counts, seeds)
def test_equals_two_plain_loops_on_unit_vectors(captions, seed):
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (len(captions), sum(captions))
    )
    owner = torch.arange(len(captions)).repeat_interleave(torch.tensor(captions))
    l2_normalize = torch.nn.functional.normalize
    embedded = Embedded(l2_normalize(images), l2_normalize(texts), owner)
    assert same(recalls(embedded), plain_recalls(embedded, (1, 5, 10)))


@given(st.lists(st.integers(1, 5), min_size=2, max_size=12))
def test_a_model_that_tells_nothing_apart_finds_nothing(captions):
    flat = example(captions, 0)
    result = recalls(flat._replace(images=torch.ones_like(flat.images), texts=torch.ones_like(flat.texts)))
    assert result["image_to_text"]["R@1"] == 0
    assert result["text_to_image"]["R@1"] == 0
    assert result["text_to_image"]["R@10"] == (100 if len(captions) <= 10 else 0)


@pytest.mark.parametrize("where", ["images", "texts", "both"])
def test_a_model_that_has_gone_to_nan_finds_nothing(where):
    embedded = example([2, 1, 3], 0)
    for side in ("images", "texts") if where == "both" else (where,):
        embedded = embedded._replace(**{side: torch.full_like(getattr(embedded, side), torch.nan)})
    result = recalls(embedded)
    assert result["text_to_image"]["R@1"] == 0
    assert result["image_to_text"]["R@1"] == 0


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_perfect(captions):
    owner = torch.arange(len(captions)).repeat_interleave(torch.tensor(captions))
    images = torch.eye(len(captions))
    result = recalls(Embedded(images, images[owner], owner))
    assert {value for row in result.values() for value in row.values()} == {100.0}


@given(counts, seeds)
def test_the_order_of_pictures_and_of_captions_does_not_matter(captions, seed):
    embedded = example(captions, seed)
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randperm(len(embedded.images), generator=generator)
    texts = torch.randperm(len(embedded.texts), generator=generator)
    owner = pictures.argsort()[embedded.owner]  # where each caption's picture went
    shuffled = Embedded(embedded.images[pictures], embedded.texts[texts], owner[texts])
    assert recalls(shuffled) == recalls(embedded)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_chunks_change_nothing(monkeypatch, rows):
    embedded = example([1, 5, 2, 4, 3, 1, 2, 2], 7)
    expected = recalls(embedded)
    assert 0 < expected["text_to_image"]["R@1"] < 100
    sizes = []
    plain = torch.cat
    monkeypatch.setattr(module.torch, "cat", lambda parts: sizes.append(len(parts)) or plain(parts))
    monkeypatch.setattr(module, "ROWS", rows)
    assert recalls(embedded) == expected
    assert sizes == [-(-8 // rows), -(-20 // rows)]


class Data:
    """Three pictures, which are numbers, with their captions, which spell an angle."""

    captions = (["10", "170"], ["85"], ["100", "200", "185"])
    opened: list[int]

    def __init__(self) -> None:
        self.opened = []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[int, list[str]]:
        self.opened.append(index)
        return (0, 90, 180)[index], self.captions[index]


class Model:
    """Embeds an angle as a direction."""

    def encode_image(self, images) -> Tensor:
        return degrees(*[image for start in range(0, len(images), 2) for image in images[start : start + 2]])

    def encode_text(self, texts) -> Tensor:
        assert all(isinstance(text, str) for text in texts)
        return degrees(*map(float, texts))


def test_retrieval_with_any_model_and_any_data():
    data = Data()
    result = retrieval(Model(), data)
    assert result["text_to_image"]["R@1"] == pytest.approx(100 * 4 / 6)  # 170 and 100 are nearer to others
    assert result["image_to_text"]["R@1"] == 100.0
    assert result["text_to_image"]["R@5"] == 100.0
    assert data.opened == [0, 1, 2]  # each picture once


def test_pictures_of_a_data_set():
    pictures = Pictures(Data())
    assert len(pictures) == 3
    assert pictures[0:3] == [0, 90, 180]
    assert pictures[1] == 90
    assert pictures[1:10] == [90, 180]
    assert pictures[::-1] == [180, 90, 0]
