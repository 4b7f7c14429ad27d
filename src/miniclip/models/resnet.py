"""OpenAI's ResNet image tower (Radford et al. 2021, section 2.4; the code in https://github.com/openai/CLIP, model.py).

Three changes of the ResNet of He et al. (2015): a stem of three convolutions; average pooling before each convolution
that would skip pixels (Zhang 2019); and attention in place of the last pooling. Its query is the mean of the positions.
Letters: B batch, C channels, P positions of the last stage, D its channels, H heads, E embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.models.other import OtherImageTower
from miniclip.tower_config import STRIDE, ResNetConfig

EXPANSION = 4  # channels that a block gives, over those inside it


class Bottleneck(nn.Module):
    """Residual block: convolutions of 1 x 1, 3 x 3 and 1 x 1, each normalized."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * channels
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = nn.Conv2d(channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 4 C', h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.pool(y)))
        shortcut = x if isinstance(self.downsample, nn.Identity) else self.downsample(self.pool(x))
        return F.relu(y + shortcut)


class MeanAttentionPool(nn.Module):
    """Multi-head attention with one query, the mean of the positions: (B, D, h, w) to (B, E)."""

    def __init__(self, positions: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(positions + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, E)."""
        B, D = x.shape[:2]
        x = x.flatten(2).transpose(1, 2)  # (B, P, D)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding  # (B, P + 1, D)

        def heads(tensor: Tensor) -> Tensor:
            return tensor.view(B, -1, self.heads, D // self.heads).transpose(1, 2)  # (B, H, T, D / H)

        q, k, v = heads(self.q_proj(x[:, :1])), heads(self.k_proj(x)), heads(self.v_proj(x))
        y = F.scaled_dot_product_attention(q, k, v)  # (B, H, 1, D / H)
        return self.c_proj(y.transpose(1, 2).reshape(B, D))  # type: ignore[no-any-return]


class ResNet(OtherImageTower):
    """Images to embeddings: a stem, four stages, attention pooling."""

    def __init__(self, config: ResNetConfig, embed_dim: int) -> None:
        super().__init__(config)
        channels = config.channels
        half = channels // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        stages, inputs = [], channels
        for stage, blocks in enumerate(config.blocks):
            width, stride = channels * 2**stage, 1 if stage == 0 else 2
            first = Bottleneck(inputs, width, stride)
            inputs = EXPANSION * width
            others = [Bottleneck(inputs, width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(first, *others))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        positions = (config.image_size // STRIDE) ** 2
        self.attnpool = MeanAttentionPool(positions, config.features, config.pool_heads, embed_dim)
        self.freeze_statistics()

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, E)."""
        x = F.relu(self.bn1(self.conv1(pixels)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.attnpool(x)  # type: ignore[no-any-return]
