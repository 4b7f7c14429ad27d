"""Opening a checkpoint, whoever wrote it: which file has the weights, whose layout it is, what model that makes.

The layout shows in the names of the weights, the architecture in the settings beside them (OpenAI's: in the shapes).
No file's or directory's name decides about a model's numbers. The model is built without memory, and given its weights
from the file's map one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from miniclip.checkpoints.conversion import Source, convert
from miniclip.checkpoints.formats import open_clip, openai, transformers
from miniclip.checkpoints.formats.pickles import read_pickled
from miniclip.checkpoints.formats.safetensors import INDEX, open_tensors
from miniclip.checkpoints.key_maps import OPENAI_MARKS, Row
from miniclip.checkpoints.layout import Plan
from miniclip.checkpoints.native import CONFIG, WEIGHTS, parse_config, read_json
from miniclip.checkpoints.operations import SAME, Shape, positions
from miniclip.config import CLIPConfig
from miniclip.errors import CheckpointError
from miniclip.inference.model import CLIPModel

# In this order: safetensors before pickles, and a project's own settings before those of a conversion of its weights.
CANDIDATES = (
    (open_clip.WEIGHTS, open_clip.CONFIG),
    ("open_clip_pytorch_model.safetensors", open_clip.CONFIG),
    (WEIGHTS, CONFIG),
    (f"model{INDEX}", CONFIG),
    (WEIGHTS, open_clip.CONFIG),
    ("open_clip_pytorch_model.bin", open_clip.CONFIG),
    ("open_clip_pytorch_model.pt", open_clip.CONFIG),
    ("pytorch_model.bin", CONFIG),
    (openai.WEIGHTS, openai.WEIGHTS),  # which needs no settings
)
BESIDE = (  # what else is read in a directory, where it is there
    CONFIG, open_clip.CONFIG, transformers.PREPROCESSOR, transformers.PROCESSOR, "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
)  # fmt: skip
OURS, OPENAI, TIMM, TRANSFORMERS = (  # a key that only this layout has
    "image.patches.weight",
    "visual.conv1.weight",
    "visual.trunk.patch_embed.proj.weight",
    "vision_model.embeddings.patch_embedding.weight",
)


class InMemoryTensors:
    """Weights that are in memory already, as a source for `convert`."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], archive: bool = False) -> None:
        self.path, self.archive = path, archive
        self._tensors = dict(tensors)
        self.shapes: dict[str, Shape] = {key: tuple(value.shape) for key, value in tensors.items()}
        self.dtypes = {key: value.dtype for key, value in tensors.items()}

    def take(self, key: str) -> Tensor:
        """The tensor."""
        return self._tensors[key]

    def copy_into(self, key: str, out: Tensor) -> None:
        """Copy the tensor."""
        out.copy_(self._tensors[key].reshape(out.shape))

    def take_joined(self, keys: Sequence[str]) -> Tensor | None:
        """None: they are not in a file."""
        return None

    def release(self, key: str) -> None:
        """Let go of the tensor."""
        del self._tensors[key]


class Weights(Source, Protocol):
    """A source that knows the precision of its tensors."""

    dtypes: dict[str, torch.dtype]


class CheckpointReader:
    """A checkpoint that is about to be a model: its weights, what to do with them, and its tokenizer's options."""

    def __init__(self, path: Path, config: CLIPConfig | None = None) -> None:
        """Find the weights at a path, a file or a directory, and what model they are (or are said to be: `config`)."""
        self.weights_path = find_weights(path)
        self.directory = self.weights_path.parent
        self.weights = open_weights(self.weights_path)
        self.own = OURS in self.weights.shapes
        try:
            self.plan = _plan(self.weights, self.directory, config)
        except (TypeError, ValueError) as error:
            raise error if isinstance(error, CheckpointError) else CheckpointError(f"{path}: {error}") from None

    def model(
        self, dtype: torch.dtype | None = None, image_size: int | None = None, keep_half: bool = False
    ) -> CLIPModel:
        """The model, on the CPU, without a tokenizer.

        Args:
            dtype: the weights' precision; None: as in the file, or float32 where it mixes several.
            image_size: another size of pictures, to which the position embeddings are resized.
            keep_half: with dtype None, also keep float16, for which processors have no fast products.

        Raises:
            CheckpointError: the weights do not fit the settings.
            ValueError: the tower cannot have this image size.
        """
        config = self.plan.config
        if image_size is not None:
            config = config.replace_image(image_size=image_size)
        with torch.device("meta"):  # no memory and no time for weights that the file replaces
            model = CLIPModel(config)
        dtype = dtype or common_dtype(self.weights.dtypes.values(), widened=torch.float16 if not keep_half else None)
        fill(model, self.weights, self.plan.rows, dtype)
        return model


def find_weights(path: Path) -> Path:
    """The file of weights that a path stands for: itself, or the best one of a directory.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.is_dir():
        if path.exists():
            return path
        raise FileNotFoundError(f"{path}: there is no such file or directory")
    names = {file.name for file in path.iterdir() if file.is_file()}
    found = best_weights(names)
    if found is None:
        expected = ", ".join(f"{weights} with {settings}" for weights, settings in CANDIDATES[:-1])
        raise FileNotFoundError(f"{path}: no checkpoint in it; expected one of: {expected}")
    return path / found


def best_weights(names: Collection[str]) -> str | None:
    """The file of weights to read, of a directory's names."""
    return next((weights for weights, settings in CANDIDATES if weights in names and settings in names), None)


def needed(names: list[str]) -> list[str]:
    """The files of a repository that opening it takes; nothing where there is no checkpoint in it."""
    weights = best_weights(names)
    if weights is None:
        return []
    shards = [name for name in names if weights.endswith(INDEX) and _is_shard(name, weights)]
    return [weights, *shards, *(name for name in names if name in BESIDE)]


def _is_shard(name: str, index: str) -> bool:
    stem = index.removesuffix(INDEX)
    return name.startswith(f"{stem}-") and name.endswith(".safetensors")


def open_weights(path: Path) -> Weights:
    """The weights in a file; how it begins says whether it is one of safetensors, not its name.

    Raises:
        CheckpointError: it is damaged, or would run code.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if path.name.endswith(INDEX) or start[8:9] == b"{" or path.suffix == ".safetensors":
        return open_tensors(path)
    pickled = read_pickled(path)
    return InMemoryTensors(path, pickled.tensors, pickled.archive)


def common_dtype(dtypes: Iterable[torch.dtype], widened: torch.dtype | None = None) -> torch.dtype | None:
    """None, to keep them so, where all floating-point weights have one precision, and not `widened`; else float32."""
    found = {dtype for dtype in dtypes if dtype.is_floating_point}
    return None if len(found) == 1 and found != {widened} else torch.float32


def fill(model: CLIPModel, source: Source, rows: Iterable[Row], dtype: torch.dtype | None = None) -> None:
    """Give a model its weights, every one.

    Raises:
        CheckpointError: keys are missing, unknown, or of another shape; it names them.
    """
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(convert(source, rows, model.config, expected, dtype), assign=True)


def own_rows(keys: Iterable[str]) -> tuple[Row, ...]:
    """Our own layout: every parameter under its name."""
    return tuple(Row(key, key, positions() if key == "image.positions" else SAME) for key in keys)


def _plan(weights: Weights, directory: Path, config: CLIPConfig | None) -> Plan:
    keys = weights.shapes
    if OURS in keys:
        return Plan(config or parse_config(directory / CONFIG, _beside(directory, CONFIG, weights)), own_rows(keys))
    if OPENAI in keys or TIMM in keys:
        return _open_clip_or_openai(weights, directory, config)
    if TRANSFORMERS in keys:
        if config is not None:
            return Plan(config, transformers.rows(config))
        processor = _json(directory / transformers.PREPROCESSOR) or _json(directory / transformers.PROCESSOR) or {}
        return transformers.plan(_beside(directory, CONFIG, weights), processor)
    some = ", ".join(sorted(keys)[:3])
    kind = "a ResNet's" if "visual.layer1.0.conv1.weight" in keys else "of a kind that miniclip does not know"
    raise CheckpointError(
        f"{weights.path}: the weights are {kind} ({some}, …); miniclip reads vision transformers' in OpenAI's, "
        "open_clip's and transformers' layout, and its own"
    )


def _open_clip_or_openai(weights: Weights, directory: Path, config: CLIPConfig | None) -> Plan:
    """The two have the same names; the settings beside the weights, or OpenAI's marks in them, say which it is."""
    if config is not None:
        return Plan(config, open_clip.rows(config, weights.shapes))
    settings = _json(directory / open_clip.CONFIG)
    if settings is not None:
        return open_clip.plan(settings, weights.shapes)
    if getattr(weights, "archive", False) or _is_openais(weights):
        return openai.plan(weights.shapes)
    raise CheckpointError(
        f"{weights.path}: open_clip's weights without {open_clip.CONFIG} beside them. The activation and the number of "
        "heads are not in the weights, and another activation gives wrong numbers: put that file beside them, or say "
        "what they are, as in config='vit_b_32' (with QuickGELU) or config=CLIPConfig(…)"
    )


def _is_openais(weights: Weights) -> bool:
    """Whether a state dict came out of OpenAI's own model: by its three numbers, or its mixture of precisions."""
    marks = {row.theirs for row in OPENAI_MARKS} <= weights.shapes.keys()
    halves = {weights.dtypes[OPENAI], weights.dtypes.get("visual.ln_pre.weight")} == {torch.float16, torch.float32}
    return marks or halves


def _json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _beside(directory: Path, name: str, weights: Weights) -> dict[str, Any]:
    values = _json(directory / name)
    if values is None:
        raise FileNotFoundError(f"{weights.path}: no {name} beside it, which says what model the weights are")
    return values
