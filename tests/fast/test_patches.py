"""Patches by a linear layer equal the convolution in value and gradient, and do not change other convolutions."""

import pytest
import torch
from torch import nn

from miniclip.fast import patches
from miniclip.fast.patches import FastPatches


def results(layer, pixels):
    layer.zero_grad()
    pixels = pixels.clone().requires_grad_()
    y = layer(pixels)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)).sum().backward()
    return [y.detach(), pixels.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("side", [8, 10])  # 10: the convolution leaves out two rows
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_equals_the_convolution(bias, side, device, monkeypatch):
    layer = nn.Conv2d(3, 6, 4, 4, bias=bias, device=device, dtype=torch.float64)
    pixels = torch.randn(2, 3, side, side, dtype=torch.float64).to(device)
    expected = results(layer, pixels)
    layer.__class__ = FastPatches
    monkeypatch.setattr(nn.Conv2d, "forward", None)
    torch.testing.assert_close(results(layer, pixels), expected)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"dilation": 2}, {"groups": 3}], ids=str)
def test_other_convolutions_are_kept(options):
    layer = nn.Conv2d(3, 6, 4, **{"stride": 4, **options})
    pixels = torch.randn(2, 3, 16, 16)
    expected = results(layer, pixels)
    layer.__class__ = FastPatches
    assert all(torch.equal(a, b) for a, b in zip(results(layer, pixels), expected, strict=True))


def test_convolutions_of_other_layers_are_kept(monkeypatch):
    layer, called = FastPatches(8, 6, 1, 1), []
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: called.append(1) or x)
    layer(torch.randn(2, 8, 4, 4))
    assert called == [1]


def test_the_pixels_are_kept_and_not_their_copy(monkeypatch):
    layer, pixels, cuts, cut = FastPatches(3, 6, 4, 4), torch.randn(2, 3, 8, 8), [], patches.cut
    monkeypatch.setattr(patches, "cut", lambda *arguments: cuts.append(1) or cut(*arguments))
    y = layer(pixels)
    assert len(cuts) == 1
    y.sum().backward()
    assert len(cuts) == 2
    y = layer(pixels)
    pixels.add_(1)
    with pytest.raises(RuntimeError, match="the pixels were modified in place before backward"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_and_second_derivatives(dtype):
    layer, pixels = nn.Conv2d(3, 6, 4, 4, dtype=dtype), torch.randn(2, 3, 10, 8, dtype=dtype, requires_grad=True)
    found = []
    for kind in (nn.Conv2d, FastPatches):
        layer.__class__ = kind
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            y = layer(pixels)
        (first,) = torch.autograd.grad(y.pow(2).sum(), pixels, create_graph=True)
        second = torch.autograd.grad(first.pow(2).sum(), [pixels, layer.weight])
        found.append([y.detach(), first.detach(), *second])
        assert [x.dtype for x in found[-1][1:]] == [dtype] * 3
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.float32 else {}
    for value, expected in zip(*reversed(found), strict=True):
        assert value.dtype == expected.dtype
        scale = expected.abs().max()
        torch.testing.assert_close(value / scale, expected / scale, **tolerance)


def test_compiled_it_is_the_linear_layer_too(monkeypatch):
    layer, pixels = FastPatches(3, 6, 4, 4), torch.randn(2, 3, 8, 8)
    expected = nn.Conv2d.forward(layer, pixels)
    monkeypatch.setattr(nn.Conv2d, "forward", None)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(pixels), expected)


def test_hooks_and_torch_func_get_the_convolution(monkeypatch):
    layer, pixels, called = FastPatches(3, 6, 4, 4), torch.randn(2, 3, 8, 8), []
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: called.append(1) or x)
    torch.func.vmap(layer)(pixels[None])
    layer.register_forward_hook(lambda *_: None)
    layer(pixels)
    assert called == [1, 1]
