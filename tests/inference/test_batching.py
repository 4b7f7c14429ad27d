"""Many texts in few tokens: each in one pass, none too large, and shared only what is alike."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniclip.inference.batching import BATCH_COST, plan_batches

rows = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=0, max_size=20)


def tensors(texts):
    """Rows of tokens as a tokenizer makes them: 4 begins, 5 ends, zeros behind."""
    width = max((len(text) for text in texts), default=0) + 2
    tokens = torch.zeros(len(texts), width, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text) + 2] = torch.tensor([4, *text, 5])
    return tokens, torch.tensor([len(text) + 2 for text in texts], dtype=torch.int64)


@given(rows, st.integers(1, 8), st.integers(1, 40), st.booleans())
def test_every_text_is_in_one_pass_that_fits(texts, most_rows, most_tokens, causal):
    tokens, lengths = tensors(texts)
    passes = plan_batches(tokens, lengths, most_rows, most_tokens, causal)
    assert sorted(int(row) for one in passes for row in one.rows) == list(range(len(texts)))
    for one in passes:
        assert 0 < len(one.rows) <= most_rows
        assert one.width == lengths[one.rows].max()
        assert len(one.rows) * one.width <= most_tokens or len(one.rows) == 1
        assert one.prefix < lengths[one.rows].min()
        assert (tokens[one.rows, : one.prefix] == tokens[one.rows[0], : one.prefix]).all()
        assert causal or not one.prefix


def test_like_lengths_go_together():
    tokens, lengths = tensors([[i % 3 + 1] * (i % 5 + 1) for i in range(1000)])
    passes = plan_batches(tokens, lengths, 1000, 512, share_prefix=False)
    padded = sum(len(one.rows) * one.width for one in passes)
    assert padded < 1.03 * int(lengths.sum())


@pytest.mark.parametrize("mixed", [False, True])
def test_prompts_share_their_beginnings(mixed):
    """In any order: half of each prompt is its template."""
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(1, 2000, (int(n),), generator=generator).tolist() for n in torch.arange(400) % 3 + 1]
    prompts = [[3000 + template] * 4 + label + [7] for template in range(5) for label in labels]
    tokens, lengths = torch.zeros(len(prompts), 12, dtype=torch.int64), torch.tensor([len(p) + 2 for p in prompts])
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt) + 2] = torch.tensor([4000, *prompt, 4001])
    if mixed:
        order = torch.randperm(len(prompts), generator=generator)
        tokens, lengths = tokens[order], lengths[order]
    passes = plan_batches(tokens, lengths, 256, 2048, share_prefix=True)
    assert sum(BATCH_COST + one.tokens for one in passes) < 0.62 * int(lengths.sum())
    assert min(one.prefix for one in passes) >= 5


def test_nothing_is_grouped_that_would_make_small_passes():
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, 40000, (10,), generator=generator).tolist() for _ in range(300)]
    tokens, lengths = tensors(texts)
    passes = plan_batches(tokens, lengths, 256, 2048, share_prefix=True)
    assert len(passes) == 2
    assert all(one.tokens > 4 * BATCH_COST for one in passes)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_cut_by_length_in_the_best_way(lengths):
    """Against all ways there are to cut them."""
    tokens, long = tensors([[1] * (length * 20) for length in lengths])
    found = sum(BATCH_COST + one.tokens for one in plan_batches(tokens, long, 1000, 10**6, share_prefix=False))
    ordered = sorted(long.tolist())
    ways = []
    for cuts in itertools.product([False, True], repeat=len(ordered) - 1):
        places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(ordered)]
        ways.append(sum(BATCH_COST + (b - a) * ordered[b - 1] for a, b in itertools.pairwise(places)))
    assert found == min(ways)
