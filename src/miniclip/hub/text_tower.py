"""Changes of a loaded text tower: longer captions, and the check that a given tokenizer belongs to it.

Letters: T tokens of the context, D width.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from miniclip.inference.model import CLIPModel
from miniclip.tokenizer import TextTokenizer
from miniclip.utils.checks import whole_number
from miniclip.utils.option_names import option

KEPT = 20  # positions that are well trained, since most captions are shorter (Long-CLIP, section 3.1)
OPENAI_VOCABULARY = 49408
SAMPLE = "a photo of a cat and 2 dogs"
OPENAI_IDS = (49406, 320, 1125, 539, 320, 2368, 537, 273, 3255, 49407)  # those of SAMPLE


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
    """Check that a given tokenizer has the words of pretrained weights, by the ids of a sentence.

    Args:
        given: the tokenizer that replaces the checkpoint's.
        model: the model of the checkpoint.
        own: the checkpoint's tokenizer if it is on disk.

    Raises:
        ValueError: the ids differ, so that the token embeddings would belong to other words.
    """
    text = model.config.text
    is_openai = text.vocab_size == OPENAI_VOCABULARY and text.end_id in (None, OPENAI_VOCABULARY - 1)
    if own is not None:
        expected = tuple(own(SAMPLE)[0].tolist())
    elif is_openai and text.causal:
        expected = OPENAI_IDS
    else:
        return
    found = tuple(given(SAMPLE)[0].tolist())
    if found != expected:
        raise ValueError(
            f"the tokenizer of {option('tokenizer')} gives other ids than the one that the weights were trained with "
            f"({SAMPLE!r} is {list(found)[:6]}… and not {list(expected)[:6]}…), so that the token embeddings would "
            "belong to other words: leave it out; a new vocabulary needs fresh weights, as of `miniclip train --preset`"
        )
