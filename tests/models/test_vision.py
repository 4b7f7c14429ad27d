"""The image tower: patches, their positions and the class token are where they belong."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from miniclip.config import ImageConfig
from miniclip.models.init import initialise
from miniclip.models.vision import VisionTransformer

SIZE, PATCH = 12, 4  # three by three patches


def tower(size: int = SIZE, patch: int = PATCH, embed_dim: int = 5) -> VisionTransformer:
    model = VisionTransformer(ImageConfig(size, patch, 16, 2, 2), embed_dim).eval()
    initialise(model)
    return model.requires_grad_(False)


def pictures(count: int = 2, size: int = SIZE, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def rearranged(x: Tensor, order: list[int]) -> Tensor:
    """The same image with its patches, numbered row by row, in another order."""
    side = SIZE // PATCH
    y = torch.empty_like(x)
    for new, old in enumerate(order):
        (r, c), (s, d) = divmod(new, side), divmod(old, side)
        y[:, :, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH] = x[
            :, :, s * PATCH : (s + 1) * PATCH, d * PATCH : (d + 1) * PATCH
        ]
    return y


@pytest.mark.parametrize(("size", "patch"), [(12, 4), (12, 12), (8, 2), (6, 1)])
def test_shapes(size, patch):
    model = tower(size, patch, embed_dim=7)
    assert model(pictures(3, size)).shape == (3, 7)
    assert model.positions.shape == (1 + (size // patch) ** 2, 16)
    assert model.config.patches == (size // patch) ** 2


@given(st.permutations(range(9)))
def test_patches_and_positions_permuted_alike_change_nothing(order):
    torch.manual_seed(0)
    model, x = tower(), pictures()
    expected = model(x)
    moved = rearranged(x, order)
    if order != sorted(order):
        assert float((model(moved) - expected).abs().max()) > 1e-3  # the position of a patch matters
    model.positions[1:] = model.positions[1:][torch.tensor(order)]
    torch.testing.assert_close(model(moved), expected, rtol=0, atol=1e-5)


def test_the_forward_pass_written_out():
    model, x = tower(), pictures(1)
    rows = [model.class_token]
    for r in range(3):
        for c in range(3):
            cut = x[0, :, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH]
            rows.append((model.patches.weight * cut).sum(dim=(1, 2, 3)))
    y = model.norm_before(torch.stack(rows) + model.positions)[None]
    for block in model.blocks:
        y = block(y)
    torch.testing.assert_close(model(x), model.norm_after(y[:, 0]) @ model.projection.weight.T, rtol=1e-5, atol=1e-5)


def test_images_of_a_batch_are_independent():
    model, x = tower(), pictures(3)
    torch.testing.assert_close(model(x), torch.cat([model(row[None]) for row in x]), rtol=0, atol=1e-6)


def test_every_patch_matters():
    model, x = tower(), pictures(1)
    for r in range(0, SIZE, PATCH):
        for c in range(0, SIZE, PATCH):
            other = x.clone()
            other[:, :, r, c] += 1
            assert float((model(other) - model(x)).abs().max()) > 1e-4


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 3, 12, 16), (1, 1, 12, 12), (3, 12, 12), (1, 12, 12, 3)])
def test_images_of_another_size(shape):
    with pytest.raises(ValueError, match="pixels have the shape") as caught:
        tower()(torch.zeros(shape))
    assert str(shape) in str(caught.value)
    assert "(B, 3, 12, 12)" in str(caught.value)


def siglip(**changes) -> VisionTransformer:
    config = {
        "patch_bias": True, "class_token": False, "norm_before": False, "pooling": "attention", "projection": "none",
    } | changes  # fmt: skip
    model = VisionTransformer(ImageConfig(SIZE, PATCH, 16, 2, 2, **config), 16).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


@pytest.mark.parametrize("pooling", ["attention", "mean"])
@pytest.mark.parametrize("class_token", [False, True])
def test_other_poolings_written_out(pooling, class_token):
    model, x = siglip(pooling=pooling, class_token=class_token), pictures(2)
    y = torch.nn.functional.unfold(x, PATCH, stride=PATCH).transpose(1, 2) @ model.patches.weight.flatten(1).T
    y = y + model.patches.bias
    if class_token:
        y = torch.cat([model.class_token.expand(2, 1, -1), y], dim=1)
    y = y + model.positions
    for block in model.blocks:
        y = block(y)
    if pooling == "attention":
        expected = model.pool(model.norm_after(y))
    else:  # pooling over the patches: the class token is attended to, not pooled
        expected = model.norm_after(y[:, int(class_token) :].mean(dim=1))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_pixels_beyond_whole_patches_are_ignored():
    model = tower(14, 4)
    x = pictures(1, 14)
    other = x.clone()
    other[:, :, 12:] = other[:, :, :, 12:] = 7.0
    assert model.config.patches == 9
    assert torch.equal(model(x), model(other))


def test_patches_may_be_left_out_without_a_class_token():
    model, x = siglip(), pictures(2)
    kept = torch.tensor([[0, 4, 8], [1, 2, 3]])
    assert model(x, kept).shape == (2, 16)
    everything = torch.arange(9).expand(2, 9)
    torch.testing.assert_close(model(x, everything), model(x), rtol=1e-6, atol=1e-6)
