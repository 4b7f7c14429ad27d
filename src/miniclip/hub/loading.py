"""Models by name: fresh presets, checkpoints on disk whoever wrote them, checkpoints on the Hub; saving and pushing."""

from __future__ import annotations

import functools
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from miniclip.checkpoints.export import LAYOUTS, export
from miniclip.checkpoints.formats.open_clip import model_config
from miniclip.checkpoints.native import parse_config, read_json, save_checkpoint
from miniclip.checkpoints.reading import CheckpointReader, best_weights, needed
from miniclip.config import PRESETS, CLIPConfig, preset
from miniclip.errors import CheckpointError
from miniclip.hub.model_card import model_card
from miniclip.hub.registry import OPENAI_REPO, PRETRAINED
from miniclip.hub.remote import fetch, push
from miniclip.models.clip import CLIP
from miniclip.runtime.precision import dtype_named
from miniclip.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from miniclip.utils.checks import did_you_mean

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

RUN_CHECKPOINTS = ("best", "last")  # of a run directory, the first that is there
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
OPENAI_VOCABULARY = 49408
READ_AT_ONCE = 8 << 20  # bytes of a tokenizer.json; larger ones take seconds, and pictures can do without


def list_models() -> dict[str, str]:
    """The names that `load` knows, with what each one is: presets, and checkpoints with their repository on the Hub."""
    presets = {name: description for name, (description, _) in PRESETS.items()}
    return presets | {name: f"{description}; {repo}" for name, (repo, description) in PRETRAINED.items()}


def load(
    name: str | Path,
    *,
    pretrained: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    tokenizer: str | Path | TextTokenizer | None = None,
    image_size: int | None = None,
    config: str | Path | CLIPConfig | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> CLIP:
    """Open a model.

    Args:
        name: one of `list_models`; a repository on the Hub, `org/name`; a run directory (its `best/`, else its
            `last/`); a checkpoint's directory or its file of weights. Layouts: ours, OpenAI's, open_clip's,
            transformers' CLIP and SigLIP; what is in the files says which.
        pretrained: False: a preset's architecture with fresh weights, drawn from torch's global generator.
        device: where the weights go; None: the CPU.
        dtype: their precision; None: as in the file, but float32 where it mixes several, and in place of float16 on
            the CPU, which has no fast products of it. "auto": bfloat16 where the device multiplies faster in it, as a
            trial of some milliseconds finds on a CPU, else float32; a line on stderr says which. Or a name, such as
            "bfloat16".
        tokenizer: in place of the checkpoint's; an object, or a path. A fresh model's text tower takes its end
            token, and more rows of embeddings where the preset has too few for it.
        image_size: pixels on a side, in place of the checkpoint's; the position embeddings are resized.
        config: what bare weights are, with no settings beside them: a configuration, a preset's name, or the path of
            a `config.json` of ours or an `open_clip_config.json`.
        revision: of a repository: a branch, a tag or a commit.
        cache_dir: for downloads; None: the cache of huggingface_hub.

    Returns:
        The model, in evaluation mode. A checkpoint that came without a tokenizer fetches it when text is first encoded.

    Raises:
        ValueError: no preset or dtype has this name; the nearest is named. Or the tokenizer or image size does not fit.
        FileNotFoundError: there is no checkpoint, here or on the Hub.
        ConnectionError: it is on the Hub, not in the cache, and there is no network.
        CheckpointError: the checkpoint is damaged, is none that miniclip has the parts for, or its weights do not fit.
    """
    if isinstance(dtype, str):
        dtype = _dtype(dtype, torch.device(device or "cpu"))
    if pretrained:
        return _opened(name, device, dtype, tokenizer, image_size, config, revision, cache_dir)
    if config is not None or revision is not None:
        raise ValueError("pretrained=False draws fresh weights for a preset: config and revision are of checkpoints")
    architecture = preset(str(name))
    if image_size is not None:
        architecture = architecture.replace_image(image_size=image_size)
    return fresh(architecture, _tokenizer(tokenizer)).to(device=device, dtype=dtype).eval()


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """A type by its name; what "auto" has become is said, since embeddings differ with it."""
    dtype = dtype_named(name, device)
    if name == "auto":
        short = str(dtype).removeprefix("torch.")
        print(f"miniclip: weights in {short}, by dtype='auto' on {device.type}", file=sys.stderr)
    return dtype


def fresh(config: CLIPConfig, tokenizer: TextTokenizer | None = None) -> CLIP:
    """A model with fresh weights, its text tower made to fit the tokenizer."""
    if tokenizer is not None:
        rows = max(config.text.vocab_size, tokenizer.vocab_size)
        end = config.text.end_id if tokenizer.end_id is None else tokenizer.end_id
        config = config.replace_text(vocab_size=rows, end_id=end)
    return CLIP(config, tokenizer).initialise()


def _opened(
    name: str | Path,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    tokenizer: str | Path | TextTokenizer | None,
    image_size: int | None,
    config: str | Path | CLIPConfig | None,
    revision: str | None,
    cache_dir: str | Path | None,
) -> CLIP:
    path = find_checkpoint(name, revision=revision, cache_dir=cache_dir)
    opened = CheckpointReader(path, _config(config))
    model = opened.model(dtype, image_size, keep_half=torch.device(device or "cpu").type != "cpu")
    _give_tokenizer(model, opened, tokenizer, cache_dir)
    return model.to(device=device).eval()


def _config(config: str | Path | CLIPConfig | None) -> CLIPConfig | None:
    """A configuration by name or path, or as it is."""
    if config is None or isinstance(config, CLIPConfig):
        return config
    path = Path(config)
    if not path.is_file():
        return preset(str(config))
    values = read_json(path)
    if "model_cfg" not in values:
        return parse_config(path, values)
    try:
        return model_config(values["model_cfg"], values.get("preprocess_cfg", {}))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _tokenizer(tokenizer: str | Path | TextTokenizer | None) -> TextTokenizer | None:
    return load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer


def _give_tokenizer(
    model: CLIP, opened: CheckpointReader, given: str | Path | TextTokenizer | None, cache_dir: str | Path | None
) -> None:
    """The tokenizer that is given, or the one beside the weights, or a way to get it when it is first needed."""
    options = dict(opened.plan.tokenizer)
    found = find_tokenizer(opened.directory)
    if given is not None:
        model.tokenizer = _tokenizer(given)
    elif found is not None:
        model.tokenizer_source = functools.partial(load_tokenizer, found, **options)
        if opened.own and found.stat().st_size <= READ_AT_ONCE:
            _ = model.tokenizer  # a damaged one is found now
    elif repo := _tokenizer_repo(model, opened):
        model.tokenizer_source = functools.partial(_fetch_tokenizer, repo, options, opened.weights_path, cache_dir)


def _tokenizer_repo(model: CLIP, opened: CheckpointReader) -> str | None:
    """Where the tokenizer of a checkpoint without one is: where its settings say, or at OpenAI's."""
    if opened.own:
        return None  # it was saved without
    text = model.config.text
    openais = text.vocab_size == OPENAI_VOCABULARY and text.end_id == OPENAI_VOCABULARY - 1
    return opened.plan.tokenizer_repo or (OPENAI_REPO if openais else None)


def _fetch_tokenizer(repo: str, options: dict[str, Any], weights: Path, cache_dir: str | Path | None) -> TextTokenizer:
    try:
        folder = fetch(repo, _tokenizer_files, cache_dir=cache_dir)
    except (ConnectionError, FileNotFoundError, PermissionError) as error:
        raise type(error)(
            f"{weights} came without a tokenizer, and that of {repo} could not be fetched: {error}. Or pass one, as in "
            "miniclip.load(…, tokenizer='tokenizer.json'); pictures and token ids need none"
        ) from None
    return load_tokenizer(folder, **options)


def _tokenizer_files(names: list[str]) -> list[str]:
    wanted = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    slow = () if "tokenizer.json" in names else ("vocab.json", "merges.txt")
    return [name for name in names if name in wanted + slow]


def find_checkpoint(name: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The directory or file that a name stands for; from the Hub, it is fetched.

    Raises:
        FileNotFoundError: there is none.
        ConnectionError: it is on the Hub, not in the cache, and there is no network.
        ValueError: a revision of something that is no repository; a preset that has no weights.
    """
    path = Path(name)
    candidates = [path, *(path / part for part in RUN_CHECKPOINTS)]
    found = next((p for p in candidates if p.is_dir() and best_weights(_names(p))), None)
    if found is None and path.is_file():
        found = path
    if found is not None:
        if revision is not None:
            raise ValueError(f"{path} is here on disk; revision={revision!r} is of a repository on the Hub")
        return found
    if path.is_dir():
        raise FileNotFoundError(
            f"{path}: no checkpoint there, only {', '.join(sorted(_names(path))[:8]) or 'nothing'}; expected "
            "config.json and model.safetensors, another project's files in its own layout, or a run with "
            f"{' or '.join(RUN_CHECKPOINTS)}"
        )
    repo = PRETRAINED[str(name)][0] if str(name) in PRETRAINED else str(name)
    if str(name) in PRESETS and str(name) not in PRETRAINED:
        raise ValueError(f"{name!r} is an architecture that nobody has published weights for: pass pretrained=False")
    if not REPOSITORY.fullmatch(repo):
        known = {**PRESETS, **PRETRAINED}
        hint = did_you_mean(str(name), known, listed_by="miniclip.list_models()")
        raise FileNotFoundError(f"{name}: no such path, and no model of that name{hint}")
    try:
        return fetch(repo, functools.partial(_needed, repo), revision=revision, cache_dir=cache_dir)
    except (ConnectionError, FileNotFoundError) as error:
        if str(name) in PRETRAINED:
            raise
        raise type(error)(f"{name} is no path here, and as a repository on the Hub: {error}") from None


def _needed(repo: str, names: list[str]) -> list[str]:
    files = needed(names)
    if not files:
        raise FileNotFoundError(
            f"{repo}: no checkpoint in this repository that miniclip reads; it has {', '.join(sorted(names)[:8])}"
        )
    return files


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def save(model: CLIP, path: str | Path) -> None:
    """Write a model with all that it needs: `model.safetensors`, `config.json`, `tokenizer.json`; `load` opens it.

    Args:
        model: the model.
        path: a directory, made where it is missing.
    """
    save_checkpoint(model, path)


def push_to_hub(
    model: CLIP,
    repo: str,
    *,
    layout: str = "miniclip",
    metrics: Mapping[str, Any] | None = None,
    private: bool = False,
    message: str = "Upload with miniclip",
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a model to the Hub, with a card that says what it is, how to use it, and what was measured.

    Args:
        model: the model.
        repo: `org/name`; made where it is missing.
        layout: "miniclip", or as in `export`.
        metrics: for the card, as `evaluation.retrieval` gives them.
        private: make a new repository private.
        message: of the commit.
        revision: a branch; None: `main`.
        token: None: the one of `hf auth login`, or HF_TOKEN.

    Returns:
        The address of the repository's page.

    Raises:
        PermissionError: not logged in, or not with a token that may write there.
        ConnectionError: there is no network.
        ValueError: the layout has no place for this model.
    """
    if layout not in ("miniclip", *LAYOUTS):
        raise ValueError(f"unknown layout {layout!r}{did_you_mean(layout, ('miniclip', *LAYOUTS))}")
    with tempfile.TemporaryDirectory() as folder:
        if layout == "miniclip":
            save_checkpoint(model, folder)
        else:
            export(model, folder, layout=layout, repo=repo)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        card = model_card(repo, model.config.to_dict(), metrics, parameters=parameters)
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        return push(folder, repo, private=private, message=message, revision=revision, token=token)


__all__ = ["Tokenizer", "export", "fresh", "list_models", "load", "push_to_hub", "save"]
