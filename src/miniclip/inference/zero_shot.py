"""Zero-shot classification (Radford et al. 2021, section 3.1). Letters: N images, C classes, E embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from miniclip.losses.reference import l2_normalize

TEMPLATES = ("a photo of a {}.",)


def class_embeddings(
    encode_text: Callable[[list[str]], Tensor], labels: Sequence[str], templates: Sequence[str] | None = None
) -> Tensor:
    """Embeddings of class names: the mean over the prompts of all templates, normalized again.

    Args:
        encode_text: prompts to unit vectors (n, E).
        labels: C class names.
        templates: prompts with `{}` in place of the class name; None: "a photo of a {}."

    Returns:
        (C, E) unit vectors.

    Raises:
        ValueError: there is no label, or the labels are one string.
    """
    if isinstance(labels, str) or not labels:
        raise ValueError(f"labels: found {labels!r}, expected a list of at least one name")
    templates = templates or TEMPLATES
    prompts = [template.format(label) for template in templates for label in labels]
    return l2_normalize(encode_text(prompts).view(len(templates), len(labels), -1).mean(dim=0))


def class_probabilities(image_embeddings: Tensor, classes: Tensor, logit_scale: Tensor) -> Tensor:
    """Softmax over the scaled cosine similarities: (N, E) and (C, E) to (N, C)."""
    return (logit_scale * image_embeddings @ classes.T).softmax(dim=-1)
