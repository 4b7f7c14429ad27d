"""Loading of a model by name: a fresh preset, or a checkpoint on disk or on the Hub in any known layout."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch

from miniclip.checkpoints.files import (
    NOT_WEIGHTS,
    RUN_CHECKPOINTS,
    TRAINER_CHECKPOINT,
    WEIGHTS_ENDINGS,
    best_weights,
    checkpoint_folder,
    files_to_download,
    refuse_adapter,
)
from miniclip.checkpoints.given_config import given_plan
from miniclip.checkpoints.reading import CheckpointReader
from miniclip.config import PRESETS, CLIPConfig, ImageConfig, preset
from miniclip.finetuning.adapters import merge_adapter
from miniclip.hub.download import fetch
from miniclip.hub.registry import PRETRAINED, meant, suggestion
from miniclip.hub.text_tower import with_context
from miniclip.hub.tokenizers import attach_tokenizer, open_tokenizer
from miniclip.inference.model import CLIPModel
from miniclip.runtime.devices import select_device
from miniclip.runtime.precision import DtypeName, dtype_named
from miniclip.utils.checks import near_path
from miniclip.utils.items import describe
from miniclip.utils.option_names import option

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
# before a repository: open_clip's and huggingface_hub's prefixes, and the address of its page
HUB_PREFIX = re.compile(r"(hf-hub:|hf://|https?://(www\.)?(huggingface\.co|hf\.co)/)", re.IGNORECASE)
LOCAL_PREFIX = "local-dir:"  # open_clip's, of a directory
OPENAI_NAME = re.compile(r"vit-\w+/\d+", re.IGNORECASE)  # ViT-B/32 is not a repository
URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
MAX_LISTED_FILES = 8
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """Options of `load`, which documents them."""

    device: torch.device
    dtype: torch.dtype | None
    tokenizer: str | Path | TextTokenizer | None
    image_size: int | None
    context_length: int | None
    config: str | Path | CLIPConfig | None
    revision: str | None
    cache_dir: str | Path | None
    subfolder: str | None
    prefix: str | None
    adapter: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("subfolder", "prefix"):
            if not isinstance(value := getattr(self, name), str | None):
                raise TypeError(f"{name}: found {describe(value)}; expected a string")


def load(
    name: str | Path,
    *,
    pretrained: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | DtypeName | None = None,
    tokenizer: str | Path | TextTokenizer | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
    config: str | Path | CLIPConfig | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str | None = None,
    prefix: str | None = None,
    adapter: str | Path | None = None,
) -> CLIPModel:
    """Load a model.

    Args:
        name: a name of `list_models`; a repository on the Hub, `org/name`; a run directory, of which `best/` or else
            `last/` is loaded; a checkpoint directory or a file of weights. The layout (miniclip's, OpenAI's,
            open_clip's, or that of transformers' CLIP and SigLIP) is detected from the files.
        pretrained: if False, build the preset with fresh weights, drawn from torch's global generator.
        device: device of the weights; None means the CPU.
        dtype: dtype of the weights, or its name. None keeps that of the file, except that mixed dtypes, and float16
            on the CPU, become float32. "auto" chooses bfloat16 or float32 for the device and logs the choice.
        tokenizer: object or path that replaces the checkpoint's tokenizer. The text tower of a fresh model is
            adapted to its end token and vocabulary size.
        image_size: pixels on a side, in place of the checkpoint's; the position embeddings are resized.
        context_length: tokens of a caption, in place of the checkpoint's; the first 20 position embeddings are kept
            and the others are stretched, as in Long-CLIP (77 to 248).
        config: configuration of weights that have no settings beside them: a `CLIPConfig`; a name of a preset, such as
            "vit_b_32" (QuickGELU), or of open_clip, "ViT-B-32" (GELU); or the path of a configuration file.
        revision: branch, tag or commit of a repository.
        cache_dir: folder for downloads; None means the cache of huggingface_hub.
        subfolder: folder of the checkpoint inside the directory or repository.
        prefix: start of the names of the model's weights, such as `model.`, if the file holds several models.
        adapter: directory of a LoRA adapter that was trained on these weights, or of its run; it is merged into them.

    Returns:
        The model, in evaluation mode. If the checkpoint has no tokenizer, it is fetched when a text is first encoded.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: unknown preset or dtype, or a tokenizer, image size or context length that does not fit the model.
        FileNotFoundError: no such checkpoint, on disk or on the Hub.
        ConnectionError: the checkpoint is not in the cache, and the Hub cannot be reached.
        CheckpointError: the checkpoint is damaged or of an unknown kind, its weights do not fit its settings, or the
            adapter belongs to another base.
    """
    if not isinstance(pretrained, bool):
        raise TypeError(
            f"pretrained is {pretrained!r}; expected True or False: choose the weights by name, as in "
            "miniclip.load('vit_b_32_laion2b')"
        )
    target = select_device("cpu" if device is None else device)
    chosen = _dtype(dtype, target)
    sizes = image_size, context_length
    options = LoadOptions(target, chosen, tokenizer, *sizes, config, revision, cache_dir, subfolder, prefix, adapter)
    return _load_checkpoint(_require_name(name), options) if pretrained else _load_preset(_require_name(name), options)


def fresh(config: CLIPConfig, tokenizer: TextTokenizer | None = None) -> CLIPModel:
    """Return a model with fresh weights, its text tower adapted to the tokenizer.

    Raises:
        ValueError: the image tower has no recipe for fresh weights.
    """
    if not isinstance(config.image, ImageConfig):
        raise ValueError(  # noqa: TRY004 (of a configuration)
            f"the image tower is {config.image.label}, which miniclip trains from pretrained weights only: load a "
            "checkpoint, or choose a preset of miniclip.list_models()"
        )
    if tokenizer is not None:
        vocab_size = max(config.text.vocab_size, tokenizer.vocab_size)
        end_id = config.text.end_id if tokenizer.end_id is None else tokenizer.end_id
        config = config.replace_text(vocab_size=vocab_size, end_id=end_id)
    return CLIPModel(config, tokenizer).float().initialise()  # not torch's default dtype, as of a checkpoint


def find_checkpoint(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str | None = None,
) -> Path:
    """Return the checkpoint directory or file of a name, downloading it if it is on the Hub.

    Args:
        name: see `load`.
        revision: branch, tag or commit of a repository.
        cache_dir: folder for downloads; None means the cache of huggingface_hub.
        subfolder: folder of the checkpoint inside the directory or repository.

    Raises:
        FileNotFoundError: no such checkpoint.
        ConnectionError: the checkpoint is not in the cache, and the Hub cannot be reached.
        ValueError: a revision of a local path, or a preset without published weights.
    """
    path = Path(str(name).removeprefix(LOCAL_PREFIX)).expanduser()
    if subfolder is not None:
        _require_inside(subfolder)
        if path.exists() and not (path / subfolder).is_dir():
            raise FileNotFoundError(f"{path}: no folder {subfolder} in it")
        path = path / subfolder if path.exists() else path
    local = _local_checkpoint(path)
    if local is not None:
        if revision is not None:
            raise ValueError(f"{path} is a local path and has no revisions: remove {option('revision', revision)}")
        return local
    if path.is_dir():
        raise FileNotFoundError(_not_found(path))
    if str(name).startswith(LOCAL_PREFIX):
        raise FileNotFoundError(f"{path}: no such file or directory")
    return _download_checkpoint(str(name), revision, cache_dir, subfolder or "")


def _load_preset(name: str, options: LoadOptions) -> CLIPModel:
    for_weights = (options.config, options.revision, options.subfolder, options.prefix, options.adapter)
    if any(option is not None for option in for_weights):
        raise ValueError(
            "pretrained=False builds a preset with fresh weights: remove config, revision, subfolder, prefix and "
            "adapter"
        )
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{suggestion(name, PRESETS)}")
    config = preset(name)
    if options.image_size is not None:
        config = config.replace_image(image_size=options.image_size)
    if options.context_length is not None:
        config = config.replace_text(context_length=options.context_length)
    with torch.device("cpu"):  # not torch's default device
        model = fresh(config, open_tokenizer(options.tokenizer))
    return model.to(device=options.device, dtype=options.dtype).eval()


def _load_checkpoint(name: str | Path, options: LoadOptions) -> CLIPModel:
    path = find_checkpoint(name, revision=options.revision, cache_dir=options.cache_dir, subfolder=options.subfolder)
    given = None if options.config is None else given_plan(options.config)
    checkpoint = CheckpointReader(path, given, options.prefix)
    dtype = options.dtype if options.adapter is None else None  # an adapter belongs to weights that are not rounded
    model = checkpoint.model(dtype, options.image_size, keep_half=options.device.type != "cpu")
    if options.context_length is not None:
        model = with_context(model, options.context_length)
    attach_tokenizer(model, checkpoint, options.tokenizer, options.cache_dir)
    local = Path(name).expanduser()
    model.source = str(local.absolute() if local.exists() else name)
    if options.adapter is not None:
        merge_adapter(model, options.adapter)
        model, model.source = model.to(dtype=options.dtype), None  # the name gives the base
    return model.to(device=options.device).eval()


def _require_name(name: object) -> str:
    """Return the name of a model or a path as a string.

    Raises:
        TypeError: it is neither.
        ValueError: it is empty.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"name: found {describe(name)}; expected a name of miniclip.list_models(), org/name, or a path")
    if not str(name):
        raise ValueError("name: found an empty string; miniclip.list_models() lists the names")
    return str(name)


def _dtype(chosen: torch.dtype | str | None, device: torch.device) -> torch.dtype | None:
    """Return a dtype that weights can have, by its name; the choice of "auto" is logged, because embeddings differ.

    Raises:
        ValueError: weights cannot have this dtype.
        TypeError: it is not a dtype.
    """
    expected = f"expected {', '.join(map(str, WEIGHT_DTYPES))}, a name of these, or 'auto'"
    if isinstance(chosen, torch.dtype) and chosen not in WEIGHT_DTYPES:
        raise ValueError(f"dtype {chosen}: {expected}")
    if chosen is None or isinstance(chosen, torch.dtype):
        return chosen
    if not isinstance(chosen, str):
        raise TypeError(f"dtype: found {describe(chosen)}; {expected}")
    dtype = dtype_named(chosen, device)
    if chosen == "auto":
        logger.warning("dtype='auto': weights in %s on %s", str(dtype).removeprefix("torch."), device.type)
    return dtype


def _require_inside(subfolder: str) -> None:
    """Raise ValueError unless a path stays inside the folder that it is relative to."""
    path = PurePosixPath(subfolder)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise ValueError(f"subfolder is {subfolder!r}; expected a folder inside the directory or repository")


def _local_checkpoint(path: Path) -> Path | None:
    """Return the file at a path, or the folder of the checkpoint in a directory; None if there is none."""
    if not path.is_dir():
        return path if os.path.lexists(path) else None

    def is_checkpoint(folder: str) -> bool:
        place = path / folder
        names = _names(place) if place.is_dir() else set()
        refuse_adapter(str(place), names)
        return best_weights(names, str(place)) is not None

    folder = checkpoint_folder(_names(path), is_checkpoint)
    if folder is None:
        return None
    if TRAINER_CHECKPOINT.fullmatch(folder):
        warnings.warn(f"{path}: loaded {folder}, the last of its checkpoints", UserWarning, stacklevel=5)
    return path / folder


def _not_found(path: Path) -> str:
    """Describe a directory without a checkpoint."""
    names = sorted(_names(path))
    folders = [name for name in names if (path / name).is_dir() and best_weights(_names(path / name), str(path / name))]
    files = [name for name in names if name.endswith(WEIGHTS_ENDINGS) and not NOT_WEIGHTS.fullmatch(name)]
    hint = f"; its folders {', '.join(folders)} hold weights: load one of them" if folders else ""
    if files:
        hint += (
            f"; {', '.join(files[:MAX_LISTED_FILES])} have no configuration: load one with {option('config', 'NAME')}"
        )
    return (
        f"{path}: no checkpoint in this directory, only {', '.join(names[:MAX_LISTED_FILES]) or 'no files'}{hint}; "
        "expected config.json and model.safetensors, another library's files in its own layout, or a run directory "
        f"with {' or '.join(RUN_CHECKPOINTS)}"
    )


def _download_checkpoint(name: str, revision: str | None, cache_dir: str | Path | None, subfolder: str) -> Path:
    is_pretrained = name in PRETRAINED
    if name in PRESETS and not is_pretrained:
        raise ValueError(f"{name!r} has no published weights; {option('pretrained', False)} gives fresh ones")
    repo = PRETRAINED[name].repo if is_pretrained else HUB_PREFIX.sub("", name, count=1).rstrip("/")
    if URL.match(repo):
        raise FileNotFoundError(f"{name}: is a URL; pass a repository of the Hub as org/name, or download the file")
    if not REPOSITORY.fullmatch(repo) or OPENAI_NAME.fullmatch(repo) or repo.startswith("."):
        hint = _near_path(name) or suggestion(repo, {**PRESETS, **PRETRAINED})
        raise FileNotFoundError(f"{name}: neither a path nor the name of a model{hint}")
    try:
        folder = fetch(repo, functools.partial(_needed_files, repo, subfolder), revision=revision, cache_dir=cache_dir)
    except (ConnectionError, FileNotFoundError) as error:
        if is_pretrained:
            raise
        hint = suggestion(repo, PRETRAINED) if meant(repo, PRETRAINED) else _near_path(name)
        raise type(error)(f"{name} is not a local path; as a repository on the Hub: {error}{hint}") from None
    return _local_checkpoint(folder / subfolder) or folder / subfolder


def _near_path(name: str) -> str:
    """Return "; did you mean …?" with the path that a missing one most likely stands for, or ""."""
    near = near_path(Path(name))
    return f"; did you mean {near!r}?" if near else ""


def _needed_files(repo: str, subfolder: str, names: list[str]) -> list[str]:
    """Return the files of a repository that its checkpoint needs, in the subfolder or the usual folder."""

    def inside(folder: str) -> dict[str, str]:
        start = "".join(f"{part}/" for part in (subfolder.strip("/"), folder) if part)
        return {name.removeprefix(start): name for name in names if name.startswith(start)}

    def is_checkpoint(folder: str) -> bool:
        refuse_adapter(repo, inside(folder))
        return bool(files_to_download(inside(folder), repo))

    folder = checkpoint_folder({name.partition("/")[0] for name in inside("")}, is_checkpoint)
    if folder is None:
        place = f"the subfolder {subfolder} of this repository" if subfolder else "this repository"
        raise FileNotFoundError(
            f"{repo}: no checkpoint in {place} that miniclip can read; its files: "
            f"{', '.join(sorted(inside('') or names)[:MAX_LISTED_FILES])}"
        )
    files = inside(folder)
    return [files[name] for name in files_to_download(files, repo)]


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}
