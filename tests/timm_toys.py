"""Small architectures of timm, registered under names of their own, and models with them."""

import timm
import torch
from torch import nn

from miniclip.config import CLIPConfig, TextConfig
from miniclip.inference.model import CLIPModel
from miniclip.tokenizer import Tokenizer
from miniclip.tower_config import OtherImageConfig, ResNetConfig, TimmConfig

TOWERS: dict[str, OtherImageConfig] = {
    "resnet": ResNetConfig(64, (1, 2, 1, 1), channels=8, pool_heads=4),
    "convnext": TimmConfig(32, "convnext_toy", "", "linear"),
    "fastvit": TimmConfig(32, "fastvit_toy", "avg", None),
    "eva": TimmConfig(32, "eva_toy", "token", None),  # with buffers that no checkpoint holds
}


def timm_model(make, options, **sizes):
    """Build one of timm's models as its own functions do, with the settings that open_clip reads."""
    options = {key: options[key] for key in ("num_classes", "global_pool") if key in options}
    model = make(**sizes, **options)
    model.default_cfg = {"pool_size": (1, 1)}
    return model


@timm.models.register_model
def convnext_toy(**options):
    return timm_model(timm.models.ConvNeXt, options, depths=(1, 1, 1, 1), dims=(8, 12, 16, 64))


@timm.models.register_model
def fastvit_toy(**options):
    sizes = {"layers": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "mlp_ratios": (2, 2, 2, 2)}
    return timm_model(timm.models.FastVit, options, token_mixers=("repmixer",) * 4, **sizes)


@timm.models.register_model
def eva_toy(**options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "ref_feat_shape": (4, 4)}
    return timm_model(timm.models.Eva, options, use_rot_pos_emb=True, swiglu_mlp=True, scale_mlp=True, **sizes)


@timm.models.register_model
def relpos_toy(**options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4, "class_token": True}
    return timm_model(timm.models.VisionTransformerRelPos, options, **sizes)


def tower_model(image: OtherImageConfig, tokenizer: Tokenizer) -> CLIPModel:
    """Return a model with random weights and random statistics of batch normalization."""
    torch.manual_seed(0)
    text = TextConfig(12, tokenizer.vocab_size, 32, 1, 2)
    model = CLIPModel(CLIPConfig(image, text, 16), tokenizer).eval()
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.dim() > 1:
            nn.init.normal_(value, std=value[0].numel() ** -0.5)
        elif name != "log_scale":
            value.add_(0.1 * torch.randn_like(value))
    return model


def tower_pixels(model: CLIPModel, count: int = 3) -> torch.Tensor:
    """Draw pixels whose means differ, since those over the positions of noise are alike."""
    side = model.config.image.image_size
    return torch.randn(count, 3, side, side) + 2 * torch.randn(count, 3, 1, 1)
