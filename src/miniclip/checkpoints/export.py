"""Export of a model to another project's layout: OpenAI's state dict, open_clip's directory, or transformers'.

The files are written to a temporary directory inside the target, read back, and compared with the model. Then they are
moved to the target one by one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from miniclip.checkpoints import LAYOUTS, Layout
from miniclip.checkpoints.conversion import invert
from miniclip.checkpoints.files import require_precedence
from miniclip.checkpoints.formats import open_clip_export, openai, transformers_export
from miniclip.checkpoints.formats.safetensors import write_tensors
from miniclip.checkpoints.native import TOKENIZER, available_tokenizer, full_state, read_json, unwrap_clip, write_json
from miniclip.checkpoints.plans import ExportPlan
from miniclip.checkpoints.reading import CheckpointReader
from miniclip.config import CLIPConfig
from miniclip.errors import CheckpointError
from miniclip.finetuning.lora import without_adapters
from miniclip.inference.model import CLIPModel
from miniclip.tokenizer.bpe import END
from miniclip.tokenizer.files import MAX_BYTES
from miniclip.utils.atomic import write_atomically
from miniclip.utils.checks import did_you_mean
from miniclip.utils.target import require_target

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

TOKENIZER_CONFIG = "tokenizer_config.json"
OTHER_TOKENIZER_FILES = ("special_tokens_map.json", "vocab.json", "merges.txt")  # other programs write them
REFUSED = "the export was checked and refused: {problem} after reading it back; please report this, with config.json"
MAX_ERROR = 1e-5  # largest difference of unit vectors: equal weights differ by the order of sums only
MAX_HALF_ERROR = 1e-2  # in float16 and bfloat16


def export(
    model: nn.Module, path: str | Path, *, layout: Layout, repo: str | None = None, overwrite: bool = False
) -> None:
    """Write a model in another project's layout, for that project's code to open.

    Args:
        model: a CLIP of any precision, which the file keeps. torch.compile and DataParallel may wrap the model or its
            parts.
        path: a directory, made if it is missing.
        layout: "openai" (a state dict, `model.pt`, for `clip.load`), "open_clip" (for `local-dir:`) or "transformers"
            (for `from_pretrained`: a CLIPModel, or a SiglipModel if images are pooled by attention).
        repo: the repository that the files will be pushed to, which open_clip's configuration names for its tokenizer.
        overwrite: allow a directory with files; those of the same names are replaced.

    Raises:
        TypeError: the model is not a CLIP.
        FileExistsError: the directory has files, or belongs to a run.
        ValueError: the other project cannot build the model; the message names the differences.
        CheckpointError: the files do not give the model's embeddings; nothing is left at the path.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}{did_you_mean(layout, LAYOUTS)}")
    clip = without_adapters(unwrap_clip(model))
    tokenizer = available_tokenizer(clip) if layout != "openai" or clip.tokenizer_source is None else None
    plan = _export_plan(clip.config, tokenizer, layout, repo)
    path = require_target(path, overwrite)
    require_precedence(path, {plan.weights_file, *plan.config_files})
    stale = {TOKENIZER, TOKENIZER_CONFIG, *OTHER_TOKENIZER_FILES}
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path, prefix=".export-") as temporary:
        folder = Path(temporary)
        _write(clip, tokenizer, folder, plan)
        _verify(clip, folder)
        for file in folder.iterdir():
            file.replace(path / file.name)
            stale.discard(file.name)
    for name in stale:  # the tokenizer of an earlier export would be used with these weights
        (path / name).unlink(missing_ok=True)


def _export_plan(config: CLIPConfig, tokenizer: TextTokenizer | None, layout: str, repo: str | None) -> ExportPlan:
    if layout == "transformers":
        return transformers_export.export_plan(config)
    is_openai = tokenizer is None or getattr(tokenizer, "is_openai", False)
    if layout == "open_clip":  # which contains OpenAI's vocabulary and reads any other from the files
        return open_clip_export.export_plan(config, None if is_openai else repo or TOKENIZER)
    if not is_openai:
        raise ValueError("OpenAI's code contains its own vocabulary, and this model's tokenizer has another one")
    return openai.export_plan(config)


def _write(model: CLIPModel, tokenizer: TextTokenizer | None, folder: Path, plan: ExportPlan) -> None:
    tensors = invert(plan.rows, model.config, full_state(model))
    if plan.weights_file.endswith(".safetensors"):
        write_tensors(folder / plan.weights_file, tensors, {"format": "pt"})
    else:
        tensors = {key: value.cpu().contiguous() for key, value in tensors.items()} | openai.size_tensors(model.config)
        write_atomically(folder / plan.weights_file, lambda temporary: torch.save(tensors, temporary))
    for name, values in plan.config_files.items():
        write_json(folder / name, values)
    if plan.config_files and tokenizer is not None:
        tokenizer.save(folder / TOKENIZER)
        write_json(folder / TOKENIZER_CONFIG, tokenizer_config(folder / TOKENIZER, model.config))


def tokenizer_config(file: Path, config: CLIPConfig) -> dict[str, Any]:
    """Return the settings that transformers, and open_clip through it, need beside a tokenizer.json.

    Raises:
        ValueError: the tokenizer has no padding token, and the model attends to the padding.
    """
    padding = read_json(file, MAX_BYTES).get("padding")
    if not padding and config.text.padding == "attended":
        raise ValueError(
            "this model attends to its padding, of the id 0, which is the token of '!' too: other libraries would read "
            "each '!' of a text as padding; export it without a tokenizer, model.tokenizer = None"
        )
    # an attention mask would hide padding that a model attends to; transformers 4 passes token_type_ids by default
    masked = config.text.padding == "masked"
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"] if masked else ["input_ids"],
        "model_max_length": config.text.context_length,
        "pad_token": padding["pad_token"] if padding else END,  # causal text ignores what follows its end
    }


@torch.no_grad()
def _verify(model: CLIPModel, folder: Path) -> None:
    """Raise `CheckpointError` unless the files give the model's weights, and its embeddings of noise and random ids.

    Equal weights are not enough, because the configuration changes the numbers too.
    """
    config, dtype = model.config, model.log_scale.dtype
    copy = CheckpointReader(folder).model(dtype).to(model.device).eval()
    copied = copy.state_dict()
    for key, value in full_state(model).items():
        if not torch.equal(value, copied[key]):
            raise CheckpointError(REFUSED.format(problem=f"{key} is not the model's"))
    generator = torch.Generator().manual_seed(0)
    size = config.image.image_size
    pixels = torch.randn(2, 3, size, size, generator=generator)
    tokens = torch.randint(0, config.text.vocab_size, (2, config.text.context_length), generator=generator)
    tokens[:, -1] = config.text.vocab_size - 1 if config.text.end_id is None else config.text.end_id
    limit = MAX_ERROR if dtype.itemsize >= 4 else MAX_HALF_ERROR
    for kind, embeddings, expected in (
        ("images", copy.encode_image(pixels), model.encode_image(pixels)),
        ("texts", copy.encode_text(tokens), model.encode_text(tokens)),
    ):
        error = float((embeddings - expected).abs().max())
        if not error <= limit:
            raise CheckpointError(REFUSED.format(problem=f"{kind} differ by {error:.1e} (the limit is {limit:.0e})"))
