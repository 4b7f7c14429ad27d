"""Opening a checkpoint of any layout.

The names of the weights show the layout. The architecture is in the configuration beside them, or in OpenAI's layout in
the shapes. Names of files and directories do not matter. The model is built without memory and takes its weights from
the mapped file one by one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from miniclip.checkpoints.conversion import convert
from miniclip.checkpoints.files import find_weights
from miniclip.checkpoints.foreign_config import OPENAI_VOCABULARY
from miniclip.checkpoints.formats import open_clip, openai, transformers
from miniclip.checkpoints.formats.pickle_shards import read_shards
from miniclip.checkpoints.formats.pickles import read_pickled
from miniclip.checkpoints.formats.safetensors import INDEX, open_tensors
from miniclip.checkpoints.key_maps import OPENAI_SIZES, Row, identity_rows
from miniclip.checkpoints.layouts import (
    NATIVE_KEY,
    OPENAI_KEY,
    TIMM_KEY,
    TRANSFORMERS_KEY,
    model_weights,
)
from miniclip.checkpoints.native import CONFIG, parse_config, read_json
from miniclip.checkpoints.plans import LoadPlan
from miniclip.checkpoints.weights import InMemoryWeights, Weights
from miniclip.config import CLIPConfig, ImageConfig
from miniclip.errors import CheckpointError
from miniclip.inference.image_towers import POSITIONS, fill_buffers
from miniclip.inference.model import CLIPModel
from miniclip.tower_config import STRIDE, ResNetConfig, TimmConfig
from miniclip.utils.files import open_regular
from miniclip.utils.formatting import one_line
from miniclip.utils.option_names import option

MAX_MESSAGE = 1000  # characters; names in a file can be long
MAX_SCALARS = {"log_scale": 80.0, "logit_bias": 1e30}  # above, the logits overflow float32


class CheckpointReader:
    """An opened checkpoint: its weights, the plan for reading them, and the directory with its tokenizer.

    Args:
        path: a file of weights or a directory.
        given: the configuration that the caller passes; None: from the files.
        prefix: before the names of the model's weights; None: found by the names.

    Raises:
        FileNotFoundError: the weights, or the configuration beside them, are missing.
        CheckpointError: a file is damaged, or miniclip does not support the model.
    """

    def __init__(self, path: Path, given: LoadPlan | None = None, prefix: str | None = None) -> None:
        self.weights_path = find_weights(path)
        self.directory = self.weights_path.parent
        self.weights = model_weights(open_weights(self.weights_path), prefix)
        self.is_native = NATIVE_KEY in self.weights.shapes
        try:
            self.plan = _load_plan(self.weights, self.directory, given)
        except (TypeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path}: {one_line(error, MAX_MESSAGE)}") from None

    def model(
        self, dtype: torch.dtype | None = None, image_size: int | None = None, keep_half: bool = False
    ) -> CLIPModel:
        """Build the model, on the CPU, without a tokenizer.

        Args:
            dtype: the weights' precision; None: as in the file, or float32 if it mixes several.
            image_size: pixels on a side, to which the position embeddings are resized; None: as in the file.
            keep_half: with dtype None, also keep float16, in which CPUs multiply slowly.

        Raises:
            CheckpointError: the weights do not fit the configuration.
            ValueError: the image tower cannot have this image size.
        """
        config = self.plan.config
        _require_layers(self.weights, config)
        if image_size is None:
            _require_grid(self.weights, self.plan)
        else:
            config = resized_config(config, image_size)
        with torch.device("meta"):
            model = CLIPModel(config)
        dtype = dtype or common_dtype(self.weights.dtypes.values(), widened=None if keep_half else torch.float16)
        assign_weights(model, self.weights, self.plan.rows, dtype)
        return model


def resized_config(config: CLIPConfig, image_size: int) -> CLIPConfig:
    """Return a configuration with another image size.

    Raises:
        ValueError: the image tower cannot have it.
    """
    if isinstance(config.image, TimmConfig) and image_size != config.image.image_size:
        raise ValueError(
            f"{option('image_size', image_size)}: the image tower is {config.image.label}, which loads only at its "
            f"own {config.image.image_size} pixels"
        )
    return config.replace_image(image_size=image_size)


def open_weights(path: Path) -> Weights:
    """Open a file of weights; its first bytes show the format.

    Raises:
        CheckpointError: the file is damaged, or would run code.
    """
    with open_regular(path) as file:
        head = file.read(16)
    index = INDEX.search(path.name)
    if index is not None and index[1] == "bin":
        return InMemoryWeights(path, read_shards(path))
    if index is not None or head[8:9] == b"{" or path.suffix == ".safetensors":
        return open_tensors(path)
    return InMemoryWeights(path, read_pickled(path).tensors)


def common_dtype(dtypes: Iterable[torch.dtype], widened: torch.dtype | None = None) -> torch.dtype | None:
    """Return None if all floating-point weights have one precision other than `widened` and float8, else float32."""
    floating = {dtype for dtype in dtypes if dtype.is_floating_point}
    kept = {torch.float64, torch.float32, torch.float16, torch.bfloat16} - {widened}  # others have no kernels
    return None if len(floating) == 1 and floating <= kept else torch.float32


def assign_weights(model: CLIPModel, weights: Weights, rows: Iterable[Row], dtype: torch.dtype | None = None) -> None:
    """Replace all parameters of a model by the weights of a file.

    Raises:
        CheckpointError: keys are missing, unknown, or of another shape; it names them. Or the scale is not a number.
    """
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    tensors = convert(weights, rows, model.config, expected, dtype)
    for name, limit in MAX_SCALARS.items():
        if name in tensors and not abs(number := float(tensors[name])) <= limit:
            raise CheckpointError(
                f"{weights.path}: {name} is {number}, expected a number within {limit:g}: the run that wrote it "
                "diverged, or the file is damaged: use an earlier checkpoint"
            )
    model.load_state_dict(tensors, assign=True)
    fill_buffers(model.image, model.config.embed_dim)


def _load_plan(weights: Weights, directory: Path, given: LoadPlan | None) -> LoadPlan:
    keys = weights.shapes
    if NATIVE_KEY in keys:
        plan = given or LoadPlan(parse_config(directory / CONFIG, _require_json(directory / CONFIG, weights)), ())
        return plan._replace(rows=identity_rows(keys))
    if OPENAI_KEY in keys or any(key.startswith(TIMM_KEY) for key in keys):
        return _open_clip_or_openai(weights, directory, given)
    if TRANSFORMERS_KEY in keys:
        if given is not None:
            return given._replace(rows=transformers.key_map(given.config))
        processor = _json(directory / transformers.PREPROCESSOR) or _json(directory / transformers.PROCESSOR) or {}
        return transformers.load_plan(_require_json(directory / CONFIG, weights), processor)
    some = one_line(", ".join(sorted(keys)[:3]))
    raise CheckpointError(
        f"{weights.path}: the weights are of an unknown layout ({some}, …); expected a CLIP in OpenAI's, open_clip's, "
        "transformers' or miniclip's layout"
    )


def _require_layers(weights: Weights, config: CLIPConfig) -> None:
    """Raise `CheckpointError` before a model is built, which takes hours, if it has more layers than there are tensors.

    The shapes are compared after that.
    """
    image = config.image
    image_layers = image.layers if isinstance(image, ImageConfig) else sum(getattr(image, "blocks", ()))
    for name, layers in (("image", image_layers), ("text", config.text.layers)):
        if layers > len(weights.shapes):
            raise CheckpointError(
                f"{weights.path}: the weights do not fit the configuration: {name}.layers is {layers:,}, and there are "
                f"{len(weights.shapes):,} tensors"
            )


def _require_grid(weights: Weights, plan: LoadPlan) -> None:
    """Raise `CheckpointError` if the file's settings have another image size than its position embeddings."""
    image = plan.config.image
    if isinstance(image, ImageConfig):
        parameter, rows, width = "image.positions", image.patches + image.class_token, image.width
    elif isinstance(image, ResNetConfig):
        parameter, rows, width = f"image.{POSITIONS}", (image.image_size // STRIDE) ** 2 + 1, image.features
    else:
        return  # timm's towers have their own sizes
    key = next((str(row.keys) for row in plan.rows if row.parameter == parameter), "")
    shape = (1, *weights.shapes.get(key, ()))
    if shape[-1:] == (width,) and shape[-2] != rows:
        raise CheckpointError(
            f"{weights.path}: the weights do not fit the configuration: {key} has the shape {shape[1:]}, expected "
            f"{rows} rows for images of {image.image_size} pixels: correct the configuration, or pass "
            f"image_size={image.image_size} to resize the embeddings"
        )


def _open_clip_or_openai(weights: Weights, directory: Path, given: LoadPlan | None) -> LoadPlan:
    """Return the plan for one of two layouts with the same names, told apart by the configuration or the tensors."""
    has_sizes = {row.keys for row in OPENAI_SIZES} <= weights.shapes.keys()
    if given is not None:
        if has_sizes and _activation(given.config) != "quickgelu":
            raise CheckpointError(
                f"{weights.path}: OpenAI's own weights, which have QuickGELU; the configuration has "
                f"{_activation(given.config)}: remove config="
            )
        options = given.tokenizer_options or ({"clean": "lower"} if _has_openais_vocabulary(given.config) else {})
        return given._replace(rows=open_clip.key_map(given.config, weights.shapes), tokenizer_options=options)
    open_clip_config = _json(directory / open_clip.CONFIG)
    if open_clip_config is not None:
        plan = open_clip.load_plan(open_clip_config, weights.shapes)
        if has_sizes and _activation(plan.config) != "quickgelu":
            raise CheckpointError(
                f"{weights.path}: OpenAI's own weights, which have QuickGELU; {open_clip.CONFIG} beside them has "
                f"{_activation(plan.config)}: move the weights to a directory of their own"
            )
        return plan
    if has_sizes or _has_openais_precisions(weights):
        return openai.load_plan(weights.shapes)
    raise CheckpointError(
        f"{weights.path}: open_clip's weights without {open_clip.CONFIG} beside them. The activation and the number of "
        "heads are not in the weights, and another activation gives wrong numbers: put that file beside them, or pass "
        f"the configuration: {option('config', 'ViT-B-32')} for weights that open_clip trained with --model ViT-B-32 "
        "(GELU), 'ViT-B-32-quickgelu' or miniclip's 'vit_b_32' for QuickGELU, or a CLIPConfig"
    )


def _has_openais_precisions(weights: Weights) -> bool:
    """Check for the mixture of precisions of OpenAI's state dict, which has lost its three integers."""
    norms = [weights.dtypes.get(key) for key in ("visual.ln_pre.weight", "visual.bn1.weight")]
    return weights.dtypes.get(OPENAI_KEY) == torch.float16 and torch.float32 in norms


def _activation(config: CLIPConfig) -> str:
    """Return the activation of a model with one; that of its text tower if the image tower is a ResNet."""
    return (config.image if isinstance(config.image, ImageConfig) else config.text).activation


def _has_openais_vocabulary(config: CLIPConfig) -> bool:
    return config.text.vocab_size == OPENAI_VOCABULARY and config.text.end_id == OPENAI_VOCABULARY - 1


def _json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if os.path.lexists(path) else None  # a dangling link is an error, not a missing file


def _require_json(path: Path, weights: Weights) -> Mapping[str, Any]:
    values = _json(path)
    if values is None:
        raise FileNotFoundError(f"{weights.path}: no {path.name} beside it, which describes the model")
    return values
