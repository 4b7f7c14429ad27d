"""FLOPs: the count against torch's FlopCounterMode, and the measured peak."""

import math
import os

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from miniclip.config import PRESETS, CLIPConfig, ImageConfig, TextConfig
from miniclip.inference.model import CLIPModel
from miniclip.models.vision import draw_patches
from miniclip.runtime.flops import image_flops, pair_flops, peak_flops, text_flops

fast_forms = pytest.mark.skipif(os.environ.get("MINICLIP_FAST") == "0", reason="the count is that of the fast forms")

SMALL = CLIPConfig(ImageConfig(32, 8, 64, 2, 2), TextConfig(24, 600, 48, 3, 2), 32)
ATTENTION = ImageConfig(
    32, 8, 64, 2, 2, patch_bias=True, class_token=False, norm_before=False, pooling="attention", projection="none"
)
SIGLIP = CLIPConfig(ATTENTION, TextConfig(24, 600, 64, 2, 2, padding="attended", pooling="last", projection="bias"), 64)

CONV = SMALL.replace_image(stem="conv", stem_residual_layers=2)


def count_flops(run):
    """FLOPs by torch's counter, with plain attention: it does not count the CPU's fused attention."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@fast_forms
@pytest.mark.parametrize("config", [SMALL, SIGLIP, CONV, PRESETS["bert_vit_tiny"][1]])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_image_flops_equal_torchs_count(config, dropout):
    model = CLIPModel(config).initialise()
    size, patches = config.image.image_size, config.image.patches
    patch_indices = draw_patches(2, patches, dropout, torch.Generator()) if dropout else None
    flops = count_flops(lambda: model.image(torch.zeros(2, 3, size, size), patch_indices))
    extra = 2 * config.image.width**2 if config.image.pooling == "attention" else 0  # the query, once a batch
    assert flops == pytest.approx(2 * image_flops(config, dropout), abs=extra, rel=1e-3)


@fast_forms
@pytest.mark.parametrize("config", [SMALL, SIGLIP])
def test_text_flops_equal_torchs_count(config):
    model = CLIPModel(config).initialise()
    tokens = torch.full((2, 24), 5)
    tokens[:, -1] = config.text.end_id
    assert count_flops(lambda: model.text(tokens)) == 2 * text_flops(config, 24)


@fast_forms
def test_a_step_counts_three_times_forward():
    """Backward computes no gradient of the pixels, so torch counts one product less."""
    config = SMALL
    model = CLIPModel(config).initialise()
    tokens = torch.full((2, 24), 5)
    tokens[:, -1] = config.text.end_id

    def step():
        out = model(torch.randn(2, 3, 32, 32), tokens)
        (out.image_embeddings.sum() + out.text_embeddings.sum()).backward()

    patches = 2 * config.image.patches * 3 * 8**2 * config.image.width
    assert count_flops(step) == 2 * (pair_flops(model, 24) - patches)


def test_frozen_towers_count_forward_only_and_custom_towers_are_not_counted():
    model = CLIPModel(SMALL)
    both = pair_flops(model, 10)
    model.image.requires_grad_(False)
    assert both - pair_flops(model, 10) == 2 * image_flops(SMALL)
    model.image = torch.nn.Identity()
    assert pair_flops(model, 10) is None


def test_a_configuration_is_built_once_for_each_size(monkeypatch):
    model, sizes = CLIPModel(SMALL), [32, 64, 32, 64]
    expected = [pair_flops(CLIPModel(SMALL.replace_image(image_size=size)), 10) for size in sizes]
    assert [pair_flops(model, 10, image_size=size) for size in sizes] == expected
    monkeypatch.delattr(CLIPConfig, "replace_image")
    assert [pair_flops(model, 10, image_size=size) for size in sizes] == expected


def test_vit_b_16_agrees_with_the_literature():
    """A ViT-B/16 has 17.6 G multiply-adds an image in the literature, two FLOPs each.

    The last block saves the query, output and MLP of the 196 patches.
    """
    saved = 196 * 2 * (2 * 768**2 + 2 * 768 * 3072 + 2 * 197 * 768)
    assert image_flops(PRESETS["vit_b_16"][1]) == pytest.approx(2 * 17.6e9 - saved, rel=0.03)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_peak_is_measured_once(precision, monkeypatch):
    monkeypatch.setattr("miniclip.runtime.flops.SIDE", {"cpu": 64})
    peak_flops.cache_clear()
    peak = peak_flops(torch.device("cpu"), precision)
    assert math.isfinite(peak)
    assert peak > 1e6
    assert peak_flops(torch.device("cpu"), precision) == peak
    peak_flops.cache_clear()
