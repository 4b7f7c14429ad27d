"""Smaller images first: which steps have them, their positions and gradients, and what is refused."""

import pytest
import torch

from miniclip.config import ImageConfig
from miniclip.models.init import initialise
from miniclip.models.vision import VisionTransformer
from miniclip.train import TrainConfig
from miniclip.train.variants.resolution import images_of_step, resized_images

FIRST = TrainConfig(first_image_size=8, first_fraction=0.5)


def tower(**changes):
    model = VisionTransformer(ImageConfig(16, 4, 16, layers=1, heads=2, **changes), 5)
    initialise(model)
    return model


@pytest.mark.parametrize("changes", [{}, {"class_token": False, "pooling": "mean"}, {"stem": "conv"}])
def test_a_small_image_gets_interpolated_positions(changes):
    model, pixels = tower(**changes), torch.randn(2, 3, 8, 8)
    with torch.no_grad():  # interpolation keeps a plane, away from the border
        model.positions.copy_(torch.arange(len(model.positions)).float()[:, None].expand(-1, 16))
    with images_of_step(model, 4, 10, FIRST) as record:
        assert record == {"image_size": 8}
        embeddings = model(pixels)
        first = model.config.class_token
        grid = model.positions[int(first) :, 0].view(2, 2)
        assert torch.allclose(grid[1] - grid[0], grid[1, :1] - grid[0, :1])
        whole = model._parameters["positions"].detach()[int(first) :, 0]
        assert float(grid.detach().mean()) == pytest.approx(float(whole.mean()), rel=1e-3)
    embeddings.square().sum().backward()
    assert float(model.positions.grad[int(first) :].abs().min(dim=1).values.max()) > 0
    with pytest.raises(ValueError, match="pixels have the shape"):
        model(pixels)
    with images_of_step(model, 5, 10, FIRST) as record:
        assert record == {}
        model(torch.randn(2, 3, 16, 16))
    assert isinstance(model.positions, torch.nn.Parameter)
    assert not model._forward_pre_hooks
    assert model.config.image_size == 16


def test_images_are_resized():
    assert torch.allclose(resized_images(torch.full((1, 3, 16, 16), 0.5), 8), torch.full((1, 3, 8, 8), 0.5))
    pixels = torch.rand(1, 3, 16, 16)
    assert resized_images(pixels, 16) is pixels


@pytest.mark.parametrize(("size", "message"), [(12, "a multiple of .* size 8"), (16, "below its image size 16")])
def test_sizes_that_do_not_fit_are_refused(start, size, message):
    with pytest.raises(ValueError, match=message):
        start(first_image_size=size)


def test_records_name_the_size_and_the_positions_train_in_both_parts(start, monkeypatch):
    sizes = []
    monkeypatch.setattr("miniclip.runtime.flops.peak_flops", lambda device, precision: 1e12)
    trainer = start(callbacks=[], first_image_size=8, first_fraction=0.6, patch_dropout=0.5, max_steps=5)
    trainer.model.image.blocks.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[1]))
    before = trainer.model.image.positions.detach().clone()
    history = trainer.fit()
    assert [record.get("image_size") for record in history.steps] == [8, 8, 8, None, None]
    assert sizes[:5] == [2, 2, 2, 3, 3]  # class token and half of the patches
    assert history.evaluations
    assert not torch.equal(before, trainer.model.image.positions)
