"""Rows that begin alike: the embeddings of the plain form, whatever they have in common."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from miniclip.config import TextConfig
from miniclip.fast.prefix import SharedPrefix
from miniclip.models.text import TextTransformer

VOCABULARY, CONTEXT = 12, 10


def tower():
    torch.manual_seed(0)
    config = TextConfig(CONTEXT, VOCABULARY, 8, 2, 2, causal=True, pooling="end")
    model = TextTransformer(config, 6).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


MODEL = tower()


@given(st.data(), st.integers(1, 4), st.integers(2, CONTEXT), st.integers(0, 2**32 - 1))
@torch.no_grad()
def test_equals_the_plain_form(data, rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    shared = data.draw(st.integers(1, width - 1))
    tokens = torch.randint(1, VOCABULARY - 1, (rows, width), generator=generator)
    tokens[:, :shared] = tokens[0, :shared].clone()
    for row in tokens:
        end = data.draw(st.integers(shared, width - 1))  # the end token is no part of what is shared
        row[end], row[end + 1 :] = VOCABULARY - 1, 0
    longest = int((tokens == VOCABULARY - 1).int().argmax(dim=1).max()) + 1
    found = MODEL(tokens[:, :longest], shared=shared)
    torch.testing.assert_close(found, MODEL(tokens), rtol=1e-10, atol=1e-10)


def test_what_is_laid_is_found_again():
    x = torch.arange(3 * 5 * 2.0).view(3, 5, 2)
    x[:, :2] = x[0, :2]
    prefix = SharedPrefix(2, 3, 3)
    laid = prefix.lay(x)
    assert laid.shape == (1, 2 + 9, 2)
    positions = torch.tensor([2, 4, 3])
    torch.testing.assert_close(laid[0, prefix.place(positions)], x[torch.arange(3), positions])
    (apart,) = prefix.apart(laid, 1, 1)
    torch.testing.assert_close(apart[:, 0], x)
    assert prefix.seen_from(positions)[:, 0, 0].sum(dim=1).tolist() == [3, 5, 4]


def test_the_work_for_what_is_shared_is_done_once():
    """Of 6 tokens of 50 rows, 3 are shared: not much over half of the work is left."""
    tokens = torch.full((50, 6), 3)
    tokens[:, 5] = VOCABULARY - 1
    counted = []
    for shared in (0, 3):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            MODEL(tokens, shared=shared)
        counted.append(counter.get_total_flops())
    assert counted[1] < 0.65 * counted[0]
