"""Entry points of torch.hub: `torch.hub.load(path_or_repo, "bert_vit_b_16", pretrained=False, source="local")`.

They take the options of `miniclip.load` and return its model. `clip` loads any other checkpoint by name.
"""

import pathlib
import sys
import typing  # only modules and entry points have public names here: torch.hub.list prints the functions and classes

SOURCE = str(pathlib.Path(__file__).resolve().parent / "src")
if SOURCE not in sys.path:  # torch.hub does not install the clone
    sys.path.insert(0, SOURCE)

import miniclip  # noqa: E402

dependencies = ["torch", "torchvision", "PIL", "safetensors", "huggingface_hub", "regex", "ftfy", "tqdm"]


def bert_vit_b_16(pretrained: bool = False, **options: typing.Any) -> miniclip.CLIP:
    """Reference system: ViT-B/16 with a BERT-style text transformer."""
    return miniclip.load("bert_vit_b_16", pretrained=pretrained, **options)


def bert_vit_tiny(pretrained: bool = False, **options: typing.Any) -> miniclip.CLIP:
    """Model for 64 px images; trains in a minute on two cores."""
    return miniclip.load("bert_vit_tiny", pretrained=pretrained, **options)


def bert_vit_small(pretrained: bool = False, **options: typing.Any) -> miniclip.CLIP:
    """Model for 64 px images; trains in a few minutes on two cores."""
    return miniclip.load("bert_vit_small", pretrained=pretrained, **options)


def vit_b_32(pretrained: bool = False, **options: typing.Any) -> miniclip.CLIP:
    """OpenAI's CLIP ViT-B/32."""
    return miniclip.load("vit_b_32", pretrained=pretrained, **options)


def vit_b_16(pretrained: bool = False, **options: typing.Any) -> miniclip.CLIP:
    """OpenAI's CLIP ViT-B/16."""
    return miniclip.load("vit_b_16", pretrained=pretrained, **options)


def vit_l_14(pretrained: bool = False, **options: typing.Any) -> miniclip.CLIP:
    """OpenAI's CLIP ViT-L/14."""
    return miniclip.load("vit_l_14", pretrained=pretrained, **options)


def vit_l_14_336(pretrained: bool = False, **options: typing.Any) -> miniclip.CLIP:
    """OpenAI's CLIP ViT-L/14 at 336 px."""
    return miniclip.load("vit_l_14_336", pretrained=pretrained, **options)


def clip(name: str, pretrained: bool = True, **options: typing.Any) -> miniclip.CLIP:
    """Model by a name of `miniclip.list_models`, a repository on the Hub (`org/name`), or a path."""
    return miniclip.load(name, pretrained=pretrained, **options)
