"""Write docs/architectures.md: the open_clip configurations that miniclip loads, and the reasons for the others.

python docs/make_architectures.py [--check]

It passes each configuration of the installed open_clip to the code that reads an open_clip_config.json, and writes the
configurations themselves to src/miniclip/checkpoints/formats/open_clip_models.json. --check writes nothing and exits
with 1 if one of the two files is out of date.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import open_clip
import torch

from miniclip.checkpoints.formats.open_clip import model_config
from miniclip.checkpoints.given_config import OPEN_CLIP_MODELS
from miniclip.config import CLIPConfig
from miniclip.inference.model import CLIPModel
from miniclip.tower_config import ResNetConfig, TimmConfig

PAGE = Path(__file__).parent / "architectures.md"
HEAD = """# open_clip's architectures

miniclip loads these {loaded} of the {all} model configurations of open_clip {version}. Published weights open by
repository, directory or file ([`miniclip.load`](checkpoints.md)). A file of weights by itself needs the
configuration's name, as in `miniclip.load("epoch_32.pt", config="ViT-B-32")`. miniclip's preset `vit_b_32` is another
model, the one that open_clip names `ViT-B-32-quickgelu`.

`docs/make_architectures.py` makes this table with the code that reads an `open_clip_config.json`, and counts the
parameters on the models.

Not supported: text towers of the transformers library, and CoCa, which also generates captions.

## Vision transformers and ResNets

They are written in miniclip. A ResNet is pooled by attention over the mean of its positions.

| configuration | image | width × layers | pooling | activation | text | parameters |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

## Image towers of timm

They need `pip install "miniclip[timm]"`. miniclip loads, encodes, fine-tunes and evaluates them, and exports them to
ONNX and to open_clip. Everything that needs the parts of a vision transformer refuses them: heat maps, LoRA, patch
dropout, other image sizes, other layouts.

| configuration | image | architecture in timm | text |
| --- | --- | --- | --- |
{timm_rows}

## Not loaded

| configuration | reason |
| --- | --- |
{others}
"""


def page() -> str:
    """Return the page."""
    loaded, from_timm, others = [], [], []
    for name in open_clip.list_models():
        try:
            config = model_config(open_clip.get_model_config(name), {})
            if isinstance(config.image, TimmConfig):
                from_timm.append(timm_row(name, config))
            else:
                loaded.append(row(name, config))
        except ValueError as error:
            others.append(f"| {name} | {str(error).replace('|', '&#124;')} |")
    return HEAD.format(
        all=len(loaded) + len(from_timm) + len(others),
        version=open_clip.__version__.rpartition(".")[0],
        loaded=len(loaded) + len(from_timm),
        rows="\n".join(loaded),
        timm_rows="\n".join(from_timm),
        others="\n".join(others),
    )


def row(name: str, config: CLIPConfig) -> str:
    """Return the row of a configuration that loads."""
    image, text = config.image, config.text
    if isinstance(image, ResNetConfig):
        with torch.device("meta"):
            parameters = count(CLIPModel(config))
        cells = [name, f"{image.image_size} px, ResNet", f"{image.channels} × {sum(image.blocks)}", "attention", "relu"]
        return f"| {' | '.join([*cells, text_cell(config), f'{parameters / 1e6:,.0f}M'])} |"
    with torch.device("meta"):  # the blocks of a tower are alike, so one is enough
        model = CLIPModel(replace(config, image=replace(image, layers=1), text=replace(text, layers=1)))
    parameters = count(model)
    parameters += (image.layers - 1) * count(model.image.blocks) + (text.layers - 1) * count(model.text.blocks)
    cells = [
        name,
        f"{image.image_size} px, patch {image.patch_size}",
        f"{image.width} × {image.layers}",
        {"class": "class token", "mean": "mean", "attention": "attention"}[image.pooling],
        image.activation,
        text_cell(config),
        f"{parameters / 1e6:,.0f}M",
    ]
    return f"| {' | '.join(cells)} |"


def timm_row(name: str, config: CLIPConfig) -> str:
    """Return the row of a configuration whose image tower is timm's."""
    return f"| {name} | {config.image.image_size} px | {config.image.model} | {text_cell(config)} |"


def text_cell(config: CLIPConfig) -> str:
    """Describe the text tower."""
    return f"{config.text.width} × {config.text.layers}, {'causal' if config.text.causal else 'bidirectional'}"


def count(module: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def table() -> str:
    """Return open_clip's configurations as JSON, one line each."""
    lines = (f"{json.dumps(name)}: {json.dumps(open_clip.get_model_config(name))}" for name in open_clip.list_models())
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    files = {PAGE: page(), OPEN_CLIP_MODELS: table()}
    if "--check" in sys.argv:
        raise SystemExit(any(path.read_text(encoding="utf-8") != text for path, text in files.items()))
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
