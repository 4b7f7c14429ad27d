"""Retrieval recall against two plain loops, on integer embeddings: exact, with many ties."""

import importlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from miniclip.evaluation import retrieval
from miniclip.evaluation.bootstrap import means
from miniclip.evaluation.retrieval import Embeddings, LazyImages, image_to_text_ranks, recalls, text_to_image_ranks

module = importlib.import_module("miniclip.evaluation.retrieval")  # the package has a function of that name
l2_normalize = torch.nn.functional.normalize
seeds = st.integers(0, 2**32 - 1)
counts = st.lists(st.integers(1, 5), min_size=1, max_size=9)  # captions of each image


def degrees(*angles: float) -> Tensor:
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles])


def example(captions: list[int], seed: int, dims: int = 3, highest: int = 3) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        torch.randint(-highest, highest + 1, (n, dims), generator=generator).float()
        for n in (len(captions), sum(captions))
    )
    return Embeddings(images, texts, torch.arange(len(captions)).repeat_interleave(torch.tensor(captions)))


def plain_recalls(embeddings: Embeddings, ks: tuple[int, ...]) -> dict[str, dict[str, float]]:
    images, texts, image_indices = (value.tolist() for value in embeddings)

    def similarity(i: int, j: int) -> float:
        return sum(a * b for a, b in zip(images[i], texts[j], strict=True))

    hits = {way: dict.fromkeys(ks, 0) for way in ("image_to_text", "text_to_image")}
    for i in range(len(images)):
        best = max(similarity(i, j) for j in range(len(texts)) if image_indices[j] == i)
        ahead = sum(1 for j in range(len(texts)) if image_indices[j] != i and similarity(i, j) >= best)
        for k in ks:
            hits["image_to_text"][k] += ahead < k
    for j in range(len(texts)):
        positive = similarity(image_indices[j], j)
        ahead = sum(1 for i in range(len(images)) if i != image_indices[j] and similarity(i, j) >= positive)
        for k in ks:
            hits["text_to_image"][k] += ahead < k
    totals = {"image_to_text": len(images), "text_to_image": len(texts)}
    return {way: {f"R@{k}": 100 * count / totals[way] for k, count in row.items()} for way, row in hits.items()}


def equal(first: dict[str, dict[str, float]], second: dict[str, dict[str, float]]) -> bool:
    return first.keys() == second.keys() and all(first[way] == pytest.approx(second[way], abs=1e-9) for way in first)


def test_docstring_example():
    result = recalls(Embeddings(degrees(0, 90), degrees(10, 20), torch.tensor([0, 1])))
    assert result["text_to_image"] == {"R@1": 50.0, "R@5": 100.0, "R@10": 100.0}
    assert result["image_to_text"] == {"R@1": 100.0, "R@5": 100.0, "R@10": 100.0}


def test_ranks_match_a_hand_worked_case():
    embeddings = Embeddings(degrees(0, 40, 100), degrees(5, 39, 0, 60, 130), torch.tensor([0, 0, 1, 1, 2]))
    assert text_to_image_ranks(embeddings).tolist() == [0, 1, 1, 0, 0]
    assert image_to_text_ranks(embeddings).tolist() == [1, 1, 0]  # images 0 and 40 lose to the captions at 0 and 39


@given(counts, seeds)
def test_matches_plain_loops(captions, seed):
    embeddings = example(captions, seed)
    assert equal(recalls(embeddings, (1, 2, 5)), plain_recalls(embeddings, (1, 2, 5)))


@given(counts, seeds)
def test_matches_plain_loops_on_unit_vectors(captions, seed):
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (len(captions), sum(captions))
    )
    image_indices = torch.arange(len(captions)).repeat_interleave(torch.tensor(captions))
    embeddings = Embeddings(l2_normalize(images), l2_normalize(texts), image_indices)
    assert equal(recalls(embeddings), plain_recalls(embeddings, (1, 5, 10)))


@given(st.lists(st.integers(1, 5), min_size=2, max_size=12))
def test_constant_embeddings_score_zero(captions):
    flat = example(captions, 0)
    result = recalls(flat._replace(images=torch.ones_like(flat.images), texts=torch.ones_like(flat.texts)))
    assert result["image_to_text"]["R@1"] == 0
    assert result["text_to_image"]["R@1"] == 0
    assert result["text_to_image"]["R@10"] == (100 if len(captions) <= 10 else 0)


@pytest.mark.parametrize("where", ["images", "texts", "both"])
def test_nan_embeddings_score_zero(where):
    embeddings = example([2, 1, 3], 0)
    for side in ("images", "texts") if where == "both" else (where,):
        embeddings = embeddings._replace(**{side: torch.full_like(getattr(embeddings, side), torch.nan)})
    result = recalls(embeddings)
    assert result["text_to_image"]["R@1"] == 0
    assert result["image_to_text"]["R@1"] == 0


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_perfect_embeddings_score_100(captions):
    image_indices = torch.arange(len(captions)).repeat_interleave(torch.tensor(captions))
    images = torch.eye(len(captions))
    result = recalls(Embeddings(images, images[image_indices], image_indices))
    assert {value for row in result.values() for value in row.values()} == {100.0}


@given(counts, seeds)
def test_order_of_images_and_captions_does_not_matter(captions, seed):
    embeddings = example(captions, seed)
    generator = torch.Generator().manual_seed(seed)
    image_order = torch.randperm(len(embeddings.images), generator=generator)
    text_order = torch.randperm(len(embeddings.texts), generator=generator)
    image_indices = image_order.argsort()[embeddings.image_indices]
    shuffled = Embeddings(embeddings.images[image_order], embeddings.texts[text_order], image_indices[text_order])
    assert recalls(shuffled) == recalls(embeddings)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_chunk_size_does_not_change_the_result(monkeypatch, rows):
    embeddings = example([1, 5, 2, 4, 3, 1, 2, 2], 7)
    expected = recalls(embeddings)
    assert 0 < expected["text_to_image"]["R@1"] < 100
    sizes = []
    plain = torch.cat
    monkeypatch.setattr(module.torch, "cat", lambda parts: sizes.append(len(parts)) or plain(parts))
    monkeypatch.setattr(module, "ROWS", rows)
    assert recalls(embeddings) == expected
    assert sizes == [-(-8 // rows), -(-20 // rows)]


class AngleDataset:
    """Three images, given as angles in degrees; each caption spells an angle."""

    captions = (["10", "170"], ["85"], ["100", "200", "185"])
    opened: list[int]

    def __init__(self) -> None:
        self.opened = []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[int, list[str]]:
        self.opened.append(index)
        return (0, 90, 180)[index], self.captions[index]


class AngleModel:
    """Encoder that embeds an angle as a unit vector."""

    def encode_image(self, images) -> Tensor:
        return degrees(*[image for start in range(0, len(images), 2) for image in images[start : start + 2]])

    def encode_text(self, texts) -> Tensor:
        assert all(isinstance(text, str) for text in texts)
        return degrees(*map(float, texts))


def test_retrieval_accepts_any_encoder_and_dataset():
    data = AngleDataset()
    result = retrieval(AngleModel(), data)
    assert result["text_to_image"]["R@1"] == pytest.approx(100 * 4 / 6)  # 170 and 100 lose
    assert result["image_to_text"]["R@1"] == 100.0
    assert result["text_to_image"]["R@5"] == 100.0
    assert data.opened == [0, 1, 2]  # each image once


def test_lazy_images_index_and_slice():
    images = LazyImages(AngleDataset())
    assert len(images) == 3
    assert images[0:3] == [0, 90, 180]
    assert images[1] == 90
    assert images[1:10] == [90, 180]
    assert images[::-1] == [180, 90, 0]


@pytest.mark.parametrize("columns", [1, 4, 7])
def test_blocks_of_columns_do_not_change_the_result(monkeypatch, columns):
    embeddings = example([1, 5, 2, 4, 3, 1, 2, 2], 7)
    expected = text_to_image_ranks(embeddings), image_to_text_ranks(embeddings)
    monkeypatch.setattr(module, "ROWS", 3)
    monkeypatch.setattr(module, "COLUMNS", columns)
    assert torch.equal(text_to_image_ranks(embeddings), expected[0])
    assert torch.equal(image_to_text_ranks(embeddings), expected[1])


@given(counts, seeds)
def test_scores_have_the_recalls_as_their_means(captions, seed):
    embeddings = example(captions, seed)
    all_scores = module.recall_scores(module.ranks_of(embeddings), embeddings.image_indices)
    for way, scores in all_scores.items():
        values = [100 * value for value in means(scores).tolist()]
        assert values == pytest.approx(list(recalls(embeddings)[way].values()))


def test_median_rank_counts_from_one():
    embeddings = Embeddings(degrees(0, 40, 100), degrees(5, 39, 0, 60, 130), torch.tensor([0, 0, 1, 1, 2]))
    assert module.median_ranks(module.ranks_of(embeddings)) == {"image_to_text": 2.0, "text_to_image": 1.0}
    assert module.median_ranks({"image_to_text": torch.tensor([7, 0, 3, 0])}) == {"image_to_text": 2.5}


@pytest.mark.parametrize("count", [1, 16_000_002])
def test_median_rank_of_any_number_of_images(count):
    assert module.median_ranks({"image_to_text": torch.zeros(1, dtype=torch.int64).expand(count)}) == {
        "image_to_text": 1.0
    }


def test_recalls_match_clip_benchmark():
    peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    images, texts = l2_normalize(torch.randn(40, 8)), l2_normalize(torch.randn(120, 8))
    image_indices = torch.arange(40).repeat_interleave(3)

    class Model:
        encode_image = staticmethod(lambda rows: images[rows])
        encode_text = staticmethod(lambda rows: texts[rows])

    batches = [(part, [[int(c) for c in range(3 * i, 3 * i + 3)] for i in part]) for part in torch.arange(40).split(16)]
    expected = peer.evaluate(Model(), batches, torch.tensor, "cpu", amp=False, recall_k_list=[1, 5, 10])
    ours = recalls(Embeddings(images, texts, image_indices))
    for k in (1, 5, 10):
        assert ours["text_to_image"][f"R@{k}"] == pytest.approx(100 * expected[f"image_retrieval_recall@{k}"])
        assert ours["image_to_text"][f"R@{k}"] == pytest.approx(100 * expected[f"text_retrieval_recall@{k}"])
