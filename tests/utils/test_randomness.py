"""Random integers depend only on their key, in every version."""

import random

import torch

from miniclip.utils.randomness import generator, random_integer, seed_layers


def test_frozen_values():
    assert random_integer(0, "caption", 1, 2) == 7_476_963_303_385_681_481
    assert torch.randint(0, 1000, (4,), generator=generator(0, "batch", 1)).tolist() == [941, 941, 133, 56]


def test_no_hidden_state():
    torch.manual_seed(1)
    random.seed(1)
    one, first = random_integer(3, "x"), torch.rand(3, generator=generator(3, "x"))
    torch.manual_seed(2)
    random.seed(2)
    random_integer(4), generator(5)
    assert random_integer(3, "x") == one
    assert torch.equal(torch.rand(3, generator=generator(3, "x")), first)


def test_global_generator_is_unchanged():
    before = torch.get_rng_state()
    torch.rand(3, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_range():
    values = [random_integer(i) for i in range(2000)]
    assert all(0 <= value < 2**63 for value in values)
    assert max(values) > 0.99 * 2**63
    assert min(values) < 0.01 * 2**63


def test_different_keys_differ():
    keys = [(a, what, b) for a in range(20) for b in range(20) for what in ("caption", "order")]
    keys += [(1,), (1, 1), (11,), (1, 11), (11, 1), ("a", "b"), ("ab",), ("b", "a")]
    assert len({random_integer(*key) for key in keys}) == len(keys)


def test_neighbouring_keys_are_independent():
    """Each caption is drawn for a fifth of the images, independently in consecutive epochs and seeds."""
    epochs = [[random_integer(0, "caption", epoch, i) % 5 for i in range(5000)] for epoch in (1, 2)]
    for epoch in epochs:
        assert all(850 < epoch.count(k) < 1150 for k in range(5))
    assert 850 < sum(a == b for a, b in zip(*epochs, strict=True)) < 1150
    seeds = [[random_integer(seed, "caption", 1, i) % 5 for i in range(5000)] for seed in (0, 1)]
    assert 850 < sum(a == b for a, b in zip(*seeds, strict=True)) < 1150


def test_generators_of_different_keys_differ():
    a, b = (torch.rand(1000, generator=generator(0, key)) for key in (1, 2))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.15


def test_layers_draw_the_numbers_of_manual_seed_on_a_cpu(monkeypatch):
    torch.manual_seed(random_integer(1, "step", 2))
    expected = torch.rand(5)
    monkeypatch.delattr(torch, "manual_seed")  # takes a millisecond, since it formats stack traces
    seed_layers(torch.device("cpu"), 1, "step", 2)
    assert torch.equal(torch.rand(5), expected)
