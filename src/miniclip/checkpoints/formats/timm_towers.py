"""The plain vision transformers among the image towers that open_clip builds from timm by name, as one table.

Source: https://github.com/huggingface/pytorch-image-models, timm/models/vision_transformer.py. SigLIP's towers have no
class token and are pooled by attention. Some were trained with the tanh approximation of GELU.
"""

from __future__ import annotations

from miniclip.config import Activation, ImageConfig


def _siglip(
    size: int, patch: int, width: int, layers: int, heads: int, mlp: int, activation: Activation
) -> ImageConfig:
    """Return a SigLIP tower; `mlp` is the width between the MLP's two layers."""
    return ImageConfig(
        size,
        patch,
        width,
        layers,
        heads,
        activation,
        mlp / width,
        norm_eps=1e-6,
        patch_bias=True,
        class_token=False,
        norm_before=False,
        pooling="attention",
        projection="none",
    )


TIMM_TOWERS: dict[str, ImageConfig] = {
    "vit_base_patch32_siglip_256": _siglip(256, 32, 768, 12, 12, 3072, "gelu_tanh"),
    "vit_base_patch16_siglip_224": _siglip(224, 16, 768, 12, 12, 3072, "gelu"),
    "vit_base_patch16_siglip_256": _siglip(256, 16, 768, 12, 12, 3072, "gelu"),
    "vit_base_patch16_siglip_384": _siglip(384, 16, 768, 12, 12, 3072, "gelu"),
    "vit_base_patch16_siglip_512": _siglip(512, 16, 768, 12, 12, 3072, "gelu"),
    "vit_large_patch16_siglip_256": _siglip(256, 16, 1024, 24, 16, 4096, "gelu"),
    "vit_large_patch16_siglip_384": _siglip(384, 16, 1024, 24, 16, 4096, "gelu"),
    "vit_large_patch16_siglip_512": _siglip(512, 16, 1024, 24, 16, 4096, "gelu_tanh"),
    "vit_so400m_patch14_siglip_224": _siglip(224, 14, 1152, 27, 16, 4304, "gelu"),
    "vit_so400m_patch14_siglip_378": _siglip(378, 14, 1152, 27, 16, 4304, "gelu"),
    "vit_so400m_patch14_siglip_384": _siglip(384, 14, 1152, 27, 16, 4304, "gelu"),
    "vit_so400m_patch16_siglip_256": _siglip(256, 16, 1152, 27, 16, 4304, "gelu_tanh"),
    "vit_so400m_patch16_siglip_384": _siglip(384, 16, 1152, 27, 16, 4304, "gelu_tanh"),
    "vit_so400m_patch16_siglip_512": _siglip(512, 16, 1152, 27, 16, 4304, "gelu_tanh"),
    "vit_giantopt_patch16_siglip_256": _siglip(256, 16, 1536, 40, 16, 6144, "gelu_tanh"),
    "vit_giantopt_patch16_siglip_384": _siglip(384, 16, 1536, 40, 16, 6144, "gelu_tanh"),
    "vit_large_patch14_clip_224": ImageConfig(224, 14, 1024, 24, 16, projection="bias"),  # MobileCLIP2-L-14's
}


def timm_name(image: ImageConfig) -> str | None:
    """Return timm's name for an image tower; None if the table has no such tower."""
    return next((name for name, tower in TIMM_TOWERS.items() if tower == image), None)
