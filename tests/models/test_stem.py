"""The convolutional stem: shapes, independent images, checkpoints, and layouts of other projects, which refuse it."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import miniclip
from miniclip.checkpoints.formats import openai
from miniclip.config import ImageConfig
from miniclip.errors import CheckpointError
from miniclip.models.stem import ConvStem, ResidualLayer, StemLayer
from miniclip.models.vision import VisionTransformer, draw_patches
from tests.toys import CONFIG, make_model

IMAGE = ImageConfig(16, 8, 32, 1, 2, stem="conv", stem_residual_layers=1, class_token=False, pooling="mean")


@pytest.mark.parametrize("patch", [4, 8, 16])
@pytest.mark.parametrize("bias", [False, True])
def test_shapes(patch, bias):
    tower = VisionTransformer(ImageConfig(32, patch, 16, 1, 2, stem="conv", patch_bias=bias), 5)
    channels = [layer.conv.out_channels for layer in tower.patches.layers]
    assert channels == [4, 8, 16][-len(channels) :]
    assert 2 ** (len(channels) + 1) == patch
    assert tower.patches(torch.zeros(2, 3, 32, 32)).shape == (2, 16, 32 // patch, 32 // patch)
    indices = draw_patches(2, tower.config.patches, 0.5, torch.Generator())
    assert tower(torch.zeros(2, 3, 32, 32), indices).shape == (2, 5)


def test_residual_layers_follow_each_layer_and_are_added_to_their_input():
    tower = VisionTransformer(ImageConfig(32, 8, 16, 1, 2, stem="conv", stem_residual_layers=2), 5)
    layers = tower.patches.layers
    assert [isinstance(layer, ResidualLayer) for layer in layers] == [False, True, True] * 2
    x = torch.randn(2, 8, 8, 8)
    branch = layers[1].activation(layers[1].group_norm(layers[1].conv(x)))
    torch.testing.assert_close(layers[1](x), x + branch)
    assert branch.abs().max() > 0.1


def test_a_plain_background_stays_weak():
    """A layer norm of each position would give a faint pattern the size of a strong one."""
    layer = StemLayer(3, 8, 4, 1e-5)
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[:, :, :16] = torch.randn(3, 16, 32)
    pixels[:, :, 16:] = 0.01 * torch.randn(3, 16, 32)
    normalized = layer.group_norm(layer.conv(pixels)).detach()
    assert normalized[:, :, :3].std() > 20 * normalized[:, :, 5:].std()


def test_images_are_independent_and_every_weight_is_initialised(tokenizer):
    model = make_model(tokenizer, image=IMAGE)
    pixels = torch.randn(3, 3, 16, 16)
    whole = model.image(pixels)
    torch.testing.assert_close(whole, torch.cat([model.image(row[None]) for row in pixels]), rtol=0, atol=1e-5)
    whole.square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in model.image.patches.parameters())
    assert 0.5 < float(model.image.patches(pixels).detach().std()) < 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 6, "image_size": 12}, "a power of two"),
        ({"patch_size": 2}, "a power of two, at least 4"),
        ({"image_size": 20}, "image_size 20: expected a multiple of the patch_size 8"),
        ({"width": 7, "heads": 1}, "width 7: expected a multiple of 2"),
        ({"stem_residual_layers": -1}, "stem_residual_layers is -1"),
        ({"stem": "patch", "stem_residual_layers": 1}, "stem_residual_layers is 1 with image.stem 'patch'"),
    ],
)
def test_impossible_stems_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ImageConfig(
            **{"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 2, "stem": "conv", **changes}
        )


def test_checkpoint_is_loaded_and_other_layouts_refuse_it(tokenizer, tmp_path):
    model = make_model(tokenizer, image=IMAGE)
    miniclip.save(model, tmp_path / "own")
    copy = miniclip.load(tmp_path / "own")
    assert isinstance(copy.image.patches, ConvStem)
    assert all(torch.equal(value, copy.state_dict()[name]) for name, value in model.state_dict().items())
    causal = CONFIG.replace_text(causal=True, pooling="end").text
    model = make_model(tokenizer, image=CONFIG.replace_image(stem="conv").image, text=causal)
    for layout in ("open_clip", "transformers"):
        with pytest.raises(ValueError, match=r"image.stem is 'conv'"):
            miniclip.export(model, tmp_path / layout, layout=layout)
    with pytest.raises(ValueError, match=r"image.stem is 'conv', there 'patch'"):
        openai.export_plan(model.config.replace_image(width=64, heads=1).replace_text(width=64, heads=1))


def test_a_checkpoint_with_a_layer_norm_in_the_stem_is_refused(tokenizer, tmp_path):
    """Its parameters have the same shapes, so that the embeddings would be wrong without an error."""
    miniclip.save(make_model(tokenizer, image=IMAGE), tmp_path / "own")
    path = tmp_path / "own" / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = {name.replace("group_norm", "norm"): value for name, value in load_file(path).items()}
    save_file(weights, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"image\.patches\.layers\.0\.norm\.bias is unknown"):
        miniclip.load(tmp_path / "own")
