"""`miniclip models` and `miniclip convert`: list models, and convert a checkpoint to another layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniclip.checkpoints import LAYOUTS
from miniclip.cli.parsing import ADAPTER_HELP, CONTEXT_HELP, add_command, add_flag
from miniclip.config import PRESETS, CLIPConfig, ImageConfig, preset
from miniclip.tower_config import OtherImageConfig

CONVERT_EPILOG = """examples:
  miniclip convert ViT-B-32.pt models/b32                          an archive of OpenAI to a miniclip checkpoint
  miniclip convert org/repo models/converted --layout transformers    from the Hub, for another library
  miniclip convert runs/mine models/mine --dtype bfloat16
"""
MODELS_EPILOG = """examples:
  miniclip models                                    all presets and pretrained checkpoints
  miniclip models bert_vit_b_16                      one preset: its towers and their parameters
  miniclip models runs/mine                          a run or a checkpoint, on disk or on the Hub
"""


def add(commands: Any) -> None:
    """Add both commands."""
    convert = add_command(commands, "convert", convert_command, "write a checkpoint in another layout", CONVERT_EPILOG)
    convert.add_argument("source", help="a checkpoint of any layout, a run, a model name, or a repository of the Hub")
    convert.add_argument("target", help="directory to write")
    convert.add_argument("--layout", choices=("miniclip", *LAYOUTS), default="miniclip", help="(default miniclip)")
    convert.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision of the weights (default: as loaded)",
    )
    convert.add_argument("--image-size", type=int, metavar="N", help="image size; the position embeddings are resized")
    add_flag(convert, "context_length", int, CONTEXT_HELP)
    convert.add_argument("--adapter", metavar="PATH", help=ADAPTER_HELP)
    convert.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json that replaces the checkpoint's")
    convert.add_argument(
        "--architecture",
        dest="config",
        metavar="NAME",
        help="for weights without a configuration: a preset, a model of open_clip such as ViT-B-32, or a file",
    )
    convert.add_argument("--subfolder", metavar="PATH", help="folder of the checkpoint inside the source")
    convert.add_argument("--prefix", help="start of the names of the weights, if the file holds several models")
    convert.add_argument("--revision", help="branch, tag or commit of a repository")
    convert.add_argument("--overwrite", action="store_true", help="replace files of a target that is not empty")

    models = add_command(commands, "models", models_command, "list the models, or show one", MODELS_EPILOG)
    models.add_argument("name", nargs="?", help="a preset, a pretrained checkpoint, a run or any other checkpoint")


def convert_command(source: str, target: str, layout: Any, dtype: Any, overwrite: bool = False, **options: Any) -> None:
    """Run `miniclip convert`."""
    import miniclip
    from miniclip.utils.target import require_target

    require_target(target, overwrite)  # before a download
    model = miniclip.load(source, dtype=dtype, **options)
    if layout == "miniclip":
        miniclip.save(model, target, overwrite=overwrite)
    else:
        miniclip.export(model, target, layout=layout, overwrite=overwrite)
    print(f"{target}: {count_parameters(model):,} parameters in {dtype_name(model)}, in the layout of {layout}")


def models_command(name: str | None) -> None:
    """Run `miniclip models`."""
    import miniclip

    models = miniclip.list_models()
    if name is None:
        width = max(map(len, models))
        for key, description in models.items():
            print(f"{key:<{width}}  {description}")
        return
    if name in models and not Path(name).exists():
        print(f"{name}: {models[name]}")
        lines = describe_model(preset(name)) if name in PRESETS else ["its configuration is on the Hub"]
    else:
        from miniclip.hub import find_checkpoint

        model = miniclip.load(name)
        print(f"{name}: a checkpoint with weights in {dtype_name(model)}, {find_checkpoint(name)}")
        lines = describe_model(model.config)
    for line in lines:
        print("  " + line)


def dtype_name(model: Any) -> str:
    """Return the name of the weights' dtype, as "float32"."""
    return str(model.log_scale.dtype).removeprefix("torch.")


def describe_model(config: CLIPConfig) -> list[str]:
    """Return a line for each tower and one for the model, with the numbers of parameters."""
    import torch

    from miniclip.inference.model import CLIPModel

    with torch.device("meta"):  # no memory for the weights
        model = CLIPModel(config)
    text = config.text
    return [
        f"image tower  {count_parameters(model.image):>12,} parameters: {_image_tower(config.image)}",
        f"text tower   {count_parameters(model.text):>12,} parameters: {_tower(text)}, context {text.context_length}, "
        f"vocabulary {text.vocab_size:,}, "
        f"{'causal' if text.causal else 'bidirectional'}, pooled at its {text.pooling} token, {text.activation}",
        f"total        {count_parameters(model):>12,} parameters; embeddings of {config.embed_dim}",
    ]


def _image_tower(image: ImageConfig | OtherImageConfig) -> str:
    if not isinstance(image, ImageConfig):
        return f"{image.label}, {image.image_size} px"
    token = " and a class token" if image.class_token else ""
    return (
        f"{_tower(image)}, {image.image_size} px, {image.patches} patches of {image.patch_size} px{token}, pooled by "
        f"{image.pooling}, {image.activation}"
    )


def _tower(config: Any) -> str:
    return f"{config.layers} layers, width {config.width}, {config.heads} heads"


def count_parameters(module: Any) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
