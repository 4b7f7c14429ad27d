"""Writing a model as another project keeps it: OpenAI's state dict, open_clip's directory, or transformers'.

What was written is opened again and compared with the model before it is said to be done. It is made in a
directory of its own inside the place, and moved there file by file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from miniclip.checkpoints.conversion import invert
from miniclip.checkpoints.formats import open_clip, openai, transformers
from miniclip.checkpoints.formats.safetensors import write_tensors
from miniclip.checkpoints.layout import Written
from miniclip.checkpoints.native import TOKENIZER, read_json, tokenizer_at_hand, write_json
from miniclip.checkpoints.reading import CheckpointReader
from miniclip.config import CLIPConfig
from miniclip.errors import CheckpointError
from miniclip.inference.model import CLIPModel
from miniclip.tokenizer.bpe import END
from miniclip.utils.atomic import write_atomically
from miniclip.utils.checks import did_you_mean

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

LAYOUTS = ("openai", "open_clip", "transformers")
TOKENIZER_CONFIG = "tokenizer_config.json"
REFUSED = "the export was checked and refused: {problem} after reading it back; please report this, with config.json"
CLOSE = 1e-5  # embeddings are unit vectors; reading back what was written gives the same numbers but for their order


def export(model: CLIPModel, path: str | Path, *, layout: str, repo: str | None = None) -> None:
    """Write a model in another project's layout, for its own code to open.

    Args:
        model: any precision; the file keeps it.
        path: a directory, made where it is missing; files of the same names are replaced.
        layout: "openai" (a state dict, `model.pt`, for `clip.load`), "open_clip" (for `local-dir:`) or "transformers"
            (for `from_pretrained`: a CLIPModel, or a SiglipModel where pictures are pooled by attention).
        repo: where it will be pushed, which open_clip's settings must say for it to find the tokenizer there.

    Raises:
        ValueError: the other project has no such model; the message says what differs.
        CheckpointError: what was written does not give the model's embeddings; nothing is left at the path.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}{did_you_mean(layout, LAYOUTS)}")
    tokenizer = tokenizer_at_hand(model) if layout != "openai" or model.tokenizer_source is None else None
    plan = _plan(model.config, tokenizer, layout, repo)
    path, left = Path(path), {TOKENIZER, TOKENIZER_CONFIG}
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path, prefix=".export-") as folder:
        made = Path(folder)
        _write(model, tokenizer, made, plan)
        _verify(model, made)
        for file in made.iterdir():
            file.replace(path / file.name)
            left.discard(file.name)
    for name in left:  # a tokenizer that an earlier export left there would be taken for this one's
        (path / name).unlink(missing_ok=True)


def _plan(config: CLIPConfig, tokenizer: TextTokenizer | None, layout: str, repo: str | None) -> Written:
    if layout == "transformers":
        return transformers.written(config)
    openais = tokenizer is None or getattr(tokenizer, "is_openai", False)
    if layout == "open_clip":  # which has OpenAI's vocabulary built in, and takes any other from the files
        return open_clip.written(config, None if openais else repo or "tokenizer.json")
    if not openais:
        raise ValueError("OpenAI's code has its own vocabulary built in, and this model's tokenizer has another")
    return openai.written(config)


def _write(model: CLIPModel, tokenizer: TextTokenizer | None, folder: Path, plan: Written) -> None:
    tensors = invert(plan.rows, model.config, {key: value.detach() for key, value in model.state_dict().items()})
    if plan.weights.endswith(".safetensors"):
        write_tensors(folder / plan.weights, tensors, {"format": "pt"})
    else:
        tensors = {key: value.cpu().contiguous() for key, value in tensors.items()} | openai.marks(model.config)
        write_atomically(folder / plan.weights, lambda temporary: torch.save(tensors, temporary))
    for name, settings in plan.files.items():
        write_json(folder / name, settings)
    if plan.files and tokenizer is not None:
        tokenizer.save(folder / TOKENIZER)
        write_json(folder / TOKENIZER_CONFIG, _tokenizer_config(folder / TOKENIZER, model.config))


def _tokenizer_config(file: Path, config: CLIPConfig) -> dict[str, Any]:
    """What transformers, and open_clip through it, want to know of a tokenizer.json beside what it says itself.

    Raises:
        ValueError: there is no token to pad with.
    """
    padding = read_json(file).get("padding")
    if not padding and config.text.padding == "attended":
        raise ValueError(
            "this model attends to its padding, of the id 0, which is the token of '!' too: other libraries would take "
            "each '!' of a text for padding; export it without a tokenizer, model.tokenizer = None"
        )
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.text.context_length,
        "pad_token": padding["pad_token"] if padding else END,  # causal text never looks at what follows its end
    }


@torch.no_grad()
def _verify(model: CLIPModel, folder: Path) -> None:
    """Raise `CheckpointError` unless what was written gives the model back: its weights, and what they compute.

    The same weights could still be another model, by the settings: so noise and random ids are embedded, too.
    """
    config, dtype = model.config, model.log_scale.dtype
    copy = CheckpointReader(folder).model(dtype).to(model.device).eval()
    theirs = copy.state_dict()
    for key, value in model.state_dict().items():
        if not torch.equal(value, theirs[key]):
            raise CheckpointError(REFUSED.format(problem=f"{key} is not the model's"))
    generator = torch.Generator().manual_seed(0)
    size = config.image.image_size
    pixels = torch.randn(2, 3, size, size, generator=generator)
    tokens = torch.randint(0, config.text.vocab_size, (2, config.text.context_length), generator=generator)
    tokens[:, -1] = config.text.end_id
    close = CLOSE if dtype.itemsize >= 4 else 1e-2
    for what, found, expected in (
        ("pictures", copy.encode_image(pixels), model.encode_image(pixels)),
        ("texts", copy.encode_text(tokens), model.encode_text(tokens)),
    ):
        error = float((found - expected).abs().max())
        if not error <= close:
            raise CheckpointError(REFUSED.format(problem=f"{what} differ by {error:.1e} (the most is {close:.0e})"))
