"""Base class of image towers that are not a vision transformer of `vision.py`."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from miniclip.tower_config import OtherImageConfig

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class OtherImageTower(nn.Module):
    """Images to embeddings, (B, 3, S, S) to (B, E); a subclass computes them in `encode`.

    Batch normalization keeps the statistics of the checkpoint in training too, as with open_clip's
    `--lock-image-freeze-bn-stats`. A step then does not depend on how micro batches and ranks divide its batch.
    """

    blocks: tuple[nn.Module, ...] = ()  # no transformer blocks: nothing to compile, to shard or to adapt one by one

    def __init__(self, config: OtherImageConfig) -> None:
        super().__init__()
        self.config: Any = config

    def forward(self, pixels: Tensor, patch_indices: Tensor | None = None) -> Tensor:
        """Embed images.

        Args:
            pixels: (B, 3, S, S), normalized with `CLIPConfig.mean` and `std`.
            patch_indices: None; these towers have no patches to leave out.

        Returns:
            (B, E), not normalized.

        Raises:
            ValueError: the images do not have the tower's size, or patches are left out.
        """
        S = self.config.image_size
        if pixels.shape[1:] != (3, S, S):
            raise ValueError(f"pixels have the shape {tuple(pixels.shape)}, not (B, 3, {S}, {S}): use encode_image")
        if patch_indices is not None:
            raise ValueError(f"the image tower is {self.config.label}, without patches to leave out")
        return self.encode(pixels)

    def encode(self, pixels: Tensor) -> Tensor:
        """Embed pixels of the right size: (B, 3, S, S) to (B, E)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but not for batch normalization."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, NORMS):
                module.training = False
        return self

    def freeze_statistics(self) -> None:
        """Keep the statistics of batch normalization, without counters of batches, which state dicts then leave out."""
        for module in self.modules():
            if isinstance(module, NORMS):
                module.num_batches_tracked, module.track_running_stats = None, False
