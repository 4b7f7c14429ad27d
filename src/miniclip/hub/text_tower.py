"""Changes of a loaded text tower: longer captions, and the check that a given tokenizer belongs to it.

Letters: T tokens of the context, D width.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from miniclip.inference.image_towers import fill_buffers
from miniclip.inference.model import CLIPModel
from miniclip.tokenizer import TextTokenizer, Tokenizer
from miniclip.utils.checks import whole_number
from miniclip.utils.option_names import option

KEPT = 20  # positions that are well trained, since most captions are shorter (Long-CLIP, section 3.1)
OPENAI_VOCABULARY = 49408
MAX_WORDS = 2000  # compared words of a vocabulary, about
LONG = 1024  # tokens; no sentence is cut
SENTENCES = (
    "a photo of a cat and 2 dogs",
    "A man in a blue shirt is standing on a ladder cleaning a window.",
    "Two young, White males are outside near many bushes; one wears sunglasses!",
    "product 48210-B: stainless-steel water bottle, 0.75 l (matte black), $19.99",
    "the children's playground isn't open at 7:30 -- they'll wait for you",
    "handmade ceramic coffee mug with wooden handle & bamboo lid",
    "vintage leather crossbody bag, adjustable strap, waterproof zipper",
    "ein rotes Fahrrad vor der Bäckerei, une tasse de café, el niño corre",
    "фотография собаки, 一只猫, りんご, 사과, تفاحة, सेब",
    "an x-ray of the left wrist; a screenshot of https://example.org/index.html",
    "smiling face 😀 with hearts ❤️ and a rocket 🚀 #launch @night",
    "zebra xylophone quilt jigsaw vortex phlox unkempt wyvern rhythm oxygen",
)
OPENAI_IDS = "0c0ec409dce9afc47e51c6194a3fa06fe895608dcd84a5ddd64af1faa8c8a491"  # `ids_digest` of OpenAI's tokenizer


def with_context(model: CLIPModel, length: int) -> CLIPModel:
    """Return a model with another context length.

    The first 20 positions are kept and the others are stretched linearly, as in Long-CLIP (Zhang et al. 2024,
    https://arxiv.org/abs/2403.15378), where 77 becomes 248. Captions of at most 20 tokens keep their embeddings. A
    shorter context takes the first positions, and captions that fit keep their embeddings.

    Raises:
        ValueError: the tower attends to padding (SigLIP, CLIPA), so that every caption would be embedded differently;
            or there are too few positions to stretch.
        TypeError: the length is not a whole number.
    """
    length, before = whole_number(option("context_length"), length, 3), model.config.text.context_length
    if length == before:
        return model
    if model.config.text.padding == "attended":
        raise ValueError(
            f"{option('context_length', length)}: this text tower attends to padding and takes rows of {before} "
            "tokens; another length changes the embedding of every caption: remove it, or use a model that masks "
            "padding, as OpenAI's and the BERT-style ones do"
        )
    if length > before <= KEPT + 1:
        raise ValueError(
            f"{option('context_length', length)}: the model has {before} positions; the first {KEPT} are kept and the "
            f"others stretched, which needs at least {KEPT + 2}"
        )
    if length > before:
        warnings.warn(
            f"the positions {KEPT + 1} to {before} of the text tower were stretched to {length}: fine-tune with long "
            "captions, or expect somewhat lower accuracy for captions longer than that",
            UserWarning,
            stacklevel=4,
        )
    state = model.state_dict()
    state["text.positions"] = stretched(state["text.positions"], length)
    with torch.device("meta"):
        longer = CLIPModel(model.config.replace_text(context_length=length))
    longer.load_state_dict(state, assign=True)
    fill_buffers(longer.image, longer.config.embed_dim)
    return longer


def stretched(positions: Tensor, length: int) -> Tensor:
    """Return position embeddings (T, D) for another number of tokens, (length, D).

    Position j >= 20 of the result is at the place 20 + (j - 20) (T - 20) / (length - 20) between two old ones. Behind
    the last one, the line through the last two continues.
    """
    T = len(positions)
    if length <= T:
        return positions[:length].clone()
    places = KEPT + torch.arange(length - KEPT, dtype=torch.float64) * (T - KEPT) / (length - KEPT)
    left = places.long().clamp(max=T - 2)
    share = (places - left)[:, None]
    old = positions.double()
    tail = (1 - share) * old[left] + share * old[left + 1]
    return torch.cat([positions[:KEPT], tail.to(positions.dtype)])


def require_same_words(given: TextTokenizer, model: CLIPModel, own: TextTokenizer | None) -> None:
    """Check that a given tokenizer has the words of pretrained weights.

    Two tokenizers of miniclip are compared completely. Others are compared by the ids of the sentences and of words
    from all parts of the checkpoint's vocabulary; those of OpenAI's weights by the ids of the sentences.

    Args:
        given: the tokenizer that replaces the checkpoint's.
        model: the model of the checkpoint.
        own: the checkpoint's tokenizer if it is on disk.

    Raises:
        ValueError: the words differ, so that the token embeddings would belong to other words.
    """
    text = model.config.text
    is_openai = text.vocab_size == OPENAI_VOCABULARY and text.end_id in (None, OPENAI_VOCABULARY - 1)
    if own is not None:
        difference = _difference(given, own)
    elif is_openai and text.causal and ids_digest(given) != OPENAI_IDS:
        difference = "its ids are not those of OpenAI's tokenizer"
    else:
        return
    if difference is not None:
        raise ValueError(
            f"the tokenizer of {option('tokenizer')} is not the one that the weights were trained with ({difference}), "
            "so that the token embeddings would belong to other words: leave it out; a new vocabulary needs fresh "
            "weights, as of `miniclip train --preset`"
        )


def ids_digest(tokenizer: TextTokenizer) -> str:
    """Return the SHA-256 of a tokenizer's ids of the sentences, each without padding."""
    ids = [_ids(tokenizer, sentence) for sentence in SENTENCES]
    return hashlib.sha256(repr(ids).encode()).hexdigest()


def _difference(given: TextTokenizer, own: TextTokenizer) -> str | None:
    """Return how the words of two tokenizers differ; None if no difference was found."""
    for text in (*SENTENCES, *_words(own)):
        found, expected = _ids(given, text), _ids(own, text)
        if found != expected:
            return f"{text!r} is {found[:6]}… and not {expected[:6]}…"
    if isinstance(given, Tokenizer) and isinstance(own, Tokenizer):
        for name in ("vocab", "merges"):
            if getattr(given, name) != getattr(own, name):
                return f"its {name} differ"
    return None


def _ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    return tokenizer(text, context_length=LONG)[0].tolist()


def _words(tokenizer: Any) -> Iterator[str]:
    """Yield words from all parts of a tokenizer's vocabulary, if it decodes ids."""
    if not hasattr(tokenizer, "decode"):
        return
    size = tokenizer.vocab_size
    for i in range(0, size, max(1, size // MAX_WORDS)):
        word = tokenizer.decode([i])
        if word and "\ufffd" not in word:  # bytes that are part of a character
            yield word
