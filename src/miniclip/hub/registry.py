"""Registry of short names: presets, and well-known checkpoints on the Hugging Face Hub.

A name only gives the repository. The architecture is read from the repository's files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from miniclip.config import PRESETS
from miniclip.utils.checks import did_you_mean
from miniclip.utils.option_names import option


class Pretrained(NamedTuple):
    """Published checkpoint: its repository on the Hub, and its description."""

    repo: str
    description: str


OPENAI_REPO = "openai/clip-vit-base-patch32"  # has OpenAI's tokenizer, which most CLIP checkpoints share

PRETRAINED: dict[str, Pretrained] = {
    "vit_b_32": Pretrained("openai/clip-vit-base-patch32", "OpenAI's CLIP ViT-B/32, 151M"),
    "vit_b_16": Pretrained("openai/clip-vit-base-patch16", "OpenAI's CLIP ViT-B/16, 150M"),
    "vit_l_14": Pretrained("openai/clip-vit-large-patch14", "OpenAI's CLIP ViT-L/14, 428M"),
    "vit_l_14_336": Pretrained("openai/clip-vit-large-patch14-336", "OpenAI's CLIP ViT-L/14 at 336 px, 428M"),
    "vit_b_32_laion2b": Pretrained("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "ViT-B/32 on LAION-2B, 151M"),
    "vit_b_16_laion2b": Pretrained("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "ViT-B/16 on LAION-2B, 150M"),
    "vit_l_14_laion2b": Pretrained("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "ViT-L/14 on LAION-2B, 428M"),
    "vit_h_14_laion2b": Pretrained("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "ViT-H/14 on LAION-2B, 986M"),
    "vit_g_14_laion2b": Pretrained("laion/CLIP-ViT-g-14-laion2B-s34B-b88K", "ViT-g/14 on LAION-2B, 1.4B"),
    "vit_bigg_14_laion2b": Pretrained("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", "ViT-bigG/14 on LAION-2B, 2.5B"),
    "vit_b_32_datacomp": Pretrained("laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", "ViT-B/32 on DataComp-1B, 151M"),
    "vit_b_16_datacomp": Pretrained("laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", "ViT-B/16 on DataComp-1B, 150M"),
    "vit_l_14_datacomp": Pretrained("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "ViT-L/14 on DataComp-1B, 428M"),
    "vit_b_16_dfn": Pretrained("apple/DFN2B-CLIP-ViT-B-16", "Apple's DFN ViT-B/16, 150M"),
    "vit_l_14_dfn": Pretrained("apple/DFN2B-CLIP-ViT-L-14", "Apple's DFN ViT-L/14, 428M"),
    "vit_h_14_dfn": Pretrained("apple/DFN5B-CLIP-ViT-H-14", "Apple's DFN ViT-H/14, 986M"),
    "vit_h_14_378_dfn": Pretrained("apple/DFN5B-CLIP-ViT-H-14-378", "Apple's DFN ViT-H/14 at 378 px, 987M"),
    "vit_b_32_metaclip": Pretrained("facebook/metaclip-b32-fullcc2.5b", "Meta's MetaCLIP ViT-B/32, 151M"),
    "vit_b_16_metaclip": Pretrained("facebook/metaclip-b16-fullcc2.5b", "Meta's MetaCLIP ViT-B/16, 150M"),
    "vit_l_14_metaclip": Pretrained("facebook/metaclip-l14-fullcc2.5b", "Meta's MetaCLIP ViT-L/14, 428M"),
    "vit_h_14_metaclip": Pretrained("facebook/metaclip-h14-fullcc2.5b", "Meta's MetaCLIP ViT-H/14, 986M"),
    "vit_l_14_clipa": Pretrained("UCSC-VLAA/ViT-L-14-CLIPA-datacomp1B", "CLIPA ViT-L/14 on DataComp-1B, 414M"),
    "vit_h_14_clipa": Pretrained("UCSC-VLAA/ViT-H-14-CLIPA-datacomp1B", "CLIPA ViT-H/14 on DataComp-1B, 968M"),
    "rn50": Pretrained("timm/resnet50_clip.openai", "OpenAI's CLIP ResNet-50, 102M"),
    "rn101": Pretrained("timm/resnet101_clip.openai", "OpenAI's CLIP ResNet-101, 120M"),
    "rn50x4": Pretrained("timm/resnet50x4_clip.openai", "OpenAI's CLIP ResNet-50x4, 178M"),
    "rn50x16": Pretrained("timm/resnet50x16_clip.openai", "OpenAI's CLIP ResNet-50x16, 291M"),
    "rn50x64": Pretrained("timm/resnet50x64_clip.openai", "OpenAI's CLIP ResNet-50x64, 623M"),
    "convnext_base_w_laion2b": Pretrained(
        "laion/CLIP-convnext_base_w-laion2B-s13B-b82K", "ConvNeXt-B on LAION-2B, 179M"
    ),
    "convnext_large_d_320_laion2b": Pretrained(
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup", "ConvNeXt-L at 320 px on LAION-2B, 352M"
    ),
    "eva02_b_16": Pretrained("timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k", "EVA02-CLIP-B/16, 150M"),
    "eva02_l_14_336": Pretrained(
        "timm/eva02_large_patch14_clip_336.merged2b_s6b_b61k", "EVA02-CLIP-L/14 at 336 px, 428M"
    ),
    "mobileclip2_s0": Pretrained("timm/MobileCLIP2-S0-OpenCLIP", "Apple's MobileCLIP2-S0 at 256 px, 75M"),
    "mobileclip2_s4": Pretrained("timm/MobileCLIP2-S4-OpenCLIP", "Apple's MobileCLIP2-S4 at 256 px, 445M"),
    "pe_core_b_16": Pretrained("timm/PE-Core-B-16", "Meta's Perception Encoder B/16, 448M"),
    "pe_core_l_14_336": Pretrained("timm/PE-Core-L-14-336", "Meta's Perception Encoder L/14 at 336 px, 671M"),
    "siglip_b_16": Pretrained("google/siglip-base-patch16-224", "Google's SigLIP B/16, 203M"),
    "siglip_b_16_384": Pretrained("google/siglip-base-patch16-384", "Google's SigLIP B/16 at 384 px, 203M"),
    "siglip_l_16_384": Pretrained("google/siglip-large-patch16-384", "Google's SigLIP L/16 at 384 px, 652M"),
    "siglip_so400m_14_384": Pretrained("google/siglip-so400m-patch14-384", "SigLIP SO400M/14 at 384 px, 878M"),
    "siglip2_b_16": Pretrained("google/siglip2-base-patch16-224", "Google's SigLIP 2 B/16, 375M"),
    "siglip2_l_16_384": Pretrained("google/siglip2-large-patch16-384", "Google's SigLIP 2 L/16 at 384 px, 882M"),
    "siglip2_so400m_14_384": Pretrained("google/siglip2-so400m-patch14-384", "SigLIP 2 SO400M/14 at 384 px, 1.1B"),
}


def list_models() -> dict[str, str]:
    """Return the names that `load` accepts, each with a description: presets, and checkpoints with their repository."""
    presets = {name: description for name, (description, _) in PRESETS.items()}
    return presets | {name: f"{entry.description}; {entry.repo}" for name, entry in PRETRAINED.items()}


# Parts of other projects' names for the same models: "ViT-B/32", "clip-ViT-B-32", "clip-vit-base-patch32".
_LETTERS = {"base": "b", "large": "l", "huge": "h", "giant": "g"}
_DROPPED = {"", "clip", "google", "hub", "openai", "patch", "px", "quickgelu", "vit", "224"}


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return the end of an error message: the model that a name of another project means, or the nearest name.

    Args:
        name: an unknown name.
        names: the known names.
    """
    lists = option("miniclip.list_models()")
    names = list(names)
    larger = [known for known in names if _parts(name) and _parts(name) < _parts(known)]  # as of ViT-H-14
    if same := meant(name, names) or next(iter(larger), None):
        return f"; did you mean {same!r}? {lists} lists all names"
    return did_you_mean(name.lower().replace("-", "_"), names, listed_by=lists)


def meant(name: str, names: Iterable[str]) -> str | None:
    """Return the known name of the model that has another name in other projects, such as ViT-B/32; None: unknown."""
    parts = _parts(name)
    return next((known for known in names if parts and parts in (_parts(known), _parts(_repo_name(known)))), None)


def _repo_name(known: str) -> str:
    """Return the name of a model's repository without its organisation; "" for a model without one."""
    return PRETRAINED[known].repo.split("/")[1] if known in PRETRAINED else ""


def _parts(name: str) -> frozenset[str]:
    """Return the parts of a model's name that tell models apart: {"b", "32"} of "ViT-B/32"."""
    words = re.findall(r"[a-z]+|\d+", name.lower().replace("vit", " vit ").replace("clip", " clip "))
    return frozenset(_LETTERS.get(word, word) for word in words) - _DROPPED
