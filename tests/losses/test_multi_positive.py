"""Losses with several positives per row and smoothed labels: loops, the plain form, blocks and ranks agree."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip import losses
from miniclip.runtime import distributed
from tests.losses.test_distributed import Largest

seeds, scales, chunks = st.integers(0, 2**32 - 1), st.floats(0, 200), st.integers(1, 9)
smoothings = st.sampled_from([0.0, 0.1, 1.0])
both_losses = pytest.mark.parametrize("sigmoid", [False, True], ids=["contrastive", "sigmoid"])


def make_case(seed, several=True):
    """Images, texts and labels, of random numbers of rows and labels: a row may have no positive, some, or all."""
    generator = torch.Generator().manual_seed(seed)
    n, m, classes, labels = (int(torch.randint(1, high, (1,), generator=generator)) for high in (9, 13, 7, 4))
    images, texts = (torch.randn(rows, 4, generator=generator, dtype=torch.float64) for rows in (n, m))
    ids = torch.randint(0, classes, (n, labels) if several else (n,), generator=generator)
    text_ids = torch.randint(0, classes, (m,), generator=generator)
    text_ids[0] = ids.flatten()[0]  # at least one positive
    return images, texts, ids, text_ids


def evaluate(sigmoid, images, texts, scale, dtype=torch.float64, **options):
    """Loss, and gradients of images, texts, scale and bias, of 3 times the loss."""
    numbers = [images, texts, torch.tensor(scale, dtype=torch.float64), torch.tensor(-2.0)][: 4 if sigmoid else 3]
    numbers = [number.detach().to(dtype).clone().requires_grad_() for number in numbers]
    loss = (losses.sigmoid_loss if sigmoid else losses.contrastive_loss)(*numbers, **options)
    (3.0 * loss).backward()
    return [loss.detach(), *(number.grad for number in numbers)]


def assert_close(actual, expected, tolerance=1e-10):
    for a, b in zip(actual, expected, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


def by_loops(sigmoid, images, texts, scale, ids, text_ids, smoothing):
    """The loss in plain Python."""
    s = (scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T).tolist()
    p = [[text in set(labels) for text in text_ids.tolist()] for labels in ids.view(len(images), -1).tolist()]
    if sigmoid:
        total = 0.0
        for i, j in itertools.product(range(len(images)), range(len(texts))):
            target = (1 - smoothing) * p[i][j] + smoothing / 2
            z = s[i][j] - 2.0
            total += math.log1p(math.exp(-abs(z))) + max(z, 0.0) - target * z
        return total / sum(map(sum, p))
    directions = []
    for logits, positives in ((s, p), (list(zip(*s, strict=True)), list(zip(*p, strict=True)))):
        terms = []
        for row, row_positives in zip(logits, positives, strict=True):
            log_sum = max(row) + math.log(sum(math.exp(x - max(row)) for x in row))
            if count := sum(row_positives):
                targets = [(1 - smoothing) * x / count + smoothing / len(row) for x in row_positives]
                terms.append(sum(t * (log_sum - x) for t, x in zip(targets, row, strict=True)))
        directions.append(sum(terms) / len(terms))
    return sum(directions) / 2


@both_losses
@given(scales, smoothings, seeds)
def test_plain_form_equals_loops(sigmoid, scale, smoothing, seed):
    images, texts, ids, text_ids = make_case(seed)
    loss, *_ = evaluate(sigmoid, images, texts, scale, ids=ids, text_ids=text_ids, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(by_loops(sigmoid, images, texts, scale, ids, text_ids, smoothing), abs=1e-9)


@both_losses
@settings(max_examples=25)
@given(scales, smoothings, chunks, seeds)
def test_blocks_equal_the_plain_form(sigmoid, scale, smoothing, chunk, seed):
    images, texts, ids, text_ids = make_case(seed)
    arguments = {"ids": ids, "text_ids": text_ids, "label_smoothing": smoothing}
    expected = evaluate(sigmoid, images, texts, scale, **arguments)
    assert_close(evaluate(sigmoid, images, texts, scale, **arguments, chunk_size=chunk), expected)
    in_float32 = evaluate(sigmoid, images, texts, scale, torch.float32, **arguments, chunk_size=chunk)
    assert_close(in_float32, expected, 2e-5 * max(1.0, scale / 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("miniclip.losses.multi_chunked.sums_with_fixed_offset", lambda *matrix: None)
        assert_close(evaluate(sigmoid, images, texts, scale, **arguments, chunk_size=chunk), expected)


@both_losses
@settings(max_examples=25)
@given(scales, st.sampled_from([None, 3]), st.booleans(), seeds)
def test_one_positive_each_is_the_loss_of_pairs(sigmoid, scale, chunk, shuffled, seed):
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64).unbind()
    ids = torch.randperm(7, generator=generator)
    order = torch.randperm(7, generator=generator) if shuffled else torch.arange(7)
    expected = evaluate(sigmoid, images, texts, scale)
    actual = evaluate(sigmoid, images, texts[order], scale, ids=ids, text_ids=ids[order], chunk_size=chunk)
    actual[2] = actual[2][order.argsort()]
    assert_close(actual, expected)


@both_losses
@settings(max_examples=25)
@given(scales, smoothings, st.sampled_from([None, 3]), st.booleans(), seeds)
def test_smoothed_pairs(sigmoid, scale, smoothing, chunk, with_ids, seed):
    """As F.cross_entropy smooths, over the classes that the ids leave."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64).unbind()
    ids = torch.randint(0, 4, (7,), generator=generator) if with_ids else torch.arange(7)
    actual = evaluate(
        sigmoid, images, texts, scale, ids=ids if with_ids else None, label_smoothing=smoothing, chunk_size=chunk
    )
    s = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    kept = (ids[:, None] != ids) | torch.eye(7, dtype=torch.bool)
    if sigmoid:
        targets = torch.eye(7, dtype=torch.float64) * (1 - smoothing) + smoothing / 2
        value = (F.binary_cross_entropy_with_logits(s - 2, targets, reduction="none") * kept).sum() / 7
    else:
        rows = [
            F.cross_entropy(logits[keep], keep[:i].sum(), label_smoothing=smoothing)
            for side, mask in ((s, kept), (s.T, kept.T))
            for i, (logits, keep) in enumerate(zip(side, mask, strict=True))
        ]
        value = torch.stack(rows).mean()
    torch.testing.assert_close(actual[0], value, rtol=0, atol=1e-9)
    if chunk:
        plain = evaluate(sigmoid, images, texts, scale, ids=ids if with_ids else None, label_smoothing=smoothing)
        assert_close(actual, plain)
    if not smoothing:  # exactly as without the argument
        assert_close(
            actual, evaluate(sigmoid, images, texts, scale, ids=ids if with_ids else None, chunk_size=chunk), 0
        )


@both_losses
@settings(max_examples=25)
@given(scales, smoothings, st.sampled_from([None, 3]), seeds)
def test_symmetry_and_permutations(sigmoid, scale, smoothing, chunk, seed):
    images, texts, ids, text_ids = make_case(seed, several=False)
    options = {"label_smoothing": smoothing, "chunk_size": chunk}
    loss, grad_images, grad_texts, *rest = evaluate(
        sigmoid, images, texts, scale, ids=ids, text_ids=text_ids, **options
    )
    exchanged = evaluate(sigmoid, texts, images, scale, ids=text_ids, text_ids=ids, **options)
    assert_close(exchanged, [loss, grad_texts, grad_images, *rest])
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randperm(len(side), generator=generator) for side in (images, texts))
    permuted = evaluate(
        sigmoid, images[rows], texts[columns], scale, ids=ids[rows], text_ids=text_ids[columns], **options
    )
    assert_close(permuted, [loss, grad_images[rows], grad_texts[columns], *rest])


@both_losses
@pytest.mark.parametrize("chunk", [None, 2])
def test_gradients_against_finite_differences(sigmoid, chunk):
    images, texts, ids, text_ids = make_case(5)
    numbers = [images, texts, torch.tensor(4.0).double(), torch.tensor(-1.0).double()][: 4 if sigmoid else 3]
    function = losses.sigmoid_loss if sigmoid else losses.contrastive_loss
    for smoothing in (0.0, 0.2):
        options = {"ids": ids, "text_ids": text_ids, "label_smoothing": smoothing, "chunk_size": chunk}
        assert torch.autograd.gradcheck(
            lambda *numbers, options=options: function(*numbers, **options),
            [x.clone().requires_grad_() for x in numbers],
        )


def test_additional_texts_are_negatives_only():
    images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    ids, text_ids = torch.tensor([0, 1]), torch.tensor([0, 1, 7])
    s = 2.0 * images @ texts.T
    expected = (F.cross_entropy(s, ids) + F.cross_entropy(s.T[:2], ids)) / 2
    for chunk in (None, 1):
        loss = losses.contrastive_loss(images, texts, 2.0, ids=ids, text_ids=text_ids, chunk_size=chunk)
        torch.testing.assert_close(loss, expected)
        assert losses.contrastive_loss(images, texts, 2.0, ids, chunk, text_ids=text_ids + 9).isnan()


def test_a_loss_near_its_floor_is_accurate():
    """Three identical captions per image: the floor is log 3 for the images, 0 for the captions."""
    images = torch.eye(8)
    texts, ids = images.repeat_interleave(3, 0), torch.arange(8)
    for chunk in (None, 5):
        loss = losses.contrastive_loss(images, texts, 100.0, ids, chunk, text_ids=ids.repeat_interleave(3))
        assert float(loss) == pytest.approx(math.log(3) / 2, abs=1e-6)


@both_losses
def test_memory_does_not_grow_with_the_matrix(sigmoid):
    n, m, size = 64, 192, 16
    images, texts = (torch.randn(rows, 8, requires_grad=True) for rows in (n, m))
    ids = torch.arange(n)
    with Largest() as largest:
        function = losses.sigmoid_loss if sigmoid else losses.contrastive_loss
        loss = function(
            *(images, texts, 10.0, *([-10.0] if sigmoid else [])),
            ids=ids,
            text_ids=ids.repeat_interleave(3),
            label_smoothing=0.1,
            chunk_size=size,
        )
        loss.backward()
    assert largest.elements <= max(8 * m, 4 * (n + m))


def test_large_batches_and_chunk_sizes_use_blocks(monkeypatch):
    monkeypatch.setattr(losses, "MULTI_POSITIVE_CHUNKED_FROM", 12)
    called = []
    for form in ("multi_chunked", "multi_positive"):
        monkeypatch.setattr(getattr(losses, form), "loss", lambda inputs, form=form: called.append(form))
    for n, m, chunk_size in ((2, 5, None), (3, 4, None), (2, 2, 7)):
        ids = torch.arange(n), torch.arange(m)
        losses.contrastive_loss(torch.ones(n, 2), torch.ones(m, 2), 1.0, ids[0], chunk_size, ids[1])
    assert called == ["multi_positive", "multi_chunked", "multi_chunked"]


WRONG = {
    "no ids": ({"text_ids": torch.arange(4)}, TypeError, "text_ids without ids"),
    "list": ({"ids": torch.arange(3), "text_ids": [0, 1, 2, 3]}, TypeError, "text_ids: found a list"),
    "floats": ({"ids": torch.arange(3), "text_ids": torch.ones(4)}, TypeError, "text_ids: found a Tensor"),
    "rows of ids": ({"ids": torch.arange(4), "text_ids": torch.arange(4)}, ValueError, r"ids \(4,\), text_ids \(4,\)"),
    "rows of texts": ({"ids": torch.arange(3), "text_ids": torch.arange(3)}, ValueError, r"text_ids \(3,\); expected"),
    "no labels": ({"ids": torch.ones(3, 0).long(), "text_ids": torch.arange(4)}, ValueError, r"ids \(3, 0\)"),
    "unequal pairs": ({"label_smoothing": 0.1}, ValueError, "expected two of the same shape"),
    "smoothing": ({"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5; .* at most 1"),
    "smoothing text": ({"label_smoothing": "0.1"}, TypeError, "label_smoothing is '0.1'"),
    "smoothing tensor": (
        {"label_smoothing": torch.tensor(0.1)},
        TypeError,
        "a Tensor .*; expected a number",
    ),
    "chunk": ({"ids": torch.arange(3), "text_ids": torch.arange(4), "chunk_size": 0}, ValueError, "chunk_size is 0"),
}


@pytest.mark.parametrize("kind", sorted(WRONG))
@both_losses
def test_wrong_arguments_are_refused(sigmoid, kind):
    options, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        evaluate(sigmoid, torch.ones(3, 2), torch.ones(4, 2), 1.0, **options)


def test_compiled_and_autocast():
    images, texts, ids, text_ids = (x.float() if x.is_floating_point() else x for x in make_case(3))
    expected = evaluate(False, images, texts, 9.0, torch.float32, ids=ids, text_ids=text_ids, chunk_size=3)
    with torch.autocast("cpu", torch.bfloat16):
        actual = evaluate(False, images, texts, 9.0, torch.float32, ids=ids, text_ids=text_ids, chunk_size=3)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    torch.compiler.reset()
    step = torch.compile(
        lambda x, y: 2 * losses.contrastive_loss(x, y, 9.0, ids, 3, text_ids=text_ids), backend="aot_eager"
    )
    torch.testing.assert_close(step(images, texts), 2 * expected[0])


RANK_SIZES = [((3, 3), (6, 6)), ((1, 6), (7, 2)), ((5, 0), (0, 4)), ((4, 3), None)]  # images, texts; None: pairs


def rank_cases():
    """Yield sizes, arguments of the whole batch, and chunk sizes."""
    for number, ((n, m), sigmoid, smoothing) in enumerate(itertools.product(RANK_SIZES, (False, True), (0.0, 0.2))):
        generator = torch.Generator().manual_seed(number)
        sizes = n, m or n
        images, texts = (torch.randn(sum(side), 4, generator=generator, dtype=torch.float64) for side in sizes)
        ids = torch.randint(0, 4, (sum(n), 2) if m else (sum(n),), generator=generator)
        text_ids = torch.randint(0, 4, (sum(m),), generator=generator) if m else None
        options = {"ids": ids, "text_ids": text_ids, "label_smoothing": smoothing}
        yield sizes, (sigmoid, images, texts, 9.0), options, 1 + number % 3


def work(folder):
    """Run all cases on this rank, and one in which the ranks disagree."""
    results = []
    with distributed.process_group("cpu"):
        rank = distributed.rank()
        for sizes, (sigmoid, images, texts, scale), options, chunk in rank_cases():
            rows, columns = (slice(sum(side[:rank]), sum(side[: rank + 1])) for side in sizes)
            text_ids = options["text_ids"]
            local = {
                **options,
                "ids": options["ids"][rows],
                "text_ids": None if text_ids is None else text_ids[columns],
            }
            results.append(evaluate(sigmoid, images[rows], texts[columns], scale, **local, chunk_size=chunk))
        try:
            losses.contrastive_loss(torch.ones(2, 3), torch.ones(2, 3), 1.0, label_smoothing=0.1 * rank)
        except ValueError as error:
            results.append(str(error))
    torch.save(results, Path(folder) / f"{rank}.pt")


def test_two_ranks_equal_one_process(ranks, tmp_path):
    ranks(2, work, tmp_path)
    of_ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert all("the same label_smoothing" in results.pop() for results in of_ranks)
    for (_, arguments, options, _), *parts in zip(rank_cases(), *of_ranks, strict=True):
        expected = evaluate(*arguments, **options)
        for part in parts:
            torch.testing.assert_close(part[0], expected[0], rtol=1e-10, atol=1e-10)
        rows = [torch.cat(sides) / 2 for sides in zip(*(part[1:3] for part in parts), strict=True)]
        scalars = [torch.stack(numbers).mean() for numbers in zip(*(part[3:] for part in parts), strict=True)]
        assert_close([*rows, *scalars], expected[1:])
